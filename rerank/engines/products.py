"""Which of torch's ways to compute the same is the faster one on this processor.

torch multiplies float32 matrices by MKL, which keeps AVX-512 to Intel's processors; on others that have it, oneDNN,
which torch carries for the 16-bit types, is twice as fast.  In bfloat16 torch takes oneDNN itself, but writes the bias
first and adds the product to it; oneDNN asked directly does both at once.  Torch's fused attention in bfloat16 is made
for AMX; with AVX-512 alone, two products with a softmax between them take about half as long.
`scripts/bench/cross_encoder.py` prints what all this comes to.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def onednn_types() -> frozenset[Any]:
    """The types of torch in which linear layers are faster when oneDNN is asked directly."""
    import torch

    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return frozenset()
    facts, found = _processor(), set()
    if facts.get("avx512_f", False) and "intel" not in facts.get("cpu_name", "intel").lower():
        found.add(torch.float32)
    if facts.get("avx512_bf16", False):
        found.add(torch.bfloat16)
    return frozenset(found)


@functools.cache
def products_beat_fused_attention() -> bool:
    """Whether attention in bfloat16 is faster when its scores are written out."""
    facts = _processor()
    return bool(facts.get("avx512_bf16", False) and not facts.get("amx_bf16", False))


def _processor() -> dict[str, Any]:
    """What the processor can do; nothing where this torch does not say."""
    import torch

    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return facts


def speed_up(model: Any) -> None:
    """Lets the linear layers of `model` be computed by the faster library while they are on a processor.

    Weights, names and gradients stay as they are: outside `torch.inference_mode` nothing is different.

    >>> import torch
    >>> layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    >>> before = layer(x)
    >>> speed_up(layer)
    >>> with torch.inference_mode():
    ...     torch.allclose(layer(x), before)
    True
    """
    import torch

    if onednn_types():
        for module in model.modules():
            # A subclass computes something of its own.
            if type(module) is torch.nn.Linear:
                module.__class__ = _linear()


@functools.cache
def _linear() -> Any:
    """The class of layers that ask oneDNN; made late, because its base comes with torch."""
    import torch

    types = onednn_types()

    class Linear(torch.nn.Linear):  # type: ignore[misc]  # torch comes without types here
        """A linear layer that oneDNN computes."""

        def forward(self, x: Any) -> Any:
            fast = self.weight.dtype == x.dtype and x.dtype in types and x.device.type == "cpu"
            if not (fast and torch.is_inference_mode_enabled()):
                return super().forward(x)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    return Linear
