"""Training groups: for a query, a few documents with labels, made of judgments, runs and engines, and kept on disk.

An artifact of groups holds `groups.jsonl` (one object a line: query, document ids, labels, and which texts), the
texts themselves, each once, and in its manifest what was counted.  It is found again by what it was made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from rerank.artifact import Draft, find_or_build, fingerprint, open_artifact
from rerank.data.corpus import Strings, StringWriter
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.errors import CorruptArtifactError, DataError
from rerank.runtime import Runtime
from rerank.train.card import GroupsCard, SourceCard
from rerank.train.drawing import Drawing
from rerank.train.mining import Drawn
from rerank.train.sources import GroupSource

logger = logging.getLogger(__name__)

KIND = "groups"
VERSION = 2
_TEXTS_AT_ONCE = 4096


class Shown(NamedTuple):
    """What a prompt shows at once."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    answer: str = ""
    """What is to be written, where that is learnt."""


class TrainingGroup(NamedTuple):
    """A query with documents to tell apart."""

    qid: str
    query: str
    docnos: tuple[str, ...]
    """In a seeded random order."""
    documents: tuple[str, ...]
    """Their texts, title and body joined by a blank."""
    labels: tuple[float, ...]
    """Grades, 0 where nobody judged, or a teacher's scores; never all equal."""
    related: frozenset[str] = frozenset()
    """Ids of documents that are judged relevant to the query or excluded for it, and not shown."""

    def shown(self, *, many: bool) -> list[Shown]:
        """What prompts show at once: all documents, or each by itself.

        >>> group = TrainingGroup("q", "stars", ("d1", "d2"), ("dwarfs", "giants"), (1.0, 0.0))
        >>> [each.labels for each in group.shown(many=True)], [each.labels for each in group.shown(many=False)]
        ([(1.0, 0.0)], [(1.0,), (0.0,)])
        """
        if many:
            return [Shown(self.query, self.documents, self.labels)]
        parts = zip(self.documents, self.labels, strict=True)
        return [Shown(self.query, (document,), (label,)) for document, label in parts]


class _Row(NamedTuple):
    """A group on disk."""

    source: int
    qid: str
    query: str
    docnos: tuple[str, ...]
    texts: tuple[int, ...]
    """Which of the stored texts."""
    labels: tuple[float, ...]
    related: tuple[str, ...]


