"""Converters. Regions of interest: pooling over them, and which boxes survive non-maximum suppression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter


@converter("MaxRoiPool")
def _(ctx: Context, x: Value, rois: Value, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Value:
    return ops.max_roi_pool(x, rois, size=tuple(pooled_shape), scale=spatial_scale)


@converter("RoiAlign", 16)
def _(
    ctx: Context,
    x: Value,
    rois: Value,
    images: Value,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Value:
    if coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise InvalidModel(f"coordinate_transformation_mode {coordinate_transformation_mode!r} is unknown")
    return ops.roi_align(
        x,
        rois,
        images,
        size=(output_height, output_width),
        scale=spatial_scale,
        samples=sampling_ratio,
        half_pixel=coordinate_transformation_mode == "half_pixel",
        mode=mode,
    )


@converter("RoiAlign", 10)
def _(
    ctx: Context,
    x: Value,
    rois: Value,
    images: Value,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Value:
    size = (output_height, output_width)
    return ops.roi_align(x, rois, images, size=size, scale=spatial_scale, samples=sampling_ratio, half_pixel=False, mode=mode)


@converter("NonMaxSuppression", 10)
def _(
    ctx: Context,
    boxes: Value,
    scores: Value,
    limit: Value | None = None,
    iou_threshold: Value | None = None,
    score_threshold: Value | None = None,
    *,
    center_point_box: int = 0,
) -> Any:
    if boxes.rank != 3 or boxes.shape[2] != 4 or scores.rank != 3 or scores.shape[::2] != boxes.shape[:2]:
        raise ShapeError(f"boxes [N, boxes, 4] and scores [N, classes, boxes] are needed, not {boxes.type}, {scores.type}")
    if limit is None:
        return g.constant(np.zeros((0, 3), np.int64))
    options = [v for v in (iou_threshold, score_threshold) if v is not None]

    def run(boxes: np.ndarray, scores: np.ndarray, limit: np.ndarray, *given: np.ndarray) -> list[np.ndarray]:
        left = iter(given)
        iou = float(next(left).reshape(-1)[0]) if iou_threshold is not None else 0.0
        least = float(next(left).reshape(-1)[0]) if score_threshold is not None else -np.inf
        return [suppressed(boxes, scores, int(limit.reshape(-1)[0]), iou, least, bool(center_point_box))]

    return ctx.host(run, boxes, scores, limit, *options)


def suppressed(boxes: np.ndarray, scores: np.ndarray, limit: int, iou: float, least: float, centred: bool) -> np.ndarray:
    """(image, class, box) of the boxes kept, best first within each class: int64 [kept, 3].

    boxes: [N, boxes, 4], two corners (y, x, y, x) or, `centred`, (x, y, width, height). scores: [N, classes, boxes]. At most
    `limit` per class, of those that score more than `least`; none that overlaps a better one by more than `iou`.
    """
    kept = [
        (n, c, b)
        for n, corners in enumerate(_corners(boxes.astype(np.float64), centred))
        for c in range(scores.shape[1])
        for b in _survivors(corners, scores[n, c], limit, iou, least)
    ]
    return np.array(kept, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """Boxes as (least a, least b, greatest a, greatest b) over their two axes."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
        return np.concatenate([first, second], -1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], -1)


def _survivors(corners: np.ndarray, scores: np.ndarray, limit: int, iou: float, least: float) -> Iterator[int]:
    """Boxes by falling score, each of which removes those that it overlaps too much."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    area = np.prod(corners[:, 2:] - corners[:, :2], -1)
    while order.size and limit > 0:
        best, rest = order[0], order[1:]
        yield int(best)
        limit -= 1
        sides = np.minimum(corners[rest, 2:], corners[best, 2:]) - np.maximum(corners[rest, :2], corners[best, :2])
        shared = np.prod(np.maximum(sides, 0), -1)
        union = area[rest] + area[best] - shared
        overlaps = (shared > iou * union) & (shared > 0) & (union > 0) & (area[rest] > 0) & (area[best] > 0)
        order = rest[~overlaps]
