"""Late interaction: a vector for every token of queries and documents, compared by MaxSim.

A text's vectors do not depend on what it is compared with.  Queries are therefore encoded once a call, documents once a
batch, and a document's vectors are gone when its batch is scored.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from functools import cache as cached
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank.engines.cache import SCORE, RequestCache, Stored, request_key
from rerank.engines.colbert import Checkpoint, Side, load_layers, read_checkpoint
from rerank.engines.cross_encoder import Pair
from rerank.engines.packing import (
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
from rerank.errors import ConfigError, ModelError
from rerank.prompts.tokens import Reader, Seam

if TYPE_CHECKING:
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

_SIMILARITIES_AT_ONCE = 1 << 22
"""Dot products that are held together, in 16 MB, unless one query vector has more."""
_CAUSES = "the layer behind the transformer was not trained to rank, or the model does not know the language"

Ids = npt.NDArray[np.int32]
SideName = Literal["query", "document"]


class TextTokens(NamedTuple):
    """Tokenised queries or documents, cut to the model's length."""

    ids: list[Ids]
    own: npt.NDArray[np.int64]
    """[n] how many leading tokens are the text's own, special ones included; behind them it was filled up."""
    is_cut: npt.NDArray[np.bool_]
    """[n] whether the text was cut."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[n] tokens of each text."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))


class Vectors(NamedTuple):
    """The token vectors of some texts."""

    rows: Any
    """float32 [vectors, d], text by text."""
    lengths: list[int]
    """How many vectors each text has."""

    def split(self) -> list[Any]:
        """The vectors of each text."""
        return list(self.rows.split(self.lengths))


class _SideReader(NamedTuple):
    """What is needed to read one side's texts."""

    seam: Seam
    before: list[int]
    """Special tokens before a text."""
    after: list[int]
    marker: list[int]
    """The marker, which stands behind the first token, whatever that is; or none."""
    length: int
    skipped: npt.NDArray[np.int64]


