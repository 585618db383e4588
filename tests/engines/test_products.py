"""Linear layers by the faster library: the same numbers, and only where nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rerank.engines import products
from rerank.engines.products import onednn_types, products_beat_fused_attention, speed_up

AMD = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
INTEL = {"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found out about the processor is found out again in and after every test."""
    for found in (onednn_types, products_beat_fused_attention, products._linear):
        found.cache_clear()
    yield
    for found in (onednn_types, products_beat_fused_attention, products._linear):
        found.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    monkeypatch.setattr(products, "_processor", lambda: facts)


@pytest.mark.parametrize(
    ("facts", "types", "written"),
    [
        (AMD, {torch.float32, torch.bfloat16}, True),
        (INTEL, {torch.bfloat16}, False),
        ({**AMD, "avx512_bf16": False}, {torch.float32}, False),
        ({**AMD, "avx512_f": False, "avx512_bf16": False}, set(), False),
        ({}, set(), False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], types: set[Any], written: bool
) -> None:
    processor(monkeypatch, facts)
    assert onednn_types() == types
    assert products_beat_fused_attention() is written


def test_a_torch_that_does_not_tell_leaves_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    layer = torch.nn.Linear(3, 2)
    speed_up(layer)
    assert type(layer) is torch.nn.Linear


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (7, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_gives_what_it_gave(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    processor(monkeypatch, AMD)
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(5, 4, bias=bias).to(dtype), torch.randn(shape).to(dtype)
    expected = layer(x).detach()
    speed_up(layer)
    assert type(layer) is not torch.nn.Linear
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)


def test_layers_learn_as_before_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, AMD)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    names = set(model.state_dict())
    speed_up(model)
    assert set(model.state_dict()) == names
    model(torch.ones(2, 5)).sum().backward()
    assert model[0].weight.grad is not None


def test_layers_that_compute_something_of_their_own_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    processor(monkeypatch, AMD)
    layer = Doubled(3, 2)
    speed_up(layer)
    assert type(layer) is Doubled
