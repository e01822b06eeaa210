"""`flamert view`: the model's graph in the browser."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flamert.cli.console import ModelPath
from flamert.errors import FlamertError, InputError


def command(
    model: ModelPath,
    port: Annotated[int, typer.Option("--port", help="To serve the page on; 0 takes any.")] = 0,
) -> None:
    """Open a model's graph in the browser, with Netron; ends with Ctrl-C.

    Example: flamert view model.onnx
    """
    if not os.path.isfile(model):
        raise InputError(f"cannot read {model!r}: no such file")
    try:
        import netron
    except ImportError:
        raise FlamertError("viewing needs Netron: pip install 'flamert[docs]'") from None
    netron.start(model, address=port or None)
    netron.wait()
