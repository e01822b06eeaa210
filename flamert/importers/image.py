"""Converters. Ops on images and regions: resize, grid sampling, region pooling, box suppression, decoding."""

from __future__ import annotations
