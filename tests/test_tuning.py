"""What was found out by measuring is kept, whoever else writes and whoever is killed over it; what is measured is the GPU."""

import itertools
import sys
from types import SimpleNamespace

import pytest

from flamert.ops.cuda import tuning
from flamert.ops.cuda.tuning import Choices, fastest
from tests.test_emit import compile_source, nvrtc


def test_a_choice_is_made_once_and_kept(tmp_path):
    path = tmp_path / "deep" / "choices.jsonl"
    one, other = Choices(path), Choices(path)
    assert one.find("a", lambda: "1") == one.find("a", lambda: "2") == "1"
    other.find("b", lambda: "3")
    assert Choices(path).made == {"a": "1", "b": "3"}


def test_broken_lines_cost_themselves_alone(tmp_path):
    path = tmp_path / "choices.jsonl"
    Choices(path).find("a", lambda: "1")
    with open(path, "ab") as file:
        file.write(b'{"not": "a pair"}\n\xff\xfe\n["cut", "of')
    assert Choices(path).made == {"a": "1"}
    Choices(path).find("b", lambda: "2")
    assert Choices(path).made == {"a": "1", "b": "2"}


def test_a_place_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "choices.jsonl")
    assert choices.find("a", lambda: "1") == choices.find("a", lambda: "2") == "1"


class Clock:
    """A host that hands launches to a GPU, both with times of their own in milliseconds."""

    def __init__(self):
        self.host = self.gpu = 0.0
        self.cuda = SimpleNamespace(Event=self.event, get_elapsed_time=lambda start, end: end.at - start.at)

    def launch(self, host, gpu):
        self.host += host
        self.gpu = max(self.gpu, self.host) + gpu

    def event(self):
        made = SimpleNamespace(at=None, synchronize=lambda: setattr(self, "host", max(self.host, self.gpu)))
        made.record = lambda: setattr(made, "at", max(self.host, self.gpu))
        return made


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setitem(sys.modules, "cupy", clock)
    wait = lambda grid, block, arguments: clock.launch(0.005, arguments[0] / 2e6)  # noqa: E731
    monkeypatch.setattr(tuning, "compiled", lambda source, name: wait)
    return clock


def test_what_the_host_does_is_not_measured(clock):
    tried = [lambda: clock.launch(0.012, 0.0061), lambda: clock.launch(0.02, 0.006), lambda: clock.launch(0.01, 0.007)]
    assert fastest(tried) == 1


def test_turns_that_others_share_the_gpu_in_do_not_count(clock):
    turns = itertools.count()

    def shared():
        clock.launch(0.01, 1.5 if next(turns) in range(3, 9) else 0.5)  # three of five turns

    assert fastest([shared, lambda: clock.launch(0.01, 0.55)]) == 0


def test_what_raises_is_not_chosen(clock):
    def broken():
        raise ValueError("no such engine")

    assert fastest([broken, lambda: clock.launch(0.01, 0.1)]) == 1
    with pytest.raises(ValueError, match="engine"):
        fastest([broken])


def test_the_kernel_that_waits_compiles():
    compile_source(*nvrtc(), tuning.WAIT)
