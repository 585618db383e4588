"""Padding-free forward passes: sequences lie end to end in one row, and attention keeps them apart.

One attention function, registered with transformers, serves unmodified encoders and decoders: everything else in a
transformer treats tokens one by one, so only attention and positions need to know where a sequence starts.  A sequence
of a decoder may continue an earlier one of the same row: it sees that one's tokens as if they were its own beginning,
so that a beginning which many sequences share is computed once.  Whether a model gives the same states this way is not
assumed but tried when it is loaded (`find_packing`).
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import inspect
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank.engines.products import products_beat_fused_attention

logger = logging.getLogger(__name__)

PACKED = "rerank_packed"
"""The name of the attention function in transformers' table."""
TOLERANCE = 1e-5
"""How far a packed token's state may be from the model's own, as a share of its length."""
NOISE = 4
"""More is allowed where the model's own padded batches are farther from its single sequences: so many times that."""
MOST_NOISE = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.05}
"""Never more than this: a token that sees its neighbours is farther off."""
MAX_PROBED_WINDOW = 512
"""Attention windows up to this many tokens are tried at load; sequences beyond a wider one are not packed."""
_SCORES_AT_ONCE = 1 << 19
"""Attention scores that are held together where they are written out: with these, a core's cache is about full."""
_ROUND = 16
"""Products have multiples of so many rows and columns: oneDNN compiles and keeps code, a megabyte, for every shape."""
_ROUND_ROW, _ROUNDED_FROM = 64, 1024
"""For the same reason rows of so many tokens and more are filled up to multiples of 64."""
_PRODUCTS_PAY = (48 * 48, 1 << 22)
"""Scores of heads that share keys, from and up to which two products are faster than fused attention: see
`rerank.engines.products`.  Fewer are not worth the calls, more would take much memory."""


class Block(NamedTuple):
    """Neighbouring sequences of one length that continue the same sequence, or none."""

    start: int
    """Where the first begins in the row."""
    repeats: int
    length: int
    before: tuple[tuple[int, int], ...]
    """The spans of the row that each of them continues, first to last."""
    offset: int
    """The tokens of those spans."""


