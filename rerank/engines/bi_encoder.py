"""Bi-encoders as rerankers: one vector for a query, one for a document, and their similarity.

The stage `rescore` does the same with vectors that are kept; this engine is what is trained, and what takes adapters.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank.engines.colbert import Checkpoint, Pooling, Side
from rerank.engines.late_interaction import Ids, LateInteraction, Vectors
from rerank.engines.module_folder import MODULES, SETTINGS, read_json, read_modules
from rerank.engines.scorer import check_order, load_scorer
from rerank.engines.text_model import DType, prompt_of
from rerank.engines.text_model import Side as SideName
from rerank.errors import ModelError
from rerank.ranking import ScoreKind

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime

_KIND = "a bi-encoder"
_MODULES = {"Transformer", "Pooling", "Dense", "Normalize"}
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""By its name, or by the flag of older folders."""
_CAUSES = "the model was not trained to rank, or does not know the language"


class BiEncoder(LateInteraction):
    """A transformer whose states become one vector a text; a score is the product of two, or their cosine.

    Source: Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084).
    """

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What the folder's files say."""
        return read_bi_encoder(self.folder)

    @property
    def score_kind(self) -> ScoreKind:
        """What a score is."""
        return ScoreKind.COSINE if self.checkpoint.is_unit else ScoreKind.DOT

    def _document_vectors(self, ids: list[Ids]) -> Vectors:
        return Vectors(self._pooled(self._states(ids), [len(row) for row in ids]), [1] * len(ids))

    def _query_vectors(self, ids: list[Ids], own: npt.NDArray[np.int64]) -> Vectors:
        return self._document_vectors(ids)

    def _pooled(self, states: Any, lengths: list[int]) -> Any:
        """float32 [texts, d]: the vectors of texts, from the states [tokens, d] of all their tokens."""
        import torch

        sizes = torch.tensor(lengths, device=states.device)
        ends = sizes.cumsum(0)
        if self.checkpoint.pooling != "mean":
            return self._projected(states[ends - sizes if self.checkpoint.pooling == "cls" else ends - 1])
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), sizes)
        sums = torch.zeros(len(lengths), states.shape[1], device=states.device).index_add(0, owner, states.float())
        return self._projected(sums / sizes[:, None])

    @property
    def _missing_advice(self) -> str:
        return "its weights are not those of the encoder that its config.json names; get it again"

    def order_holds(self) -> bool:
        """Whether obviously relevant documents score above irrelevant ones; else a warning is logged."""
        return check_order(self.pairs, f"bi-encoder {self.folder.name!r}", _CAUSES)


def read_bi_encoder(folder: ModelFolder) -> Checkpoint:
    """The settings of a sentence-transformers folder that gives texts one vector each.

    Raises:
        ModelError: it is another kind of model, or pools in a way that is not known here.
    """
    if not (folder.path / MODULES).is_file():
        raise ModelError(
            f"model {folder.name!r} ({folder.path}) is no bi-encoder: it has no {MODULES}; give a folder that "
            "sentence-transformers saved"
        )
    settings = read_json(folder.path / SETTINGS, folder) if (folder.path / SETTINGS).is_file() else {}
    modules = read_modules(folder, _MODULES, _KIND)
    pools = modules.folders("Pooling")
    if len(pools) != 1:
        raise ModelError(f"model {folder.name!r} has {len(pools)} Pooling modules, {_KIND} has one")
    kinds = [kind for kind, _ in modules.rows]
    if kinds[1] != "Pooling" or "Normalize" in kinds[:-1]:
        raise ModelError(
            f"model {folder.name!r} is made of {', '.join(kinds)}; {_KIND} pools first and normalises last (the stage "
            "rescore reads other models)"
        )
    measure = settings.get("similarity_fn_name") or "cosine"
    if measure not in ("cosine", "dot"):
        raise ModelError(f"model {folder.name!r} compares by {measure} distance; only cosine and dot are known")
    prompts = settings.get("prompts") or {}

    def side(name: SideName) -> Side:
        before = prompt_of(prompts, settings.get("default_prompt_name"), name)
        return Side("", before, modules.settings.get("max_seq_length"))

    return Checkpoint(
        "sentence-transformers",
        modules.transformer,
        side("query"),
        side("document"),
        layers=modules.layers,
        is_unit=measure == "cosine" or bool(modules.folders("Normalize")),
        lower_case=bool(modules.settings.get("do_lower_case")),
        pooling=_pooling(pools[0], folder, has_prompts=any(prompts.values())),
    )


def save_bi_encoder(folder: ModelFolder, out: Path, save: Callable[[Path], None]) -> None:
    """Writes the sentence-transformers folder `out`: `folder`'s, with another transformer.

    Args:
        folder: a bi-encoder's.
        out: where it is written.
        save: writes transformer and tokenizer into the folder that it is given.

    Raises:
        ModelError: `folder` is no bi-encoder's.
    """
    modules = read_modules(folder, _MODULES, _KIND)
    for kind, path in modules.rows:
        place = out / path.relative_to(folder.path)
        place.mkdir(parents=True, exist_ok=True)
        if kind == "Transformer":
            save(place)
        some = [path / "sentence_bert_config.json"] if kind == "Transformer" else path.glob("*")
        for file in some:
            if file.is_file():
                shutil.copyfile(file, place / file.name)
    for name in (MODULES, SETTINGS):
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, out / name)


def _pooling(path: Path, folder: ModelFolder, *, has_prompts: bool) -> Pooling:
    found = read_json(path / "config.json", folder)
    chosen = found.get("pooling_mode")
    flags = [name for name, value in found.items() if name.startswith("pooling_mode_") and value is True]
    modes = [chosen] if isinstance(chosen, str) else flags
    without_prompt = has_prompts and found.get("include_prompt") is False
    if len(modes) != 1 or modes[0] not in _POOLINGS or without_prompt:
        what = (", ".join(modes) or "nothing") + (", without the prompt's tokens" if without_prompt else "")
        raise ModelError(
            f"model {folder.name!r} pools by {what}; known are the mean of all tokens, the first and the last (the "
            "stage rescore reads other models)"
        )
    return _POOLINGS[modes[0]]


def load_bi_encoder(
    runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto", adapter: str | None = None
) -> BiEncoder:
    """The bi-encoder of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, do not fit, or are of another kind of model.
    """
    return load_scorer(BiEncoder, runtime, model, revision, dtype, adapter)
