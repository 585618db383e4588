"""What groups are made from, as it is written in a recipe: data set, queries, positives, negatives, teacher.

data: beir/nfcorpus
split: train
positives: {groups: 4}
negatives: {pipeline: bm25, to_rank: 100, random: 1}
sizes: [4, 6, 8]
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rerank.config import FilePath, build
from rerank.data.dataset import Dataset
from rerank.data.lines import read_lines
from rerank.errors import ConfigError, DataError
from rerank.ready import pipeline_path
from rerank.rules.rule import at_least
from rerank.train.lists import Lists
from rerank.yamlfile import Key, Tree, read_yaml

T = TypeVar("T")
GROUPS = "groups.yaml"
"""The file in which a folder says what groups it gives."""


@dataclass(frozen=True)
class Queries:
    """Which queries of a data set are learned from.

    >>> Queries(hold_out=1).chosen(["q1", "q2", "q3"], seed=0)
    ['q1', 'q2']

    Raises:
        ConfigError: a negative number of queries.
    """

    k: int | None = None
    """A seeded sample of so many; default all."""
    hold_out: int = 0
    """So many are never learned from, whatever the seed: `held_out` gives them, for tuning and for checkpoints."""
    exclude: FilePath | None = None
    """A file whose lines begin with ids of queries that are not learned from: a list of ids, topics or judgments."""

    def __post_init__(self) -> None:
        at_least("queries", 1, k=self.k)
        at_least("queries", 0, hold_out=self.hold_out)

    def chosen(self, qids: Iterable[str], seed: int) -> list[str]:
        """The ids of the queries to learn from, in an order that depends on the seed only.

        Raises:
            DataError: none is left, or none of those to exclude is there.
        """
        given = set(qids)
        left = given - set(_first(given, "held out", self.hold_out))
        if self.exclude is not None:
            excluded = _listed_ids(Path(self.exclude))
            if not excluded & given:
                some = next(iter(sorted(excluded)), "")
                raise DataError(
                    f"{self.exclude}: none of its {len(excluded):,} query ids, e.g. {some!r}, is among the "
                    f"{len(given):,} queries, e.g. {min(given, default='')!r}; give the ids of this data set"
                )
            left -= excluded
        if not left:
            raise DataError(f"of {len(given):,} queries none is left to learn from; hold out or exclude fewer")
        return _first(left, f"sample {seed}", len(left) if self.k is None else self.k)


@dataclass(frozen=True)
class Positives:
    """The relevant documents of a group.

    Raises:
        ConfigError: a number below 1.
    """

    min_grade: int = 1
    """The grade from which on a document is relevant: a positive, and never a negative."""
    k: int = 1
    """How many a group has at most."""
    groups: int = 1
    """How many groups a query gives at most; no two of them share a positive."""
    ranked: bool = False
    """Only those that the lists of the negatives hold, down to their `to_rank`: what a reranker of these lists meets.
    """

    def __post_init__(self) -> None:
        at_least("positives", 1, min_grade=self.min_grade, k=self.k, groups=self.groups)


@dataclass(frozen=True)
class Margin(Lists):
    """How far below a group's positive a mined negative must score; what scores higher may well be relevant.

    Where neither pipeline nor run is given, the scores are those of the lists that are mined.  Of several positives the
    lowest counts; a positive without a score lies below all.

    Source: TopK-PercPos of Moreira et al. 2024 (NV-Retriever, arXiv:2407.15831); the share is taken of the score's
    size, so that it means the same where scores are negative.
    """

    share: float = 0.05
    """The share of the positive's score that lies between, 0 to 1; 0.05 leaves what scores less than 95 % of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ConfigError(f"margin: share is {self.share}, a number from 0 to 1 is needed")

    def limit(self, positive: float) -> float:
        """What a negative must score less than.

        >>> Margin(share=0.25).limit(8.0), Margin(share=0.25).limit(-8.0)
        (6.0, -10.0)
        """
        return positive - self.share * abs(positive)


