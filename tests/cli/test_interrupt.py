"""Ctrl-C and kill leave nothing that reads as whole, and the same command then gives what an undisturbed one gives."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rerank = Callable[..., Any]

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells have it ignored
from rerank.cli import main
from rerank.retrieve import bm25

def interrupted(*arguments):
    signal.raise_signal(signal.{signal})

bm25.write_sparse_index = interrupted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGKILL", -signal.SIGKILL)])
def test_a_command_stopped_while_it_indexes_can_be_given_again(
    rerank: Rerank, beir: Path, own_home: Path, name: str, code: int
) -> None:
    arguments = ["run", "bm25", "--data", str(beir), "--out", str(beir / "mine.trec")]
    command = [sys.executable, "-c", PROGRAM.format(signal=name), *arguments]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert stopped.returncode == code
    if name == "SIGINT":
        assert stopped.stderr == "interrupted; what was finished is kept, and the same command goes on from there\n"
    assert not (beir / "mine.trec").exists()
    assert not list((own_home / "indexes").glob("[!.]*"))
    assert rerank(*arguments).code == 0
    after = (beir / "mine.trec").read_bytes()
    assert rerank(*arguments, "--home", beir / "fresh").code == 0
    assert (beir / "mine.trec").read_bytes() == after
