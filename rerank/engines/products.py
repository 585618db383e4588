"""Products of float32 matrices by oneDNN, where the library that torch takes for them is the slower one.

torch multiplies float32 matrices by MKL, which keeps AVX-512 to Intel's processors; on others that have it, oneDNN,
which torch carries for the 16-bit types, is twice as fast.  `scripts/bench/cross_encoder.py` prints both rates.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 without MKL using it, and this torch lets oneDNN be asked."""
    import torch

    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    wide = facts.get("avx512_f", False) and "intel" not in facts.get("cpu_name", "intel").lower()
    return bool(wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def speed_up(model: Any) -> None:
    """Lets the linear layers of `model`, where they hold float32 on a processor, be computed by the faster library.

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

    if onednn_is_faster():
        for module in model.modules():
            # A subclass computes something of its own.
            if type(module) is torch.nn.Linear:
                module.__class__ = _linear()


@functools.cache
def _linear() -> Any:
    """The class of layers that ask oneDNN; made late, because its base comes with torch."""
    import torch

    class Linear(torch.nn.Linear):  # type: ignore[misc]  # torch comes without types here
        """A linear layer whose float32 products are oneDNN's."""

        def forward(self, x: Any) -> Any:
            float32 = self.weight.dtype == x.dtype == torch.float32
            if not (float32 and torch.is_inference_mode_enabled() and x.device.type == "cpu"):
                return super().forward(x)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    return Linear
