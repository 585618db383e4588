"""Which documents make a group: positives and negatives of one query, or sub-lists of one longer list.

Documents are known by their codes in the corpus.  Nothing here depends on the codes' values or on other queries: what
is drawn depends on the seed, the query's id, the ranks of lists and the ids of documents.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import repeat
from random import Random
from typing import NamedTuple

import numpy as np

from rerank.errors import DataError
from rerank.ranking import ScoreKind, TextSource
from rerank.rules.rule import seeded
from rerank.train.lists import Ranked
from rerank.train.sources import GroupSource, Interval, Margin

_UNSCORED = (ScoreKind.NONE, ScoreKind.RANK)
_TEXTS = 50_000
"""Texts that are kept at hand: a document is looked at for several queries."""


class Drawn(NamedTuple):
    """A group before its texts are looked up: documents and labels, in no order that tells anything."""

    qid: str
    codes: tuple[int, ...]
    labels: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """One query and what is known of its documents."""

    qid: str
    grades: Mapping[int, int]
    """Of the documents that are judged, in the corpus and not excluded."""
    excluded: frozenset[int]
    lost: int = 0
    """How many judged documents the corpus lacks."""

    def label(self, code: int) -> float:
        """The document's grade as a label: 0 where it has none, or one below 0."""
        return float(max(0, self.grades.get(code, 0)))


class Library:
    """The documents of a corpus, as a miner needs them."""

    def __init__(self, corpus: TextSource) -> None:
        self.corpus = corpus
        self.text: Callable[[int], str] = lru_cache(_TEXTS)(self._text)
        """A document's text, with single blanks for all white space."""

    def __len__(self) -> int:
        return len(self.corpus.ids)

    def _text(self, code: int) -> str:
        return " ".join(self.corpus.texts(np.array([code]))[0].split())

    @cached_property
    def _by_id(self) -> list[int]:
        keys = self.corpus.ids.sort_keys(np.arange(len(self)))
        codes: list[int] = np.argsort(keys).tolist()
        return codes

    def in_order(self, codes: Iterable[int]) -> list[int]:
        """Codes sorted by the documents' ids."""
        some = np.array(list(codes), dtype=np.int64)
        ordered: list[int] = some[np.argsort(self.corpus.ids.sort_keys(some))].tolist() if len(some) else []
        return ordered

    def drawn(self, random: Random) -> Iterator[int]:
        """All documents in a random order, of which only as many are put in order as are taken."""
        n, moved = len(self), dict[int, int]()
        for place in range(n):
            other = random.randrange(place, n)
            here, there = moved.get(place, place), moved.get(other, other)
            moved[other] = here
            yield self._by_id[there]


