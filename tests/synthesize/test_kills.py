"""Killed at any point, the same command gives the same bytes, and asks a model nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tiny_synthesis import corpus_of, some_documents

from rerank.engines.language_model import Sampling
from rerank.engines.prompted import CausalLMEngine
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.dense import Dense
from rerank.runtime import Runtime
from rerank.synthesize.cleaning import Cleaning
from rerank.synthesize.clusters import Clustering
from rerank.synthesize.duqgen import DUQGen, Vectors
from rerank.synthesize.examples import Examples
from rerank.synthesize.generators import LLMGenerator
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.postprocess import PostProcessing
from rerank.synthesize.roundtrip import RoundTrip

pytestmark = [pytest.mark.needs("torch", "transformers", "faiss"), pytest.mark.filterwarnings("ignore")]

KILLS = 10


def synthesis(encoder: str, model: str) -> DUQGen:
    """Every step, with answers that are random and yet the same each time."""
    sampling = Sampling(max_tokens=6, temperature=1.0)
    return DUQGen(
        documents=16,
        cleaning=Cleaning(min_characters=10),
        vectors=Vectors(encoder, dtype="float32"),
        clusters=Clustering(k=5, iterations=10),
        generator=LLMGenerator(
            CausalLMEngine(model, dtype="float32", max_tokens=1500, sampling=sampling),
            samples=2,
            examples=Examples(bootstrap=True, k=1, candidates=4, characters=60),
        ),
        postprocessing=PostProcessing(min_words=1, max_words=1000, max_repeated=1.0),
        # By vectors, for random letters are in no document.
        round_trip=RoundTrip(stages=(Dense(encoder, dtype="float32", k=60),), k=60),
        negatives=HardNegatives(stages=(BM25(k=60),), k=2, from_rank=1, to_rank=20),
    )


def run(encoder: str, model: str, home: Path, out: Path) -> dict[str, int]:
    """Runs it, and tells what was counted."""
    with Runtime(home, progress=False, threads=1, device="cpu") as runtime:
        counted: dict[str, int] = {}
        runtime.count = lambda what, n=1: counted.update({what: counted.get(what, 0) + n})  # type: ignore[method-assign]
        synthesis(encoder, model).run(out, runtime, corpus_of(some_documents(40)))
        return counted


def events(reach: Callable[[], None]) -> None:
    """Calls `reach` before every step that takes time or writes: batches of models, clustering, files."""
    from rerank import artifact
    from rerank.data import trec
    from rerank.engines.language_model import LanguageModel
    from rerank.engines.text_model import TextModel
    from rerank.retrieve import shards
    from rerank.synthesize import clusters, duqgen, folder, roundtrip

    def before(place: Any, name: str) -> None:
        real = getattr(place, name)

        def reached(*arguments: Any, **options: Any) -> Any:
            reach()
            return real(*arguments, **options)

        setattr(place, name, reached)

    before(TextModel, "read")
    before(artifact, "_put")
    before(artifact, "write_text")
    before(trec, "write_run")
    before(clusters, "knee")
    before(duqgen, "clustered")
    before(duqgen, "near_duplicates")
    before(roundtrip.RoundTrip, "ranks")
    before(folder, "write_lines")
    before(folder, "write_text")
    before(folder, "write_json")
    before(folder, "card_of")
    before(shards, "_read")
    run_batches = LanguageModel._in_batches

    def batches(self: Any, some: Any, cost: Any, write: Callable[[list[int]], Any]) -> Any:
        def written(batch: list[int]) -> Any:
            reach()
            return write(batch)

        return run_batches(self, some, cost, written)

    LanguageModel._in_batches = batches  # type: ignore[method-assign]
    LanguageModel.batch_tokens = 600  # type: ignore[attr-defined]


def kill_again_and_again(encoder: str, model: str, folder: str) -> None:
    """In a process of its own: runs in children that are killed at some event, then once to the end."""
    import torch

    torch.set_num_threads(1)
    left = [1 << 40, 0]

    def reach() -> None:
        left[1] += 1
        if left[1] == left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    events(reach)
    undisturbed = Path(folder, "undisturbed")
    counted = run(encoder, model, undisturbed / "home", undisturbed / "out")
    total, killed = left[1], 0
    # What was finished is not done again, so what is left has fewer events: points within the first ones are met.
    points = sorted(Random(4).sample(range(2, 2 + 2 * KILLS), KILLS))
    home, out = Path(folder, "killed", "home"), Path(folder, "killed", "out")
    for number in range(KILLS):
        child = os.fork()
        if child == 0:
            left[:] = [points[number], 0]
            run(encoder, model, home, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    left[:] = [1 << 40, 0]
    resumed = run(encoder, model, home, out)
    print(json.dumps({"total": total, "killed": killed, "counted": counted, "resumed": resumed}))


def test_ten_kills_and_the_same_bytes(tmp_path: Path, tiny_encoder: Path) -> None:
    from tiny_scorers import write_chat_lm

    model = write_chat_lm(tmp_path / "chat")
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    program += f"sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import test_kills as tests; "
    program += "tests.kill_again_and_again(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", program, str(tiny_encoder), str(model), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    here, there = tmp_path / "undisturbed" / "out", tmp_path / "killed" / "out"
    names = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    assert told["killed"] == KILLS
    assert "cached answers" not in told["counted"]
    assert told["resumed"]["cached answers"] == told["resumed"]["requests"] == told["counted"]["requests"] > 30
