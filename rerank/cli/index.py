"""`rerank index`: indexes built before they are needed, and the artifacts on disk listed, shown and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Device, Home, Progress, Threads, session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank.artifact import Manifest
    from rerank.retrieve.bm25 import BM25
    from rerank.stage import Pipeline, Stage

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "Builds indexes beforehand; lists, shows and verifies what is on disk.\n\n"
        "A pipeline builds what it needs when it first runs, and finds it again by the corpus and the stage's options. "
        "All of it lies in the cache folder: what is deleted there is built again when it is next needed."
    ),
)


@app.command()
def build(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A YAML file, or the name of a ready pipeline.")],
    data: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="The collection: stdlib, a folder, an ir_datasets id.")
    ] = "stdlib",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Make a BM25 index of its own there, to be named in `bm25: {index: ...}`."),
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
) -> None:
    """Builds every index that a pipeline needs for a collection.

    If it is stopped half-way, the same command goes on from there.

    \b
    Examples:
      rerank index build hybrid --data path/to/beir-folder
      rerank index build bm25 --data path/to/beir-folder --out indexes/mine
    """
    from rerank.data.load import load_corpus
    from rerank.ranking import Ranking
    from rerank.ready import find_pipeline

    stages = find_pipeline(pipeline)
    with session(home, device, threads, progress) as runtime:
        if out is not None:
            from rerank.cli.runs import free_folder

            stage, folder = _only_bm25(stages), free_folder(out)
            stage.build(load_corpus(data, runtime=runtime), folder, runtime)
            made = {folder}
        else:
            corpus = load_corpus(data, runtime=runtime)
            before = {folder for folder, _ in _artifacts(runtime.home)}
            for first in _first_stages(stages):
                # Without a query, what a first stage does is to find its index or to build it.
                runtime.rank(first, Ranking.start({}, corpus))
            made = {folder for folder, _ in _artifacts(runtime.home)} - before
    for folder in sorted(made):
        typer.echo(_line(folder, _manifest(folder)))
    if not made:
        typer.echo(f"nothing to build: {stages.label} has all its indexes for {data}")


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Indexes, runs or other artifacts.")],
) -> None:
    """Compares every byte of artifacts with its checksum.

    Opening an index checks sizes and the first bytes of its files only, so that it stays quick.

    \b
    Example:
      rerank index verify indexes/mine
    """
    from rerank.artifact import verify_artifact

    for folder in folders:
        manifest = verify_artifact(folder)
        size = f"{len(manifest.files)} files, {_bytes(manifest):,} bytes"
        typer.echo(f"{folder}: {manifest.kind}, {size}, all as written")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An index, a run or another artifact.")],
) -> None:
    """Shows what an artifact is, how it was made, and its files.

    \b
    Example:
      rerank index show indexes/mine
    """
    from rerank.yamlfile import dump_yaml

    manifest = _manifest(folder)
    files = {name: f"{entry.size:,} bytes" for name, entry in manifest.files.items()}
    told = {"kind": manifest.kind, "version": manifest.version, "fingerprint": manifest.fingerprint}
    typer.echo(dump_yaml({**told, "config": dict(manifest.config), "files": files}), nl=False)


@app.command("list")
def list_command(home: Home = None) -> None:
    """Lists what is in the cache folder: kind, documents, size, place.

    \b
    Example:
      rerank index list
    """
    with session(home, "cpu", None, progress=False) as runtime:
        found = sorted(_artifacts(runtime.home), key=lambda pair: (pair[1].kind, pair[0]))
        for folder, manifest in found:
            typer.echo(_line(folder, manifest))
        total = sum(_bytes(manifest) for _, manifest in found)
        typer.echo(f"{len(found):,} artifacts, {_megabytes(total)} in {runtime.home}", err=True)


def _first_stages(pipeline: Pipeline) -> Iterator[Stage]:
    """The stages that find documents for a query alone, each once."""
    from rerank.stage import DOCUMENTS

    for stage in dict.fromkeys(pipeline.walk()):
        if DOCUMENTS in stage.gives and DOCUMENTS not in stage.needs and not stage.parts():
            yield stage


def _only_bm25(pipeline: Pipeline) -> BM25:
    """The pipeline's one first stage, where it has an index that stands alone."""
    from rerank.errors import PipelineError
    from rerank.retrieve.bm25 import BM25

    match list(_first_stages(pipeline)):
        case [BM25() as stage]:
            return stage
        case others:
            labels = ", ".join(stage.label for stage in others) or "none"
            raise PipelineError(
                f"--out takes a pipeline whose only first stage is bm25; {pipeline.label} has {labels}. Leave --out "
                "out: indexes then lie in the cache folder, where the pipeline finds them"
            )


def _artifacts(home: Path) -> Iterator[tuple[Path, Manifest]]:
    """The artifacts under a cache root, less those that cannot be read as such."""
    from rerank.artifact import MANIFEST, read_manifest
    from rerank.errors import ArtifactError

    for path in home.glob(f"*/*/{MANIFEST}"):
        if path.parent.name.startswith("."):
            continue
        try:
            yield path.parent, read_manifest(path.parent)
        except ArtifactError as error:
            typer.echo(f"warning: {error}", err=True)


def _manifest(folder: Path) -> Manifest:
    from rerank.artifact import read_manifest

    return read_manifest(folder)


def _line(folder: Path, manifest: Manifest) -> str:
    documents = manifest.config.get("documents")
    count = f"{documents:,} documents" if isinstance(documents, int) else ""
    return f"{manifest.kind:<14}{count:>20}  {_megabytes(_bytes(manifest)):>10}  {folder}"


def _bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