class LateInteraction(Scorer):
    """A transformer that gives every token a vector, through a layer that makes them short.

    A score is the sum over the query's vectors of the largest dot product with a vector of the document; at most the
    number of the query's vectors where these have length 1.  The transformer computes in the chosen type, the layers
    behind it and the dot products in float32.

    Source: ColBERT (arXiv 2004.12832), equation 3.
    """

    library_class: ClassVar[str] = "AutoModel"
    min_agreement: ClassVar[float] = 0.98
    unread: ClassVar[tuple[str, ...]] = ("pooler.",)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What the folder's files say."""
        return read_checkpoint(self.folder)

    def pairs(
        self,
        pairs: Sequence[Pair],
        count: Count | None = None,
        max_tokens: int | None = None,
        cache: RequestCache | None = None,
    ) -> FloatVector:
        """float32 [n]: the MaxSim scores of (query, document) pairs, in the order given.

        Markers and special tokens inside a text are read as plain characters.

        Args:
            pairs: texts.
            count: is told `requests`, `cached answers`, `tokens` of the others, `truncated documents` and `truncated
                queries`, e.g. `runtime.count`.
            max_tokens: of a document, special tokens included; default what the checkpoint says.
            cache: where answers are looked up and kept.

        Raises:
            ModelError: scores that are not finite.
        """
        asked, queries = self._read([query for query, _ in pairs], "query")
        shown, documents = self._read([document for _, document in pairs], "document", max_tokens)
        sizes = documents.sizes

        @cached
        def vectors() -> list[Any]:
            if count is not None:
                count("tokens", int(queries.sizes.sum()))
            return self._all_query_vectors(queries)

        def score(batch: list[int]) -> list[float]:
            numbers = list(dict.fromkeys(shown[i] for i in batch))
            places = {number: place for place, number in enumerate(numbers)}
            found = self._document_vectors([documents.ids[number] for number in numbers])
            if count is not None:
                count("tokens", int(sizes[numbers].sum()))
            scores = self._compared([(asked[i], places[shown[i]]) for i in batch], vectors(), found)
            finite: list[float] = self._finite(scores).tolist()
            return finite

        stored = None
        if cache is not None:
            key = self.key
            texts = [(queries.ids[q].tobytes(), documents.ids[d].tobytes()) for q, d in zip(asked, shown, strict=True)]
            stored = Stored(cache, [request_key(key, "pairs", *both) for both in texts], SCORE)

        with self._computing():
            scores = self._answers(
                self._batches(shown, sizes),
                lambda batch: int(sizes[list({shown[i] for i in batch})].sum()),
                score,
                stored,
                count,
            )
        if count is not None:
            count("truncated documents", int(documents.is_cut[shown].sum()))
            count("truncated queries", int(queries.is_cut[asked].sum()))
        return np.array(scores, dtype=np.float32)

    def plan(self, pairs: Sequence[Pair], max_tokens: int | None = None) -> list[list[int]]:
        """The numbers of pairs that are computed together; their documents are encoded as one batch."""
        shown, documents = self._read([document for _, document in pairs], "document", max_tokens)
        return self._batches(shown, documents.sizes)

    def query_vectors(self, texts: Sequence[str]) -> list[FloatVector]:
        """float32 [vectors, d] of each query, those of what it is filled up with included."""
        with self._computing():
            return [rows.cpu().numpy() for rows in self._all_query_vectors(self.tokenise(texts, "query"))]

    def document_vectors(self, texts: Sequence[str], max_tokens: int | None = None) -> list[FloatVector]:
        """float32 [vectors, d] of each document, without those of skipped words."""
        tokens = self.tokenise(texts, "document", max_tokens)
        found: dict[int, FloatVector] = {}
        with self._computing():
            batches = self._text_batches(tokens.sizes)
            sizes = tokens.sizes
            for batch, vectors in self._in_batches(
                batches,
                lambda batch: int(sizes[batch].sum()),
                lambda batch: self._document_vectors([tokens.ids[i] for i in batch]),
            ):
                found.update(zip(batch, (rows.cpu().numpy() for rows in vectors.split()), strict=True))
        return [found[i] for i in range(len(texts))]

    # -- tokens ------------------------------------------------------------

    @property
    def limit(self) -> int:
        """The longest text that the transformer reads, special tokens included."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS
        return min(int(positions) - position_shift(self._base), MAX_TOKENS)

    def tokenise(self, texts: Sequence[str], side: SideName, max_tokens: int | None = None) -> TextTokens:
        """The token ids of queries or documents, cut to what the checkpoint says, or to `max_tokens`."""
        reader = self._sides[side]
        expansion = self.checkpoint.expansion if side == "query" else None
        most = min(self.limit, reader.length if max_tokens is None else max_tokens)
        room = most - len(reader.before) - len(reader.after) - len(reader.marker)
        if room < 1:
            raise ConfigError(f"max_tokens is {most}; {most - room} special tokens and one of text are the least")
        lower = self.checkpoint.lower_case
        pieces = self._reader.pieces([(reader.seam, text.lower() if lower else text) for text in texts])
        ids: list[Ids] = []
        own = np.empty(len(texts), dtype=np.int64)
        is_cut = np.zeros(len(texts), dtype=np.bool_)
        for i, piece in enumerate(pieces):
            inner = piece.ids[piece.first :] if self.checkpoint.stand_in else piece.ids
            is_cut[i] = len(inner) > room
            whole = [*reader.before, *inner[:room], *reader.after]
            whole[1:1] = reader.marker
            own[i] = len(whole)
            if expansion is not None:
                whole += [self._filler] * (min(expansion.length, self.limit) - len(whole))
            ids.append(np.array(whole or [self._pad()], dtype=np.int32))
        return TextTokens(ids, np.maximum(own, 1), is_cut)

    def _read(
        self, texts: Sequence[str], side: SideName, max_tokens: int | None = None
    ) -> tuple[list[int], TextTokens]:
        """Which of the different texts each one is, and their tokens."""
        numbers: dict[str, int] = {}
        places = [numbers.setdefault(text, len(numbers)) for text in texts]
        return places, self.tokenise(list(numbers), side, max_tokens)

    # -- vectors ------------------------------------------------------------

    def _batches(self, shown: Sequence[int], sizes: npt.NDArray[np.int64]) -> list[list[int]]:
        """Batches of pairs: those of one document side by side, documents longest first."""
        pairs: list[list[int]] = [[] for _ in sizes]
        for i, number in enumerate(shown):
            pairs[number].append(i)
        return [[i for number in batch for i in pairs[number]] for batch in self._text_batches(sizes)]

    def _text_batches(self, sizes: npt.NDArray[np.int64]) -> list[list[int]]:
        if self._packing is None:
            return [batch.tolist() for batch in token_batches(sizes, self.batch_tokens)]
        order = np.argsort(-sizes, kind="stable").tolist()
        return packed_batches(order, sizes, self.batch_tokens, self._packing.longest)

    def _document_vectors(self, ids: list[Ids]) -> Vectors:
        """The vectors of a batch of documents, without those of skipped words."""
        kept = [_kept(row, self._sides["document"].skipped) for row in ids]
        states = self._states(ids)[np.flatnonzero(np.concatenate(kept))]
        return Vectors(self._projected(states), [int(each.sum()) for each in kept])

    def _states(self, ids: list[Ids]) -> Any:
        """[tokens, d]: the transformer's last states, text by text."""
        if len(ids) == 1:
            return alone(self._base, ids[0])
        if self._packing is None:
            inputs = padded_inputs(ids, None, self._pad(), self.device)
            return padded(self._base, inputs)[inputs["attention_mask"].bool()]
        return self._packing.states(self._base, np.concatenate(ids), Pack([len(row) for row in ids]))

    def _all_query_vectors(self, tokens: TextTokens) -> list[Any]:
        """The vectors of each query."""
        sizes = tokens.sizes
        found: dict[int, Any] = {}
        batches = [batch.tolist() for batch in token_batches(sizes, self.batch_tokens)]
        for batch, vectors in self._in_batches(
            batches,
            lambda batch: int(sizes[batch].sum()),
            lambda batch: self._query_vectors([tokens.ids[i] for i in batch], tokens.own[batch]),
        ):
            found.update(zip(batch, vectors.split(), strict=True))
        return [found[i] for i in range(len(sizes))]

    def _query_vectors(self, ids: list[Ids], own: npt.NDArray[np.int64]) -> Vectors:
        """The vectors of a batch of queries.

        By the model's own padded batches: what queries are filled up with sees them and is perhaps not seen itself.
        """
        import torch

        inputs = padded_inputs(ids, None, self._pad(), self.device)
        inside = inputs["attention_mask"].bool()
        expansion = self.checkpoint.expansion
        if expansion is not None and not expansion.attended:
            places = torch.arange(inside.shape[1], device=self.device)
            inputs["attention_mask"] = (places < torch.from_numpy(own).to(self.device)[:, None]).long()
        kept = [_kept(row, self._sides["query"].skipped) for row in ids]
        states = padded(self._base, inputs)[inside][np.flatnonzero(np.concatenate(kept))]
        return Vectors(self._projected(states), [int(each.sum()) for each in kept])

    def _projected(self, states: Any) -> Any:
        """float32 [tokens, d]: what the layers behind the transformer make of states."""
        import torch

        with self._exactly():
            vectors = states.float()
            for layer in self._layers:
                vectors = layer.of(vectors)
            return torch.nn.functional.normalize(vectors, dim=-1) if self.checkpoint.is_unit else vectors

    def _exactly(self) -> contextlib.AbstractContextManager[None]:
        """Products inside the block are computed in float32, also while the transformer is trained in another type."""
        import torch

        exactly: contextlib.AbstractContextManager[None] = torch.autocast(self.device.partition(":")[0], enabled=False)
        return exactly

    def _compared(self, pairs: Iterable[tuple[int, int]], queries: list[Any], documents: Vectors) -> FloatVector:
        """float32 [pairs]: the scores of (number of a query, place of a document in its batch)."""
        together: dict[int, list[tuple[int, int]]] = {}
        for i, (query, place) in enumerate(pairs):
            together.setdefault(query, []).append((i, place))
        each = documents.split()
        scores = np.empty(sum(map(len, together.values())), dtype=np.float32)
        for query, rows in together.items():
            places = [place for _, place in rows]
            some = documents if places == list(range(len(each))) else _joined([each[place] for place in places])
            with self._exactly():
                found = maxsim(queries[query], some)
            if self.checkpoint.is_mean:
                found = found / len(queries[query])
            scores[[i for i, _ in rows]] = found.cpu().numpy()
        return scores

    # -- loading ------------------------------------------------------------

    @property
    def _transformer(self) -> Path:
        return self.checkpoint.transformer

    def _load(self) -> Any:
        model = super()._load()
        self._layers = load_layers(self.checkpoint, self.folder, int(model.config.hidden_size), self.device)
        return model

    @property
    def _missing_advice(self) -> str:
        return "its weights are not those of the transformer that its config.json names; get it again"

    def _find_packing(self) -> Packing | None:
        # What cannot be read is to be refused when the model is loaded.
        self.tokenise(["a"], "query")
        return self._tried_packing()

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.tokenizer)

    @cached_property
    def _sides(self) -> dict[str, _SideReader]:
        expansion = self.checkpoint.expansion
        return {
            "query": self._side(self.checkpoint.query, expansion.length if expansion and expansion.cuts else None),
            "document": self._side(self.checkpoint.document),
        }

    def _side(self, side: Side, length: int | None = None) -> _SideReader:
        before, after = self._frame()
        # Special tokens of a prompt are such; what follows them is read together with the text.
        _, end = self._reader.plain_edges(side.prompt)
        before = [*before, *self._reader.template(side.prompt[:end])] if end else before
        seam = Seam("", self.checkpoint.stand_in + side.prompt[end:], "", "", line_breaks=True)
        most = length or side.length or int(self.tokenizer.model_max_length)
        skipped = np.array(sorted(self.checkpoint.skipped_ids(side, self.tokenizer)), dtype=np.int64)
        marker = [self._marker(side.marker)] if side.marker else []
        return _SideReader(seam, before, after, marker, most, skipped)

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        inner: list[int] = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("x")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        return whole[:start], whole[start + len(inner) :]

    def _marker(self, marker: str) -> int:
        code = self.tokenizer.convert_tokens_to_ids(marker)
        unknown = self.tokenizer.unk_token_id
        if code is not None and code != unknown:
            return int(code)
        if self.checkpoint.layout == "stanford" and unknown is not None:
            # That is what such a checkpoint was trained with.
            logger.info(
                "model %s: its marker %r is no token; the one for unknown words is used", self.folder.name, marker
            )
            return int(unknown)
        raise ModelError(
            f"model {self.folder.name!r}: its tokenizer has no token for the marker {marker!r}; get the model again"
        )

    @cached_property
    def _filler(self) -> int:
        """The token that queries are filled up with."""
        tokenizer = self.tokenizer
        token = self.checkpoint.expansion.token if self.checkpoint.expansion is not None else None
        code = tokenizer.convert_tokens_to_ids(token) if token else tokenizer.mask_token_id
        if code is None and token is None:
            code = tokenizer.eos_token_id
        if code is None:
            raise ModelError(
                f"model {self.folder.name!r} fills short queries up with {token or 'masks'}, and its tokenizer has no "
                "such token; get the model again"
            )
        return int(code)

    def _convert(self, dtype: Any) -> None:
        self._base.to(dtype)

    def trial(self) -> list[FloatVector]:
        """Scores of eight queries' lists of eight documents."""
        queries = [text for text in PROBE_TEXTS if text[0].islower()][:8]
        documents = [text for text in PROBE_TEXTS if text[0].isupper()][:8]
        scores = self.pairs([(query, document) for query in queries for document in documents])
        return list(scores.reshape(len(queries), len(documents)))

    def order_holds(self) -> bool:
        """Whether obviously relevant documents score above irrelevant ones; else a warning is logged."""
        return check_order(self.pairs, f"late-interaction model {self.folder.name!r}", _CAUSES)


