"""Pooling over windows and over whole images, and its inverse."""

from __future__ import annotations
