"""Queries rewritten, by a file or by a language model, and brought back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from rerank.config import FilePath
from rerank.engines.engine import Asked, Engine
from rerank.errors import ConfigError, DataError
from rerank.ranking import Column, Ranking
from rerank.runtime import Runtime
from rerank.stage import Flow, Stage

if TYPE_CHECKING:
    from rerank.planning import Rehearsal

ORIGINAL = "original_query"
PASSAGES = "passages"
"""The query column of texts that stand for documents: a tuple of the query as it was before them, and each of them."""
_TERMS = ("terms", "terms_analyser")


@dataclass(frozen=True, repr=False)
class Rewrite(Stage):
    """Queries rewritten by a file or by a language model; what they were stays in the query column `original_query`.

    The file has a line per query: `qid<TAB>text`, or, named `.jsonl`, an object with `_id` and `text`.  A model writes
    by a prompt that shows no document, which decides with `how` what this is:

    - HyDE: `Rewrite(engine=..., prompt="hyde", how="passages", n_texts=8)`
    - query2doc: `Rewrite(engine=..., prompt="query2doc", how="append", repeat=5)`; without `repeat` for `dense`
    - reasoning queries, as in BRIGHT: `Rewrite(engine=..., prompt="reason")`; with `how="append"` to keep the question

    A query about which nothing usable was written stays as it is, and is counted.

    >>> from rerank.engines.prompted import CausalLMEngine
    >>> Rewrite(engine=CausalLMEngine("my-model"), prompt="hyde", how="passages")
    Rewrite(how='passages', engine=CausalLMEngine(model='my-model'), prompt='hyde')

    Source: Gao et al. 2022 (HyDE, arXiv:2212.10496); Wang et al. 2023 (query2doc, arXiv:2303.07678), whose prompt shows
    examples where ours only tells; Su et al. 2024 (BRIGHT, arXiv:2407.12883).  The wordings are our own.
    """

    file: FilePath | None = None
    """The rewritten queries."""
    how: Literal["replace", "append", "passages"] = "replace"
    """`replace` puts what was written in the query's place, `append` after it.  `passages` takes it for passages that
    answer the query: `dense` and `rescore` compare documents with the mean of the vectors of the query and of each
    passage, and whatever reads words, such as `bm25`, gets the query and all passages in a row."""
    missing: Literal["error", "keep"] = "error"
    """What becomes of a query that the file lacks; `keep` leaves and counts it."""
    engine: Engine | None = None
    """What writes, where there is no file."""
    prompt: str | None = None
    """What it is asked: `hyde`, `query2doc`, `reason`, or a prompt file."""
    n_texts: int = 1
    """How many texts are written about a query, each drawn by itself (the engine's `sampling.temperature` must be above
    0); HyDE's authors take 8.  Several are put in a row, or, as passages, averaged."""
    repeat: int = 1
    """How often the query stands before what comes after it, so that it is not outweighed: 5 in query2doc with BM25."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({ORIGINAL})

    def __post_init__(self) -> None:
        if (self.file is None) == (self.engine is None):
            raise ConfigError("rewrite: needs either 'file' or 'engine', which writes by 'prompt'")
        if (self.engine is None) != (self.prompt is None):
            raise ConfigError("rewrite: 'engine' and 'prompt' go together")
        if self.n_texts < 1 or self.repeat < 1:
            raise ConfigError(f"rewrite: n_texts is {self.n_texts} and repeat is {self.repeat}; at least 1 is needed")
        if self.repeat > 1 and self.how == "replace":
            raise ConfigError("rewrite: 'repeat' is for how: append or passages; replaced queries are not repeated")
        if self.n_texts > 1 and self.engine is None:
            raise ConfigError("rewrite: 'n_texts' is for an engine; a file has one text a query")

    def flow(self, before: Flow) -> Flow:
        """The same lists with the original query, and with passages where texts stand for documents."""
        has = super().flow(before).has - {PASSAGES, *_TERMS}
        return Flow(has | {PASSAGES} if self.how == "passages" else has, before.kind)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists under the new queries.

        Raises:
            ConfigError: the engine cannot write by that prompt.
            DataError: the file cannot be read, or lacks a query.
            ModelError: the model cannot be loaded.
        """
        if self.engine is None:
            texts = self._read(ranking)
        else:
            writer = self.engine.writer(str(self.prompt), self.n_texts, runtime)
            with runtime.progress("writing", None):
                texts = writer.write(ranking.queries, runtime)
        runtime.count("queries without a rewriting", sum(not any(each) for each in texts))
        return self._with(ranking, texts)

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """The queries as they are, once all was counted that would be asked about them."""
        if self.engine is None:
            return self.transform(ranking, rehearsal)
        meter = self.engine.measure(self.prompt, rehearsal)
        asked = [Asked(qid, query, (), ()) for qid, query in zip(ranking.qids, ranking.queries, strict=True)]
        rehearsal.count("calls", len(asked) * self.n_texts)
        rehearsal.ask(meter, asked * self.n_texts)
        rehearsal.remark("what would be written is not known: later stages get the queries as they are")
        return self._with(ranking, [()] * len(ranking))

    def _with(self, ranking: Ranking, texts: Sequence[Sequence[str]]) -> Ranking:
        """The same lists when these texts were written about their queries."""
        found = [tuple(text for text in each if text) for each in texts]
        before = [self.repeat if self.how != "replace" and each else int(not each) for each in found]
        new = [
            " ".join([query] * times + list(each))
            for query, times, each in zip(ranking.queries, before, found, strict=True)
        ]
        # Weighted terms and passages were those of the query before.
        columns: dict[str, Column] = {
            name: column for name, column in ranking.query_columns.items() if name not in (PASSAGES, *_TERMS)
        }
        if self.how == "passages":
            rows = ((query, *each) for query, each in zip(ranking.queries, found, strict=True))
            columns[PASSAGES] = np.fromiter(rows, dtype=object, count=len(ranking))
        return dataclasses.replace(ranking, query_columns=columns).with_queries(new)

    def _read(self, ranking: Ranking) -> Sequence[Sequence[str]]:
        """What the file says of each query."""
        texts = read_rewritings(Path(str(self.file)))
        lacking = [qid for qid in ranking.qids if qid not in texts]
        if lacking and self.missing == "error":
            raise DataError(
                f"rewrite: {self.file} lacks {len(lacking):,} of {len(ranking):,} queries, e.g. {lacking[0]!r}; "
                "add them, or set missing: keep"
            )
        return [(texts.get(qid, ""),) for qid in ranking.qids]


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
    """The query as it was before the first rewriting; weighted terms (of `rm3`) and passages are dropped with it."""

    needs: ClassVar[frozenset[str]] = frozenset({ORIGINAL})

    def flow(self, before: Flow) -> Flow:
        """The same without what the rewriting left."""
        return Flow(super().flow(before).has - {ORIGINAL, PASSAGES, *_TERMS}, before.kind)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists under the original queries."""
        columns = {n: c for n, c in ranking.query_columns.items() if n not in (PASSAGES, *_TERMS)}
        original = columns.pop(ORIGINAL, None)
        queries = ranking.queries if original is None else tuple(original)
        return dataclasses.replace(ranking, queries=queries, query_columns=columns)
