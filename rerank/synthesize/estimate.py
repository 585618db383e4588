"""Dry runs: which documents would get queries, what a model would be asked, and for about how long."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rerank.engines.meter import CHARACTERS_OF_A_TOKEN, Meter, Size, Work, matrix_rate
from rerank.errors import ModelError
from rerank.ranking import TextSource
from rerank.retrieve.vectors import is_stored
from rerank.runtime import Runtime
from rerank.synthesize.allocation import allocate
from rerank.synthesize.duqgen import DUQGen
from rerank.synthesize.generators import LLMGenerator, Setting, Source

_COLUMNS = 80
_COUNTED = 200
"""Documents whose prompts are tokenised; the others are taken to be like them."""


@dataclass(frozen=True)
class SynthesisPlan:
    """What a synthesis would do."""

    name: str
    documents: int
    """Of the collection."""
    dropped: dict[str, int]
    """Documents left out, by reason."""
    chosen: int
    clusters: int | None
    """How many there are; None where that is not known before vectors are there, or nothing is clustered."""
    to_encode: int
    """Documents that would be encoded for clustering."""
    encoding_seconds: float | None
    """About how long; None where nothing is encoded, or the model's files are not here."""
    calls: int
    """Texts that a model would write; 0 where no model does."""
    prompt_tokens: int
    generated_tokens: int
    """At most."""
    writing_seconds: float | None
    """About how long; None where no model writes, or not here."""
    price: float | None
    remarks: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """About how long encoding and writing take, as far as that is known."""
        return (self.encoding_seconds or 0.0) + (self.writing_seconds or 0.0)

    def __str__(self) -> str:
        """The plan for people, in 80 columns."""
        lines = [f"{self.name}: a dry run, nothing was written", *facts_lines(self.facts())]
        return "\n".join([*lines, *notes(self.remarks)])

    def facts(self) -> list[tuple[str, str]]:
        """What is told, each with its title."""
        facts = [("documents", f"{self.documents:,}")]
        facts += [("", f"{n:,} left out: {reason}") for reason, n in self.dropped.items()]
        facts += [("get queries", f"{self.chosen:,}")]
        if self.clusters is None:
            facts += [("clusters", "not known before documents are encoded")]
        elif self.clusters:
            facts += [("clusters", f"{self.clusters:,}")]
        if self.to_encode:
            facts += [("to encode", f"{self.to_encode:,} documents, {about(self.encoding_seconds)}")]
        if self.calls:
            facts += [
                ("calls", f"{self.calls:,}"),
                ("prompt tokens", f"{self.prompt_tokens:,}"),
                ("generated", f"{self.generated_tokens:,} tokens at most"),
                ("writing", about(self.writing_seconds)),
            ]
        if self.price is not None:
            facts += [("price", f"{self.price:,.4f}")]
        return facts


def plan_synthesis(
    synthesis: DUQGen, runtime: Runtime, corpus: TextSource | None = None, name: str = ""
) -> SynthesisPlan:
    """What `synthesis` would do, found out without loading a writing model's weights.

    Documents are clustered only where their vectors are stored, else which ones would be chosen is not known.

    Args:
        synthesis: what would run.
        runtime: whose home, device and threads count.
        corpus: the documents, in place of those of its `data`.
        name: for the heading.

    Raises:
        DataError: no document is left after cleaning.
        ConfigError: the generator cannot write by its prompt.
    """
    source = synthesis.source(runtime) if corpus is None else corpus
    clean = synthesis.clean(source)
    chosen = sum(allocate([len(clean.codes)], synthesis.documents))
    remarks: list[str] = []
    n_clusters: int | None = None
    to_encode, encoding = 0, None
    codes = clean.codes[np.linspace(0, len(clean.codes) - 1, min(chosen, len(clean.codes)), dtype=np.int64)]
    stored = is_stored((runtime.home / "vectors").glob("*"), synthesis.vectors.model, source)
    if synthesis.clusters is None or stored:
        picked = synthesis.pick(source, runtime)
        codes = picked.codes(picked.places)
        n_clusters = len(picked.clusters) if picked.clusters is not None else 0
    else:
        to_encode = len(source.ids)
        encoding = _encoding_seconds(synthesis, source, runtime, remarks)
    sources = synthesis.sources(codes, source)
    asked = _Asked.of(synthesis, sources, Setting(source, synthesis.seed), runtime, remarks)
    return SynthesisPlan(
        name or synthesis.label,
        len(source.ids),
        dict(clean.dropped),
        chosen,
        n_clusters,
        to_encode,
        encoding,
        asked.calls,
        asked.prompt_tokens,
        asked.generated_tokens,
        asked.seconds,
        asked.price,
        tuple(dict.fromkeys(remarks)),
    )


