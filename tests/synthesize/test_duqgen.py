"""The whole: from documents to a data set that knows where it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_synthesis import ScriptedEngine, corpus_of, some_documents

from rerank.artifact import verify_artifact
from rerank.data.corpus import MemoryCorpus
from rerank.data.load import load
from rerank.engines.encoder import Encoder
from rerank.engines.fake import FakeEngine
from rerank.errors import ArtifactError, ConfigError, DataError
from rerank.prompts import load_prompt
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime
from rerank.synthesize.cleaning import Cleaning
from rerank.synthesize.clusters import Clustering
from rerank.synthesize.duqgen import DUQGen, Synthesis, Vectors, _is_exemplary
from rerank.synthesize.examples import Examples, own_examples
from rerank.synthesize.generators import ExtractiveGenerator, KeyphraseGenerator, LLMGenerator
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.postprocess import PostProcessing
from rerank.synthesize.presets import PAPER, load_synthesis, synthesis_from
from rerank.synthesize.roundtrip import RoundTrip
from rerank.synthesize.show import is_synthetic, shown
from rerank.train.groups import build_groups
from rerank.train.sources import GroupSource, Negatives
from rerank.yamlfile import parse_yaml

FOUND = RoundTrip(stages=(BM25(k=60),), k=10)
MINED = HardNegatives(stages=(BM25(k=60),), k=3, from_rank=2, to_rank=20)
TEXTS = some_documents()


def plain(**changes: Any) -> DUQGen:
    """A synthesis that needs no model."""
    given = {"documents": 20, "clusters": None, "cleaning": Cleaning(min_characters=10), "round_trip": FOUND}
    return DUQGen(**{**given, "negatives": MINED, **changes})


def made(synthesis: DUQGen, corpus: MemoryCorpus | None = None) -> Synthesis:
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        return synthesis.made(corpus or corpus_of(TEXTS), runtime)


def run(synthesis: DUQGen, out: Path, corpus: MemoryCorpus | None = None) -> Any:
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        return synthesis.run(out, runtime, corpus or corpus_of(TEXTS))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the data set ------------------------------------------------------------


def test_the_folder_is_a_data_set_and_every_pair_knows_where_it_comes_from(tmp_path: Path) -> None:
    data = run(plain(generator=KeyphraseGenerator(samples=3), queries=2), tmp_path / "out")
    assert (data.name, data.split, len(data.corpus.ids)) == ("out", "train", 60)
    verify_artifact(tmp_path / "out")
    provenance = {record["qid"]: record for record in lines(tmp_path / "out" / "provenance.jsonl")}
    assert list(data.queries) == list(provenance)
    for qid, judged in data.qrels.items():
        record = provenance[qid]
        assert judged == {record["docno"]: 1}
        assert 1 <= record["round_trip_rank"] <= 10
        assert record["generator"] == "keyphrase" and record["sample"] in (0, 1, 2)
        assert record["docno"] not in [docno for docno, _ in record["negatives"]]
        assert record["written"]
    assert max(np.unique([record["docno"] for record in provenance.values()], return_counts=True)[1]) <= 2


def test_it_trains_as_it_is(tmp_path: Path) -> None:
    run(plain(), tmp_path / "out")
    own = GroupSource(data=str(tmp_path / "out"), candidates="negatives", negatives=Negatives(to_rank=3), sizes=(4,))
    mined = GroupSource(data=str(tmp_path / "out"), negatives=Negatives(stages=(BM25(k=30),)), sizes=(4,))
    provenance = {record["qid"]: record for record in lines(tmp_path / "out" / "provenance.jsonl")}
    with Runtime(progress=False, threads=1) as runtime:
        groups = build_groups([own], runtime)
        assert len(build_groups([mined], runtime)) == len(provenance)
    assert len(groups) == len(provenance)
    for group in groups:
        record = provenance[group.qid]
        assert set(group.docnos) == {record["docno"], *(docno for docno, _ in record["negatives"])}


def test_the_card_counts_everything(tmp_path: Path) -> None:
    def says(text: str, number: int) -> str:
        return ["", "Sure, here it is:", text.split(".")[0], text.split(".")[0], "nothing of it at all"][number]

    engine = ScriptedEngine(says)
    whole = RoundTrip(stages=(BM25(k=60),), k=60)
    found = made(plain(generator=LLMGenerator(engine, samples=5), round_trip=whole))
    reasons = [drop.reason for drop in found.drops]
    assert {reason: reasons.count(reason) for reason in set(reasons)} == {
        "empty": 20,
        "no query, only talk": 20,
        "same as another sample": 20,
        "document not among the first 60 on the way back": 20,
    }
    assert len(found.pairs) == 20
    out = tmp_path / "out"
    run(plain(generator=ExtractiveGenerator()), out)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert card["queries"] + sum(card["dropped"].values()) == 20
    assert card["documents"]["chosen"] == 20
    assert card["overlap"]["mean"] == 1
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.count("- **") == min(12, card["queries"]) and "candidates: negatives" in text


def test_the_same_again_is_not_made_again_and_another_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first = run(plain(), out)
    monkeypatch.setattr(DUQGen, "made", None)
    assert run(plain(), out).queries == first.queries
    monkeypatch.undo()
    assert run(plain(documents=5), out).queries != first.queries


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="has files but no manifest"):
        run(plain(), tmp_path / "out")
    run(plain(), tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("synthetic-data", "run"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds an artifact of kind 'run'"):
        run(plain(), tmp_path / "data")


def test_documents_with_titles_are_written_with_them_and_shown_without_where_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    records = [{"_id": f"d{i}", "title": f"Title{i} of it", "text": text} for i, text in enumerate(TEXTS.values())]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    engine = ScriptedEngine(lambda text, i: text[:40])
    with Runtime(progress=False, threads=1) as runtime:
        for title in (True, False):
            synthesis = plain(data=str(folder), title=title, generator=LLMGenerator(engine), round_trip=None)
            synthesis.made(synthesis.source(runtime), runtime)
        data = plain(data=str(folder), negatives=None).run(tmp_path / "out", runtime)
        assert data.corpus.titles(np.array([0])) == ["Title0 of it"]
    assert all(text.startswith("Title") for text in engine.asked[0])
    assert not any(text.startswith("Title") for text in engine.asked[1])
    assert not (tmp_path / "out" / "runs").exists()


def test_splits_and_used_documents(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = run(plain(documents=60, dev=0.3, queries=2, generator=KeyphraseGenerator(samples=2)), out)
    dev = load(out, "dev")
    documents = [{docno for judged in some.qrels.values() for docno in judged} for some in (data, dev)]
    assert documents[0].isdisjoint(documents[1]) and len(documents[1]) > 5
    small = run(plain(documents=5, corpus="used"), tmp_path / "small")
    shown = lines(tmp_path / "small" / "provenance.jsonl")
    assert len(small.corpus.ids) == len({d for r in shown for d in (r["docno"], *(n for n, _ in r["negatives"]))})


def test_ids_with_blanks_keep_their_negatives_in_the_provenance(tmp_path: Path) -> None:
    texts = {f"my file {name}": text for name, text in TEXTS.items()}
    data = run(plain(), tmp_path / "out", corpus_of(texts))
    assert data.queries and not (tmp_path / "out" / "runs").exists()
    assert "provenance.jsonl only" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# -- the same whatever the order ------------------------------------------------------------


@pytest.mark.parametrize("generator", [ExtractiveGenerator(samples=2), KeyphraseGenerator(samples=2)])
def test_the_same_bytes_whatever_the_order_of_the_file(tmp_path: Path, generator: Any) -> None:
    synthesis = plain(generator=generator)
    run(synthesis, tmp_path / "a" / "out")
    order = np.random.default_rng(3).permutation(len(TEXTS)).tolist()
    run(synthesis, tmp_path / "b" / "out", corpus_of(TEXTS, order))
    here, there = files(tmp_path / "a"), files(tmp_path / "b")
    for changed in ("out/manifest.json", "out/card.json"):  # they name the corpus, whose fingerprint knows the order
        here.pop(changed), there.pop(changed)
    assert here == there


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_clusters_and_documents_are_the_same_whatever_the_order_of_the_file(tiny_encoder: Path) -> None:
    synthesis = plain(vectors=Vectors(str(tiny_encoder), dtype="float32"), clusters=Clustering(k=6))
    order = np.random.default_rng(3).permutation(len(TEXTS)).tolist()
    some = [made(synthesis, corpus) for corpus in (corpus_of(TEXTS), corpus_of(TEXTS, order))]
    picked = [
        dict(
            zip(
                each.corpus.ids.take(each.picked.clean.codes).tolist(),
                each.picked.clusters.labels.tolist(),
                strict=True,
            )
        )  # type: ignore[union-attr]
        for each in some
    ]
    assert picked[0] == picked[1] and len(set(picked[0].values())) == 6
    said = [[(pair.qid, pair.query, pair.cluster, pair.rank) for pair in each.pairs] for each in some]
    assert said[0] == said[1]


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_documents_are_the_same_whatever_the_batches_of_the_encoder(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesis = plain(vectors=Vectors(str(tiny_encoder), dtype="float32"), clusters=Clustering(k=6))
    some = []
    for number, batch_tokens in enumerate((40, 4096)):
        monkeypatch.setattr(Encoder, "batch_tokens", batch_tokens)
        with Runtime(tmp_path / str(number), progress=False, threads=1, device="cpu") as runtime:
            some.append(synthesis.made(corpus_of(TEXTS), runtime))
    chosen = [{pair.docno for pair in each.pairs} for each in some]
    assert len(chosen[0] & chosen[1]) >= 0.95 * len(chosen[0] | chosen[1])


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_every_cluster_is_covered_and_the_map_shows_them(tmp_path: Path, tiny_encoder: Path) -> None:
    synthesis = plain(
        vectors=Vectors(str(tiny_encoder)), clusters=Clustering(k=8), documents=8, round_trip=None, near_duplicates=None
    )
    run(synthesis, tmp_path / "out")
    provenance = lines(tmp_path / "out" / "provenance.jsonl")
    assert sorted(record["cluster"] for record in provenance) == list(range(8))
    drawing = (tmp_path / "out" / "map.svg").read_text(encoding="utf-8")
    assert drawing.count("<circle") == 60 + 8 and "8 chosen documents of 60, in 8 clusters" in drawing


# -- examples ------------------------------------------------------------


def test_examples_are_made_of_the_collection_and_their_documents_get_no_query() -> None:
    engine = ScriptedEngine(lambda text, i: text.split(".")[0])
    generator = LLMGenerator(engine, examples=Examples(bootstrap=True, k=2, candidates=6))
    found = made(plain(generator=generator, documents=60))
    examples = found.setting.examples["duqgen-question"]
    assert len(examples) == 2 and [len(texts) for texts in engine.asked] == [6, 58]
    assert {example.docno for example in examples}.isdisjoint({pair.docno for pair in found.pairs})
    assert all(example.document.startswith(example.query) for example in examples)


def test_where_too_few_examples_can_be_made_the_prompts_own_come_before_them() -> None:
    engine = ScriptedEngine(lambda text, i: text.split(".")[0] if text == TEXTS["d007"] else "sure")
    generator = LLMGenerator(engine, examples=Examples(bootstrap=True, candidates=60))
    synthesis = plain(generator=generator)
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        corpus = corpus_of(TEXTS)
        (examples,) = synthesis.examples(synthesis.pick(corpus, runtime), corpus, runtime).values()
    assert [example.docno for example in examples] == ["", "", "d007"]
    assert "dishwasher" in examples[0].query


def test_examples_of_a_file_are_shown_and_queries_that_repeat_them_dropped(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    record = {"docno": "d001", "query": "what is the drag of wings"}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    engine = ScriptedEngine(lambda text, i: ["What is the drag of wings?", text.split(".")[0]][i])
    generator = LLMGenerator(engine, samples=2, examples=Examples(file=str(path)))
    found = made(plain(generator=generator))
    assert {drop.reason for drop in found.drops if drop.draft.sample == 0} == {"repeats an example"}
    assert all(pair.docno != "d001" for pair in found.pairs)
    other = LLMGenerator(engine, prompts=("duqgen-claim",), examples=Examples(file=str(path)))
    path.write_text(json.dumps({**record, "prompt": "duqgen-keyword"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no example for the prompt 'duqgen-claim'"):
        made(plain(generator=other))


def test_what_is_said_of_an_examples_document_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps({"document": "Salt binds lime in hard water.", "query": "soft water"}), encoding="utf-8")
    engine = ScriptedEngine(lambda text, i: ["lime in hard water", "traceback traceback of it", text.split(".")[0]][i])
    generator = LLMGenerator(engine, samples=3, examples=Examples(file=str(path)))
    found = made(plain(generator=generator, round_trip=None))
    assert {drop.reason for drop in found.drops if drop.draft.sample == 0} == {"is about an example's document"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("why do wings stall?", True),
        ("traceback traceback", False),
        ("why does jet jet jet number increase?", False),
        ("heat " + " ".join(f"word{i}" for i in range(30)), False),
        ("a wing", False),
    ],
)
def test_what_may_be_shown_as_an_example(query: str, expected: bool) -> None:
    assert _is_exemplary(query, own_examples(load_prompt("duqgen-question"))) == expected


def test_of_several_samples_the_one_whose_document_ranks_best_is_kept() -> None:
    texts = {f"d{i}": f"alpha{i} beta gamma delta epsilon zeta{i % 2}" for i in range(8)}
    engine = ScriptedEngine(lambda text, i: ["beta gamma delta", text][i])
    found = made(plain(generator=LLMGenerator(engine, samples=2)), corpus_of(texts))
    assert {pair.draft.sample for pair in found.pairs if pair.rank == 1} <= {0, 1}
    assert sum(pair.draft.sample == 1 for pair in found.pairs) >= 7


# -- bad input ------------------------------------------------------------


def test_a_generator_that_writes_nothing() -> None:
    with pytest.raises(DataError, match=r"no query is left of what was written for 20 documents \(20 empty\)"):
        made(plain(generator=LLMGenerator(ScriptedEngine(lambda text, i: ""))))


def test_documents_without_text() -> None:
    with pytest.raises(DataError, match=r"no document is left of 2 \(1 empty, 1 fewer than 5 words\)"):
        made(plain(cleaning=Cleaning(min_characters=1)), MemoryCorpus({"a": "", "b": "word"}))


def test_a_query_that_repeats_another_is_dropped_and_says_which() -> None:
    engine = ScriptedEngine(lambda text, i: " ".join(text.split()[:1] * 3 + ["of", "the", "wing", "and", "sun"]))
    wanted = plain(generator=LLMGenerator(engine), round_trip=None, postprocessing=PostProcessing(max_repeated=1.0))
    found = made(wanted)
    kept = {pair.qid for pair in found.pairs}
    repeats = [drop.repeats for drop in found.drops if drop.reason == "nearly the same as another query"]
    assert repeats and all(each is not None and each[0] in kept and 0.8 <= each[1] <= 1 for each in repeats)


def test_fewer_documents_than_wanted(caplog: pytest.LogCaptureFixture) -> None:
    found = made(plain(documents=500, near_duplicates=None, round_trip=None))
    assert len(found.pairs) == 60 and "60 clean documents, fewer than 500" in caplog.text


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_equal_vectors_are_told_of_and_queries_are_made_all_the_same(
    tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The tiny encoder reads 24 tokens, so what differs behind them is not seen.
    texts = {f"d{i}": f"{'wing ' * 30} {'lift ' * (i + 1)}" for i in range(12)}
    synthesis = plain(
        vectors=Vectors(str(tiny_encoder)), clusters=Clustering(k=4), documents=5,
        round_trip=None, near_duplicates=None,
        postprocessing=PostProcessing(max_words=200, max_repeated=1.0, min_words=1),
        generator=LLMGenerator(ScriptedEngine(lambda text, i: text)),
    )  # fmt: skip
    found = made(synthesis, corpus_of(texts))
    assert len(found.pairs) == 5 and {pair.cluster for pair in found.pairs} == {0}
    assert "all documents have the same vector" in caplog.text


def test_other_scripts_are_kept() -> None:
    texts = {f"文{i}": f"翼的升力是由压力差产生的，第{i}号压力差取决于迎角和速度。" for i in range(12)}
    found = made(plain(generator=ExtractiveGenerator(), documents=12, near_duplicates=None), corpus_of(texts))
    assert len(found.pairs) >= 10 and all("升力" in pair.query for pair in found.pairs)


@pytest.mark.parametrize("options", [{"documents": 0}, {"queries": 0}, {"dev": 1.0}, {"near_duplicates": 0.0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="duqgen: "):
        plain(**options)


def test_a_collection_is_needed() -> None:
    with Runtime(progress=False) as runtime, pytest.raises(ConfigError, match="data names no collection"):
        plain().source(runtime)


# -- files ------------------------------------------------------------


def test_a_configuration_is_written_and_read_back(tmp_path: Path) -> None:
    synthesis = plain(
        data="stdlib",
        generator=LLMGenerator(FakeEngine("/a.tsv"), prompts=("duqgen-claim",), examples=Examples(bootstrap=True)),
    )
    assert synthesis_from(parse_yaml(synthesis.to_yaml("mine"))).synthesis == synthesis
    run(dataclasses.replace(plain(), data="stdlib"), tmp_path / "out")
    assert load_synthesis(tmp_path / "out" / "synthesis.yaml").synthesis == plain(data="stdlib")


def test_the_paper_is_a_preset_and_options_stand_above_it() -> None:
    text = "duqgen: {preset: paper, data: stdlib, documents: 7, choice: {draws: 2}, generator: keyphrase}"
    found = synthesis_from(parse_yaml(text)).synthesis
    assert (found.documents, found.choice.draws, found.choice.relevance) == (7, 2, 1.0)
    assert (found.round_trip, found.near_duplicates, found.cleaning.min_characters) == (None, None, 300)
    assert found.negatives is not None and (found.negatives.from_rank, found.negatives.pick) == (93, "top")
    paper = synthesis_from(parse_yaml("duqgen: {preset: paper, data: stdlib}")).synthesis
    assert isinstance(paper.generator, LLMGenerator) and paper.generator.samples == 1
    assert PAPER["clusters"] == {"k": 1000} and paper.clusters == Clustering(k=1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: stdlib", "a synthesis is a mapping with 'duqgen'"),
        ("duqgen: {documents: 3}", "<text>:1: duqgen: needs the option 'data'"),
        ("duqgen: {data: stdlib, documets: 3}", "duqgen.documets: duqgen has no option 'documets'; did you mean"),
        ("duqgen: {data: stdlib, preset: papper}", "duqgen.preset: expected default or paper; got 'papper'"),
        ("duqgen: {data: stdlib, generator: keyfrase}", "no generator is called 'keyfrase'; did you mean 'keyphrase'"),
        ("duqgen: {data: stdlib, generator: bm25}", "'bm25' is registered, but is not a generator"),
        ("duqgen: {data: stdlib, round_trip: {pipeline: bm24}}", "duqgen.round_trip.pipeline: no ready pipeline"),
        ("duqgen: {data: ../x}", "leaves the file's folder"),
        ("{duqgen: {data: stdlib}, nam: x}", "a synthesis has no option 'nam'; did you mean 'name'"),
        ("{duqgen: {data: stdlib}, name: 3}", "<text>:1: name: expected text; got 3"),
        ("duqgen: 3", "expected a mapping of options"),
    ],
)
def test_files_that_say_something_else(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        synthesis_from(parse_yaml(text))
    assert message in str(caught.value)


def test_a_synthetic_data_set_is_shown(tmp_path: Path) -> None:
    run(plain(generator=KeyphraseGenerator(samples=3)), tmp_path / "out")
    assert is_synthetic(tmp_path / "out") and not is_synthetic(tmp_path)
    text = shown(tmp_path / "out", samples=3)
    heads = [line.split()[0] for line in text.splitlines()]
    assert heads.count("query") == heads.count("drop") == 3
    assert "keyphrase" in text and "20 chosen" in text and "another sample is better" in text


def test_prompts_in_files_lie_beside_the_configuration(tmp_path: Path) -> None:
    prompt = dataclasses.replace(load_prompt("duqgen-claim"), name="")
    (tmp_path / "own.yaml").write_text(prompt.to_yaml(), encoding="utf-8")
    text = "duqgen: {data: stdlib, generator: {llm: {engine: {fake: /a.tsv}, prompts: [own.yaml, duqgen-claim]}}}"
    generator = synthesis_from(parse_yaml(text, folder=tmp_path)).synthesis.generator
    assert generator.prompts == (str(tmp_path / "own.yaml"), "duqgen-claim")


# -- documents without their queries ------------------------------------------------------------


def in_sentences() -> MemoryCorpus:
    """The texts as three sentences each."""

    def of(text: str) -> str:
        first, rest = text.split(". ", 1)
        words = rest.split()
        half = len(words) // 2
        return f"{first}. {' '.join(words[:half]).capitalize()}. {' '.join(words[half:]).capitalize()}"

    return corpus_of({docno: of(text) for docno, text in TEXTS.items()})


def test_a_query_is_taken_out_of_the_copy_that_is_learnt_and_no_other_form_of_the_document_is_a_candidate(
    tmp_path: Path,
) -> None:
    wanted = plain(generator=ExtractiveGenerator(samples=3), queries=2, cloze=1.0)
    data = run(wanted, tmp_path / "out", in_sentences())
    provenance = {record["qid"]: record for record in lines(tmp_path / "out" / "provenance.jsonl")}
    written = {record["_id"]: record["text"] for record in lines(tmp_path / "out" / "corpus.jsonl")}
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for record in provenance.values():
        forms[record["docno"]] |= {record["docno"], record["learnt"]}
    assert max(map(len, forms.values())) == 3
    copies = 0
    for qid, query in data.queries.items():
        record = provenance[qid]
        assert data.qrels[qid] == {record["learnt"]: 1}
        assert data.excluded.get(qid, frozenset()) == forms[record["docno"]] - {record["learnt"]}
        if record["learnt"] != record["docno"]:
            copies += 1
            assert query in written[record["docno"]] and query not in written[record["learnt"]]
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert copies == card["counted"]["queries taken out of the document that is learnt"] > 0
    assert len(written) == len(TEXTS) + copies
    with Runtime(tmp_path / "home", progress=False, threads=1, device="cpu") as runtime:
        source = GroupSource(data=str(tmp_path / "out"), negatives=Negatives(pipeline="bm25"), sizes=(4,))
        for group in build_groups(source, runtime):
            record = provenance[group.qid]
            assert forms[record["docno"]] & set(group.docnos) == {record["learnt"]}
            assert group.related == forms[record["docno"]] - {record["learnt"]}


def test_a_share_of_the_documents_is_learnt_whole() -> None:
    wanted = plain(documents=60, generator=ExtractiveGenerator(samples=3), queries=3, cloze=0.5)
    pairs = made(wanted, in_sentences()).pairs
    assert 0.25 < sum(pair.learnt is not None for pair in pairs) / len(pairs) < 0.75
    assert all(pair.learnt is None for pair in made(plain(generator=ExtractiveGenerator()), in_sentences()).pairs)


def test_phrases_that_do_not_stand_in_a_row_stay() -> None:
    for pair in made(plain(generator=KeyphraseGenerator(min_words=4, max_words=5), cloze=1.0)).pairs:
        assert pair.learnt is None or pair.query not in pair.learnt
