"""Runs that go on: after a kill, the same run again, pipelines that ask one model the same; with real, tiny engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.trec import write_run
from rerank.engines.language_model import Sampling
from rerank.engines.pairs import CrossEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.setwise import Setwise
from rerank.run import Run
from rerank.runtime import Runtime

pytestmark = [pytest.mark.needs("torch", "transformers"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a cross-encoder and a language model."""
    from tiny_scorers import write_chat_lm, write_classifier

    folder = tmp_path_factory.mktemp("models")
    return {"pairs": str(write_classifier(folder / "pairs", "bert")), "chat": str(write_chat_lm(folder / "chat"))}


def some_lists(n_queries: int, n_documents: int) -> Ranking:
    from tiny_models import some_texts

    texts = {f"d{i}": text for i, text in enumerate(some_texts(n_documents + n_queries))}
    docnos = list(texts)
    given = {
        f"q{place}": {docno: float(-i) for i, docno in enumerate(docnos[place : place + n_documents])}
        for place in range(n_queries)
    }
    queries = dict(zip(given, some_texts(n_queries, seed=1), strict=True))
    return Ranking.of(given, queries, source=MemoryCorpus(texts))


def reranked(stage: Rerank, lists: Ranking, home: Path, to: Path, *, cache: bool = True) -> dict[str, int]:
    """Writes the run and gives its counts."""
    with Runtime(home, progress=False, device="cpu", threads=1, cache=cache) as runtime:
        ranking = runtime.rank(stage, lists)
        write_run(Run("r", ranking), to)
        return dict(runtime.stats[0].counts)


# -- killed ------------------------------------------------------------


def whole_at_once(model: str) -> tuple[Rerank, Ranking]:
    return Rerank(CrossEncoderEngine(model, dtype="float32"), k=None), some_lists(20, 100)


def wave_by_wave(model: str) -> tuple[Rerank, Ranking]:
    """Every wave asks what the answers of the last one lead to."""
    engine = CausalLMEngine(model, dtype="float32")
    return Rerank(engine, Setwise(k=3, size=4), "pick", k=20), some_lists(10, 20)


def run_until_killed(what: str, model: str, home: str, n_batches: str) -> None:
    """In a process of its own: `kill -9` from within the batch of that number."""
    from rerank.engines.scorer import Scorer

    run_batches, left = Scorer._in_batches, [int(n_batches)]

    def killing(self: Scorer, batches: Any, cost: Any, run: Callable[[list[int]], Any]) -> Any:
        def last(batch: list[int]) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(batch)

        return run_batches(self, batches, cost, last)

    stage, lists = globals()[what](model)
    Scorer.order_holds = lambda self: True  # type: ignore[method-assign]
    Scorer._in_batches = killing  # type: ignore[method-assign]
    reranked(stage, lists, Path(home), Path(home) / "killed.trec")


