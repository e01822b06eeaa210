"""Rows for ops/trees.py."""

import operator

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import FLOATS

rng = np.random.default_rng(5)
HOLDS = {
    "less_equal": operator.le,
    "less": operator.lt,
    "greater_equal": operator.ge,
    "greater": operator.gt,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


def leaves(
    x,
    features,
    splits,
    children,
    roots,
    modes=None,
    missing=None,
    members=None,
    sets=None,
    *,
    depth,
    comparisons=("less_equal",),
):
    def step(row, at):
        value, mode = row[features[at]], comparisons[0 if modes is None else modes[at]]
        if mode == "in":
            holds = value in members[sets[int(splits[at])]] if 0 <= splits[at] < len(sets) else False
        else:
            holds = HOLDS[mode](value, splits[at])
        return children[at][int(holds or (missing is not None and missing[at] and value != value))]

    result = np.empty((len(x), len(roots)), np.int32)
    for i, row in enumerate(x):
        for t, at in enumerate(roots):
            for _ in range(depth):
                at = step(row, at)
            result[i, t] = at
    return result


def scores(reached, targets, weights, *, n_targets, aggregate="sum"):
    result = np.zeros((len(reached), n_targets))
    for i, row in enumerate(reached):
        for k in range(n_targets):
            found = [w for at in row for t, w in zip(targets[at], weights[at], strict=True) if t == k]
            result[i, k] = {"sum": sum, "min": min, "max": max}[aggregate](found) if found else 0
    return result


def ensemble(x, features, splits, children, roots, targets, weights, *rest, n_targets, aggregate="sum", **walk):
    return scores(
        leaves(x, features, splits, children, roots, *rest, **walk), targets, weights, n_targets=n_targets, aggregate=aggregate
    )


def halves(*shape):
    """Multiples of ½, exact in every type, so that equality is met."""
    return rng.integers(-3, 4, shape).astype(np.float32) / 2


# Two trees: node 0 over leaves 1 and node 2 (over 3, 4); node 5 over leaves 6, 7.
FEATURES = np.array([0, 0, 2, 0, 0, 1, 0, 0], np.int32)
SPLITS = np.array([0.5, 0, -0.5, 0, 0, 1, 0, 0], np.float32)
CHILDREN = np.array([[1, 2], [1, 1], [3, 4], [3, 3], [4, 4], [6, 7], [6, 6], [7, 7]], np.int32)
ROOTS = np.array([0, 5], np.int32)
TREES = [FEATURES, SPLITS, CHILDREN, ROOTS]
MODES = np.array([0, 0, 1, 0, 0, 0, 0, 0], np.uint8)
MISSING = np.array([1, 0, 0, 0, 0, 1, 0, 0], np.bool_)
MEMBERS = np.array([-1.5, -0.5, 0, 1], np.float32)
SETS = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], np.bool_)
TARGETS = np.array([[-1, -1], [0, -1], [-1, -1], [1, 0], [0, 2], [-1, -1], [2, -1], [0, 1]], np.int32)
WEIGHTS = halves(8, 2)
X = halves(9, 3)
GAPS = np.where(rng.random((9, 3)) < 0.4, np.float32(np.nan), X)
BY_SET = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32)
REACHED = np.array([[1, 6], [3, 7], [4, 6], [4, 7]], np.int32)