@dataclass(frozen=True)
class Negatives(Lists):
    """The other documents of a group: mined from the ranks of lists, random ones where lists have too few.

    Lists come from a pipeline, a run, or with the data (`candidates`).  Where there are none, all negatives are random,
    or with `only_judged` all come from the judgments.  Excluded documents, judged positives, texts that a positive
    has too and empty texts are never taken; grades below that of a positive are kept as labels.

    Raises:
        ConfigError: ranks or numbers that make no sense.
    """

    from_rank: int = 1
    """The first rank that is mined, 1 for the best."""
    to_rank: int = 100
    """The last one."""
    pick: Literal["random", "top"] = "random"
    """Which of the documents that may be taken: a seeded sample, or those ranked highest."""
    random: int = 0
    """How many of a group's negatives are random documents of the corpus, from outside the lists down to `to_rank`."""
    only_judged: bool = False
    """Only documents that somebody judged, and none at random."""
    margin: Margin | None = None
    """A filter by scores; default none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("negatives", 1, from_rank=self.from_rank, to_rank=self.to_rank)
        at_least("negatives", 0, random=self.random)
        if self.to_rank < self.from_rank:
            raise ConfigError(f"negatives: to_rank is {self.to_rank}, before from_rank {self.from_rank}")
        if self.random and self.only_judged:
            raise ConfigError(f"negatives: random is {self.random}, but only_judged leaves no place for random ones")


@dataclass(frozen=True)
class Interval(Lists):
    """Sub-lists of one longer list, at equal steps, in place of positives and negatives.

    A query's documents are the first of its list and some drawn from further down, put in the order of their labels,
    best first (equal ones by rank).  A group of n takes n of them at a step and from a start that are drawn.

    Source: GroupRank (2025, arXiv:2511.11653v3), multi-scale data synthesis: 10 + 40 documents down to rank
    200, sub-lists of 5 to 20; its published examples have steps of 5 and of 1.

    Raises:
        ConfigError: ranks or numbers that make no sense.
    """

    first: int = 10
    """How many documents from the top of the list."""
    drawn: int = 40
    """How many from the ranks after these, at random."""
    to_rank: int = 200
    """The last rank that these may have."""
    groups: int = 1
    """How many groups a query gives at most, all different."""
    only_judged: bool = False
    """Only documents that somebody judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("interval", 1, to_rank=self.to_rank, groups=self.groups)
        at_least("interval", 0, first=self.first, drawn=self.drawn)
        if self.first + self.drawn < 2 or self.to_rank < self.first + self.drawn:
            raise ConfigError(
                f"interval: first {self.first} and drawn {self.drawn} must be 2 documents or more, and lie within "
                f"to_rank {self.to_rank}"
            )


@dataclass(frozen=True)
class Teacher(Lists):
    """Whose scores are the labels: a run's, or those that a pipeline gives to a group's documents.

    A document that a query's list lacks gets the lowest score of that list, and is counted.

    Raises:
        ConfigError: neither pipeline nor run.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.given:
            raise ConfigError("teacher: give a pipeline, stages or a run, whose scores are learned")


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """What groups are made from: one data set, and how its queries' documents are chosen and labelled.

    >>> GroupSource(data="beir/nfcorpus", negatives=Negatives(pipeline="bm25"), sizes=(4, 8)).label
    'beir/nfcorpus (train)'

    Raises:
        ConfigError: parts that do not fit.
    """

    data: str
    """The data set: an embedded one, a folder, an id of ir_datasets."""
    split: str = "train"
    """Which of its queries."""
    candidates: str | None = None
    """Lists that come with the data, by name, or a run file: mined where the negatives name no others."""
    queries: Queries = Queries()
    scale: tuple[int, int] | None = None
    """The lowest and highest grade that the judgments may have; others are an error.  Default 0 and whatever comes; a
    grade below 0, where allowed, is a label of 0."""
    positives: Positives = Positives()
    negatives: Negatives = Negatives()
    interval: Interval | None = None
    """Groups from one longer list, in place of `positives` and `negatives`."""
    teacher: Teacher | None = None
    """Whose scores are the labels, in place of grades."""
    sizes: tuple[int, ...] = (8,)
    """How many documents a group has; of several sizes one is drawn for each group."""
    weights: tuple[float, ...] = ()
    """How often each size is drawn, relative to the others; default equally."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2:
            raise ConfigError(f"groups: sizes are {list(self.sizes)}; each needs 2 documents or more")
        if len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(f"groups: sizes {list(self.sizes)} name one twice; say how often it comes by weights")
        if self.weights and len(self.weights) != len(self.sizes):
            raise ConfigError(f"groups: {len(self.weights)} weights for {len(self.sizes)} sizes")
        if self.weights and not (all(0 <= w < math.inf for w in self.weights) and sum(self.weights) > 0):
            raise ConfigError(f"groups: weights are {list(self.weights)}; numbers of 0 or more, not all 0, are needed")
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ConfigError(f"groups: the scale {list(self.scale)} is the wrong way round")
        if self.interval is not None and (self.positives, self.negatives) != (Positives(), Negatives()):
            raise ConfigError("groups: interval takes the place of positives and negatives; leave them out")

    @property
    def label(self) -> str:
        """The data set's name and split, for messages."""
        return f"{self.data} ({self.split})"

    def content(self) -> dict[str, Any]:
        """Plain data that is equal for sources that say the same; files and pipelines count by what they hold.

        Where the data is, and under which name, is left out: the data set's own fingerprint tells what it is.
        """
        return {name: value for name, value in _content(self).items() if name not in ("data", "split", "candidates")}


