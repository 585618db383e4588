"""`rerank rerank`: a list of texts, ordered by how well they answer a query."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli.session import Device, Home, NoCache, Threads, session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank.reranker import RankedDoc


class Format(StrEnum):
    """How the list is printed."""

    text = "text"
    json = "json"


def rerank(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The documents: one a line, or JSONL; - reads standard input.")
    ],
    query: Annotated[str, typer.Option("--query", "-q", metavar="TEXT", help="What they are ordered by.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME_OR_PATH", help="A model: short name, folder, hub id, or address."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(metavar="PIPELINE", help="A pipeline that starts from lists, instead of a model.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="pointwise, setwise, ...; default as the model wants it.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="How a language model is asked: rerank prompts list.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, metavar="N", help="Print only the first N.")] = None,
    output: Annotated[
        Format, typer.Option("--format", help="Lines to read, or one JSON object a document, each on its line.")
    ] = Format.text,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,  # noqa: FBT002
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    *,
    no_cache: NoCache = False,
) -> None:
    """Reranks a list of texts for one query.

    A line is a document, known by its number. Where the first line is a JSON object, every line is one, with `text`
    and perhaps `id` and `title`. What the model is, and so how it is asked, is read from its files; rerank -v says it.
    For many queries and first-stage lists: rerank run.

    \b
    Examples:
      rerank rerank --model smollm2-135m --query "walk a directory" notes.txt
      grep -h drag *.txt | rerank rerank -m minilm-l6 -q "lift of a wing" -k 5 -
    """
    from rerank.errors import ConfigError
    from rerank.reranker import Reranker

    if (model is None) == (pipeline is None):
        raise ConfigError("rerank: needs --model NAME_OR_PATH, or --pipeline PIPELINE instead")
    docs = list(_documents(file))
    with (
        session(home, device, threads, progress=False, no_cache=no_cache) as runtime,
        Reranker(_stage(model, pipeline), rule=rule, prompt=prompt, runtime=runtime) as reranker,
    ):
        found = reranker.rank(query, docs, k)
        if as_json or output is Format.json:
            for doc in found:
                typer.echo(json.dumps(_json(doc), ensure_ascii=False))
        else:
            from rerank.cli.hits import console, show_hits

            show_hits(console(), found, len(found))


def _stage(model: str | None, pipeline: str | None) -> Any:
    if model is not None:
        return model
    from rerank.ready import find_pipeline

    return find_pipeline(str(pipeline))


def _json(doc: RankedDoc) -> dict[str, Any]:
    return {"rank": doc.rank, "id": doc.docno, "score": doc.score, "text": doc.text}


def _documents(file: str) -> Iterator[tuple[str, str]]:
    """The documents of a file, or of standard input: ids, by default the lines' numbers, and texts.

    Raises:
        DataError: a line that cannot be read, with its number.
    """
    from rerank.data.jsonl import document_of
    from rerank.data.lines import decoded, json_object, read_lines

    origin = "standard input" if file == "-" else file
    is_json: bool | None = None
    for number, line in decoded(sys.stdin.buffer, origin) if file == "-" else read_lines(Path(file)):
        if is_json is None:
            is_json = _is_json_object(line)
        if is_json:
            place = f"{origin}:{number}"
            document = document_of(json_object(line, place), place, str(number))
            yield document.id, document.joined
        else:
            yield str(number), line


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
