"""Rows for the adjoints of recurrent layers: the oracle moves every element of every operand and looks at the results."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.recurrent import f32, gru, lstm, operands, rnn


def differences(forward):
    """Central differences of Σ result · its gradient, by every element of every floating operand (None for those left out)."""

    def oracle(x, w, r, y, *rest, **attrs):
        count = 2 if len(rest) == 5 else 3
        given = [x, w, r, *rest[:-count]]

        def loss(k, at, by):
            moved = list(given)
            moved[k] = given[k].copy()
            moved[k][at] += by
            pairs = zip(rest[-count:], forward(*moved, **attrs), strict=True)
            return sum(float((dy * y).sum()) for dy, y in pairs if dy is not None)

        def slope(k):
            gradient = np.zeros_like(given[k])
            for at in np.ndindex(gradient.shape):
                gradient[at] = (loss(k, at, 1e-5) - loss(k, at, -1e-5)) / 2e-5
            return gradient

        return tuple(None if given[k] is None else slope(k) for k in range(len(given)) if k != 4)

    return oracle


def row(op, forward, n_gates, states, flows, kinds=(dtypes.float64,), peepholes=False, lens=False, sides=1, bias=True, **attrs):
    """An adjoint at the layer's operands, what it gives for them, and gradients of the results numbered in `flows`."""
    x, w, r, *rest = operands(n_gates, sides, states, peepholes, lens, bias)
    results = forward(x, w, r, *rest, **attrs)
    rest += [None] * (2 * len(results) - 1 - len(rest))
    given = [f32(*y.shape) if i in flows else None for i, y in enumerate(results)]
    # y is no operand of its own, so differences by it say nothing: gradients of this gradient are tried with the layer's.
    return Case(
        op,
        [x, w, r, results[0].astype(np.float32), *rest, *given],
        attrs,
        differences(forward),
        kinds,
        tolerance=(1e-4, 1e-5),
        gradient=False,
    )


CASES = [
    row("rnn_gradient", rnn, 1, 1, (0, 1), lens=True, direction="reverse"),
    row("rnn_gradient", rnn, 1, 0, (1,), (dtypes.float32,), bias=False),
    row("gru_gradient", gru, 3, 1, (0,), linear_before_reset=False),
    row("gru_gradient", gru, 3, 1, (0, 1), lens=True, direction="reverse", linear_before_reset=True),
    row("lstm_gradient", lstm, 4, 2, (0, 2), peepholes=True, lens=True, input_forget=False),
    row("lstm_gradient", lstm, 4, 2, (1,), peepholes=True, input_forget=True),
]
