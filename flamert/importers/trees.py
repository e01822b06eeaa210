"""Converters. Classical machine learning (ai.onnx.ml): tree ensembles, linear and support-vector models, encoders, scalers."""

from __future__ import annotations
