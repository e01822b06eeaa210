"""Gradients without rules: every element is moved to both sides."""

import numpy as np


def slopes(loss, operands, k, step=1e-5):
    """∂ loss(*operands) / ∂ operands[k]."""
    gradient = np.zeros(operands[k].shape)
    for at in np.ndindex(gradient.shape):
        ends = []
        for by in (step, -step):
            moved = operands[k].astype(np.float64)
            moved[at] += by
            ends.append(loss(*operands[:k], moved, *operands[k + 1 :]))
        gradient[at] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def weighted(flows, results):
    """Σ result · its gradient; a gradient that is None counts as zero."""
    return sum(float((dy * y).sum()) for dy, y in zip(flows, results, strict=True) if dy is not None)
