"""Causal language models: label logits at a prompt's end, likelihoods of continuations, generated text.

Prompts of one query are packed behind their shared beginning, which is computed once a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rerank.engines.language_model import Generated, Ids, Item, LanguageModel, Request, Sampling
from rerank.engines.packing import Pack, Packing, alone, find_packing, padded, padded_inputs
from rerank.engines.scorer import check_order, load_scorer
from rerank.engines.text_model import DType

if TYPE_CHECKING:
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

_CAUSES = (
    "weights and tokenizer that do not belong together, damaged weights, or a model that does not know the language"
)


class CausalLM(LanguageModel):
    """A decoder with a head over the vocabulary."""

    library_class: ClassVar[str] = "AutoModelForCausalLM"

    def _continued(self, request: Request) -> Item:
        text = self._only_continuation(request)
        tokens = self._checked(request, max(0, len(text) - 1))
        whole = np.concatenate((tokens, np.array(text[:-1], dtype=np.int32)))
        return Item(whole, min(request.prefix, len(tokens) - 1), max(1, len(text)))

    def _cost(self, items: Sequence[Item]) -> int:
        """Tokens that a batch computes."""
        pieces, _, _ = _pieces(items, shares=self._packing is not None and self._packing.shares_prefixes)
        return sum(map(len, pieces))

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Numbers of items in batches: those with the same prefix side by side, or by length where batches are padded.

        The longest come first, because runs of one length are computed at once.
        """
        if self._packing is None:
            return super()._batches(items)
        keys = [item.tokens[: item.prefix].tobytes() for item in items]
        order = sorted(range(len(items)), key=lambda i: (keys[i], -len(items[i].tokens)))
        batches: list[list[int]] = []
        free, shared, alone_too_long = 0, b"", False
        for i in order:
            item = items[i]
            again = keys[i] == shared and self._packing.shares_prefixes
            cost = item.cost - (item.prefix if batches and again else 0)
            too_long = self._packing.longest is not None and item.longest > self._packing.longest
            if not batches or cost > free or too_long or alone_too_long:
                batches.append([])
                free, cost = self.batch_tokens, item.cost
            batches[-1].append(i)
            free -= cost
            shared, alone_too_long = keys[i], too_long
        return batches

    def _states(self, items: list[Item]) -> tuple[Any, int]:
        """float32 [positions, d] that a batch reads, item by item; and the tokens that were computed."""
        packing = self._packing
        if packing is not None and packing.longest and max(item.longest for item in items) > packing.longest:
            packing = None
        pieces, parents, reads = _pieces(items, shares=packing is not None and packing.shares_prefixes)
        pack = Pack([len(piece) for piece in pieces], parents)
        if len(pieces) == 1:
            states = alone(self._base, pieces[0])
        elif packing is not None:
            states = packing.states(self._base, np.concatenate(pieces), pack)
        else:
            inputs = padded_inputs(pieces, None, self._pad(), self.device)
            states = padded(self._base, inputs)[inputs["attention_mask"].bool()]
        places = [np.arange(pack.ends[piece] - n + 1, pack.ends[piece] + 1) for piece, n in reads]
        return states[np.concatenate(places)].float(), pack.size

    def _write(self, prompts: list[Ids], sampling: Sampling) -> list[Generated]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        inside = np.arange(width) >= width - np.array([len(prompt) for prompt in prompts])[:, None]
        ids = np.full(inside.shape, self._pad(), dtype=np.int64)
        ids[inside] = np.concatenate(prompts)
        ends, listeners = self._listeners(prompts, sampling, width)
        written = self.model.generate(
            torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(inside.astype(np.int64)).to(self.device),
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens, do_sample=False, pad_token_id=self._pad()
            ),
            **listeners,
        )
        return ends.answers(written[:, width:].tolist())

    # -- loading ------------------------------------------------------------

    @property
    def _missing_advice(self) -> str:
        return "it is not a causal language model"

    def _find_packing(self) -> Packing | None:
        self._read_settings()
        self._read_head()
        return find_packing(self._base, self.words(), self.limit)

    def _tried(self) -> tuple[Any, Any]:
        import torch

        ids = torch.tensor([self.words()[:8]], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, -1]
        return None if self._base is self.model else alone(self._base, ids[0].tolist())[-1], logits

    def order_holds(self) -> bool:
        """Whether queries are likelier after documents that answer them; else a warning is logged.

        This tries the model; whether a prompt brings that out is tried where the two are put together.
        """
        return check_order(self._plain_likelihood, f"causal language model {self.folder.name!r}", _CAUSES)


def _pieces(items: Sequence[Item], *, shares: bool) -> tuple[list[Ids], list[int], list[tuple[int, int]]]:
    """What lies in a row: sequences, which earlier one each continues, and (sequence, last positions) to read.

    Args:
        items: those with the same prefix side by side.
        shares: whether sequences may continue others; else each is written out in full.
    """
    pieces: list[Ids] = []
    parents: list[int] = []
    reads: list[tuple[int, int]] = []

    def lay(tokens: Ids, parent: int) -> int:
        pieces.append(tokens)
        parents.append(parent)
        return len(pieces) - 1

    prefixes = [item.tokens[: item.prefix].tobytes() for item in items]
    shared = -1
    for i, item in enumerate(items):
        if i == 0 or prefixes[i] != prefixes[i - 1]:
            several = i + 1 < len(items) and prefixes[i] == prefixes[i + 1]
            shared = lay(item.tokens[: item.prefix], -1) if shares and several and item.prefix else -1
        whole = lay(item.tokens[item.prefix if shared >= 0 else 0 :], shared)
        reads.append((whole, item.reads))
        for branch in item.branches:
            at = lay(branch, whole) if shares else lay(np.concatenate((item.tokens, branch)), -1)
            reads.append((at, len(branch)))
    return pieces, parents, reads


def load_causal_lm(
    runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto", adapter: str | None = None
) -> CausalLM:
    """The causal language model of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, or do not fit.
    """
    return load_scorer(CausalLM, runtime, model, revision, dtype, adapter)
