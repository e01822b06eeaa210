"""Rows for the adjoints of recurrent layers: the oracle moves every element of every operand and looks at the results."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.recurrent import f32, gru, lstm, operands, rnn
from tests.differences import slopes, weighted


def differences(forward):
    """Gradients of all floating operands but y (None for those left out), by differences."""

    def oracle(x, w, r, y, *rest, **attrs):
        count = 2 if len(rest) == 5 else 3
        given, flows = [x, w, r, *rest[:-count]], rest[-count:]

        def loss(*operands):
            return weighted(flows, forward(*operands, **attrs))

        return tuple(None if v is None else slopes(loss, given, k) for k, v in enumerate(given) if k != 4)

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
