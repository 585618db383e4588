"""DUQGen: from a collection of documents to training data that covers it, without a single label.

Documents are cleaned and clustered by their vectors; every cluster gives its share of them, drawn near its centre and
unlike each other.  A generator writes queries for each; what comes is cut to queries, and kept where the document is
found on the way back and no other query says the same.  Hard negatives are mined, and everything is written as a data
set whose pairs know where they come from.

Every random choice belongs to an id, so the same documents, clusters and queries come of any order of the file.  What
models answered is kept, so an interrupted run goes on where it stopped.

Source: Chandradevan, Dhole and Agichtein 2024 (DUQGen, NAACL 2024).  The preset `paper` is what it describes; what is
different by default is told beside each option.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rerank.artifact import MANIFEST, fingerprint, read_manifest
from rerank.config import stage_tree
from rerank.data.dataset import Dataset
from rerank.data.load import load, load_corpus
from rerank.engines.text_model import DType
from rerank.errors import ArtifactError, ConfigError, DataError
from rerank.prompts.prompt import load_prompt
from rerank.ranking import TextSource
from rerank.registry import Part
from rerank.retrieve.vectors import encoder_for, vectors_of
from rerank.rules.rule import at_least
from rerank.runtime import Runtime
from rerank.synthesize.allocation import allocate
from rerank.synthesize.cleaning import Clean, Cleaning, cleaned
from rerank.synthesize.clusters import Clustering, Clusters, clustered, unit
from rerank.synthesize.duplicates import alike, near_duplicates, words_of
from rerank.synthesize.examples import Example, own_examples, read_examples
from rerank.synthesize.generators import Draft, Generator, KeyphraseGenerator, LLMGenerator, Setting, Source
from rerank.synthesize.negatives import HardNegatives, Mined
from rerank.synthesize.postprocess import PostProcessing
from rerank.synthesize.roundtrip import RoundTrip
from rerank.synthesize.sampling import Choice, chosen
from rerank.words import n_words, pieces, share, without
from rerank.yamlfile import dump_yaml

logger = logging.getLogger(__name__)

KIND = "synthetic-data"
VERSION = 2
_REPEATS_EXAMPLE = 0.8
"""The share of words that a query may not have in common with an example's: small models repeat these."""
_OF_EXAMPLE = 0.8
"""The share of a query's words in an example's document from which on it may be about that one."""
_EXAMPLE_WORDS = 3
"""Words that a bootstrapped example's query has at least; what is shown, a model repeats."""
_LEFT_WORDS = 2
"""Words that a document keeps at least when a query is taken out of it."""
Places = npt.NDArray[np.int64]
_NONE: Places = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Vectors:
    """What documents are clustered by: the vectors that the stage `dense` keeps of them."""

    model: str = "minilm-l6"
    """A catalogue name, a folder, or a hub id.  The paper takes facebook/contriever."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the encoder computes in."""


class Pair(NamedTuple):
    """A query with the document that it was written for, and how it came about."""

    qid: str
    query: str
    code: int
    """The document's, in the corpus."""
    docno: str
    cluster: int | None
    cosine: float | None
    """Of the document with its cluster's centre."""
    draft: Draft
    rank: int | None
    """At which the document was found on the way back."""
    negatives: tuple[Mined, ...] = ()
    learnt: str | None = None
    """The document's text, title apart, without the query's words; None: as it is."""

    @property
    def positive(self) -> str:
        """The id of the document that is learnt: a copy's, where the query's words were taken out."""
        return self.docno if self.learnt is None else f"{self.docno}~{self.qid}"


class Drop(NamedTuple):
    """A text that did not become a query."""

    docno: str
    draft: Draft
    text: str
    """What was left of it."""
    reason: str
    repeats: tuple[str, float] | None = None
    """The id of the query that says nearly the same, and the share of words that both have."""


@dataclass(frozen=True, eq=False)
class Picked:
    """The documents that queries are written for."""

    clean: Clean
    clusters: Clusters | None
    vectors: npt.NDArray[np.float32] | None
    """Of all documents of the corpus."""
    places: tuple[int, ...]
    """Of the chosen ones among the clean ones, rising."""

    def codes(self, places: Sequence[int]) -> Places:
        """The codes of documents by their places among the clean ones."""
        return self.clean.codes[np.array(places, dtype=np.int64)]


