"""Labelled candidate lists: for given queries, what a first stage finds, in the order that two teachers agree on.

Of each query's list the first documents are taken, and some from further down at random.  A pointwise teacher grades
them one by one, a listwise teacher puts them in order, and the two orders become one label a document.  One labelling
serves groups of all sizes: sub-lists at equal steps keep the order.

Teachers that are language models keep their answers, so an interrupted run goes on where it stopped.

Source: GroupRank (arXiv 2511.11653v3), data synthesis.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rerank import __version__
from rerank.artifact import MANIFEST, fingerprint, lock, read_manifest
from rerank.config import build, stage_tree
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.errors import ArtifactError, ConfigError, DataError
from rerank.planning import Plan, Rehearsal, plan
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.registry import Part
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.dense import Dense
from rerank.runtime import Runtime
from rerank.synthesize.told import told_by
from rerank.train.labels import fused_labels, rescaled
from rerank.train.lists import Lists, Ranked
from rerank.train.mining import Judged, Library, Miner
from rerank.train.sources import GROUPS, GroupSource, Interval, Queries, Teacher, beside, located, sources_from
from rerank.yamlfile import Tree, dump_yaml, read_yaml

logger = logging.getLogger(__name__)

KIND = "labelled-lists"
VERSION = 1


class Labelled(NamedTuple):
    """One document of a query's list."""

    code: int
    """In the corpus."""
    found_at: int
    """Its rank in the first stage's list."""
    pointwise: int
    """Its rank by the pointwise teacher, among the documents of the list."""
    listwise: int
    fused: float
    """Minus the weighted mean of the logarithms of both ranks: 0 at most."""
    label: float
    """The same, or brought onto a scale."""
    score: float | None
    """What the pointwise teacher gave it, where that gives scores."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """What a run has made, before it is written."""

    data: Dataset
    """The queries that were asked for."""
    lists: Mapping[str, tuple[Labelled, ...]]
    """By query, the documents in the order in which they were found."""
    counts: Mapping[str, int]
    """What else happened."""
    provenance: Mapping[str, Any]
    """Of the first stage and of both teachers."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LabelledLists(Part):
    """Queries' candidates labelled by a pointwise and a listwise teacher.

    >>> from rerank.rules.listwise import Listwise
    >>> from rerank.engines.fake import FakeEngine
    >>> from rerank.reranking import Rerank
    >>> grades, order = FakeEngine("grades.tsv"), FakeEngine("order.tsv")
    >>> made = LabelledLists(
    ...     data="beir/nfcorpus",
    ...     pointwise=Teacher(stages=(Rerank(grades, k=None),)),
    ...     listwise=Teacher(stages=(Rerank(order, Listwise(), k=None),)),
    ... )
    >>> made.sizes, made.interval.drawn
    ((5, 10, 20), 40)

    Source: GroupRank (arXiv 2511.11653v3), data synthesis.

    Raises:
        ConfigError: numbers that make no sense.
    """

    data: str
    """The queries and their documents: an embedded collection, a folder, an id of ir_datasets; what `duqgen` wrote."""
    split: str = "train"
    """Which of its queries; their judgments are not looked at."""
    candidates: str | None = None
    """Lists that come with the data, by name, or a run file, where `interval` names no others."""
    queries: Queries = Queries()  # noqa: RUF009 - frozen, as the next
    """Which of them are labelled."""
    interval: Interval = Interval()  # noqa: RUF009
    """Which documents: the first of a list and some drawn below.  Without lists of its own: BM25 and `minilm-l6`, each
    brought to 0 to 1, added.  Its `groups` is how many a query gives."""
    pointwise: Teacher
    """Who grades documents one by one: a pipeline, which is given them in the order in which they were found, or a run.
    """
    listwise: Teacher
    """Who puts them in order."""
    beta: float = 0.5
    """How much the pointwise teacher counts, 0 to 1."""
    top: float | None = 10.0
    """Labels are moved and stretched so that those of a list go from 0 to this, as gains and rewards need them, which
    take none below 0.  Null leaves them as they are fused."""
    sizes: tuple[int, ...] = (5, 10, 20)
    """How many documents groups have; of several sizes one is drawn for each."""
    weights: tuple[float, ...] = ()
    """How often each size is drawn, relative to the others; default equally."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"labels: beta is {self.beta}, from 0 (listwise alone) to 1 (pointwise alone) is needed")
        if self.top is not None and not 0 < self.top < math.inf:
            raise ConfigError(f"labels: top is {self.top}, a number above 0 is needed")
        if self.interval.only_judged:
            raise ConfigError("labels: the interval's only_judged looks at judgments, which labelling does without")
        _ = self.source  # says what is wrong with sizes and weights

    @property
    def source(self) -> GroupSource:
        """What is drawn, as a recipe would say it."""
        return GroupSource(
            data=self.data,
            split=self.split,
            candidates=self.candidates,
            queries=self.queries,
            interval=self.interval,
            teacher=self.pointwise,
            sizes=self.sizes,
            weights=self.weights,
            seed=self.seed,
        )

    # -- the whole ------------------------------------------------------------

    def run(self, out: Path, runtime: Runtime, data: Dataset | None = None, name: str = "") -> tuple[GroupSource, ...]:
        """The groups of the folder `out`, as recipes and `rerank.train.groups.build_groups` take them.

        Args:
            out: the folder, filled unless it is there already.
            runtime: loads, computes and remembers.
            data: queries and documents, in place of those of `data`.
            name: what the lists are called; default as the folder.

        Raises:
            DataError: no query can be labelled; why is told.
            ArtifactError: `out` holds something else.
        """
        from rerank.synthesize.labelled import write_labelling

        dataset = self.dataset(runtime) if data is None else data
        key = self.key(dataset)
        with lock(out, "labels lists"):
            if (out / MANIFEST).is_file():
                there = read_manifest(out)
                if there.kind != KIND:
                    raise ArtifactError(f"{out}: holds an artifact of kind {there.kind!r}; give another folder")
            if not (out / MANIFEST).is_file() or there.fingerprint != key:
                write_labelling(out, self, self.made(dataset, runtime), key, name or out.name)
        said = read_yaml(out / GROUPS)
        return sources_from(said, (), said.value)

    def dataset(self, runtime: Runtime) -> Dataset:
        """The queries and documents of `data`.

        Raises:
            DataError: nothing of that name.
        """
        return load(self.data, self.split, runtime=runtime, candidates=self.candidates)

    def key(self, data: Dataset) -> str:
        """SHA-256 of all that the lists depend on, as far as it is known beforehand."""
        lists = self._first_stage(data)
        told = [self.source.content(), self.listwise.content(), self.beta, self.top, lists.content() if lists else None]
        return fingerprint([KIND, VERSION, __version__, told, data.fingerprint])

    def made(self, data: Dataset, runtime: Runtime) -> Labelling:
        """Lists with labels; nothing is written.

        Raises:
            DataError: no query can be labelled.
        """
        counts: Counter[str] = Counter()
        asked = self._asked(data, counts)
        lists = self._first_stage(asked)
        found = lists.ranked(asked, runtime) if lists is not None else _given(asked)
        pools = self._pools(asked, found, counts)
        if not pools:
            raise DataError(
                f"{data.name} ({data.split}): no list of {len(asked.queries):,} queries has 2 documents or more; look "
                "at the first stage"
            )
        logger.info("%d lists with %d documents to label", len(pools), sum(map(len, pools.values())))
        shown = _shown(asked, pools)
        graded = self.pointwise.ranked(shown, runtime)
        ordered = self.listwise.ranked(shown, runtime)
        labelled: dict[str, tuple[Labelled, ...]] = {}
        for qid, pool in pools.items():
            made = self._labelled(qid, pool, found, graded, ordered, counts)
            if made:
                labelled[qid] = made
        if not labelled:
            raise DataError(
                f"{data.name} ({data.split}): the teachers rank no document of any query; give them pipelines that "
                "rerank what they are given, or runs over the same documents"
            )
        told = {"candidates": found, "pointwise": graded, "listwise": ordered}
        provenance = {what: {**each.provenance, "kind": each.kind.value} for what, each in told.items()}
        return Labelling(asked, labelled, +counts, _without_hosts(provenance))

    def plan(self, runtime: Runtime, data: Dataset | None = None) -> str:
        """What labelling would ask of the teachers, for people; no reranking model is loaded."""
        counts: Counter[str] = Counter()
        asked = self._asked(self.dataset(runtime) if data is None else data, counts)
        lists = self._first_stage(asked)
        if lists is None:
            found = _given(asked)
        elif lists.run:
            found = lists.ranked(asked, runtime)
        else:
            found = Ranked(Rehearsal(runtime).rank(lists.made(), asked.topics()), corpus_of(asked), {})
        pools = self._pools(asked, found, counts)
        n_documents = sum(map(len, pools.values()))
        lines = [f"{len(pools):,} queries with {n_documents:,} documents to label"]
        for what, teacher in (("pointwise", self.pointwise), ("listwise", self.listwise)):
            told: Plan | str = "a run, nothing is asked"
            if not teacher.run:
                told = plan(teacher.made(), _shown(asked, pools), runtime)
            lines += ["", f"{what} teacher: {told}"]
        return "\n".join(lines)

    def to_yaml(self, name: str = "") -> str:
        """The configuration as a file."""
        return dump_yaml({**({"name": name} if name else {}), **stage_tree(self)})

    # -- its parts ------------------------------------------------------------

    def _asked(self, data: Dataset, counts: Counter[str]) -> Dataset:
        """The queries that are labelled, in the order of their ids."""
        corpus_of(data)
        chosen = sorted(self.queries.chosen(data.queries, self.seed))
        texts = [qid for qid in chosen if data.queries[qid].strip()]
        counts["queries with an empty text"] += len(chosen) - len(texts)
        return data.with_queries(texts)

    def _first_stage(self, data: Dataset) -> Lists | None:
        """Where candidates come from; None where they come with the data."""
        if self.interval.given:
            return self.interval
        if data.candidates is not None:
            return None
        k = self.interval.to_rank
        return Lists(stages=(0.5 * BM25(k=k).minmax() + 0.5 * Dense("minilm-l6", k=k).minmax(),))

    def _pools(self, data: Dataset, found: Ranked, counts: Counter[str]) -> dict[str, list[int]]:
        """By query, the documents to label as they were found, best first."""
        corpus = corpus_of(data)
        miner = Miner(self.source, Library(corpus), found)
        pools = {}
        for qid in data.queries:
            excluded = corpus.ids.find(sorted(data.excluded.get(qid, ())))
            pool = miner.pool(Judged(qid, {}, frozenset(excluded[excluded >= 0].tolist())), self.interval)
            if len(pool) < 2:
                counts["queries with fewer than 2 candidates"] += 1
            else:
                pools[qid] = pool
        return pools

    def _labelled(
        self, qid: str, pool: Sequence[int], found: Ranked, graded: Ranked, ordered: Ranked, counts: Counter[str]
    ) -> tuple[Labelled, ...]:
        """A query's documents with their labels; none where a teacher ranks none of them."""
        teachers = {"pointwise": graded, "listwise": ordered}
        ranks: dict[str, dict[int, int]] = {}
        for what, teacher in teachers.items():
            ranks[what], n_missing = _ranks(teacher.codes(qid).tolist(), pool)
            if n_missing == len(pool):
                counts[f"queries of which the {what} teacher ranks no document"] += 1
                return ()
            counts[f"documents that the {what} teacher did not rank"] += n_missing
        graded_ranks, ordered_ranks = ranks["pointwise"], ranks["listwise"]
        fused = fused_labels([graded_ranks[c] for c in pool], [ordered_ranks[c] for c in pool], self.beta)
        labels = fused if self.top is None else rescaled(fused, self.top)
        places = {code: place for place, code in enumerate(found.codes(qid).tolist(), 1)}
        scores = {} if graded.kind in (ScoreKind.RANK, ScoreKind.NONE) else graded.scores(qid)
        return tuple(
            Labelled(c, places[c], graded_ranks[c], ordered_ranks[c], one, label, scores.get(c))
            for c, one, label in zip(pool, fused, labels, strict=True)
        )


