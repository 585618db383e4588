from __future__ import annotations

import dataclasses
import hashlib

import pytest

from rerank.errors import ConfigError, UnknownNameError
from rerank.prompts import Prompt, list_prompts, load_prompt
from rerank.prompts.layout import plain_text
from rerank.prompts.prompt import PROFILES, Message, imported_folder, parse_prompt

NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))
PLAIN = """\
description: A test.
verb: choices
parser: binary
labels: ["yes", "no"]
template: "{query} {document}"
"""


def broken(old: str, new: str) -> str:
    assert old in PLAIN
    return PLAIN.replace(old, new)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_written_out_is_the_same_prompt(name):
    prompt = load_prompt(name)
    again = parse_prompt(prompt.to_yaml(), name)
    assert again == prompt
    assert again.fingerprint == prompt.fingerprint
    assert prompt.name == name


def test_every_paradigm_and_every_checkpoint_family_has_a_prompt():
    own = {"yes-no", "graded", "query-likelihood", "pick", "pick-reasoning", "order", "first", "group-scores", "pair"}
    short = {"short-grades", "short-pick"}
    writing = {"duqgen-claim", "duqgen-keyword", "duqgen-question"}
    families = {"qwen3-reranker", "bge-gemma", "monot5", "rankgpt", "rankzephyr", "rank-r1", "rank-r1-sft"}
    rewriting = {"hyde", "query2doc", "reason"}
    assert own | short | families | rewriting | writing | {"grouprank", "rank1"} == set(NAMES)
    assert {name for name in NAMES if not load_prompt(name).shows_documents} == rewriting | writing
    for name in families | {"grouprank", "rank1", "first"}:
        assert load_prompt(name).source is not None, name


@pytest.mark.parametrize(
    ("name", "system", "user"),
    [
        (
            "rank-r1",
            (399, "e3c33b9fab873701ecc25c8aeed6e2676cc74f3a926ba33bbd1a8e829bf1e042"),
            (393, "389558fa248429655efa73da9337371110ae3ba8e316d6a045a4d7d0138b34c7"),
        ),
        ("rank-r1-sft", (224, "c04639f1fcf7de27"), (313, "ad23d2b5e3943cef")),
    ],
)
def test_published_wording_is_the_published_bytes(name, system, user):
    messages = load_prompt(name).messages
    for message, (length, digest) in zip(messages, (system, user), strict=True):
        assert len(message.content) == length
        assert hashlib.sha256(message.content.encode()).hexdigest().startswith(digest)


def test_published_wording_that_was_edited_is_refused_with_its_line():
    text = (PROFILES / "rank-r1.yaml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml:\d+: messages\[0\]\.content: the wording differs"):
        parse_prompt(text.replace("A conversation between", "A dialogue between"), "mine.yaml")
    prompt = load_prompt("rank-r1")
    other = (Message("system", "Something else."), *prompt.messages[1:])
    with pytest.raises(ConfigError, match="the wording differs"):
        dataclasses.replace(prompt, messages=other)


def test_the_fingerprint_is_of_what_is_asked_not_of_what_is_said_about_it():
    prompt = parse_prompt(PLAIN)
    assert dataclasses.replace(prompt, description="Other.", name="x", rule="setwise").fingerprint == prompt.fingerprint
    assert dataclasses.replace(prompt, labels=("Yes", "No")).fingerprint != prompt.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (broken("verb: choices", "verb: chose"), r"p\.yaml:2: .*verb: expected 'choices', 'generate' or 'likelihood'"),
        (
            broken("parser: binary", "parser: binry"),
            r"p\.yaml:3: .*no parser is called 'binry'; did you mean 'binary'\?",
        ),
        (broken("parser: binary", "parser: permutation"), r"p\.yaml:2: .*the parser permutation reads .* generate"),
        (broken("parser: binary", "parser: distribution"), r"p\.yaml:3: .*distribution reads answers about a group"),
        (broken("parser", "parsr"), r"p\.yaml:3: .*parsr: Prompt has no option 'parsr'; did you mean 'parser'\?"),
        (broken('labels: ["yes", "no"]', "labels: [0, 1]"), r"p\.yaml:4: .*labels\[0\]: expected a string"),
        (broken('"no"', '" Yes"'), r"p\.yaml:4: .*labels must be distinct"),
        (broken('"no"', '"no", "so"'), r"p\.yaml:4: .*the parser binary needs 2; found 3"),
        (broken('labels: ["yes", "no"]', "labels: letters"), r"p\.yaml:4: .*the parser binary needs a list of answers"),
        (
            broken("{document}", "{documnt}"),
            r"p\.yaml:5: .*there is no slot \{documnt\}; did you mean '\{document\}'\?",
        ),
        (broken("{query}", ""), r"p\.yaml:1: .*the slot \{query\} is needed"),
        (broken("{document}", "{document} {document}"), r"p\.yaml:1: .* needed in one place; found in 2"),
        (broken("{query}", "{query} {instruction}"), r"p\.yaml:1: .* needs a text: give `instruction`"),
        (broken("{query} ", "{query}\\x02"), r"p\.yaml:5: .*the control character '\\x02'"),
        (PLAIN + "messages: [{role: user, content: x}]\n", r"p\.yaml:1: .*a prompt has either messages or a template"),
        (PLAIN + "values: [1.0, 0.0]\n", r"p\.yaml:6: .*expectation takes one value"),
        (PLAIN + "closing: done\n", r"p\.yaml:6: .*only generated text"),
        (PLAIN + "truncation: {document_tokens: 0}\n", r"p\.yaml:6: .*0 tokens; at least 1"),
        (PLAIN + "max_documents: 0\n", r"p\.yaml:6: .*0 documents; at least 1"),
        (PLAIN + "thinking: maybe\n", r"p\.yaml:6: .*thinking: expected a boolean"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_prompt(text, "p.yaml")


WRITING = """\
description: A test.
verb: generate
parser: text
template: "Write about {query}."
"""


def test_a_prompt_about_the_query_alone_shows_no_documents():
    prompt = parse_prompt(WRITING)
    assert (prompt.shows_documents, prompt.most_documents) == (False, 0)
    assert plain_text(prompt, "wings", []) == "Write about wings."
    with pytest.raises(ConfigError, match="shows no document at a time; 1 were given"):
        plain_text(prompt, "wings", ["a document"])
    with pytest.raises(ConfigError, match=r"parser: text reads what is written about the query; no document"):
        parse_prompt(WRITING.replace("{query}", "{query} and {document}"), "p.yaml")
    with pytest.raises(ConfigError, match="the parser text reads answers of generate"):
        parse_prompt(WRITING.replace("generate", "choices"))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("yes-no", "pointwise"),
        ("rankgpt", "listwise"),
        ("grouprank", "groupwise"),
        ("rank-r1", "setwise"),
        ("first", "listwise"),
        ("pair", "pairwise"),
        ("short-grades", "groupwise"),
        ("short-pick", "setwise"),
    ],
)
def test_a_prompt_knows_the_rule_that_it_is_worded_for(name, rule):
    assert load_prompt(name).usual_rule == rule


