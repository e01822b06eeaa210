"""Gradients of pooling over regions."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.pool import to_places
from flamert.grad.registry import flat, gradient


@gradient(ops.max_roi_pool)
def _(dy: Any, y: Any, x: Any, rois: Any, **grid: Any) -> Any:
    """dx[place of y[o]] += dy[o]; regions are rounded to elements, so nothing flows to them."""
    places = ops.max_roi_places(x, rois, **grid)
    found = places >= 0
    dy = ops.where(found, dy, g.constant(np.zeros((), dy.dtype)))
    return to_places(dy, ops.where(found, places, g.constant(np.int64(0))), x.shape), None


flat(ops.max_roi_places)
