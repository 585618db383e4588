"""Packed passes: geometry, attention, and models that give the same states packed as alone, or are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_scorers import DECODERS, ENCODERS, PAD, POSITIONS, config_of

from rerank.engines import packing
from rerank.engines.packing import (
    PACKED,
    Pack,
    Packing,
    alone,
    find_packing,
    packed_attention,
    packing_limit,
    padded,
    padded_inputs,
    position_shift,
    still_agrees,
)

SIZE = 120
VOCABULARY = list(range(5, SIZE))


def transformer(kind: str, **changes: Any) -> Any:
    from transformers import AutoModel

    config = config_of(kind, SIZE)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoModel.from_config(config).eval()


@st.composite
def forests(draw: Any) -> tuple[list[int], list[int]]:
    """Lengths of sequences, and which earlier one each continues."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    return lengths, [draw(st.integers(-1, i - 1)) for i in range(len(lengths))]


# -- geometry ------------------------------------------------------------


@given(forests())
def test_positions_count_on_from_what_a_sequence_continues(forest: tuple[list[int], list[int]]) -> None:
    lengths, parents = forest
    pack = Pack(lengths, parents)
    positions = pack.positions()
    assert pack.size == sum(lengths) == len(positions)
    for i, parent in enumerate(parents):
        own = positions[pack.starts[i] : pack.ends[i] + 1]
        first = 0 if parent < 0 else positions[pack.ends[parent]] + 1
        assert own.tolist() == list(range(first, first + lengths[i]))


@given(forests())
def test_blocks_cover_the_row_once_and_know_what_they_continue(forest: tuple[list[int], list[int]]) -> None:
    pack = Pack(*forest)
    covered = [i for b in pack.blocks for i in range(b.start, b.start + b.repeats * b.length)]
    assert covered == list(range(pack.size))
    for block in pack.blocks:
        before = [pack.positions()[i] for first, stop in block.before for i in range(first, stop)]
        assert before == list(range(block.offset))


@given(forests(), st.booleans(), st.sampled_from([None, 1, 2, 3]))
def test_attention_sees_what_a_sequence_continues_and_nothing_else(
    forest: tuple[list[int], list[int]], causal: bool, window: int | None
) -> None:
    pack = Pack(*forest)
    torch.manual_seed(0)
    heads, shared, width = 4, 2, 3
    query = torch.randn(1, heads, pack.size, width)
    key, value = torch.randn(2, 1, shared, pack.size, width).unbind()
    wanted = torch.empty(1, pack.size, heads, width)
    positions = pack.positions()
    ancestors: list[list[int]] = []
    for i, parent in enumerate(pack.parents):
        own = list(range(int(pack.starts[i]), int(pack.ends[i]) + 1))
        ancestors.append([*(ancestors[parent] if parent >= 0 else []), *own])
        for place in own:
            seen = [j for j in ancestors[i] if not causal or positions[j] <= positions[place]]
            if window is not None:
                seen = [j for j in seen if abs(positions[j] - positions[place]) < window]
            for head in range(heads):
                scores = key[0, head // 2, seen] @ query[0, head, place] * 0.5
                wanted[0, place, head] = scores.softmax(0) @ value[0, head // 2, seen]
    for softcap in (None, 1e6):  # the second caps nothing, by its own way
        found = attend(pack, query, key, value, causal=causal, window=window, softcap=softcap)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@given(forests(), st.booleans(), st.sampled_from([None, 2, 3]), st.sampled_from([1, 40, 1 << 19]))
def test_attention_by_products_is_attention(
    forest: tuple[list[int], list[int]], causal: bool, window: int | None, at_once: int
) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(1, 4, sum(forest[0]), 3), torch.randn(2, 1, 2, sum(forest[0]), 3).unbind()
    shown = {"causal": causal, "window": window}
    wanted = attend(Pack(*forest), query, key, value, **shown, softcap=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_SCORES_AT_ONCE", at_once)
        patch.setattr(packing, "_PRODUCTS_PAY", (0, 1 << 22))
        for faster in (True, False):
            patch.setattr(packing, "products_beat_fused_attention", lambda faster=faster: faster)
            short = (tensor.bfloat16() for tensor in (query, key, value))
            found = attend(Pack(*forest), *short, **shown, softcap=None)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
        # In float32 only caps are applied this way, and this one caps nothing.
        found = attend(Pack(*forest), query, key, value, **shown, softcap=1e6)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_capped_attention() -> None:
    pack = Pack([3, 4], parents=[-1, 0])
    torch.manual_seed(0)
    query, (key, value) = torch.randn(1, 4, 7, 3, requires_grad=True), torch.randn(2, 1, 2, 7, 3).unbind()
    found = attend(pack, query, key, value, causal=True, window=3, softcap=2.0)
    torch.testing.assert_close(found, attend(pack, query.detach(), key, value, causal=True, window=3, softcap=2.0))
    found.square().sum().backward()
    assert bool((query.grad.abs().sum(dim=(1, 3)) > 0)[0, 1:].all())  # the first token has nothing to choose from


def attend(pack: Pack, query: Any, key: Any, value: Any, *, causal: bool, window: int | None, softcap: Any) -> Any:
    token = packing._pack.set(pack)
    try:
        found, _ = packed_attention(
            SimpleNamespace(is_causal=causal), query, key, value, None, scaling=0.5, sliding_window=window,
            softcap=softcap,
        )  # fmt: skip
    finally:
        packing._pack.reset(token)
    return found


@given(forests(), st.booleans(), st.sampled_from([None, 2, 3]))
def test_kernels_for_varying_lengths_are_told_the_same(
    forest: tuple[list[int], list[int]], causal: bool, window: int | None
) -> None:
    pack = Pack(*forest)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, pack.size, 4).unbind()
    expected = attend(pack, query, key, value, causal=causal, window=window, softcap=None)

    def reference(q, k, v, q_ends, k_ends, longest_q, longest_k, *, scale, window_size, enable_gqa):
        """What torch says of its kernel: the last query sees the last key; (left, right) are how far it sees."""
        left, right = window_size
        rows = []
        for i in range(len(q_ends) - 1):
            mine = slice(int(q_ends[i]), int(q_ends[i + 1]))
            theirs = slice(int(k_ends[i]), int(k_ends[i + 1]))
            n_q, n_k = mine.stop - mine.start, theirs.stop - theirs.start
            assert n_q <= longest_q
            assert n_k <= longest_k
            behind = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)[None]
            mask = torch.ones_like(behind, dtype=torch.bool)
            if left >= 0:
                mask &= behind <= left
            if right >= 0:
                mask &= behind >= -right
            scores = torch.einsum("qhd,khd->hqk", q[mine], k[theirs]) * scale
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, v[theirs]))
        return torch.cat(rows)

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", reference)
        found = packing._varlen_attention(pack, query, key, value, 0.5, window, causal=causal)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# -- models ------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in (*ENCODERS, *DECODERS) if kind != "deberta"])
