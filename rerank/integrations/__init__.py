"""Pipelines inside other frameworks: one module a framework, imported only by whoever uses it; each is an extra."""
