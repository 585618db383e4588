"""What the files of a late-interaction checkpoint say: how texts are read, and the layers behind the transformer.

Three layouts are known.  Stanford's ColBERT: a transformer with `linear.weight` beside its weights, settings in
`artifact.metadata`.  PyLate's: a sentence-transformers folder of a Transformer and Dense layers, settings in
`config_sentence_transformers.json`.  Sentence-transformers' own MultiVectorEncoder: the same with each module's
settings in the module's file, and markers that are part of the prompts.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rerank.engines.module_folder import MODULES, SETTINGS, Json, read_json, read_modules
from rerank.errors import ModelError
from rerank.extras import need

if TYPE_CHECKING:
    from rerank.models import ModelFolder

METADATA = "artifact.metadata"
"""The file of settings that makes a folder one of Stanford's."""
_PUNCTUATION = tuple(string.punctuation)
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
"""Activations by the name of torch's module, with the function of `torch.nn.functional`."""
_ADVICE = "an encoder is used by a dense stage, a cross-encoder by the cross_encoder engine"


Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class Side:
    """How queries, or documents, are read."""

    marker: str = ""
    """The token that stands behind the first one; none where it is empty."""
    prompt: str = ""
    """What stands before every text; special tokens in it are such."""
    length: int | None = None
    """Tokens at most, marker and special ones included; None: what the tokenizer says."""
    skipped: tuple[str, ...] = ()
    """Words whose vectors do not count."""


@dataclass(frozen=True)
class Expansion:
    """What short queries are filled up with; the vectors of all of it count."""

    length: int
    """Tokens that a query has at least."""
    token: str | None = None
    """None: the tokenizer's mask, or else what ends texts."""
    attended: bool = False
    """Whether the query's own tokens see these."""
    cuts: bool = True
    """Whether longer queries are cut to that length."""


@dataclass(frozen=True)
class Checkpoint:
    """The settings of a late-interaction checkpoint."""

    layout: Literal["stanford", "pylate", "sentence-transformers"]
    transformer: Path
    """The folder of the transformer and the tokenizer."""
    query: Side
    document: Side
    expansion: Expansion | None = None
    layers: tuple[Path, ...] = ()
    """Folders of the layers behind the transformer, in their order; () for Stanford's one layer."""
    is_unit: bool = True
    """Whether vectors have length 1."""
    is_mean: bool = False
    """Whether a score is divided by how many vectors the query has."""
    lower_case: bool = False
    """Whether texts are put into lower case, whatever the tokenizer does."""
    pooling: Pooling | None = None
    """What the one vector of a text is: the mean of its tokens' states, the first or the last of them; None: every
    token keeps a vector of its own."""

    @property
    def stand_in(self) -> str:
        """What is tokenised before a text and dropped: Stanford's markers took its place in training."""
        return ". " if self.layout == "stanford" else ""

    def skipped_ids(self, side: Side, tokenizer: Any) -> frozenset[int]:
        """The token ids whose vectors do not count on that side."""
        if self.layout == "stanford":
            read = tokenizer(list(side.skipped), add_special_tokens=False)["input_ids"] if side.skipped else []
            return frozenset(ids[0] for ids in read if ids)
        codes = {word: tokenizer.convert_tokens_to_ids(word) for word in side.skipped}
        unknown = tokenizer.unk_token_id
        # A word that is no token would take every unknown word along.
        return frozenset(
            code
            for word, code in codes.items()
            if code is not None and (code != unknown or word == tokenizer.unk_token)
        )


def read_checkpoint(folder: ModelFolder) -> Checkpoint:
    """The settings of a late-interaction checkpoint in any of the layouts.

    Raises:
        ModelError: it is another kind of model, or has settings that are not known here.
    """
    path = folder.path
    if (path / MODULES).is_file():
        settings = read_json(path / SETTINGS, folder) if (path / SETTINGS).is_file() else {}
        if settings.get("model_type") == "MultiVectorEncoder":
            return _of_sentence_transformers(folder, settings)
        if settings.get("model_type") == "ColBERT" or "query_prefix" in settings:
            return _of_pylate(folder, settings)
    elif (path / METADATA).is_file() or "HF_ColBERT" in (
        read_json(path / "config.json", folder).get("architectures") or ()
    ):
        return _of_stanford(folder)
    raise ModelError(
        f"model {folder.name!r} ({path}) is no late-interaction checkpoint: it has neither {METADATA} nor settings of "
        f"PyLate or a MultiVectorEncoder in {SETTINGS}; {_ADVICE}"
    )


def _of_stanford(folder: ModelFolder) -> Checkpoint:
    path = folder.path / METADATA
    settings = read_json(path, folder) if path.is_file() else {}
    for name, known in (("similarity", "cosine"), ("interaction", "colbert")):
        if settings.get(name, known) != known:
            raise ModelError(f"model {folder.name!r}: {path} has {name} {settings[name]!r}, only {known!r} is known")
    return Checkpoint(
        "stanford",
        folder.path,
        Side(settings.get("query_token_id") or "[unused0]"),
        Side(
            settings.get("doc_token_id") or "[unused1]",
            length=settings.get("doc_maxlen") or 220,
            skipped=_PUNCTUATION if settings.get("mask_punctuation", True) else (),
        ),
        Expansion(settings.get("query_maxlen") or 32, attended=bool(settings.get("attend_to_mask_tokens"))),
    )


