"""The two-line call: what comes back, what is computed together, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from overlap_engine import Overlap
from rich.cells import cell_len

from rerank import Cut, Groupwise, Listwise, Pipeline, Pointwise, RankedDocs, Rerank, Reranker, apply
from rerank.engines.engine import Asked, Asker
from rerank.engines.passages import Passages, word_passages
from rerank.errors import ConfigError, DataError, PipelineError, RankingError, UnknownNameError
from rerank.ranking import Ranking
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

QUERY = "capital of France"
DOCS = ["the capital of Germany", "a wing", "Paris is the capital of France"]


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    Overlap.asked.clear()
    with Reranker(Overlap()) as made:
        yield made


# -- what comes back ------------------------------------------------------------


def test_documents_come_back_best_first_with_their_place_in_the_given_list(reranker: Reranker) -> None:
    docs = reranker.rank(QUERY, DOCS)
    assert [(doc.rank, doc.index, doc.docno, doc.score, doc.text) for doc in docs] == [
        (1, 2, "2", 3.0, DOCS[2]),
        (2, 0, "0", 2.0, DOCS[0]),
        (3, 1, "1", 0.0, DOCS[1]),
    ]
    assert docs.query == QUERY
    assert docs.counts["calls"] == 3


def test_a_list_can_be_cut_and_indexed(reranker: Reranker) -> None:
    docs = reranker.rank(QUERY, DOCS)
    assert docs[:2] == reranker.rank(QUERY, DOCS, k=2)
    assert isinstance(docs[:2], RankedDocs)
    assert docs[-1].index == 1
    assert [len(docs[1:]), len(docs[5:])] == [2, 0]


def test_documents_may_be_texts_pairs_or_mappings(reranker: Reranker) -> None:
    given = [
        DOCS[0],
        ("wing", DOCS[1]),
        {"text": "is the capital of France", "title": "Paris", "id": 7, "price": 3},
        {"contents": "France"},
    ]
    docs = reranker.rank(QUERY, iter(given))
    assert [(doc.docno, doc.index) for doc in docs] == [("7", 2), ("0", 0), ("3", 3), ("wing", 1)]
    assert docs[0].text == DOCS[2]


def test_equal_texts_and_equal_ids_are_documents_of_their_own(reranker: Reranker) -> None:
    docs = reranker.rank(QUERY, [("a", "France"), ("a", "France"), ("a", "capital of France")])
    assert [(doc.docno, doc.index) for doc in docs] == [("a", 2), ("a", 0), ("a", 1)]


def test_no_documents_give_an_empty_list_and_ask_nothing(reranker: Reranker) -> None:
    docs = reranker.rank(QUERY, [])
    assert (len(docs), list(docs), repr(docs)) == (0, [], "0 documents for 'capital of France'")
    assert Overlap.asked == []


def test_equal_scores_keep_the_given_order(reranker: Reranker) -> None:
    assert [doc.index for doc in reranker.rank("zebra", [str(i) for i in range(30)])] == list(range(30))


def test_a_rule_that_only_orders_gives_ranks_for_scores() -> None:
    docs = Reranker(Overlap(), rule="listwise").rank(QUERY, DOCS)
    assert [(doc.index, doc.score) for doc in docs] == [(2, 3.0), (0, 2.0), (1, 1.0)]


def test_a_list_prints_as_lines_of_at_most_80_columns(reranker: Reranker) -> None:
    texts = ["東京 is the capital of Japan " * 20, "control \x1b[31m\n\tcharacters\x00", "", "short"]
    docs = reranker.rank("the capital of Japan", [(f"doc-{i}" * (9 if i == 3 else 1), t) for i, t in enumerate(texts)])
    lines = repr(docs).splitlines()
    assert lines[0] == "4 documents for 'the capital of Japan'"
    assert lines[1].startswith("  1     4.0000  doc-0                 東京 is the capital of Japan")
    assert lines[1].endswith(" ...")
    assert all(cell_len(line) <= 80 and line.isprintable() for line in lines)
    assert "control [31m characters" in repr(docs)


def test_only_the_first_ten_are_printed(reranker: Reranker) -> None:
    lines = repr(reranker.rank("a", ["b"] * 12)).splitlines()
    assert (len(lines), lines[-1]) == (12, "... and 2 more")
    assert "<pre>12 documents" in reranker.rank("a", ["b"] * 12)._repr_html_()


# -- many lists ------------------------------------------------------------


def test_many_lists_are_asked_together(reranker: Reranker) -> None:
    found = reranker.rank_many([(QUERY, DOCS), ("wing", DOCS), (QUERY, []), (QUERY, DOCS)])
    assert [[doc.index for doc in docs] for docs in found] == [[2, 0, 1], [1, 0, 2], [], [2, 0, 1]]
    assert len(Overlap.asked) == 1
    assert len(Overlap.asked[0]) == 6  # equal lists are ranked once


def test_a_list_ranks_the_same_in_any_company() -> None:
    reranker = Reranker(Overlap(), rule=Groupwise(size=3, passes=2, seed=5))
    lists = [(f"w{i} w{i + 1}", [f"w{j} w{i} {'w' + str(i + 1) if j % 3 else ''}" for j in range(9)]) for i in range(5)]
    lists.append((lists[0][0], lists[1][1]))
    assert reranker.rank_many(lists) == [reranker.rank(*one) for one in lists]
    assert reranker.rank_many(lists[::-1]) == reranker.rank_many(lists)[::-1]


def test_ids_that_lists_share_do_not_meet(reranker: Reranker) -> None:
    found = reranker.rank_many([("a", [("1", "a a"), ("2", "b")]), ("b", [("1", "a"), ("2", "b")])])
    assert [[(doc.docno, doc.text) for doc in docs] for docs in found] == [
        [("1", "a a"), ("2", "b")],
        [("2", "b"), ("1", "a")],
    ]


def test_nothing_piles_up_in_the_runtime(reranker: Reranker) -> None:
    for _ in range(3):
        reranker.rank(QUERY, DOCS)
    assert reranker._runtime.stats == []


# -- what the model wrote ------------------------------------------------------------


class Talkative(Overlap):
    """Writes down which documents it read."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        asker = super().asker(prompt, runtime)
        plain = asker.ask

        def ask(questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
            for asked in questions:
                runtime.explain(asked, " | ".join(asked.documents))
            return plain(questions, runtime)

        asker.ask = ask  # type: ignore[method-assign]
        asker.passages = word_passages  # type: ignore[method-assign]
        return asker


def test_what_the_model_wrote_comes_with_places_in_the_given_list() -> None:
    reranker = Reranker(Talkative(), rule=Groupwise(size=2))
    silent = reranker.rank_many([(QUERY, DOCS), ("wing", DOCS), (QUERY, [])])
    assert [docs.reasoning for docs in silent] == [()] * 3
    found = reranker.rank_many([(QUERY, DOCS), ("wing", DOCS[::-1]), (QUERY, []), (QUERY, DOCS)], explain=True)
    assert [list(docs) for docs in found[:1]] == [list(docs) for docs in silent[:1]]
    for docs, given in zip(found, (DOCS, DOCS[::-1], [], DOCS), strict=True):
        shown = [each.documents for each in docs.reasoning]
        assert sorted(place for places in shown for place in places) == sorted({place for p in shown for place in p})
        assert {place for places in shown for place in places} == set(range(len(given)))
        assert [each.text for each in docs.reasoning] == [" | ".join(given[i] for i in places) for places in shown]
    assert found[0][:1].reasoning == found[0].reasoning


def test_who_shares_a_batch_with_one_that_asks_why_is_told_nothing() -> None:
    async def main() -> list[RankedDocs]:
        with Reranker(Talkative()) as reranker:
            calls = [reranker.arank(QUERY, DOCS, explain=explain) for explain in (False, True)]
            return await asyncio.gather(*calls)

    silent, told = asyncio.run(main())
    assert silent == told
    assert silent.reasoning == ()
    assert [each.documents for each in told.reasoning] == [(0,), (1,), (2,)]


def test_passages_of_a_document_are_the_document() -> None:
    stage = Rerank(Talkative(), k=None, passages=Passages(size=2, stride=2))
    (first, *rest) = Reranker(stage).rank("c", ["a b c d", "e"], explain=True).reasoning
    assert (first.documents, first.text) == ((0,), "a b")
    assert [each.documents for each in rest] == [(0,), (1,)]


# -- side by side ------------------------------------------------------------


def test_callers_that_wait_together_share_batches(reranker: Reranker) -> None:
    async def main() -> list[RankedDocs]:
        return await asyncio.gather(*(reranker.arank(f"w{i}", ["w1 w2", "w3", f"w{i} x"], k=1) for i in range(40)))

    found = asyncio.run(main())
    assert [docs[0].index for docs in found] == [2, 0, 0, 1, *[2] * 36]
    assert len(Overlap.asked) == 1


def test_every_event_loop_and_thread_may_call(reranker: Reranker) -> None:
    for _ in range(2):
        assert asyncio.run(reranker.arank(QUERY, DOCS))[0].index == 2
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(reranker.rank(QUERY, DOCS)[0].index)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8


def test_the_event_loop_goes_on_while_documents_are_ranked() -> None:
    gate = threading.Event()

    def wait(ranking: Ranking) -> Ranking:
        assert gate.wait(20)
        return ranking

    async def main() -> int:
        with Reranker(apply(wait)) as reranker:
            task = asyncio.create_task(reranker.arank("q", ["a", "b"]))
            for _ in range(3):
                await asyncio.sleep(0)
            gate.set()  # reached only because nothing holds the loop up
            return len(await task)

    assert asyncio.run(main()) == 2


def test_a_caller_that_stops_waiting_is_left_out_and_harms_nobody() -> None:
    entered, gate = threading.Event(), threading.Event()
    seen: list[int] = []

    def wait(ranking: Ranking) -> Ranking:
        seen.append(len(ranking))
        entered.set()
        assert gate.wait(20)
        return ranking

    async def main() -> list[object]:
        with Reranker(apply(wait)) as reranker:
            first = asyncio.create_task(reranker.arank("first", ["a"]))
            await asyncio.to_thread(entered.wait, 20)
            waiting = [asyncio.create_task(reranker.arank(f"q{i}", ["a"])) for i in range(4)]
            await asyncio.sleep(0)
            first.cancel()  # at work already: its answer is dropped
            waiting[1].cancel()  # still waiting: never asked
            await asyncio.sleep(0)
            gate.set()
            return await asyncio.gather(first, *waiting, return_exceptions=True)

    results = asyncio.run(main())
    assert [isinstance(each, asyncio.CancelledError) for each in results] == [True, False, True, False, False]
    assert seen == [1, 3]


def test_a_list_that_fails_fails_alone() -> None:
    def strict(ranking: Ranking) -> Ranking:
        if any(query == "bad" for query in ranking.queries):
            raise RankingError("a bad query")
        return ranking

    async def main() -> list[RankedDocs | BaseException]:
        with Reranker(apply(strict)) as reranker:
            calls = [reranker.arank(query, ["a"]) for query in ("good", "bad", "fine")]
            return await asyncio.gather(*calls, return_exceptions=True)

    good, bad, fine = asyncio.run(main())
    assert isinstance(bad, RankingError)
    assert [len(good), len(fine)] == [1, 1]  # type: ignore[arg-type]


# -- as a cross-encoder ------------------------------------------------------------


def test_predict_gives_the_score_of_each_pair_in_order(reranker: Reranker) -> None:
    scores = reranker.predict([("a b", "b"), ("c", "b"), ("a b", "b a"), ("a b", "b")])
    assert scores.dtype == np.float32
    assert scores.tolist() == [1.0, 0.0, 2.0, 1.0]
    assert reranker.predict([]).shape == (0,)


def test_predict_is_refused_where_a_rule_only_orders() -> None:
    with pytest.raises(PipelineError, match=r"rule=Listwise\(\).* gives no scores"):
        Reranker(Overlap(), rule=Listwise()).predict([("a", "b")])
    with pytest.raises(DataError, match="left 1 documents out"):
        Reranker(Rerank(Overlap(), k=None) >> Cut(1)).predict([("a", "b"), ("a", "c")])


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", 3), ("a", "b", "c")])
def test_predict_names_what_is_no_pair(reranker: Reranker, pair: object) -> None:
    with pytest.raises(DataError, match="pair 1 is"):
        reranker.predict([("a", "b"), pair])  # type: ignore[list-item]


def test_a_cross_encoders_rank_is_at_hand_under_its_own_name(reranker: Reranker) -> None:
    model = reranker.as_cross_encoder()
    assert model.rank(QUERY, DOCS, top_k=2) == [{"corpus_id": 2, "score": 3.0}, {"corpus_id": 0, "score": 2.0}]
    (row,) = model.rank(QUERY, DOCS, top_k=1, return_documents=True)
    assert row == {"corpus_id": 2, "score": 3.0, "text": DOCS[2]}
    pairs = [(QUERY, doc) for doc in DOCS]
    assert model.predict(pairs, batch_size=1, show_progress_bar=False).tolist() == [2.0, 0.0, 3.0]
    assert model.predict(pairs, convert_to_numpy=False) == [2.0, 0.0, 3.0]


@pytest.mark.needs("torch")
def test_an_activation_is_applied_where_one_is_given(reranker: Reranker) -> None:
    import torch

    model = reranker.as_cross_encoder()
    assert model.predict([("a", "b")], activation_fn=torch.nn.Sigmoid()).tolist() == [0.5]
    assert model.rank("a", ["b"], activation_fn=torch.nn.Sigmoid())[0]["score"] == 0.5


# -- what it is made of ------------------------------------------------------------


def test_the_chosen_stage_is_visible() -> None:
    reranker = Reranker(Overlap(), rule="{groupwise: {size: 5}}")
    assert reranker.stage == Rerank(Overlap(), Groupwise(size=5), k=None)
    assert repr(reranker) == "Reranker(Rerank(engine=Overlap(), rule=Groupwise(size=5), k=None))"


def test_an_error_says_with_what_was_ranked() -> None:
    def broken(ranking: Ranking) -> Ranking:
        raise DataError("nothing works")

    with pytest.raises(DataError) as caught:
        Reranker(apply(broken) >> Cut(3)).rank("a", ["b"])
    (note,) = caught.value.__notes__
    assert note.startswith("while ranking with ")
    assert note.endswith(">> Cut(k=3)")


def test_a_pipeline_that_starts_from_lists_is_taken_by_value_and_by_file(tmp_path: Path) -> None:
    assert len(Reranker(Pipeline((Cut(2),))).rank("a", ["b"] * 5)) == 2
    (tmp_path / "first.yaml").write_text("stages: [{cut: 1}]", encoding="utf-8")
    reranker = Reranker(str(tmp_path / "first.yaml"))
    assert reranker.stage.label == "first"
    assert len(reranker.rank("a", ["b", "c"])) == 1
    assert Reranker(tmp_path / "first.yaml").stage == reranker.stage


def test_a_pipeline_that_finds_documents_is_refused() -> None:
    with pytest.raises(PipelineError, match="bm25: cannot rerank given documents, for bm25 finds documents itself"):
        Reranker("bm25")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": Cut(1), "rule": "setwise"}, "says its rule and prompt itself"),
        ({"model": Cut(1), "dtype": "float32"}, "says its revision and dtype itself"),
        ({"model": Overlap(), "revision": "main"}, "says its revision and dtype itself"),
    ],
)
def test_what_a_stage_says_itself_cannot_be_said_twice(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reranker(**options)  # type: ignore[arg-type]


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no rule is called 'setwse'; did you mean 'setwise'"):
        Reranker(Overlap(), rule="setwse")


@pytest.mark.parametrize(
    ("query", "docs", "message"),
    [
        (3, ["a"], r"the query is 3 \(int\)"),
        ("q", "a text", "the documents are one str"),
        ("q", {"text": "a"}, "the documents are one dict"),
        ("q", ["a", 3], "document 1 is 3"),
        ("q", ["a", ("x", "y", "z")], "document 1 is"),
        ("q", [{"id": "1"}], "document 0: has no text"),
        ("q", [{"text": 3}], "document 0: text must be a string"),
    ],
)
def test_what_is_no_list_of_documents_is_refused_with_its_place(
    reranker: Reranker, query: object, docs: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        reranker.rank(query, docs)  # type: ignore[arg-type]


def test_k_is_at_least_1(reranker: Reranker) -> None:
    with pytest.raises(ConfigError, match="k is 0, at least 1"):
        reranker.rank("q", ["a"], k=0)


def test_leaving_frees_what_was_loaded_and_a_later_call_loads_again() -> None:
    with Reranker(Overlap(), rule=Pointwise()) as reranker:
        reranker._runtime.resource("model", object)
        asyncio.run(reranker.arank(QUERY, DOCS))
    assert not reranker._runtime._resources
    assert reranker._worker is None
    assert asyncio.run(reranker.arank(QUERY, DOCS)) == reranker.rank(QUERY, DOCS)
    reranker.close()
