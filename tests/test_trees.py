"""Tree ensembles: random ones, in both of ONNX's encodings, give what onnxruntime gives; broken ones are refused."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from flamert.errors import InvalidModel
from tests.test_ml import FLOAT, INT64, ML, STRING, TRANSFORMS, agree, floats
from tests.test_text import run

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


class Trees:
    """Random trees over F features, and the attributes that describe their nodes in both of ONNX's ways."""

    def __init__(self, rng, count, n_features, modes, missing, members=False):
        self.rng, self.n_features, self.members = rng, n_features, members
        self.modes = [*modes, "BRANCH_MEMBER"] if members else modes
        # onnxruntime knows membership among integers only.
        self.grid = np.round(rng.normal(size=7), 1).astype(np.float32) if not members else np.arange(7, dtype=np.float32)
        self.rows = []
        self.roots = []
        for tree in range(count):
            self.roots.append(len(self.rows))
            self._grow(tree, len(self.rows), int(rng.integers(1 if members else 0, 5)), members)
        self.missing = missing

    def _grow(self, tree, root, depth, inner=False):
        at = len(self.rows)
        self.rows.append(row := {"treeids": tree, "nodeids": at - root, "featureids": 0, "values": 0.0, "modes": "LEAF"})
        row.update(truenodeids=0, falsenodeids=0, tracks=0, true=0, false=0)
        if depth and (inner or self.rng.random() > 0.15):
            row.update(featureids=int(self.rng.integers(self.n_features)), values=float(self.rng.choice(self.grid)))
            row.update(modes=str(self.rng.choice(self.modes)), tracks=int(self.rng.random() < 0.3))
            row["true"], row["false"] = (self._grow(tree, root, depth - 1) for _ in range(2))
            row.update(truenodeids=row["true"] - root, falsenodeids=row["false"] - root)
        return at

    def leaves(self):
        return [row for row in self.rows if row["modes"] == "LEAF"]

    def data(self, n, dtype):
        """Rows that often hit thresholds exactly, with gaps where missing values are tracked."""
        shape = (n, self.n_features)
        x = np.where(self.rng.random(shape) < 0.4, self.rng.choice(self.grid, shape), self.rng.normal(size=shape)).astype(dtype)
        x = np.round(x) if self.members else x
        if self.missing and dtype != np.int64:
            x[self.rng.random(shape) < 0.1] = np.nan
        return x

    def by_node_id(self):
        names = ("nodeids", "treeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
        attributes = {f"nodes_{name}": [row[name] for row in self.rows] for name in names}
        if self.missing:
            attributes["nodes_missing_value_tracks_true"] = [row["tracks"] for row in self.rows]
        return attributes

    def by_position(self, dtype):
        inner = [i for i, row in enumerate(self.rows) if row["modes"] != "LEAF"]
        leaf = [i for i, row in enumerate(self.rows) if row["modes"] == "LEAF"]
        place = {at: i for nodes in (inner, leaf) for i, at in enumerate(nodes)}
        rows = [self.rows[i] for i in inner]
        numbers = {name: i for i, name in enumerate((*MODES, "BRANCH_MEMBER"))}
        attributes = {"tree_roots": [place[i] for i in self.roots], "nodes_featureids": [r["featureids"] for r in rows]}
        for way in ("true", "false"):
            attributes[f"nodes_{way}nodeids"] = [place[r[way]] for r in rows]
            attributes[f"nodes_{way}leafs"] = [int(self.rows[r[way]]["modes"] == "LEAF") for r in rows]
        attributes["nodes_modes"] = numpy_helper.from_array(np.array([numbers[r["modes"]] for r in rows], np.uint8))
        attributes["nodes_splits"] = numpy_helper.from_array(np.array([r["values"] for r in rows], dtype))
        if self.missing:
            attributes["nodes_missing_value_tracks_true"] = [r["tracks"] for r in rows]
        sets = [
            [*self.rng.choice(self.grid, self.rng.integers(1, 4), False), np.nan] for r in rows if r["modes"] == "BRANCH_MEMBER"
        ]
        if sets:
            attributes["membership_values"] = numpy_helper.from_array(np.concatenate(sets).astype(dtype))
        return attributes


def random_trees(rng, **how):
    modes = MODES if rng.random() < 0.5 else [str(rng.choice(MODES))]
    return Trees(rng, int(rng.integers(1, 9)), int(rng.integers(1, 6)), modes, bool(rng.random() < 0.5), **how)


def entries(rng, trees, targets, prefix, id_name, non_negative=False):
    """Weights for all of these targets at each leaf, or for one at random."""
    everywhere = rng.random() < 0.5
    rows = [(r, k) for r in trees.leaves() for k in (targets if everywhere else [int(rng.choice(targets))])]
    weights = floats(rng, len(rows))
    return {
        f"{prefix}_treeids": [r["treeids"] for r, _ in rows],
        f"{prefix}_nodeids": [r["nodeids"] for r, _ in rows],
        id_name: [k for _, k in rows],
        f"{prefix}_weights": [abs(w) for w in weights] if non_negative else weights,
    }


@pytest.mark.parametrize("seed", range(40))
def test_tree_regressors(seed):
    rng = np.random.default_rng(seed)
    trees = random_trees(rng)
    n_targets = int(rng.integers(1, 5))
    agree(
        "TreeEnsembleRegressor",
        trees.data(int(rng.choice([1, 2, 40])), rng.choice([np.float32, np.float64])),
        [FLOAT],
        version=3,
        n_targets=n_targets,
        aggregate_function=("SUM", "AVERAGE", "MIN", "MAX")[seed % 4],
        post_transform=str(rng.choice(TRANSFORMS)),
        base_values=floats(rng, n_targets) if rng.random() < 0.5 else [],
        **trees.by_node_id(),
        **entries(rng, trees, range(n_targets), "target", "target_ids"),
    )


@pytest.mark.parametrize("seed", range(100))
def test_tree_classifiers(seed):
    rng = np.random.default_rng(seed)
    trees = random_trees(rng)
    n_classes = (1, 2, 2, 2, 3, 5)[seed % 6]
    lone = n_classes == 2 and rng.random() < 0.5
    n_base = 0 if rng.random() < 0.5 else n_classes if n_classes != 2 else int(rng.integers(1, 3))
    transform = str(rng.choice(TRANSFORMS))
    undefined = ()
    if n_classes == 2 and n_base == 1 and not lone:
        undefined = (0, 1)
    elif n_classes == 2 and n_base < 2 and transform == "PROBIT":
        undefined = (1,)
    named = n_classes > 1 and rng.random() < 0.3
    labels = [f"c{i}" for i in range(n_classes)] if named else [3 * i + 2 for i in range(n_classes)]
    agree(
        "TreeEnsembleClassifier",
        trees.data(int(rng.choice([1, 2, 40])), rng.choice([np.float32, np.float64, np.int64])),
        [STRING if named else INT64, FLOAT],
        version=3,
        undefined=undefined,
        atol=3e-4 if transform == "PROBIT" else 1e-5,  # near a probability of ½ its formula loses digits
        post_transform=transform,
        base_values=floats(rng, n_base),
        **{"classlabels_strings" if named else "classlabels_int64s": labels},
        **trees.by_node_id(),
        **entries(rng, trees, [seed // 6 % 2] if lone else range(n_classes), "class", "class_ids", rng.random() < 0.5),
    )


@pytest.mark.parametrize("seed", range(40))
def test_tree_ensembles(seed):
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float32, np.float64])
    trees = random_trees(rng, members=True)
    n_targets = int(rng.integers(1, 4))
    leaves = len(trees.leaves())
    transform = int(rng.integers(5))
    agree(
        "TreeEnsemble",
        trees.data(int(rng.choice([1, 2, 40])), dtype),
        [helper.np_dtype_to_tensor_dtype(np.dtype(dtype))],
        version=5,
        n_targets=n_targets,
        aggregate_function=seed % 4,
        post_transform=transform,
        theirs={"post_transform": {1: 2, 2: 1}.get(transform, transform)},  # it takes SOFTMAX and LOGISTIC for each other
        leaf_targetids=[int(i) for i in rng.integers(n_targets, size=leaves)],
        leaf_weights=numpy_helper.from_array(rng.normal(size=leaves).astype(dtype)),
        **trees.by_position(dtype),
    )


STUMP = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_values": [0.5, 0.0, 0.0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
    "target_treeids": [0, 0],
    "target_nodeids": [1, 2],
    "target_ids": [0, 0],
    "target_weights": [1.0, 2.0],
    "n_targets": 1,
}


