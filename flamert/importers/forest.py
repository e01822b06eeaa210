"""Decision trees as the arrays that ops.tree_ensemble takes, from either of ONNX's encodings. Broken trees are refused here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.ops.trees import COMPARISONS

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
"""Names of the nodes' modes, in the order of COMPARISONS and of TreeEnsemble-5's numbers."""

LEAF = len(MODES)


class Forest:
    """Trees whose nodes, leaves among them, share one numbering.

    modes: [n], of MODES or LEAF. children: [n, 2], the node where the comparison fails, and where it holds. roots: [T].
    at, targets, weights: [E], the entries: node number, target and weight. missing: [n] of bool, or None.
    """

    def __init__(
        self,
        *,
        modes: np.ndarray,
        features: np.ndarray,
        splits: np.ndarray,
        children: np.ndarray,
        roots: np.ndarray,
        at: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        n_targets: int,
        missing: np.ndarray | None = None,
        members: np.ndarray | None = None,
        sets: np.ndarray | None = None,
    ) -> None:
        n = len(modes)
        if not len(features) == len(splits) == len(children) == n or not len(at) == len(targets) == len(weights):
            raise InvalidModel("the arrays that describe the trees' nodes differ in length")
        if len(at) and (at.min() < 0 or at.max() >= n or targets.min() < 0 or targets.max() >= n_targets):
            raise InvalidModel("a leaf's weight is for a node or a target that does not exist")
        leaf = modes == LEAF
        self.children = np.where(leaf[:, None], np.arange(n)[:, None], children)
        if n and (self.children.min() < 0 or self.children.max() >= n):
            raise InvalidModel("a tree's node has a child that does not exist")
        self.features = np.where(leaf, 0, features)
        self.modes, self.splits, self.roots, self.leaf = modes, splits, roots, leaf
        self.at, self.targets, self.weights, self.n_targets = at, targets, weights, n_targets
        self.missing = None if missing is None or not missing.any() else missing
        self.members, self.sets = members, sets
        self.depth, self.tree = self._explore()

    def _explore(self) -> tuple[int, np.ndarray]:
        """The greatest depth, and for each node the number of a tree that reaches it (-1 for none). Cycles are refused."""
        tree = np.full(len(self.modes), -1)
        depth, level, numbers = 0, self.roots, np.arange(len(self.roots))
        while True:
            tree[level] = numbers
            inner = ~self.leaf[level]
            if not inner.any():
                return depth, tree
            if depth > len(self.modes):
                raise InvalidModel("a tree's node is its own descendant")
            level, first = np.unique(self.children[level[inner]].reshape(-1), return_index=True)
            numbers = np.repeat(numbers[inner], 2)[first]
            depth += 1

    def certain(self) -> list[bool | None]:
        """For each target: whether every way through the trees (True), none (False) or some meet an entry for it."""
        leaves = np.bincount(self.tree[self.leaf & (self.tree >= 0)], minlength=len(self.roots))
        node, target = np.unique(np.stack([self.at, self.targets]), axis=1)
        used = self.tree[node] >= 0
        found = np.zeros((len(self.roots), self.n_targets), np.int64)
        np.add.at(found, (self.tree[node[used]], target[used]), 1)
        always = ((found == leaves[:, None]) & (leaves[:, None] > 0)).any(0)
        ever = (found > 0).any(axis=0)
        return [True if a else None if e else False for a, e in zip(np.asarray(always), np.asarray(ever), strict=True)]

    def operands(self, n_features: int) -> tuple[dict[str, Value | None], dict[str, Any]]:
        """The operands after x and the attributes of tree_leaves."""
        if len(self.features) and not 0 <= self.features.min() <= self.features.max() < n_features:
            raise InvalidModel(f"a tree asks for a feature outside the input's {n_features}")
        kinds = np.unique(self.modes[~self.leaf]) if not self.leaf.all() else np.zeros(1, np.int64)
        arrays = {
            "features": self.features.astype(np.int32),
            "splits": self.splits,
            "children": self.children.astype(np.int32),
            "roots": self.roots.astype(np.int32),
            "modes": np.minimum(np.searchsorted(kinds, self.modes), len(kinds) - 1).astype(np.uint8)
            if len(kinds) > 1
            else None,
            "missing": self.missing,
            "members": self.members,
            "sets": self.sets,
        }
        attributes = {"depth": self.depth, "comparisons": tuple(COMPARISONS[k] for k in kinds)}
        return {k: None if a is None else g.constant(a) for k, a in arrays.items()}, attributes

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights by node and entry, [n, E]; nodes with fewer entries than the greatest have target -1."""
        order = np.argsort(self.at, kind="stable")
        at = self.at[order]
        place = np.arange(len(at)) - np.searchsorted(at, at)
        shape = (len(self.modes), int(place.max(initial=0)) + 1)
        targets, weights = np.full(shape, -1, np.int32), np.zeros(shape, self.weights.dtype)
        targets[at, place] = self.targets[order]
        weights[at, place] = self.weights[order]
        return targets, weights

    def scores(self, x: Value, aggregate: str) -> tuple[Value, list[bool | Value]]:
        """Σ (or the average, min or max) of the leaves' weights for each row and target, [N, n_targets] of x's type.

        And for each target whether some leaf had an entry for it: a bool where all rows agree, else bool[N, 1].
        """
        how = {"SUM": "sum", "AVERAGE": "sum", "MIN": "min", "MAX": "max"}.get(aggregate)
        if how is None:
            raise InvalidModel(f"aggregate_function is {aggregate!r}")
        operands, attributes = self.operands(x.shape[1])
        targets, weights = self.entries()
        count, known = self.n_targets, self.certain()
        reached: list[bool | Value]
        if None not in known:
            walk = [operands.pop(name) for name in ("features", "splits", "children", "roots")]
            to = (g.constant(targets), g.constant(weights))
            result = ops.tree_ensemble(x, *walk, *to, *operands.values(), n_targets=count, aggregate=how, **attributes)
            reached = [bool(k) for k in known]
        else:
            leaves = ops.tree_leaves(x, *operands.values(), **attributes)
            result = ops.leaf_scores(leaves, targets, weights, n_targets=count, aggregate=how)
            hits = ops.leaf_scores(leaves, targets, np.ones(weights.shape, np.float32), n_targets=count) > 0
            reached = [column(hits, i) if k is None else k for i, k in enumerate(known)]
        return (result / max(len(self.roots), 1) if aggregate == "AVERAGE" else result), reached


