"""The embedded collection `stdlib`: Python's documentation with questions and judgments that travel with the package.

Its name carries the version of Python (`stdlib-3.11`), for another interpreter documents other things. Judgments of
names that this one lacks are dropped and counted.

A question's split follows from its id alone, so it was fixed before anything was tuned: where the first 8 hexadecimal
digits of the id's SHA-256, taken as a number, are divisible by 3 it is `dev` (a third of the questions), else `test`.
The split `all` has both.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path

from rerank.data.assemble import Parts
from rerank.data.corpus import Corpus, Document
from rerank.data.jsonl import read_queries_jsonl
from rerank.data.store import file_states, stored_corpus
from rerank.data.trec import Judgments, read_qrels
from rerank.errors import DataError, nearest
from rerank.resources import has_shipped, shipped
from rerank.runtime import Runtime

STDLIB = "stdlib"
SPLITS = ("dev", "test", "all")
_QUERIES = "data/stdlib/queries.jsonl"
_QRELS = "data/stdlib/qrels.tsv"


def split_of(qid: str) -> str:
    """The split, `dev` or `test`, of the embedded question `qid`.

    >>> split_of("order-list-dicts-values")
    'test'
    """
    digits = hashlib.sha256(qid.encode("utf-8")).hexdigest()[:8]
    return "dev" if int(digits, 16) % 3 == 0 else "test"


def read_embedded(split: str, runtime: Runtime, *, qrels: Path | None) -> Parts:
    """The parts of a split of `stdlib`; without judgments where the package has none.

    The documents are always read: which judgments count depends on them.

    Raises:
        DataError: no such split, or the standard library's sources cannot be read.
    """
    from rerank.data.stdlib import stdlib_id

    if split not in SPLITS:
        raise DataError(f"{STDLIB}: has no split {split!r}; it has {', '.join(SPLITS)}{nearest(split, SPLITS)}")
    found = read_queries_jsonl(shipped(_QUERIES))
    queries = {qid: text for qid, text in found.texts.items() if split in ("all", split_of(qid))}
    corpus = embedded_corpus(runtime)
    notes: list[str] = []
    judgments = None
    if qrels is not None or has_shipped(_QRELS):
        judgments = read_qrels(qrels or shipped(_QRELS))
        judgments = {qid: judged for qid, judged in judgments.items() if qid in queries}
        judgments, n_dropped = _without_lacking(judgments, corpus)
        if n_dropped:
            notes.append(f"{n_dropped:,} judgments of names that this Python lacks are left out")
    else:
        notes.append("has no judgments in this installation")
    return Parts(stdlib_id(), split, queries, corpus, judgments, query_columns=found.columns, notes=notes)


def embedded_corpus(runtime: Runtime) -> Corpus:
    """The documentation of this interpreter's standard library, from the corpus store.

    Raises:
        DataError: its sources cannot be read.
    """
    from rerank.data import stdlib, stdlib_inspect

    readers = [Path(module.__file__) for module in (stdlib, stdlib_inspect) if module.__file__]

    def state() -> object:
        return [STDLIB, sys.version, sysconfig.get_paths()["stdlib"], file_states(readers)]

    def documents() -> list[Document]:
        return stdlib.read_stdlib()[0]

    return stored_corpus(runtime, stdlib.stdlib_id(), state, documents, "en")


def _without_lacking(judgments: Judgments, corpus: Corpus) -> tuple[Judgments, int]:
    """The judgments of documents that `corpus` has, and how many others there were."""
    docnos = list(dict.fromkeys(docno for judged in judgments.values() for docno in judged))
    codes = corpus.ids.find(docnos).tolist()
    known = {docno for docno, code in zip(docnos, codes, strict=True) if code >= 0}
    kept = {qid: {d: grade for d, grade in judged.items() if d in known} for qid, judged in judgments.items()}
    n_dropped = sum(map(len, judgments.values())) - sum(map(len, kept.values()))
    return {qid: judged for qid, judged in kept.items() if judged}, n_dropped
