"""Optimizers that scale by the gradient's size alone: Adagrad, RMSprop, Adafactor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamert import ops
from flamert.graph import TensorType, Value
from flamert.optim.optimizer import Optimizer, Options, State, Update, decayed, filled, like
from flamert.optim.schedule import Schedule
from flamert.optim.sgd import Groups


class Adagrad(Optimizer):
    """s ← s + g²;  p ← p − lr / (1 + (t − 1) lr_decay) · g / (√s + ε). Source: torch.optim.Adagrad, Duchi et al. 2011."""

    def __init__(
        self,
        lr: float | Schedule = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        defaults = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        super().__init__(defaults | {"initial_accumulator_value": initial_accumulator_value}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"sum": filled(param, options["initial_accumulator_value"])}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        grad = decayed(param, grad, options["weight_decay"])
        total = state["sum"] + grad * grad
        lr, step = like(lr, param), like(step, param)
        rate = lr / ((step - 1.0) * options["lr_decay"] + 1.0)
        return param - grad * rate / (ops.sqrt(total) + options["eps"]), {"sum": total}


class RMSprop(Optimizer):
    """s ← α s + (1 − α) g²;  p ← p − lr · g / (√s + ε), centred and with momentum on request. Source: torch.optim.RMSprop."""

    def __init__(
        self,
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(defaults | {"momentum": momentum, "centered": centered}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        names = ["square", *["mean"] * options["centered"], *["momentum"] * bool(options["momentum"])]
        return {name: filled(param) for name in names}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        alpha = options["alpha"]
        grad = decayed(param, grad, options["weight_decay"])
        square = state["square"] * alpha + grad * grad * (1 - alpha)
        new, spread = {"square": square}, square
        if options["centered"]:
            mean = new["mean"] = state["mean"] * alpha + grad * (1 - alpha)
            spread = square - mean * mean
        direction = grad / (ops.sqrt(spread) + options["eps"])
        if options["momentum"]:
            direction = new["momentum"] = state["momentum"] * options["momentum"] + direction
        return param - direction * like(lr, param), new


class Adafactor(Optimizer):
    """Second moments kept as a row and a column of averages. Source: torch.optim.Adafactor, Shazeer & Stern 2018.

    lr is relative: the step is max(ε₂, rms(p)) · min(lr, 1/√t), and an update whose rms exceeds d is scaled down to it.
    """

    def __init__(
        self,
        lr: float | Schedule = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        defaults = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        super().__init__(defaults, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        if param.rank < 2:
            return {"variance": filled(param)}
        row, column = (*param.shape[:-1], 1), (*param.shape[:-2], 1, param.shape[-1])
        return {"row": np.zeros(row, param.dtype), "column": np.zeros(column, param.dtype)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        eps1 = options["eps"][0] if options["eps"][0] is not None else float(np.finfo(param.dtype).eps)
        lr, step = like(lr, param), like(step, param)
        forget = ops.exp(ops.log(step) * options["beta2_decay"])
        size = ops.minimum(lr, 1.0 / ops.sqrt(step)) * ops.maximum(_rms(param), options["eps"][1])
        if options["weight_decay"]:
            param = param * (1.0 - lr * options["weight_decay"])
        square = grad * grad
        if param.rank < 2:
            variance = state["variance"] + (square - state["variance"]) * forget
            new = {"variance": variance}
        else:
            row, column = (
                state[name] + (ops.reduce_mean(square, axes=(axis,), keepdims=True) - state[name]) * forget
                for name, axis in (("row", param.rank - 1), ("column", param.rank - 2))
            )
            new = {"row": row, "column": column}
            mean = ops.maximum(ops.reduce_mean(row, axes=(param.rank - 2,), keepdims=True), eps1)
            variance = row * column / mean
        direction = grad / ops.sqrt(ops.maximum(variance, eps1 * eps1))
        direction = direction / ops.maximum(_rms(direction) * (1.0 / options["d"]), 1.0)
        return param - direction * size, new


def _rms(x: Value) -> Value:
    """√(mean x²)."""
    return ops.sqrt(ops.reduce_mean(x * x, axes=tuple(range(x.rank))))
