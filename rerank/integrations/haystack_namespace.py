"""Haystack's ranker under the name that Haystack trusts.

The build copies this file to `haystack_integrations/components/rankers/rerank/__init__.py` (see pyproject.toml).
"""

from __future__ import annotations

from rerank.integrations.haystack import RerankRanker

__all__ = ["RerankRanker"]
