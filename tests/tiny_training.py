"""A collection and recipes small enough to train in a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from tiny_models import WORDS

SPLITS = {"train": range(12), "dev": range(12, 18)}
TOPICS = [word for word in WORDS if len(word) > 3 and not word.startswith("#")]
PAIRS = [("the lift of a wing", "a wing has lift and drag"), ("sun", "moon " * 9), ("heat", "heat of the sun")]
"""Queries and documents to score."""


def write_collection(folder: Path) -> Path:
    """Writes 60 documents and 18 queries in BEIR's layout; documents on a query's topic are relevant."""
    rng = np.random.default_rng(5)
    (folder / "qrels").mkdir(parents=True)
    topics = [TOPICS[i % len(TOPICS)] for i in range(18)]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i in range(60):
            words = rng.choice(TOPICS, size=int(rng.integers(3, 24))).tolist()
            if i < 54:
                words.insert(0, topics[i % 18])
            file.write(json.dumps({"_id": f"d{i}", "title": "", "text": f"{' '.join(words)} {i}"}) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for i, topic in enumerate(topics):
            file.write(json.dumps({"_id": f"q{i}", "text": f"the {topic} of a {TOPICS[(i * 5) % len(TOPICS)]}"}) + "\n")
    for split, places in SPLITS.items():
        lines = ["query-id\tcorpus-id\tscore"]
        lines += [f"q{i}\td{i + 18 * j}\t{2 - j // 2}" for i in places for j in range(3)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe_text(
    model: Path,
    data: Path,
    *,
    kind: str = "contrastive",
    engine: str = "cross_encoder",
    more: str = "",
    groups: str = "",
    optimiser: str = "learning_rate: 1.0e-2, groups: 4, steps: 6",
    adapter: str = "{lora: {rank: 4, alpha: 8, dropout: 0.1}}",
    evaluation: bool = True,
    every: int = 2,
) -> str:
    """A recipe's file."""
    measured = f"""
  evaluation:
    on: [{{data: {data}, split: dev}}]
    stages: [{{bm25: {{k: 10}}}}, {{rerank: {{engine: current}}}}]
    every: {every}"""
    return f"""
name: tiny
{kind}:
  engine: {{{engine}: {{model: {model}}}}}
  adapter: {adapter}
  precision: float32
  log_every: 1
  save_every: 2
  groups:
    - {{data: {data}, negatives: {{pipeline: bm25, to_rank: 20}}, sizes: [4]{groups}}}
  optimiser: {{{optimiser}}}{measured if evaluation else ""}
{more}
"""


KILLED = """
import os, signal, sys
from pathlib import Path
from rerank.runtime import Runtime
from rerank.train import fitting
from rerank.train.recipe import load_recipe
from rerank.train.training import train

if len(sys.argv) > 4:
    make = fitting.new_artifact
    def dies(path, *rest):
        if path.name == sys.argv[4]:
            (path.parent / f".{path.name}.1.part").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        return make(path, *rest)
    fitting.new_artifact = dies
with Runtime(Path(sys.argv[3]), threads=1, device="cpu", progress=False) as runtime:
    train(load_recipe(sys.argv[1]).recipe, Path(sys.argv[2]), runtime)
"""


def train_apart(recipe: Path, out: Path, home: Path, dies_at: str = "") -> int:
    """How a process that trains a recipe ended; it kills itself, as kill -9 does, while it writes `dies_at`."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(recipe), str(out), str(home), *filter(None, [dies_at])]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
