"""Model files that lie, escape, explode or contradict themselves, and a few odd ones that are legal.

Each builder writes its files into a folder and returns the path to load.
"""

from tests.hostile import bombs, external, files, graphs, nesting, tensors, types
from tests.hostile.bricks import HOSTILE, LEGAL

__all__ = ["HOSTILE", "LEGAL", "bombs", "external", "files", "graphs", "nesting", "tensors", "types"]
