"""Engines: batches of texts to vectors, on the processor or an accelerator."""

from __future__ import annotations
