"""Recipes: what is trained, on what, how long, and by what it is judged; one YAML file is one recipe.

name: my-cross-encoder
contrastive:
  engine: {cross_encoder: {model: minilm-l6}}
  adapter: {lora: {rank: 16}}
  loss: softmax
  groups:
    - {data: beir/nfcorpus, negatives: {pipeline: bm25}}
  evaluation:
    on: [{data: beir/nfcorpus, split: dev}]
    stages: [{bm25: {k: 100}}, {rerank: {engine: current}}]
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from rerank.adapters.lora import LoRA
from rerank.adapters.method import AdapterMethod
from rerank.adapters.quantised import Quantisation
from rerank.config import AdapterPath, build, build_part, stage_tree
from rerank.engines.engine import Engine
from rerank.errors import ConfigError
from rerank.evaluation.measures import parse_measures
from rerank.ready import recipe_path
from rerank.registry import Part
from rerank.resources import adapter_folder
from rerank.rules.rule import at_least
from rerank.stage import Pipeline, Stage
from rerank.train.processes import ALONE, Processes
from rerank.train.sources import GroupSource, beside, sources_from
from rerank.yamlfile import Key, Tree, dump_yaml, read_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.prompts.prompt import Prompt
    from rerank.runtime import Runtime
    from rerank.train.groups import Shown, TrainingGroup
    from rerank.train.student import Batch, Student


@dataclass(frozen=True)
class Optimiser:
    """How weights are changed: AdamW (betas 0.9 and 0.999, epsilon 1e-8, as in torch), a rate that warms up and falls.

    >>> Optimiser(groups=16, epochs=2).n_steps(100)
    13

    Raises:
        ConfigError: numbers that make no sense.
    """

    learning_rate: float = 2e-4
    """The highest.  Source: peft's own examples of LoRA; whole models want less, such as 2e-5."""
    weight_decay: float = 0.01
    """Source: Loshchilov and Hutter 2019 (AdamW)."""
    warmup: float = 0.1
    """The share of all steps in which the rate rises.  Source: sentence-transformers' training examples."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after that: to 0 at the last step, or not at all.  Source of linear: transformers' default."""
    clip: float = 1.0
    """The longest that a step's gradient may be; 0 does not cut it.  Source: transformers' default."""
    groups: int = 16
    """How many groups a step learns from.  No paper's: so many leave small data sets some hundred steps."""
    epochs: float = 1.0
    """How often each group is seen."""
    steps: int | None = None
    """How many steps are made, in place of `epochs`."""
    batch_tokens: int | None = None
    """How many tokens are computed at once: the rest of a step waits, and the result is the same.  Default as engines
    do: 4,096 on a processor, 32,768 on an accelerator."""

    def __post_init__(self) -> None:
        at_least("optimiser", 1, groups=self.groups, steps=self.steps, batch_tokens=self.batch_tokens)
        shares = 0 <= self.warmup <= 1 and self.learning_rate > 0 and self.weight_decay >= 0
        if not (shares and self.epochs > 0 and self.clip >= 0):
            raise ConfigError(
                f"optimiser: learning_rate {self.learning_rate} and epochs {self.epochs} must be above 0, warmup "
                f"{self.warmup} from 0 to 1, weight_decay {self.weight_decay} and clip {self.clip} 0 or more"
            )

    def n_steps(self, n_groups: int) -> int:
        """How many steps are made with so many groups."""
        return self.steps or max(1, math.ceil(self.epochs * n_groups / self.groups))


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Queries that are measured."""

    data: str
    """The data set: an embedded one, a folder, an id of ir_datasets."""
    split: str = "dev"
    """Which of its queries."""
    candidates: str | None = None
    """Lists that come with the data, by name, or a run file."""
    hold_out: int = 0
    """Only the queries that groups with the same `hold_out` leave out; 0: all."""
    queries: int | None = None
    """A seeded sample of so many."""

    def __post_init__(self) -> None:
        at_least("evaluation", 0, hold_out=self.hold_out)
        at_least("evaluation", 1, queries=self.queries)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How good the weights are while they are trained: a pipeline with the engine `current`, measured.

    Raises:
        ConfigError: a measure that there is not, or no stage that asks the model.
    """

    on: tuple[ValidationSet, ...]
    """The data sets; the mean of their means counts."""
    stages: tuple[Stage, ...]
    """The pipeline; its stage `rerank: {engine: current}` asks the model."""
    measure: str = "nDCG@10"
    """The checkpoint that is best by this is kept."""
    every: int = 100
    """Steps from one measurement to the next; the last step is measured too."""
    patience: int | None = None
    """Stops after so many measurements without a better one; default never."""
    at_start: bool = True
    """Whether the weights are measured before the first step."""

    def __post_init__(self) -> None:
        at_least("evaluation", 1, every=self.every, patience=self.patience)
        if not self.on:
            raise ConfigError("evaluation: 'on' names no data set; give one or more")
        parse_measures([self.measure])
        if not any(asks_current(stage) for stage in self.stages):
            raise ConfigError(
                "evaluation: no stage asks the model in training; add one such as rerank: {engine: current}"
            )

    @property
    def pipeline(self) -> Pipeline:
        """The stages as one."""
        return Pipeline(self.stages, name="evaluation")


