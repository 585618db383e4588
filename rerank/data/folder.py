"""Collections in a folder: the BEIR layout, and one's own.

A folder may hold, each plain or with `.gz`:

    corpus.jsonl                 documents, one JSON object a line
    queries.jsonl                queries likewise; or queries.tsv (`id<TAB>text`); or topics.txt (such lines, or TREC's
                                 <top> blocks)
    qrels/test.tsv, ...          judgments of each split: .tsv, .trec or .txt; or one qrels.tsv, qrels.trec or
                                 qrels.txt, which is the split `test`
    runs/bm25.trec, ...          candidate lists, read when they are asked for by name
    meta.json                    `name`, `language` of the documents and `query_language` (ISO 639-1), `exclude_own_id`
                                 (true where a query is itself a document and must not find itself)

Without corpus.jsonl every `.txt` and `.md` file below the folder is a document, whose id is its path from there; names
that begin with a dot, the files above and a README at the top are none. The keys of the JSON objects are told in
`rerank.data.jsonl`. Where one thing is there in several forms the first named above counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rerank.data.assemble import OWN_ID, Parts
from rerank.data.corpus import Corpus, Document
from rerank.data.jsonl import Queries, read_documents, read_queries_jsonl
from rerank.data.lines import first_file, read_bytes, read_json_object, read_lines, stem
from rerank.data.store import file_states, stored_corpus
from rerank.data.trec import read_qrels, read_run, read_topics
from rerank.errors import DataError, nearest
from rerank.ranking import Ranking
from rerank.runtime import Runtime

_QUERIES = ("queries.jsonl", "queries.tsv", "topics.txt")
_QRELS = ("qrels.tsv", "qrels.trec", "qrels.txt")
_QRELS_ENDINGS = (".tsv", ".trec", ".txt")
_TEXT_ENDINGS = (".txt", ".md")
_ONLY_SPLIT = "test"
_LANGUAGE = re.compile(r"[a-z]{2,3}")


def read_folder(
    folder: Path, split: str, runtime: Runtime, *, qrels: Path | None, candidates: str | None, with_corpus: bool
) -> Parts:
    """The parts of one split of a folder's collection; `qrels` replaces its own judgments.

    Raises:
        DataError: nothing readable in the folder, no such split or candidates, or a file that is not what it should be.
    """
    meta, language, notes = _meta(folder)
    name = str(meta.get("name") or folder.absolute().name)
    path = first_file(folder, _QUERIES)
    if path is None:
        raise DataError(f"{folder}: {_without_queries(folder)}")
    queries = read_queries(path)
    columns: dict[str, dict[str, Any]] = dict(queries.columns)
    if query_language := meta.get("query_language"):
        columns.setdefault("language", {qid: str(query_language) for qid in queries.texts})
    judgments = qrels or _qrels_file(folder, split)
    return Parts(
        name,
        split,
        queries.texts,
        qrels=read_qrels(judgments) if judgments else None,
        candidates=read_candidates(candidates, folder / "runs") if candidates else None,
        corpus=folder_corpus(folder, runtime) if with_corpus else None,
        excluded=queries.excluded,
        query_columns=columns,
        language=language,
        excludes_own_id=bool(meta.get("exclude_own_id", name.lower() in OWN_ID)),
        notes=notes,
    )


def read_file(path: Path, split: str, *, qrels: Path | None, candidates: str | None) -> Parts:
    """The parts that one file gives: queries (JSONL, TSV or TREC topics), or judgments, whose queries have no text.

    Judgments are told from queries by their first line: three or four columns, the last an integer.

    Raises:
        DataError: the file cannot be read as either.
    """
    lists = read_candidates(candidates, path.parent / "runs") if candidates else None
    if _holds_judgments(path):
        if qrels is not None:
            raise DataError(f"{path}: holds judgments itself, so {qrels} cannot be used with it; give queries instead")
        grades = read_qrels(path)
        return Parts(stem(path), split, dict.fromkeys(grades, ""), qrels=grades, candidates=lists)
    queries = read_queries(path)
    return Parts(
        stem(path),
        split,
        queries.texts,
        qrels=read_qrels(qrels) if qrels else None,
        candidates=lists,
        excluded=queries.excluded,
        query_columns=queries.columns,
    )


def read_queries(path: Path) -> Queries:
    """The queries of a file: JSONL where its name says so, else TREC topics or lines `id<TAB>text`.

    Raises:
        DataError: it holds none, or cannot be read as what it should be.
    """
    is_jsonl = path.name.removesuffix(".gz").endswith(".jsonl")
    queries = read_queries_jsonl(path) if is_jsonl else read_topics(path)
    if not queries.texts:
        raise DataError(f"{path}: holds no queries")
    return queries


def read_candidates(name: str, folder: Path) -> Ranking:
    """The lists of the run `<name>.trec` in `folder`, or of the run file whose path `name` is.

    Raises:
        DataError: neither is there; the names that are there are listed.
    """
    path = first_file(folder, (f"{name}.trec",))
    if path is None and Path(name).is_file():
        path = Path(name)
    if path is None:
        known = sorted({stem(p) for p in folder.glob("*.trec*")}) if folder.is_dir() else []
        listed = f"it has {', '.join(known)}{nearest(name, known)}" if known else "there are none"
        raise DataError(f"candidates {name!r}: no such run in {folder} ({listed}), and no file of that name")
    return read_run(path).ranking


def folder_corpus(folder: Path, runtime: Runtime) -> Corpus | None:
    """The folder's documents from the corpus store; None where it has none.

    Raises:
        DataError: they cannot be read, or an id occurs twice.
    """
    language = _meta(folder)[1]
    path = first_file(folder, ("corpus.jsonl",))
    if path is not None:
        return jsonl_corpus(path, runtime, language)
    if next(_text_files(folder), None) is None:
        return None
    return stored_corpus(
        runtime,
        str(folder),
        lambda: ["texts", str(folder.absolute()), file_states(list(_text_files(folder)))],
        lambda: _texts(folder),
        language,
    )


def jsonl_corpus(path: Path, runtime: Runtime, language: str = "en") -> Corpus:
    """The documents of one JSONL file from the corpus store.

    Raises:
        DataError: they cannot be read, or an id occurs twice.
    """
    return stored_corpus(
        runtime, str(path), lambda: ["jsonl", file_states([path])], partial(read_documents, path), language
    )


def _text_files(folder: Path) -> Iterator[Path]:
    """The files that are documents of a folder without corpus.jsonl, in a fixed order."""
    for place, subfolders, files in os.walk(folder):
        top = Path(place) == folder
        left_out = {"qrels", "runs"} if top else set()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in left_out)
        for name in sorted(files):
            describes = top and (name in (*_QUERIES, *_QRELS) or Path(name).stem.lower() == "readme")
            if name.endswith(_TEXT_ENDINGS) and not name.startswith(".") and not describes:
                yield Path(place, name)


def _texts(folder: Path) -> Iterator[Document]:
    for path in _text_files(folder):
        try:
            text = read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        yield Document(path.relative_to(folder).as_posix(), "", text)


def _meta(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """The folder's meta.json, the language of its documents, and what is to be said of it."""
    path = folder / "meta.json"
    meta = read_json_object(path) if path.is_file() else {}
    language = meta.get("language", "en")
    if isinstance(language, str) and _LANGUAGE.fullmatch(language):
        return meta, language, []
    return meta, "en", [f"meta.json: language {language!r} is no ISO 639-1 code; taken for 'en'"]


