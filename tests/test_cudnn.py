"""Graphs that cuDNN has built are kept for other processes, and built again where they cannot be read. cuDNN is played here."""

from types import SimpleNamespace

import pytest

from flamert.ops.cuda import cudnn
from flamert.ops.cuda.cudnn import Built, ready


class Graph:
    """What is kept of a graph is its name."""

    def __init__(self, name="", handle=None):
        self.name, self.handle = name, handle

    def serialize(self):
        if not self.name:
            raise RuntimeError("this engine has no form on disk")
        return list(self.name.encode())

    def deserialize(self, handle, contents):
        assert handle == self.handle == "handle 1"
        if contents.startswith(b"old"):
            raise RuntimeError("from another version")
        self.name = contents.decode()


@pytest.fixture(autouse=True)
def library(monkeypatch, tmp_path):
    monkeypatch.setenv("FLAMERT_CACHE", str(tmp_path))
    played = SimpleNamespace(pygraph=Graph, __version__="1", backend_version=lambda: 91000)
    monkeypatch.setattr(cudnn, "_cudnn", lambda: played)
    monkeypatch.setattr(cudnn, "_handle", lambda device: f"handle {device}")
    monkeypatch.setattr(cudnn, "version", lambda: played.backend_version())
    monkeypatch.setattr(cudnn, "machine", lambda device: "H200-13000")
    return played


def found(name, key="key"):
    """(the graph, whether it was built)."""
    count = []
    built = ready(1, key, lambda: count.append(1) or Built(Graph(name), (3, 1, 7)))
    assert built.numbers == (3, 1, 7)
    return built.graph.name, bool(count)


def test_a_graph_is_built_once():
    assert found("a") == ("a", True)
    assert found("b") == ("a", False)
    assert found("b", "another") == ("b", True)


def test_what_another_version_left_does_not_count(library):
    assert found("a")[1]
    library.backend_version = lambda: 92000
    assert found("b") == ("b", True)
    library.__version__ = "2"
    assert found("c") == ("c", True)


def test_what_cannot_be_read_is_built_and_written_over(monkeypatch):
    assert found("old") == ("old", True)
    assert found("new") == ("new", True)
    assert found("newer") == ("new", False)


def test_what_has_no_form_on_disk_is_built_each_time():
    assert found("") == ("", True)
    assert found("") == ("", True)
