"""Cross-encoders: (query, document) pairs to logits."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank.engines.cache import SCORE, RequestCache, Stored, request_key
from rerank.engines.lora import Adapter
from rerank.engines.packing import (
    TOLERANCE,
    Pack,
    Packing,
    alone,
    packed_batches,
    padded,
    padded_inputs,
    position_shift,
)
from rerank.engines.scorer import MAX_TOKENS, FloatVector, Scorer, check_order, load_scorer
from rerank.engines.text_model import PROBE_TEXTS, Count, DType, token_batches
from rerank.engines.trials import Trials
from rerank.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
_TEXTS_AT_ONCE = 1024
"""Pairs that are tokenised together: as lists of Python numbers, ids take nine times the room."""
_SURROGATES = re.compile(r"[\ud800-\udfff]")
"""Halves of characters, which tokenizers do not read."""
_CAUSES = (
    "the head was not trained to rank (or is a new one), its labels are the other way round, or the model does not "
    "know the language"
)


class PairTokens(NamedTuple):
    """Tokenised pairs, cut to the model's length."""

    ids: list[npt.NDArray[np.int32]]
    types: list[npt.NDArray[np.int32]] | None
    """Which part each token belongs to, for models that are told."""
    lengths: npt.NDArray[np.int64]
    """[n] tokens of each pair before its document was cut."""
    cut_queries: int
    """Pairs whose query was cut."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[n] tokens of each pair."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    def take(self, rows: Sequence[int]) -> Rows:
        """Some of the pairs."""
        return Rows([self.ids[i] for i in rows], None if self.types is None else [self.types[i] for i in rows])


class Rows(NamedTuple):
    """Token ids, and types where the model is told them, of the pairs of a batch."""

    ids: list[npt.NDArray[np.int32]]
    types: list[npt.NDArray[np.int32]] | None

    @property
    def pack(self) -> Pack:
        """The pairs end to end."""
        return Pack([len(row) for row in self.ids])


class CrossEncoder(Scorer):
    """A sequence classifier with one label (its logit is the score) or two (the second's logit less the first's).

    A saved activation such as a sigmoid is not applied: scores are logits.  The transformer computes in the chosen
    type, the head in float32, because 16-bit logits tie.
    """

    library_class: ClassVar[str] = "AutoModelForSequenceClassification"
    min_agreement: ClassVar[float] = 0.98

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str,
        threads: int,
        trials: Trials | None = None,
        n_labels: int | None = None,
    ) -> None:
        """The classifier in `folder`; its head has `n_labels` where an adapter brings another than the folder's."""
        if n_labels is None:
            _refuse_other_modules(folder)
        self._n_labels = n_labels
        self._head: Head | None = None
        super().__init__(folder, device=device, threads=threads, trials=trials)

    def pairs(
        self,
        pairs: Sequence[Pair],
        count: Count | None = None,
        max_tokens: int | None = None,
        cache: RequestCache | None = None,
    ) -> FloatVector:
        """float32 [n]: the logits of (query, document) pairs, in the order given.

        Special tokens inside a text are read as plain characters.  A pair that is too long loses the end of its
        document, down to a quarter of the room, then the end of its query.

        Args:
            pairs: texts.
            count: is told `requests`, `cached answers`, `tokens` of the others, `truncated documents` and `truncated
                queries`, e.g. `runtime.count`.
            max_tokens: cuts pairs to this, special tokens included, where the model would read more.
            cache: where answers are looked up and kept.

        Raises:
            ModelError: scores that are not finite.
        """
        return self.scored(self.tokenise(pairs, max_tokens), count, cache)

    def scored(self, tokens: PairTokens, count: Count | None = None, cache: RequestCache | None = None) -> FloatVector:
        """As `pairs`, of pairs that were tokenised before."""
        sizes = tokens.sizes

        def score(batch: list[int]) -> list[float]:
            scores: list[float] = self._finite(_read(self._logits(tokens.take(batch)))).tolist()
            if count is not None:
                count("tokens", int(sizes[batch].sum()))
            return scores

        stored = Stored(cache, self._keys(tokens), SCORE) if cache is not None else None
        with self._computing():
            scores = self._answers(self._batches(sizes), lambda batch: int(sizes[batch].sum()), score, stored, count)
        if count is not None:
            count("truncated documents", int((tokens.lengths > sizes).sum()))
            count("truncated queries", tokens.cut_queries)
        return np.array(scores, dtype=np.float32)

    def _keys(self, tokens: PairTokens) -> list[bytes]:
        key, types = self.key, tokens.types or [np.empty(0, dtype=np.int32)] * len(tokens.ids)
        return [
            request_key(key, "pairs", ids.tobytes(), kinds.tobytes())
            for ids, kinds in zip(tokens.ids, types, strict=True)
        ]

    def plan(self, pairs: Sequence[Pair], max_tokens: int | None = None) -> list[list[int]]:
        """The numbers of pairs that are computed together; `pairs` of one such batch gives the same bits by itself."""
        return self._batches(self.tokenise(pairs, max_tokens).sizes)

    # -- tokens ------------------------------------------------------------

    @property
    def limit(self) -> int:
        """The longest pair that the model reads, special tokens included."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS
        most = int(positions) - position_shift(self._base)
        return min(most, int(self.tokenizer.model_max_length), MAX_TOKENS)

    def tokenise(self, pairs: Sequence[Pair], max_tokens: int | None = None) -> PairTokens:
        """The token ids of pairs, each cut to `limit`, or to `max_tokens` where that is less."""
        limit = self.limit if max_tokens is None else min(self.limit, max_tokens)
        special = self._special_tokens()
        room = limit - special
        if room < 2:
            raise ConfigError(f"max_tokens is {limit}; {special} special tokens and two of text are the least")
        whole = {query: _SURROGATES.sub("\ufffd", query) for query, _ in pairs}
        shorter = {query: self._cut(text, room - room // 4) for query, text in whole.items()}
        ids: list[npt.NDArray[np.int32]] = []
        types: list[npt.NDArray[np.int32]] = []
        lengths = np.empty(len(pairs), dtype=np.int64)
        for start in range(0, len(pairs), _TEXTS_AT_ONCE):
            some = [
                (shorter[query], _SURROGATES.sub("\ufffd", document))
                for query, document in pairs[start : start + _TEXTS_AT_ONCE]
            ]
            encoded = self._tokens(some, truncation=False)
            counts = lengths[start : start + len(some)]
            counts[:] = [len(row) for row in encoded["input_ids"]]
            long = np.flatnonzero(counts > limit).tolist()
            if long:
                again = self._tokens([some[i] for i in long], truncation="only_second", max_length=limit)
                for name, rows in again.items():
                    for i, row in zip(long, rows, strict=True):
                        encoded[name][i] = row
            ids += _arrays(encoded["input_ids"])
            types += _arrays(encoded.get("token_type_ids", ()))
        for i in np.flatnonzero(lengths == 0).tolist():
            # Tokenizers of decoders add nothing to two empty texts.
            ids[i] = np.array([self._pad()], dtype=np.int32)
            if types:
                types[i] = np.zeros(1, dtype=np.int32)
        cut = sum(shorter[query] != whole[query] for query, _ in pairs)
        return PairTokens(ids, types or None, lengths, cut)

    def _tokens(self, pairs: Sequence[Pair], **options: Any) -> Any:
        queries, documents = zip(*pairs, strict=True)
        options |= {"split_special_tokens": True, "verbose": False, "return_attention_mask": False}
        return self.tokenizer(list(queries), list(documents), **options)

    def _special_tokens(self) -> int:
        return len(self._tokens([("", "")], truncation=False)["input_ids"][0])

    def _cut(self, text: str, most: int) -> str:
        """The beginning of `text` that has at most `most` tokens, cut where a token ends."""
        options = {"split_special_tokens": True, "verbose": False, "add_special_tokens": False}
        # A token has a character at least.
        while len(text) > most:
            ends = [stop for _, stop in self.tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]]
            if len(ends) <= most:
                break
            # What is cut may be split into more tokens than it was.
            text = text[: min(ends[most - 1], len(text) - 1)]
        return text

    # -- logits ------------------------------------------------------------

    def _batches(self, sizes: npt.NDArray[np.int64]) -> list[list[int]]:
        """Batches of pairs, longest first: at most `batch_tokens` tokens, padding included where there is any."""
        if self._packing is None:
            return [batch.tolist() for batch in token_batches(sizes, self.batch_tokens)]
        return packed_batches(
            np.argsort(-sizes, kind="stable").tolist(), sizes, self.batch_tokens, self._packing.longest
        )

    def _logits(self, rows: Rows) -> Any:
        """float32 [n, labels] of one batch."""
        if self._head is None:
            return self.model(**padded_inputs(*rows, self._pad(), self.device)).logits.float()
        return self._head.logits(self._states(rows), rows, self._pad())

    def _states(self, rows: Rows) -> Any:
        """[tokens, d]: the last hidden states of a batch, end to end."""
        if len(rows.ids) == 1:
            return alone(self._base, rows.ids[0], rows.types[0] if rows.types else None)
        if self._packing is None:
            inputs = padded_inputs(*rows, self._pad(), self.device)
            return padded(self._base, inputs)[inputs["attention_mask"].bool()]
        types = None if rows.types is None else np.concatenate(rows.types)
        return self._packing.states(self._base, np.concatenate(rows.ids), rows.pack, types)

    # -- loading ------------------------------------------------------------

    @property
    def _missing_advice(self) -> str:
        return "it looks like a plain encoder: train a cross-encoder from it, or use it as a dense one"

    @property
    def _settings(self) -> Mapping[str, Any]:
        return {} if self._n_labels is None else {"num_labels": self._n_labels, "ignore_mismatched_sizes": True}

    @classmethod
    def options_for(cls, folder: ModelFolder, adapter: Adapter) -> dict[str, Any]:
        if not adapter.replaced:
            return {}
        model = cls.without_weights(folder).model
        own = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        for name, shape in adapter.replaced.items():
            here = own.get(name, shape)
            if here != shape and here[1:] == shape[1:] and here[0] == model.config.num_labels:
                return {"n_labels": shape[0]}
        return {}

    def _take(self, adapter: Adapter) -> None:
        if self._head is None:
            super()._take(adapter)
            return
        with self._head.pooler_in_place():
            super()._take(adapter)
            # The adapter may have put layers of its own into the head.
            self._head = Head(self.model, self._head.reads)

    def _find_packing(self) -> Packing | None:
        labels = int(self.model.config.num_labels)
        if labels not in (1, 2):
            raise ModelError(
                f"model {self.folder.name!r} has {labels} labels; a cross-encoder has one (relevance) or two "
                "(irrelevant, relevant)"
            )
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self._pad()
        tells_types = "token_type_ids" in getattr(self.tokenizer, "model_input_names", ())
        n_types = int(getattr(self.model.config, "type_vocab_size", 0) or 0) if tells_types else 0
        self._head = self._find_head()
        if self._head is None:
            logger.info("model %s: its head cannot be run by itself", self.folder.name)
            return None
        return self._tried_packing(n_types)

    def _find_head(self) -> Head | None:
        """The model's head by itself; None where it does not give the model's own logits."""
        import torch

        if self._base is self.model:
            return None
        tokens = self.tokenise([(PROBE_TEXTS[i], PROBE_TEXTS[i + 1]) for i in range(0, 8, 2)])
        each = [tokens.take([i]) for i in range(len(tokens.ids))]
        rows, pad = tokens.take(range(len(tokens.ids))), self._pad()
        wanted = torch.cat([self.model(**padded_inputs(*one, pad, self.device)).logits for one in each])
        states = torch.cat([self._states(one) for one in each])
        for reads in ("first", "last", "all"):
            head = Head(self.model, reads)
            try:
                found = head.logits(states, rows, pad)
            # Architectures differ in what their heads want, and fail in their own ways.
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
                logger.debug("model %s: head on %s states: %s", self.folder.name, reads, error)
                continue
            if found.shape == wanted.shape and torch.allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE):
                return head
        return None

    def _convert(self, dtype: Any) -> None:
        if self._head is None:
            self.model.to(dtype)
        else:
            self._head.detach_pooler()
            self._base.to(dtype)

    def trial(self) -> list[FloatVector]:
        """Scores of eight queries' lists of eight documents."""
        queries = [text for text in PROBE_TEXTS if text[0].islower()][:8]
        documents = [text for text in PROBE_TEXTS if text[0].isupper()][:8]
        scores = self.pairs([(query, document) for query in queries for document in documents])
        return list(scores.reshape(len(queries), len(documents)))

    def order_holds(self) -> bool:
        """Whether obviously relevant documents score above irrelevant ones; else a warning is logged."""
        return check_order(self.pairs, f"cross-encoder {self.folder.name!r}", _CAUSES)


