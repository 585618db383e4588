from __future__ import annotations

import json

import pytest

from rerank.errors import ConfigError
from rerank.prompts import load_prompt
from rerank.prompts.layout import plain_text
from rerank.prompts.prompt import PROFILES, sha256
from rerank.prompts.published import import_prompt

LISTWISE = """\
method: "singleturn_listwise"
system_message: "You sort texts."
prefix: |
  Here come {num} texts about {query}.
body: |
  ({rank}) {candidate}
suffix: |-
  Sort the {num} texts about {query}. Write {{"order": [[2], [1]]}}.
output_validation_regex: r"^x$"
"""
CONVERSATION = """\
method: "listwise_conv"
prefix: "Here come {num} texts about {query}."
prefix_assistant: "Go on."
body: "[{rank}] {candidate}"
body_assistant: "Got [{rank}]."
suffix: "Sort them."
"""


def test_a_published_file_is_recognised_by_its_wording(tmp_path, write_toml):
    for name in ("rank-r1", "rank-r1-sft"):
        imported = import_prompt(write_toml(tmp_path / "prompt.toml", name))
        assert (imported.like, imported.verified, imported.remarks) == (name, True, ())
        assert imported.prompt.fingerprint == load_prompt(name).fingerprint
        assert imported.prompt.name == f"{name}-published"
        assert imported.prompt.source.wording == "imported"
        assert load_prompt_text(imported.prompt, tmp_path) == imported.prompt


def load_prompt_text(prompt, folder):
    path = folder / f"{prompt.name}.yaml"
    path.write_text(prompt.to_yaml(), encoding="utf-8")
    return load_prompt(path)


def test_a_document_prefix_that_the_checkpoints_never_saw_is_not_taken(tmp_path, write_toml):
    path = write_toml(tmp_path / "prompt.toml", "rank-r1", extra='doc_prefix = "[{num}]: "\ndoc_separator = "\\n\\n"\n')
    imported = import_prompt(path)
    assert imported.prompt.document == load_prompt("rank-r1").document
    assert "'[{label}]: {text}'; the checkpoints were trained with '[{label}] {text}'" in imported.remarks[0]


def test_one_letter_of_difference_is_found(tmp_path, write_toml):
    path = write_toml(tmp_path / "mine.toml", "rank-r1", system="A conversation between user and Assistant.")
    with pytest.raises(ConfigError, match=r"no prompt of the package knows this wording .* --like NAME --unchecked"):
        import_prompt(path)
    with pytest.raises(
        ConfigError, match=r"not the wording of rank-r1 .*expected: system e3c33b9fab873701, user 389558f"
    ):
        import_prompt(path, like="rank-r1")
    imported = import_prompt(path, like="rank-r1", unchecked=True)
    assert (imported.verified, imported.prompt.name) == (False, "mine")


def test_an_unchecked_wording_brings_its_own_document_format(tmp_path):
    path = tmp_path / "v2.toml"
    path.write_text(
        'prompt_system = "Pick."\nprompt_user = "Query: {query}\\nDocuments:\\n{docs}"\n'
        'doc_separator = "\\n\\n"\ndoc_prefix = "[{num}]: "\n',
        encoding="utf-8",
    )
    prompt = import_prompt(path, like="rank-r1", unchecked=True).prompt
    assert plain_text(prompt, "a", ["b", "c"]).endswith("Query: a\nDocuments:\n[1]: b\n\n[2]: c")
    assert prompt.parser == "think-answer-pick"


def test_the_form_of_the_group_prompt_with_its_own_slots(tmp_path):
    path = tmp_path / "group.toml"
    user = 'Score {TOPK} documents.\nQuery:\n{QUERY}\n\nDocuments:\n{PASSAGES}\nLike {{"[1]": 5}} for {TOPK}.'
    path.write_text(f"prompt_system = \"Score.\"\nprompt_user = '''{user}'''\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected: system 0bfaa7a5baca4fd6, user b8ab00cd0219913c"):
        import_prompt(path, like="grouprank")
    prompt = import_prompt(path, like="grouprank", unchecked=True).prompt
    text = plain_text(prompt, "a", ["b", "c"])
    assert 'Score 2 documents.\nQuery:\na\n\nDocuments:\n[1]. b\n\n[2]. c\nLike {"[1]": 5} for 2.' in text


