"""What writes queries for documents: language models by prompts, and, to be compared with them, what needs no model."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from rerank.engines.engine import Asked, Engine
from rerank.engines.language_model import Sampling
from rerank.engines.meter import Meter
from rerank.errors import ConfigError
from rerank.lexicon import Lexicon, Word, phrases, sentences
from rerank.prompts.prompt import Prompt, load_prompt
from rerank.ranking import TextSource
from rerank.registry import Part
from rerank.rules.rule import at_least, seeded
from rerank.runtime import Runtime
from rerank.synthesize.examples import Example, Examples, form_of, stored, with_examples
from rerank.words import n_words, one_line, pieces

_CLAUSE = re.compile(r"[,;:(–—]|\s-\s")
_PHRASES = 24
"""A document's heaviest phrases, from which all its queries are made."""


class Source(NamedTuple):
    """A document that queries are written for."""

    docno: str
    text: str


class Draft(NamedTuple):
    """What was written for a document, before anything is cut or checked."""

    text: str
    prompt: str
    """The prompt's name; for generators without one, what was taken: `sentence` or `phrases`."""
    sample: int
    """0 for the first of several."""
    seed: int
    """What the draw depends on besides the document."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What a generator is given besides documents."""

    corpus: TextSource
    seed: int
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """By prompt, examples in place of its own."""


class Generator(Part, ABC):
    """Base of what writes queries; a subclass is a frozen dataclass with `drafts`."""

    @property
    @abstractmethod
    def prompts(self) -> tuple[str, ...]:
        """The kinds of query that are written, by name."""

    @abstractmethod
    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """What is written for each document; what it is does not depend on the others, nor on their order.

        Raises:
            ConfigError: the engine cannot write by the prompt.
            ModelError: the model cannot be loaded.
        """

    def facts(self, setting: Setting) -> dict[str, Any]:
        """What a data card says of the generator: plain data."""
        return {"generator": self.label}


@dataclass(frozen=True, repr=False)
class LLMGenerator(Generator):
    """A language model that is shown a few documents with their queries, and then the document.

    >>> from rerank.engines.prompted import CausalLMEngine
    >>> LLMGenerator(CausalLMEngine("my-model"), prompts=("duqgen-claim",)).prompts
    ('duqgen-claim',)

    Source: DUQGen (Chandradevan et al. 2024, NAACL); Bonifacio et al. 2022 (InPars), whose form the prompts have in our
    own words.

    Raises:
        ConfigError: several samples of an engine that always writes the same, or no prompt.
    """

    engine: Engine
    """What writes; its `sampling` says how.  `max_tokens: 48` and `stop: ["\\n"]` suit queries."""
    prompts: tuple[str, ...] = ("duqgen-question",)
    """Prompts by name or file, one for each kind of query: `duqgen-question`, `duqgen-keyword`, `duqgen-claim`."""
    samples: int = 1
    """How many queries are drawn by each prompt, with the engine's seed and those after it; the best are kept."""
    examples: Examples = Examples()  # noqa: RUF009 - frozen
    """What the prompts show."""

    def __post_init__(self) -> None:
        at_least("llm", 1, samples=self.samples)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ConfigError(f"llm: prompts are {list(self.prompts)}; name one or more, each once")
        sampling = getattr(self.engine, "sampling", None)
        if self.samples > 1 and isinstance(sampling, Sampling) and not sampling.temperature:
            raise ConfigError(
                f"llm: {self.samples} samples would all be the same; give the engine sampling: {{temperature: 0.7}}"
            )

    def filled(self, name: str, setting: Setting) -> Prompt:
        """The prompt with the examples that it shows.

        Raises:
            ConfigError: it has no place for examples.
        """
        prompt = load_prompt(name)
        form_of(prompt)
        examples = setting.examples.get(name)
        return prompt if examples is None else with_examples(prompt, examples, self.examples.characters)

    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """For each document `samples` texts by each prompt."""
        found: list[list[Draft]] = [[] for _ in sources]
        first = int(getattr(getattr(self.engine, "sampling", None), "seed", 0))
        texts = [source.text for source in sources]
        for name in self.prompts:
            prompt = self.filled(name, setting)
            writer = self.engine.writer(str(stored(prompt, runtime.home)), self.samples, runtime)
            for drafts, written in zip(found, writer.write(texts, runtime), strict=True):
                drafts += [Draft(text, prompt.name, i, first + i) for i, text in enumerate(written)]
        return found

    def meters(self, setting: Setting, runtime: Runtime) -> list[Meter]:
        """How the engine would be asked by each prompt, counted without its weights."""
        files = (stored(self.filled(name, setting), runtime.home) for name in self.prompts)
        return [self.engine.measure(str(path), runtime) for path in files]

    def asked(self, sources: Sequence[Source]) -> list[Asked]:
        """The questions that one prompt asks."""
        return [Asked(source.docno, source.text, (), ()) for source in sources] * self.samples

    def facts(self, setting: Setting) -> dict[str, Any]:
        """Engine, model, and the prompts with the fingerprints of what they show."""
        filled = {name: self.filled(name, setting) for name in self.prompts}
        return {
            **super().facts(setting),
            "engine": self.engine.label,
            "model": getattr(self.engine, "model", ""),
            "prompts": {prompt.name: prompt.fingerprint for prompt in filled.values()},
        }


