"""LoRA: low-rank matrices beside a model's linear layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rerank.adapters.method import AdapterMethod
from rerank.adapters.targets import linear_layers
from rerank.errors import ConfigError
from rerank.extras import need
from rerank.rules.rule import at_least


@dataclass(frozen=True, repr=False)
class LoRA(AdapterMethod):
    """A product of two thin matrices, scaled by alpha / rank, is learnt and added to each target layer's weights.

    Source: Hu et al. 2021 (arXiv 2106.09685).

    >>> LoRA(rank=8)
    LoRA(rank=8)

    Raises:
        ConfigError: numbers that make no sense.
    """

    rank: int = 16
    """Columns of the thin matrices.  Source of 16, and of an alpha of 32: Rank-R1 (arXiv 2503.06034)."""
    alpha: float = 32.0
    """The change is scaled by alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: float = 0.05
    """The share of a layer's inputs that the change does not see while it is trained.  Source: Rank-R1."""
    targets: Literal["attention", "mlp", "all-linear"] | tuple[str, ...] = "attention"
    """Which layers: by role, or by their last names, such as [q_proj, v_proj]."""
    rslora: bool = False
    """Scales by the square root of the rank.  Source: Kalajdzievski 2023 (arXiv 2312.03732)."""
    dora: bool = False
    """Learns the length of each row of weights apart.  Source: Liu et al. 2024 (arXiv 2402.09353)."""

    def __post_init__(self) -> None:
        at_least("lora", 1, rank=self.rank)
        if self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"lora: alpha is {self.alpha} (above 0) and dropout {self.dropout} (0 or more, less than 1)"
            )
        if not self.targets:
            raise ConfigError("lora: targets names no layers; give attention, mlp, all-linear, or names")

    def wrap(self, model: Any, heads: Sequence[str], base: str, seed: int) -> Any:
        """By peft, whose layers take the place of the model's."""
        import torch

        peft = need("peft", "train", "training a LoRA adapter")
        is_classifier = type(model).__name__.endswith("ForSequenceClassification")
        writes = getattr(model, "get_output_embeddings", lambda: None)() is not None
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=linear_layers(model, heads, self.targets),
            modules_to_save=list(heads) or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            bias="none",
            task_type="SEQ_CLS" if is_classifier else "CAUSAL_LM" if writes else "FEATURE_EXTRACTION",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for what that has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            wrapped = peft.get_peft_model(model, config)
        wrapped.peft_config["default"].base_model_name_or_path = base
        return wrapped
