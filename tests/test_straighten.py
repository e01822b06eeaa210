"""Chains of views in their shortest form, and rows that may come in any order."""

import itertools

import numpy as np
import pytest

from flamert import ops
from flamert.graph import Graph
from flamert.passes.straighten import straighten
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.test_passes import count, graph_of
from tests.test_product_passes import same_values


def views(x, *steps):
    for step in steps:
        x = ops.transpose(x, perm=step[1]) if step[0] == "t" else ops.reshape(x, shape=step[1])
    return x


def test_what_is_merged_only_to_be_split_again_is_a_view():
    """The heads of torch's MultiheadAttention: [L, B, E] → [L, B·H, D] → [B·H, L, D] → [B, H, L, D]."""

    def build(x):
        return views(x, ("r", (7, 12, 8)), ("t", (1, 0, 2)), ("r", (2, 6, 7, 8)))

    graph, arrays = graph_of(build, (7, 2, 48))
    after = straighten(graph)
    assert [n.op.name for n in after.nodes if n.inputs] == ["reshape", "transpose"]
    same_values(graph, after, arrays)
    plan = Plan(Graph(after.inputs, [ops.exp(after.outputs[0])]), device("cpu"))
    assert [s.node.op.name for s in plan.steps] == ["exp"], "without a copy"


@pytest.mark.parametrize("seed", range(40))
def test_any_chain_stays_what_it_was(seed):
    rng = np.random.default_rng(seed)
    sizes = [int(d) for d in rng.choice([1, 2, 3, 4, 6], 4)]

    def grouped(total):
        """A random shape of so many elements."""
        shape = []
        while total > 1:
            options = [d for d in (1, 2, 3, 4, 6, total) if total % d == 0]
            shape.append(int(rng.choice(options)))
            total //= shape[-1]
        return tuple(shape) or (1,)

    def build(x):
        for _ in range(5):
            if rng.random() < 0.5:
                x = ops.transpose(x, perm=tuple(int(p) for p in rng.permutation(x.rank)))
            else:
                x = ops.reshape(x, shape=grouped(x.type.size))
        return x

    graph, arrays = graph_of(build, tuple(sizes))
    after = straighten(graph)
    assert len(after.nodes) <= len(graph.nodes) + 1
    same_values(graph, after, arrays)


def test_views_that_undo_each_other_vanish():
    graph, _ = graph_of(lambda x: views(x, ("r", (2, 3, 4)), ("t", (2, 0, 1)), ("t", (1, 2, 0)), ("r", (6, 4))), (6, 4))
    assert straighten(graph).outputs[0] is graph.inputs[0]


@pytest.mark.parametrize("perm", list(itertools.permutations(range(2))))
def test_rows_are_permuted_behind_products(perm):
    w, b = np.ones((8, 5), np.float32), np.arange(5, dtype=np.float32)

    def build(x):
        seen = views(x, ("t", (*perm, 2)), ("r", (6, 8)))
        return ops.gelu(ops.add(b, ops.matmul(seen, w))) * 2.0

    graph, arrays = graph_of(build, (2, 3, 8))
    after = straighten(graph)
    [product] = [n for n in after.nodes if n.op is ops.matmul]
    assert perm == (0, 1) or product.inputs[0] is graph.inputs[0]
    same_values(graph, after, arrays)


def test_there_and_back_around_layers_cancels():
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)

    def build(x):
        y = ops.reshape(ops.matmul(views(x, ("t", (1, 0, 2)), ("r", (6, 8))), w), shape=(3, 2, 8))
        return x + ops.transpose(ops.relu(y), perm=(1, 0, 2))

    graph, arrays = graph_of(build, (2, 3, 8))
    after = straighten(graph)
    assert not {"transpose", "reshape"} & set(count(after))
    same_values(graph, after, arrays)


def test_columns_that_move_stay_where_they_are():
    w = np.ones((6, 5), np.float32)
    graph, arrays = graph_of(lambda x: ops.matmul(ops.transpose(x, perm=(1, 0)), w), (6, 8))
    assert straighten(graph) is graph or count(straighten(graph)) == count(graph)
    same_values(graph, straighten(graph), arrays)


def test_what_is_joined_and_turned_is_turned_and_joined():
    def build(x, y):
        parts = [ops.reshape(ops.transpose(v, perm=(1, 0, 2)), shape=(1, 3, 2, 4)) for v in (x, y)]
        return ops.exp(ops.reshape(ops.transpose(ops.concat(*parts, axis=0), perm=(2, 1, 0, 3)), shape=(2, 3, 8)))

    graph, arrays = graph_of(build, (2, 3, 4), (2, 3, 4))
    after = straighten(graph)
    assert "transpose" not in count(after) and count(after)["concat"] == 1
    same_values(graph, after, arrays)
