"""Mutated bodies: whatever is sent, the answer is a documented status in JSON, and never 500."""

from __future__ import annotations

import asyncio
import copy
import json
from random import Random
from typing import Any

import pytest
from serve.stand_in import StandIn, model_folder, serving

from rerank.serve.openapi import document
from rerank.serve.settings import ServedModel

pytestmark = pytest.mark.needs("starlette", "prometheus_client", "httpx2")

BODIES: dict[str, Any] = {
    "/v1/rerank": {
        "query": "q", "documents": ["a", {"text": "b"}, {"content": [{"type": "text", "text": "c"}]}], "top_n": 2,
        "return_documents": True, "rank_fields": ["text"], "max_tokens_per_doc": 5, "truncation_side": "left",
        "explain": True,
    },
    "/v2/rerank": {"query": "q", "documents": ["a", "b"], "top_n": 1, "model": "m"},
    "/rerank": {"query": "q", "texts": ["a", "b"], "truncate": True, "truncation_direction": "Left", "top_n": 1},
    "/score": {"text_1": ["a"], "text_2": ["b", "c"], "truncate_prompt_tokens": 9},
    "/predict": {"inputs": [["a", "b"], ["c"]], "raw_scores": False},
    "/tokenize": {"inputs": ["a"], "add_special_tokens": True},
    "/search": {"query": "q", "k": 3},
    "/embed": {"inputs": ["a"], "normalize": True, "dimensions": 2},
    "/v1/embeddings": {"input": "a", "encoding_format": "base64"},
    "/invocations": {"inputs": "a"},
}  # fmt: skip
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**400, "", " ", "\ud800", "\x00", "true", [], {}, [[]], [None], [{}],
    {"text": None}, {"text": "x"}, "x" * 3000, ["x"] * 30, {"type": "text"},
]  # fmt: skip


def mutated(value: Any, random: Random) -> Any:
    """A copy of a body that differs in a place or two."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        node: Any = value
        while isinstance(node, dict | list) and node:
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if random.random() < 0.5 or not isinstance(node[key], dict | list):
                if random.random() < 0.2:
                    del node[key]
                else:
                    node[key] = copy.deepcopy(random.choice(ODD))
                break
            node = node[key]
    return value


def content_of(body: Any, random: Random) -> bytes:
    """The body, now and then with broken bytes."""
    content = json.dumps(body).encode()
    if random.random() < 0.1:
        place = random.randrange(len(content))
        content = content[:place] + random.randbytes(2) + content[place + random.randint(0, 3) :]
    return content


def check(folder: Any, n: int, seed: int) -> None:
    described = document()["paths"]

    async def main() -> None:
        random = Random(seed)
        # Asked for words, the stand-in counts the number of an odd text as its score.
        worker = StandIn(score=lambda text: 0.5)
        async with serving(ServedModel(model_folder(folder / "ce")), worker=worker, max_documents=20) as server:
            for _ in range(n):
                path = random.choice(list(BODIES))
                content = content_of(mutated(BODIES[path], random), random)
                reply = await server.client.post(path, content=content, headers={"content-type": "application/json"})
                assert reply.status_code != 500, (path, content, reply.text)
                assert str(reply.status_code) in described[path]["post"]["responses"], (path, content)
                assert reply.json() is not None
                assert b"NaN" not in reply.content

    asyncio.run(main())


def test_mutated_bodies_get_documented_answers(tmp_path):
    check(tmp_path, 600, seed=0)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies_get_documented_answers(tmp_path):
    check(tmp_path, 10_000, seed=1)
