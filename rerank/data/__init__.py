"""Collections: queries, corpora, judgments, candidates, runs, in memory and on disk."""

from __future__ import annotations
