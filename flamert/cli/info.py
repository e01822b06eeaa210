"""`flamert info`: what a model file holds, or what this installation can do."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer

from flamert.cli.console import Json, emit
from flamert.summary import facts, listing, tables


def command(
    model: Annotated[str | None, typer.Argument(help="The ONNX file; without one, this installation.")] = None,
    json: Json = False,
) -> None:
    """Show a model's inputs, outputs, parameters and ops, or, without a model, this installation.

    Example: flamert info model.onnx
    """
    if model is None:
        data = installation()
        emit(data, [listing(data)], json)
        return
    from flamert.importers.load import load

    loaded = load(model, device="cpu")
    emit(facts(loaded), tables(loaded), json)


def installation() -> dict[str, Any]:
    """Versions, devices and optional parts."""
    import numpy as np

    from flamert.about import VERSION
    from flamert.errors import DeviceError
    from flamert.importers.coverage import newest_opset
    from flamert.runtime.device import device

    try:
        gpu = str(device("cuda").name)
    except DeviceError as error:
        gpu = f"none ({error})"
    return {
        "flamert": VERSION,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "ONNX opset": newest_opset(),
        "GPU": gpu,
        "native CPU kernels": native(),
    }


def native() -> str:
    """Whether the compiled CPU kernels are there."""
    from flamert.ops.cpu.library import library

    found = library()
    return "none: NumPy's kernels instead" if found is None else f"yes, {found.threads} threads"