@pytest.mark.parametrize("version", [1, 3])
def test_a_stump(version):
    x = np.array([[0], [1]], np.float32)
    got = run("TreeEnsembleRegressor", [x], domain=ML, domain_opset=version, **STUMP)
    assert got.tolist() == [[1], [2]] and got.dtype == np.float32
    assert run("TreeEnsembleRegressor", [x.astype(np.int32)], domain=ML, **STUMP).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    "broken",
    [
        {"nodes_truenodeids": [0, 0, 0]},
        {"nodes_truenodeids": [7, 0, 0]},
        {"nodes_featureids": [3, 0, 0]},
        {"nodes_featureids": [-1, 0, 0]},
        {"nodes_nodeids": [0, 1, 1]},
        {"nodes_modes": ["LESS", "LEAF", "LEAF"]},
        {"nodes_modes": ["BRANCH_LEQ", "LEAF"]},
        {"nodes_values": [0.5]},
        {"target_nodeids": [1, 9]},
        {"target_treeids": [0, 9]},
        {"target_ids": [0, 1]},
        {"aggregate_function": "MEDIAN"},
        {"post_transform": "TWICE", "n_targets": 2},
        {"base_values": [1.0, 2.0]},
    ],
)
def test_broken_trees_are_refused(broken):
    with pytest.raises(InvalidModel):
        run("TreeEnsembleRegressor", [np.zeros((2, 1), np.float32)], domain=ML, **{**STUMP, **broken})
