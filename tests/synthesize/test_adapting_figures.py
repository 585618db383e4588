"""The script that compares adaptations: its ways to synthesize, and its table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rerank.data.dataset import Dataset
from rerank.evaluation.evaluation import Evaluation, evaluate_run
from rerank.ranking import Ranking
from rerank.run import Run
from rerank.synthesize.adaptation import Adaptation

PATH = Path(__file__).parents[2] / "scripts" / "figures" / "adapting.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")  # which the script sets where nobody has
    found = importlib.util.spec_from_file_location("adapting", PATH)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def evaluation(*ranks: int) -> Evaluation:
    """A run that has each query's relevant document at that rank."""
    qids = [f"q{i}" for i in range(len(ranks))]
    lists = {
        qid: {("right" if place == rank else f"d{place}"): -float(place) for place in range(1, 6)}
        for qid, rank in zip(qids, ranks, strict=True)
    }
    data = Dataset("toy", dict.fromkeys(qids, "what"), qrels={qid: {"right": 1} for qid in qids})
    return evaluate_run(Run("run", Ranking.of(lists)), data, ["nDCG@10"])


def test_ways_differ_in_what_they_compare_and_nothing_else(script: Any) -> None:
    plain = Adaptation(data="stdlib", documents=50, seed=2)
    ways = {way for _, some, _ in script.TASKS.values() for way in some} | {"whole"}
    made = {way: script.synthesized(way, plain, "smollm2-135m") for way in ways}
    assert {(each.documents, each.seed, each.negatives, each.dev) for each in made.values()} == {
        (50, 2, plain.duqgen().negatives, plain.duqgen().dev)
    }
    assert made["clusters"] == made["mixed"] == plain.duqgen()
    assert made["uniform"].clusters is None and made["uniform"].generator == made["clusters"].generator
    assert (made["llm"].generator.samples, made["llm"].round_trip) == (1, None)
    assert made["llm, best of 4"].generator.samples == 4 and made["llm, best of 4"].round_trip is not None
    file = script.synthesized("stdlib-sentences", plain, "")
    assert (file.generator.label, file.documents, file.seed) == ("extractive", 50, 2)


def test_systems_are_compared_query_by_query_with_the_means_over_seeds(script: Any) -> None:
    systems = script.Systems("toy")
    systems.add("first", evaluation(3, 3, 3))
    systems.add("ours", evaluation(1, 1, 2), 10)
    systems.add("ours", evaluation(1, 3, 2), 14)
    first, ours = systems.rows(("first", "ours"))
    assert first["nDCG@10"] == pytest.approx(0.5) and "to ours" not in first
    assert ours["synthetic queries"] == 12 and len(ours["by seed"]) == 2
    assert ours["to first"] == pytest.approx((0.5 + 0.25 + 0.1309) / 3, abs=1e-4)
    assert ours["p first"] == 0.25 and ours["interval first"][0] <= ours["to first"] <= ours["interval first"][1]
    text = script.table([first, ours])
    assert len(text.splitlines()) == 4 and len({line.count("|") for line in text.splitlines()}) == 1
