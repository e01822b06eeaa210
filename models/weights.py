"""Weights that a network starts from in the place of random ones: arrays by name, or a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from flamert import safetensors
from flamert.errors import InputError

Weights = Mapping[str, np.ndarray] | str | os.PathLike[str]
"""Arrays by name, or the path of a safetensors file."""


def fitted(shapes: Mapping[str, tuple[int, ...]], weights: Weights) -> dict[str, np.ndarray]:
    """An array for each of these names, in float32; what else there is stays out.

    Names may lack the part before the first dot, as files of models without a head do, and end in gamma and beta, as
    TensorFlow has it. Raises InputError for names that are missing and for shapes that differ.
    """
    held = weights if isinstance(weights, Mapping) else safetensors.read(weights)[0]
    known = {_modern(name): np.asarray(array) for name, array in held.items()}
    taken = {name: known[key] for name in shapes for key in (name.partition(".")[2], name) if key in known}
    if missing := [name for name in shapes if name not in taken]:
        shown = ", ".join(missing[:5]) + " …" * (len(missing) > 5)
        raise InputError(f"the weights lack {len(missing)} of {len(shapes)} parameters: {shown}")
    for name, shape in shapes.items():
        if taken[name].shape != shape:
            raise InputError(f"{name!r} is {list(taken[name].shape)} among the weights, {list(shape)} in the network")
    return {name: taken[name].astype(np.float32, copy=False) for name in shapes}


def _modern(name: str) -> str:
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