def _of_pylate(folder: ModelFolder, settings: Json) -> Checkpoint:
    modules = read_modules(folder, {"Transformer", "Dense", "Normalize", "Pooling"})
    prompts = settings.get("prompts") or {}
    skipped = settings.get("skiplist_words")
    length = settings.get("query_length") or 32
    expands = settings.get("do_query_expansion") is not False
    return Checkpoint(
        "pylate",
        modules.transformer,
        Side(_text(settings, "query_prefix", "[Q] "), prompts.get("query") or "", None if expands else length),
        Side(
            _text(settings, "document_prefix", "[D] "),
            prompts.get("document") or "",
            settings.get("document_length") or 180,
            _PUNCTUATION if skipped is None else tuple(skipped),
        ),
        Expansion(length, attended=bool(settings.get("attend_to_expansion_tokens"))) if expands else None,
        modules.layers,
        lower_case=bool(modules.settings.get("do_lower_case")),
    )


def _of_sentence_transformers(folder: ModelFolder, settings: Json) -> Checkpoint:
    modules = read_modules(folder, {"Transformer", "Dense", "Normalize", "MultiVectorMask"})
    masks = modules.folders("MultiVectorMask")
    mask = read_json(masks[0] / "config.json", folder) if masks else {}
    if mask.get("keep_only_token_ids"):
        raise ModelError(f"model {folder.name!r} reads images (keep_only_token_ids in {masks[0]}), only texts are read")
    prompts, own = settings.get("prompts") or {}, modules.settings
    skipped = {
        task: tuple(mask.get("skiplist_words") or ()) if task in (mask.get("skiplist_tasks") or ("document",)) else ()
        for task in ("query", "document")
    }
    given = own.get("query_expansion")
    expansion = None
    if given:
        expansion = Expansion(
            given["length"], given.get("token"), bool(given.get("attend")), cuts=given.get("strategy") == "fixed"
        )
    documents = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
    return Checkpoint(
        "sentence-transformers",
        modules.transformer,
        Side("", prompts.get("query") or "", own.get("query_length"), skipped["query"]),
        Side("", documents or "", own.get("document_length"), skipped["document"]),
        expansion,
        modules.layers,
        is_unit=bool(modules.folders("Normalize")),
        is_mean=settings.get("similarity_fn_name") == "meanmaxsim",
        lower_case=bool(own.get("do_lower_case")),
    )


def _text(settings: Json, name: str, default: str) -> str:
    """A setting that may be empty, which is not the same as missing."""
    value = settings.get(name)
    return default if value is None else str(value)


# -- layers -------------------------------------------------------------------


class Layer(NamedTuple):
    """A linear layer behind the transformer, in float32."""

    weight: Any
    bias: Any
    activation: str | None
    residual: Any
    """The weights of a second way around; the number 1 for the way as it is; None for no such way."""

    def of(self, states: Any) -> Any:
        """What the layer makes of states [tokens, d]."""
        import torch

        made = torch.nn.functional.linear(states, self.weight, self.bias)
        if self.activation is not None:
            made = getattr(torch.nn.functional, self.activation)(made)
        if self.residual is None:
            return made
        return made + (states if isinstance(self.residual, int) else states @ self.residual.T)


def load_layers(checkpoint: Checkpoint, folder: ModelFolder, width: int, device: str) -> list[Layer]:
    """The layers behind the transformer.

    Args:
        checkpoint: says where they lie.
        folder: the model's.
        width: how long the transformer's states are.
        device: where they compute.

    Raises:
        ModelError: they are missing, or do not fit each other.
    """
    if checkpoint.layout == "stanford":
        layers = [Layer(_weights([folder.path], ["linear.weight"], folder, device)["linear.weight"], None, None, None)]
    else:
        layers = [_dense(path, checkpoint, folder, device) for path in checkpoint.layers]
    for layer in layers:
        if layer.weight.shape[1] != width:
            raise ModelError(
                f"model {folder.name!r} ({folder.path}): a layer takes vectors of {layer.weight.shape[1]} numbers and "
                f"is given {width}; get the model again"
            )
        width = layer.weight.shape[0]
    return layers


def _dense(path: Path, checkpoint: Checkpoint, folder: ModelFolder, device: str) -> Layer:
    settings = read_json(path / "config.json", folder)
    default = "Identity" if checkpoint.layout == "pylate" else "Tanh"
    name = str(settings.get("activation_function") or default).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ModelError(f"model {folder.name!r}: {path} has the activation {name!r}; known are {known}")
    has_bias, has_residual = bool(settings.get("bias", True)), bool(settings.get("use_residual"))
    is_wide = has_residual and settings.get("in_features") != settings.get("out_features")
    names = ["linear.weight", *["linear.bias"] * has_bias, *["residual.weight"] * is_wide]
    weights = _weights([path], names, folder, device)
    residual = weights["residual.weight"] if is_wide else 1 if has_residual else None
    return Layer(weights["linear.weight"], weights.get("linear.bias"), _ACTIVATIONS[name], residual)


def _weights(folders: Sequence[Path], names: Sequence[str], folder: ModelFolder, device: str) -> dict[str, Any]:
    """Tensors in float32 by name, from whatever safetensors file of the folders has them."""
    safetensors = need("safetensors", "dense", f"the model {folder.name!r}")
    found: dict[str, Any] = {}
    for path in sorted(path for place in folders for path in place.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            held = set(file.keys())
            found |= {name: file.get_tensor(name).float().to(device) for name in names if name in held}
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(
            f"model {folder.name!r}: {folders[0]} has no {', '.join(missing)} in a safetensors file, so its scores "
            f"would be random; get it again, or save it again with safetensors ({_ADVICE})"
        )
    return found
