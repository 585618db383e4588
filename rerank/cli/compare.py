"""`rerank compare`: two runs over the same queries, down to the queries and documents that moved most."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.session import Home, session


class Format(StrEnum):
    """How the comparison is printed."""

    text = "text"
    json = "json"


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A run: a TREC or Parquet file, or a run folder.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The run to compare with it.")],
    data: Annotated[str, typer.Option(metavar="NAME_OR_PATH", help="The data set that both were made on.")] = "stdlib",
    split: Annotated[str, typer.Option(metavar="NAME", help="Which of its queries.")] = "test",
    measure: Annotated[str, typer.Option(metavar="NAME", help="As ir-measures writes it.")] = "nDCG@10",
    k: Annotated[int, typer.Option("-k", min=0, metavar="N", help="How many queries to name.")] = 10,
    output: Annotated[Format, typer.Option("--format", help="A page to read, or one JSON object.")] = Format.text,
    home: Home = None,
) -> None:
    """Compares two runs, down to the queries that moved most.

    Means, a paired test, and the queries whose value changed most from A to B; of each those judged documents that
    moved it, with their grade and their ranks in A and in B.

    \b
    Examples:
      rerank compare runs/a runs/b
      rerank compare bm25.trec mine.trec --data path/to/folder --measure R@100
    """
    from rerank.cli.runs import open_run
    from rerank.data.load import load
    from rerank.evaluation.compare import compare_runs
    from rerank.evaluation.evaluation import evaluate_run
    from rerank.evaluation.measures import parse_measures

    (name,) = parse_measures([measure])
    with session(home, "cpu", None, progress=False) as runtime:
        dataset = load(data, split, runtime=runtime, with_corpus=False)
        a, b = open_run(before), open_run(after)
        if a.name == b.name:
            a, b = dataclasses.replace(a, name=str(before)), dataclasses.replace(b, name=str(after))
        first, second = (evaluate_run(run, dataset, [name]) for run in (a, b))
        found = compare_runs(first, second, name, dataset.queries, k)
    if output is Format.json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        typer.echo(found.to_text(), nl=False)
