"""Tests marked `gpu` are skipped where CuPy finds no device."""

import pytest

from flamert.passes import stored

stored.KEEPS = False  # what passes make of a graph is asked of the passes, not of the disk


def pytest_collection_modifyitems(items):
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_gpu():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


def _has_gpu():
    try:
        import cupy

        return cupy.cuda.is_available()
    except ImportError:
        return False
