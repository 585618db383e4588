"""Names that pipelines are written in: one flat table from name to `module:Class`, imported when a name is used.

Other packages add names through the entry-point group `rerank.stages`.
"""

from __future__ import annotations

import dataclasses
import importlib
from functools import cache
from importlib.metadata import entry_points

from rerank.errors import UnknownNameError, nearest

ENTRY_POINTS = "rerank.stages"

BUILT_IN: dict[str, str] = {
    # first stages
    "bm25": "rerank.retrieve.bm25:BM25",
    "rank_bm25": "rerank.retrieve.rank_bm25:RankBM25",
    "dense": "rerank.retrieve.dense:Dense",
    "splade": "rerank.retrieve.splade:Splade",
    "candidates": "rerank.retrieve.candidates:Candidates",
    # combining lists
    "rrf": "rerank.retrieve.fusion:RRF",
    "sum": "rerank.stage:WeightedSum",
    "union": "rerank.stage:Union",
    "intersection": "rerank.stage:Intersection",
    "concatenation": "rerank.stage:Concatenation",
    "pipeline": "rerank.stage:Pipeline",
    # changing lists
    "cut": "rerank.stage:Cut",
    "normalise": "rerank.stage:Normalise",
    "exclude": "rerank.retrieve.select:Exclude",
    "filter": "rerank.retrieve.select:Filter",
    # changing queries
    "rewrite": "rerank.retrieve.rewrite:Rewrite",
    "rm3": "rerank.retrieve.rm3:RM3",
    "original_query": "rerank.retrieve.rewrite:OriginalQuery",
    # what a reranker reads of long documents
    "condense": "rerank.condense:Condense",
    # scoring a list again
    "rescore": "rerank.retrieve.rescore:Rescore",
    "rerank": "rerank.reranking:Rerank",
    # rules: how comparisons become an order
    "pointwise": "rerank.rules.pointwise:Pointwise",
    "groupwise": "rerank.rules.groupwise:Groupwise",
    "setwise": "rerank.rules.setwise:Setwise",
    "listwise": "rerank.rules.listwise:Listwise",
    "pairwise": "rerank.rules.pairwise:Pairwise",
    "tournament": "rerank.rules.tournament:Tournament",
    # engines: what answers
    "cross_encoder": "rerank.engines.pairs:CrossEncoderEngine",
    "late_interaction": "rerank.engines.pairs:LateInteractionEngine",
    "bi_encoder": "rerank.engines.pairs:BiEncoderEngine",
    "causal_lm": "rerank.engines.prompted:CausalLMEngine",
    "encoder_decoder": "rerank.engines.prompted:EncoderDecoderEngine",
    "vllm": "rerank.engines.prompted:VLLMEngine",
    "openai": "rerank.engines.openai_api:OpenAIEngine",
    "remote": "rerank.engines.remote:RemoteEngine",
    "fake": "rerank.engines.fake:FakeEngine",
    "current": "rerank.train.current:CurrentEngine",
    # adapters: how a few weights are trained
    "lora": "rerank.adapters.lora:LoRA",
    # recipes: how a model is trained
    "sft": "rerank.train.sft:SFT",
    "contrastive": "rerank.train.contrastive:Contrastive",
    "distill": "rerank.train.distill:Distill",
    "grpo": "rerank.train.grpo:GRPO",
    # synthesis: training data from documents alone
    "duqgen": "rerank.synthesize.duqgen:DUQGen",
    "labels": "rerank.synthesize.labels:LabelledLists",
    "llm": "rerank.synthesize.generators:LLMGenerator",
    "extractive": "rerank.synthesize.generators:ExtractiveGenerator",
    "crops": "rerank.synthesize.generators:CropGenerator",
    "keyphrase": "rerank.synthesize.generators:KeyphraseGenerator",
    "mixed": "rerank.synthesize.generators:MixedGenerator",
    # rewards: what an answer is worth in reinforcement learning
    "weighted": "rerank.train.rewards:WeightedReward",
    "format": "rerank.train.rewards:FormatReward",
    "exact_pick": "rerank.train.rewards:ExactPickReward",
    "ndcg": "rerank.train.rewards:NDCGReward",
    "improvement": "rerank.train.rewards:ImprovementReward",
    "recall": "rerank.train.rewards:RecallReward",
    "reciprocal_rank": "rerank.train.rewards:ReciprocalRankReward",
    "rbo": "rerank.train.rewards:RBOReward",
    "alignment": "rerank.train.rewards:AlignmentReward",
    # losses: how far scores are from labels
    "bce": "rerank.train.losses:BCELoss",
    "mse": "rerank.train.losses:MSELoss",
    "ranknet": "rerank.train.losses:RankNetLoss",
    "hinge": "rerank.train.losses:HingeLoss",
    "margin_mse": "rerank.train.losses:MarginMSELoss",
    "softmax": "rerank.train.losses:SoftmaxLoss",
    "listnet": "rerank.train.losses:ListNetLoss",
    "kl": "rerank.train.losses:KLLoss",
    "listmle": "rerank.train.losses:ListMLELoss",
    "rank_distil": "rerank.train.losses:RankDistilLoss",
    "adr_mse": "rerank.train.losses:ADRMSELoss",
    "approx_ndcg": "rerank.train.losses:ApproxNDCGLoss",
    "lambda_loss": "rerank.train.losses:LambdaLoss",
}


class Part:
    """Base of what is written by a registered name: stages, rules, engines, rewards, losses; frozen dataclasses."""

    @property
    def label(self) -> str:
        """The part's short name: the one it is registered under, else its class name."""
        return name_of(type(self)) or type(self).__name__

    def __repr__(self) -> str:
        """The expression that makes this part: only what differs from the defaults."""
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def table() -> dict[str, str]:
    """Every registered name with its `module:Class`; built-in names cannot be taken by another package."""
    names = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**names, **BUILT_IN}


@cache
def lookup(name: str) -> type:
    """The class registered under `name`.

    >>> lookup("cut").__name__
    'Cut'

    Raises:
        UnknownNameError: nothing is; the nearest name is given.
    """
    names = table()
    if name not in names:
        raise UnknownNameError(f"nothing is called {name!r}{nearest(name, names)}; known: {', '.join(sorted(names))}")
    module, _, attribute = names[name].partition(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def name_of(kind: type) -> str | None:
    """The name that `kind` is registered under, without importing any other class."""
    target = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, path in table().items() if path == target), None)


def names_of(base: type) -> list[str]:
    """The names of everything of one kind, e.g. all stages.

    >>> from rerank.rules.rule import Rule
    >>> "setwise" in names_of(Rule)
    True
    """
    return [name for name in table() if issubclass(lookup(name), base)]


def stages_giving(what: str) -> list[str]:
    """The names of stages that leave `what` for later stages."""
    return [name for name in table() if what in getattr(lookup(name), "gives", ())]
