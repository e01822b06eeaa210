"""Stochastic gradient descent, with momentum and sign updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert import ops
from flamert.errors import InputError
from flamert.graph import TensorType, Value
from flamert.optim.optimizer import Optimizer, Options, State, Update, decayed, filled, like
from flamert.optim.schedule import Schedule

Groups = Sequence[Mapping[str, Any]]


class SGD(Optimizer):
    """v ← μ v + (1 − dampening) g;  p ← p − lr · v, or with nesterov p − lr (g + μ v). Source: torch.optim.SGD."""

    def __init__(
        self,
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        if nesterov and (momentum <= 0 or dampening):
            raise InputError("nesterov needs a momentum and no dampening")
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(defaults, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"momentum": filled(param)} if options["momentum"] else {}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        grad = decayed(param, grad, options["weight_decay"])
        lr, momentum = like(lr, param), options["momentum"]
        if not momentum:
            return param - grad * lr, {}
        fresh = grad if not options["dampening"] else ops.where(step <= 1.0, grad, grad * (1.0 - options["dampening"]))
        velocity = state["momentum"] * momentum + fresh
        direction = grad + velocity * momentum if options["nesterov"] else velocity
        return param - direction * lr, {"momentum": velocity}


class Lion(Optimizer):
    """p ← p (1 − lr λ) − lr · sign(β₁ m + (1 − β₁) g);  m ← β₂ m + (1 − β₂) g. Source: Chen et al. 2023."""

    def __init__(
        self,
        lr: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        super().__init__({"lr": lr, "betas": betas, "weight_decay": weight_decay}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"momentum": filled(param)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        (b1, b2), m, lr = options["betas"], state["momentum"], like(lr, param)
        param = param * (1.0 - lr * options["weight_decay"])
        return param - ops.sign(m * b1 + grad * (1 - b1)) * lr, {"momentum": m * b2 + grad * (1 - b2)}