def sources_from(tree: Tree, key: Key, value: Any) -> tuple[GroupSource, ...]:
    """The sources at `key` of a parsed file: a mapping with the fields of `GroupSource`, or a list of such.

    In place of a mapping may stand a folder that says itself what groups it gives, as `rerank synthesize labels` writes
    them.  Paths of data sets, pipelines, runs and lists are relative to the file.

    >>> from rerank.yamlfile import parse_yaml
    >>> tree = parse_yaml("{data: stdlib, positives: {groups: 2}, negatives: {pipeline: bm25}}")
    >>> sources_from(tree, (), tree.value)[0].negatives.to_rank
    100

    Raises:
        ConfigError: with file, line and key path.
        PipelineError: stages that do not fit.
    """
    if isinstance(value, list) and value:
        return tuple(one for place, item in enumerate(value) for one in _sources(item, tree, (*key, place)))
    return _sources(value, tree, key)


def held_out(data: Dataset, n: int) -> Dataset:
    """The `n` queries of `data` that `hold_out: n` keeps from training, as a data set of their own.

    Raises:
        DataError: it has fewer queries.
    """
    if not 0 < n <= len(data.queries):
        raise DataError(
            f"{data.name} ({data.split}): {n:,} held-out queries of {len(data.queries):,}; choose 1 or more"
        )
    out = set(_first(data.queries, "held out", n))
    return data.with_queries([qid for qid in data.queries if qid in out])


def _first(qids: Iterable[str], purpose: str, n: int) -> list[str]:
    """The first `n` ids in the order of a hash: each id has its place whatever other ids there are."""

    def place(qid: str) -> bytes:
        return hashlib.sha256(f"{purpose}\0{qid}".encode("utf-8", "surrogatepass")).digest()

    return sorted(qids, key=place)[:n]


def _listed_ids(path: Path) -> set[str]:
    """The first column of a file's lines: what stands before a tab, else before a blank."""
    return {(line.partition("\t")[0] if "\t" in line else line.split()[0]).strip() for _, line in read_lines(path)} - {
        ""
    }


def _content(value: Any) -> Any:
    if isinstance(value, Lists):
        fields = {field.name for field in dataclasses.fields(value)} - {
            field.name for field in dataclasses.fields(Lists)
        }
        return {"lists": value.content(), **{name: _content(getattr(value, name)) for name in sorted(fields)}}
    if isinstance(value, Queries):
        excluded = None if value.exclude is None else sorted(_listed_ids(Path(value.exclude)))
        return {**dataclasses.asdict(value), "exclude": excluded}
    if dataclasses.is_dataclass(value):
        return {field.name: _content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_content(item) for item in value] if isinstance(value, tuple) else value


# -- reading ----------------------------------------------------------------


def _sources(value: Any, tree: Tree, key: Key) -> tuple[GroupSource, ...]:
    if not isinstance(value, str):
        return (_source(value, tree, key),)
    file = Path(beside(value, tree, key)) / GROUPS
    if not file.is_file():
        raise tree.error(
            key,
            f"{value!r} is no folder that says what groups it gives ({GROUPS}); give one that rerank synthesize labels "
            "wrote, or a mapping with 'data'",
        )
    said = read_yaml(file)
    return (_source(said.value, said, ()),)


def _source(value: Any, tree: Tree, key: Key) -> GroupSource:
    source = located(build(GroupSource, value, tree, key), tree, key)
    return dataclasses.replace(
        source,
        data=beside(source.data, tree, (*key, "data")),
        candidates=source.candidates and beside(source.candidates, tree, (*key, "candidates")),
    )


def located(value: T, tree: Tree, key: Key) -> T:
    """The same with the paths of pipeline files made absolute, once each was found."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        item, at = getattr(value, field.name), (*key, field.name)
        if isinstance(value, Lists) and field.name == "pipeline" and item:
            name = beside(item, tree, at) if Path(item).suffix in (".yaml", ".yml") else item
            try:
                pipeline_path(name)
            except ConfigError as error:
                raise type(error)(f"{tree.place(at)}: {error}") from error
            changes[field.name] = name
        elif isinstance(item, Lists | Negatives):
            changes[field.name] = located(item, tree, at)
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def beside(name: str, tree: Tree, key: Key) -> str:
    """A path made absolute, where the name is one; a relative one must stay inside the folder of the file.

    >>> from rerank.yamlfile import parse_yaml
    >>> tree = parse_yaml("data: ./mine", folder=Path("/recipes"))
    >>> beside("./mine", tree, ("data",)), beside("beir/nfcorpus", tree, ("data",))
    ('/recipes/mine', 'beir/nfcorpus')

    Raises:
        ConfigError: it leaves the folder; with file, line and key path.
    """
    if not name.startswith((".", "/", "~")) and not (tree.folder / name).exists():
        return name
    path = Path(name).expanduser()
    if path.is_absolute():
        return str(path)
    resolved = (tree.folder / path).resolve()
    if not resolved.is_relative_to(tree.folder):
        raise tree.error(key, f"the path {name!r} leaves the file's folder {tree.folder}; write it as an absolute path")
    return str(resolved)
