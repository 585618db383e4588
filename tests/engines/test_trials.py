"""Trials of models: made once, remembered, and made again where something changed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rerank.engines.trials import Trials
from rerank.runtime import Runtime

pytestmark = pytest.mark.needs("torch", "transformers")


class Counted:
    """A trial that says how often it was made."""

    def __init__(self, *, result: object = True) -> None:
        self.result, self.calls = result, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.result


def test_a_trial_is_made_once_for_its_subject(tmp_path: Path) -> None:
    memory, run = tmp_path / "trials.json", Counted(result={"shift": 0, "longest": None})
    assert Trials(memory, "a").result("packing", run=run) == Trials(memory, "a").result("packing", run=run)
    assert run.calls == 1
    Trials(memory, "b").result("packing", run=run)
    Trials(memory, "a").result("packing", "bfloat16", run=run)
    assert run.calls == 3


def test_what_is_not_to_be_kept_is_tried_each_time(tmp_path: Path) -> None:
    failed = Counted(result=False)
    for _ in range(2):
        assert Trials(tmp_path / "trials.json", "a").result("self-test", run=failed, keep=bool) is False
    assert failed.calls == 2


def test_a_damaged_memory_is_replaced_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = tmp_path / "trials.json"
    memory.write_text('{"half', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert Trials(memory, "a").result("x", run=Counted()) is True
    assert "not a memory of trials" in caplog.text
    assert Trials(memory, "a").result("x", run=Counted(result=False)) is True


def test_without_a_memory_nothing_is_remembered() -> None:
    run = Counted()
    Trials().result("x", run=run)
    Trials().result("x", run=run)
    assert run.calls == 2


def test_a_second_process_loads_a_model_without_trying_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_models import write_model

    from rerank.engines import text_model
    from rerank.engines.encoder import load_encoder

    folder = str(write_model(tmp_path / "model"))
    with Runtime(tmp_path / "home", progress=False, device="cpu") as runtime:
        first = load_encoder(runtime, folder)
        path, dtype = first.path, first.dtype
    monkeypatch.setattr(text_model, "find_packing", None)
    monkeypatch.setattr(text_model, "still_agrees", None)
    with Runtime(tmp_path / "home", progress=False, device="cpu") as runtime:
        second = load_encoder(runtime, folder)
    assert (second.path, second.dtype) == (path, dtype)
