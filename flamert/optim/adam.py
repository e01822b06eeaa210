"""Adam and its relatives: first and second moments of the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flamert import ops
from flamert.graph import TensorType, Value
from flamert.optim.optimizer import Optimizer, Options, State, Update, decayed, filled, like
from flamert.optim.schedule import Schedule
from flamert.optim.sgd import Groups


def power(base: float, step: Value) -> Value:
    """base^step, for a scalar step."""
    return ops.exp(step * math.log(base))


def moments(grad: Value, state: State, betas: tuple[float, float]) -> tuple[Value, Value]:
    """Exponential averages of the gradient and of its square."""
    b1, b2 = betas
    return state["m"] * b1 + grad * (1 - b1), state["v"] * b2 + grad * grad * (1 - b2)


class Adam(Optimizer):
    """p ← p − lr · m̂ / (√v̂ + ε), with weight decay as a part of the gradient. Source: torch.optim.Adam, Kingma & Ba 2014."""

    decoupled = False

    def __init__(
        self,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(defaults, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {name: filled(param) for name in (("m", "v", "v_max") if options["amsgrad"] else ("m", "v"))}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        b1, b2 = options["betas"]
        lr, step = like(lr, param), like(step, param)
        if self.decoupled:
            param = param * (1.0 - lr * options["weight_decay"]) if options["weight_decay"] else param
        else:
            grad = decayed(param, grad, options["weight_decay"])
        m, v = moments(grad, state, options["betas"])
        new = {"m": m, "v": v}
        if options["amsgrad"]:
            v = new["v_max"] = ops.maximum(state["v_max"], v)
        size = lr / (1.0 - power(b1, step))
        root = ops.sqrt(v) * (1.0 / ops.sqrt(1.0 - power(b2, step)))
        return param - m * size / (root + options["eps"]), new


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter itself: p ← p (1 − lr λ). Source: torch.optim.AdamW."""

    decoupled = True

    def __init__(
        self,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, amsgrad, groups=groups, no_decay=no_decay)


class Adamax(Optimizer):
    """p ← p − lr / (1 − β₁ᵗ) · m / u, u ← max(β₂ u, |g| + ε). Source: torch.optim.Adamax."""

    def __init__(
        self,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        super().__init__({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"m": filled(param), "u": filled(param)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        b1, b2 = options["betas"]
        lr, step = like(lr, param), like(step, param)
        grad = decayed(param, grad, options["weight_decay"])
        m = state["m"] * b1 + grad * (1 - b1)
        u = ops.maximum(state["u"] * b2, abs(grad) + options["eps"])
        return param - m * (lr / (1.0 - power(b1, step))) / u, {"m": m, "u": u}


class NAdam(Optimizer):
    """Adam with Nesterov momentum that warms up by momentum_decay. Source: torch.optim.NAdam, Dozat 2016."""

    def __init__(
        self,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
        super().__init__(defaults, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"m": filled(param), "v": filled(param), "mu_product": np.ones((), param.dtype)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        b1, b2 = options["betas"]
        lr, step = like(lr, param), like(step, param)
        grad = decayed(param, grad, options["weight_decay"])
        m, v = moments(grad, state, options["betas"])

        def mu(t: Value) -> Value:
            return (1.0 - power(0.96, t * options["momentum_decay"]) * 0.5) * b1

        product = state["mu_product"] * mu(step)
        root = ops.sqrt(v / (1.0 - power(b2, step))) + options["eps"]
        param = param - grad / root * (lr * (1.0 - mu(step)) / (1.0 - product))
        param = param - m / root * (lr * mu(step + 1.0) / (1.0 - product * mu(step + 1.0)))
        return param, {"m": m, "v": v, "mu_product": product}


class RAdam(Optimizer):
    """Adam whose steps are plain momentum while the second moment is uncertain. Source: torch.optim.RAdam."""

    def __init__(
        self,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        super().__init__({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"m": filled(param), "v": filled(param)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        b1, b2 = options["betas"]
        lr, step = like(lr, param), like(step, param)
        grad = decayed(param, grad, options["weight_decay"])
        m, v = moments(grad, state, options["betas"])
        limit = 2 / (1 - b2) - 1
        b2t = power(b2, step)
        length = limit - step * 2.0 * b2t / (1.0 - b2t)
        rectified = ops.sqrt(ops.maximum((length - 4.0) * (length - 2.0) * limit / (length * ((limit - 4) * (limit - 2))), 0.0))
        rate = lr / (1.0 - power(b1, step))
        adaptive = ops.sqrt(1.0 - b2t) * rectified / (ops.sqrt(v) + options["eps"])
        scale = ops.where(length > 5.0, adaptive, step * 0.0 + 1.0)
        return param - m * rate * scale, {"m": m, "v": v}


class LAMB(Optimizer):
    """Adam's direction with decoupled decay, scaled by ‖p‖ / ‖direction‖ for each parameter. Source: You et al. 2019."""

    def __init__(
        self,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        groups: Groups = (),
        no_decay: Sequence[str] = (),
    ) -> None:
        super().__init__({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, groups, no_decay)

    def init(self, param: TensorType, options: Options) -> dict[str, np.ndarray]:
        return {"m": filled(param), "v": filled(param)}

    def update(self, param: Value, grad: Value, state: State, lr: Value, step: Value, options: Options) -> Update:
        b1, b2 = options["betas"]
        lr, step = like(lr, param), like(step, param)
        m, v = moments(grad, state, options["betas"])
        m_hat, v_hat = (x / (1.0 - power(b, step)) for x, b in ((m, b1), (v, b2)))
        direction = m_hat / (ops.sqrt(v_hat) + options["eps"]) + param * options["weight_decay"]
        norms = [ops.sqrt(ops.reduce_sum(x * x, axes=tuple(range(x.rank)))) for x in (param, direction)]
        both = ops.logical_and(norms[0] > 0.0, norms[1] > 0.0)
        trust = ops.where(both, norms[0] / ops.maximum(norms[1], 1e-30), norms[0] * 0.0 + 1.0)
        return param - direction * (trust * lr), {"m": m, "v": v}