class Head:
    """The part of a classifier behind its transformer, run as the model's own code does, on states given to it.

    Args:
        model: the classifier.
        reads: which states the head is given: of each sequence's first token, its last one, or all.
    """

    def __init__(self, model: Any, reads: Literal["first", "last", "all"]) -> None:
        import torch

        self.reads = reads
        self._transformer = model.base_model
        self._pooler = getattr(self._transformer, "pooler", None)
        self._given: Any = None
        # The same weights and code, with a stand-in for the transformer.
        stand_in = torch.nn.Module()
        stand_in.forward = self._give
        self._model = copy.copy(model)
        self._model._modules = {**model._modules, model.base_model_prefix: stand_in}

    def detach_pooler(self) -> None:
        """Takes the pooler, which some transformers have inside, out of the transformer: heads stay in float32."""
        if getattr(self._transformer, "pooler", None) is not None:
            self._transformer.pooler = None

    @contextlib.contextmanager
    def pooler_in_place(self) -> Iterator[None]:
        """Within the block the pooler is where the model's code has it."""
        detached = self._pooler is not None and self._transformer.pooler is None
        if detached:
            self._transformer.pooler = self._pooler
        try:
            yield
        finally:
            if detached:
                self._transformer.pooler = None

    def logits(self, states: Any, rows: Rows, pad: int) -> Any:
        """float32 [n, labels] from the states [tokens, d] of sequences that lie end to end."""
        if self.reads == "all":
            inputs = padded_inputs(*rows, pad, states.device)
            mask = inputs["attention_mask"].bool()
            given = states.new_zeros((*mask.shape, states.shape[-1])).float()
            given[mask] = states.float()
        else:
            places = slice(0, 1) if self.reads == "first" else slice(-1, None)
            kept = Rows([row[places] for row in rows.ids], rows.types and [row[places] for row in rows.types])
            inputs = padded_inputs(*kept, pad, states.device)
            pack = rows.pack
            given = states[(pack.starts if self.reads == "first" else pack.ends).tolist()].float().unsqueeze(1)
        self._given = given
        try:
            return self._model(**inputs).logits.float()
        finally:
            self._given = None

    def _give(self, *_: Any, **__: Any) -> Any:
        """The states at hand in the form of a transformer's output."""
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        pooled = None if self._pooler is None else self._pooler(self._given)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self._given, pooler_output=pooled)


