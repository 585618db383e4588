"""A collection to synthesize from, small enough for a test, and writers whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tiny_models import WORDS

from rerank.data.corpus import MemoryCorpus
from rerank.engines.engine import Asker, Engine, Writer
from rerank.engines.meter import Meter, by_characters
from rerank.runtime import Runtime

TOPICS = [word for word in WORDS if len(word) > 3 and not word.startswith("#")]


def some_documents(n: int = 60, seed: int = 5) -> dict[str, str]:
    """Texts of 8 to 24 words, each with two topics of its own."""
    random = np.random.default_rng(seed)
    texts = {}
    for i in range(n):
        words = random.choice(TOPICS, size=int(random.integers(6, 22))).tolist()
        texts[f"d{i:03d}"] = f"{TOPICS[i % len(TOPICS)]} number {i}. {' '.join(words)}."
    return texts


def corpus_of(texts: dict[str, str], order: Sequence[int] | None = None) -> MemoryCorpus:
    """The texts as a corpus, in another order of the file where one is given."""
    names = list(texts)
    return MemoryCorpus({name: texts[name] for name in (names if order is None else [names[i] for i in order])})


@dataclass(frozen=True, repr=False)
class ScriptedEngine(Engine):
    """Writes what a function says of a document and the number of the text."""

    says: Callable[[str, int], str] = field(hash=False)
    asked: list[list[str]] = field(default_factory=list, hash=False)
    """The documents of each call."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        raise NotImplementedError

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        return by_characters(prompt, generated=10)

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        return _Scripted(self, n_texts)


class _Scripted:
    def __init__(self, engine: ScriptedEngine, n_texts: int) -> None:
        self._engine, self._n_texts = engine, n_texts

    def write(self, queries: Sequence[str], runtime: Runtime) -> list[tuple[str, ...]]:
        self._engine.asked.append(list(queries))
        return [tuple(self._engine.says(text, i) for i in range(self._n_texts)) for text in queries]
