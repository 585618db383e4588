"""One face over every kind of collection: `load` gives a `Dataset`, `load_corpus` only its documents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from rerank.data.assemble import Parts, assemble
from rerank.data.corpus import Corpus
from rerank.data.dataset import Dataset
from rerank.errors import DataError, nearest
from rerank.runtime import Runtime

EMBEDDED = ("stdlib",)
_PREFIX = "irds:"


class Known(NamedTuple):
    """A collection that can be named."""

    name: str
    origin: Literal["embedded", "ir_datasets"]


def load(
    name: str | Path,
    split: str = "test",
    *,
    runtime: Runtime | None = None,
    qrels: str | Path | None = None,
    candidates: str | None = None,
    with_corpus: bool = True,
) -> Dataset:
    """The split `split` of the collection `name`, checked; what was dropped or missing is counted in its `notes`.

    `name` is tried as

    1. an embedded collection: `stdlib`;
    2. the path of a folder (BEIR's layout or one's own, see `rerank.data.folder`), of a file of queries, or of one of
       judgments;
    3. an id of ir_datasets, such as `beir/nfcorpus` (with the split appended where the id itself has no judgments);
       `irds:cranfield` is tried as such only.

    Args:
        name: see above.
        split: the name of the judgments; those of a folder are the files in `qrels/`.
        runtime: whose home holds the corpus store; default the enclosing one, else one for this call.
        qrels: a file of judgments to use instead of the collection's own.
        candidates: lists to rerank: a run in the folder's `runs/` by name, the path of a run file, or `scoreddocs` for
            those that come with an ir_datasets id.
        with_corpus: False leaves the documents unread, which scoring a run does not need (those of `stdlib` are read
            all the same: which of its judgments count depends on them).

    Raises:
        DataError: nothing of that name (the nearest one is told), or contents that cannot be used.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp(suffix="-toy"))
    >>> _ = (folder / "queries.tsv").write_text("q1\\twhat is a tie?\\n", encoding="utf-8")
    >>> dict(load(folder, with_corpus=False).queries)
    {'q1': 'what is a tie?'}
    """
    name = str(name)
    judgments = Path(qrels).expanduser() if qrels is not None else None
    with _runtime(runtime) as active:
        return assemble(_parts(name, split, active, judgments, candidates, with_corpus=with_corpus))


def load_corpus(name: str | Path, *, runtime: Runtime | None = None) -> Corpus:
    """The documents of the collection `name`, which needs no queries; a path may also be of a JSONL file of documents.

    Raises:
        DataError: nothing of that name, or no documents in it.
    """
    name = str(name)
    with _runtime(runtime) as active:
        if name in EMBEDDED:
            from rerank.data.embedded import embedded_corpus

            return embedded_corpus(active)
        path = Path(name).expanduser()
        if not name.startswith(_PREFIX) and path.exists():
            from rerank.data.folder import folder_corpus, jsonl_corpus

            corpus = folder_corpus(path, active) if path.is_dir() else jsonl_corpus(path, active)
            if corpus is None:
                raise DataError(f"{path}: holds no documents (looked for corpus.jsonl and for .txt and .md files)")
            return corpus
        from rerank.data import irds

        return irds.irds_corpus(_check_known(name), active)


def list_datasets() -> list[Known]:
    """The collections that have names: embedded ones and the ids of ir_datasets, which is imported for that."""
    from rerank.data.irds import known_ids

    return [*(Known(name, "embedded") for name in EMBEDDED), *(Known(name, "ir_datasets") for name in known_ids())]


@contextmanager
def _runtime(runtime: Runtime | None) -> Iterator[Runtime]:
    if runtime is not None:
        yield runtime
    else:
        with Runtime.current_or_new() as active:
            yield active


def _parts(
    name: str, split: str, runtime: Runtime, qrels: Path | None, candidates: str | None, *, with_corpus: bool
) -> Parts:
    if name in EMBEDDED:
        from rerank.data.embedded import read_embedded

        parts = read_embedded(split, runtime, qrels=qrels)
        return _with_candidates(parts, candidates)
    path = Path(name).expanduser()
    if not name.startswith(_PREFIX) and path.exists():
        from rerank.data.folder import read_file, read_folder

        if path.is_dir():
            return read_folder(path, split, runtime, qrels=qrels, candidates=candidates, with_corpus=with_corpus)
        return read_file(path, split, qrels=qrels, candidates=candidates)
    from rerank.data import irds

    dataset_id = _check_known(name)
    own_lists = candidates == irds.SCOREDDOCS
    parts = irds.read_irds(dataset_id, split, runtime, lists=own_lists, with_corpus=with_corpus)
    if qrels is not None:
        from rerank.data.trec import read_qrels

        parts.qrels = read_qrels(qrels)
    return _with_candidates(parts, None if own_lists else candidates)


def _with_candidates(parts: Parts, candidates: str | None) -> Parts:
    if candidates is not None:
        from rerank.data.trec import read_run

        parts.candidates = read_run(Path(candidates).expanduser()).ranking
    return parts


def _check_known(name: str) -> str:
    """The id by which ir_datasets knows `name`.

    Raises:
        DataError: it knows none; nothing else does either.
    """
    from rerank.data import irds

    dataset_id = name.removeprefix(_PREFIX)
    is_path = name.startswith(("/", "./", "../", "~"))
    if not is_path and irds.knows(dataset_id):
        return dataset_id
    parent = Path(name).expanduser().parent
    beside = [p.name for p in parent.iterdir()] if os.access(parent, os.R_OK) else []
    names = [*EMBEDDED, *(str(parent / other) for other in beside if not other.startswith("."))]
    hint = nearest(name, names) or ("" if is_path else nearest(dataset_id, irds.known_ids()))
    if is_path:
        raise DataError(f"{name}: no such file or folder{hint}")
    message = (
        f"{name}: no such data set: neither embedded ({', '.join(EMBEDDED)}) nor a folder or file nor an id of "
        f"ir_datasets{hint or '; `rerank data list` shows the names'}"
    )
    raise DataError(message)
