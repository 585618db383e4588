"""`rerank prompts`: the prompts that there are, what they say, and what a model is shown."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli.session import Home

if TYPE_CHECKING:
    from rerank.prompts.prompt import Prompt

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "What language models are shown when they rerank or rewrite queries.\n\n"
        "A prompt is one YAML file: messages or a plain template, labels, how the answer is read, and what is cut when "
        "room is short. A pipeline names one of this list, or a file (./my-prompt.yaml)."
    ),
)


class Format(StrEnum):
    """How a list is printed."""

    table = "table"
    json = "json"


Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `rerank prompts list`, or a YAML file.")]


@app.command("list")
def list_command(
    output: Annotated[Format, typer.Option("--format", help="A table to read, or one JSON object.")] = Format.table,
    home: Home = None,
) -> None:
    """Lists the prompts of the package and imported ones.

    What is asked of the model, how its answer is read, how many documents it is shown, and whose wording it is.

    \b
    Example:
      rerank prompts list
    """
    from rerank.prompts.prompt import list_prompts, load_prompt

    _use(home)
    rows = [_row(load_prompt(name)) for name in list_prompts()]
    if output is Format.json:
        typer.echo(json.dumps({"prompts": rows}, indent=2))
        return
    heads = ("name", "verb", "parser", "documents", "wording", "description")
    lines = [heads, *(tuple(str(row[head]) for head in heads) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command()
def show(name: Name, home: Home = None) -> None:
    """Prints a prompt's file.

    Save it under another name to start a prompt of your own.

    \b
    Example:
      rerank prompts show yes-no > my-prompt.yaml
    """
    from rerank.prompts.prompt import load_prompt

    _use(home)
    prompt = load_prompt(name)
    for line in _remarks(prompt):
        typer.echo(f"# {line}")
    typer.echo(prompt.to_yaml(), nl=False)


@app.command()
def render(
    name: Name,
    *,
    query: Annotated[str, typer.Option(metavar="TEXT", help="The query.")],
    document: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A document; once for each that is shown.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What counts as relevant; default the prompt's own.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose chat template and tokens; default none: plain turns.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Room for prompt and label, with --model.")
    ] = 8192,
    home: Home = None,
) -> None:
    """Prints what a model is shown for a query and documents.

    With --model in the model's own chat template, cut to --max-tokens, and on standard error the token counts; no
    weights are loaded.

    \b
    Examples:
      rerank prompts render pick --query "capital of France" --document "Paris ..." --document "Lyon ..."
      rerank prompts render yes-no --model smollm2-135m --query "capital of France" --document "Paris ..."
    """
    from rerank.prompts.prompt import load_prompt

    _use(home)
    prompt, documents = load_prompt(name), document or []
    if model is None:
        from rerank.prompts.layout import plain_text

        typer.echo(plain_text(prompt, query, documents, instruction=instruction))
        return
    tokenizer = _tokenizer(model, home)
    bound = prompt.bind(tokenizer)
    request = bound.request(query, documents, max_tokens, instruction=instruction)
    typer.echo(tokenizer.decode(list(request.tokens), clean_up_tokenization_spaces=False))
    labels = [tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in request.continuations]
    facts = {
        "tokens": f"{len(request.tokens):,}",
        "of the template": f"{bound.template_tokens(len(documents)):,}, labels included",
        "shared by the query's requests": f"{request.prefix:,}",
        "answers": ", ".join(map(repr, labels)) or "generated",
        "documents cut": str(request.truncated_documents),
        "query cut": "yes" if request.truncated_query else "no",
    }
    for fact, value in facts.items():
        typer.echo(f"{fact}: {value}", err=True)


@app.command("import")
def import_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .toml file of llm-rankers or a .yaml file of rank_llm.")
    ],
    *,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The prompt that gives verb, labels and parser; default found by the wording."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of among the named prompts.")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Take a wording that is no known checkpoint's; needs --like.")
    ] = False,
    home: Home = None,
) -> None:
    """Takes a published prompt file, whose wording a checkpoint needs to the letter.

    Its SHA-256 must be one that a prompt of the package knows. What it becomes is printed; pipelines name it so.

    \b
    Examples:
      rerank prompts import llm-rankers/Rank-R1/prompts/prompt_setwise-R1.toml
      rerank prompts import my-listwise.yaml --like order --unchecked
    """
    from rerank.artifact import write_text
    from rerank.prompts.prompt import imported_folder
    from rerank.prompts.published import import_prompt

    _use(home)
    imported = import_prompt(file, like=like, name=name or (out.stem if out is not None else None), unchecked=unchecked)
    path = out or imported_folder() / f"{imported.prompt.name}.yaml"
    write_text(path, imported.prompt.to_yaml())
    for remark in imported.remarks:
        typer.echo(f"warning: {remark}", err=True)
    known = "the published wording, verified" if imported.verified else "unchecked wording"
    typer.echo(f"{path}: like {imported.like}, {known}", err=True)
    typer.echo(path if out is not None else imported.prompt.name)


def _use(home: Path | None) -> None:
    if home is not None:
        import os

        # Prompts are looked up by name without a runtime.
        os.environ["RERANK_HOME"] = str(home)


def _row(prompt: Prompt) -> dict[str, Any]:
    most = prompt.most_documents
    return {
        "name": prompt.name,
        "verb": prompt.verb,
        "parser": prompt.parser,
        "documents": "any" if most is None else str(most or "none"),
        "wording": prompt.source.wording if prompt.source is not None else "own",
        "checkpoints": prompt.source.checkpoints if prompt.source is not None else "",
        "description": prompt.description,
        "fingerprint": prompt.fingerprint,
    }


def _remarks(prompt: Prompt) -> list[str]:
    """What a reader of the file should know of its wording."""
    source = prompt.source
    if source is None or source.wording == "imported":
        return []
    if source.wording == "published":
        return [f"{prompt.name}: the published wording, byte for byte (SHA-256 checked)."]
    said = f"{prompt.name}: the layout of {source.checkpoints} in this package's own words."
    return [said, "The published file can be taken with: rerank prompts import FILE"] if source.sha256 else [said]


def _tokenizer(model: str, home: Path | None) -> Any:
    from rerank.extras import need
    from rerank.models import resolve_model

    transformers = need("transformers", "dense", "showing a prompt in a model's chat template")
    return transformers.AutoTokenizer.from_pretrained(str(resolve_model(model, home=home, fetch=False).path))