def coupled(r):
    """The minimiser of Σ (r_ji p_i − r_ij p_j)² on Σ p = 1, from its normal equations."""
    k = r.shape[1]
    result = np.empty(r.shape[:2])
    for n, square in enumerate(np.asarray(r, np.float64)):
        off = square * (1 - np.eye(k))
        q = np.diag((off.T**2).sum(1)) - off.T * off
        system = np.block([[q, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        result[n] = np.linalg.solve(system, [*[0] * k, 1])[:k]
    return result


def pairs(n, k):
    above = np.triu(rng.uniform(0.1, 0.9, (n, k, k)), 1)
    return (above + np.tril(1 - above.transpose(0, 2, 1), -1)).astype(np.float32)


KEYS = np.array([-2, 0, 3, 7], np.int64)
VALUES = np.array([1.5, -2, 0.25, 8], np.float32)
DEFAULT = np.array(-1, np.float32)

CASES = [
    *[
        Case("tree_leaves", [X, *TREES], {"depth": 2, "comparisons": (mode,)}, leaves, FLOATS, gradient=False, name=mode)
        for mode in HOLDS
    ],
    Case("tree_leaves", [X[:0], *TREES], {"depth": 2}, leaves, gradient=False, name="no-rows"),
    Case("tree_leaves", [X, *TREES[:3], ROOTS[:0]], {"depth": 0}, leaves, gradient=False, name="no-trees"),
    Case("tree_leaves", [GAPS, *TREES, None, MISSING], {"depth": 2}, leaves, FLOATS, gradient=False, name="missing"),
    Case(
        "tree_leaves",
        [X, *TREES, MODES],
        {"depth": 2, "comparisons": ("less_equal", "not_equal")},
        leaves,
        FLOATS,
        gradient=False,
        name="modes",
    ),
    Case(
        "tree_leaves",
        [GAPS, FEATURES, BY_SET, CHILDREN, ROOTS, None, MISSING, MEMBERS, SETS],
        {"depth": 2, "comparisons": ("in",)},
        leaves,
        (dtypes.float64, dtypes.float32, dtypes.float16),
        gradient=False,
        name="sets",
    ),
    Case(
        "tree_leaves",
        [X, FEATURES, np.where(MODES == 1, 1, SPLITS), CHILDREN, ROOTS, MODES, None, MEMBERS, SETS],
        {"depth": 2, "comparisons": ("less_equal", "in")},
        leaves,
        gradient=False,
        name="sets-and-splits",
    ),
    # Halves tie; the other weights do not, so that extrema have derivatives.
    *[
        Case(
            "leaf_scores", [REACHED, TARGETS, w], {"n_targets": 4, "aggregate": how}, scores, FLOATS, name=how, gradient=smooth
        )
        for how in ("sum", "min", "max")
        for w, smooth in ((WEIGHTS, how == "sum"), (rng.permutation(16).reshape(8, 2).astype(np.float32), True))
    ],
    Case("leaf_scores", [REACHED[:0], TARGETS, WEIGHTS], {"n_targets": 3}, scores, name="no-rows"),
    Case("leaf_scores", [REACHED[:, :0], TARGETS, WEIGHTS], {"n_targets": 3}, scores, name="no-trees"),
    # Where a feature is compared with a split, scores jump.
    Case("tree_ensemble", [X, *TREES, TARGETS, WEIGHTS], {"depth": 2, "n_targets": 3}, ensemble, FLOATS, gradient=False),
    Case(
        "tree_ensemble", [X + np.float32(0.1), *TREES, TARGETS, WEIGHTS], {"depth": 2, "n_targets": 3}, ensemble, name="between"
    ),
    Case(
        "tree_ensemble",
        [GAPS, *TREES, TARGETS, WEIGHTS, None, MISSING],
        {"depth": 2, "n_targets": 3, "aggregate": "max"},
        ensemble,
        gradient=False,
        name="missing",
    ),
    Case(
        "lookup",
        [np.array([[7, 1, 0], [-2, 9, -3]]), KEYS, VALUES, DEFAULT],
        {},
        np.array([[8, -1, -2], [1.5, -1, -1]]),
        FLOATS,
        name="int",
    ),
    Case(
        "lookup",
        [np.array([2.5, np.nan, 0, 3], np.float32), np.array([0, 2.5, np.nan], np.float32), KEYS[:3], np.array(9)],
        {},
        np.array([0, 3, -2, 9]),
        FLOATS[:3],
        gradient=False,
        name="nan",
    ),
    Case("lookup", [KEYS, KEYS[:0], VALUES[:0], DEFAULT], {}, np.full(4, -1.0), name="no-keys"),
    Case("lookup", [KEYS[:0], KEYS, VALUES, DEFAULT], {}, np.zeros(0), name="empty"),
    # The sweeps stop at a residual of 0.005 / K, so the exact answer is met only about as well.
    *[Case("couple_pairs", [pairs(6, k)], {}, coupled, FLOATS[:2], tolerance=(0.05, 0.01), gradient=False) for k in (2, 3, 5)],
    Case("couple_pairs", [pairs(0, 3)], {}, coupled, gradient=False, name="no-rows"),
]
