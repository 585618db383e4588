"""Id tables: codes, look-ups, sort keys, fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import DataError
from rerank.ids import MemoryIds, common_table, ids_fingerprint

ids_lists = st.lists(st.text(min_size=1), unique=True, max_size=30)


@given(ids_lists, st.lists(st.text(min_size=1), max_size=10))
def test_find_gives_positions_and_minus_one_for_what_the_table_lacks(ids: list[str], asked: list[str]) -> None:
    table = MemoryIds(ids)
    expected = [ids.index(docno) if docno in ids else -1 for docno in [*asked, *ids]]
    assert table.find([*asked, *ids]).tolist() == expected


@given(ids_lists)
def test_take_undoes_find(ids: list[str]) -> None:
    table = MemoryIds(ids)
    assert table.take(table.find(ids)).tolist() == ids
    assert len(table) == len(ids)


@given(ids_lists)
def test_sort_keys_sort_as_the_ids_do(ids: list[str]) -> None:
    keys = MemoryIds(ids).sort_keys(np.arange(len(ids)))
    assert [ids[i] for i in np.argsort(keys)] == sorted(ids)


def test_take_keeps_the_shape_of_the_codes() -> None:
    assert MemoryIds(["a", "b"]).take(np.array([[1, 0], [0, 0]])).tolist() == [["b", "a"], ["a", "a"]]


def test_an_empty_table_finds_nothing() -> None:
    table = MemoryIds([])
    assert table.find(["a"]).tolist() == [-1]
    assert table.take(np.empty(0, dtype=np.int64)).tolist() == []
    assert table.find([]).dtype == np.int64


def test_an_id_that_occurs_twice_is_named() -> None:
    with pytest.raises(DataError, match="id 'b' occurs more than once"):
        MemoryIds(["a", "b", "c", "b", "a"])


@pytest.mark.parametrize("bad", [7, "", None, b"d1", np.str_("d1"), ["d1"], ("d", "1")])
def test_an_id_that_is_not_a_non_empty_string_is_refused(bad: object) -> None:
    with pytest.raises(DataError, match="is not a non-empty string"):
        MemoryIds(["a", bad])  # type: ignore[list-item]


def test_the_fingerprint_depends_on_the_order_and_on_where_ids_end() -> None:
    lists = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", "d"], []]
    assert len({ids_fingerprint(ids) for ids in lists}) == len(lists)
    assert MemoryIds(["ab", "c"]).fingerprint == ids_fingerprint(["ab", "c"])


def test_ids_with_lone_surrogates_have_a_fingerprint() -> None:
    assert ids_fingerprint(["\ud800"]) != ids_fingerprint(["\ud801"])


@given(st.lists(ids_lists, min_size=1, max_size=4))
def test_a_common_table_keeps_every_document_under_its_id(lists: list[list[str]]) -> None:
    tables = [MemoryIds(ids) for ids in lists]
    table, maps = common_table(tables)
    for own, codes in zip(tables, maps, strict=True):
        old = np.arange(len(own))
        assert table.take(old if codes is None else codes[old]).tolist() == own.take(old).tolist()


def test_equal_tables_need_no_remapping() -> None:
    first = MemoryIds(["a", "b"])
    table, maps = common_table([first, MemoryIds(["a", "b"]), first])
    assert table is first
    assert maps == [None, None, None]
