"""Converters. Sequences, optionals and control flow."""

from __future__ import annotations
