"""Normalizations: batch, layer, group, instance, RMS, local response, Lp; and softmax with its logarithm."""

from __future__ import annotations
