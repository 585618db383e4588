"""Trainings by two processes, as a launcher starts them.

Run by itself it forks them once all is imported, which takes longer than trainings of tiny models.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """A training, and what happens in it."""

    recipe: Path
    out: Path
    happens: str = ""
    """`killed`: both are, while the fourth step's checkpoint is written; `full`: that cannot be written; `fails`: the
    second process has an error in the fourth step; `sharded`: as accelerate's FSDP would have it."""


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    said: str


def read_any(prompt: Any, text: str, n: int, **_: Any) -> Any:
    """What any text says of `n` documents: a model with random weights writes no answers."""
    from rerank.train.answers import Reply

    return Reply(tuple(float(place * (len(text) % 5 == 0)) for place in range(n)))


def train_together(home: Path, rounds: Sequence[Sequence[Job]]) -> list[list[Ended]]:
    """How two processes ended in each round.

    Args:
        home: their cache root.
        rounds: the jobs that two processes do, one after the other, then those that two new ones do.  An error that
            both have ends a job, and the next one begins.
    """
    jobs = [[[str(part) for part in job] for job in jobs] for jobs in rounds]
    command = [sys.executable, "-W", "ignore", __file__, str(home), json.dumps(jobs)]
    launched = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **launched, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [[Ended(*each) for each in json.loads(line)] for line in done.stdout.splitlines()]


def main(home: Path, rounds: Sequence[Sequence[Job]]) -> None:
    """Two processes a round, and how they ended as a line of JSON."""
    for module in ("peft", "transformers.trainer", "rerank.train.training", "numba", "ir_measures"):
        importlib.import_module(module)
    home.mkdir(parents=True, exist_ok=True)
    for jobs in rounds:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
        children = [begin(rank, home, jobs) for rank in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps([Ended(code, (home / f"said-{rank}").read_text()) for rank, code in enumerate(codes)]))


def begin(rank: int, home: Path, jobs: Sequence[Job]) -> int:
    """The number of a new process."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    file = os.open(home / f"said-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    work(home, jobs)
    sys.exit()


def work(home: Path, jobs: Sequence[Job]) -> None:
    """What each process does."""
    from rerank.errors import RerankError
    from rerank.runtime import Runtime
    from rerank.train import fitting, grpo
    from rerank.train.processes import together
    from rerank.train.recipe import load_recipe
    from rerank.train.sharding import Shards
    from rerank.train.training import train

    grpo.read_reply = read_any  # type: ignore[assignment]
    whole, seeds = fitting.new_artifact, fitting.seed_of

    def new_artifact(path: Path, *rest: Any) -> Any:
        if path.name == "step-0000004" and job.happens == "killed":
            for process in numbers[::-1]:
                os.kill(process, signal.SIGKILL)
        if path.name == "step-0000004" and job.happens == "full":
            raise OSError(28, "No space left on device", str(path))
        return whole(path, *rest)

    def seed_of(*parts: int) -> int:
        if job.happens == "fails" and parts[1:] == (3, 1):
            raise RerankError("there is no room for it")
        return seeds(*parts)

    def hold(self: Shards, transformer: Any) -> None:
        holds(self, transformer)
        print(f"{sum(type(weight).__name__ == 'DTensor' for weight in transformer.parameters())} in parts")

    fitting.new_artifact, fitting.seed_of = new_artifact, seed_of  # type: ignore[assignment]
    holds, Shards.hold = Shards.hold, hold  # type: ignore[method-assign]
    with Runtime(home, threads=1, device="cpu", progress=False) as runtime, together("cpu") as processes:
        numbers = processes.gather(os.getpid())
        for job in jobs:
            os.environ |= {"ACCELERATE_USE_FSDP": str(job.happens == "sharded"), "FSDP_VERSION": "2"}
            try:
                train(load_recipe(job.recipe).recipe, job.out, runtime)
            except RerankError as error:
                print(f"process {processes.rank}, {job.out.name}: {error}", flush=True)
                if job.happens == "fails":
                    sys.exit(2)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    main(
        Path(sys.argv[1]), [[Job(Path(recipe), Path(out), happens) for recipe, out, happens in jobs] for jobs in given]
    )
