"""Where buffers lie in an arena: whoever lives at the same time does not overlap, and both ways of searching agree."""

import random

import pytest

from flamert.runtime import memory
from flamert.runtime.memory import Lifetime, place


def lifetimes(seed, count):
    rng = random.Random(seed)
    starts = [rng.randrange(count) for _ in range(count)]
    sizes = [0, 1, 64, 100, 1000]
    return [Lifetime(rng.choice([*sizes, rng.randrange(5000)]), s, s + rng.randrange(count // 4 + 1)) for s in starts]


@pytest.mark.parametrize("count", [0, 1, 7, 60, 200])
def test_neighbours_in_time_do_not_overlap(count):
    for seed in range(5):
        buffers = lifetimes(seed, count)
        offsets, total = place(buffers, 64)
        assert all(at % 64 == 0 and at + b.nbytes <= total for at, b in zip(offsets, buffers, strict=True))
        for i, (a, b) in enumerate(zip(offsets, buffers, strict=True)):
            for other, c in zip(offsets[:i], buffers[:i], strict=True):
                together = b.start <= c.end and c.start <= b.end
                assert not (together and a < other + c.nbytes and other < a + b.nbytes)


@pytest.mark.parametrize("count", [1, 7, 60, 200])
def test_many_buffers_lie_where_few_would(count, monkeypatch):
    found = [place(lifetimes(seed, count), 64) for seed in range(5)]
    monkeypatch.setattr(memory, "MANY", 0)
    assert [place(lifetimes(seed, count), 64) for seed in range(5)] == found


def test_buffers_that_never_meet_share_memory():
    assert place([Lifetime(100, i, i) for i in range(50)], 64) == ([0] * 50, 128)
