"""The runtime: loaded resources, statistics, sharing, provenance, threads, progress."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.data.dataset import Dataset
from rerank.errors import MissingExtraError, PipelineError
from rerank.ranking import Ranking, ScoreKind
from rerank.run import Run, StageStats
from rerank.runtime import Runtime, cpu_budget
from rerank.stage import Cut, Pipeline, Stage, apply

RANKING = Ranking.of({"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0}})


@dataclass(frozen=True)
class Counted(Stage):
    """Scores doubled; every call is written down."""

    name: str
    calls: ClassVar[list[str]] = []

    @property
    def label(self) -> str:
        return self.name

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        self.calls.append(self.name)
        runtime.count("rows", len(ranking.docs))
        runtime.note(self.name, "noted")
        return ranking.rescored(ranking.scores * 2, ScoreKind.LOGIT)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    Counted.calls.clear()


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path, progress=False)


# -- life -------------------------------------------------------------------------


def test_the_innermost_runtime_is_the_current_one_and_goes_with_its_block(tmp_path: Path) -> None:
    assert Runtime.current() is None
    with Runtime(tmp_path, progress=False) as outer:
        with Runtime(tmp_path, progress=False) as inner:
            assert Runtime.current() is inner
        assert Runtime.current() is outer
    assert Runtime.current() is None


def test_a_stage_called_outside_a_runtime_gets_one_of_its_own() -> None:
    seen: list[Runtime | None] = []

    def look(ranking: Ranking) -> Ranking:
        seen.append(Runtime.current())
        return ranking

    apply(look)(RANKING)
    with Runtime(progress=False) as mine:
        apply(look)(RANKING)
    assert isinstance(seen[0], Runtime)
    assert seen[0] is not mine
    assert seen[1] is mine


def test_current_or_new_is_the_enclosing_one_if_there_is_one(runtime: Runtime) -> None:
    with runtime, Runtime.current_or_new() as same:
        assert same is runtime
    with Runtime.current_or_new() as new:
        assert Runtime.current() is new
    assert Runtime.current() is None


def test_what_was_loaded_goes_when_the_outermost_block_ends(runtime: Runtime) -> None:
    loads: list[int] = []

    def load() -> int:
        loads.append(1)
        return len(loads)

    with runtime:
        with runtime:
            assert runtime.resource("x", load) == 1
        assert runtime.resource("x", load) == 1
    assert runtime.resource("x", load) == 2


# -- resources -----------------------------------------------------------------------


def test_the_least_recently_used_resource_goes_first(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path, progress=False, capacity=2)
    loads: list[str] = []

    def loader(key: str) -> Callable[[], str]:
        def load() -> str:
            loads.append(key)
            return key

        return load

    for key in ("a", "b", "a", "c", "a", "b"):
        assert runtime.resource(key, loader(key)) == key
    assert loads == ["a", "b", "c", "b"]


def test_a_load_that_fails_is_tried_again(runtime: Runtime) -> None:
    def fail() -> int:
        raise OSError("not today")

    with pytest.raises(OSError, match="not today"):
        runtime.resource("x", fail)
    assert runtime.resource("x", lambda: 3) == 3


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 4))
def test_at_most_capacity_resources_stay_and_none_is_loaded_while_it_stays(keys: list[int], capacity: int) -> None:
    runtime = Runtime(Path("nowhere"), progress=False, capacity=capacity)
    recent: list[int] = []
    for key in keys:
        loads: list[int] = []
        runtime.resource(key, lambda loads=loads: loads.append(1))  # type: ignore[misc]
        assert bool(loads) == (key not in recent)
        recent = [*(k for k in recent if k != key), key][-capacity:]


# -- statistics ---------------------------------------------------------------------


def test_statistics_name_stages_inside_others_and_come_outermost_first(runtime: Runtime) -> None:
    pipeline = Pipeline((Counted("x"), Pipeline((Cut(1), Counted("y")), name="inner")), name="outer")
    runtime.rank(pipeline, RANKING)
    assert [stat.stage for stat in runtime.stats] == [
        "outer",
        "outer/x",
        "outer/inner",
        "outer/inner/cut",
        "outer/inner/y",
    ]
    assert [stat.documents for stat in runtime.stats] == [2, 4, 2, 2, 2]
    assert {stat.queries for stat in runtime.stats} == {2}
    assert [dict(stat.counts) for stat in runtime.stats] == [{}, {"rows": 4}, {}, {}, {"rows": 2}]
    assert all(stat.seconds >= 0 and not stat.shared for stat in runtime.stats)
    assert runtime.stats[0].seconds >= sum(stat.seconds for stat in runtime.stats[1:3])


def test_counts_add_up_within_a_stage_and_zero_is_not_written(runtime: Runtime) -> None:
    def count(ranking: Ranking) -> Ranking:
        for what, number in (("a", 1), ("a", 2), ("b", 0), ("c", np.int64(4))):
            runtime.count(what, number)
        return ranking

    runtime.rank(apply(count), RANKING)
    assert runtime.stats[0].counts == {"a": 3, "c": 4}


def test_a_failing_stage_leaves_the_runtime_usable(runtime: Runtime) -> None:
    def fail(ranking: Ranking) -> Ranking:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runtime.rank(Cut(1) >> apply(fail), RANKING)
    runtime.stats.clear()
    runtime.rank(Cut(1), RANKING)
    assert [stat.stage for stat in runtime.stats] == ["cut"]


def test_a_run_carries_ranking_provenance_and_statistics(runtime: Runtime) -> None:
    data = Dataset("toy", {"q1": "one", "q2": "two"}, candidates=RANKING)
    run = runtime.run(Counted("x") >> Cut(1), data, "mine")
    assert run.name == "mine"
    assert run.ranking.to_dict() == {"q1": {"a": 6.0}, "q2": {"a": 2.0}}
    assert run.provenance["data"] == data.provenance()
    assert run.provenance["x"] == "noted"
    assert run.provenance["pipeline"] == "Counted(name='x') >> Cut(k=1)"
    assert [stat.stage for stat in run.stats] == ["x >> cut", "x >> cut/x", "x >> cut/cut"]
    assert run.seconds == run.stats[0].seconds


def test_a_pipeline_that_starts_from_lists_is_refused_where_there_are_none(runtime: Runtime) -> None:
    with pytest.raises(PipelineError, match=r"stage 1 \(first\): cut needs documents, which nothing before it gives"):
        runtime.run(Cut(1) >> Cut(1), Dataset("toy", {"q1": "one"}))


def test_facts_of_two_stages_of_a_kind_stand_side_by_side(runtime: Runtime) -> None:
    def noted(ranking: Ranking) -> Ranking:
        for value in ("one", "two", "one"):
            runtime.note("bm25", value)
        return ranking

    facts = runtime.run(apply(noted), Dataset("toy", {"q1": "one", "q2": "two"}, candidates=RANKING)).provenance
    assert (facts["bm25"], facts["bm25 (2)"]) == ("one", "two")


def test_a_second_run_starts_with_no_statistics_or_facts_of_the_first(runtime: Runtime) -> None:
    data = Dataset("toy", {"q1": "one"}, candidates=RANKING)
    first = runtime.run(Counted("x"), data)
    second = runtime.run(Cut(1), data)
    assert [stat.stage for stat in second.stats] == ["cut"]
    assert "x" not in second.provenance
    assert [stat.stage for stat in first.stats] == ["x"]


def test_the_seconds_of_a_run_are_those_of_its_outermost_stages() -> None:
    stats = (
        StageStats("a/b", 2.0, 1, 1),
        StageStats("a/b/c", 1.5, 1, 1),
        StageStats("d", 3.0, 1, 1),
    )
    assert Run("r", RANKING, stats=stats).seconds == 5.0


def test_tied_rows_are_counted_within_queries_only() -> None:
    ranking = Ranking.of({"a": {"x": 1.0, "y": 1.0, "z": 0.5}, "b": {"x": 0.5, "y": 0.5, "z": 0.5}, "c": {"x": 0.5}})
    assert Run("r", ranking).tied_rows() == 5
    assert Run("r", Ranking.of({})).tied_rows() == 0


# -- sharing -------------------------------------------------------------------------


def test_a_shared_stage_runs_once_and_its_statistics_stand_in_both_runs(runtime: Runtime) -> None:
    first = Counted("first")
    one, two = Pipeline((first, Cut(2)), name="one"), Pipeline((first, Cut(1)), name="two")
    with runtime.sharing([first]):
        runtime.rank(one, RANKING)
        runtime.rank(two, RANKING)
    assert Counted.calls == ["first"]
    assert [(stat.stage, stat.shared) for stat in runtime.stats] == [
        ("one", False),
        ("one/first", False),
        ("one/cut", False),
        ("two", False),
        ("two/first", True),
        ("two/cut", False),
    ]
    assert runtime.stats[4] == dataclasses.replace(runtime.stats[1], stage="two/first", shared=True)


def test_a_shared_prefix_of_two_stages_runs_once(runtime: Runtime) -> None:
    shared = Pipeline((Counted("a"), Counted("b")), name="prefix")
    with runtime.sharing([shared, Counted("a"), Counted("b")]):
        runtime.rank(shared >> Cut(1), RANKING)
        runtime.rank(shared >> Cut(2), RANKING)
        runtime.rank(Counted("a") >> Cut(2), RANKING)
    assert Counted.calls == ["a", "b"]


def test_a_pipeline_that_shares_is_charged_what_the_shared_work_took(runtime: Runtime) -> None:
    slow = Counted("slow")
    one = Pipeline((slow, Cut(2)), name="one")
    two = Pipeline((Pipeline((slow, Cut(1)), name="inner"), Cut(1)), name="two")
    with runtime.sharing([slow]):
        runtime.rank(one, RANKING)
        runtime.rank(two, RANKING)
    by_name = {stat.stage: stat.seconds for stat in runtime.stats}
    assert by_name["two/inner"] >= by_name["one/slow"]
    assert by_name["two"] >= by_name["two/inner"]


def test_facts_of_a_shared_stage_are_in_every_run_that_used_it_and_in_no_other(runtime: Runtime) -> None:
    data = Dataset("toy", {"q1": "one", "q2": "two"}, candidates=RANKING)

    @dataclass(frozen=True)
    class Same:
        ranking: Ranking

        def topics(self) -> Ranking:
            return self.ranking

        def provenance(self) -> dict[str, Any]:
            return data.provenance()

    topics = Same(RANKING)
    shared, alone = Counted("shared"), Counted("alone")
    with runtime.sharing([shared]):
        first = runtime.run(alone >> Cut(1) >> shared, topics)
        second = runtime.run(shared >> Cut(1), topics)
        third = runtime.run(shared >> Cut(2), topics)
    assert {"shared", "alone"} <= set(first.provenance)
    for run in (second, third):
        assert "shared" in run.provenance
        assert "alone" not in run.provenance


def test_another_ranking_is_another_question(runtime: Runtime) -> None:
    stage = Counted("x")
    with runtime.sharing([stage]):
        runtime.rank(stage, RANKING)
        runtime.rank(stage, RANKING.cut(1))
        runtime.rank(stage, dataclasses.replace(RANKING))
    assert Counted.calls == ["x"] * 3


def test_nothing_is_shared_after_the_block(runtime: Runtime) -> None:
    stage = Counted("x")
    with runtime.sharing([stage]):
        runtime.rank(stage, RANKING)
    runtime.rank(stage, RANKING)
    runtime.rank(stage, RANKING)
    assert Counted.calls == ["x"] * 3


# -- machine --------------------------------------------------------------------------


def test_the_cpu_budget_is_at_least_one_and_at_most_the_machine_s() -> None:
    assert 1 <= cpu_budget() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_the_cpu_budget_obeys_the_control_group(quota: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "is_file", lambda self: self == Path("/sys/fs/cgroup/cpu.max"))
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: f"{quota}\n")
    assert cpu_budget() == expected


def test_the_cpu_budget_is_known_where_affinity_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_budget() == 1


def test_threads_default_to_the_budget(tmp_path: Path) -> None:
    assert Runtime(tmp_path).threads == cpu_budget()
    assert Runtime(tmp_path, threads=3).threads == 3


def test_the_home_is_the_cache_root_unless_given(own_home: Path, tmp_path: Path) -> None:
    assert Runtime().home == own_home
    assert Runtime(tmp_path / "other").home == tmp_path / "other"


def test_a_named_device_is_kept_and_auto_without_torch_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Runtime(tmp_path, device="cuda:1").device == "cuda:1"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rerank-pipelines\[dense\]"):
        _ = Runtime(tmp_path).device


# -- progress ---------------------------------------------------------------------------


def test_progress_is_silent_where_standard_error_is_no_terminal(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    for shown in (Runtime(runtime.home), runtime):
        with shown.progress("work", 10, "things") as advance:
            advance(10)
    assert capsys.readouterr() == ("", "")


def test_progress_is_drawn_on_a_terminal_and_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Runtime(tmp_path) as runtime, runtime.progress("outer work", 2, "things") as advance:
        with runtime.progress("inner work", None) as inner:
            inner(5)
        advance(2)
    drawn = terminal.getvalue()
    assert "outer work" in drawn
    assert "inner work" in drawn
    assert drawn.endswith("\x1b[2K\x1b[?25h\r")


def test_a_bar_goes_when_its_work_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    runtime = Runtime(tmp_path, progress=True)
    with pytest.raises(ZeroDivisionError), runtime.progress("work", 1):
        raise ZeroDivisionError
    assert runtime._bars is not None
    assert runtime._bars.task_ids == []


def test_loading_is_told_apart_from_work_and_counted_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("rerank.runtime.time.perf_counter", lambda: clock[0])

    class Loads(Stage):
        def transform(self, ranking, runtime):
            runtime.resource("outer", lambda: self.spend(2.0, runtime.resource("inner", lambda: self.spend(5.0))))
            self.spend(1.0)
            return ranking

        def spend(self, seconds, result=None):
            clock[0] += seconds
            return result

    with Runtime(progress=False) as runtime:
        runtime.rank(Loads(), Ranking.start({"q": ""}))
        runtime.rank(Loads(), Ranking.start({"q": ""}))
    assert [(stat.seconds, stat.loading_seconds) for stat in runtime.stats] == [(1.0, 7.0), (1.0, 0.0)]