@pytest.mark.parametrize(
    ("made", "model", "n_requests"), [(whole_at_once, "pairs", 2000), (wave_by_wave, "chat", 80)], ids=["one", "waves"]
)
def test_after_a_kill_only_the_batch_in_flight_is_asked_for_again_and_the_run_is_the_same(
    models: dict[str, str],
    tmp_path: Path,
    made: Callable[[str], tuple[Rerank, Ranking]],
    model: str,
    n_requests: int,
) -> None:
    home, n_batches = tmp_path / "home", 12
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_resuming as tests; "
    program += "tests.run_until_killed(*sys.argv[1:])"
    command = [sys.executable, "-c", program, made.__name__, models[model], str(home), str(n_batches)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (home / "killed.trec").exists()
    with Runtime(home, progress=False) as runtime:
        assert runtime.requests is not None
        kept = runtime.requests.contents().n_answers
    stage, lists = made(models[model])
    resumed = reranked(stage, lists, home, tmp_path / "resumed.trec")
    undisturbed = reranked(stage, lists, tmp_path, tmp_path / "undisturbed.trec", cache=False)
    assert (tmp_path / "resumed.trec").read_bytes() == (tmp_path / "undisturbed.trec").read_bytes()
    assert resumed["requests"] == undisturbed["requests"] >= n_requests
    assert 0 < kept <= resumed["cached answers"] < resumed["requests"]
    assert "cached answers" not in undisturbed


# -- again ------------------------------------------------------------


def language(model: str, prompt: str, rule: Any = None, **options: Any) -> Rerank:
    engine = CausalLMEngine(model, dtype="float32", **options)
    return Rerank(engine, prompt=prompt) if rule is None else Rerank(engine, rule, prompt)


VERBS: dict[str, tuple[str, Callable[[str], Rerank]]] = {
    "pairs": ("pairs", lambda model: Rerank(CrossEncoderEngine(model, dtype="float32"))),
    "choices": ("chat", lambda model: language(model, "yes-no")),
    "likelihood": ("chat", lambda model: language(model, "query-likelihood")),
    "generate": (
        "chat",
        lambda model: language(model, "order", Listwise(4, 2), sampling=Sampling(max_tokens=4, temperature=1.0)),
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_run_again_asks_nothing_and_gives_the_same(models: dict[str, str], tmp_path: Path, verb: str) -> None:
    model, stage_of = VERBS[verb]
    stage, lists = stage_of(models[model]), some_lists(3, 12)
    first = reranked(stage, lists, tmp_path, tmp_path / "first.trec")
    again = reranked(stage, lists, tmp_path, tmp_path / "again.trec")
    apart = reranked(stage, lists, tmp_path, tmp_path / "apart.trec", cache=False)
    texts = [(tmp_path / f"{name}.trec").read_bytes() for name in ("first", "again", "apart")]
    assert texts == texts[:1] * 3
    assert again["cached answers"] == again["requests"] == first["requests"]
    assert "tokens" not in again
    # What the rules and prompts count does not depend on who answered.
    ours = ("cached answers", "tokens", "reused tokens", "generated tokens")
    kept, asked = ({what: n for what, n in each.items() if what not in ours} for each in (again, apart))
    assert kept == asked


def test_other_options_other_answers(models: dict[str, str], tmp_path: Path) -> None:
    lists = some_lists(1, 4)

    def cached(**options: Any) -> int:
        stage = language(models["chat"], "order", Listwise(4, 2), **options)
        return reranked(stage, lists, tmp_path, tmp_path / "a.trec").get("cached answers", 0)

    asked = [
        {"sampling": Sampling(max_tokens=4)},
        {"sampling": Sampling(max_tokens=5)},
        {"sampling": Sampling(max_tokens=4, stop=("x",))},
        {"sampling": Sampling(max_tokens=4, temperature=1.0)},
        {"sampling": Sampling(max_tokens=4, temperature=1.0, seed=1)},
        {"sampling": Sampling(max_tokens=4, temperature=1.0, top_p=0.5)},
        {"sampling": Sampling(max_tokens=4), "max_tokens": 200},
    ]
    assert [cached(**options) for options in asked] == [0] * len(asked)
    assert cached(**asked[3]) == 1
    # Without draws a seed says nothing.
    assert cached(sampling=Sampling(max_tokens=4, seed=7)) == 1


def test_three_rules_of_one_model_share_its_answers(models: dict[str, str], tmp_path: Path) -> None:
    lists = some_lists(2, 6)
    rules = [Pairwise("all"), Pairwise("heap", k=3), Pairwise("bubble", k=3)]
    with Runtime(tmp_path, progress=False, device="cpu", threads=1) as runtime:
        for rule in rules:
            runtime.rank(language(models["chat"], "pair", rule), lists)
        counts = [stats.counts for stats in runtime.stats]
    assert counts[0]["requests"] == 2 * 6 * 5
    assert "cached answers" not in counts[0]
    assert [each["cached answers"] for each in counts[1:]] == [each["requests"] for each in counts[1:]]


def test_without_a_cache_nothing_is_written(models: dict[str, str], tmp_path: Path) -> None:
    stage, lists = VERBS["pairs"][1](models["pairs"]), some_lists(1, 4)
    reranked(stage, lists, tmp_path / "home", tmp_path / "a.trec", cache=False)
    assert not (tmp_path / "home" / "requests").exists()
