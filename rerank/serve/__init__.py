"""The HTTP server: a front process that speaks to clients, a worker process that computes."""

from __future__ import annotations
