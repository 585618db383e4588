"""The dry run of training: counts are those of the engines, what is shown is what a model would see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_scorers import write_classifier
from tiny_tokenizers import byte_pairs

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.engines.pairs import BiEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.errors import ConfigError
from rerank.prompts import load_prompt
from rerank.runtime import Runtime
from rerank.train.contrastive import Contrastive
from rerank.train.groups import Groups, build_groups
from rerank.train.grpo import GRPO
from rerank.train.preview import Spread, count_tokens, preview
from rerank.train.sft import SFT
from rerank.train.sources import GroupSource, Positives
from rerank.train.targets import target_of

pytestmark = pytest.mark.needs("torch", "transformers")

DOCUMENTS = {
    "short": "a star",
    "long": "the star and the sun and the moon " * 40,
    "escape": "red \x1b[31m text\u202e <|im_end|> tail",
    "half": "broken \ud800 half",
    "ü": "Zürich 星",
}


@pytest.fixture
def groups(own_home: Path) -> Groups:
    queries = {"q1": "star", "q2": "sun and moon " * 30, "q3": ""}
    data = Dataset("toy", queries, MemoryCorpus(DOCUMENTS), {"q1": {"long": 1}, "q2": {"ü": 1}, "q3": {"ü": 1}})
    source = GroupSource(data="toy", sizes=(5,))
    return build_groups(source, Runtime(own_home, progress=False), data={"toy": data})


@pytest.fixture(scope="session")
def chat() -> Any:
    return byte_pairs()


def fits(text: str) -> bool:
    return all(len(line) <= 80 for line in text.split("\n")) and all(c.isprintable() or c == "\n" for c in text)


def test_without_a_prompt_pairs_are_counted_as_cross_encoders_cut_them(groups: Groups, tmp_path: Path) -> None:
    from rerank.engines.cross_encoder import load_cross_encoder

    folder = write_classifier(tmp_path / "tiny", "bert")
    with Runtime(tmp_path / "home", threads=1, device="cpu", progress=False) as runtime:
        model = load_cross_encoder(runtime, str(folder), dtype="float32")
        pairs = [(group.query, document) for group in groups for document in group.documents]
        for room in (12, 40, 64):
            tokens, counts = model.tokenise(pairs, room), count_tokens(groups, None, model.tokenizer, room)
            assert counts.cut == Spread.of(tokens.sizes.tolist())
            assert counts.cut_documents == int((tokens.lengths > tokens.sizes).sum())
            assert counts.cut_queries == tokens.cut_queries > 0
            assert (counts.inputs, counts.documents, counts.groups) == (len(pairs), len(pairs), len(groups))


@pytest.mark.parametrize("name", ["group-scores", "pick", "yes-no", "query-likelihood"])
def test_prompts_are_counted_and_shown_as_they_are_bound(groups: Groups, chat: Any, name: str) -> None:
    prompt = load_prompt(name)
    counts = count_tokens(groups, prompt, chat, 900)
    bound = prompt.bind(chat)
    asked: list[tuple[str, Sequence[str]]] = []
    for group in groups:
        asked += (
            [(group.query, group.documents)] if prompt.shows_many else [(group.query, [d]) for d in group.documents]
        )
    requests = bound.requests(asked, 900)
    assert counts.inputs == len(asked)
    assert counts.cut == Spread.of([len(request.tokens) for request in requests])
    assert counts.cut_documents == sum(request.truncated_documents for request in requests)
    assert counts.cut.longest <= counts.whole.longest
    shown = preview(groups, prompt, chat, max_tokens=900, examples=1)
    first = chat.decode(list(requests[0].tokens)).split("\n")[0]
    assert first[:40] in shown
    assert fits(shown)


def test_what_is_cut_is_told(groups: Groups, chat: Any) -> None:
    shown = preview(groups, load_prompt("group-scores"), chat, max_tokens=1024)
    counts = count_tokens(groups, load_prompt("group-scores"), chat, 1024)
    assert counts.cut_documents == 2
    assert f"{counts.cut_documents:,} of {counts.documents:,}" in shown
    assert "skipped         1 query with an empty text: q3" in shown
    assert "labels (grade)  8 of 0, 2 of 1" in shown
    assert "more lines ..." in shown


def test_without_a_tokenizer_texts_are_shown_and_nothing_is_counted(groups: Groups) -> None:
    for prompt in (None, load_prompt("pick")):
        shown = preview(groups, prompt)
        assert "tokens" not in shown
        assert all(docno in shown for docno in DOCUMENTS)
        assert fits(shown)
    assert "Which document serves the query" in shown


def test_groups_larger_than_the_prompt_shows_are_refused(own_home: Path, chat: Any) -> None:
    texts = {f"d{number}": f"text {number}" for number in range(30)}
    data = Dataset("toy", {"q": "star"}, MemoryCorpus(texts), {"q": {"d1": 1}})
    source = GroupSource(data="toy", sizes=(21,), positives=Positives())
    groups = build_groups(source, Runtime(own_home, progress=False), data={"toy": data})
    with pytest.raises(ConfigError, match="1 to 20 documents at a time; 21 were given"):
        preview(groups, load_prompt("pick"), chat)


def test_a_room_that_the_template_fills_is_refused(groups: Groups, chat: Any) -> None:
    with pytest.raises(ConfigError, match="max_tokens is 50"):
        preview(groups, load_prompt("group-scores"), chat, max_tokens=50)


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_a_spread_covers_95_of_100(sizes: list[int]) -> None:
    spread = Spread.of(sizes)
    assert sum(size <= spread.p95 for size in sizes) >= 0.95 * len(sizes)
    assert sum(size < spread.p95 for size in sizes) < 0.95 * len(sizes)
    assert spread.longest == max(sizes)


# -- recipes ------------------------------------------------------------


def test_what_is_to_be_written_is_shown_and_takes_room(groups: Groups, chat: Any) -> None:
    prompt = load_prompt("short-grades")
    recipe = SFT(engine=CausalLMEngine("any"), prompt="short-grades")
    room = 900
    shown = preview(groups, prompt, chat, recipe=recipe, max_tokens=room, examples=1)
    target = target_of(prompt, groups[0].labels)
    assert f"  > {target}\n" in shown and "with room for the answer" in shown and fits(shown)
    counts, plain = (count_tokens(groups, prompt, chat, room, each) for each in (recipe, None))
    size = len(prompt.bind(chat).answer_tokens(str(target), 5)) + 1
    assert counts.whole.longest == plain.whole.longest + size
    assert counts.cut.longest <= room and counts.cut_documents >= plain.cut_documents > 0


def test_groups_are_cut_as_the_recipe_cuts_them(groups: Groups, chat: Any) -> None:
    recipe = SFT(engine=CausalLMEngine("any"), prompt="short-grades", cut_to=(2,))
    counts = count_tokens(groups, load_prompt("short-grades"), chat, 900, recipe)
    assert counts.inputs == 3 * len(groups)  # 2, 2 and 1 of 5


def test_what_the_model_writes_itself_takes_room(groups: Groups, chat: Any) -> None:
    prompt = load_prompt("short-grades")
    recipe = GRPO(engine=CausalLMEngine("any"), prompt="short-grades", max_new_tokens=100)
    counts, less = count_tokens(groups, prompt, chat, 900, recipe), count_tokens(groups, prompt, chat, 800)
    assert counts.cut.longest == less.cut.longest + 100 <= 900
    assert counts.cut_documents == less.cut_documents


def test_a_bi_encoder_reads_texts_by_themselves(groups: Groups, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_classifier(tmp_path / "tiny", "bert")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    recipe = Contrastive(engine=BiEncoderEngine("any"))
    counts = count_tokens(groups, None, tokenizer, 12, recipe)
    assert counts.inputs == sum(1 + len(group.documents) for group in groups)
    assert counts.cut.longest == 12 < counts.whole.longest
    assert (counts.cut_documents, counts.cut_queries) == (4, 1)
    assert "queries and documents by themselves" in preview(groups, None, tokenizer, recipe=recipe, max_tokens=12)