@dataclass(frozen=True, repr=False)
class ExtractiveGenerator(Generator):
    """The document's own most telling sentences: those whose words are frequent in it and rare in the collection.

    Raises:
        ConfigError: numbers that make no sense.
    """

    samples: int = 1
    """How many sentences a document gives at most, the best first."""
    min_words: int = 4
    max_words: int = 24
    """Longer sentences are left out, or, where there are no others, cut."""

    def __post_init__(self) -> None:
        at_least("extractive", 1, samples=self.samples, min_words=self.min_words)
        at_least("extractive", self.min_words, max_words=self.max_words)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One kind."""
        return ("sentence",)

    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """The best sentences of each document."""
        lexicon = Lexicon(setting.corpus, runtime)
        return [self._drafts(source.text, lexicon) for source in sources]

    def _drafts(self, text: str, lexicon: Lexicon) -> list[Draft]:
        weights: defaultdict[str, float] = defaultdict(float)
        for word in lexicon.words(text):
            weights[word.term] += word.weight
        weights.pop("", None)
        scored: list[tuple[float, int, str]] = []
        fitting = [line for line in sentences(text) if self.min_words <= n_words(line) <= self.max_words]
        for place, line in enumerate(fitting or [_first_words(text, self.max_words)]):
            words = lexicon.words(line)
            terms = {word.term for word in words if word.term}
            # By the root of the length neither the shortest nor the longest wins; the first says what it is about.
            score = sum(weights[term] for term in terms) / math.sqrt(max(1, len(words))) * (1 + 1 / (1 + place))
            scored.append((-score, place, line))
        best = dict.fromkeys(line for _, _, line in sorted(scored))
        return [Draft(line, "sentence", i, 0) for i, line in enumerate(list(best)[: self.samples])]


@dataclass(frozen=True, repr=False)
class CropGenerator(Generator):
    """Words of the document as they stand, from a place that is drawn.

    Found word for word in their documents, they teach a model that knows nothing of ranking what it is to find; taken
    out of them (`cloze`), what belongs together.

    Source: the crops of Contriever (Izacard et al. 2021, arXiv 2112.09118); taken out, the inverse cloze task of Lee et
    al. 2019 (ORQA).

    >>> from rerank.data.corpus import MemoryCorpus
    >>> setting, crops = Setting(MemoryCorpus({"d": "wings"}), 0), CropGenerator(min_words=2, max_words=2, among=2)
    >>> with Runtime(progress=False) as runtime:
    ...     crops.drafts([Source("d", "how a wing makes lift")], setting, runtime)
    [[Draft(text='how a', prompt='crop', sample=0, seed=0)]]

    Raises:
        ConfigError: numbers that make no sense.
    """

    samples: int = 1
    """How many crops a document gives."""
    min_words: int = 5
    max_words: int = 10
    """How long a crop is, drawn for each between these two."""
    among: int = 30
    """From so many words at the document's beginning: what is behind them, a model that reads little never sees."""

    def __post_init__(self) -> None:
        at_least("crops", 1, samples=self.samples, min_words=self.min_words)
        at_least("crops", self.min_words, max_words=self.max_words)
        at_least("crops", self.max_words, among=self.among)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One kind."""
        return ("crop",)

    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """Crops of each document."""
        return [self._drafts(source, setting.seed) for source in sources]

    def _drafts(self, source: Source, seed: int) -> list[Draft]:
        line = one_line(source.text)
        ends = [start + len(word) for word, start in pieces(line)][: self.among]
        starts = [start for _, start in pieces(line)][: self.among]
        found = []
        for i in range(self.samples if starts else 0):
            random = seeded(seed, f"crop\0{source.docno}\0{i}")
            size = min(random.randint(self.min_words, self.max_words), len(starts))
            first = random.randint(0, len(starts) - size)
            found.append(Draft(line[starts[first] : ends[first + size - 1]], "crop", i, seed))
        return found


class _Weighed(NamedTuple):
    """A phrase's weight and its terms, which all differ."""

    weight: float
    terms: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class KeyphraseGenerator(Generator):
    """A few of the document's most telling phrases in a row, as people type them into a search box.

    Phrases are runs of up to three words without stop words between.  They weigh more the more often and the earlier
    they stand in the document and the rarer their words are in the collection.  The first query takes the heaviest;
    further samples draw from the 24 heaviest.

    Raises:
        ConfigError: numbers that make no sense.
    """

    samples: int = 1
    """How many queries a document gets at most."""
    min_words: int = 2
    max_words: int = 5
    """How long a query is, drawn for each between these two."""

    def __post_init__(self) -> None:
        at_least("keyphrase", 1, samples=self.samples, min_words=self.min_words)
        at_least("keyphrase", self.min_words, max_words=self.max_words)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One kind."""
        return ("phrases",)

    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """Phrases of each document."""
        lexicon = Lexicon(setting.corpus, runtime)
        return [self._drafts(source, self._weights(source.text, lexicon), setting.seed) for source in sources]

    def _drafts(self, source: Source, weights: Mapping[str, _Weighed], seed: int) -> list[Draft]:
        best = sorted(weights, key=lambda phrase: -weights[phrase].weight)[:_PHRASES]
        found = []
        for i in range(self.samples):
            random = seeded(seed, f"phrases\0{source.docno}\0{i}")
            size = random.randint(self.min_words, self.max_words)
            found.append(
                Draft(_joined(_reordered(best, weights, random) if i else best, weights, size), "phrases", i, seed)
            )
        return found

    def _weights(self, text: str, lexicon: Lexicon) -> dict[str, _Weighed]:
        """By phrase as it first stands in the text, its weight and its terms."""
        words = lexicon.words(text)
        counts: Counter[tuple[str, ...]] = Counter()
        first: dict[tuple[str, ...], list[Word]] = {}
        for run in phrases(text, words):
            terms = tuple(word.term for word in run)
            if len(set(terms)) == len(terms) and not all(word.surface.isdigit() for word in run):
                counts[terms] += 1
                first.setdefault(terms, run)
        frequency = Counter(word.term for word in words)
        found: dict[str, _Weighed] = {}
        for terms, n in counts.items():
            run = first[terms]
            start, end = run[0].start, run[-1].start + len(run[-1].surface)
            # A rare word that stands here once, such as "sizeable", says less than one that the document is about.
            weight = sum((1 + math.log(frequency[word.term])) ** 2 * word.weight for word in run)
            # Repetitions count less and less, and a longer phrase not as much as its words would apart.
            weight *= (1 + math.log(n)) / math.sqrt(len(run))
            # What stands early says what a document is about.
            weight *= 1 + 2 / (1 + math.log1p(start / 100))
            found.setdefault(one_line(text[start:end]), _Weighed(weight, terms))
        return found


@dataclass(frozen=True, repr=False)
class MixedGenerator(Generator):
    """Several makers of queries that need no model: a document gets queries of each kind.

    A reranker that has seen one kind only, such as the keywords of its documents, learns to look for that.

    >>> MixedGenerator((KeyphraseGenerator(), ExtractiveGenerator())).prompts
    ('phrases', 'sentence')

    Raises:
        ConfigError: a language model, or two of one kind.
    """

    of: tuple[Generator, ...]

    def __post_init__(self) -> None:
        if any(isinstance(each, LLMGenerator | MixedGenerator) for each in self.of):
            raise ConfigError(
                "mixed: is of generators without a model; synthesize what a language model writes apart, and name both "
                "folders in the recipe's groups"
            )
        if not self.of or len(set(self.prompts)) < len(self.prompts):
            raise ConfigError(f"mixed: is of {[each.label for each in self.of]}; name one or more, each once")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The kinds of all."""
        return tuple(prompt for each in self.of for prompt in each.prompts)

    def drafts(self, sources: Sequence[Source], setting: Setting, runtime: Runtime) -> list[list[Draft]]:
        """What each makes of every document."""
        made = [each.drafts(sources, setting, runtime) for each in self.of]
        return [[draft for drafts in of_one for draft in drafts] for of_one in zip(*made, strict=True)]

    def facts(self, setting: Setting) -> dict[str, Any]:
        """Which they are."""
        return {**super().facts(setting), "of": [each.label for each in self.of]}


