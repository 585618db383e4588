"""Collections of the package ir_datasets, by their ids there: `beir/nfcorpus`, `cranfield`, `bright/biology`, ...

That package downloads what is missing under `IR_DATASETS_HOME`; nothing here does. It is imported when first needed.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rerank.data.assemble import OWN_ID, Parts
from rerank.data.corpus import Corpus, Document
from rerank.data.store import stored_corpus
from rerank.data.trec import Judgments, foreign_ranking
from rerank.errors import DataError, RerankError, nearest
from rerank.ranking import Ranking
from rerank.runtime import Runtime

SCOREDDOCS = "scoreddocs"
"""The name under which the candidate lists that ir_datasets gives are asked for."""
_FOREIGN_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, ImportError, zipfile.BadZipFile, zlib.error)


class _Correction(NamedTuple):
    """How the grades of a collection are put right, and whether they need it."""

    needed: Callable[[Counter[int]], bool]
    grade: Callable[[int], int]
    note: str


# Cranfield's codes run from 1 (complete answer) to 4 (minimum interest), -1 means none; ir_datasets hands them out as
# grades, as if more were better. Complete answers are rarer than minimum interest: that tells raw codes from corrected.
_CORRECTIONS = {
    "cranfield": _Correction(
        lambda counts: counts[1] < counts[4],
        lambda code: 0 if code == -1 else 5 - code,
        "ir_datasets gives Cranfield's codes, of which 1 is best; grades here are 5 - code, and 0 for code -1",
    )
}


def known_ids() -> list[str]:
    """The ids that ir_datasets registers by name; further ones follow patterns."""
    return sorted(_package().registry)


def knows(dataset_id: str) -> bool:
    """Whether ir_datasets has the id, registered by name or by pattern."""
    return _find(dataset_id) is not None


def read_irds(name: str, split: str, runtime: Runtime, *, lists: bool, with_corpus: bool) -> Parts:
    """The parts of the collection `name`; `lists`: with the candidates that come with it.

    An id that has judgments, or queries that no `<id>/<split>` judges, stands for itself.

    Raises:
        DataError: no such split, or ir_datasets cannot give a part because its files are missing.
    """
    dataset_id = _with_split(name, split)
    dataset = _find(dataset_id)
    notes: list[str] = []
    queries: dict[str, str] = {}
    with _reading(dataset_id, "queries"):
        for query in dataset.queries_iter():
            queries[str(query.query_id)] = _text(query, dataset_id)
    language = _language(dataset_id, notes)
    query_language = dataset.queries_lang()
    other = bool(query_language) and query_language != language
    return Parts(
        name,
        _split_name(dataset_id) or split,
        queries,
        qrels=_qrels(dataset, dataset_id, notes) if dataset.has_qrels() else None,
        candidates=_lists(dataset, dataset_id) if lists else None,
        corpus=irds_corpus(dataset_id, runtime) if with_corpus and dataset.has_docs() else None,
        query_columns={"language": dict.fromkeys(queries, query_language)} if other else {},
        language=language,
        excludes_own_id=any(dataset_id == name or dataset_id.startswith(f"{name}/") for name in OWN_ID),
        notes=notes,
    )


def irds_corpus(dataset_id: str, runtime: Runtime) -> Corpus:
    """The documents of `dataset_id` from the corpus store.

    Raises:
        DataError: it has none, or ir_datasets cannot give them.
    """
    package = _package()
    dataset = _find(dataset_id)
    if not dataset.has_docs():
        raise DataError(f"{dataset_id}: has no documents in ir_datasets")
    parent = package.docs_parent_id(dataset_id)
    state = ["ir_datasets", package.__version__, str(package.util.home_path()), parent]
    return stored_corpus(runtime, parent, lambda: state, partial(_documents, parent), _language(dataset_id, []))


def _with_split(name: str, split: str) -> str:
    dataset = _find(name)
    longer = f"{name}/{split}"
    if not dataset.has_qrels() and knows(longer):
        return longer
    if dataset.has_queries() and split in ("test", _split_name(name)):
        return name
    below = [known for known in known_ids() if known.startswith(f"{name}/") and _find(known).has_queries()]
    what = f"has no split {split!r}" if dataset.has_queries() else "has no queries of its own"
    listed = f"give one of {', '.join(below[:10])}{nearest(longer, below)}" if below else "leave the split out"
    raise DataError(f"{name}: {what}; {listed}")


def _split_name(dataset_id: str) -> str:
    """What an id adds to the id of its documents: `trec-dl-2019/judged`; empty where it adds nothing."""
    if not _find(dataset_id).has_docs():
        return ""
    return dataset_id.removeprefix(_package().docs_parent_id(dataset_id)).removeprefix("/")


def _package() -> Any:
    try:
        import ir_datasets
    except OSError as error:  # it makes its folder when it is imported
        message = f"ir_datasets cannot make its folder ({error}); set IR_DATASETS_HOME to one that can be written"
        raise DataError(message) from error
    return ir_datasets


def _find(dataset_id: str) -> Any:
    try:
        return _package().load(dataset_id)
    except KeyError:
        return None


def _language(dataset_id: str, notes: list[str]) -> str:
    dataset = _find(dataset_id)
    language = dataset.docs_lang() if dataset.has_docs() else dataset.queries_lang()
    if language:
        return str(language)
    notes.append("ir_datasets states no language; taken for 'en'")
    return "en"


def _documents(dataset_id: str) -> Iterator[Document]:
    with _reading(dataset_id, "documents"):
        for document in _find(dataset_id).docs_iter():
            if "title" in document._fields and "text" in document._fields:
                yield Document(str(document.doc_id), document.title or "", document.text or "")
            else:
                yield Document(str(document.doc_id), "", _text(document, dataset_id))


def _text(record: Any, dataset_id: str) -> str:
    """The text that ir_datasets says a record has, else its field `text`."""
    text = record.default_text() if hasattr(record, "default_text") else getattr(record, "text", None)
    if text is None:
        raise DataError(f"{dataset_id}: a record without text; its fields are {', '.join(record._fields)}")
    return str(text)


def _qrels(dataset: Any, dataset_id: str, notes: list[str]) -> Judgments:
    grades: Judgments = {}
    n_again = 0
    with _reading(dataset_id, "judgments"):
        for qrel in dataset.qrels_iter():
            judged = grades.setdefault(str(qrel.query_id), {})
            docno, grade = str(qrel.doc_id), int(qrel.relevance)
            n_again += judged.setdefault(docno, grade) != grade
            judged[docno] = max(judged[docno], grade)
    if n_again:
        notes.append(f"{n_again:,} documents are judged again with another grade; the highest counts")
    correction = _CORRECTIONS.get(dataset_id)
    if correction is not None and correction.needed(Counter(g for judged in grades.values() for g in judged.values())):
        notes.append(correction.note)
        grades = {qid: {d: correction.grade(g) for d, g in judged.items()} for qid, judged in grades.items()}
    return grades


def _lists(dataset: Any, dataset_id: str) -> Ranking:
    if not dataset.has_scoreddocs():
        raise DataError(f"{dataset_id}: ir_datasets has no candidate lists for it; give the path of a run file")
    qids: dict[str, int] = {}
    docnos: dict[str, int] = {}
    rows: list[tuple[int, int, float]] = []
    with _reading(dataset_id, "candidate lists"):
        for row in dataset.scoreddocs_iter():
            q = qids.setdefault(str(row.query_id), len(qids))
            rows.append((q, docnos.setdefault(str(row.doc_id), len(docnos)), float(row.score)))
    query_codes, docs, scores = (np.array(column) for column in zip(*rows, strict=True))
    return foreign_ranking(list(qids), query_codes, list(docnos), docs, scores, "trec_eval")


@contextlib.contextmanager
def _reading(dataset_id: str, what: str) -> Iterator[None]:
    """Turns what goes wrong inside ir_datasets, which has no errors of its own, into one line."""
    try:
        yield
    except RerankError:
        raise
    except _FOREIGN_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        message = (
            f"{dataset_id}: ir_datasets cannot give its {what} ({type(error).__name__}: {reason}); it downloads what "
            f"is missing below {_package().util.home_path()}: connect to the internet or put the files there"
        )
        raise DataError(message) from error
