"""Composable retrieval and reranking pipelines: declare, run, evaluate, compare.

Names are imported when they are first used, so `import rerank` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rerank.adapters.lora import LoRA
    from rerank.condense import Condense
    from rerank.config import load_pipeline, parse_pipeline, to_yaml
    from rerank.data.corpus import MemoryCorpus
    from rerank.data.dataset import Dataset
    from rerank.data.load import load
    from rerank.data.trec import read_run, write_run
    from rerank.engines.engine import Engine
    from rerank.engines.fake import FakeEngine
    from rerank.engines.http_client import Retry
    from rerank.engines.language_model import Sampling
    from rerank.engines.openai_api import OpenAIEngine, Price
    from rerank.engines.pairs import BiEncoderEngine, CrossEncoderEngine, LateInteractionEngine
    from rerank.engines.prompted import CausalLMEngine, EncoderDecoderEngine, VLLMEngine
    from rerank.engines.remote import RemoteEngine
    from rerank.evaluation.compare import compare_runs
    from rerank.evaluation.evaluation import evaluate_run
    from rerank.evaluation.experiment import evaluate, load_experiment
    from rerank.evaluation.report import write_report
    from rerank.planning import Plan, plan
    from rerank.ranking import Hit, Ranking, ScoreKind
    from rerank.reranker import RankedDoc, RankedDocs, Reranker
    from rerank.reranking import Rerank
    from rerank.retrieve.analysis import Analyser
    from rerank.retrieve.bm25 import BM25
    from rerank.retrieve.candidates import Candidates
    from rerank.retrieve.dense import HNSW, IVF, Dense
    from rerank.retrieve.fusion import RRF, rrf
    from rerank.retrieve.rank_bm25 import RankBM25
    from rerank.retrieve.rescore import Rescore
    from rerank.retrieve.rewrite import OriginalQuery, Rewrite
    from rerank.retrieve.rm3 import RM3
    from rerank.retrieve.select import Exclude, Filter
    from rerank.retrieve.splade import Splade
    from rerank.rules.groupwise import Groupwise
    from rerank.rules.listwise import Listwise
    from rerank.rules.pairwise import Pairwise
    from rerank.rules.pointwise import Pointwise
    from rerank.rules.rule import Rule
    from rerank.rules.setwise import Setwise
    from rerank.rules.tournament import Tournament
    from rerank.run import Run
    from rerank.runtime import Runtime
    from rerank.serve.client import AsyncClient, Client
    from rerank.stage import (
        Concatenation,
        Cut,
        Intersection,
        Normalise,
        Pipeline,
        Stage,
        Union,
        WeightedSum,
        apply,
    )
    from rerank.synthesize.duqgen import DUQGen
    from rerank.synthesize.generators import (
        CropGenerator,
        ExtractiveGenerator,
        Generator,
        KeyphraseGenerator,
        LLMGenerator,
        MixedGenerator,
    )
    from rerank.synthesize.labels import LabelledLists
    from rerank.train.contrastive import Contrastive
    from rerank.train.current import CurrentEngine
    from rerank.train.distill import Distill
    from rerank.train.grpo import GRPO
    from rerank.train.losses import (
        ADRMSELoss,
        ApproxNDCGLoss,
        BCELoss,
        HingeLoss,
        KLLoss,
        LambdaLoss,
        ListMLELoss,
        ListNetLoss,
        Loss,
        MarginMSELoss,
        MSELoss,
        RankDistilLoss,
        RankNetLoss,
        SoftmaxLoss,
    )
    from rerank.train.rewards import (
        AlignmentReward,
        ExactPickReward,
        FormatReward,
        ImprovementReward,
        NDCGReward,
        RBOReward,
        RecallReward,
        ReciprocalRankReward,
        Reward,
        WeightedReward,
    )
    from rerank.train.sft import SFT

_NAMES = {
    "rerank.condense": ("Condense",),
    "rerank.config": ("load_pipeline", "parse_pipeline", "to_yaml"),
    "rerank.data.corpus": ("MemoryCorpus",),
    "rerank.data.dataset": ("Dataset",),
    "rerank.data.load": ("load",),
    "rerank.data.trec": ("read_run", "write_run"),
    "rerank.evaluation.compare": ("compare_runs",),
    "rerank.evaluation.evaluation": ("evaluate_run",),
    "rerank.evaluation.experiment": ("evaluate", "load_experiment"),
    "rerank.evaluation.report": ("write_report",),
    "rerank.planning": ("Plan", "plan"),
    "rerank.ranking": ("Hit", "Ranking", "ScoreKind"),
    "rerank.retrieve.analysis": ("Analyser",),
    "rerank.retrieve.bm25": ("BM25",),
    "rerank.retrieve.candidates": ("Candidates",),
    "rerank.retrieve.dense": ("Dense", "HNSW", "IVF"),
    "rerank.retrieve.fusion": ("RRF", "rrf"),
    "rerank.retrieve.rank_bm25": ("RankBM25",),
    "rerank.retrieve.rescore": ("Rescore",),
    "rerank.retrieve.rewrite": ("OriginalQuery", "Rewrite"),
    "rerank.retrieve.rm3": ("RM3",),
    "rerank.retrieve.select": ("Exclude", "Filter"),
    "rerank.retrieve.splade": ("Splade",),
    "rerank.reranker": ("RankedDoc", "RankedDocs", "Reranker"),
    "rerank.reranking": ("Rerank",),
    "rerank.engines.language_model": ("Sampling",),
    "rerank.engines.engine": ("Engine",),
    "rerank.engines.fake": ("FakeEngine",),
    "rerank.engines.http_client": ("Retry",),
    "rerank.engines.openai_api": ("OpenAIEngine", "Price"),
    "rerank.engines.pairs": ("BiEncoderEngine", "CrossEncoderEngine", "LateInteractionEngine"),
    "rerank.engines.prompted": ("CausalLMEngine", "EncoderDecoderEngine", "VLLMEngine"),
    "rerank.engines.remote": ("RemoteEngine",),
    "rerank.rules.groupwise": ("Groupwise",),
    "rerank.rules.listwise": ("Listwise",),
    "rerank.rules.pairwise": ("Pairwise",),
    "rerank.rules.pointwise": ("Pointwise",),
    "rerank.rules.rule": ("Rule",),
    "rerank.rules.setwise": ("Setwise",),
    "rerank.rules.tournament": ("Tournament",),
    "rerank.run": ("Run",),
    "rerank.runtime": ("Runtime",),
    "rerank.serve.client": ("AsyncClient", "Client"),
    "rerank.stage": (
        "Concatenation",
        "Cut",
        "Intersection",
        "Normalise",
        "Pipeline",
        "Stage",
        "Union",
        "WeightedSum",
        "apply",
    ),
    "rerank.adapters.lora": ("LoRA",),
    "rerank.synthesize.duqgen": ("DUQGen",),
    "rerank.synthesize.generators": (
        "CropGenerator",
        "ExtractiveGenerator",
        "Generator",
        "KeyphraseGenerator",
        "LLMGenerator",
        "MixedGenerator",
    ),
    "rerank.synthesize.labels": ("LabelledLists",),
    "rerank.train.contrastive": ("Contrastive",),
    "rerank.train.current": ("CurrentEngine",),
    "rerank.train.distill": ("Distill",),
    "rerank.train.grpo": ("GRPO",),
    "rerank.train.sft": ("SFT",),
    "rerank.train.losses": (
        "ADRMSELoss",
        "ApproxNDCGLoss",
        "BCELoss",
        "HingeLoss",
        "KLLoss",
        "LambdaLoss",
        "ListMLELoss",
        "ListNetLoss",
        "Loss",
        "MarginMSELoss",
        "MSELoss",
        "RankDistilLoss",
        "RankNetLoss",
        "SoftmaxLoss",
    ),
    "rerank.train.rewards": (
        "AlignmentReward",
        "ExactPickReward",
        "FormatReward",
        "ImprovementReward",
        "NDCGReward",
        "RBOReward",
        "RecallReward",
        "ReciprocalRankReward",
        "Reward",
        "WeightedReward",
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rerank' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