@dataclass(frozen=True, eq=False)
class Synthesis:
    """What a run has made, before it is written."""

    corpus: TextSource
    picked: Picked
    setting: Setting
    pairs: tuple[Pair, ...]
    drops: tuple[Drop, ...]
    counts: Mapping[str, int]
    """What else happened."""
    facts: Mapping[str, Any]
    """Of the generator."""


@runtime_checkable
class Titled(Protocol):
    """A corpus that keeps titles and texts apart."""

    def titles(self, codes: Places) -> list[str]:
        """The titles of `codes`."""
        ...

    def bodies(self, codes: Places) -> list[str]:
        """The texts of `codes` without their titles."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class DUQGen(Part):
    """Training data from a collection: how documents are chosen, queries written and filtered, negatives mined.

    >>> DUQGen(data="stdlib", documents=100)
    DUQGen(data='stdlib', documents=100)

    Source: Chandradevan et al. 2024 (DUQGen, NAACL 2024).

    Raises:
        ConfigError: numbers that make no sense.
    """

    data: str = ""
    """The collection: an embedded one, a folder, a JSONL file of documents, an id of ir_datasets."""
    documents: int = 1000
    """How many documents get queries; fewer where there are not so many.  Source: the paper, where 1,000 were mostly
    better than 5,000."""
    title: bool = True
    """Whether a document's title is shown to the generator, where the collection keeps it apart; retrieval and training
    read it always.  Titles that are identifiers are better left out."""
    cleaning: Cleaning = Cleaning()  # noqa: RUF009 - frozen, as all below
    vectors: Vectors = Vectors()
    clusters: Clustering | None = Clustering()  # noqa: RUF009
    """Null draws from all documents alike: no vectors are needed."""
    choice: Choice = Choice()  # noqa: RUF009
    """How documents of a cluster are chosen."""
    generator: Generator = KeyphraseGenerator()  # noqa: RUF009
    """What writes: `llm`, `extractive`, `keyphrase` or `mixed`."""
    queries: int = 1
    """How many a document keeps of each kind; of several samples those whose document ranks best on the way back."""
    postprocessing: PostProcessing = PostProcessing()  # noqa: RUF009
    round_trip: RoundTrip | None = RoundTrip()  # noqa: RUF009
    """Null keeps queries whatever they find; the paper has no such filter."""
    near_duplicates: float | None = 0.8
    """The share of their words that two kept queries may have in common, less than this; null keeps all."""
    negatives: HardNegatives | None = HardNegatives()  # noqa: RUF009
    """Null mines none: recipes can do so themselves."""
    cloze: float = 0.0
    """The share of queries that are taken out of their documents where they stand there word for word: a copy without
    them is learnt.  0.9 is that of the inverse cloze task.  Source: Lee, Chang and Toutanova 2019 (ORQA), section 4."""
    dev: float = 0.0
    """The share of the documents whose queries become the split `dev` instead of `train`."""
    corpus: Literal["all", "used"] = "all"
    """Which documents are written: all, or only those of pairs and negatives."""
    seed: int = 0
    """Of all draws but the engine's, whose `sampling.seed` it is."""

    def __post_init__(self) -> None:
        at_least("duqgen", 1, documents=self.documents, queries=self.queries)
        if not 0 <= self.cloze <= 1:
            raise ConfigError(f"duqgen: cloze is {self.cloze}, 0 to 1 is needed")
        if not 0 <= self.dev < 1:
            raise ConfigError(f"duqgen: dev is {self.dev}, 0 or more and less than 1 is needed")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ConfigError(f"duqgen: near_duplicates is {self.near_duplicates}, above 0 and at most 1 is needed")

    # -- the whole ------------------------------------------------------------

    def run(self, out: Path, runtime: Runtime, corpus: TextSource | None = None, name: str = "") -> Dataset:
        """The data set at `out`, split `train`, made unless it is there already.

        Args:
            out: the folder.
            runtime: loads, computes and remembers.
            corpus: the documents, in place of those of `data`.
            name: what the data set is called; default as the folder.

        Raises:
            DataError: no document or no query is left; what became of them is told.
            ConfigError: the generator cannot write by its prompt.
            ArtifactError: `out` holds something else.
        """
        from rerank.synthesize.folder import write_synthesis

        source = self.source(runtime) if corpus is None else corpus
        key = self.key(source, runtime)
        if (out / MANIFEST).is_file():
            there = read_manifest(out)
            if there.kind != KIND:
                raise ArtifactError(f"{out}: holds an artifact of kind {there.kind!r}; give another folder")
        if not (out / MANIFEST).is_file() or there.fingerprint != key:
            write_synthesis(out, self, self.made(source, runtime), key, name or out.name)
        return load(out, "train", runtime=runtime)

    def source(self, runtime: Runtime) -> TextSource:
        """The documents of `data`.

        Raises:
            DataError: nothing of that name.
        """
        if not self.data:
            raise ConfigError("duqgen: data names no collection; give its name or path")
        return load_corpus(self.data, runtime=runtime)

    def key(self, corpus: TextSource, runtime: Runtime) -> str:
        """SHA-256 of all that the data depends on, as far as it is known beforehand."""
        tree = stage_tree(self, hashes=True)[self.label]
        lists = {what: part.content() for what in ("round_trip", "negatives") if (part := getattr(self, what))}
        facts = self.generator.facts(Setting(corpus, self.seed))
        told = {name: value for name, value in tree.items() if name != "data"}
        return fingerprint([KIND, VERSION, told, lists, facts, corpus.fingerprint])

    def made(self, corpus: TextSource, runtime: Runtime) -> Synthesis:
        """Queries with their documents and negatives; nothing is written.

        Raises:
            DataError: no document or no query is left.
            ConfigError: the generator cannot write by its prompt.
        """
        picked = self.pick(corpus, runtime)
        setting = Setting(corpus, self.seed, self.examples(picked, corpus, runtime))
        shown = {example.docno for some in setting.examples.values() for example in some} - {""}
        if shown:
            barred = np.isin(picked.clean.codes, corpus.ids.find(sorted(shown)))
            picked = self._without(picked, np.flatnonzero(barred), corpus)
        counts: Counter[str] = Counter()
        drops: list[Drop] = []
        sources = self.sources(picked.codes(picked.places), corpus)
        pairs = self._pairs(picked, sources, setting, drops, runtime)
        pairs = self._returned(pairs, corpus, drops, runtime)
        pairs = self._distinct(pairs, drops)
        if not pairs:
            told = ", ".join(f"{n:,} {reason}" for reason, n in Counter(drop.reason for drop in drops).most_common())
            raise DataError(
                f"no query is left of what was written for {len(sources):,} documents ({told or 'nothing was'}); look "
                "at the prompt and its answers, or filter less"
            )
        pairs = self._with_negatives(pairs, corpus, counts, runtime)
        pairs = self._without_queries(pairs, corpus, counts)
        kept = tuple(sorted(pairs, key=lambda pair: pair.qid))
        without = len(sources) - len({pair.docno for pair in kept})
        counts["documents without a query"] = without
        return Synthesis(corpus, picked, setting, kept, tuple(drops), +counts, self.generator.facts(setting))

    def to_yaml(self, name: str = "") -> str:
        """The configuration as a file."""
        return dump_yaml({**({"name": name} if name else {}), **stage_tree(self)})

    # -- documents ------------------------------------------------------------

    def clean(self, corpus: TextSource) -> Clean:
        """The documents that queries may be written for.

        Raises:
            DataError: there are none.
        """
        clean = cleaned(corpus, self.cleaning)
        if not len(clean.codes):
            told = ", ".join(f"{count:,} {reason}" for reason, count in clean.dropped.items())
            raise DataError(f"no document is left of {len(corpus.ids):,} ({told}); lower cleaning: min_characters")
        return clean

    def pick(self, corpus: TextSource, runtime: Runtime) -> Picked:
        """The documents that queries are written for.

        Raises:
            DataError: none is left after cleaning.
        """
        clean = self.clean(corpus)
        n = len(clean.codes)
        logger.info("%d of %d documents are clean", n, len(corpus.ids))
        if n < self.documents:
            logger.warning("there are %d clean documents, fewer than %d: all of them get queries", n, self.documents)
        if self.clusters is None:
            return self._without(Picked(clean, None, None, ()), _NONE, corpus)
        encoder = encoder_for(runtime, self.vectors.model, self.vectors.revision, self.vectors.dtype, corpus)
        matrix = vectors_of(corpus, encoder, runtime).matrix
        clusters = clustered(
            matrix,
            clean.codes,
            lambda places: _ids(corpus, clean.codes[places]),
            self.clusters,
            self.seed,
            on_gpu=runtime.device.startswith("cuda"),
        )
        logger.info("%d clusters, the largest of %d documents", len(clusters), clusters.sizes[0])
        if len(clusters) == 1 < n and np.ptp(clusters.cosines) < 1e-6:
            logger.warning("all documents have the same vector: they are one cluster, and choosing is by id alone")
        return self._without(Picked(clean, clusters, matrix, ()), _NONE, corpus)

    def _without(self, picked: Picked, barred: Places, corpus: TextSource) -> Picked:
        """The same with documents chosen anew, none of them at the places `barred`."""
        codes = picked.clean.codes
        free = np.ones(len(codes), dtype=bool)
        free[barred] = False
        if picked.clusters is None or picked.vectors is None:
            names = _ids(corpus, codes)
            order = sorted(np.flatnonzero(free).tolist(), key=lambda place: share(self.seed, "document", names[place]))
            return Picked(picked.clean, None, None, tuple(sorted(order[: self.documents])))
        members = [some[free[some]] for some in picked.clusters.members()]
        places: list[int] = []
        for number, n in enumerate(allocate([len(some) for some in members], self.documents)):
            if n:
                some = members[number]
                vectors = unit(picked.vectors[codes[some]])
                names = _ids(corpus, codes[some])
                taken = chosen(vectors, names, picked.clusters.centres[number], n, self.choice, self.seed)
                places += some[taken].tolist()
        return Picked(picked.clean, picked.clusters, picked.vectors, tuple(sorted(places)))

    def sources(self, codes: Places, corpus: TextSource) -> list[Source]:
        """Documents as the generator sees them."""
        whole = corpus.texts(codes)
        bodies = whole if self.title or not isinstance(corpus, Titled) else corpus.bodies(codes)
        shown = [body if body.strip() else text for body, text in zip(bodies, whole, strict=True)]
        return list(map(Source, _ids(corpus, codes), shown))

    # -- examples ------------------------------------------------------------

    def examples(self, picked: Picked, corpus: TextSource, runtime: Runtime) -> dict[str, tuple[Example, ...]]:
        """By prompt, the examples that it shows in place of its own.

        Raises:
            DataError: the file has none for a prompt, or cannot be read.
        """
        if not isinstance(self.generator, LLMGenerator):
            return {}
        wanted = self.generator.examples
        if wanted.file is not None:
            found = read_examples(Path(wanted.file), corpus)
            given = {
                name: tuple(example for prompt, example in found if prompt in (None, name, load_prompt(name).name))[
                    : wanted.k
                ]
                for name in self.generator.prompts
            }
            for name, some in given.items():
                if not some:
                    raise DataError(f"{wanted.file}: has no example for the prompt {name!r}; add some, or leave it out")
            return given
        return self._bootstrapped(self.generator, picked, corpus, runtime) if wanted.bootstrap else {}

    def _bootstrapped(
        self, generator: LLMGenerator, picked: Picked, corpus: TextSource, runtime: Runtime
    ) -> dict[str, tuple[Example, ...]]:
        """Queries for central documents, those whose documents rank best on the way back."""
        central = self._central(picked, generator.examples.candidates, corpus)
        places = {name: i for i, name in enumerate(_ids(corpus, picked.codes(central)))}
        tried = Picked(picked.clean, picked.clusters, picked.vectors, tuple(sorted(central)))
        drops: list[Drop] = []
        sources = self.sources(tried.codes(tried.places), corpus)
        pairs = self._pairs(tried, sources, Setting(corpus, self.seed), drops, runtime)
        pairs = self._returned(pairs, corpus, drops, runtime)
        texts = {source.docno: source.text for source in sources}
        given: dict[str, tuple[Example, ...]] = {}
        for name in generator.prompts:
            prompt = load_prompt(name)
            own = own_examples(prompt)
            best: dict[str, Pair] = {}
            for pair in sorted(pairs, key=lambda pair: (pair.rank or 0, places[pair.docno], pair.draft.sample)):
                if pair.draft.prompt == prompt.name and _is_exemplary(pair.query, own):
                    best.setdefault(pair.docno, pair)
            kept = list(best.values())[: generator.examples.k]
            if len(kept) < generator.examples.k:
                logger.warning("prompt %s: %d examples of %d could be made", name, len(kept), generator.examples.k)
            # Where there are too few, the prompt's own come before them.
            made = (Example(texts[pair.docno], pair.query, pair.docno) for pair in kept)
            given[name] = (*own[: generator.examples.k - len(kept)], *made)
        return given

    def _central(self, picked: Picked, n: int, corpus: TextSource) -> list[int]:
        """The places of documents near centres: the nearest of each cluster, the largest first, then the second."""
        if picked.clusters is None:
            names = _ids(corpus, picked.clean.codes)
            return sorted(range(len(names)), key=lambda place: share(self.seed, "central", names[place]))[:n]
        found: list[tuple[int, int, int]] = []
        for number, some in enumerate(picked.clusters.members()):
            order = np.argsort(-picked.clusters.cosines[some], kind="stable")
            found += [(depth, number, int(place)) for depth, place in enumerate(some[order[:n]])]
        return [place for _, _, place in sorted(found)[:n]]

    # -- queries ------------------------------------------------------------

    def _pairs(
        self, picked: Picked, sources: Sequence[Source], setting: Setting, drops: list[Drop], runtime: Runtime
    ) -> list[Pair]:
        """What was written for the documents, as far as queries could be made of it."""
        with runtime.progress("writing", None):
            written = self.generator.drafts(sources, setting, runtime)
        shown = self._shown(setting)
        pairs: list[Pair] = []
        for place, source, drafts in zip(picked.places, sources, written, strict=True):
            code, cluster, cosine = int(picked.clean.codes[place]), None, None
            if picked.clusters is not None:
                cluster = int(picked.clusters.labels[place])
                cosine = round(float(picked.clusters.cosines[place]), 4)
            seen: set[tuple[str, str]] = set()
            for draft in drafts:
                text, reason = self.postprocessing(draft.text)
                said = (draft.prompt, " ".join(text.casefold().split()))
                if reason is None and said in seen:
                    reason = "same as another sample"
                elif reason is None:
                    reason = _taken_from(text, source.text, shown[draft.prompt])
                if reason is not None:
                    drops.append(Drop(source.docno, draft, text, reason))
                    continue
                seen.add(said)
                qid = _qid(source.docno, draft.prompt, text)
                pairs.append(Pair(qid, text, code, source.docno, cluster, cosine, draft, None))
        return pairs

    def _shown(self, setting: Setting) -> dict[str, list[Example]]:
        """By prompt, the examples that it shows."""
        if not isinstance(self.generator, LLMGenerator):
            return {name: [] for name in self.generator.prompts}
        filled = [self.generator.filled(name, setting) for name in self.generator.prompts]
        return {prompt.name: own_examples(prompt) for prompt in filled}

    def _returned(self, pairs: Sequence[Pair], corpus: TextSource, drops: list[Drop], runtime: Runtime) -> list[Pair]:
        """The best queries of each document and kind, with the ranks at which their documents were found."""
        if self.round_trip is not None:
            texts, codes = {pair.qid: pair.query for pair in pairs}, {pair.qid: pair.code for pair in pairs}
            ranks = self.round_trip.ranks(texts, codes, corpus, runtime)
            lost = f"document not among the first {self.round_trip.k} on the way back"
            drops += [_drop(pair, lost) for pair in pairs if ranks[pair.qid] is None]
            pairs = [pair._replace(rank=ranks[pair.qid]) for pair in pairs if ranks[pair.qid] is not None]
        kept: list[Pair] = []
        taken: Counter[tuple[str, str]] = Counter()
        for pair in sorted(pairs, key=lambda pair: (pair.rank or 0, pair.draft.sample, pair.qid)):
            kind = (pair.docno, pair.draft.prompt)
            if taken[kind] < self.queries:
                kept.append(pair)
                taken[kind] += 1
            else:
                drops.append(_drop(pair, "another sample is better"))
        return kept

    def _distinct(self, pairs: Sequence[Pair], drops: list[Drop]) -> list[Pair]:
        """The queries without those that say nearly what another says; those whose documents rank better stay."""
        if self.near_duplicates is None:
            return list(pairs)
        order = sorted(pairs, key=lambda pair: (pair.rank or 0, share(self.seed, "distinct", pair.qid)))
        found = near_duplicates([pair.query for pair in order], self.near_duplicates)
        kept = []
        for pair, other in zip(order, found, strict=True):
            if other is None:
                kept.append(pair)
            else:
                repeats = (order[other[0]].qid, round(other[1], 4))
                drops.append(_drop(pair, "nearly the same as another query")._replace(repeats=repeats))
        return kept

    def _with_negatives(
        self, pairs: Sequence[Pair], corpus: TextSource, counts: Counter[str], runtime: Runtime
    ) -> list[Pair]:
        if self.negatives is None:
            return list(pairs)
        texts, codes = {pair.qid: pair.query for pair in pairs}, {pair.qid: pair.code for pair in pairs}
        mined = self.negatives.mined(texts, codes, corpus, runtime, self.seed, counts)
        return [pair._replace(negatives=tuple(mined[pair.qid])) for pair in pairs]

    def _without_queries(self, pairs: Sequence[Pair], corpus: TextSource, counts: Counter[str]) -> list[Pair]:
        """The pairs, a share of them with their documents as they are without the query."""
        wanted = [pair for pair in pairs if share(self.seed, "cloze", pair.qid) < self.cloze]
        if not wanted:
            return list(pairs)
        codes = np.array([pair.code for pair in wanted], dtype=np.int64)
        titles = corpus.titles(codes) if isinstance(corpus, Titled) else [""] * len(codes)
        bodies = corpus.bodies(codes) if isinstance(corpus, Titled) else corpus.texts(codes)
        learnt = {
            pair.qid: rest
            for pair, title, body in zip(wanted, titles, bodies, strict=True)
            if (rest := without(body, pair.query)) is not None and n_words(f"{title} {rest}") >= _LEFT_WORDS
        }
        counts["queries taken out of the document that is learnt"] = len(learnt)
        return [pair._replace(learnt=learnt.get(pair.qid)) for pair in pairs]

    def split_of(self, docno: str) -> str:
        """The split that a document's queries are in."""
        return "dev" if share(self.seed, "dev", docno) < self.dev else "train"


