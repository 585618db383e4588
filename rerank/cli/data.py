"""`rerank data`: which collections there are, what is in one, and whether it is sound."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli import judging

if TYPE_CHECKING:
    from rerank.data.dataset import Dataset

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Collections: documents, queries, judgments.\n\n"
        "A collection is named in one of three ways: an embedded one by its name (stdlib), a folder or file by its "
        "path (BEIR's layout, your own JSONL or text files, TREC topics or judgments), or an id of ir_datasets "
        "(beir/nfcorpus)."
    ),
)

_SHOWN_CHARACTERS = 300


class Format(StrEnum):
    """How something is printed."""

    table = "table"
    json = "json"


Name = Annotated[str, typer.Argument(metavar="NAME", help="An embedded name, a path or an id of ir_datasets.")]
Split = Annotated[str, typer.Option(help="Whose judgments: test, dev, train, or another that the collection has.")]
Output = Annotated[Format, typer.Option("--format", help="Lines to read, or one JSON object.")]


@app.command("list")
def list_command(output: Output = Format.table) -> None:
    """Lists the collections that have names; folders and files need none.

    Example: rerank data list
    """
    from rerank.data.load import list_datasets

    rows = list_datasets()
    if output is Format.json:
        typer.echo(json.dumps({"datasets": [row._asdict() for row in rows]}, indent=2))
        return
    width = max(len(row.name) for row in rows)
    typer.echo("\n".join(f"{row.name.ljust(width)}  {row.origin}" for row in rows))


@app.command()
def show(name: Name, split: Split = "test", output: Output = Format.table) -> None:
    """Shows what a collection holds: counts, what was noted while reading it, a query and a document.

    Of one that rerank synthesize wrote, how it came about: clusters, samples, filters, what was dropped and why.

    Example: rerank data show beir/scifact --split train
    """
    from rerank.data.load import load
    from rerank.synthesize.show import is_synthetic, shown

    if output is not Format.json and is_synthetic(Path(name)):
        typer.echo(shown(Path(name)))
        return
    facts = _facts(load(name, split))
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if output is Format.json else _lines(facts))


@app.command()
def verify(name: Name, split: Split = "test", output: Output = Format.table) -> None:
    """Checks a collection: every line of its files, judgments against documents, and every byte of its stored corpus.

    Example: rerank data verify ./my-collection
    """
    from rerank.artifact import verify_artifact
    from rerank.data.corpus import Corpus
    from rerank.data.load import load

    data = load(name, split)
    n_bytes = 0
    if isinstance(data.corpus, Corpus):
        n_bytes = sum(entry.size for entry in verify_artifact(data.corpus.folder).files.values())
    facts = {**_counts(data), "corpus_bytes": n_bytes, "notes": list(data.notes), "sound": True}
    if output is Format.json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{data!r}")
    if n_bytes:
        typer.echo(f"stored corpus: {n_bytes:,} bytes, all as written")
    for note in data.notes:
        typer.echo(f"note: {note}")
    typer.echo("sound")


def _counts(data: Dataset) -> dict[str, Any]:
    qrels = data.qrels or {}
    grades = sorted({grade for judged in qrels.values() for grade in judged.values()})
    return {
        "data": data.name,
        "split": data.split,
        "language": data.language,
        "queries": len(data.queries),
        "documents": len(data.corpus.ids) if data.corpus is not None else None,
        "judgments": {str(g): sum(list(judged.values()).count(g) for judged in qrels.values()) for g in grades},
        "excluded": sum(map(len, data.excluded.values())),
    }


def _facts(data: Dataset) -> dict[str, Any]:
    """The counts, the first query, and its best judged document that is in the corpus, else the first of all."""
    import numpy as np

    qid, text = next(iter(data.queries.items()))
    facts = {**_counts(data), "notes": list(data.notes), "query": {"qid": qid, "text": text}}
    facts["query"].update({name: values[qid] for name, values in data.query_columns.items() if qid in values})
    if data.corpus is not None:
        judged = (data.qrels or {}).get(qid, {})
        codes = data.corpus.ids.find(sorted(judged, key=judged.__getitem__, reverse=True)).tolist()
        code = np.array([next((code for code in codes if code >= 0), 0)])
        docno, text = data.corpus.ids.take(code)[0], data.corpus.texts(code)[0]
        facts["document"] = {"docno": docno, "grade": judged.get(docno), "text": text}
    return facts


def _lines(facts: dict[str, Any]) -> str:
    def count(what: str) -> str:
        return "none" if facts[what] is None else f"{facts[what]:,}"

    grades = facts["judgments"]
    judged = ", ".join(f"{n:,} of grade {grade}" for grade, n in grades.items())
    lines = [
        f"{facts['data']}, split {facts['split']}, language {facts['language']}",
        f"queries    {count('queries')}",
        f"documents  {count('documents')}",
        f"judgments  {sum(grades.values()):,}" + (f" ({judged})" if judged else ""),
        f"excluded   {count('excluded')}",
        *(f"note       {note}" for note in facts["notes"]),
        f"query      {facts['query']['qid']}: {_shown(facts['query']['text'])}",
    ]
    if "document" in facts:
        document = facts["document"]
        grade = "" if document["grade"] is None else f" (grade {document['grade']} for that query)"
        lines.append(f"document   {document['docno']}{grade}: {_shown(document['text'])}")
    return "\n".join(lines)


def _shown(text: str) -> str:
    """The beginning of a text on one line, without what a terminal might obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * _SHOWN_CHARACTERS]).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]} ..."


app.command("pool")(judging.pool)
app.command("judge")(judging.judge)
app.command("agreement")(judging.agreement)
