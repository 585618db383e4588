"""Queries replaced by given rewritings, and brought back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rerank.config import FilePath
from rerank.errors import DataError
from rerank.ranking import Ranking
from rerank.runtime import Runtime
from rerank.stage import Flow, Stage

ORIGINAL = "original_query"


@dataclass(frozen=True, repr=False)
class Rewrite(Stage):
    """Queries rewritten as a file says; what they were stays in the query column `original_query`.

    The file has a line per query: `qid<TAB>text`, or, named `.jsonl`, an object with `_id` and `text`.
    """

    file: FilePath
    """The rewritten queries."""
    how: Literal["replace", "append"] = "replace"
    """`append` puts the rewriting after the query, as is usual for reasoning traces."""
    missing: Literal["error", "keep"] = "error"
    """What becomes of a query that the file lacks; `keep` leaves and counts it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({ORIGINAL})

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists under the new queries.

        Raises:
            DataError: the file cannot be read, or lacks a query.
        """
        texts = read_rewritings(Path(self.file))
        lacking = [qid for qid in ranking.qids if qid not in texts]
        if lacking and self.missing == "error":
            raise DataError(
                f"rewrite: {self.file} lacks {len(lacking):,} of {len(ranking):,} queries, e.g. {lacking[0]!r}; "
                "add them, or set missing: keep"
            )
        runtime.count("queries without a rewriting", len(lacking))
        new = [texts.get(qid, query) for qid, query in zip(ranking.qids, ranking.queries, strict=True)]
        if self.how == "append":
            new = [
                f"{query} {text}" if qid in texts else query
                for qid, query, text in zip(ranking.qids, ranking.queries, new, strict=True)
            ]
        return ranking.with_queries(new)


def read_rewritings(path: Path) -> dict[str, str]:
    """Query texts by id.

    Raises:
        DataError: naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"rewrite: {path} cannot be read as text ({error})") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                entry = json.loads(line)
                qid, text = entry["_id"], entry["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: expected an object with '_id' and 'text'") from error
        else:
            qid, tab, text = line.partition("\t")
            if not tab:
                raise DataError(f"{path}:{number}: expected 'qid<TAB>text', got {line[:60]!r}")
        if qid in texts:
            raise DataError(f"{path}:{number}: query {qid!r} occurs twice")
        texts[qid] = text.strip()
    return texts


@dataclass(frozen=True, repr=False)
class OriginalQuery(Stage):
    """The query as it was before the first rewriting; weighted terms (of `rm3`) are dropped with it."""

    needs: ClassVar[frozenset[str]] = frozenset({ORIGINAL})

    def flow(self, before: Flow) -> Flow:
        """The same without what the rewriting left."""
        return Flow(super().flow(before).has - {ORIGINAL, "terms"}, before.kind)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists under the original queries."""
        columns = {n: c for n, c in ranking.query_columns.items() if n not in ("terms", "terms_analyser")}
        original = columns.pop(ORIGINAL, None)
        queries = ranking.queries if original is None else tuple(original)
        return dataclasses.replace(ranking, queries=queries, query_columns=columns)