def _qrels_file(folder: Path, split: str) -> Path | None:
    """The judgments of a split; None where the folder has no judgments at all."""
    path = first_file(folder / "qrels", [split + ending for ending in _QRELS_ENDINGS])
    only = first_file(folder, _QRELS)
    if path is not None or (split == _ONLY_SPLIT and only is not None):
        return path or only
    known = splits(folder)
    if not known:
        return None
    message = f"{folder}: has no split {split!r}; it has {', '.join(known)}{nearest(split, known)}"
    raise DataError(message)


def splits(folder: Path) -> list[str]:
    """The names of the splits that have judgments in `folder`."""
    found = {stem(path) for path in folder.glob("qrels/*") if path.name.removesuffix(".gz").endswith(_QRELS_ENDINGS)}
    if first_file(folder, _QRELS) is not None:
        found.add(_ONLY_SPLIT)
    return sorted(found)


def _without_queries(folder: Path) -> str:
    """Why a folder without queries is no data set, and what may help."""
    expected = f"has no queries (looked for {', '.join(_QUERIES)}, each plain or .gz)"
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and first_file(p, _QUERIES))
    if inside:
        return f"{expected}; folders in it have: {_some(inside)}"
    if first_file(folder, ("corpus.jsonl",)) or next(_text_files(folder), None):
        return f"{expected}; its documents can be indexed and searched, but a run over queries needs some"
    return f"{expected} and no documents (looked for corpus.jsonl and for .txt and .md files)"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _holds_judgments(path: Path) -> bool:
    line = next(read_lines(path), (0, ""))[1]
    parts = line.split("\t") if "\t" in line else line.split()
    return len(parts) in (3, 4) and re.fullmatch(r"\s*(-?\d+|score)\s*", parts[-1]) is not None
