"""Converters. Strings: concatenation, splitting, normalization, regular expressions, n-gram counts, label encoding."""

from __future__ import annotations
