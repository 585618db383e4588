"""Runs in whatever form their path says: a run artifact's folder, a Parquet file, a TREC file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank.data.trec import Ties
    from rerank.run import Run


def open_run(path: Path, ties: Ties = "trec_eval") -> Run:
    """The run at `path`; `ties` decides between equal scores in files that other programs wrote.

    Raises:
        ArtifactError, DataError: it cannot be read as a run.
    """
    if path.is_dir():
        from rerank.data.runs import load_run

        return load_run(path)
    if path.suffix == ".parquet":
        from rerank.data.parquet import read_parquet

        return read_parquet(path, ties=ties)
    from rerank.data.trec import read_run

    return read_run(path, ties=ties)


def put_run(run: Run, path: Path) -> None:
    """Writes `run` to `path`: a Parquet or TREC file by its ending, a run artifact where it has none."""
    if path.suffix == ".parquet":
        from rerank.data.parquet import write_parquet

        write_parquet(run, path)
    elif path.suffix:
        from rerank.data.trec import write_run

        write_run(run, path)
    else:
        from rerank.data.runs import save_run

        save_run(run, free_folder(path))


def free_folder(path: Path) -> Path:
    """`path`, where an artifact can be written without losing anything but an older artifact.

    Raises:
        ArtifactError: something else is there.
    """
    from rerank.artifact import MANIFEST
    from rerank.errors import ArtifactError

    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise ArtifactError(f"{path}: is there already and is no artifact; name a new folder")
    return path
