"""Rules: how answers about groups of documents become an order; they know no text and no model."""

from __future__ import annotations
