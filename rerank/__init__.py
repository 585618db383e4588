"""Composable retrieval and reranking pipelines: declare, run, evaluate, compare."""

from __future__ import annotations

__version__ = "0.1.0"
