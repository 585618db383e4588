"""What writes queries: with a model and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_synthesis import ScriptedEngine, corpus_of, some_documents

from rerank.data.corpus import MemoryCorpus
from rerank.engines.language_model import Sampling
from rerank.engines.prompted import CausalLMEngine
from rerank.errors import ConfigError
from rerank.lexicon import sentences
from rerank.runtime import Runtime
from rerank.synthesize.examples import Example
from rerank.synthesize.generators import (
    CropGenerator,
    ExtractiveGenerator,
    Generator,
    KeyphraseGenerator,
    LLMGenerator,
    Setting,
    Source,
)
from rerank.words import n_words

TEXTS = {
    "walk": "Directory trees. Walks a directory tree and yields the names of its files. See also the other functions.",
    "root": "Numbers. Gives the square root of a number, which must not be negative. See also the other functions.",
    "json": "Documents. Reads a JSON document from a text and gives its values. See also the other functions.",
}


def written(generator: Generator, texts: dict[str, str], corpus: MemoryCorpus | None = None) -> dict[str, list[str]]:
    sources = [Source(*item) for item in texts.items()]
    with Runtime(progress=False) as runtime:
        drafts = generator.drafts(sources, Setting(corpus or MemoryCorpus(TEXTS), 0), runtime)
    return {source.docno: [draft.text for draft in some] for source, some in zip(sources, drafts, strict=True)}


def test_the_sentence_that_tells_most_is_taken() -> None:
    found = written(ExtractiveGenerator(), TEXTS)
    assert found == {
        "walk": ["Walks a directory tree and yields the names of its files."],
        "root": ["Gives the square root of a number, which must not be negative."],
        "json": ["Reads a JSON document from a text and gives its values."],
    }


def test_more_sentences_are_the_next_best_and_no_more_than_there_are() -> None:
    found = written(ExtractiveGenerator(samples=9), TEXTS)["walk"]
    assert found[1:] == ["See also the other functions."]


def test_phrases_are_of_telling_words_and_short() -> None:
    found = written(KeyphraseGenerator(samples=4), TEXTS)
    for docno, queries in found.items():
        for query in queries:
            words = query.casefold().split()
            assert 2 <= len(words) <= 5 and len(set(words)) == len(words)
            assert all(word in TEXTS[docno].casefold() for word in words)
            assert not {"a", "the", "of", "and"} & set(words)
    assert len(set(found["root"])) > 1


@pytest.mark.parametrize("generator", [ExtractiveGenerator(samples=3), KeyphraseGenerator(samples=3), CropGenerator(3)])
def test_what_is_written_does_not_depend_on_other_documents_or_their_order(generator: Generator) -> None:
    texts = some_documents(20)
    corpus = corpus_of(texts)
    here = written(generator, texts, corpus)
    assert written(generator, dict(reversed(texts.items())), corpus) == here
    one = dict(list(texts.items())[4:5])
    assert written(generator, one, corpus).items() <= here.items()


@pytest.mark.parametrize("generator", [ExtractiveGenerator(samples=2), KeyphraseGenerator(samples=2), CropGenerator(2)])
@pytest.mark.parametrize(
    "text", ["", "...", "x", "of the and", "翼的升力是由压力差产生的。压力差取决于迎角。", "крыло создаёт силу"]
)
def test_any_text_gives_texts(generator: Generator, text: str) -> None:
    found = written(generator, {"d": text})["d"]
    assert all(isinstance(query, str) for query in found)
    if n_words(text) > 3:
        assert found[0].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("flow . a technique is given .", ["flow .", "a technique is given ."]),
        ("It is 3.5 wide, i.e. small.", ["It is 3.5 wide, i.e. small."]),
        ("升力。阻力！", ["升力。", "阻力！"]),
        ("Сила. Крыло.", ["Сила.", "Крыло."]),
        ("A\nline\n\nanother", ["A line", "another"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_a_long_sentence_is_cut_where_none_fits() -> None:
    text = "word " * 40 + "end"
    assert written(ExtractiveGenerator(max_words=6), {"d": text}) == {"d": ["word " * 5 + "word"]}


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 20), st.integers(0, 40))
def test_crops_are_words_of_the_beginning_as_they_stand(least: int, more: int, rest: int, n: int) -> None:
    words = [f"w{i}" for i in range(n)]
    generator = CropGenerator(3, min_words=least, max_words=least + more, among=least + more + rest)
    crops = written(generator, {"d": ", ".join(words)})["d"]
    assert len(crops) == (3 if n else 0)
    for crop in crops:
        found = crop.split(", ")
        start = words.index(found[0])
        assert found == words[start : start + len(found)]
        assert min(least, n) <= len(found) <= least + more and start + len(found) <= generator.among


def test_a_model_writes_by_every_prompt_with_the_examples_it_is_given() -> None:
    engine = ScriptedEngine(lambda text, i: f"{text.split()[0]} {i}")
    generator = LLMGenerator(engine, prompts=("duqgen-question", "duqgen-claim"), samples=2)
    setting = Setting(MemoryCorpus(TEXTS), 0, {"duqgen-claim": (Example("a document", "a claim"),)})
    with Runtime(progress=False) as runtime:
        (drafts,) = generator.drafts([Source("walk", TEXTS["walk"])], setting, runtime)
    assert [(draft.prompt, draft.sample, draft.seed, draft.text) for draft in drafts] == [
        ("duqgen-question", 0, 0, "Directory 0"),
        ("duqgen-question", 1, 1, "Directory 1"),
        ("duqgen-claim", 0, 0, "Directory 0"),
        ("duqgen-claim", 1, 1, "Directory 1"),
    ]
    assert "a claim" in generator.filled("duqgen-claim", setting).instruction
    assert "monarch" in generator.filled("duqgen-question", setting).instruction


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="3 samples would all be the same"):
        LLMGenerator(CausalLMEngine("m"), samples=3)
    assert LLMGenerator(CausalLMEngine("m", sampling=Sampling(temperature=0.5)), samples=3).samples == 3
    with pytest.raises(ConfigError, match="name one or more, each once"):
        LLMGenerator(CausalLMEngine("m"), prompts=("duqgen-claim", "duqgen-claim"))
    with pytest.raises(ConfigError, match="extractive: max_words is 2, at least 4"):
        ExtractiveGenerator(max_words=2)
    with pytest.raises(ConfigError, match="crops: among is 5, at least 10"):
        CropGenerator(among=5)
    with pytest.raises(ConfigError, match="keyphrase: samples is 0"):
        KeyphraseGenerator(samples=0)