def test_a_file_of_rank_llm_with_all_documents_in_one_turn(tmp_path):
    path = tmp_path / "listwise.yaml"
    path.write_text(LISTWISE, encoding="utf-8")
    prompt = import_prompt(path, like="rankzephyr", unchecked=True).prompt
    assert plain_text(prompt, "wings", ["b", "c"]) == (
        "system:\nYou sort texts.\n\nuser:\nHere come 2 texts about wings.\n(1) b\n(2) c\n"
        'Sort the 2 texts about wings. Write {"order": [[2], [1]]}.'
    )
    assert load_prompt_text(prompt, tmp_path) == prompt


def test_a_file_of_rank_llm_with_a_turn_for_each_document(tmp_path):
    path = tmp_path / "conversation.yaml"
    path.write_text(CONVERSATION, encoding="utf-8")
    prompt = import_prompt(path, like="rankgpt", unchecked=True).prompt
    assert plain_text(prompt, "wings", ["b", "c"]).replace("\n", " ") == (
        "user: Here come 2 texts about wings.  assistant: Go on.  user: [1] b  assistant: Got [1].  user: [2] c  "
        "assistant: Got [2].  user: Sort them."
    )


def test_a_pointwise_file_of_rank_llm(tmp_path):
    path = tmp_path / "pointwise.yaml"
    path.write_text('method: "pointwise"\nbody: "Query: {query} Document: {doc_content}"\n', encoding="utf-8")
    prompt = import_prompt(path, like="qwen3-reranker", unchecked=True).prompt
    assert plain_text(prompt, "a", ["b"]) == "user:\nQuery: a Document: b\n\nassistant:\n<think>\n\n</think>\n\n"


def test_the_start_of_the_answer_comes_from_the_package(tmp_path):
    path = tmp_path / "alpha.yaml"
    path.write_text(LISTWISE, encoding="utf-8")
    prompt = import_prompt(path, like="first", unchecked=True).prompt
    assert (prompt.messages[-1].role, prompt.messages[-1].content) == ("assistant", "[")
    assert "(A) b\n(B) c" in plain_text(prompt, "wings", ["b", "c"])


def test_the_parts_of_a_rank_llm_file_are_checked_one_by_one(tmp_path, monkeypatch):
    for name in ("rankzephyr", "rankgpt"):
        text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
        if name == "rankzephyr":
            head = text[: text.index("  sha256:")]
            parts = {
                "system": "You sort texts.",
                "prefix": "Here come {num} texts about {query}.\n",
                "suffix": 'Sort the {num} texts about {query}. Write {{"order": [[2], [1]]}}.',
            }
            text = f"{head}  sha256: {json.dumps({part: sha256(each) for part, each in parts.items()})}\n"
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    for module in ("prompt", "published"):
        monkeypatch.setattr(f"rerank.prompts.{module}.PROFILES", tmp_path)
    path = tmp_path / "file" / "listwise.yaml"
    path.parent.mkdir()
    path.write_text(LISTWISE, encoding="utf-8")
    imported = import_prompt(path)
    assert (imported.like, imported.verified) == ("rankzephyr", True)
    path.write_text(LISTWISE.replace("Sort the", "sort the"), encoding="utf-8")
    with pytest.raises(ConfigError, match="no prompt of the package knows this wording"):
        import_prompt(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a published prompt is a .toml file of llm-rankers or a .yaml file of rank_llm"),
        ("a.toml", "x = ", "not valid TOML"),
        ("a.toml", "x = 1", "has no user text"),
        ("a.toml", "prompt_user = 1", "prompt_user is not a text"),
        ("a.yaml", "x: 1", r"a.yaml:1: a prompt file of rank_llm has `method` and `body`"),
        ("none.toml", None, "cannot be read"),
    ],
)
def test_what_is_no_published_prompt_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        import_prompt(tmp_path / name, like="order", unchecked=True)


def test_a_wording_that_does_not_fit_its_likeness_is_refused(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('prompt_user = "{query} {docs}"', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.toml: binary reads answers about one document"):
        import_prompt(path, like="yes-no", unchecked=True)


def test_the_names_of_the_package_are_taken(tmp_path, write_toml):
    with pytest.raises(ConfigError, match="the package has a prompt called 'order'"):
        import_prompt(write_toml(tmp_path / "a.toml", "rank-r1"), name="order")