@dataclass
class Miner:
    """Draws the groups of one source, query by query.

    Args:
        source: how they are drawn.
        library: the documents.
        lists: what is mined; None where there are no lists.
        scores: what the margin compares; None for the lists' own scores.
        labels: the teacher's scores of all that may be drawn; None where grades are the labels.

    Raises:
        DataError: the source wants lists, and there are none.
    """

    source: GroupSource
    library: Library
    lists: Ranked | None = None
    scores: Ranked | None = None
    labels: Ranked | None = None
    counts: Counter[str] = field(default_factory=Counter)
    """What happened on the way, such as negatives that a filter took out."""

    def __post_init__(self) -> None:
        source = self.source
        if self.lists is None and (source.interval is not None or source.positives.ranked):
            what = "an interval is taken from" if source.interval is not None else "ranked positives are found in"
            raise DataError(f"{source.label}: there are no lists that {what}; give a pipeline, a run or candidates")

    @property
    def compared(self) -> Ranked:
        """The scores that a margin compares.

        Raises:
            DataError: there are none, or they are ranks.
        """
        found = self.scores or self.lists
        if found is None or found.kind in _UNSCORED:
            kind = "there are none" if found is None else f"these are {found.kind.value} scores"
            raise DataError(
                f"{self.source.label}: a margin compares scores, but {kind}; give the margin a pipeline that scores "
                "(a stage rerank does so where its k is null)"
            )
        return found

    # -- positives and negatives ------------------------------------------------------------

    def judged_groups(self, query: Judged) -> list[Drawn] | str:
        """The groups of a query, or why it gives none."""
        wanted = self.source.positives
        known = [code for code, grade in query.grades.items() if grade >= wanted.min_grade]
        if not known:
            return f"no positive (grade {wanted.min_grade} or more)" + (" in the corpus" if query.lost else "")
        texts = {self.library.text(code) for code in known}
        ranked = self._ranked(query) if wanted.ranked else None
        positives = [code for code in known if self.library.text(code) and (ranked is None or code in ranked)]
        if not positives:
            return "no positive in the lists" if ranked is not None else "no positive with a text"
        positives = self.library.in_order(positives)
        self._random("positives", query).shuffle(positives)
        band = [code for code in self._band(query) if query.grades.get(code, 0) < wanted.min_grade]
        groups = []
        for number in range(min(wanted.groups, -(-len(positives) // wanted.k))):
            chosen = positives[number * wanted.k : (number + 1) * wanted.k]
            groups.append(self._filled(query, chosen, band, texts, number))
        kept = [group for group in groups if len(set(group.labels)) > 1]
        self.counts["groups without negatives"] += len(groups) - len(kept)
        return kept or "no negative"

    def may_be_drawn(self, query: Judged) -> list[int]:
        """What is mined for a query, with its positives: the documents whose scores a margin compares."""
        least = self.source.positives.min_grade
        return list(dict.fromkeys([*self._band(query), *(c for c, grade in query.grades.items() if grade >= least)]))

    def _ranked(self, query: Judged) -> set[int]:
        if self.lists is None:
            return set()
        return set(self.lists.codes(query.qid)[: self.source.negatives.to_rank].tolist())

    def _band(self, query: Judged) -> list[int]:
        """What may be mined for a query, best first; positives among it."""
        negatives = self.source.negatives
        if self.lists is None:
            return self.library.in_order(query.grades) if negatives.only_judged else []
        codes = self.lists.codes(query.qid)[negatives.from_rank - 1 : negatives.to_rank].tolist()
        if negatives.only_judged:
            return [code for code in codes if code in query.grades]
        return [code for code in codes if code not in query.excluded]

    def _filled(self, query: Judged, positives: list[int], band: list[int], texts: set[str], number: int) -> Drawn:
        """A group of some positives and as many negatives as it has room for."""
        random, negatives = self._random("negatives", query, number), self.source.negatives
        size = self._size(random)
        chosen = positives[: size - 1]
        mined = self._below(negatives.margin, query, chosen, band) if negatives.margin is not None else list(band)
        if negatives.pick == "random":
            random.shuffle(mined)
        rest = iter(mined)
        chosen += self._usable(rest, size - len(chosen) - negatives.random, texts)
        if not negatives.only_judged and len(chosen) < size:
            barred = self._not_random(query)
            others = (code for code in self.library.drawn(random) if code not in barred)
            taken = self._usable(others, size - len(chosen), texts)
            chosen += [*taken, *self._usable(rest, size - len(chosen) - len(taken), texts)]
            if self.lists is not None:
                self.counts["random negatives in place of mined ones"] += max(0, len(taken) - negatives.random)
        self.counts["groups smaller than drawn"] += len(chosen) < size
        labels = {code: query.label(code) for code in chosen}
        return self._shuffled(query, chosen, labels, number)

    def _not_random(self, query: Judged) -> set[int]:
        """What no random negative is: a positive, excluded, or in the list down to where it is mined."""
        least = self.source.positives.min_grade
        return {*query.excluded, *self._ranked(query), *(c for c, grade in query.grades.items() if grade >= least)}

    def _usable(self, codes: Iterable[int], n: int, texts: set[str]) -> list[int]:
        """The first `n` documents that have a text which no positive has."""
        taken: list[int] = []
        for code in codes if n > 0 else ():
            text = self.library.text(code)
            if text and text not in texts:
                taken.append(code)
                if len(taken) == n:
                    break
            else:
                self.counts["negatives with the text of a positive" if text else "negatives without text"] += 1
        return taken

    def _below(self, margin: Margin, query: Judged, positives: list[int], band: list[int]) -> list[int]:
        """The documents that score far enough below the group's positives."""
        scores = self.compared.scores(query.qid)
        known = [scores[code] for code in positives if code in scores]
        if len(known) < len(positives):
            self.counts["groups with a positive that the margin has no score of"] += 1
            return []
        limit = margin.limit(min(known))
        kept = [code for code in band if code in scores and scores[code] < limit]
        self.counts["negatives that the margin took out"] += len(band) - len(kept)
        return kept

    # -- intervals ------------------------------------------------------------

    def pool(self, query: Judged, interval: Interval) -> list[int]:
        """The longer list of a query, best first: the first of its list, and some from the ranks after these."""
        codes = self.lists.codes(query.qid)[: interval.to_rank].tolist() if self.lists is not None else []
        codes = [code for code in codes if code not in query.excluded]
        if interval.only_judged:
            codes = [code for code in codes if code in query.grades]
        rest = range(interval.first, len(codes))
        drawn = self._random("pool", query).sample(rest, min(interval.drawn, len(rest)))
        pool = [*codes[: interval.first], *(codes[place] for place in sorted(drawn))]
        return [code for code in pool if self.library.text(code)]

    def interval_groups(self, query: Judged, pool: Sequence[int], k: int) -> list[Drawn] | str:
        """At most `k` groups of a query from its `pool`, or why it gives none."""
        if len(pool) < 2:
            return "no list of 2 documents or more"
        labels = {code: query.label(code) for code in pool}
        if self.labels is not None:
            taught = self.taught(query.qid, pool)
            if taught is None:
                return "no document that the teacher scored"
            labels = dict(zip(pool, taught, strict=True))
        ordered = sorted(pool, key=lambda code: -labels[code])
        groups: list[Drawn] = []
        for places in self._ways(len(pool), self._random("intervals", query)):
            if len(groups) == k:
                break
            chosen = [ordered[place] for place in places]
            if len({labels[code] for code in chosen}) > 1:
                groups.append(self._shuffled(query, chosen, labels, len(groups)))
            else:
                self.counts["sub-lists passed over, their labels being equal"] += 1
        return groups or "labels that are all equal"

    def _ways(self, n: int, random: Random) -> Iterator[range]:
        """Sub-lists of `n` places, all different: a size is drawn, then a step, then a start."""
        weights: defaultdict[int, float] = defaultdict(float)
        for size, weight in zip(self.source.sizes, self.source.weights or repeat(1.0), strict=False):
            weights[min(size, n)] += weight
        unused = {size: intervals(n, size) for size, weight in weights.items() if weight}
        while unused:
            size = random.choices(list(unused), [weights[size] for size in unused])[0]
            step = random.randrange(len(unused[size]))
            starts = unused[size][step]
            yield starts.pop(random.randrange(len(starts)))
            if not starts:
                unused[size].pop(step)
            if not unused[size]:
                unused.pop(size)

    # -- labels ------------------------------------------------------------

    def taught(self, qid: str, codes: Sequence[int]) -> tuple[float, ...] | None:
        """The teacher's scores of documents; None where it scored none of them."""
        scores = self.labels.scores(qid) if self.labels is not None else {}
        if not any(code in scores for code in codes):
            return None
        lowest = min(scores.values())
        self.counts["documents that the teacher did not score"] += sum(code not in scores for code in codes)
        return tuple(scores.get(code, lowest) for code in codes)

    def _shuffled(self, query: Judged, codes: list[int], labels: Mapping[int, float], number: int) -> Drawn:
        """A group of documents in an order that says nothing of how they were chosen."""
        shuffled = self.library.in_order(codes)
        self._random("order", query, number).shuffle(shuffled)
        return Drawn(query.qid, tuple(shuffled), tuple(labels[code] for code in shuffled))

    def _size(self, random: Random) -> int:
        return random.choices(self.source.sizes, self.source.weights or None)[0]

    def _random(self, purpose: str, query: Judged, number: int = 0) -> Random:
        return seeded(self.source.seed, f"{purpose}\0{number}\0{query.qid}")


def intervals(n: int, size: int) -> list[list[range]]:
    """By step, every way to take `size` of `n` places at that step.

    >>> intervals(5, 3)
    [[range(0, 3), range(1, 4), range(2, 5)], [range(0, 5, 2)]]
    """
    span = size - 1
    return [
        [range(start, start + span * step + 1, step) for start in range(n - span * step)]
        for step in range(1, (n - 1) // span + 1)
    ]
