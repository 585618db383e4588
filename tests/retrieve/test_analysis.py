"""Text analysis: what each rule does, that bulk equals one by one, and the figures that chose the defaults."""

from __future__ import annotations

import gzip
import json
import pickle
import string
import sys
import threading
import unicodedata
from collections import defaultdict
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import ConfigError, DataError, UnknownNameError
from rerank.retrieve import stopwords
from rerank.retrieve.analysis import ALGORITHMS, LANGUAGES, LONGEST_WORD_CHARACTERS, Analyser, analyse

# Texts that mix what is easy with what is not: scripts, marks, joiners, surrogates, line ends, digits, signs.
AWKWARD = (
    "aIiİıßΣς1_ .'-½²™é\u0301\u0307\u200b\u200c\u200d\u00ad\u200f\ufeff\ufe0f\ud800\n\x00"
    "कि्ाก่ำ中國ー々ア가힣بَّ٣ـו֑שׁ😀\U0001f3fd\U00011005"
)
any_text = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters()), max_size=30)
languages = st.sampled_from(sorted(LANGUAGES))


def plain(language: str) -> Analyser:
    return Analyser(language, stem=False, stop_words=False)


# -- the rules, one by one


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("en", "", []),
        ("en", "the of and", []),
        ("en", "a b c 1", []),
        ("en", "Foo_bar don't  re-rank", ["foo_bar", "don", "re", "rank"]),
        ("und", "a b1 c", ["a", "b1", "c"]),
        ("und", "tab\tline\nnull\x00bell\x07end", ["tab", "line", "null", "bell", "end"]),
        ("und", "ﬁne ＡＢＣ１ H₂O m² ｶﾞｽ", ["fine", "abc1", "h2o", "m2", "ガス"]),
        ("und", "Lipitor™ 2½ cups", ["lipitor", "2", "1", "2", "cups"]),
        ("und", "E\u0301te\u0301 ÉTÉ", ["été", "été"]),
        ("und", "٣٤ ३४ 34", ["34", "34", "34"]),
        ("und", "hy\u00adphen", ["hyphen"]),
        ("und", "\ufeffword\u200e \u202bword\u202c wo\u2060rd", ["word", "word", "word"]),
        ("und", "zero\u200bwidth space", ["zero", "width", "space"]),
        ("und", "İstanbul ISTANBUL", ["istanbul", "istanbul"]),
        ("tr", "İstanbul ILIK Iğdır", ["istanbul", "ılık", "ığdır"]),
        ("az", "I\u0307I", ["iı"]),
        ("und", "1️⃣ ❤️ 👩‍👩‍👧 👍🏽 x👍y", ["1", "x", "y"]),
        ("und", "half\ud800word \udfff", ["half", "word"]),
        ("und", "\u0301\u093e alone", ["alone"]),
        ("el", "ΟΔΟΣ Σ", ["οδος", "σ"]),
    ],
)
def test_words_are_normalised_and_cut(language: str, text: str, terms: list[str]) -> None:
    assert Analyser(language, stem=False)(text) == terms


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("hi", "हिन्दी में क्या है", ["हिन्दी", "में", "क्या", "है"]),
        ("hi", "क्‍ष र्‌य", ["क्ष", "र्य"]),
        ("hi", "क़लम क़लम", ["क़लम", "क़लम"]),
        ("ta", "தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("bn", "বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("und", "\U00011005\U00011038x y", ["\U00011005\U00011038x", "y"]),
        ("ar", "مُحَمَّد محمد مـحـمـد", ["محمد", "محمد", "محمد"]),
        ("ar", "ا\u0653ب", ["آب"]),
        ("he", "שָׁלוֹם", ["שלום"]),
        ("und", "x\u0302y", ["x\u0302y"]),
    ],
)
def test_words_are_not_broken_at_combining_marks(language: str, text: str, terms: list[str]) -> None:
    assert plain(language)(text) == [unicodedata.normalize("NFKC", term) for term in terms]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("北京大学", ["北京", "京大", "大学"]),
        ("中", ["中"]),
        ("中。国", ["中", "国"]),
        ("2016年NFL球队", ["2016", "年", "nfl", "球队"]),
        ("人々のサッカー", ["人々", "々の", "のサ", "サッ", "ッカ", "カー"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("東\ufe00京\U000e0100", ["東京"]),
        ("한국어 가", ["한국", "국어", "가"]),
        ("ที่นี่ ก", ["ที่นี่", "ก"]),
        ("ที่นี้กา", ["ที่นี้", "นี้ก", "กา"]),
        ("中\u0308文", ["中\u0308文"]),
        ("ລາວ", ["ລາ", "າວ"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
    ],
)
@pytest.mark.parametrize("language", ["zh", "ja", "th", "und"])
def test_scripts_without_spaces_give_pairs_of_characters(language: str, text: str, terms: list[str]) -> None:
    assert plain(language)(text) == terms


def test_a_chinese_run_in_an_english_text_is_paired_and_a_lone_character_is_kept() -> None:
    assert Analyser()("The word 北京大学 and 中 (x)") == ["word", "北京", "京大", "大学", "中"]


def test_a_persian_joiner_serves_the_stemmer_and_is_not_in_the_term() -> None:
    assert Analyser("fa")("کتاب‌ها") == Analyser("fa")("کتابها") == ["کتاب"]
    assert plain("fa")("کتاب‌ها \u200cمی‌خواهم\u200c") == ["کتابها", "میخواهم"]


def test_words_are_stemmed_after_stop_words_went() -> None:
    assert Analyser("de")("Die Häuser und der Garten") == ["haus", "gart"]
    assert Analyser("de", stem=False)("Die Häuser und der Garten") == ["häuser", "garten"]
    assert Analyser("de", stop_words=False)("Die Häuser") == ["die", "haus"]
    assert Analyser(stem="porter")("generously") != Analyser()("generously")


def test_given_stop_words_are_normalised_like_the_text() -> None:
    analyser = Analyser(stem=False, stop_words=("Straße", "ＦＯＯ", "北京"))
    assert analyser("the STRAßE foo 北京大学 bar") == ["the", "京大", "大学", "bar"]


def test_a_stemmer_that_leaves_nothing_gives_no_term() -> None:
    assert Analyser("und", stem="porter")("s yes") == ["ye"]


def test_long_words_are_cut() -> None:
    word = "x" * 1_000_000
    for text in (word, "क" + "ा" * 1_000_000, "a" + "\u0301" * 1_000_000, "क\u093e" * 100_000):
        (term,) = plain("hi")(text)
        assert len(term) <= LONGEST_WORD_CHARACTERS
    assert plain("en")(word) == analyse([word, word], plain("en")).vocabulary == ["x" * LONGEST_WORD_CHARACTERS]


def test_a_token_pattern_replaces_words_pairs_and_the_length_rule() -> None:
    analyser = Analyser(stem=False, stop_words=False, token_pattern=r"\w+")
    assert analyser("A b ＣＤ 北京大学") == ["a", "b", "cd", "北京大学"]
    assert Analyser(stem=False, token_pattern="[a-z]{3,}")("a an the cat") == ["cat"]
    assert Analyser(token_pattern="x*")("axa") == ["x"]


# -- configuration


@given(languages)
def test_resolving_names_everything_and_changes_nothing(language: str) -> None:
    analyser = Analyser(language)
    resolved = analyser.resolve()
    assert resolved.resolve() == resolved
    assert isinstance(resolved.stop_words, tuple)
    assert resolved.stem is False or resolved.stem in ALGORITHMS
    text = "The houses of die Häuser les maisons дома 北京 हिन्दी"
    assert resolved(text) == analyser(text)


def test_a_pattern_that_lets_no_short_word_through_resolves() -> None:
    assert Analyser(token_pattern="[a-z]{5,}").resolve().stop_words == ("their", "there", "these")


def test_an_analyser_is_a_value() -> None:
    analyser = Analyser("de", stop_words=("und",))
    assert pickle.loads(pickle.dumps(analyser)) == analyser  # noqa: S301
    assert hash(analyser) == hash(Analyser("de", stop_words=("und",)))
    assert eval(repr(analyser)) == analyser  # noqa: S307
    assert Analyser("de") != Analyser("en")


def test_it_validates_strictly_from_json_and_round_trips() -> None:
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(Analyser)
    for analyser in (Analyser(), Analyser("ru").resolve(), Analyser("zh", stem=False, token_pattern=r"\w+")):
        assert adapter.validate_json(adapter.dump_json(analyser), strict=True) == analyser
    for bad in ('{"stem": 1}', '{"language": 3}', '{"stop_words": "none"}', '{"stop_words": [1]}'):
        with pytest.raises(ValidationError):
            adapter.validate_json(bad, strict=True)


@pytest.mark.parametrize(
    ("given_name", "meant"),
    [("german", "de"), ("EN", "en"), ("en-US", "en"), ("zh_Hans", "zh"), ("portugese", "pt"), ("ger", "de")],
)
def test_an_unknown_language_is_answered_with_the_nearest_code(given_name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"{given_name!r}; did you mean '{meant}'\?.* ar, az,.*, zh\)$"):
        Analyser(given_name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"language": "xx"}, "unknown language 'xx' "),
        ({"language": ""}, "unknown language '' "),
        ({"stem": "germn"}, "'germn' is no Snowball algorithm; did you mean 'german'"),
        ({"language": "zh", "stem": True}, "'zh' has no Snowball stemmer: set stem to false"),
        ({"language": "hi", "stop_words": True}, "'hi' has no list of stop words: give the words"),
        ({"stop_words": "none"}, "stop_words is 'none', expected true, false, auto or the words"),
        ({"stop_words": ["the"]}, r"stop_words is \['the'\], expected"),
        ({"stop_words": ("don't",)}, 'stop word "don\'t" is 2 words'),
        ({"stop_words": ("",)}, "stop word '' is 0 words"),
        ({"token_pattern": "("}, "no regular expression: missing"),
        ({"token_pattern": "(a)b"}, r"has groups: write \(\?:"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Analyser(**fields)  # type: ignore[arg-type]


def test_every_snowball_algorithm_is_known_and_every_language_runs() -> None:
    import Stemmer

    assert set(Stemmer.algorithms()) >= ALGORITHMS
    for language in LANGUAGES:
        assert Analyser(language)("Ångström 1900 дом 北京") != []


def test_an_algorithm_that_the_installed_stemmer_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import Stemmer

    monkeypatch.setattr(Stemmer, "algorithms", lambda: ["english"])
    with pytest.raises(ConfigError, match=r"'porter' is not in the installed PyStemmer .*pip install -U"):
        Analyser("und", stem="porter", stop_words=("unseen",))("x")


def test_versions_name_what_the_terms_depend_on() -> None:
    assert set(Analyser().versions()) == {"rules", "unicode", "PyStemmer"}
    assert set(Analyser("zh").versions()) == {"rules", "unicode"}


def test_every_listed_stop_word_can_occur() -> None:
    for language in stopwords.LANGUAGES:
        listed = stopwords.stop_words(language)
        assert Analyser(language).resolve().stop_words == listed
        assert Analyser(language)(" ".join(listed)) == []


def test_making_and_checking_analysers_loads_no_retrieval_library() -> None:
    code = (
        "import sys; from rerank.retrieve.analysis import Analyser; Analyser('de'); Analyser()\n"
        "print(sorted({'bm25s', 'numba', 'scipy', 'Stemmer', 'torch'} & set(sys.modules)))"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- many texts


@settings(deadline=None)
@given(st.lists(any_text, max_size=6), languages)
def test_bulk_equals_one_by_one(texts: list[str], language: str) -> None:
    analyser = Analyser(language)
    terms = analyse(iter(texts), analyser)
    assert [[terms.vocabulary[code] for code in row] for row in terms] == [analyser(text) for text in texts]
    assert len(terms) == len(texts)
    assert len(set(terms.vocabulary)) == len(terms.vocabulary)


def test_bulk_is_compact_and_numbers_terms_by_first_occurrence() -> None:
    terms = analyse(["b a", "", "c b b"], Analyser("und"))
    assert (terms.ids.dtype, terms.offsets.dtype) == (np.int32, np.int64)
    assert terms.vocabulary == ["b", "a", "c"]
    assert terms.ids.tolist() == [0, 1, 2, 0, 0]
    assert terms.offsets.tolist() == [0, 2, 2, 5]


def test_no_texts_give_no_terms() -> None:
    terms = analyse([], Analyser())
    assert (len(terms), terms.ids.tolist(), terms.offsets.tolist(), terms.vocabulary) == (0, [], [0], [])


def test_one_string_in_place_of_many_is_refused() -> None:
    with pytest.raises(DataError, match=r"one string \('some text'\).*pass \[text\]"):
        analyse("some text", Analyser())


def test_threads_agree() -> None:
    analyser, texts = Analyser("ru"), ["дома домами домов running рек"] * 200
    expected = [analyser(text) for text in texts]
    results: list[list[list[str]]] = []
    threads = [threading.Thread(target=lambda: results.append([analyser(t) for t in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


# -- properties


@settings(deadline=None, max_examples=300)
@given(any_text, any_text, languages)
def test_joining_texts_by_a_blank_joins_their_terms(first: str, second: str, language: str) -> None:
    analyser = Analyser(language)
    assert analyser(f"{first} {second}") == analyser(first) + analyser(second)


@settings(deadline=None)
@given(any_text, languages)
def test_terms_are_never_empty_and_always_the_same(text: str, language: str) -> None:
    terms = Analyser(language)(text)
    assert all(0 < len(term) <= 2 * LONGEST_WORD_CHARACTERS for term in terms)
    assert Analyser(language).resolve()(text) == terms


@settings(deadline=None)
@given(any_text, languages)
def test_equivalent_unicode_forms_give_the_same_terms(text: str, language: str) -> None:
    analyser = plain(language)
    composed = unicodedata.normalize("NFC", text)
    assert analyser(unicodedata.normalize("NFD", composed)) == analyser(composed)


@given(st.text(string.printable, max_size=60))
def test_english_on_ascii_is_bm25s_with_its_stop_words_and_the_english_stemmer(text: str) -> None:
    import bm25s
    import Stemmer

    expected = bm25s.tokenize(
        text, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
    )
    assert Analyser()(text) == expected[0]


# -- figures on real collections


def ndcg(folder: Path, analyser: Analyser) -> float:
    """nDCG@10 of bm25s (lucene, k1 0.9, b 0.4) over a BEIR folder's test split."""
    import bm25s
    import ir_measures

    def lines(name: str) -> list[dict[str, str]]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        qid, docno, grade = line.split("\t")
        qrels[qid][docno] = int(grade)
    corpus = lines("corpus.jsonl.gz")
    terms = analyse((f"{d['title']} {d['text']}" for d in corpus), analyser)
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    vocabulary = {term: code for code, term in enumerate(terms.vocabulary)}
    index.index(([row.tolist() for row in terms], vocabulary), show_progress=False)
    answers: dict[str, dict[str, float]] = {}
    for query in lines("queries.jsonl.gz"):
        known = [vocabulary[term] for term in analyser(query["text"]) if term in vocabulary]
        if query["_id"] in qrels and known:
            scores = index.get_scores_from_ids(known)
            best = np.argsort(-scores, kind="stable")[:100]
            answers[query["_id"]] = {corpus[i]["_id"]: float(scores[i]) for i in best}
    measure = ir_measures.nDCG @ 10
    return float(ir_measures.calc_aggregate([measure], dict(qrels), answers)[measure])


REFERENCES = {"beir-nfcorpus": 0.3177, "beir-scifact": 0.6762, "cranfield": 0.3517, "vaswani": 0.4449}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_english_default_reproduces_the_reference(shared_data: Path, name: str) -> None:
    assert ndcg(shared_data / name, Analyser()) == pytest.approx(REFERENCES[name], abs=0.0005)


XQUAD = {
    "en": 0.9639,
    "de": 0.9159,
    "es": 0.9482,
    "ru": 0.8718,
    "tr": 0.8933,
    "ar": 0.8874,
    "zh": 0.9646,
    "hi": 0.7711,
}


@pytest.mark.parametrize("language", XQUAD)
def test_unstemmed_words_reproduce_xquad(shared_data: Path, language: str) -> None:
    pattern = None if language == "zh" else r"\w+"
    analyser = Analyser(language, stem=False, stop_words=False, token_pattern=pattern)
    assert ndcg(shared_data / f"xquad-{language}-{language}", analyser) == pytest.approx(XQUAD[language], abs=0.005)


@pytest.mark.parametrize("language", XQUAD)
def test_the_default_is_not_below_unstemmed_words_on_xquad(shared_data: Path, language: str) -> None:
    assert ndcg(shared_data / f"xquad-{language}-{language}", Analyser(language)) >= XQUAD[language] - 0.005
