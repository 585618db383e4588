"""Measuring runs: measures, significance, comparison, experiments, report."""

from __future__ import annotations