def corpus_of(data: Dataset) -> TextSource:
    """The documents of a data set.

    Raises:
        DataError: it has none.
    """
    if data.corpus is None:
        raise DataError(f"{data.name} ({data.split}): has no documents to label; give a data set with a corpus")
    return data.corpus


def _given(data: Dataset) -> Ranked:
    """The lists that come with the data."""
    if data.candidates is None:
        raise DataError(f"{data.name} ({data.split}): has no candidates")
    have = set(data.candidates.qids)
    lists = data.candidates.subset([qid for qid in data.queries if qid in have])
    return Ranked(lists, corpus_of(data), {"candidates": "of the data set"})


def _shown(data: Dataset, pools: Mapping[str, Sequence[int]]) -> Dataset:
    """The queries with the documents to label as their candidates, in the order in which they were found."""
    offsets = np.zeros(len(pools) + 1, dtype=np.int64)
    np.cumsum([len(pool) for pool in pools.values()], out=offsets[1:])
    codes = np.array([code for pool in pools.values() for code in pool], dtype=np.int64)
    scores = np.array([len(pool) - i for pool in pools.values() for i in range(len(pool))], dtype=np.float64)
    asked = data.with_queries(list(pools))
    start = Ranking.start({qid: asked.queries[qid] for qid in pools}, corpus_of(data))
    return dataclasses.replace(asked, candidates=start.with_documents(offsets, codes, scores, ScoreKind.RANK))


