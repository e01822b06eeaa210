"""Scaled dot-product attention and its kin: rotary embedding, linear attention, causal convolution with state."""

from __future__ import annotations
