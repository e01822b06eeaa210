"""`flamert run`: run a model on files, literals or random inputs, and keep the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import typer

from flamert.cli import inputs as given
from flamert.cli.console import DeviceName, Json, ModelPath, emit, working
from flamert.dtypes import NARROW_FLOAT, NARROW_INTEGER, bfloat16
from flamert.errors import InputError
from flamert.summary import table


def command(
    model: ModelPath,
    input: given.Inputs = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the outputs to this .npz (or .npy).")] = None,
    get: Annotated[list[str] | None, typer.Option("--get", help="Output or intermediate value to return. Repeatable.")] = None,
    dim: given.Dims = None,
    seed: given.Seed = 0,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Run a model and show its outputs.

    Example: flamert run model.onnx -i name=@file.npy -i other=random -o out.npz
    """
    from flamert.importers.load import load

    if output is not None and not output.endswith((".npz", ".npy")):
        raise InputError(f"-o {output}: outputs are written as .npz or .npy")
    with working(f"running {model}"):
        loaded = load(model, device=device)
        results = loaded.run(given.feeds(loaded, input, dim, seed, fill=False), get)
    rows = [row(name, x) for name, x in results.items()]
    if output is not None:
        save(output, results)
    columns = ("output", "type", "min", "max", "mean")
    cells = [(r["output"], r["type"], *["" if r[k] is None else f"{r[k]:.6g}" for k in columns[2:]]) for r in rows]
    title = f"{model} on {loaded.device.name}" + (f" → {output}" if output else "")
    emit({"device": loaded.device.name, "outputs": rows}, [title, table(columns, cells, columns[2:])], json)


def row(name: str, x: Any) -> dict[str, Any]:
    """An output in numbers."""
    stats: dict[str, Any] = {"min": None, "max": None, "mean": None}
    if isinstance(x, np.ndarray) and x.size and not x.dtype.hasobject and x.dtype.kind != "c":
        wide = x.astype(np.float64)
        stats = {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())}
    return {"output": name, "type": given.describe(x), **stats}


def save(path: str, results: Mapping[str, Any]) -> None:
    """Outputs as .npz, one entry a name; elements of sequences as name.0, name.1. A .npy takes a single output."""
    arrays = {name: array for key, x in results.items() for name, array in _leaves(key, x)}
    if path.endswith(".npz"):
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif len(arrays) == 1:
        np.save(path, next(iter(arrays.values())))
    else:
        names = ", ".join(arrays)
        raise InputError(f"-o {path}: there are {len(arrays)} outputs ({names}); use .npz, or choose one with --get")


def _leaves(name: str, x: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(x, list):
        for i, element in enumerate(x):
            yield from _leaves(f"{name}.{i}", element)
    elif isinstance(x, dict):
        for key, element in x.items():
            yield f"{name}.{key}", np.asarray(element)
    elif x is not None:
        array = np.asarray(x)
        if array.dtype in NARROW_FLOAT | NARROW_INTEGER | {bfloat16}:
            array = array.astype(np.float32)  # .npy has no name for these types; float32 holds every value of theirs
        yield name, array.astype(str) if array.dtype.hasobject else array
