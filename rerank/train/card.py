"""What training groups hold, in numbers: for a dry run, a model card and whoever wonders."""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

GRADE = "grade"
"""The label kind of judgments; that of a teacher's scores is their `ScoreKind`."""
_COLUMNS = 80
_RANGES = 10
_MOST_VALUES = 12


@dataclass(frozen=True)
class SourceCard:
    """What one source gave, in numbers."""

    data: str
    """The data set, with its split."""
    fingerprint: str
    """The data set's."""
    given: int
    """Queries that were chosen to learn from."""
    queries: int
    """Those that gave groups."""
    groups: int
    documents: int
    """Different ones."""
    sizes: Mapping[str, int]
    """Groups by how many documents they have."""
    label_kind: str
    """`grade`, or the kind of the teacher's scores."""
    labels: Mapping[str, int]
    """Documents of groups by label: each value, or ten ranges of values."""
    skipped: Mapping[str, int]
    """Queries that gave no group, by what they lack."""
    examples: Mapping[str, Sequence[str]]
    """Some of these, by the same."""
    counts: Mapping[str, int]
    """What else happened, such as negatives that a filter took out."""
    notes: Sequence[str]
    """What was counted while the data was read."""
    provenance: Mapping[str, Any]
    """Where lists and scores come from: `lists`, `margin`, `teacher`."""

    def __str__(self) -> str:
        """The card for people, in 80 columns."""
        lines = textwrap.wrap(
            f"{self.data}: {self.groups:,} groups of {self.queries:,} queries, {self.documents:,} documents", _COLUMNS
        )
        facts = [("sizes", _listed(self.sizes)), (f"labels ({self.label_kind})", _listed(self.labels))]
        for reason, number in self.skipped.items():
            some = ", ".join(self.examples.get(reason, ()))
            facts.append(("skipped", f"{number:,} {'query' if number == 1 else 'queries'} with {reason}: {some}"))
            if number > len(self.examples.get(reason, ())):
                facts[-1] = ("skipped", f"{facts[-1][1]}, ...")
        facts += [("counted", f"{number:,} {what}") for what, number in self.counts.items()]
        facts += [("note", note) for note in self.notes]
        before = ""
        for title, text in facts:
            head = f"  {'' if title == before else title:<16}"
            lines += textwrap.wrap(text, _COLUMNS, initial_indent=head, subsequent_indent=" " * len(head))
            before = title
        return "\n".join(lines)


@dataclass(frozen=True)
class GroupsCard:
    """What groups hold, in numbers; `dataclasses.asdict` makes plain JSON of it."""

    fingerprint: str
    groups: int
    queries: int
    documents: int
    sources: tuple[SourceCard, ...]

    def __str__(self) -> str:
        """The card for people, in 80 columns."""
        total = f"groups {self.fingerprint[:12]}: {self.groups:,} of {self.queries:,} queries"
        return "\n".join([f"{total}, {self.documents:,} documents", *map(str, self.sources)])


def histogram(labels: Sequence[float]) -> dict[str, int]:
    """How many labels have each value, or lie in each of ten equal ranges where there are many values.

    >>> histogram([0.0, 2.0, 0.0])
    {'0': 2, '2': 1}
    """
    values = Counter(labels)
    if len(values) <= _MOST_VALUES and all(float(f"{value:g}") == value for value in values):
        return {f"{value:g}": number for value, number in sorted(values.items())}
    low, high = min(values), max(values)
    edges = [low + (high - low) * place / _RANGES for place in range(_RANGES + 1)]
    counts: dict[str, int] = {f"{a:.4g} to {b:.4g}": 0 for a, b in pairwise(edges)}
    for value, number in values.items():
        place = bisect_right(edges, value, 1, _RANGES) - 1
        counts[f"{edges[place]:.4g} to {edges[place + 1]:.4g}"] += number
    return counts


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} of {what}" for what, number in numbers.items())
