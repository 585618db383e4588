"""The files behind scripts/demo and scripts/test."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pinned() -> dict[str, str]:
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_torch_is_pinned_without_a_local_suffix() -> None:
    assert pinned()["torch"] == "2.13.0"
    assert not [version for version in pinned().values() if "+" in version]


def test_every_declared_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    chosen = re.search(r"\[(.*)\]", extras["all"][0])
    assert chosen is not None
    wanted = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *(requirement for extra in chosen[1].split(",") for requirement in extras[extra]),
    ]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - pinned().keys() == {"rerank-pipelines"}  # an extra that names another one


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test", "scripts/environment.sh", ".ci/run"])
def test_a_script_is_well_formed(script: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    subprocess.run([bash, "-n", str(ROOT / script)], check=True)


def test_an_interpreter_that_does_not_do_is_refused(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    program = f"root={tmp_path}; source {ROOT / 'scripts' / 'environment.sh'}; find_python"
    environment = {"PYTHON": "/nowhere/python", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'/nowhere/python'" in done.stderr
