"""The stage `condense`: which sentences are kept, within which budget, and who reads them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from overlap_engine import Overlap
from tiny_models import WORDS

from rerank.condense import By, Condense
from rerank.config import parse_pipeline, to_yaml
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.data.runs import load_run, save_run
from rerank.engines.passages import Passages
from rerank.errors import ConfigError, DataError, ModelError
from rerank.planning import plan
from rerank.ranking import CONDENSED, Ranking
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rescore import Rescore
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Stage

WAYS = get_args(By)
TEXTS = {
    "stars": "Dwarfs are small stars. The moon is no star at all. A white dwarf cools for ages.\n\nTea is drunk hot. "
    "Holes bend light. A white dwarf is the core that a star leaves behind. Rain falls on the hills.",
    "tea": "Tea is drunk hot.",
    "rows": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
    "empty": "",
    "marks": "... --- !!! ??? " * 20,
    "星": "白色矮星は星の芯である。黒い穴は光を曲げる。月は星ではない。雨が丘に降る。お茶は熱いうちに飲む。" * 2,
}
QUERIES = {"dwarf": "white dwarf core", "hole": "black holes and light", "none": "zebra", "星": "白色矮星"}


def dataset(texts: dict[str, str] = TEXTS, queries: dict[str, str] = QUERIES) -> Dataset:
    corpus = MemoryCorpus(texts)
    lists = Ranking.of({qid: dict.fromkeys(texts, 1.0) for qid in queries}, dict(queries), source=corpus)
    return Dataset("toy", queries, corpus, candidates=lists)


def ranked(stage: Stage, data: Dataset | None = None) -> Ranking:
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        return runtime.run(stage, data or dataset()).ranking


def kept(stage: Stage, data: Dataset | None = None) -> dict[tuple[str, str], str]:
    ranking = ranked(stage, data)
    texts = iter(ranking.texts())
    return {(hits.qid, docno): next(texts) for hits in ranking for docno in hits.docnos}


# -- what is kept ------------------------------------------------------------


def test_sentences_that_speak_of_the_query_are_kept_in_the_order_of_the_text() -> None:
    found = kept(Condense(tokens=18))
    assert found["dwarf", "stars"] == (
        "A white dwarf cools for ages. A white dwarf is the core that a star leaves behind."
    )
    assert "Holes bend light." in found["hole", "stars"]
    assert found["dwarf", "tea"] == TEXTS["tea"]


def test_the_lead_is_the_beginning_and_lexrank_knows_no_query() -> None:
    found = kept(Condense(tokens=6, by="lead"))
    assert {found[qid, "stars"] for qid in QUERIES} == {"Dwarfs are small stars. The moon"}
    found = kept(Condense(tokens=12, by="lexrank"))
    assert len({found[qid, "stars"] for qid in QUERIES}) == 1


def test_passages_are_of_sentences_that_follow_each_other() -> None:
    found = kept(Condense(tokens=16, by="passages", passage=16))
    assert found["dwarf", "stars"] in TEXTS["stars"]
    assert "core" in found["dwarf", "stars"]


def test_what_says_the_same_again_is_not_kept_twice() -> None:
    texts = {
        "d": "A white dwarf cools. Tea is hot. A white dwarf cools. Rain falls on hills. The moon is bright tonight."
    }
    found = kept(Condense(tokens=12), dataset(texts, {"q": "white dwarf"}))["q", "d"]
    assert found.count("A white dwarf cools.") == 1
    both = kept(Condense(tokens=8, redundancy=1.0), dataset(texts, {"q": "white dwarf"}))["q", "d"]
    assert both == "A white dwarf cools. A white dwarf cools."


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("tokens", [1, 3, 7, 20])
def test_budget_and_order_hold_in_any_script(by: By, tokens: int) -> None:
    from rerank.words import n_words

    for (_, docno), text in kept(Condense(tokens=tokens, by=by, passage=5)).items():
        whole = TEXTS[docno]
        if n_words(whole) <= tokens:
            assert text == whole
        else:
            assert 0 < n_words(text) <= tokens
            place = 0
            for part in text.split():
                place = whole.index(part, place) + len(part)


SENTENCE = st.lists(st.sampled_from(["wing", "lift", "Drag", "flow,", "heat"]), min_size=1, max_size=9)
DOCUMENT = st.lists(SENTENCE, min_size=1, max_size=9).map(
    lambda some: " ".join(" ".join(words) + "." for words in some)
)


@given(DOCUMENT, st.sampled_from(WAYS), st.integers(1, 30))
def test_any_document_keeps_sentences_of_its_own_within_the_budget(document: str, by: By, tokens: int) -> None:
    from rerank.words import n_words

    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        data = dataset({"d": document}, {"q": "wing lift"})
        ranking = runtime.rank(Condense(tokens=tokens, by=by), data.topics())
    (text,) = ranking.texts()
    (spans,) = ranking.columns[CONDENSED]
    assert n_words(text) <= max(tokens, 0)
    if n_words(document) <= tokens:
        assert spans is None
    else:
        assert all(0 <= start < stop <= len(document) for start, stop in spans)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("by", WAYS)
def test_the_budget_is_of_the_rerankers_own_tokens(by: By, tiny_encoder: Path) -> None:
    from transformers import AutoTokenizer

    random = np.random.default_rng(3)
    words = [word for word in WORDS if not word.startswith("#")]
    texts = {f"d{i}": ". ".join(" ".join(random.choice(words, 7)) for _ in range(9)) + " ünïcödé 😀" for i in range(12)}
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_encoder))
    for tokens in (1, 5, 17, 40):
        found = kept(
            Condense(tokens=tokens, by=by, tokenizer=str(tiny_encoder)), dataset(texts, {"q": "lift of a wing"})
        )
        assert all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= tokens for text in found.values())


def test_only_the_first_documents_are_condensed() -> None:
    spans = ranked(Condense(tokens=2, k=2)).columns[CONDENSED].reshape(len(QUERIES), len(TEXTS))
    assert all(each is None for each in spans[:, 2:].ravel())


def test_a_documents_parts_do_not_depend_on_what_else_is_there() -> None:
    whole = kept(Condense(tokens=9))
    for qid in QUERIES:
        one = dataset(TEXTS, {qid: QUERIES[qid]})
        assert kept(Condense(tokens=9), one).items() <= whole.items()


# -- who reads it ------------------------------------------------------------


def test_a_reranker_reads_what_was_kept() -> None:
    Overlap.asked.clear()
    ranked(Condense(tokens=9) >> Rerank(Overlap(), k=None))
    expected = kept(Condense(tokens=9))
    asked = [each for questions in Overlap.asked for each in questions]
    assert len(asked) == len(expected)
    for each in asked:
        assert each.documents == tuple(expected[each.qid, docno] for docno in each.docnos)


def test_a_reranker_cuts_what_was_kept_into_passages() -> None:
    Overlap.asked.clear()
    passages = Passages(size=4, stride=4)

    def cut(self: Any, texts: Any, wanted: Passages) -> Any:
        from rerank.engines.passages import word_passages

        return word_passages(texts, wanted)

    engine = Overlap()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine.asker(None, None)), "passages", cut, raising=False)  # type: ignore[arg-type]
        ranked(Condense(tokens=9) >> Rerank(engine, k=None, passages=passages))
    expected = kept(Condense(tokens=9))
    shown = [(each.qid, docno, text) for some in Overlap.asked for each in some
             for docno, text in zip(each.docnos, each.documents, strict=True)]  # fmt: skip
    assert shown and all(text in expected[qid, docno] for qid, docno, text in shown)


def test_with_room_for_all_nothing_changes() -> None:
    reranking = Rerank(Overlap(), k=None)
    assert ranked(Condense(tokens=10_000) >> reranking) == ranked(reranking)


@pytest.mark.needs("sentence_transformers")
def test_rescoring_reads_what_was_kept(tiny_encoder: Path) -> None:
    rescore = Rescore(str(tiny_encoder), dtype="float32")
    data = dataset()
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        short = runtime.run(Condense(tokens=3) >> rescore, data).ranking
        whole = runtime.run(Condense(tokens=10_000) >> rescore, data).ranking
        plain = runtime.run(rescore, data).ranking
        texts = kept(Condense(tokens=3))
        for qid in QUERIES:
            own = dataset({docno: texts[qid, docno] for docno in TEXTS}, {qid: QUERIES[qid]})
            expected = runtime.run(rescore, own).ranking.to_dict()[qid]
            assert short.to_dict()[qid] == pytest.approx(expected, abs=1e-5)
    for qid, scores in plain.to_dict().items():
        assert whole.to_dict()[qid] == pytest.approx(scores, abs=1e-5)


def test_what_was_kept_stays_through_cuts_and_on_disk_and_ends_with_new_lists(tmp_path: Path) -> None:
    ranking = ranked(Condense(tokens=9))
    save_run(Run("condensed", ranking), tmp_path / "run")
    again = load_run(tmp_path / "run", dataset().corpus).ranking
    assert again.texts() == ranking.texts()
    assert again.cut(2).texts() == ranking.cut(2).texts()
    assert CONDENSED not in ranked(Condense(tokens=9) >> BM25(k=3)).columns
    assert ranked(Condense(tokens=4) >> Condense(tokens=9)).texts() == ranking.texts()


def test_a_dry_run_counts_what_would_be_read() -> None:
    from rerank.engines.fake import FakeEngine

    reranking = Rerank(FakeEngine("unused.tsv"), k=None)
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        whole = plan(reranking, dataset(), runtime).stages[-1].counts["prompt tokens"]
        short = plan(Condense(tokens=9) >> reranking, dataset(), runtime).stages[-1].counts["prompt tokens"]
    assert short < 0.7 * whole


# -- as configuration ------------------------------------------------------------


def test_it_is_written_in_yaml() -> None:
    text = "stages:\n- bm25:\n    k: 100\n- condense:\n    tokens: 200\n    tokenizer: minilm-l6\n"
    pipeline = parse_pipeline(text)
    assert pipeline.stages[1] == Condense(tokens=200, tokenizer="minilm-l6")
    assert parse_pipeline(to_yaml(pipeline)) == pipeline
    assert parse_pipeline("stages: [{bm25: {}}, {condense: 64}]").stages[1] == Condense(tokens=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tokens": 0}, "tokens"), ({"teleport": 0.0}, "teleport"), ({"redundancy": 2.0}, "redundancy"), ({"k": 0}, "k")],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"condense: {message}"):
        Condense(**changes)


def test_lists_without_texts_and_unknown_tokenizers_are_errors(tmp_path: Path) -> None:
    bare = dataclasses.replace(dataset().topics(), source=None)
    with Runtime(progress=False) as runtime, pytest.raises(DataError, match="came without texts"):
        runtime.rank(Condense(), bare)
    with pytest.raises(ModelError):
        ranked(Condense(tokenizer=str(tmp_path)))
