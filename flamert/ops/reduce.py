"""Reductions and scans along axes: sums, means, extrema and where they lie, norms, cumulative sums, top-k."""

from __future__ import annotations
