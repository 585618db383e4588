"""A frozen base in 4 or 8 bits a weight, by bitsandbytes: memory for larger models under an adapter.

An adapter that was trained on rounded weights fits those best.  It can be used on the base as it is, with scores that
differ a little, or merged into the rounded weights (`rerank adapters merge`), with those that it was trained to.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from rerank.adapters.targets import transformer_prefix
from rerank.extras import need

Quantisation = Literal["nf4", "int8"]
"""`nf4`: 4 bits a weight, in blocks with a scale each, the scales in 8 bits.  Source: QLoRA (arXiv 2305.14314).
`int8`: 8 bits a weight, and of what it is multiplied by.  Source: LLM.int8() (arXiv 2208.07339)."""
_PACKS = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' layers (0.47 to 0.50) that says whether they turn their weights into another form at
rest."""


def check_quantises(kind: Quantisation) -> None:
    """Returns when what rounds is installed.

    Raises:
        MissingExtraError: it is not.
    """
    for package in ("bitsandbytes", "accelerate"):
        need(package, "quantise", f"a base in {kind}")


def quantised_loading(kind: Quantisation, model: Any, device: str, dtype: str) -> dict[str, Any]:
    """What `from_pretrained` is told so that the linear layers inside a model's transformer are rounded.

    Args:
        kind: how.
        model: the same without weights, for its names.
        device: where it is loaded to.
        dtype: what products are computed in, where that is free to choose.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    import torch

    check_quantises(kind)
    transformers = need("transformers", "quantise", f"a base in {kind}")
    # For every product it says anew what type it computes in.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    inside = transformer_prefix(model)
    # The vocabulary and heads; poolers belong to these, and some transformers have them inside.
    skip = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (not name.startswith(inside) or "pooler" in name.split("."))
    ]
    if kind == "nf4":
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=skip,
        )
    else:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return {"quantization_config": config, "device_map": {"": device}}


def compute_alike(model: Any) -> None:
    """Lets the rounded layers of `model` compute at rest as they do in training.

    On some processors they would otherwise turn their weights into a form from which no gradient comes back.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def is_quantised(weight: Any) -> bool:
    """Whether a weight is one of bitsandbytes'."""
    return type(weight).__module__.partition(".")[0] == "bitsandbytes"


def n_numbers(weight: Any) -> int:
    """How many numbers a weight stands for: in 4 bits two are stored as one."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else state.shape.numel())
