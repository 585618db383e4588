"""One source of groups at work: its data set is read, lists and scores are fetched, groups are drawn and labelled."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank.data.dataset import Dataset
from rerank.errors import DataError
from rerank.ranking import ScoreKind, TextSource
from rerank.runtime import Runtime
from rerank.train.card import GRADE, SourceCard, histogram
from rerank.train.lists import Ranked
from rerank.train.mining import Drawn, Judged, Library, Miner
from rerank.train.sources import GroupSource

logger = logging.getLogger(__name__)

_EXAMPLES = 3


@dataclass
class Drawing:
    """One source at work."""

    source: GroupSource
    whole: Dataset
    runtime: Runtime
    counts: Counter[str] = field(default_factory=Counter)
    provenance: dict[str, Any] = field(default_factory=dict)
    skipped: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        data = self.whole
        if data.corpus is None:
            raise DataError(f"{self.place}: has no documents to learn from; give a data set with a corpus")
        if data.qrels is None and self.source.teacher is None:
            raise DataError(
                f"{self.place}: has no judgments to learn from; give some, or a teacher whose scores are learned"
            )
        if data.qrels is None and self.source.interval is None:
            raise DataError(
                f"{self.place}: has no judgments that tell positives; give an interval of the lists instead"
            )
        self.corpus: TextSource = data.corpus
        chosen = self.source.queries.chosen(data.queries, self.source.seed)
        self.given = len(chosen)
        self.data = data.with_queries([qid for qid in chosen if self._is_asked(qid)])
        self.library = Library(self.corpus)

    @property
    def place(self) -> str:
        """The data set, for messages."""
        return f"{self.whole.name} ({self.whole.split})"

    def _is_asked(self, qid: str) -> bool:
        if self.whole.queries[qid].strip():
            return True
        self.skipped["an empty text"].append(qid)
        return False

    def draw(self) -> list[Drawn]:
        """The groups, in no order.

        Raises:
            DataError: not one.
        """
        judged = self._judged()
        miner = Miner(self.source, self.library, self._lists(), counts=self.counts)
        if (interval := self.source.interval) is not None:
            n_groups, pools = interval.groups, {query.qid: miner.pool(query, interval) for query in judged}
            miner.labels = self._taught({qid: pool for qid, pool in pools.items() if pool})

            def draw(query: Judged) -> list[Drawn] | str:
                return miner.interval_groups(query, pools[query.qid], n_groups)

        else:
            miner.scores = self._margin_scores(miner, judged)
            draw = miner.judged_groups
        groups: list[Drawn] = []
        with self.runtime.progress("drawing groups", len(judged), "queries") as advance:
            for query in judged:
                groups += self._kept(query.qid, draw(query))
                advance(1)
        if interval is None:
            groups = self._relabelled(groups, miner)
        if not groups:
            raise DataError(self._nothing())
        return groups

    def related(self, group: Drawn) -> tuple[str, ...]:
        """What is judged relevant to a group's query, or excluded for it, and not in the group."""
        grades, shown = (self.data.qrels or {}).get(group.qid, {}), set(group.codes)
        relevant = {docno for docno, grade in grades.items() if grade > 0}
        named = sorted(relevant | self.data.excluded.get(group.qid, frozenset()))
        codes = self.corpus.ids.find(named).tolist() if named else []
        return tuple(docno for docno, code in zip(named, codes, strict=True) if code >= 0 and code not in shown)

    def _kept(self, qid: str, found: list[Drawn] | str) -> list[Drawn]:
        if isinstance(found, str):
            self.skipped[found].append(qid)
            return []
        return found

    def _judged(self) -> list[Judged]:
        """What is known of each query's documents.

        Raises:
            DataError: a grade outside the scale.
        """
        qrels, excluded = self.data.qrels or {}, self.data.excluded
        self._check_grades(qrels)
        named = sorted({d for q in self.data.queries for d in (*qrels.get(q, ()), *excluded.get(q, ()))})
        codes = {d: code for d, code in zip(named, self.corpus.ids.find(named).tolist(), strict=True) if code >= 0}
        judged = []
        for qid in self.data.queries:
            grades = {docno: grade for docno, grade in qrels.get(qid, {}).items() if docno not in excluded.get(qid, ())}
            known = {codes[docno]: grade for docno, grade in grades.items() if docno in codes}
            out = frozenset(codes[docno] for docno in excluded.get(qid, ()) if docno in codes)
            judged.append(Judged(qid, known, out, len(grades) - len(known)))
        return judged

    def _check_grades(self, qrels: Mapping[str, Mapping[str, int]]) -> None:
        low, high = self.source.scale or (0, math.inf)
        for qid in self.data.queries:
            for docno, grade in qrels.get(qid, {}).items():
                if not low <= grade <= high:
                    scale = f"{low} to {high}" if self.source.scale else "0 and up"
                    raise DataError(
                        f"{self.place}: query {qid!r} gives document {docno!r} the grade {grade}, outside the scale "
                        f"{scale}; correct it, or state another scale: [lowest, highest]"
                    )

    def _lists(self) -> Ranked | None:
        wanted = self.source.interval or self.source.negatives
        if wanted.given:
            return self._noted("lists", wanted.ranked(self.data, self.runtime))
        if self.data.candidates is None:
            return None
        have = set(self.data.candidates.qids)
        lists = self.data.candidates.subset([qid for qid in self.data.queries if qid in have])
        return Ranked(lists, self.corpus, {"candidates": self.source.candidates or "of the data set"})

    def _margin_scores(self, miner: Miner, judged: Sequence[Judged]) -> Ranked | None:
        margin = self.source.negatives.margin
        if margin is None or not margin.given:
            return None
        compared = {query.qid: codes for query in judged if (codes := miner.may_be_drawn(query))}
        return self._noted("margin", margin.scored(self.data, compared, self.runtime))

    def _taught(self, documents: Mapping[str, Sequence[int]]) -> Ranked | None:
        if self.source.teacher is None or not documents:
            return None
        taught = self._noted("teacher", self.source.teacher.scored(self.data, documents, self.runtime))
        if taught.kind is ScoreKind.RANK:
            logger.warning(
                "%s: the teacher gives ranks, not scores, so labels tell only the order (a stage rerank gives scores "
                "where its k is null)",
                self.place,
            )
        return taught

    def _relabelled(self, groups: list[Drawn], miner: Miner) -> list[Drawn]:
        """The groups with the teacher's labels, where there is a teacher."""
        if self.source.teacher is None:
            return groups
        documents: defaultdict[str, dict[int, None]] = defaultdict(dict)
        for group in groups:
            documents[group.qid].update(dict.fromkeys(group.codes))
        miner.labels = self._taught({qid: list(codes) for qid, codes in documents.items()})
        found: defaultdict[str, list[Drawn]] = defaultdict(list)
        reasons: dict[str, str] = {}
        for group in groups:
            labels = miner.taught(group.qid, group.codes)
            if labels is None:
                reasons[group.qid] = "no document that the teacher scored"
            elif len(set(labels)) == 1:
                reasons[group.qid] = "labels that are all equal"
                self.counts["groups whose labels are all equal"] += 1
            else:
                found[group.qid].append(group._replace(labels=labels))
        for qid, reason in reasons.items():
            if qid not in found:
                self.skipped[reason].append(qid)
        return [group for some in found.values() for group in some]

    def _noted(self, what: str, ranked: Ranked) -> Ranked:
        self.provenance[what] = {**ranked.provenance, "kind": ranked.kind.value}
        return ranked

    def _nothing(self) -> str:
        """Why there is not one group."""
        reasons = ", ".join(f"{len(qids):,} have {reason}" for reason, qids in self.skipped.items())
        grades = Counter(g for qid in self.data.queries for g in (self.data.qrels or {}).get(qid, {}).values())
        shown = ", ".join(f"{number:,} of grade {grade}" for grade, number in sorted(grades.items())) or "none"
        return (
            f"{self.place}: none of {self.given:,} queries gives a group ({reasons}; judgments: {shown}); check "
            "min_grade, the judgments and the lists"
        )

    def card(self, groups: Sequence[Drawn]) -> SourceCard:
        """What came out, in numbers."""
        labels = [label for group in groups for label in group.labels]
        return SourceCard(
            self.place,
            self.whole.fingerprint,
            self.given,
            len({group.qid for group in groups}),
            len(groups),
            len({code for group in groups for code in group.codes}),
            {str(size): number for size, number in sorted(Counter(len(g.codes) for g in groups).items())},
            GRADE if self.source.teacher is None else self.provenance["teacher"]["kind"],
            histogram(labels),
            {reason: len(qids) for reason, qids in sorted(self.skipped.items())},
            {reason: sorted(qids)[:_EXAMPLES] for reason, qids in sorted(self.skipped.items())},
            {what: number for what, number in sorted(self.counts.items()) if number},
            self.whole.notes,
            self.provenance,
        )
