"""`rerank serve`: models and pipelines behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Device, Home, Threads

if TYPE_CHECKING:
    from rerank.serve.settings import ServedModel


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model as for rerank rerank, a pipeline file, or a ready pipeline."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME=MODEL", help="Another model under a name; may be repeated."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A LoRA adapter of MODEL under a name; may be repeated."),
    ] = None,
    rule: Annotated[str | None, typer.Option(metavar="RULE", help="Of MODEL: pointwise, setwise, ...")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="PROMPT", help="Of MODEL: rerank prompts list.")] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="Of MODEL: auto, float32, bfloat16, float16.")] = "auto",
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call MODEL.")] = None,
    models_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Serve every model, adapter and pipeline that lies here.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME_OR_PATH", help="The collection that pipelines search.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as YAML; flags and RERANK_* variables come first.")
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where to listen; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="The port; default 8080, 0 takes a free one.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys, one a line; also RERANK_API_KEYS=KEY,KEY.")
    ] = None,
    max_documents: Annotated[int | None, typer.Option(metavar="N", help="Documents of a request.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of a batch.")] = None,
    shutdown_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="What requests under way are given at the end.")
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Serves models and pipelines over HTTP.

    What is served is what was evaluated: the scores are those of the same pipeline in Python. Clients of Cohere, Jina,
    Voyage, vLLM, TEI and OpenAI work with a changed address. Everything else that can be set is in --config or in
    RERANK_* variables: docs/serve.md.

    \b
    Examples:
      rerank serve cross-encoder/ms-marco-MiniLM-L6-v2
      rerank serve hybrid.yaml --data path/to/beir-folder --port 8000
      rerank serve minilm-l6 --model qwen=Qwen/Qwen3-Reranker-0.6B
      rerank serve minilm-l6 --host 0.0.0.0 --api-key-file keys.txt
    """
    from rerank.errors import ConfigError
    from rerank.extras import need

    for package in ("starlette", "uvicorn", "prometheus_client"):
        need(package, "serve", "rerank serve")
    from rerank.serve.logs import log_to
    from rerank.serve.server import run
    from rerank.serve.settings import load_settings

    models = _models(model, more or [], adapter or [], name=name, rule=rule, prompt=prompt, dtype=dtype)
    flags = {
        "models": models,
        "models_folder": None if models_folder is None else str(models_folder.absolute()),
        "data": data,
        "host": host,
        "port": port,
        "api_key_file": None if api_key_file is None else str(api_key_file.absolute()),
        "max_documents": max_documents,
        "max_batch_tokens": max_batch_tokens,
        "shutdown_timeout": shutdown_timeout,
        "home": None if home is None else str(home.absolute()),
        "device": None if device == "auto" else device,
        "threads": threads,
    }
    settings = load_settings(flags, os.environ, config)
    if not settings.models and settings.models_folder is None:
        raise ConfigError(
            "rerank serve: nothing to serve; give a MODEL, --model NAME=MODEL, --models-folder or --config"
        )
    if not settings.is_loopback and not settings.keys():
        typer.echo(
            f"warning: {settings.host} is reached from other machines, and no key is needed (--api-key-file)", err=True
        )
    log_to(sys.stderr, settings.log_level)
    run(settings, on_ready=lambda url: typer.echo(f"serving {url}"))


def _models(
    model: str | None,
    more: list[str],
    adapters: list[str],
    *,
    name: str | None,
    rule: str | None,
    prompt: str | None,
    dtype: str,
) -> list[ServedModel]:
    """What the flags say is served."""
    from rerank.errors import ConfigError
    from rerank.serve.settings import ServedModel

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype is {dtype!r}; auto, float32, bfloat16 or float16 is possible")
    given = {"rule": rule, "prompt": prompt, "dtype": dtype}
    found = []
    if model is not None:
        found.append(ServedModel(model, name, **given))  # type: ignore[arg-type]  # checked above
    elif adapters or name or rule or prompt:
        raise ConfigError("rerank serve: --adapter, --name, --rule and --prompt are of MODEL, which is not given")
    for option, texts in (("--model", more), ("--adapter", adapters)):
        for text in texts:
            called, equals, what = text.partition("=")
            if not (called and equals and what):
                raise ConfigError(
                    f"{option} is {text!r}; NAME={'MODEL' if option == '--model' else 'FOLDER'} is expected"
                )
            if option == "--model":
                found.append(ServedModel(what, called))
            else:
                folder = str(Path(what).absolute())
                found.append(ServedModel(str(model), called, folder, **given))  # type: ignore[arg-type]
    return found
