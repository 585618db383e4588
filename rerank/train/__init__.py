"""Training: groups of documents to learn from, losses and rewards, and the recipes that make rerankers of them."""

from __future__ import annotations
