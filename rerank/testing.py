"""Checks of conventions, for stages of this package and of others: `check_stage` tells what a stage breaks.

A stage that passes can be written in YAML and compared, answers the same whatever else is in the batch, copes with
lists that are empty, tied or in any script, and leaves its input as it was.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rerank.config import build_stage, stage_tree
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.registry import ENTRY_POINTS, lookup, table
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Flow, Stage
from rerank.yamlfile import dump_yaml, parse_yaml


def sample_dataset() -> Dataset:
    """A small collection of what breaks stages: ties, equal and empty texts, many scripts, empty lists, exclusions.

    >>> len(sample_dataset().queries)
    6
    """
    texts = {
        "d2": "Black holes bend light.",
        "d10": "Black holes bend light.",
        "d1": "A white dwarf is the core that a star leaves behind.",
        "Zürich": "Die Sterne über Zürich: 星.",
        "星/1": "白色矮星は星の芯である。",
        "٣": "النجوم البيضاء 😀",
        "empty": "",
        "stop-words": "the of and",
        "long": "star " * 300,
        "last": "light, light, light of a star",
    }
    queries = {
        "q1": "black holes",
        "q2": "light of a star",
        "ü": "Zürich 星",
        "q10": "白色矮星 النجوم 😀",
        "nothing": "zebra",
        "blank": "",
    }
    lists = {
        "q1": {"d2": 2.0, "d10": 2.0, "d1": 2.0, "empty": 0.5},
        "q2": dict.fromkeys(texts, 1.0),
        "ü": {"Zürich": 7.25},
        "q10": {"星/1": 3.0, "٣": 3.0 - 1e-9, "last": 0.0},
        "blank": {"empty": 1.0, "long": 0.25},
    }
    corpus = MemoryCorpus(texts)
    return Dataset(
        "sample",
        queries,
        corpus,
        {"q1": {"d2": 2}, "q2": {"last": 1}},
        Ranking.of(lists, kind=ScoreKind.BM25, source=corpus),
        {"q1": frozenset({"d10"}), "q2": frozenset({"last", "unknown"})},
        query_columns={"original_query": {qid: f"originally {text}" for qid, text in queries.items()}},
    )


def check_stage(
    stage: Stage, data: Dataset | None = None, *, runtime: Runtime | None = None, tolerance: float = 0.0
) -> None:
    """Returns when `stage` keeps every convention.

    Args:
        stage: of a registered class.
        data: what it runs on; needs a corpus, and in its query columns what the stage needs.  By default
            `sample_dataset()`.
        runtime: by default one with a cache root of its own.
        tolerance: how far scores may differ between batches, relative where they exceed 1; 0 for whatever is no
            neural network.

    Raises:
        AssertionError: the stage breaks a convention; the message says which, and on what input.

    >>> from rerank.stage import Cut
    >>> check_stage(Cut(3))
    """
    check_value(stage)
    with contextlib.ExitStack() as stack:
        if runtime is None:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="rerank-check-"))
            runtime = Runtime(Path(home), progress=False)
        active = stack.enter_context(runtime)
        _Check(stage, active, tolerance).all(data or sample_dataset())


def check_value(stage: Stage) -> None:
    """Returns when `stage` is a value: frozen, comparable, hashable, and the same again from its repr and its YAML.

    Raises:
        AssertionError: it is not.

    >>> from rerank.stage import Cut
    >>> check_value(Cut(3) >> Cut(2))
    """
    kind = type(stage)
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise AssertionError(f"{kind.__qualname__} is not a frozen dataclass")
    try:
        hash(stage)
    except TypeError as error:
        raise AssertionError(f"{stage!r} is not hashable ({error}); fields must be, e.g. tuples") from error
    try:
        text = dump_yaml(stage_tree(stage))
    except ConfigError as error:
        raise AssertionError(f"{error}; register it under the entry-point group {ENTRY_POINTS}") from error
    tree = parse_yaml(text)
    again = build_stage(tree.value, tree, ())
    if dump_yaml(stage_tree(again)) != text:
        raise AssertionError(f"{stage!r}: written as YAML, read and written again it is another text")
    made = {
        "its YAML": again,
        "its copy": copy.deepcopy(stage),
        "its repr": eval(repr(stage), _namespace(stage)),  # noqa: S307 - a repr that was made right here
    }
    for source, other in made.items():
        if other != stage or hash(other) != hash(stage):
            raise AssertionError(f"{stage!r}: {source} gives {other!r}, which is not equal or has another hash")


def _namespace(stage: Stage) -> dict[str, type]:
    """The classes that a repr may name: those registered, and those of the stage's own values."""
    found = [lookup(name) for name in table()]
    pending: list[Any] = [stage]
    while pending:
        value = pending.pop()
        if isinstance(value, tuple):
            pending.extend(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found.append(type(value))
            pending.extend(getattr(value, field.name) for field in dataclasses.fields(value))
    return {kind.__name__: kind for kind in found}


@dataclass(frozen=True)
class _Check:
    """One stage in one runtime."""

    stage: Stage
    runtime: Runtime
    tolerance: float

    def all(self, data: Dataset) -> None:
        """Every convention of running."""
        if data.corpus is None:
            raise ValueError("check_stage needs a data set with a corpus")
        topics, lists = _inputs(data, data.corpus)
        for name, given in (("queries only", topics), ("lists", lists)):
            whole = self.run(given, name)
            self.check_batches(given, whole, name)
            self.check_codes(given, whole, data.corpus, name)
        self.check_exclusions(topics)
        self.run(lists.subset([]), "no queries")
        self.run(topics.subset([]), "no queries")
        qid = next(hits.qid for hits in lists if len(hits))
        self.run(lists.subset([qid]).cut(1), "one query with one document")
        one = MemoryCorpus(dict([next(_texts(data.corpus))]), data.corpus.language)
        with contextlib.suppress(DataError):  # a stage that reads lists from a file refuses a corpus that lacks them
            self.run(_recoded(topics.subset([qid]), one), "a corpus of one document")

    def run(self, given: Ranking, name: str) -> Ranking:
        """The stage's result on a copy that it cannot change, once it was found to be a result."""
        frozen, kept = _frozen(given), _frozen(given)
        result = self.runtime.rank(self.stage, frozen)
        if frozen != kept or not _same_columns(frozen, kept):
            self.fail(name, "changed its input")
        if result.qids != given.qids:
            self.fail(name, f"gave the queries {list(result.qids)} for {list(given.qids)}; each keeps its place")
        dataclasses.replace(result)  # looks at every invariant
        self.check_flow(given, result, name)
        return result

    def check_flow(self, given: Ranking, result: Ranking, name: str) -> None:
        """What `flow` foretells is what came."""
        after = self.stage.flow(Flow(frozenset({DOCUMENTS, *given.query_columns}), given.kind))
        if after.kind is not None and len(result.docs) and result.kind != after.kind:
            self.fail(name, f"gave {result.kind} scores where its flow says {after.kind}")
        lacking = after.has - {DOCUMENTS} - set(result.query_columns)
        if lacking:
            self.fail(name, f"left no query column {sorted(lacking)[0]!r}, which its flow says it gives")
        new = set(result.docnos().tolist()) - set(given.docnos().tolist())
        finds = any(DOCUMENTS in part.gives for part in self.stage.walk() if not part.parts())
        if new and not finds:
            self.fail(name, f"gave the document {sorted(new)[0]!r}, which it was not given")

    def check_batches(self, given: Ranking, whole: Ranking, name: str) -> None:
        """The rest of the batch, and its order, change nothing."""
        self.same(whole, self.run(given, name), f"{name}, a second time")
        turned = list(reversed(given.qids))
        self.same(whole.subset(turned), self.run(given.subset(turned), name), f"{name}, in the reverse order")
        for qid in given.qids:
            self.same(whole.subset([qid]), self.run(given.subset([qid]), name), f"{name}, query {qid!r} alone")

    def check_codes(self, given: Ranking, whole: Ranking, corpus: TextSource, name: str) -> None:
        """The same documents in another order of the corpus change nothing."""
        texts = dict(_texts(corpus))
        for order in (texts, dict(reversed(texts.items()))):
            again = self.run(_recoded(given, MemoryCorpus(order, corpus.language)), name)
            self.same(whole, again, f"{name}, over the same corpus in another order")

    def check_exclusions(self, topics: Ranking) -> None:
        """What finds documents does not find those that a query excludes."""
        for hits, excluded in zip(self.run(topics, "queries only"), topics.query_columns["excluded"], strict=True):
            found = excluded.intersection(hits.docnos)
            if found:
                self.fail("queries only", f"gave {sorted(found)[0]!r}, which query {hits.qid!r} excludes")

    def same(self, one: Ranking, two: Ranking, name: str) -> None:
        """Equal lists; with a tolerance, equal documents with scores as near."""
        if self.tolerance == 0:
            if one != two:
                self.fail(name, f"gave other lists: {two.to_dict()}, before {one.to_dict()}")
            return
        before, after = one.to_dict(), two.to_dict()
        for qid, hits in before.items():
            if hits.keys() != after[qid].keys():
                self.fail(name, f"gave other documents for query {qid!r}")
            for docno, score in hits.items():
                if abs(score - after[qid][docno]) > self.tolerance * max(1.0, abs(score)):
                    self.fail(name, f"gave {docno!r} the score {after[qid][docno]} for query {qid!r}, before {score}")

    def fail(self, name: str, what: str) -> None:
        raise AssertionError(f"{self.stage!r} on {name}: {what}")


def _inputs(data: Dataset, corpus: TextSource) -> tuple[Ranking, Ranking]:
    """The queries without documents, and with lists: the candidates, or a list of all documents."""
    topics = dataclasses.replace(data, candidates=None).topics()
    if "excluded" not in topics.query_columns:
        none = np.full(len(topics), frozenset(), dtype=object)
        topics = topics.with_query_column("excluded", none)
    if data.candidates is not None:
        hits, kind = data.candidates.to_dict(), data.candidates.kind
    else:
        every = {docno: -float(place) for place, (docno, _) in enumerate(_texts(corpus))}
        hits, kind = dict.fromkeys(topics.qids, every), ScoreKind.UNKNOWN
    lists = Ranking.of({qid: hits.get(qid, {}) for qid in topics.qids}, data.queries, kind, corpus)
    return topics, dataclasses.replace(lists, query_columns=topics.query_columns)


def _texts(corpus: TextSource) -> Iterator[tuple[str, str]]:
    codes = np.arange(len(corpus.ids))
    return zip(corpus.ids.take(codes).tolist(), corpus.texts(codes), strict=True)


def _recoded(given: Ranking, corpus: MemoryCorpus) -> Ranking:
    """The same lists over another corpus."""
    texts = dict(zip(given.qids, given.queries, strict=True))
    lists = Ranking.of(given.to_dict(), texts, given.kind, corpus)
    return dataclasses.replace(lists, query_columns=given.query_columns)


def _frozen(given: Ranking) -> Ranking:
    """A copy whose arrays cannot be written."""
    copied = copy.copy(given)
    arrays = {name: getattr(given, name).copy() for name in ("offsets", "docs", "scores")}
    columns = {name: column.copy() for name, column in given.columns.items()}
    query_columns = {name: column.copy() for name, column in given.query_columns.items()}
    for array in (*arrays.values(), *columns.values(), *query_columns.values()):
        array.flags.writeable = False
    return dataclasses.replace(copied, **arrays, columns=columns, query_columns=query_columns)


def _same_columns(one: Ranking, two: Ranking) -> bool:
    for mine, theirs in ((one.columns, two.columns), (one.query_columns, two.query_columns)):
        if mine.keys() != theirs.keys() or any(mine[name].tolist() != theirs[name].tolist() for name in mine):
            return False
    return True