def test_a_family_is_packed_with_the_states_that_its_sequences_have_alone(kind: str) -> None:
    model = transformer(kind)
    limit = POSITIONS - position_shift(model)
    found = find_packing(model, VOCABULARY, limit, n_types=2 if kind == "bert" else 0)
    assert found is not None
    assert found.shares_prefixes == (kind in DECODERS)
    rng = np.random.default_rng(0)
    rows = [rng.choice(VOCABULARY, size=n) for n in (1, 40, 40, 3, limit)]
    with torch.inference_mode():
        states = found.states(model, np.concatenate(rows), Pack([len(row) for row in rows]))
        wanted = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "llama"])
def test_long_rows_are_filled_up_and_what_fills_them_is_not_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ROUNDED_FROM", 30)
    model = transformer(kind)
    found = find_packing(model, VOCABULARY, 60, n_types=2 if kind == "bert" else 0)
    assert found is not None
    forward, sizes = type(model).forward, []

    def watched(self: Any, *args: Any, **inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].shape[1])
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", watched)
    rng = np.random.default_rng(0)
    rows = [rng.choice(VOCABULARY, size=n) for n in (20, 33, 20)]
    with torch.inference_mode():
        types = np.zeros(73, dtype=np.int64) if kind == "bert" else None
        states = found.states(model, np.concatenate(rows), Pack([20, 33, 20]), types)
        found.states(model, rows[0], Pack([20]), None if types is None else types[:20])
        assert sizes == [128, 20]
        wanted = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["deberta", "lfm2"])
def test_a_family_that_mixes_neighbours_in_its_own_way_is_refused(kind: str) -> None:
    assert find_packing(transformer(kind), VOCABULARY, POSITIONS) is None


def test_positions_that_count_from_elsewhere_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformer("xlm-roberta")
    assert position_shift(model) == PAD + 1
    monkeypatch.setattr(packing, "position_shift", lambda model: 0)
    assert find_packing(model, VOCABULARY, POSITIONS - 2) is None


def test_a_model_that_cannot_be_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("not this one")

    monkeypatch.setattr(Packing, "states", fail)
    assert find_packing(transformer("bert"), VOCABULARY, POSITIONS) is None


def test_prefixes_are_shared_only_where_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packing, "_continued", lambda whole, own, block: own.repeat(1, 1, 9, 1)[:, :, : block.offset + block.length]
    )
    found = find_packing(transformer("llama"), VOCABULARY, POSITIONS)
    assert found is not None
    assert not found.shares_prefixes


def test_an_attention_window_is_tried_beyond_its_end() -> None:
    model = transformer("modernbert")
    for layer in model.layers:
        if layer.attn.sliding_window is not None:
            layer.attn.sliding_window += 1  # the packed pass is told so, the model's own mask is not
    assert find_packing(model, VOCABULARY, POSITIONS) is None


def test_a_16_bit_type_is_tried_again() -> None:
    model = transformer("llama")
    found = find_packing(model, VOCABULARY, POSITIONS)
    assert found is not None
    model.to(torch.bfloat16)
    assert still_agrees(found, model, VOCABULARY, POSITIONS)


def test_the_models_own_attention_is_back_after_a_pass_that_failed() -> None:
    model = transformer("bert")
    before = model.config._attn_implementation
    with pytest.raises(IndexError):
        Packing(0, None, shares_prefixes=False).states(model, [SIZE + 5], Pack([1]))
    assert model.config._attn_implementation == before != PACKED


def test_padded_batches_hold_the_same_states() -> None:
    model = transformer("bert")
    inputs = padded_inputs([[7, 8, 9], [7]], [[0, 0, 1], [0]], PAD, "cpu")
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    with torch.inference_mode():
        states = padded(model, inputs)[inputs["attention_mask"].bool()]
        wanted = torch.cat([alone(model, [7, 8, 9], [0, 0, 1]), alone(model, [7], [0])])
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, None),
        ({"sliding_window": 512}, None),
        ({"sliding_window": 1024}, 1024),
        ({"sliding_window": None, "attention_chunk_size": 64}, 64),
        ({"rope_parameters": {"rope_type": "default"}}, None),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 99}}, 99),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}, "max_position_embeddings": 77}, 77),
    ],
)
def test_sequences_are_packed_up_to_where_nothing_else_would_happen(
    settings: dict[str, Any], limit: int | None
) -> None:
    assert packing_limit(SimpleNamespace(**settings)) == limit