class Groups(Sequence[TrainingGroup]):
    """Training groups on disk, in a seeded order that mixes sources and queries; pickled by reference.

    Raises:
        ArtifactError: the folder holds no groups, or not whole ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = open_artifact(folder, KIND, VERSION)
        self.fingerprint = manifest.fingerprint
        """SHA-256 of all that the groups were made from."""
        try:
            self._cards = tuple(SourceCard(**card) for card in manifest.config["sources"])
            with (folder / "groups.jsonl").open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
                self._rows = [_row(json.loads(line)) for line in file]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{folder}: cannot be read as groups ({type(error).__name__}: {error}); delete the folder"
            raise CorruptArtifactError(message) from error
        self._texts = Strings(folder, "texts")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TrainingGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingGroup]: ...
    def __getitem__(self, index: int | slice) -> TrainingGroup | list[TrainingGroup]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = self._rows[index]
        texts = tuple(map(self._texts.at, row.texts))
        return TrainingGroup(row.qid, row.query, row.docnos, texts, row.labels, frozenset(row.related))

    def __iter__(self) -> Iterator[TrainingGroup]:
        return (self[place] for place in range(len(self)))

    def source(self, index: int) -> int:
        """Which source a group is from: its place in `card().sources`."""
        return self._rows[index].source

    def card(self) -> GroupsCard:
        """What the groups hold, in numbers."""
        queries = sum(card.queries for card in self._cards)
        documents = sum(card.documents for card in self._cards)
        return GroupsCard(self.fingerprint, len(self), queries, documents, self._cards)

    def __reduce__(self) -> tuple[type[Groups], tuple[Path]]:
        return Groups, (self.folder,)

    def __repr__(self) -> str:
        return f"Groups({len(self):,} groups, {self.folder})"


def build_groups(
    sources: GroupSource | Sequence[GroupSource],
    runtime: Runtime | None = None,
    *,
    data: Mapping[str, Dataset] | None = None,
) -> Groups:
    """The groups that `sources` describe, from the runtime's home where they were made before.

    The same sources give the same groups, whatever the order of queries in the data sets.

    >>> import tempfile
    >>> from rerank.data.corpus import MemoryCorpus
    >>> from rerank.train.sources import GroupSource
    >>> corpus = MemoryCorpus({"d1": "white dwarfs", "d2": "black holes", "d3": "red giants"})
    >>> toy = Dataset("toy", {"q1": "dying stars"}, corpus, {"q1": {"d1": 2}})
    >>> with Runtime(Path(tempfile.mkdtemp()), progress=False) as runtime:
    ...     groups = build_groups(GroupSource(data="toy", sizes=(2,)), runtime, data={"toy": toy})
    >>> len(groups), groups[0].query, sorted(groups[0].labels)
    (1, 'dying stars', [0.0, 2.0])

    Args:
        sources: one or several, whose groups are mixed.
        runtime: its home keeps the groups; default that of the enclosing `with`, else a new one.
        data: data sets that are at hand, by the names that sources call them; others are loaded.

    Raises:
        DataError: a data set without documents, judgments or positives, grades outside the scale, runs that do not fit.
        ConfigError: a pipeline that cannot be built, or lists whose scores cannot be compared.
    """
    given = (sources,) if isinstance(sources, GroupSource) else tuple(sources)
    if not given:
        raise DataError("no source of groups was given; give at least one data set")
    with contextlib.ExitStack() as stack:
        active = runtime if runtime is not None else stack.enter_context(Runtime.current_or_new())
        datasets = [_dataset(source, data or {}, active) for source in given]
        key = _key(given, datasets)
        folder = active.home / "groups" / key[:32]

        def build(draft: Draft) -> None:
            logger.info("groups %s: drawing", key[:12])
            _write(draft, [Drawing(*both, active) for both in zip(given, datasets, strict=True)])

        find_or_build(folder, KIND, VERSION, key, build)
    return Groups(folder)


def _key(sources: Sequence[GroupSource], datasets: Sequence[Dataset]) -> str:
    from rerank import __version__

    parts = [[source.content(), data.fingerprint] for source, data in zip(sources, datasets, strict=True)]
    return fingerprint([__version__, VERSION, parts])


def _dataset(source: GroupSource, at_hand: Mapping[str, Dataset], runtime: Runtime) -> Dataset:
    if source.data in at_hand:
        return at_hand[source.data]
    return load(source.data, source.split, runtime=runtime, candidates=source.candidates)


# -- on disk ----------------------------------------------------------------


def _write(draft: Draft, drawings: Sequence[Drawing]) -> None:
    rows: list[tuple[bytes, int, Drawn, tuple[int, ...]]] = []
    cards = []
    with StringWriter(draft.path, "texts") as texts:
        n_texts = 0
        for number, drawing in enumerate(drawings):
            groups = drawing.draw()
            codes = np.array(sorted({code for group in groups for code in group.codes}), dtype=np.int64)
            for start in range(0, len(codes), _TEXTS_AT_ONCE):
                for text in drawing.corpus.texts(codes[start : start + _TEXTS_AT_ONCE]):
                    texts.add(text.encode("utf-8", "surrogatepass"))
            places = dict(zip(codes.tolist(), range(n_texts, n_texts + len(codes)), strict=True))
            n_texts += len(codes)
            rows += [(_place(drawing, g), number, g, tuple(places[code] for code in g.codes)) for g in groups]
            cards.append(dataclasses.asdict(drawing.card(groups)))
    rows.sort()
    with (draft.path / "groups.jsonl").open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for _, number, group, some in rows:
            drawing = drawings[number]
            docnos = drawing.corpus.ids.take(np.array(group.codes)).tolist()
            query, related = drawing.data.queries[group.qid], drawing.related(group)
            row = _Row(number, group.qid, query, docnos, some, group.labels, related)
            file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
    draft.config["sources"] = cards
    draft.config["made_from"] = [drawing.source.content() for drawing in drawings]


def _place(drawing: Drawing, group: Drawn) -> bytes:
    """Where a group stands among all: by a hash of what it is."""
    docnos = drawing.corpus.ids.take(np.array(group.codes)).tolist()
    what = "\0".join([str(drawing.source.seed), group.qid, *docnos])
    return hashlib.sha256(what.encode("utf-8", "surrogatepass")).digest()


def _row(record: Mapping[str, Any]) -> _Row:
    docnos, texts, labels = (tuple(record[name]) for name in ("docnos", "texts", "labels"))
    if not len(docnos) == len(texts) == len(labels):
        raise ValueError(f"{len(docnos)} documents with {len(texts)} texts and {len(labels)} labels")
    return _Row(record["source"], record["qid"], record["query"], docnos, texts, labels, tuple(record["related"]))
