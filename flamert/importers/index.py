"""Converters. Ops that pick and place elements by index: gather, scatter, one-hot, non-zero, unique, compress."""

from __future__ import annotations
