"""Converters. Signal processing: Fourier transforms, windows, mel filter banks."""

from __future__ import annotations
