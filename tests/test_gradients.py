"""Every gradient against central differences in float64, of first and second order; every op declared one way or another.

FLAMERT_DEVICE says where plans make them, the CPU if nothing does.
"""

import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.grad import grad
from flamert.grad.registry import NONE, RULES
from flamert.graph import TensorType
from flamert.ops import OPS
from flamert.testing import check_gradient
from tests.cases import CASES
from tests.placed import DEVICE

ROWS = [pytest.param(c, id=f"{c}-{i}") for i, c in enumerate(CASES) if c.gradient and c.op not in NONE]


@pytest.mark.parametrize("case", ROWS)
def test_first_order(case):
    check_gradient(case, device=DEVICE)


@pytest.mark.parametrize("case", ROWS)
def test_second_order(case):
    check_gradient(case, order=2, device=DEVICE)


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_every_op_is_declared(op):
    assert op.name in RULES or op.name in NONE or op.body, f"{op} has no gradient rule and is not declared to have none"


def test_unread_paths_are_none_and_broadcasts_are_summed():
    x, b, other = (g.input(TensorType(s, dtypes.float64)) for s in ((3, 4), (4,), (2,)))
    dx, db, nothing = grad(x * b, [x, b, other])
    assert (dx.shape, db.shape, nothing) == ((3, 4), (4,), None)