@dataclass
class _Asked:
    """What a model would be asked."""

    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float | None = None
    price: float | None = None

    @classmethod
    def of(
        cls, synthesis: DUQGen, sources: Sequence[Source], setting: Setting, runtime: Runtime, remarks: list[str]
    ) -> _Asked:
        made = cls()
        generator = synthesis.generator
        if not isinstance(generator, LLMGenerator) or not sources:
            return made
        examples = generator.examples
        times = len(sources) * generator.samples
        if examples.bootstrap:
            times += min(examples.candidates, len(sources)) * generator.samples
            remarks.append("prompts are counted with their own examples; bootstrapped ones may be longer")
        some = sources[:: max(1, len(sources) // _COUNTED)]
        for meter in generator.meters(setting, runtime):
            sizes = meter.sizes([*generator.asked(some)[: len(some)]])
            made._add(meter, sizes, times / len(sizes), runtime, remarks)
            made.calls += times
        return made

    def _add(self, meter: Meter, sizes: Sequence[Size], scale: float, runtime: Runtime, remarks: list[str]) -> None:
        self.prompt_tokens += round(scale * sum(size.tokens for size in sizes))
        self.generated_tokens += round(scale * sum(size.generated for size in sizes))
        remarks += [f"tokens are counted by {meter.counted_by}", *meter.remarks]
        if meter.price is not None:
            tokens = sum(size.tokens for size in sizes), sum(size.generated for size in sizes)
            self.price = (self.price or 0.0) + scale * meter.price.of(*tokens)
        if meter.work is not None:
            rate = matrix_rate(meter.work.dtype, runtime.device, runtime.threads)
            self.seconds = (self.seconds or 0.0) + scale * meter.work.seconds(sizes, rate)


def _encoding_seconds(synthesis: DUQGen, corpus: TextSource, runtime: Runtime, remarks: list[str]) -> float | None:
    """About how long the vectors of a corpus take; None where the model's files are not here."""
    from rerank.engines.scorer import shorter_type
    from rerank.models.resolve import locate_model

    vectors = synthesis.vectors
    try:
        folder = locate_model(vectors.model, vectors.revision, runtime.home, weights=False).path
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers, width, inner = (int(config[key]) for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    except (ModelError, OSError, ValueError, KeyError, TypeError) as error:
        remarks.append(f"how long encoding takes is not known: {type(error).__name__}: {error}")
        return None
    dtype = (shorter_type(runtime.device) or "float32") if vectors.dtype == "auto" else vectors.dtype
    # Of a layer: four square products of attention, and two to and from its inner width.
    work = Work(layers * (4 * width**2 + 2 * width * inner), 0, layers * width, dtype)
    some = np.linspace(0, len(corpus.ids) - 1, min(_COUNTED, len(corpus.ids)), dtype=np.int64)
    limit = int(config.get("max_position_embeddings", 512))
    sizes = [Size(min(limit, 2 + len(text) // CHARACTERS_OF_A_TOKEN)) for text in corpus.texts(some)]
    rate = matrix_rate(work.dtype, runtime.device, runtime.threads)
    remarks.append("what is encoded is counted as four characters a token")
    return work.seconds(sizes, rate) * len(corpus.ids) / len(sizes)


def facts_lines(facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines of 80 columns, each fact beside its title."""
    for title, text in facts:
        yield from textwrap.wrap(text, _COLUMNS, initial_indent=f"  {title:<14}", subsequent_indent=" " * 16)


def notes(remarks: Iterable[str]) -> Iterator[str]:
    """Lines of 80 columns, each remark once."""
    for remark in dict.fromkeys(remarks):
        yield from textwrap.wrap(remark, _COLUMNS, initial_indent="  note: ", subsequent_indent=" " * 8)


def about(seconds: float | None) -> str:
    """A time for people.

    >>> about(30.0), about(600.0), about(36_000.0), about(None)
    ('about 30 seconds', 'about 10 minutes', 'about 10 hours', 'time not known')
    """
    if seconds is None:
        return "time not known"
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"about {seconds / size:,.0f} {unit}"
    return f"about {seconds:,.0f} seconds"
