"""Converters. Random numbers: uniform, normal, Bernoulli, multinomial, dropout."""

from __future__ import annotations
