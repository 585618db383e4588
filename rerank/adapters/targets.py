"""Which layers of a model an adapter changes: by what they do, whatever an architecture calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rerank.errors import ConfigError

Role = Literal["attention", "mlp", "all-linear"]

_ATTENTION = ("attn", "attention", "selfattention", "self_attn", "encdecattention")
"""How the modules that hold a layer's attention are called."""


def linear_layers(model: Any, heads: Sequence[str], targets: Role | tuple[str, ...]) -> list[str]:
    """The names of the linear layers of `model` that an adapter changes, in the model's order.

    By role: `attention` is every linear layer inside an attention module, `mlp` every other one inside a layer of the
    transformer, `all-linear` both.  A pooler, which some transformers have at their end as the first part of a head,
    belongs to every role.  By names: layers whose last name is one of `targets`, such as `q_proj`.

    Args:
        model: of transformers.
        heads: modules that are trained whole, and so are no targets.
        targets: a role, or last names.

    Raises:
        ConfigError: the model has no such layer.
    """
    import torch

    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = transformer_prefix(model)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not output
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
        and name.startswith(inside)
        # Without a head nobody asks the pooler.
        and (inside or not name.startswith("pooler."))
    ]
    found = [name for name in names if _is_wanted(name.lower().split("."), name, targets)]
    if not found:
        shown = ", ".join(sorted({name.rpartition(".")[2] for name in names})[:12])
        wanted = targets if isinstance(targets, str) else ", ".join(targets)
        raise ConfigError(
            f"adapter targets {wanted!r}: {type(model).__name__} has no such linear layers; its own are called "
            f"{shown or 'nothing'}: give all-linear, or some of these names"
        )
    return found


def transformer_prefix(model: Any) -> str:
    """How the names of a model's layers inside its transformer begin; all do where it is one without a head."""
    name = getattr(model, "base_model_prefix", "")
    return f"{name}." if name and hasattr(model, name) else ""


def _is_wanted(parts: list[str], name: str, targets: Role | tuple[str, ...]) -> bool:
    if not isinstance(targets, str):
        return name.rpartition(".")[2] in targets
    if targets == "all-linear" or "pooler" in parts:
        return True
    inside = any(part in _ATTENTION for part in parts)
    return inside if targets == "attention" else not inside


def head_modules(model: Any) -> list[str]:
    """The modules of a classifier that stand beside its transformer and have weights: its head.

    Without being named to peft they would not be saved, and the scores of a loaded model would be random.
    """
    prefix = model.base_model_prefix
    return [
        name for name, module in model.named_children() if name != prefix and any(True for _ in module.parameters())
    ]
