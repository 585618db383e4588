"""The interfaces that clients speak: each reads bodies to jobs, and writes results as its clients want them."""

from __future__ import annotations
