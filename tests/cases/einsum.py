"""Rows for ops/einsum.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

EQUATIONS = [
    ("ij->ji", (2, 3)),
    ("ij->", (2, 3)),
    ("ij->j", (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("...ii->...i", (2, 3, 3)),
    ("iij->ij", (2, 2, 3)),
    ("iji->j", (3, 2, 3)),
    ("iii->i", (3, 3, 3)),
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ba,cb", (2, 3), (4, 2)),
    ("i,i", (3,), (3,)),
    ("i,j->ij", (2,), (3,)),
    ("ij,ij->ij", (2, 3), (2, 3)),
    ("ij,ji->", (2, 3), (3, 2)),
    ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 6, 5)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (4, 3, 2)),
    ("...ij,jk->i...k", (5, 2, 3), (3, 4)),
    ("i...,...", (2, 3), (3,)),
    ("...,...->...", (2, 1), (1, 3)),
    ("ij, kl -> il", (2, 3), (4, 5)),
    ("i,->i", (3,), ()),
    ("ii,ij->j", (3, 3), (3, 2)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("ij,ij,ij->j", (2, 3), (2, 3), (2, 3)),
    ("bn,anm,bm->ba", (2, 5), (3, 5, 4), (2, 4)),
    ("a,b,c,d->dcba", (2,), (3,), (4,), (2,)),
    ("abc,cd,def,ef->abf", (2, 3, 4), (4, 3), (3, 2, 4), (2, 4)),
    ("ij,jk->ik", (2, 0), (0, 3)),
    ("ij,jk->ik", (0, 2), (2, 3)),
    ("ij->ij", (0, 2)),
]

CASES = [
    *[
        Case(
            "einsum",
            [f32(*s) for s in shapes],
            {"equation": text},
            lambda *xs, equation: np.einsum(equation, *xs),
            FLOATS[:2],
            name=f"{text}-{len(shapes)}",
        )
        for text, *shapes in EQUATIONS
    ],
    Case("einsum", [f32(4, 64), f32(64, 3)], {"equation": "ij,jk->ik"}, lambda a, b, equation: a @ b, FLOATS),
    Case("einsum", [np.eye(3, dtype=np.int32) * 5], {"equation": "ii->i"}, np.full(3, 5), name="int"),
    Case(
        "einsum",
        [np.array([[1, np.inf], [np.inf, 2]], np.float32)],
        {"equation": "ii"},
        np.float32(3),
        gradient=False,
        name="inf",
    ),
]
