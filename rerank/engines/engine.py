"""What every engine is: configuration that, loaded, answers which documents of a group are better.

An `Engine` is configuration; `asker` loads what it names and binds the prompt, and the `Asker` answers whole batches,
of any queries and lists together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from rerank.engines.meter import Meter, by_characters
from rerank.engines.passages import Passages, Span
from rerank.errors import ConfigError
from rerank.ranking import ScoreKind
from rerank.registry import Part
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.language_model import Sampling
    from rerank.prompts.prompt import Prompt


class Asked(NamedTuple):
    """One question: which of these documents are better for this query?"""

    qid: str
    query: str
    docnos: tuple[str, ...]
    documents: tuple[str, ...]
    """Their texts, in the order shown."""


class Asker(Protocol):
    """A loaded engine, ready for questions."""

    kind: ScoreKind
    """What the scores of an answer mean."""
    most_documents: int | None
    """How many documents a question may show; None: any number."""

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        """One answer a question, in their order."""
        ...

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        """Where the passages of each text lie."""
        ...


@runtime_checkable
class ConcurrentAsker(Asker, Protocol):
    """An asker that waits for others, such as servers: several calls of `ask_async` may be under way."""

    in_flight: int
    """How many calls of `ask_async` are worth having under way."""
    at_once: int
    """How many questions such a call takes at most."""

    async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        """One answer a question, in their order."""
        ...


@runtime_checkable
class SharingAsker(Asker, Protocol):
    """An asker whose batches may hold the questions of other askers of its model."""

    lane: Hashable
    """Equal for askers whose requests go into the same batches."""

    def requests(self, questions: Sequence[Asked], runtime: Runtime) -> list[Any]:
        """What the model is asked."""
        ...

    def raw(self, requests: Sequence[Any], runtime: Runtime) -> Sequence[Any]:
        """What the model says to each of them, and of other askers of its lane."""
        ...

    def answers(self, raw: Sequence[Any], questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        """The answers to questions, from what the model said."""
        ...


def ask_together(parts: Sequence[tuple[Asker, Sequence[Asked]]], runtime: Runtime) -> list[list[Answer]]:
    """The answers to each asker's questions; those of one lane are asked in the same batches."""
    answers: dict[int, list[Answer]] = {}
    lanes: defaultdict[Hashable, list[tuple[int, SharingAsker]]] = defaultdict(list)
    for number, (asker, questions) in enumerate(parts):
        if isinstance(asker, SharingAsker):
            lanes[asker.lane].append((number, asker))
        else:
            answers[number] = asker.ask(questions, runtime)
    for members in lanes.values():
        requests = [asker.requests(parts[number][1], runtime) for number, asker in members]
        raw = iter(members[0][1].raw([request for some in requests for request in some], runtime))
        for (number, asker), some in zip(members, requests, strict=True):
            answers[number] = asker.answers(list(islice(raw, len(some))), parts[number][1], runtime)
    return [answers[number] for number in range(len(parts))]


class Writer(Protocol):
    """A loaded engine that writes about queries."""

    def write(self, queries: Sequence[str], runtime: Runtime) -> list[tuple[str, ...]]:
        """For each query the texts written about it; empty ones where nothing usable came."""
        ...


class Engine(Part, ABC):
    """Base of all engines; a subclass is a frozen dataclass with `asker`."""

    @abstractmethod
    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """What answers, with the prompt of that name or path where it takes one.

        Raises:
            ConfigError: a prompt is needed and none is given, or the other way round.
            ModelError: the model cannot be loaded.
        """

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """How the engine would be asked, counted without its weights.

        Raises:
            ConfigError: as by `asker`.
        """
        return by_characters(prompt)

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        """What writes `n_texts` texts about each query, by a prompt that shows no document.

        Raises:
            ConfigError: the engine does not write, or the prompt shows documents.
            ModelError: the model cannot be loaded.
        """
        raise ConfigError(f"{self.label}: writes no texts; take an engine with a language model, such as causal_lm")


def writing_prompt(engine: Engine, name: str, sampling: Sampling, n_texts: int) -> Prompt:
    """The prompt of that name or path, when texts about queries can be written by it.

    Raises:
        ConfigError: it shows documents, or several texts would all be the same.
    """
    from rerank.prompts.prompt import load_prompt

    prompt = load_prompt(name)
    if prompt.shows_documents:
        raise ConfigError(f"the prompt {name!r} shows documents and scores them; about queries write hyde, reason, ...")
    if sampling.samples > 1:
        raise ConfigError(f"{engine.label}: sampling.samples averages scores; for several texts a query give n_texts")
    if n_texts > 1 and not sampling.temperature:
        raise ConfigError(
            f"{engine.label}: {n_texts} texts a query would all be the same; give sampling: {{temperature: 0.7}}"
        )
    return prompt


def refuse_prompt(engine: Engine, prompt: str | None) -> None:
    """Raises a `ConfigError` where a prompt is given to an engine that takes none."""
    if prompt is not None:
        raise ConfigError(f"{engine.label}: takes no prompt, but {prompt!r} is given; leave it out")