def _ids(corpus: TextSource, codes: Places) -> list[str]:
    return [str(docno) for docno in corpus.ids.take(codes)]


def _qid(docno: str, prompt: str, text: str) -> str:
    """A query's id: what it says of which document, whatever else there is."""
    said = f"{docno}\0{prompt}\0{text}".encode("utf-8", "surrogatepass")
    return f"syn-{hashlib.sha256(said).hexdigest()[:12]}"


def _taken_from(query: str, document: str, shown: Sequence[Example]) -> str | None:
    """How a query repeats what the prompt showed instead of speaking of its document; None where it does not."""
    words = words_of(query)
    own = len(words & words_of(document))
    for example in shown:
        if alike(query, example.query) >= _REPEATS_EXAMPLE:
            return "repeats an example"
        theirs = len(words & words_of(example.document))
        if theirs > own and theirs >= _OF_EXAMPLE * len(words):
            return "is about an example's document"
    return None


def _is_exemplary(query: str, own: Sequence[Example]) -> bool:
    """Whether a query that was written may be shown as an example, beside those that people wrote for the prompt."""
    words = [word.casefold() for word, _ in pieces(query)]
    size, repeated = len(words), len(words) - len(set(words))
    longest = max((n_words(example.query) for example in own), default=size)
    stutters = any(one == other for one, other in pairwise(words))
    return _EXAMPLE_WORDS <= size <= 2 * longest and repeated <= 1 and not stutters


def _drop(pair: Pair, reason: str) -> Drop:
    return Drop(pair.docno, pair.draft, pair.query, reason)
