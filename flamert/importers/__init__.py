"""ONNX in: files are read in load.py and onnx.py, walked in importer.py, and given meaning by one converter module per family."""

from flamert.importers import (
    attention,
    cast,
    conv,
    elementwise,
    image,
    index,
    linear,
    loss,
    normalize,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    sequence,
    shape,
    signal,
    text,
    trees,
)
from flamert.importers.load import load
from flamert.importers.registry import converter

__all__ = [
    "attention",
    "cast",
    "conv",
    "converter",
    "elementwise",
    "image",
    "index",
    "linear",
    "load",
    "loss",
    "normalize",
    "pool",
    "quantize",
    "random",
    "recurrent",
    "reduce",
    "sequence",
    "shape",
    "signal",
    "text",
    "trees",
]
