"""Converters. Changes of element type: cast, bit cast, with ONNX's rounding and saturation."""

from __future__ import annotations
