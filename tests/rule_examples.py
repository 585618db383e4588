"""One rule of every kind and setting, and lists to try them on."""

from __future__ import annotations

from random import Random

from rerank.rules.groupwise import Groupwise
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Rule
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament

SETTLING: dict[str, Rule] = {
    "setwise heap": Setwise(k=4, size=5),
    "setwise heap, picks only": Setwise(k=4, size=5, orders=False),
    "setwise heap, as shown": Setwise(k=4, size=5, shuffle=False),
    "setwise heap, votes": Setwise(k=4, size=5, votes=3),
    "setwise bubble": Setwise("bubble", k=4, size=5),
    "pairwise heap": Pairwise(k=4),
    "pairwise bubble": Pairwise("bubble", k=4),
}
"""Rules that settle the first four places."""
RULES: dict[str, Rule] = {
    **SETTLING,
    "pointwise": Pointwise(),
    "groupwise": Groupwise(size=7),
    "groupwise, passes and overlaps": Groupwise(size=7, passes=3, interval=4),
    "groupwise, offsets": Groupwise(size=7, passes=3, merge="offsets"),
    "groupwise, offsets, until settled": Groupwise(size=7, passes=4, interval=4, merge="offsets", settled=5),
    "listwise": Listwise(8, 4),
    "pairwise all": Pairwise("all"),
    "tournament": Tournament(),
    "tournaments": Tournament(3, size=6),
}


def shuffled_grades(n: int, seed: int = 0) -> tuple[float, ...]:
    """Distinct grades 1 .. n in random order."""
    return tuple(float(grade) for grade in Random(seed).sample(range(1, n + 1), n))


def right_order(grades: tuple[float, ...]) -> tuple[int, ...]:
    """Places by falling grade, ties by place."""
    return tuple(sorted(range(len(grades)), key=lambda place: -grades[place]))
