"""Training data made from nothing but documents."""

from __future__ import annotations