def maxsim(query: Any, documents: Vectors) -> Any:
    """float32 [documents]: the sum over a query's vectors [n, d] of the largest dot product with a document's.

    Source: ColBERT (arXiv 2004.12832), equation 3.

    >>> import torch
    >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> maxsim(query, Vectors(torch.tensor([[1.0, 0.0], [0.5, 0.75], [0.0, 1.0]]), [2, 1])).tolist()
    [1.75, 1.0]
    """
    import torch

    rows, n = documents.rows, len(documents.lengths)
    lengths = torch.tensor(documents.lengths, device=rows.device)
    owner = torch.repeat_interleave(torch.arange(n, device=rows.device), lengths)[:, None]
    scores = torch.zeros(n, device=rows.device)
    for some in query.split(max(1, _SIMILARITIES_AT_ONCE // max(1, len(rows)))):
        similar = rows @ some.T
        best = torch.full((n, len(some)), -torch.inf, device=rows.device)
        scores += best.scatter_reduce_(0, owner.expand_as(similar), similar, "amax").sum(dim=1)
    return scores


def _joined(vectors: list[Any]) -> Vectors:
    import torch

    return Vectors(torch.cat(vectors), [len(each) for each in vectors])


def _kept(ids: Ids, skipped: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which tokens' vectors count: all but those of skipped words, or all where no other is there."""
    kept = ~np.isin(ids, skipped)
    return kept if kept.any() else np.ones(len(ids), dtype=np.bool_)


def load_late_interaction(
    runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto", adapter: str | None = None
) -> LateInteraction:
    """The late-interaction model of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, do not fit, or are of another kind of model.
    """
    return load_scorer(LateInteraction, runtime, model, revision, dtype, adapter)
