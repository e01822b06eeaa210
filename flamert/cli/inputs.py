"""Inputs on the command line: `-i name=@file.npy`, `-i name=random:1,3,224,224`, `-i name=[1, 2]`; `--dim N=4`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer

from flamert.dtypes import FLOAT
from flamert.errors import InputError
from flamert.feeds import TensorSpec
from flamert.model import Model

Inputs = Annotated[
    list[str] | None,
    typer.Option("-i", "--input", help="name=@file.npy, name=@file.npz:key, name=random[:1,3,8,8] or name=JSON. Repeatable."),
]
Dims = Annotated[list[str] | None, typer.Option("--dim", help="Size of a symbolic dimension, as in --dim N=4 (default 1).")]
Seed = Annotated[int, typer.Option("--seed", help="Of the random inputs.")]


def feeds(model: Model, given: Sequence[str] | None, dims: Sequence[str] | None, seed: int, fill: bool) -> dict[str, Any]:
    """Arrays by input name. fill: inputs that are not given, and have no default, are random."""
    sizes = _sizes(dims or ())
    rng = np.random.default_rng(seed)
    specs = {spec.name: spec for spec in model.inputs}
    found: dict[str, Any] = {}
    for text in given or ():
        name, value = _split(text, specs)
        found[name] = _value(specs[name], value, sizes, rng)
    if fill:
        for name, spec in specs.items():
            if name not in found and name not in model.origin.optional and spec.kind != "optional":
                found[name] = random(spec, None, sizes, rng)
    return found


def random(spec: TensorSpec, shape: Sequence[int] | None, sizes: Mapping[str, int], rng: np.random.Generator) -> Any:
    """Made-up contents: normal floats, integers in [0, 10), words. Symbolic dimensions are 1 unless `sizes` says otherwise."""
    if shape is None and spec.shape is not None:
        shape = [d if isinstance(d, int) else sizes.get(d, 1) if d is not None else 1 for d in spec.shape]
    if spec.kind != "tensor" or spec.dtype is None or shape is None:
        how = f"-i {spec.name}=random:1,3" if spec.kind == "tensor" and spec.dtype is not None else f"-i {spec.name}=@file"
        raise InputError(f"input {spec.name!r} ({spec}) cannot be made up; give {how}")
    if spec.dtype.hasobject:
        return rng.choice(np.array(["one", "two", "three"], object), tuple(shape))
    if spec.dtype in FLOAT:
        return rng.standard_normal(tuple(shape), np.float32).astype(spec.dtype)
    if spec.dtype.kind == "c":
        return (rng.standard_normal(tuple(shape)) + 1j * rng.standard_normal(tuple(shape))).astype(spec.dtype)
    high = 2 if spec.dtype.kind == "b" or ("2" in spec.dtype.name[-2:] and spec.dtype.itemsize == 1) else 10
    return rng.integers(0, min(high, 8) if spec.dtype.name in ("int4",) else high, tuple(shape)).astype(spec.dtype)


def shown(arrays: Mapping[str, Any]) -> str:
    """Inputs in one line: `x float32[1,8], y int64[]`."""
    return ", ".join(f"{name} {describe(a)}" for name, a in arrays.items())


def describe(x: Any) -> str:
    """Type and shape of a run-time object."""
    if isinstance(x, np.ndarray):
        name = "string" if x.dtype.hasobject else x.dtype.name
        return f"{name}[{','.join(map(str, x.shape))}]"
    return f"list of {len(x)}" if isinstance(x, list) else type(x).__name__


def _sizes(dims: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for text in dims:
        name, _, size = text.partition("=")
        if not size.isdigit():
            raise InputError(f"--dim {text!r}: write NAME=SIZE, as in --dim N=4")
        sizes[name] = int(size)
    return sizes


def _split(text: str, specs: Mapping[str, TensorSpec]) -> tuple[str, str]:
    """Name and value; the name may hold "=" itself, so the declared names decide."""
    for name in sorted(specs, key=len, reverse=True):
        if text.startswith(f"{name}="):
            return name, text[len(name) + 1 :]
    if "=" not in text:
        raise InputError(f"-i {text!r}: write name=@file.npy, name=random or name=value")
    raise InputError(f"-i {text!r}: the model's inputs are {', '.join(specs) or 'none'}")


def _value(spec: TensorSpec, text: str, sizes: Mapping[str, int], rng: np.random.Generator) -> Any:
    if text.startswith("@"):
        return _file(spec, text[1:])
    if text == "random" or text.startswith("random:"):
        _, _, shape = text.partition(":")
        return random(spec, _shape(spec, shape) if shape else None, sizes, rng)
    try:
        literal = json.loads(text)
    except ValueError:
        literal = text
    if spec.kind != "tensor" or spec.dtype is None:
        return literal
    try:
        return np.array(literal, spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"-i {spec.name}={text!r} is no {spec}: {error}") from error


def _shape(spec: TensorSpec, text: str) -> list[int]:
    dims = text.strip("[]").replace("x", ",").split(",")
    if not all(d.strip().isdigit() for d in dims):
        raise InputError(f"-i {spec.name}=random:{text}: write the shape as 1,3,224,224")
    shape = [int(d) for d in dims]
    if math.prod(shape) > 1 << 31:
        raise InputError(f"-i {spec.name}=random:{text}: that is {math.prod(shape)} elements")
    return shape


def _file(spec: TensorSpec, path: str) -> Any:
    """A .npy file, or one array of a .npz (`file.npz:key`, by default the input's name or the only one)."""
    file, key = path, None
    if ".npz:" in path:
        file, key = path.rsplit(":", 1)
    try:
        loaded = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"-i {spec.name}=@{path}: {getattr(error, 'strerror', None) or error}") from error
    if not hasattr(loaded, "files"):
        return loaded.astype(object) if loaded.dtype.kind in "US" else loaded
    key = key or (spec.name if spec.name in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None)
    if key not in loaded.files:
        raise InputError(f"-i {spec.name}=@{path}: {file} holds {', '.join(loaded.files)}; write @{file}:key")
    return loaded[key]
