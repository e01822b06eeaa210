"""Convolutions: plain, transposed, deformable, in any number of dimensions."""

from __future__ import annotations
