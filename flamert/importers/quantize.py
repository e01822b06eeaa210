"""Converters. Quantization: to and from integers and narrow floats, and arithmetic on quantized tensors."""

from __future__ import annotations