def _ranks(order: Sequence[int], pool: Sequence[int]) -> tuple[dict[int, int], int]:
    """Ranks of the documents of `pool` from 1 in a teacher's order, and how many it lacks: these come last, as found.

    >>> _ranks([7, 9, 5], [5, 6, 7])
    ({7: 1, 5: 2, 6: 3}, 1)
    """
    wanted = set(pool)
    known = [code for code in order if code in wanted]
    missing = [code for code in pool if code not in set(known)]
    return {code: rank for rank, code in enumerate([*known, *missing], 1)}, len(missing)


def _without_hosts(provenance: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was asked, without when and where: equal lists are equal to the byte."""
    return {what: {n: told[n] for n in ("pipeline", "kind") if n in told} for what, told in provenance.items()}


# -- reading ------------------------------------------------------------


@dataclass(frozen=True)
class NamedLabels:
    """A labelling with what its file calls it."""

    name: str
    description: str
    labels: LabelledLists


def load_labels(path: str | Path) -> NamedLabels:
    """The labelling that a YAML file says.

    Raises:
        ConfigError: with file, line and key path.
    """
    found = labels_from(read_yaml(Path(path)))
    return found if found.name else dataclasses.replace(found, name=Path(path).stem)


def labels_from(tree: Tree) -> NamedLabels:
    """The labelling of a parsed file.

    >>> from rerank.yamlfile import parse_yaml
    >>> text = "labels: {data: stdlib, pointwise: {pipeline: bm25}, listwise: {pipeline: dense}, beta: 0.3}"
    >>> labels_from(parse_yaml(text)).labels.beta
    0.3

    Raises:
        ConfigError: with file, line and key path.
    """
    if not isinstance(tree.value, dict) or "labels" not in tree.value:
        raise tree.error((), "expected a mapping with 'labels' and perhaps 'name' and 'description'")
    told = told_by(tree, "a labelling", "labels")
    made = located(build(LabelledLists, told.body, tree, ("labels",)), tree, ("labels",))
    made = dataclasses.replace(
        made,
        data=beside(made.data, tree, ("labels", "data")),
        candidates=made.candidates and beside(made.candidates, tree, ("labels", "candidates")),
    )
    return NamedLabels(told.name, told.description, made)
