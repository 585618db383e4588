"""Causal language models: label logits at a prompt's end, likelihoods of continuations, generated text.

Prompts of one query are packed behind their shared beginning, which is computed once a batch; so is a whole prompt that
is asked with several continuations, as a document is whose likelihoods of several queries are wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from rerank.engines.language_model import Generated, Ids, Item, LanguageModel, Request, Sampling
from rerank.engines.packing import Pack, Packing, alone, padded, padded_inputs
from rerank.engines.scorer import Trial, check_order, load_scorer
from rerank.engines.text_model import DType

if TYPE_CHECKING:
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

_LEAST_SHARED = 4
"""A shorter beginning is computed again: to keep it apart costs more."""
_LEAST_WRITTEN_ONCE = 16
"""A shorter beginning of all prompts of a batch is computed for each, where text is written."""
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
        """Numbers of items in batches: those that begin alike side by side, or by length where batches are padded.

        The longest come first, because runs of one length are computed at once.
        """
        if self._packing is None:
            return super()._batches(items)
        beginnings = [_Beginnings.of(item) for item in items]
        order = sorted(range(len(items)), key=lambda i: beginnings[i].place)
        batches: list[list[int]] = []
        free, last, alone_too_long = 0, None, False
        for i in order:
            item, mine = items[i], beginnings[i]
            shared = mine.shared(last) if last is not None and self._packing.shares_prefixes else 0
            too_long = self._packing.longest is not None and item.longest > self._packing.longest
            if not batches or item.cost - shared > free or too_long or alone_too_long:
                batches.append([])
                free, shared = self.batch_tokens, 0
            batches[-1].append(i)
            free -= item.cost - shared
            last, alone_too_long = mine, too_long
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

        shared = self._shared(prompts)
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), self._pad(), dtype=np.int64)
        inside = np.zeros(ids.shape, dtype=np.int64)
        for row, mask, prompt in zip(ids, inside, prompts, strict=True):
            # What all begin with comes first; the padding stands behind it.
            for part, span in (
                (prompt[:shared], slice(shared)),
                (prompt[shared:], slice(width - len(prompt) + shared, None)),
            ):
                row[span], mask[span] = part, 1
        ends, listeners = self._listeners(prompts, sampling, width)
        written = self.model.generate(
            torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(inside).to(self.device),
            past_key_values=self._beginning(prompts[0][:shared], len(prompts)),
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens, do_sample=False, pad_token_id=self._pad()
            ),
            **listeners,
        )
        return ends.answers(written[:, width:].tolist())

    def _shared(self, prompts: list[Ids]) -> int:
        """How many tokens all prompts begin with that are worth being computed once; one of each is left."""
        if len(prompts) == 1 or self._packing is None or not self._packing.shares_prefixes:
            return 0
        shortest = min(map(len, prompts)) - 1
        heads = np.stack([prompt[:shortest] for prompt in prompts])
        differs = np.flatnonzero((heads != heads[0]).any(axis=0))
        shared = int(differs[0]) if len(differs) else shortest
        return shared if shared >= _LEAST_WRITTEN_ONCE else 0

    def _beginning(self, tokens: Ids, n: int) -> Any:
        """Keys and values of what `n` prompts begin with, for each of them; None for nothing."""
        import torch

        if not len(tokens):
            return None
        ids = torch.from_numpy(tokens.astype(np.int64))[None].to(self.device)
        cache = self._base(input_ids=ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(n)
        return cache

    # -- loading ------------------------------------------------------------

    @property
    def _missing_advice(self) -> str:
        return "it is not a causal language model"

    def _find_packing(self) -> Packing | None:
        self._read_settings()
        self._read_head()
        return self._tried_packing()

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


class _Beginnings(NamedTuple):
    """How an item begins, as far as others may begin alike."""

    prefix: bytes
    """What all prompts of the query share."""
    prompt: bytes
    """All that is not read, and so may be shared by those that ask the same with other continuations."""
    cuts: tuple[int, int]
    """The tokens of both; 0, or as many as the former has, where there is too little to share."""

    @classmethod
    def of(cls, item: Item) -> _Beginnings:
        first = item.prefix if item.prefix >= _LEAST_SHARED else 0
        second = len(item.tokens) - item.reads
        cuts = first, second if second - first >= _LEAST_SHARED else first
        prefix, prompt = (item.tokens[:cut].tobytes() for cut in cuts)
        return cls(prefix, prompt, cuts)

    @property
    def place(self) -> tuple[bytes, int, bytes]:
        """What items are sorted by."""
        return self.prefix, -self.cuts[1], self.prompt

    def shared(self, other: _Beginnings) -> int:
        """How many tokens are computed once for both."""
        if self.prefix != other.prefix:
            return 0
        return self.cuts[self.prompt == other.prompt]


def _pieces(items: Sequence[Item], *, shares: bool) -> tuple[list[Ids], list[int], list[tuple[int, int]]]:
    """What lies in a row: sequences, which earlier one each continues, and (sequence, last positions) to read.

    Args:
        items: those that begin alike side by side.
        shares: whether sequences may continue others; else each is written out in full.
    """
    pieces: list[Ids] = []
    parents: list[int] = []
    reads: list[tuple[int, int]] = []

    def lay(tokens: Ids, parent: int) -> int:
        pieces.append(tokens)
        parents.append(parent)
        return len(pieces) - 1

    beginnings = [_Beginnings.of(item) for item in items]
    laid: list[tuple[int, int]] = []
    """Of the beginnings at hand that later items share: tokens up to their ends, and their sequences."""
    for i, item in enumerate(items):
        before = beginnings[i].shared(beginnings[i - 1]) if i else 0
        after = beginnings[i].shared(beginnings[i + 1]) if i + 1 < len(items) else 0
        laid = [(cut, piece) for cut, piece in laid if cut <= before]
        for cut in beginnings[i].cuts if shares else ():
            start, parent = laid[-1] if laid else (0, -1)
            if start < cut <= after:
                laid.append((cut, lay(item.tokens[start:cut], parent)))
        start, parent = laid[-1] if laid else (0, -1)
        whole = lay(item.tokens[start:], parent)
        reads.append((whole, item.reads))
        for branch in item.branches:
            at = lay(branch, whole) if shares else lay(np.concatenate((item.tokens, branch)), -1)
            reads.append((at, len(branch)))
    return pieces, parents, reads


def load_causal_lm(
    runtime: Runtime,
    model: str,
    revision: str | None = None,
    dtype: DType = "auto",
    adapter: str | None = None,
    trial: Trial | None = None,
) -> CausalLM:
    """The causal language model of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, or do not fit.
    """
    return load_scorer(CausalLM, runtime, model, revision, dtype, adapter, trial)
