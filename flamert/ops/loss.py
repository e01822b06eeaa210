"""Losses and optimizer steps that ONNX has as ops."""

from __future__ import annotations
