"""Every op against its oracle, in every element type of its row; and every op has a row, a docstring and a kernel."""

import pytest

from flamert.ops import OPS
from flamert.ops.op import reference
from flamert.testing import check_op
from tests.cases import CASES

ROWS = [pytest.param(case, dtype, id=f"{case}-{dtype.name}-{i}") for i, case in enumerate(CASES) for dtype in case.dtypes]


@pytest.mark.parametrize(("case", "dtype"), ROWS)
def test_values(case, dtype):
    check_op(case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), ROWS)
def test_values_on_gpu(case, dtype):
    check_op(case, dtype, device="cuda")


def test_every_op_has_a_row():
    missing = OPS.keys() - {case.op for case in CASES}
    assert not missing, f"ops without a row in tests/cases: {sorted(missing)}"


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_every_op_is_documented_and_computable(op):
    assert op.__doc__, f"{op} has no docstring"
    assert reference(op) or op.body or op.view, f"{op} has no reference kernel"
