"""Optimizers, learning-rate schedules and clipping, written in ops, with PyTorch's argument names."""

from flamert.optim.adam import LAMB, Adam, Adamax, AdamW, NAdam, RAdam
from flamert.optim.adaptive import Adafactor, Adagrad, RMSprop
from flamert.optim.clip import clip_by_global_norm, global_norm
from flamert.optim.optimizer import Optimizer
from flamert.optim.schedule import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    one_cycle,
    polynomial,
    step,
    warmup_cosine,
)
from flamert.optim.sgd import SGD, Lion

__all__ = [
    "LAMB",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Schedule",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "exponential",
    "global_norm",
    "linear",
    "one_cycle",
    "polynomial",
    "step",
    "warmup_cosine",
]
