"""Stages that find documents, combine and change lists, and rewrite queries."""

from __future__ import annotations
