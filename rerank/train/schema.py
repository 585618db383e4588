"""The JSON schema of recipe files: what an editor needs to complete and check one."""

from __future__ import annotations

from typing import Any

from rerank.adapters.method import AdapterMethod
from rerank.config import part_schemas
from rerank.registry import names_of
from rerank.train.losses import Loss
from rerank.train.recipe import Recipe
from rerank.train.rewards import Reward


def recipe_schema() -> dict[str, Any]:
    """The schema.

    >>> sorted(recipe_schema()["properties"])[:3]
    ['contrastive', 'description', 'distill']
    """
    kinds = sorted(names_of(Recipe))
    definitions = part_schemas(Recipe, AdapterMethod, Loss, Reward)
    for kind in kinds:
        groups = definitions[kind]["properties"]["groups"]
        source = {"anyOf": [groups["items"], {"type": "string", "description": "a folder of labelled lists"}]}
        definitions[kind]["properties"]["groups"] = {"anyOf": [{**groups, "items": source}, *source["anyOf"]]}
        definitions[kind]["required"] = sorted({*definitions[kind]["required"], "groups"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rerank recipe",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "description": {"type": "string"},
            **{kind: {"$ref": f"#/$defs/{kind}"} for kind in kinds},
        },
        "oneOf": [{"required": [kind]} for kind in kinds],
        "additionalProperties": False,
        "$defs": definitions,
    }
