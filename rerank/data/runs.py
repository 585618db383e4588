"""Runs on disk as artifacts: everything of a `Run`, checked when it is opened.

The folder holds the ids of the ranked documents, `offsets.npy`, `docs.npy`, `scores.npy`, one `column-<n>.npy` for each
column of numbers, and `run.json` with the queries, the other columns, provenance and statistics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.artifact import Manifest, new_artifact, open_artifact
from rerank.data.columns import column_from_json, column_to_json
from rerank.data.corpus import StoredIds, map_array, write_ids
from rerank.errors import CorruptArtifactError, RankingError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.run import Run, StageStats

KIND = "run"
VERSION = 1


def save_run(run: Run, folder: Path, key: str = "") -> Manifest:
    """Writes `run` as the artifact `folder`, whole or not at all, in the place of an older one.

    Args:
        run: what to write.
        folder: the artifact's final path.
        key: its fingerprint, where the caller knows what made the run; default a hash of the ranking and its name.

    Raises:
        DataError: a column that holds values which cannot be written.
        ArtifactError: `folder` cannot be written.
    """
    ranking = run.ranking
    used, docs = np.unique(ranking.docs, return_inverse=True)
    with new_artifact(folder, KIND, VERSION, key) as draft:
        table = write_ids(draft.path, ranking.ids.take(used).tolist())
        arrays = {"offsets": ranking.offsets, "docs": docs.astype(np.int64), "scores": ranking.scores}
        record = {
            "name": run.name,
            "ties": run.ties,
            "kind": str(ranking.kind),
            "qids": list(ranking.qids),
            "queries": list(ranking.queries),
            "columns": _columns_to_json(ranking.columns, "column", arrays),
            "query_columns": _columns_to_json(ranking.query_columns, "query-column", arrays),
            "provenance": dict(run.provenance),
            "stats": [dataclasses.asdict(stat) for stat in run.stats],
        }
        for name, array in arrays.items():
            np.save(draft.path / f"{name}.npy", array)
        (draft.path / "run.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        draft.fingerprint = key or _digest(record, table, arrays)
        draft.config["ids"] = table
    return open_artifact(folder, KIND, VERSION)


def load_run(folder: Path, source: TextSource | None = None) -> Run:
    """The run at `folder`, equal to the one that was saved; with `source` in its codes.

    Raises:
        ArtifactError: it is not there, no run, not whole, or of a later version.
        DataError: documents that `source` lacks.
    """
    manifest = open_artifact(folder, KIND, VERSION)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        ranking = Ranking(
            tuple(record["qids"]),
            tuple(record["queries"]),
            np.array(map_array(folder / "offsets.npy")),
            np.array(map_array(folder / "docs.npy")),
            np.array(map_array(folder / "scores.npy")),
            StoredIds(folder, manifest.config["ids"]),
            ScoreKind(record["kind"]),
            columns=_columns_from_json(record["columns"], folder),
            query_columns=_columns_from_json(record["query_columns"], folder),
        )
        stats = tuple(StageStats(**stat) for stat in record["stats"])
        run = Run(record["name"], ranking, record["provenance"], stats, record["ties"])
    except (ValueError, KeyError, TypeError, RankingError) as error:
        message = f"{folder}: cannot be read as a run ({type(error).__name__}: {error}); make the run again"
        raise CorruptArtifactError(message) from error
    return run if source is None else dataclasses.replace(run, ranking=run.ranking.with_source(source))


def _columns_to_json(
    columns: Mapping[str, npt.NDArray[Any]], prefix: str, arrays: dict[str, npt.NDArray[Any]]
) -> dict[str, Any]:
    """What `run.json` says of columns; those of numbers go into `arrays`."""
    record: dict[str, Any] = {}
    for number, (name, column) in enumerate(columns.items()):
        if column.dtype.kind in "biuf":
            arrays[f"{prefix}-{number}"] = column
            record[name] = {"array": f"{prefix}-{number}"}
        else:
            record[name] = column_to_json(name, column)
    return record


def _columns_from_json(record: Mapping[str, Any], folder: Path) -> dict[str, npt.NDArray[Any]]:
    return {
        name: np.array(map_array(folder / f"{Path(said['array']).name}.npy"))
        if "array" in said
        else column_from_json(said)
        for name, said in record.items()
    }


def _digest(record: Mapping[str, Any], table: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of the ranking and its name; provenance and statistics, which hold times, do not count."""
    told = {name: value for name, value in record.items() if name not in ("provenance", "stats")}
    digest = hashlib.sha256(json.dumps([table, told], sort_keys=True).encode("utf-8", "surrogatepass"))
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