def asks_current(stage: Stage) -> bool:
    """Whether a stage, or one inside it, asks the model in training."""
    from rerank.train.current import CurrentEngine

    return any(isinstance(getattr(part, "engine", None), CurrentEngine) for part in stage.walk())


@dataclass(frozen=True)
class Step:
    """What a step learns from."""

    groups: Sequence[TrainingGroup]
    number: int = 0
    """Of the step, from 0."""
    spare: Sequence[TrainingGroup] = ()
    """`n_spare` others, which may take the place of some."""
    processes: Processes = ALONE
    """That share the groups, this one among them."""

    def own_groups(self) -> list[TrainingGroup]:
        """The groups that this process computes."""
        return [self.groups[place] for place in self.processes.share([text_size(group) for group in self.groups])]


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(Part, ABC):
    """Base of recipes that learn from groups; a subclass is a frozen dataclass that says what the loss is.

    Raises:
        ConfigError: parts that do not fit.
    """

    engine: Engine
    """The model to train, as a stage `rerank` names it: `cross_encoder`, `bi_encoder` or `causal_lm`."""
    prompt: str | None = None
    """How a language model is asked, the same when it is used: a profile's name or a prompt file."""
    groups: tuple[GroupSource, ...] = ()
    """What is learnt from; see `rerank.train.sources`."""
    adapter: AdapterMethod | None = LoRA()
    """What is trained; null trains all weights."""
    start: AdapterPath | None = None
    """An adapter of the same method that training goes on from, as another training left it, or one that comes with the
    package, by name; it was trained with the same prompt."""
    optimiser: Optimiser = Optimiser()
    evaluation: Validation | None = None
    max_tokens: int | None = None
    """Tokens of an input at most; default what the engine takes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in; weights, the optimiser and losses stay in float32.  `auto` is bfloat16 where the
    device computes it in hardware."""
    quantise: Quantisation | None = None
    """What the frozen layers are rounded to, for models that take too much memory: `nf4` (4 bits a weight) or `int8`;
    needs bitsandbytes and an adapter.  Source of nf4: QLoRA (arXiv 2305.14314)."""
    dropout: float | None = None
    """Of the model's own dropout layers, in place of what it says.  In packed batches attention drops nothing."""
    checkpointing: bool = False
    """Whether what layers compute is not kept for the gradient but computed again: a third more work, far less memory.
    Batches are padded then."""
    freeze_embeddings: bool = True
    """Whether the vocabulary's vectors stay as they are where all weights are trained."""
    seed: int = 0
    """Of the order of groups, new weights and dropout."""
    log_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    save_every: int = 100
    """Steps from one checkpoint to the next; the measured steps have one too."""
    report_to: tuple[str, ...] = ()
    """Trackers that are told as well: tensorboard, wandb, mlflow, trackio, ..."""

    trains_text: ClassVar[bool] = False
    """Whether answers are learnt as they are written, else scores."""

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"{self.label}: dropout is {self.dropout}, 0 or more and less than 1 is needed")
        if self.quantise is not None and self.adapter is None:
            raise ConfigError(
                f"{self.label}: quantise is {self.quantise}, but adapter is null: rounded weights cannot be trained; "
                "give an adapter such as lora"
            )
        if self.start is not None and self.adapter is None:
            raise ConfigError(
                f"{self.label}: start is an adapter, but adapter is null: merge it, and give the merged model"
            )
        at_least(
            self.label, 1, log_every=self.log_every, save_every=self.save_every, max_tokens=self.max_tokens,
        )  # fmt: skip

    @property
    def start_folder(self) -> Path | None:
        """The folder of `start`."""
        return None if self.start is None else adapter_folder(self.start)

    @abstractmethod
    def total(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over a batch, with its gradient, and over how many items."""

    @property
    def inner_steps(self) -> int:
        """How many steps follow each other on the same groups."""
        return 1

    @property
    def n_spare(self) -> int:
        """How many further groups a step may take."""
        return 0

    def n_steps(self, n_groups: int) -> int:
        """How many steps are made with so many groups."""
        steps = self.optimiser.n_steps(n_groups)
        return steps if self.optimiser.steps else steps * self.inner_steps

    def check_before(self, processes: Processes = ALONE) -> None:
        """Returns when what the recipe says fits together, as far as that is known before anything is loaded.

        Args:
            processes: that will train.

        Raises:
            ConfigError: parts that do not fit, a prompt that cannot be read, or a start that is no adapter.
            UnknownNameError: no such prompt.
        """
        from rerank.engines.lora import CONFIG
        from rerank.prompts.prompt import load_prompt

        if self.start_folder is not None and not (self.start_folder / CONFIG).is_file():
            raise ConfigError(
                f"{self.label}: start {self.start!r} is no adapter: there is no {CONFIG} in it; give the folder "
                "'adapter' that a training left"
            )
        prompt = None if self.prompt is None else load_prompt(self.prompt)
        most = None if prompt is None or not prompt.shows_many else prompt.most_documents
        largest = max((size for source in self.groups for size in source.sizes), default=0)
        if most is not None and largest > most:
            raise ConfigError(
                f"{self.label}: groups have up to {largest} documents, but the prompt {self.prompt!r} shows {most} at "
                "most; make smaller groups (sizes)"
            )

    def check(self, student: Student) -> None:
        """Returns when the student can be trained by this recipe.

        Raises:
            ConfigError: it cannot.
        """
        from rerank.train.causal_lm_student import CausalLMStudent

        if isinstance(student, CausalLMStudent) and not self.trains_text:
            student.check_scores()

    @property
    def answer_tokens(self) -> int:
        """Tokens of an input's room that are kept for what the model writes itself."""
        return 0

    def shown(self, group: TrainingGroup, prompt: Prompt) -> list[Shown]:
        """What a language model is shown of a group at once, and is to write."""
        return group.shown(many=prompt.shows_many)

    def batches(self, student: Student, step: Step) -> list[Batch]:
        """The groups of a step in batches, as far as this process computes them."""
        return student.batches(step.own_groups())

    @property
    def loss_told(self) -> Any:
        """What the card says of the loss."""
        loss = getattr(self, "loss", None)
        return "cross-entropy of answers" if loss is None else stage_tree(loss) if isinstance(loss, Part) else loss

    def told(self, batches: Sequence[Batch]) -> list[Batch]:
        """Of computed batches what `figures` and `samples` read of them, small enough to be sent to other processes."""
        return []

    def figures(self, batches: Sequence[Batch]) -> Mapping[str, float]:
        """What a log says of a step beside its loss, once all its batches were computed."""
        return {}

    def samples(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """What was written in a step, for people who want to read some of it."""
        return []

    def student(self, runtime: Runtime, processes: Processes = ALONE) -> Student:
        """The model, loaded and ready to be trained.

        Raises:
            ConfigError: parts that do not fit.
            ModelError: a model that cannot be had or trained.
        """
        from rerank.train.students import load_student

        self.check_before()

        def load() -> Student:
            return load_student(
                self.engine,
                runtime,
                self.prompt,
                method=self.adapter,
                precision=self.precision,
                quantise=self.quantise,
                dropout=self.dropout,
                checkpointing=self.checkpointing,
                freeze_embeddings=self.freeze_embeddings,
                seed=self.seed,
                max_tokens=self.max_tokens,
                batch_tokens=self.optimiser.batch_tokens,
                start=self.start_folder,
                shards=processes.shards,
            )

        if processes.shards is None:
            student = load()
        else:
            # Memory has room for one whole model.
            student = processes.in_turn(load)
            processes.shards.begin()
        self.check(student)
        return student

    def to_yaml(self, name: str = "") -> str:
        """The recipe as a file."""
        return dump_yaml({**({"name": name} if name else {}), **stage_tree(self)})

    def published(self, name: str = "") -> str:
        """The recipe as a file for others: what lies in a folder of this machine has the name of its file or folder."""
        return dump_yaml({**({"name": name} if name else {}), **_without_folders(stage_tree(self))})

    def with_data(self, paths: Mapping[str, str]) -> Self:
        """The same recipe with data sets taken from elsewhere.

        Args:
            paths: by the name that the recipe calls a data set, a path or another name.

        Raises:
            ConfigError: the recipe has no data set of such a name.
        """
        names = {source.data for source in self.groups}
        names |= {one.data for one in self.evaluation.on} if self.evaluation else set()
        for name in paths:
            if name not in names:
                raise ConfigError(f"the recipe has no data set {name!r}; its own are {', '.join(sorted(names))}")
        groups = tuple(dataclasses.replace(source, data=paths.get(source.data, source.data)) for source in self.groups)
        evaluation = self.evaluation
        if evaluation is not None:
            on = tuple(dataclasses.replace(one, data=paths.get(one.data, one.data)) for one in evaluation.on)
            evaluation = dataclasses.replace(evaluation, on=on)
        return dataclasses.replace(self, groups=groups, evaluation=evaluation)

    def going_on_from(self, adapter: str | Path) -> Self:
        """The same recipe with another `start`, a folder or a name."""
        return dataclasses.replace(self, start=str(adapter_folder(str(adapter)).resolve()))


def _without_folders(told: Any) -> Any:
    if isinstance(told, Mapping):
        return {key: _without_folders(inner) for key, inner in told.items()}
    if isinstance(told, list | tuple):
        return [_without_folders(inner) for inner in told]
    if not isinstance(told, str) or "\n" in told or not Path(told).is_absolute() or not Path(told).exists():
        return told
    path = Path(told)
    # Every training calls its adapter so.
    return f"{path.parent.name}/{path.name}" if path.name == "adapter" else path.name


def text_size(group: TrainingGroup) -> int:
    """About how much there is to read in a group, in characters."""
    return sum(map(len, group.documents)) + len(group.query) * len(group.documents)


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with what its file calls it."""

    name: str
    description: str
    recipe: Recipe


def load_recipe(name: str | Path) -> NamedRecipe:
    """The recipe of a YAML file, or the ready one of that name.

    Raises:
        UnknownNameError: no such recipe, or a name inside it that means nothing.
        ConfigError: with file, line and key path.
    """
    path = recipe_path(str(name))
    found = recipe_from(read_yaml(path))
    return found if found.name else dataclasses.replace(found, name=path.stem)


def recipe_from(tree: Tree) -> NamedRecipe:
    """The recipe of a parsed file.

    >>> from rerank.yamlfile import parse_yaml
    >>> text = "contrastive: {engine: {cross_encoder: my-model}, loss: softmax, groups: {data: stdlib}}"
    >>> found = recipe_from(parse_yaml(text)).recipe
    >>> found.label, found.adapter, found.groups[0].data
    ('contrastive', LoRA(), 'stdlib')

    Raises:
        ConfigError: with file, line and key path.
    """
    value = tree.value
    if not isinstance(value, dict):
        raise tree.error((), "a recipe is a mapping with one of sft, contrastive, distill, grpo and perhaps 'name'")
    told = {key: value[key] for key in ("name", "description") if key in value}
    for key, text in told.items():
        if not isinstance(text, str):
            raise tree.error((key,), f"expected text; got {text!r}")
    body = {key: inner for key, inner in value.items() if key not in told}
    if len(body) != 1:
        raise tree.error(
            (), f"a recipe has exactly one of sft, contrastive, distill, grpo; got {', '.join(body) or 'none'}"
        )
    kind, fields = next(iter(body.items()))
    if not isinstance(fields, dict) or "groups" not in fields:
        raise tree.error((kind,), "a recipe needs 'groups', what is learnt from, and 'engine', what is trained")
    plain: dict[str, Any] = {key: inner for key, inner in fields.items() if key not in ("groups", "evaluation")}
    recipe = build_part(Recipe, {kind: plain}, tree, ())  # type: ignore[type-abstract]
    groups = sources_from(tree, (kind, "groups"), fields["groups"])
    evaluation = fields.get("evaluation")
    made = None if evaluation is None else _validation(evaluation, tree, (kind, "evaluation"))
    try:
        recipe = dataclasses.replace(recipe, groups=groups, evaluation=made)
    except ConfigError as error:
        raise type(error)(f"{tree.place((kind,))}: {error}") from error
    return NamedRecipe(str(told.get("name", "")), str(told.get("description", "")), recipe)


def _validation(value: Any, tree: Tree, key: Key) -> Validation:
    made = build(Validation, value, tree, key)
    on = tuple(
        dataclasses.replace(one, data=beside(one.data, tree, (*key, "on", i, "data"))) for i, one in enumerate(made.on)
    )
    return dataclasses.replace(made, on=on)
