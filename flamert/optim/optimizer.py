"""What an optimizer is: initial state and one update, written in ops; hyperparameters per group of parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import InputError
from flamert.graph import TensorType, Value
from flamert.optim.schedule import Schedule, as_schedule

State = dict[str, Value]
Options = Mapping[str, Any]
Update = tuple[Value, State]


class Optimizer:
    """Base of all optimizers. Argument names, defaults and formulas are PyTorch's.

    lr: a float or a schedule. groups: [{"params": pattern or list of patterns, "lr": …, any other argument: …}]; a parameter
    takes the arguments of the first group that one of its glob patterns matches, the optimizer's own otherwise.
    no_decay: glob patterns of parameters whose weight_decay is 0 (biases and norms, commonly).
    """

    defaults: dict[str, Any]

    def __init__(
        self, defaults: Mapping[str, Any], groups: Sequence[Mapping[str, Any]] = (), no_decay: Sequence[str] = ()
    ) -> None:
        for name in ("lr", "eps", "weight_decay"):
            value = defaults.get(name, 0)
            if isinstance(value, int | float) and value < 0:
                raise InputError(f"{name} must not be negative, got {value}")
        self.defaults = dict(defaults)
        self.no_decay = tuple(no_decay)
        self.groups = [dict(group) for group in groups]
        for group in self.groups:
            if unknown := group.keys() - self.defaults.keys() - {"params"}:
                raise InputError(f"{type(self).__name__} has no argument {sorted(unknown)[0]!r}")

    def options(self, name: str) -> dict[str, Any]:
        """The arguments for the parameter of this name."""
        options = dict(self.defaults)
        for group in self.groups:
            patterns = [group["params"]] if isinstance(group["params"], str) else group["params"]
            if any(fnmatch.fnmatchcase(name, p) for p in patterns):
                options.update({k: v for k, v in group.items() if k != "params"})
                break
        if any(fnmatch.fnmatchcase(name, p) for p in self.no_decay):
            options["weight_decay"] = 0.0
        return options

    def schedule(self, name: str) -> Schedule:
        """The learning rate of the parameter of this name, by step."""
        return as_schedule(self.options(name)["lr"])

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        """Initial state arrays of one parameter, by name."""
        raise NotImplementedError

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        """One step: the new parameter and the new state. lr, step (1, 2, …): float32 scalars."""
        raise NotImplementedError


def like(number: Value, param: Value) -> Value:
    """A scalar in the parameter's element type."""
    return number if number.dtype == param.dtype else g.OPERATORS["cast"](number, to=param.dtype)


def filled(param: TensorType, number: float = 0.0) -> np.ndarray:
    """A state array that starts as one number everywhere: a view of that number, which takes no memory."""
    return np.broadcast_to(np.asarray(number, param.dtype), param.shape)


def decayed(param: Value, grad: Value, weight_decay: float) -> Value:
    """The gradient of the loss plus weight_decay/2 · ‖param‖²."""
    return grad + param * weight_decay if weight_decay else grad