def column(x: Value, i: int) -> Value:
    """x[:, i : i + 1] of a matrix."""
    return ops.slice(x, starts=(0, i), sizes=(x.shape[0], 1), steps=(1, 1))


def by_node_id(
    nodes: dict[str, Sequence[Any]],
    values: np.ndarray,
    entries: dict[str, Sequence[int]],
    weights: np.ndarray,
    n_targets: int,
) -> Forest:
    """Trees as TreeEnsembleRegressor and -Classifier have them: nodes are named by the tree's and their own numbers.

    nodes: treeids, nodeids, featureids, modes, truenodeids, falsenodeids, missing_value_tracks_true; entries: treeids, nodeids,
    ids. A tree's root is its first node.
    """
    if not len({len(nodes[k]) for k in nodes.keys() - {"missing_value_tracks_true"}}) == 1 or not nodes["treeids"]:
        raise InvalidModel("the trees have no nodes, or their arrays differ in length")
    trees, ids = (np.array(nodes[k], np.int64) for k in ("treeids", "nodeids"))
    tree_ids, number = np.unique(trees, return_inverse=True)
    if len(ids) and not 0 <= ids.min() <= ids.max() < 1 << 31:
        raise InvalidModel("a node's number is negative or above 2^31")
    keys = (number << 32) + ids
    order = np.argsort(keys)
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        raise InvalidModel("a tree has two nodes of one number")

    def find(number: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Positions of nodes, by the number of their tree and their own; -1 where there is none."""
        wanted = (number << 32) + ids
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, order[place], -1)

    numbers = {name: i for i, name in enumerate((*MODES, "LEAF"))}
    unknown = set(nodes["modes"]) - numbers.keys()
    if unknown:
        raise InvalidModel(f"unknown node modes {sorted(unknown)}")
    if "BRANCH_MEMBER" in nodes["modes"]:
        raise InvalidModel("BRANCH_MEMBER needs TreeEnsemble, of ai.onnx.ml 5")
    children = np.stack([find(number, np.array(nodes[k], np.int64)) for k in ("falsenodeids", "truenodeids")], 1)
    tracks = np.array(nodes["missing_value_tracks_true"], np.bool_)
    missing = np.zeros(len(trees), np.bool_)
    missing[: len(tracks)] = tracks[: len(trees)]
    of_entry = np.array(entries["treeids"], np.int64)
    entry_tree = np.minimum(np.searchsorted(tree_ids, of_entry), len(tree_ids) - 1)
    if (tree_ids[entry_tree] != of_entry).any():
        raise InvalidModel("a leaf's weight is for a tree that does not exist")
    return Forest(
        modes=np.array([numbers[m] for m in nodes["modes"]], np.int64),
        features=np.array(nodes["featureids"], np.int64),
        splits=values,
        children=children,
        roots=np.sort(np.unique(trees, return_index=True)[1]),
        at=find(entry_tree, np.array(entries["nodeids"], np.int64)),
        targets=np.array(entries["ids"], np.int64),
        weights=weights,
        n_targets=n_targets,
        missing=missing,
    )


def by_position(
    *,
    modes: np.ndarray,
    features: np.ndarray,
    splits: np.ndarray,
    true: tuple[np.ndarray, np.ndarray],
    false: tuple[np.ndarray, np.ndarray],
    roots: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    n_targets: int,
    missing: np.ndarray | None,
    membership: np.ndarray,
) -> Forest:
    """Trees as TreeEnsemble has them: branches are given by position, and leaves apart; true, false: (position, is a leaf)."""
    n, n_leaves = len(modes), len(targets)
    for position, is_leaf in (true, false):
        limit = np.where(is_leaf, n_leaves, n)
        if len(position) != n or (position < 0).any() or (position >= limit).any():
            raise InvalidModel("a tree's node has a child that does not exist")
    if (len(roots) and (roots.min() < 0 or roots.max() >= n)) or (len(modes) and modes.max() >= LEAF):
        raise InvalidModel("a tree's root or a node's mode does not exist")
    of_set = modes == COMPARISONS.index("in")
    members, sets = _sets(membership, int(of_set.sum())) if of_set.any() else (None, None)
    splits = splits.copy()
    splits[of_set] = np.arange(of_set.sum())
    children = np.stack([np.where(is_leaf, position + n, position) for position, is_leaf in (false, true)], 1)
    leaves = np.arange(n, n + n_leaves)
    return Forest(
        modes=np.concatenate([modes, np.full(n_leaves, LEAF)]),
        features=np.concatenate([features, np.zeros(n_leaves, np.int64)]),
        splits=np.concatenate([splits, np.zeros(n_leaves, splits.dtype)]),
        children=np.concatenate([children, np.stack([leaves, leaves], 1)]),
        roots=roots,
        at=leaves,
        targets=targets,
        weights=weights,
        n_targets=n_targets,
        missing=None if missing is None else np.concatenate([missing, np.zeros(n_leaves, np.bool_)]),
        members=members,
        sets=sets,
    )


def _sets(membership: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The union of sets that NaNs part, and which member is in which set."""
    ends = np.isnan(membership)
    number = np.cumsum(ends) - ends
    if (number[~ends].max(initial=-1) + 1 if len(number) else 0) > count or ends.sum() < count - 1:
        raise InvalidModel(f"{count} nodes test membership, membership_values holds another number of sets")
    members, place = np.unique(membership[~ends], return_inverse=True)
    sets = np.zeros((count, len(members)), np.bool_)
    sets[number[~ends], place] = True
    return members, sets
