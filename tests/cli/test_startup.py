from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rerank import __version__

HEAVY = ("torch", "transformers", "sentence_transformers", "numba", "pandas", "ir_datasets", "scipy", "bm25s", "numpy")
VERBS = [
    "run", "evaluate", "compare", "search", "rerank", "serve", "bench-serve", "adapt", "train", "check", "schema",
    "index", "synthesize", "adapters", "data", "models", "cache", "prompts",
]  # fmt: skip
NESTED = [["index", "build"], ["adapters", "merge"], ["data", "list"], ["models", "list"], ["cache", "prune"],
          ["synthesize", "duqgen"], ["synthesize", "labels"]]  # fmt: skip

PROGRAM = f"""
import sys
import rerank
if len(sys.argv) > 1:
    from rerank.cli import main
    code = main(sys.argv[1:])
    assert code == 0, code
sys.stderr.write(" ".join(name for name in {HEAVY} if name in sys.modules))
"""


def loaded_by(*arguments: str) -> tuple[str, str]:
    """What a process prints, and which heavy modules it has loaded."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout, done.stderr


def test_import_of_the_package_loads_nothing_heavy() -> None:
    assert loaded_by() == ("", "")


@pytest.mark.parametrize("verb", [[], *([v] for v in VERBS), *NESTED], ids=" ".join)
def test_help_loads_nothing_heavy_and_fits_80_columns(verb: list[str]) -> None:
    out, heavy = loaded_by(*verb, "--help")
    assert heavy == ""
    assert out.startswith(f"Usage: {' '.join(['rerank', *verb])}")
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_top_help_names_every_verb_in_a_line_that_is_not_cut() -> None:
    out, _ = loaded_by("--help")
    lines = [line.strip() for line in out.partition("Commands:")[2].splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == VERBS
    assert not [line for line in lines if line.endswith("...")]


def test_checking_a_pipeline_loads_no_model_library() -> None:
    _, heavy = loaded_by("check", "hybrid-rescored")
    assert not {"torch", "transformers", "sentence_transformers", "ir_datasets"} & set(heavy.split())


def test_version_is_printed() -> None:
    command = [sys.executable, "-m", "rerank", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"rerank {__version__}\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rerank", "schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
