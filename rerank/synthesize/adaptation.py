"""What adapting a reranker to a collection means: queries to synthesize, a recipe to train by, pipelines to measure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerank import __version__
from rerank.adapters.lora import LoRA
from rerank.artifact import fingerprint
from rerank.config import stage_tree
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.engines.bi_encoder import read_bi_encoder
from rerank.engines.language_model import Sampling
from rerank.engines.pairs import BiEncoderEngine, CrossEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.errors import ConfigError, DataError
from rerank.models.resolve import ModelFolder, locate_model
from rerank.ranking import TextSource
from rerank.ready import find_pipeline
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rescore import Rescore
from rerank.rules.rule import at_least, one_of
from rerank.runtime import Runtime
from rerank.stage import Cut, Normalise, Pipeline, Stage
from rerank.synthesize.duqgen import DUQGen
from rerank.synthesize.generators import ExtractiveGenerator, KeyphraseGenerator, LLMGenerator, MixedGenerator
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.roundtrip import RoundTrip
from rerank.train.contrastive import Contrastive
from rerank.train.current import CurrentEngine
from rerank.train.losses import SoftmaxLoss
from rerank.train.recipe import Optimiser, Validation, ValidationSet
from rerank.train.sources import GroupSource, Negatives

MEASURES = ("nDCG@10", "RR@10")
VALIDATED = 60
"""Queries on which checkpoints are measured."""
VALIDATION_K = 20
VALIDATED_EVERY = 50
"""Steps."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What is synthesized, trained and measured for a collection.

    >>> Adaptation(data="stdlib", documents=200).recipe(Path("data")).loss
    SoftmaxLoss(temperature=0.05)

    Raises:
        ConfigError: numbers that make no sense.
    """

    data: str
    """The collection: an embedded one, a folder, a JSONL file of documents, an id of ir_datasets."""
    documents: int = 1000
    """How many documents get queries, where `synthesis` does not say."""
    titles: bool = True
    """Whether queries are written from documents' titles too, where `synthesis` does not say; identifiers are better
    left out."""
    synthesis: DUQGen | None = None
    """How queries are made; its `data` does not count.  Default key phrases and telling sentences of documents that
    cover the collection, with 7 negatives each, and a tenth kept to choose the checkpoint by."""
    model: str = "minilm-l6"
    """The encoder that the adapter is made for."""
    engine: Literal["bi_encoder", "cross_encoder"] = "bi_encoder"
    """What it becomes: a bi-encoder starts from what the model knows of similarity; a cross-encoder, which reads query
    and document together, learns it anew and wants many more queries."""
    first_stage: str = "hybrid"
    """The pipeline, by name or file, whose lists are reranked, and from whose lists default negatives are mined."""
    k: int = 50
    """How many documents of each list are reranked where it is measured, and in the pipeline that is left."""
    weight: float = 0.5
    """The reranker's, 0 to 1, in the sum with the first stage's scores; 1 leaves these out."""
    unadapted: float = 0.4
    """The share of `weight` that stays with the encoder as it was: what is learnt from synthetic queries is one opinion
    more, and does not take the place of what was known.  Source: Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903), who
    average weights where we add scores."""
    epochs: float = 1.0
    """How often each query is learnt from."""
    steps: int | None = None
    """So many optimiser steps in place of `epochs`."""
    learning_rate: float | None = None
    """Default 1e-4 for a bi-encoder, which has little to learn and much to forget, 5e-4 for a cross-encoder."""
    max_tokens: int = 192
    """Of a document, of a cross-encoder's query and document together; in training and use."""
    split: str = "test"
    """Which judged queries the result is measured on, where the collection has any."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("adapt", 1, documents=self.documents, k=self.k, max_tokens=self.max_tokens)
        one_of("adapt", "engine", self.engine, ("bi_encoder", "cross_encoder"))
        if not 0 < self.weight <= 1:
            raise ConfigError(f"adapt: weight is {self.weight}; above 0 and at most 1 is needed")
        if not 0 <= self.unadapted < 1:
            raise ConfigError(f"adapt: unadapted is {self.unadapted}; 0 or more and less than 1 is needed")

    def check(self, runtime: Runtime) -> None:
        """Returns when the model can become what is wanted, as far as its files tell.

        Raises:
            ModelError: there is no such model, or it is no bi-encoder.
        """
        found = locate_model(self.model, None, runtime.home, weights=False)
        if self.engine == "bi_encoder":
            read_bi_encoder(ModelFolder(found.path, self.model, found.source, found.revision, fingerprint=""))

    def duqgen(self) -> DUQGen:
        """How queries are made."""
        if self.synthesis is not None:
            return dataclasses.replace(self.synthesis, data=self.data)
        return DUQGen(
            data=self.data,
            documents=self.documents,
            title=self.titles,
            generator=MixedGenerator((KeyphraseGenerator(samples=3), ExtractiveGenerator(samples=2))),
            round_trip=RoundTrip(pipeline=self.first_stage),
            negatives=HardNegatives(pipeline=self.first_stage, k=7, from_rank=3, to_rank=50),
            cloze=0.9,
            dev=0.1,
            seed=self.seed,
        )

    def written_by(self, model: str, samples: int = 4) -> Adaptation:
        """The same with queries that a language model writes: questions and search words, the best of some samples.

        >>> Adaptation(data="stdlib").written_by("smollm2-135m").duqgen().generator.samples
        4
        """
        sampling = Sampling(max_tokens=24, temperature=0.7, top_p=0.9, stop=("\n",))
        engine = CausalLMEngine(model, sampling=sampling)
        generator = LLMGenerator(engine, prompts=("duqgen-question", "duqgen-keyword"), samples=samples)
        return dataclasses.replace(self, synthesis=dataclasses.replace(self.duqgen(), generator=generator))

    def recipe(self, data: Path, *, lists: bool = True, negatives: int = 7, dev: bool = True) -> Contrastive:
        """How the adapter is trained.

        Args:
            data: the folder of the synthetic data set.
            lists: whether its negatives come with it.
            negatives: how many a query has.
            dev: whether it has queries to choose the checkpoint by.
        """
        is_cross = self.engine == "cross_encoder"
        mined = Negatives(to_rank=negatives) if lists else Negatives(pipeline=self.first_stage, from_rank=3, to_rank=50)
        source = GroupSource(
            data=str(data),
            candidates="negatives" if lists else None,
            negatives=mined,
            sizes=(1 + self.shown(negatives),),
            seed=self.seed,
        )
        evaluation = None
        if dev:
            # BM25 alone: whatever else the first stage does, vectors of this copy of the corpus are not needed.
            evaluation = Validation(
                on=(ValidationSet(data=str(data), split="dev", queries=VALIDATED),),
                stages=(BM25(k=VALIDATION_K), Rerank(CurrentEngine())),
                every=VALIDATED_EVERY,
            )
        return Contrastive(
            engine=self.engine_class(self.model),
            adapter=LoRA(rank=16, alpha=32, dropout=0.0, targets="attention" if is_cross else "all-linear"),
            loss=SoftmaxLoss(temperature=1.0 if is_cross else 0.05),
            in_batch=not is_cross,
            groups=(source,),
            optimiser=self.optimiser(),
            evaluation=evaluation,
            max_tokens=self.max_tokens,
            dropout=0.0,
            seed=self.seed,
        )

    @property
    def short(self) -> str:
        """The collection's name without its folder."""
        return Path(self.data).name.removesuffix(".gz").removesuffix(".jsonl") or self.data

    def judged(self, runtime: Runtime) -> tuple[Dataset | None, str]:
        """The judged queries of the collection, else why there are none."""
        try:
            data = load(self.data, self.split, runtime=runtime)
        except DataError as error:
            return None, str(error)
        if not data.qrels or data.corpus is None:
            return None, "the collection has no judgments"
        return data, ""

    @property
    def engine_class(self) -> type[BiEncoderEngine] | type[CrossEncoderEngine]:
        """The class of `engine`."""
        return CrossEncoderEngine if self.engine == "cross_encoder" else BiEncoderEngine

    def shown(self, negatives: int) -> int:
        """How many of a query's negatives a step shows: a bi-encoder learns from other queries' documents too."""
        return negatives if self.engine == "cross_encoder" else min(negatives, 2)

    def optimiser(self) -> Optimiser:
        """What an adapter of that kind learns by."""
        usual = 5e-4 if self.engine == "cross_encoder" else 1e-4
        rate = usual if self.learning_rate is None else self.learning_rate
        return Optimiser(learning_rate=rate, groups=16, epochs=self.epochs, steps=self.steps)

    def adapted(self, adapter: str) -> tuple[Stage, ...]:
        """The stages that use the adapter."""
        return self._added(self.unadapted, Rerank(self.engine_class(self.model, adapter=adapter), k=None))

    def _added(self, unadapted: float, scorer: Stage) -> tuple[Stage, ...]:
        """The first stage's head, by its own scores, those of the encoder as it was, and those of `scorer`."""
        second: Stage = scorer
        if unadapted:
            second = unadapted * self._rescore().minmax() + (1 - unadapted) * scorer.minmax()
        head = (*find_pipeline(self.first_stage).stages, Cut(self.k))
        if self.weight == 1:
            return (*head, second)
        return (*head, (1 - self.weight) * Normalise() + self.weight * second.minmax())

    def _rescore(self) -> Rescore:
        """The encoder that is adapted, as it was; beside a cross-encoder, which was none, that of the clusters."""
        if self.engine == "bi_encoder":
            return Rescore(self.model)
        encoder = self.duqgen().vectors
        return Rescore(encoder.model, encoder.revision, dtype=encoder.dtype)

    def pipelines(self, adapter: Path) -> tuple[Pipeline, ...]:
        """What is measured: the first stage, its lists rescored by the encoder as it was, and reranked."""
        first = find_pipeline(self.first_stage)
        return (
            first,
            Pipeline(self._added(0, self._rescore()), name=f"{first.name} rescored"),
            Pipeline(self.adapted(str(adapter)), name="adapted"),
        )

    def key(self, corpus: TextSource) -> str:
        """SHA-256 of all that the result depends on."""
        duqgen = stage_tree(self.duqgen(), hashes=True)
        first = stage_tree(find_pipeline(self.first_stage), hashes=True)
        said = {**dataclasses.asdict(dataclasses.replace(self, synthesis=None)), "data": "", "first_stage": ""}
        return fingerprint([__version__, said, duqgen, first, corpus.fingerprint])
