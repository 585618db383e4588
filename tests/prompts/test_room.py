"""Room is shared out: documents are cut first and alike, then the query, never below what is left of nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank.prompts.prompt import Truncation
from rerank.prompts.room import allotted

SIZES = st.lists(st.integers(0, 200), min_size=1, max_size=6)


def test_what_fits_is_not_cut() -> None:
    assert allotted(["query", "document", "count"], [5, 10, 2], [0, 0, 0], Truncation(), 15) == ([5, 10, 2], False)


def test_long_documents_are_cut_to_the_same_length() -> None:
    assert allotted(["document"] * 3, [90, 40, 80], [0] * 3, Truncation(), 150) == ([55, 40, 55], False)


def test_caps_hold_with_room_to_spare() -> None:
    limits = Truncation(document_tokens=10, query_tokens=3)
    assert allotted(["query", "document"], [60, 60], [0, 1], limits, 1000) == ([3, 11], False)
    assert allotted(["query", "document"], [60, 60], [0, 1], limits, 1000, unit=3) == ([9, 31], False)


def test_the_query_is_cut_when_documents_are_down_to_their_least() -> None:
    assert allotted(["query", "document"], [50, 50], [0, 0], Truncation(least_document_tokens=20), 60) == (
        [40, 20],
        True,
    )
    assert allotted(["query", "document"], [50, 50], [0, 0], Truncation(least_document_tokens=20), 15) == (
        [0, 15],
        True,
    )


def test_what_cannot_be_fitted_is_told_with_what_is_needed() -> None:
    assert allotted(["query", "document"], [9, 9], [2, 3], Truncation(), 4) == 5


@given(query=st.integers(0, 200), documents=SIZES, least=st.integers(0, 50), room=st.integers(0, 1500))
def test_never_more_than_wanted_nor_more_than_there_is(query: int, documents: list[int], least: int, room: int) -> None:
    kinds = ["query", *["document"] * len(documents)]
    sizes = [query, *documents]
    found = allotted(kinds, sizes, [0] * len(sizes), Truncation(least_document_tokens=least), room)
    assert not isinstance(found, int)
    rooms, squeezed = found
    assert all(0 <= given <= wanted for given, wanted in zip(rooms, sizes, strict=True))
    assert sum(rooms) <= room
    assert squeezed or rooms[0] == query
    if sum(sizes) <= room:
        assert rooms == sizes