def _read(logits: Any) -> FloatVector:
    """One score a pair: the logit, or the second label's less the first's."""
    scores: FloatVector = (logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]).cpu().numpy()
    return scores


def _arrays(rows: Iterable[Sequence[int]]) -> list[npt.NDArray[np.int32]]:
    return [np.array(row, dtype=np.int32) for row in rows]


def _refuse_other_modules(folder: ModelFolder) -> None:
    """Refuses sentence-transformers folders that are more than a classifier."""
    listed = folder.path / "modules.json"
    if not listed.is_file():
        return
    kinds = [str(row["type"]).rpartition(".")[2] for row in _json(listed, folder)]
    if kinds != ["Transformer"]:
        raise ModelError(
            f"model {folder.name!r} is made of {', '.join(kinds)}; a cross-encoder is a Transformer alone "
            "(an encoder is used by a dense stage, a causal model by the causal_lm engine)"
        )
    settings = folder.path / "config_sentence_transformers.json"
    prompt = _json(settings, folder).get("default_prompt_name") if settings.is_file() else None
    if prompt is not None:
        raise ModelError(
            f"model {folder.name!r} puts its prompt {prompt!r} before every pair, which is not supported; "
            f"remove default_prompt_name from {settings} to score without it"
        )


def _json(path: Path, folder: ModelFolder) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model {folder.name!r}: {path} is not JSON ({error}); get it again") from error


def load_cross_encoder(
    runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto", adapter: str | None = None
) -> CrossEncoder:
    """The cross-encoder of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, do not fit, or are no cross-encoder's.
    """
    return load_scorer(CrossEncoder, runtime, model, revision, dtype, adapter)