CHAT = """\
description: A test.
verb: generate
parser: permutation
labels: numbers
messages:
  - {role: system, content: Rank.}
  - {role: user, content: "{query} {documents}"}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("role: user", "role: human", r"p\.yaml:7: .*messages\[1\]\.role: expected 'system', 'user' or 'assistant'"),
        ("role: user", "roel: user", r"p\.yaml:7: .*messages\[1\]\.roel: Message has no option 'roel'"),
        ("role: user", "role: system", r"p\.yaml:7: .*the system's turn comes first"),
        ("role: user", "role: assistant", r"p\.yaml:5: .*a conversation has a user's turn"),
        ("{documents}", "{document}", r"p\.yaml:3: .*permutation reads answers about a group of documents"),
        ("{documents}", "{label} {documents}", r"p\.yaml:7: .*the slot \{label\} stands in turns repeated"),
        ('documents}"}', 'documents}", each: true}', r"p\.yaml:7: .*the last turn is not repeated"),
        (
            "labels: numbers",
            "labels: numbers\ndocument: {format: 'x'}",
            r"p\.yaml:5: .*the slot \{text\} is needed once",
        ),
    ],
)
def test_what_is_wrong_in_a_conversation_is_told_with_its_line(old, new, message):
    assert old in CHAT
    with pytest.raises(ConfigError, match=message):
        parse_prompt(CHAT.replace(old, new), "p.yaml")


def test_grades_right_behind_labels_need_labels_that_are_no_numbers():
    text = CHAT.replace("permutation", "label-grades")
    with pytest.raises(ConfigError, match=r"p\.yaml:4: .*label-grades needs letters"):
        parse_prompt(text, "p.yaml")
    assert parse_prompt(text.replace("labels: numbers", "labels: letters")).shown_labels(2) == ("A", "B")


def test_numbers_to_choose_from_need_a_limit():
    text = CHAT.replace("generate", "choices").replace("permutation", "distribution")
    with pytest.raises(ConfigError, match="numbers to choose from need max_documents"):
        parse_prompt(text)
    assert parse_prompt(text + "max_documents: 9\n").most_documents == 9


def test_likelihood_needs_the_query_at_the_end():
    text = "description: x\nverb: likelihood\nparser: likelihood\ntemplate: '{query} {document}'\n"
    with pytest.raises(ConfigError, match="likelihood scores what ends the template"):
        parse_prompt(text)
    assert parse_prompt(text.replace("{query} {document}", "{document} {query}")).most_documents == 1


def test_how_many_documents_a_prompt_shows():
    most = {name: load_prompt(name).most_documents for name in ("yes-no", "pair", "pick", "first", "order")}
    assert most == {"yes-no": 1, "pair": 2, "pick": 20, "first": 20, "order": None}
    unlimited = dataclasses.replace(load_prompt("pick"), max_documents=None)
    assert unlimited.most_documents == 26
    assert unlimited.shown_labels(3) == ("A", "B", "C")


def test_prompts_are_found_by_name_and_by_path(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(PLAIN, encoding="utf-8")
    assert load_prompt(file) == load_prompt(str(file))
    assert load_prompt(file).name == "mine"
    with pytest.raises(UnknownNameError, match="no prompt is called 'rankr1'; did you mean 'rank-r1'"):
        load_prompt("rankr1")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompt(tmp_path / "none.yaml")


def test_an_imported_prompt_has_a_name_but_takes_none_of_the_package():
    imported_folder().mkdir(parents=True)
    for name in ("mine", "yes-no"):
        (imported_folder() / f"{name}.yaml").write_text(PLAIN, encoding="utf-8")
    assert load_prompt("mine").template == "{query} {document}"
    assert load_prompt("yes-no").messages
    assert list_prompts()["yes-no"].parent == PROFILES


def test_a_prompt_is_a_value():
    assert isinstance(load_prompt("yes-no"), Prompt)
    assert load_prompt("rank-r1") == load_prompt("rank-r1")
    assert hash(load_prompt("rank-r1")) == hash(load_prompt("rank-r1"))
