"""`rerank data pool|judge|agreement`: judgments for a collection of one's own, in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Device, Home, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.data.dataset import Dataset

Data = Annotated[
    str, typer.Option(metavar="NAME_OR_PATH", help="The collection whose queries and documents these are.")
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Which of its queries.")]

KEYS = "0-9 grade   s skip   m more text   u undo   q quit"
_SHOWN_CHARACTERS = 700


def pool(
    pipelines: Annotated[list[str], typer.Argument(metavar="PIPELINE...", help="YAML files or ready pipelines.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the pool goes (JSON lines).")],
    data: Data = "stdlib",
    split: Split = "test",
    depth: Annotated[int, typer.Option(min=1, metavar="N", help="How many documents each pipeline gives.")] = 10,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
) -> None:
    """Collects the documents to judge: the first of every pipeline, in an order that tells nothing.

    What the collection's judgments already have is left out, so a later pool only holds what is new.

    \b
    Example:
      rerank data pool bm25 dense hybrid --data my-folder --out pool.jsonl
      rerank data judge pool.jsonl --data my-folder --out my-folder/qrels/test.tsv
    """
    from rerank.artifact import write_text
    from rerank.data.load import load
    from rerank.data.pool import pool as pooled
    from rerank.ready import find_pipeline

    stages = [find_pipeline(name) for name in pipelines]
    with session(home, device, threads, progress) as runtime:
        collection = load(data, split, runtime=runtime)
        rankings = [runtime.run(stage, collection).ranking for stage in stages]
    found = pooled(rankings, depth, collection.qrels)
    lines = [json.dumps({"query-id": qid, "documents": docnos}, ensure_ascii=False) for qid, docnos in found.items()]
    write_text(out, "".join(f"{line}\n" for line in lines))
    pairs = sum(map(len, found.values()))
    typer.echo(f"{out}: {pairs:,} documents to judge for {len(found):,} queries", err=True)


def judge(
    pool: Annotated[Path, typer.Argument(metavar="POOL", help="A file that `rerank data pool` wrote.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where grades are added, one line each, as they are given.")
    ],
    data: Data = "stdlib",
    split: Split = "test",
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text to show before the first query.")
    ] = None,
    again: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Only this share of queries: for a second judge.")
    ] = 1.0,
    home: Home = None,
) -> None:
    """Judges a pool by keys, and goes on where it was left.

    Every grade is written at once; q stops, and the same command continues. A second judge takes a tenth of the
    queries with --again 0.1 and a file of their own; `rerank data agreement` then compares the two.

    \b
    Example:
      rerank data judge pool.jsonl --data my-folder --out qrels.tsv --guidelines GUIDELINES.md
    """
    from rerank.data.load import load
    from rerank.data.pool import judged_twice
    from rerank.data.trec import read_qrels

    tasks = [
        (qid, docno) for qid, docnos in _read_pool(pool) for docno in docnos if again == 1 or judged_twice(qid, again)
    ]
    with session(home, "auto", None, None) as runtime:
        collection = load(data, split, runtime=runtime)
        done = read_qrels(out) if out.is_file() else {}
        left = [(qid, docno) for qid, docno in tasks if docno not in done.get(qid, {}) and qid in collection.queries]
        typer.echo(f"{len(left):,} of {len(tasks):,} documents are left to judge")
        if guidelines is not None and left:
            typer.echo(guidelines.read_text(encoding="utf-8"))
        _judge(left, collection, out)


def _judge(left: list[tuple[str, str]], collection: Dataset, out: Path) -> None:
    """Asks for grades; the last one can be taken back."""
    given: list[tuple[str, str, int]] = []
    position, long = 0, False
    while position < len(left):
        qid, docno = left[position]
        text = _text(collection, docno)
        shown = text if long or len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."
        typer.echo(f"\n{'-' * 60}\n{position + 1}/{len(left)}  {collection.queries[qid]}\n\n{docno}\n{shown}\n")
        key = typer.prompt(KEYS, prompt_suffix=" > ").strip().lower()
        long = key == "m"
        if key.isdecimal():
            given.append((qid, docno, int(key)))
            _append(out, qid, docno, int(key))
            position += 1
        elif key == "s":
            position += 1
        elif key == "u" and given:
            qid, docno, _ = given.pop()
            _take_back(out)
            position = left.index((qid, docno))
        elif key == "q":
            typer.echo(f"{len(given):,} grades written to {out}; the same command goes on from here", err=True)
            return
    typer.echo(f"all judged: {out}", err=True)


def _text(collection: Dataset, docno: str) -> str:
    if collection.corpus is None:
        return ""
    code = collection.corpus.ids.find([docno])
    return collection.corpus.texts(code)[0] if code[0] >= 0 else "(not in this installation's collection)"


def _append(out: Path, qid: str, docno: str, grade: int) -> None:
    new = not out.is_file() or out.stat().st_size == 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        if new:
            file.write("query-id\tcorpus-id\tscore\n")
        file.write(f"{qid}\t{docno}\t{grade}\n")


def _take_back(out: Path) -> None:
    """Drops the last line."""
    from rerank.artifact import write_text

    lines = out.read_text(encoding="utf-8").splitlines()[:-1]
    write_text(out, "".join(f"{line}\n" for line in lines))


def _read_pool(path: Path) -> Iterator[tuple[str, list[str]]]:
    from rerank.data.lines import read_json_lines
    from rerank.errors import DataError

    for number, entry in read_json_lines(path):
        if not isinstance(entry.get("query-id"), str) or not isinstance(entry.get("documents"), list):
            raise DataError(f"{path}:{number}: expected 'query-id' and 'documents', as `rerank data pool` writes them")
        yield entry["query-id"], entry["documents"]


def agreement(
    first: Annotated[Path, typer.Argument(metavar="QRELS", help="The first judge's grades.")],
    second: Annotated[Path, typer.Argument(metavar="QRELS", help="The second judge's grades.")],
) -> None:
    """Says how far two judges agree on the documents that both judged.

    \b
    Example:
      rerank data agreement data/stdlib/qrels.tsv data/stdlib/qrels-second.tsv
    """
    from rerank.data.pool import agreement as compare
    from rerank.data.trec import read_qrels

    found = compare(read_qrels(first), read_qrels(second))
    typer.echo(
        f"{found.pairs:,} documents judged by both: {found.equal:.1%} equal grades, Cohen's kappa {found.kappa:.3f},"
    )
    typer.echo(f"linearly weighted kappa {found.weighted_kappa:.3f}. Rows: first judge's grade; columns: second's.")
    width = max(len(str(n)) for row in found.confusion for n in row) + 2
    typer.echo("   " + "".join(f"{grade:>{width}}" for grade in range(len(found.confusion))))
    for grade, row in enumerate(found.confusion):
        typer.echo(f"{grade:>3}" + "".join(f"{n:>{width}}" for n in row))