class Pack:
    """Where sequences lie in a row of tokens.

    Args:
        lengths: tokens of each sequence, in the order in which they lie; at least 1 each.
        parents: the number of the earlier sequence that each continues; -1 for none.

    >>> pack = Pack([3, 2, 2], parents=[-1, 0, 0])
    >>> pack.positions().tolist(), pack.blocks
    ([0, 1, 2, 3, 4, 3, 4], [Block(start=0, repeats=1, length=3, before=(), offset=0), Block(start=3, repeats=2, ...)])
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.parents = tuple(parents) if parents is not None else (-1,) * len(self.lengths)
        self.starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)
        self.blocks: list[Block] = []
        self._masks: dict[tuple[int, int, bool, int | None], Any] = {}
        self._biases: dict[tuple[int, int, bool, int | None], Any] = {}
        self._rooms: dict[Any, Any] = {}
        self._varlen: _Varlen | None = None
        spans: list[tuple[tuple[int, int], ...]] = []
        offsets: list[int] = []
        for start, length, parent in zip(self.starts.tolist(), self.lengths.tolist(), self.parents, strict=True):
            before: tuple[tuple[int, int], ...] = ()
            if parent >= 0:
                before = (*spans[parent], (int(self.starts[parent]), int(self.starts[parent] + self.lengths[parent])))
            spans.append(before)
            offsets.append(sum(stop - first for first, stop in before))
            last = self.blocks[-1] if self.blocks else None
            if last is not None and last.length == length and last.before == before:
                self.blocks[-1] = last._replace(repeats=last.repeats + 1)
            else:
                self.blocks.append(Block(start, 1, length, before, offsets[-1]))
        self.offsets = np.asarray(offsets, dtype=np.int64)

    @property
    def size(self) -> int:
        """Tokens of the row."""
        return int(self.lengths.sum())

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """[n] where each sequence's last token lies."""
        return self.starts + self.lengths - 1

    def positions(self) -> npt.NDArray[np.int64]:
        """[size] each token's place in its own sequence, what the sequence continues included."""
        return np.arange(self.size) + np.repeat(self.offsets - self.starts, self.lengths)

    def mask(self, block: Block, *, causal: bool, window: int | None, device: Any) -> Any:
        """bool [length, offset + length]: which tokens a block's tokens see; None: all that `causal` lets them."""
        length, seen = block.length, block.offset + block.length
        narrow = window is not None and window < seen
        if not narrow and not (causal and block.offset):
            return None
        key = (length, block.offset, causal, window if narrow else None)
        if key not in self._masks:
            self._masks[key] = _seen(length, seen, causal=causal, window=window, device=device)
        return self._masks[key]

    def bias(self, block: Block, *, causal: bool, window: int | None, device: Any) -> Any:
        """float32 [length or 1, offset + length], both rounded up: 0 for what a block's tokens see, else -inf.

        None: they see everything.  What is behind the last token is seen by none.
        """
        import torch

        length, seen = block.length, block.offset + block.length
        key = (length, block.offset, causal, window)
        if key not in self._biases:
            if causal or (window is not None and window < seen):
                mask = _seen(length, seen, causal=causal, window=window, device=device)
                bias = torch.zeros(mask.shape, device=device).masked_fill_(~mask, -torch.inf)
                bias = torch.nn.functional.pad(bias, (0, 0, 0, _missing(length)))
            else:
                bias = torch.zeros(1, seen, device=device) if _missing(seen) else None
            if bias is not None:
                bias = torch.nn.functional.pad(bias, (0, _missing(seen)), value=-torch.inf)
            self._biases[key] = bias
        return self._biases[key]

    def room(self, shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
        """A tensor of that shape and type that holds anything: the same memory for all calls, which need no new one."""
        import torch

        n = math.prod(shape)
        if dtype not in self._rooms or len(self._rooms[dtype]) < n:
            self._rooms[dtype] = torch.empty(n, dtype=dtype, device=device)
        return self._rooms[dtype][:n].view(shape)

    def varlen(self, device: Any) -> _Varlen:
        """What kernels for sequences of different lengths want to know."""
        import torch

        if self._varlen is None:
            seen = self.offsets + self.lengths
            index = None
            if any(parent >= 0 for parent in self.parents):
                places = [
                    np.arange(first, stop)
                    for block in self.blocks
                    for i in range(block.repeats)
                    for first, stop in (
                        *block.before,
                        (block.start + i * block.length, block.start + (i + 1) * block.length),
                    )
                ]
                index = torch.from_numpy(np.concatenate(places)).to(device)

            def ends(lengths: npt.NDArray[np.int64]) -> Any:
                return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(device)

            self._varlen = _Varlen(ends(self.lengths), ends(seen), int(self.lengths.max()), int(seen.max()), index)
        return self._varlen


def _seen(length: int, seen: int, *, causal: bool, window: int | None, device: Any) -> Any:
    """bool [length, seen]: which of `seen` tokens each of the last `length` ones sees."""
    import torch

    behind = torch.arange(seen - length, seen, device=device)[:, None] - torch.arange(seen, device=device)[None]
    mask = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    return mask if window is None else mask & (behind.abs() < window)


class _Varlen(NamedTuple):
    query_ends: Any
    key_ends: Any
    longest_query: int
    longest_key: int
    keys: Any
    """Which tokens of the row are the keys, where sequences continue others; else None."""


_pack: contextvars.ContextVar[Pack] = contextvars.ContextVar("rerank_pack")


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attention of one packed row, by transformers' interface: query [1, heads, tokens, d] to [1, tokens, heads, d]."""
    import torch

    pack = _pack.get()
    causal = bool(module.is_causal if is_causal is None else is_causal)
    if query.is_cuda and query.dtype != torch.float32 and softcap is None and _has_varlen():
        return _varlen_attention(pack, query, key, value, scaling, sliding_window, causal=causal), None
    bfloat16 = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    fewest, most = _PRODUCTS_PAY if bfloat16 and products_beat_fused_attention() else (0, -1)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    outputs = []
    for block in pack.blocks:
        q, k, v = (_rows(tensor, block) for tensor in (query, key, value))
        if block.before:
            k, v = (_continued(whole, own, block) for whole, own in ((key, k), (value, v)))
        seen = {"causal": causal, "window": sliding_window, "device": query.device}
        written = fewest <= k.shape[2] * block.length * q.shape[1] // k.shape[1] <= most
        if (softcap is not None or written) and learns:
            output = _with_gradients(q, k, v, pack.bias(block, **seen), scaling, softcap)
        elif softcap is not None or written:
            # Scores of decoders are large, and 16 bits of them too few.
            q, k = (q.float(), k.float()) if causal and bfloat16 else (q, k)
            output = _by_products(pack, q, k, v, pack.bias(block, **seen), scaling, softcap)
        else:
            mask = pack.mask(block, **seen)
            output = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
        outputs.append(output.transpose(1, 2).reshape(block.repeats * block.length, query.shape[1], -1))
    return torch.cat(outputs).unsqueeze(0), None


def _rows(tensor: Any, block: Block) -> Any:
    """[repeats, heads, length, d] of a block."""
    stop = block.start + block.repeats * block.length
    rows = tensor.transpose(1, 2)[0, block.start : stop]
    return rows.unflatten(0, (block.repeats, block.length)).transpose(1, 2)


def _continued(whole: Any, own: Any, block: Block) -> Any:
    """[repeats, heads, offset + length, d]: a block's own keys or values behind those that it continues."""
    import torch

    before = [whole[:, :, first:stop].expand(block.repeats, -1, -1, -1) for first, stop in block.before]
    return torch.cat((*before, own), dim=2)


def _by_products(pack: Pack, q: Any, k: Any, v: Any, bias: Any, scale: float | None, softcap: float | None) -> Any:
    """Attention as two matrix products, with what lies between them in float32, as many heads at a time as cache holds.

    Args:
        pack: gives the room for scores.
        q: [n, heads, length, d], in the type in which scores are computed.
        k: [n, fewer or as many heads, seen, d], in the same type.
        v: like `k`, in the type of what comes out.
        bias: added to scores; of numbers that are rounded up.
        scale: of the scores.
        softcap: what scores are bent to stay below.
    """
    import torch
    from torch.nn.functional import pad

    n, heads, own, width = q.shape
    products = n * k.shape[1]
    q = pad(q * (width**-0.5 if scale is None else scale), (0, 0, 0, _missing(own)))
    k, v = (pad(tensor, (0, 0, 0, _missing(k.shape[2]))) for tensor in (k, v))
    length, seen = q.shape[2], k.shape[2]
    # Heads that share keys are rows of one product.
    rows = heads // k.shape[1] * length
    q = q.reshape(products, rows, width)
    k = k.reshape(products, seen, width).transpose(1, 2)
    v = v.reshape(products, seen, v.shape[-1])
    output = v.new_empty(products, rows, v.shape[-1])
    together = max(1, _SCORES_AT_ONCE // (rows * seen))
    for start in range(0, products, together):
        some = slice(start, start + together)
        shape = (min(together, products - start), rows, seen)
        weights, scores = (pack.room(shape, dtype, q.device) for dtype in (v.dtype, torch.float32))
        found = scores if q.dtype == torch.float32 else weights
        torch.bmm(q[some], k[some], out=found)
        scores.copy_(found)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if bias is not None:
            scores.view(-1, length, seen).add_(bias)
        torch.softmax(scores, -1, out=scores)
        weights.copy_(scores)
        torch.bmm(weights, v[some], out=output[some])
    return output.view(n, heads, length, -1)[:, :, :own]


def _with_gradients(q: Any, k: Any, v: Any, bias: Any, scale: float | None, softcap: float | None) -> Any:
    """What `_by_products` gives, in tensors of its own, through which gradients flow; arguments as there."""
    n, heads, length, width = q.shape
    products, rows, seen = n * k.shape[1], heads // k.shape[1] * length, k.shape[2]
    q = (q * (width**-0.5 if scale is None else scale)).reshape(products, rows, width)
    k, v = (tensor.reshape(products, seen, tensor.shape[3]) for tensor in (k, v))
    scores = (q @ k.transpose(1, 2)).float()
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if bias is not None:
        scores = (scores.view(products, -1, length, seen) + bias[:length, :seen]).view(products, rows, -1)
    return (scores.softmax(-1).to(v.dtype) @ v).view(n, heads, length, -1)


def _missing(n: int) -> int:
    """How many of something are missing to a round number."""
    return -n % _ROUND


def _has_varlen() -> bool:
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _varlen_attention(
    pack: Pack, query: Any, key: Any, value: Any, scale: float | None, window: int | None, *, causal: bool
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    layout = pack.varlen(query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if layout.keys is not None:
        k, v = k[layout.keys], v[layout.keys]
    behind = -1 if window is None else window - 1
    output = varlen_attn(
        q,
        k,
        v,
        layout.query_ends,
        layout.key_ends,
        layout.longest_query,
        layout.longest_key,
        scale=scale,
        window_size=(behind, 0 if causal else behind),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output.unsqueeze(0)


# -- models ------------------------------------------------------------

Row = Sequence[int] | npt.NDArray[np.integer[Any]]
"""Token ids, or token types, of one sequence."""


@dataclass(frozen=True)
class Packing:
    """How a model's packed forward pass is called, as found by trying."""

    shift: int
    """What the model adds to positions."""
    longest: int | None
    """Longer sequences must be run alone; None: all may be packed."""
    shares_prefixes: bool
    """Whether sequences may continue others."""

    def states(self, model: Any, ids: Row, pack: Pack, types: Row | None = None) -> Any:
        """[tokens, d]: the last hidden states of `model`, a transformer without its head, for a packed row."""
        import torch

        size = pack.size
        if model.device.type == "cpu" and size >= _ROUNDED_FROM and (more := -size % _ROUND_ROW):
            pack = Pack([*pack.lengths, more], [*pack.parents, -1])
            ids = np.concatenate((ids, [ids[0]] * more))
            types = None if types is None else np.concatenate((types, [types[0]] * more))
        inputs = _inputs({"input_ids": [ids], "token_type_ids": None if types is None else [types]}, model.device)
        inputs["position_ids"] = torch.from_numpy(pack.positions() + self.shift).unsqueeze(0).to(model.device)
        with _attention(model):
            token = _pack.set(pack)
            try:
                return model(**inputs, **_no_cache(model)).last_hidden_state[0, :size]
            finally:
                _pack.reset(token)


def alone(model: Any, ids: Row, types: Row | None = None) -> Any:
    """[tokens, d]: the last hidden states of one sequence by the model's own way."""
    inputs = _inputs({"input_ids": [ids], "token_type_ids": None if types is None else [types]}, model.device)
    return model(**inputs, **_no_cache(model)).last_hidden_state[0]


def padded(model: Any, inputs: Mapping[str, Any]) -> Any:
    """[n, longest, d]: the last hidden states of `padded_inputs` by the model's own way."""
    return model(**inputs, **_no_cache(model)).last_hidden_state


def padded_inputs(ids: Sequence[Row], types: Sequence[Row] | None, pad: int, device: Any) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and, where given, `token_type_ids`, padded on the right."""
    lengths = np.array([len(row) for row in ids])
    inside = np.arange(lengths.max()) < lengths[:, None]
    filled = np.full(inside.shape, pad, dtype=np.int64)
    filled[inside] = np.concatenate(ids)
    kinds = None
    if types is not None:
        kinds = np.zeros(inside.shape, dtype=np.int64)
        kinds[inside] = np.concatenate(types)
    return _inputs({"input_ids": filled, "attention_mask": inside, "token_type_ids": kinds}, device)


def packed_batches(
    order: Iterable[int], sizes: npt.NDArray[np.int64], budget: int, longest: int | None
) -> list[list[int]]:
    """Numbers in batches of at most `budget` tokens, in the order given; what is over `longest` comes alone.

    >>> packed_batches([0, 1, 2, 3], np.array([9, 4, 4, 3]), budget=8, longest=8)
    [[0], [1, 2], [3]]
    """
    batches: list[list[int]] = []
    free = 0
    for i in order:
        size = int(sizes[i])
        if size > free or (longest is not None and size > longest):
            batches.append([])
            free = budget if longest is None or size <= longest else 0
        batches[-1].append(i)
        free -= size
    return batches


def _inputs(arrays: Mapping[str, Any], device: Any) -> dict[str, Any]:
    import torch

    return {
        name: torch.from_numpy(np.asarray(array, dtype=np.int64)).to(device)
        for name, array in arrays.items()
        if array is not None
    }


def position_shift(model: Any) -> int:
    """What a transformer adds to positions: RoBERTa's children count from their padding id + 1, others from 0."""
    embeddings = getattr(model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(model.config.pad_token_id) + 1
    return 0


def ordinary_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Token ids that are no special tokens, for trials of `model`."""
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), int(model.get_input_embeddings().num_embeddings))
    # Vocabularies begin with special tokens and single bytes.
    return [token for token in range(size // 8, size) if token not in special][:4096]


def find_packing(model: Any, vocabulary: Sequence[int], limit: int, *, n_types: int = 0) -> Packing | None:
    """How `model` is packed, or None where packed sequences do not give the states that each gives alone.

    Args:
        model: a transformer without its head, in float32.
        vocabulary: ids to make sequences of: ordinary words, no special tokens.
        limit: the longest sequence that the model reads.
        n_types: how many token types the model tells apart.
    """
    import torch

    if not _takes_packs(model):
        return None
    probe = _Probe.of(model, vocabulary, limit, n_types)
    packing = Packing(position_shift(model), packing_limit(model.config), shares_prefixes=False)
    with torch.inference_mode():
        expected = probe.expected(model)
        if not probe.agrees(packing, model, probe.flat, expected):
            return None
        tree = probe.tree if _is_causal(model) else None
        shares = tree is not None and probe.agrees(packing, model, tree, expected)
    return replace(packing, shares_prefixes=shares)


def still_agrees(packing: Packing, model: Any, vocabulary: Sequence[int], limit: int, *, n_types: int = 0) -> bool:
    """Whether a packing that was found in float32 holds in the type that `model` has now."""
    import torch

    probe = _Probe.of(model, vocabulary, limit, n_types)
    with torch.inference_mode():
        expected = probe.expected(model)
        layouts = [probe.flat, *([probe.tree] if packing.shares_prefixes and probe.tree is not None else [])]
        return all(probe.agrees(packing, model, layout, expected) for layout in layouts)


class _Expected(NamedTuple):
    states: list[Any]
    """Of every sequence, by the model's own way, alone."""
    tolerance: float


class _Layout(NamedTuple):
    """Pieces of the probe's sequences, and which of them each sequence ends with."""

    pieces: list[tuple[int, int, int]]
    """(sequence, first token, one past the last)."""
    parents: list[int]


class _Probe(NamedTuple):
    """A few sequences of mixed lengths, two of the same, whose beginnings are alike."""

    ids: list[list[int]]
    types: list[list[int]] | None
    flat: _Layout
    tree: _Layout | None
    """None where the model reads too few tokens for sequences that share some."""

    @classmethod
    def of(cls, model: Any, vocabulary: Sequence[int], limit: int, n_types: int) -> _Probe:
        rng = np.random.default_rng(20)
        window = min((w for w in _windows(model.config) if w <= MAX_PROBED_WINDOW), default=0)
        # Two sequences share 9 tokens, two of these 12; the last goes beyond an attention window.
        lengths = [min(length, limit) for length in (17, 23, 14, 17, 5, max(31, 2 * window + 5))]
        ids = [rng.choice(vocabulary, size=length).tolist() for length in lengths]
        for i in (1, 2):
            ids[i][:9] = ids[0][:9][: len(ids[i])]
        ids[2][:12] = ids[1][:12][: len(ids[2])]
        types = None
        if n_types:
            types = [[min(n_types - 1, int(place >= 4)) for place in range(len(row))] for row in ids]
        flat = _Layout([(i, 0, len(row)) for i, row in enumerate(ids)], [-1] * len(ids))
        tree = None
        if limit >= 23:
            pieces = [(0, 0, 9), (0, 9, 17), (1, 9, 12), (1, 12, 23), (2, 12, 14)]
            tree = _Layout([*pieces, *flat.pieces[3:]], [-1, 0, 0, 2, 2, -1, -1, -1])
        return cls(ids, types, flat, tree)

    def expected(self, model: Any) -> _Expected:
        """What the model itself makes of the sequences, and how surely."""
        single = [alone(model, row, self.types[i] if self.types else None) for i, row in enumerate(self.ids)]
        batch = padded(model, padded_inputs(self.ids, self.types, self.ids[0][0], model.device))
        noise = max(_difference(batch[i, : len(state)], state) for i, state in enumerate(single))
        most = MOST_NOISE[str(model.dtype).removeprefix("torch.")]
        return _Expected(single, max(TOLERANCE, min(NOISE * noise, most)))

    def agrees(self, packing: Packing, model: Any, layout: _Layout, expected: _Expected) -> bool:
        import torch

        pack = Pack([stop - first for _, first, stop in layout.pieces], layout.parents)
        row = [token for i, first, stop in layout.pieces for token in self.ids[i][first:stop]]
        types = None
        if self.types is not None:
            types = [kind for i, first, stop in layout.pieces for kind in self.types[i][first:stop]]
        wanted = torch.cat([expected.states[i][first:stop] for i, first, stop in layout.pieces])
        try:
            found = packing.states(model, row, pack, types)
        # An architecture that does not follow the common interface can fail anywhere in its own code.
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            logger.info("%s cannot be packed: %s: %s", type(model).__name__, type(error).__name__, error)
            return False
        if found.shape != wanted.shape:
            return False
        difference = _difference(found, wanted)
        logger.debug("%s packed: %.1e off, %.1e allowed", type(model).__name__, difference, expected.tolerance)
        return difference <= expected.tolerance


def _difference(found: Any, wanted: Any) -> float:
    """The largest distance of a token's state from the wanted one, as a share of that one's length."""
    distance = (found.float() - wanted.float()).norm(dim=-1)
    return float((distance / wanted.float().norm(dim=-1).clamp_min(1e-30)).max())


def packing_limit(config: Any) -> int | None:
    """The longest sequence that is packed: beyond it, what the model computes is not what was tried.

    >>> from types import SimpleNamespace
    >>> packing_limit(SimpleNamespace(sliding_window=64)), packing_limit(SimpleNamespace(sliding_window=4096))
    (None, 4096)
    """
    limits = [window for window in _windows(config) if window > MAX_PROBED_WINDOW]
    chunk = getattr(config, "attention_chunk_size", None)
    if isinstance(chunk, int):
        limits.append(chunk)
    # These change all positions when one sequence of the row is longer than what the model was first trained on.
    limits += [
        int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in _ropes(config)
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _windows(config: Any) -> list[int]:
    window = getattr(config, "sliding_window", None)
    return [window] if isinstance(window, int) and window > 0 else []


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """The settings of rotary positions: one mapping, or one for every kind of layer."""
    settings = getattr(config, "rope_parameters", None)
    if not isinstance(settings, Mapping):
        return []
    nested = [value for value in settings.values() if isinstance(value, Mapping)]
    return nested or [settings]


def _is_causal(model: Any) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def _takes_packs(model: Any) -> bool:
    """Whether the model lets its attention be chosen and its positions be given."""
    settable = getattr(model, "_can_set_attn_implementation", None)
    if settable is None or not settable():
        return False
    return "position_ids" in inspect.signature(model.forward).parameters


def _no_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


@contextlib.contextmanager
def _attention(model: Any) -> Iterator[None]:
    """`model` computes attention by `packed_attention` inside the block."""
    from transformers import AttentionInterface

    if PACKED not in AttentionInterface():
        AttentionInterface.register(PACKED, packed_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