def _reordered(best: Sequence[str], weights: Mapping[str, _Weighed], random: Random) -> list[str]:
    """The phrases as they are drawn without replacement, by the squares of their weights.

    Source: Efraimidis and Spirakis 2006.
    """
    keys = {phrase: random.random() ** (weights[phrase].weight ** -2) for phrase in best}
    return sorted(best, key=lambda phrase: -keys[phrase])


def _joined(order: Sequence[str], weights: Mapping[str, _Weighed], size: int) -> str:
    """The first phrases that fit into `size` words and share none."""
    chosen: list[str] = []
    used: set[str] = set()
    for phrase in order:
        terms = weights[phrase].terms
        if len(used) + len(terms) <= size and used.isdisjoint(terms):
            chosen.append(phrase)
            used.update(terms)
    return " ".join(chosen)


def _first_words(text: str, n: int) -> str:
    """The beginning of a text, `n` words long or less: where a clause ends in its second half, up to there.

    >>> _first_words("Enter a debugger that steps through code (which is an expression) step by step", 10)
    'Enter a debugger that steps through code'
    """
    line = one_line(text)
    for place, (_, start) in enumerate(pieces(line)):
        if place == n:
            clauses = list(_CLAUSE.finditer(line, start // 2, start))
            return line[: clauses[-1].start() if clauses else start].rstrip()
    return line
