"""A model while it is trained: an engine's own model and batches, with gradients.

A student reads inputs exactly as its engine will: the same prompt, the same cuts, sequences packed end to end where the
engine packs them.  Batches hold no padding, and prompts of one query compute their common beginning once.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rerank.adapters.method import AdapterMethod
from rerank.adapters.quantised import Quantisation, compute_alike, is_quantised, n_numbers, quantised_loading
from rerank.adapters.targets import transformer_prefix
from rerank.engines.engine import Asker, Engine
from rerank.engines.lora import CONFIG, WEIGHTS, read_adapter
from rerank.engines.scorer import Scorer, shorter_type
from rerank.engines.text_model import quiet_loading
from rerank.errors import ConfigError, ModelError
from rerank.models import ModelFolder, resolve_model
from rerank.prompts.prompt import Prompt
from rerank.runtime import Runtime
from rerank.train.groups import TrainingGroup

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.train.sharding import Shards

Precision = Literal["auto", "float32", "bfloat16"]

_ACCELERATOR_TOKENS = 32768
"""Computed together, as engines do there."""


class LearningScorer(Scorer):
    """An engine's scorer through which gradients flow; a subclass names that scorer's class after this one.

    Args:
        folder: the model.
        loading: what is to be other than the folder says.
        options: of the engine's scorer.
    """

    def __init__(self, folder: ModelFolder, *, loading: Mapping[str, Any], **options: Any) -> None:
        self._loading = loading
        super().__init__(folder, **options)

    @property
    def _settings(self) -> Mapping[str, Any]:
        return {**super()._settings, **self._loading}

    def _load(self) -> Any:
        model = super()._load()
        compute_alike(model)
        return model

    def pad(self) -> None:
        """Packs no more."""
        self._packing = None


class Batch(NamedTuple):
    """Groups that are computed together."""

    groups: tuple[TrainingGroup, ...]
    inputs: Any
    """What the student reads of them."""
    tokens: int
    """Without padding, and without what is shared."""


class Student(ABC):
    """A model to train, with what belongs to it.

    Args:
        engine: as in a recipe; names the model.
        runtime: its device and threads.
        method: the adapter method; None trains all weights.
        precision: what products are computed in; weights that are trained stay in float32.
        quantise: what the frozen layers are rounded to; None: they are not.
        dropout: of the model's own dropout layers; None leaves them as the model has them.
        checkpointing: whether what layers compute is computed again for the gradient.
        freeze_embeddings: whether the vocabulary's vectors stay as they are, where all weights are trained.
        seed: of new weights.
        max_tokens: what inputs are cut to.
        batch_tokens: computed together; None: as many as the engine would.
        start: an adapter of this method whose weights are gone on from.
        shards: keep the frozen layers in parts, of which this process has one; None: it has the whole model.
    """

    scorer: Any
    """The engine's scorer, whose model is trained."""
    trained: Any
    """The model as peft has wrapped it, or itself."""
    prompt: Prompt | None = None
    divides: ClassVar[bool] = False
    """Whether frozen layers can be kept in parts."""

    def __init__(
        self,
        engine: Engine,
        runtime: Runtime,
        *,
        method: AdapterMethod | None,
        precision: Precision,
        quantise: Quantisation | None,
        dropout: float | None,
        checkpointing: bool,
        freeze_embeddings: bool,
        seed: int,
        max_tokens: int | None,
        batch_tokens: int | None,
        start: Path | None = None,
        shards: Shards | None = None,
    ) -> None:
        import torch

        if shards is not None and not (self.divides and method is not None and quantise is None):
            raise ConfigError(
                f"{engine.label}: accelerate was told to use FSDP, which divides the frozen layers of causal_lm models "
                "with an adapter, and not rounded ones (quantise); start with distributed_type: MULTI_GPU, where each "
                "process has the whole model"
            )

        self.engine, self.method, self.max_tokens, self.quantise = engine, method, max_tokens, quantise
        name, revision = engine.model, engine.revision  # type: ignore[attr-defined]
        self.name: str = name
        self.folder: ModelFolder = resolve_model(name, revision, runtime.home)
        self.device = runtime.device
        self.precision = precision if precision != "auto" else shorter_type(runtime.device) or "float32"
        if self.precision not in ("float32", "bfloat16"):
            self.precision = "float32"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # A model that is divided is whole only outside the device.
            self.scorer = self._load("cpu" if shards is not None else runtime.device, runtime.threads)
        if batch_tokens is not None:
            self.scorer.batch_tokens = batch_tokens
        model = self.scorer.model
        self.heads: tuple[str, ...] = self._heads(model)
        if checkpointing:
            # A layer that is computed again, outside the packed pass, would not know where sequences begin.
            self.scorer.pad()
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if dropout is not None:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = dropout
        if method is not None:
            self.trained = method.wrap(model, self.heads, self.name, seed)
            if start is not None:
                self._start_from(start, runtime)
            if self.precision == "bfloat16":
                self._round_frozen(model)
        else:
            self.trained = model
            frozen = (
                {id(weight) for weight in model.get_input_embeddings().parameters()} if freeze_embeddings else set()
            )
            for weight in model.parameters():
                weight.requires_grad_(requires_grad=id(weight) not in frozen)
        self._wrapped()
        if shards is not None:
            shards.hold(self.scorer.transformer)
            model.to(self.device)
            self.scorer.device = self.device
            if batch_tokens is None and self.device != "cpu":
                self.scorer.batch_tokens = _ACCELERATOR_TOKENS
        self._reference: dict[str, Tensor] = {}

    # -- loading ------------------------------------------------------------

    @abstractmethod
    def _load(self, device: str, threads: int) -> Any:
        """The scorer, in float32."""

    def _rounding(self, kind: type[Scorer], device: str) -> dict[str, Any]:
        """How the folder is loaded rounded, where it is to be."""
        if self.quantise is None:
            return {}
        return quantised_loading(self.quantise, kind.without_weights(self.folder).model, device, self.precision)

    def _start_from(self, start: Path, runtime: Runtime) -> None:
        """Takes the weights of an adapter.

        Raises:
            ModelError: there is none, or it was trained on another model or with another prompt.
            ConfigError: it has other layers, ranks or scales than the recipe's.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        adapter = read_adapter(str(start), runtime.home / "models" / "checksums.json")
        adapter.check_base(self.folder)
        if self.prompt is not None:
            adapter.check_prompt(self.prompt.name, self.prompt.fingerprint)
        found = load_file(adapter.path / WEIGHTS, device=self.scorer.device)
        own = get_peft_model_state_dict(self.trained, save_embedding_layers=False)
        shapes, wanted = ({name: tuple(each.shape) for name, each in some.items()} for some in (found, own))
        odd = next((name for name in sorted({**shapes, **wanted}) if shapes.get(name) != wanted.get(name)), None)
        if odd is not None:
            raise ConfigError(
                f"start {str(start)!r}: has {shapes.get(odd, 'nothing')} for {odd!r}, where the recipe's adapter has "
                f"{wanted.get(odd, 'nothing')}; give 'adapter' the method, targets and rank that it was trained with"
            )
        config = json.loads((adapter.path / CONFIG).read_text(encoding="utf-8"))
        mine = self.trained.peft_config["default"].to_dict()
        for name in ("lora_alpha", "use_rslora", "use_dora"):
            if config.get(name) != mine.get(name):
                raise ConfigError(
                    f"start {str(start)!r}: was trained with {name} {config.get(name)}, and the recipe's adapter has "
                    f"{mine.get(name)}; give 'adapter' the same"
                )
        set_peft_model_state_dict(self.trained, found)

    def _round_frozen(self, model: Any) -> None:
        """Holds the frozen layers inside the transformer in 16 bits, as they are multiplied, and casts inputs once."""
        import torch

        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        prefix = transformer_prefix(model)
        for name, module in model.named_modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
            frozen = isinstance(module, torch.nn.Linear) and not module.weight.requires_grad
            if frozen and is_quantised(module.weight):
                continue
            # Heads are computed in 32 bits, and a pooler belongs to one.
            if frozen and module is not output and name.startswith(prefix) and "pooler" not in name:
                module.to(torch.bfloat16)

    @abstractmethod
    def _heads(self, model: Any) -> tuple[str, ...]:
        """The modules that are trained whole beside an adapter."""

    @abstractmethod
    def _wrapped(self) -> None:
        """Told once the adapter's layers are in place."""

    # -- batches ------------------------------------------------------------

    @abstractmethod
    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """What is read of each group, and how many tokens that has."""

    @abstractmethod
    def scores(self, batch: Batch) -> list[Tensor]:
        """float32 [documents] for each group of a batch, with gradients."""

    def batches(self, groups: Sequence[TrainingGroup], *, whole: bool = False) -> list[Batch]:
        """The groups of a step in batches of as many tokens as are computed together, or of one larger group.

        Args:
            groups: the step's.
            whole: puts all of them into one batch, however large.
        """
        batches: list[Batch] = []
        some: list[tuple[TrainingGroup, Any, int]] = []
        if not groups:
            return batches
        for group, (inputs, tokens) in zip(groups, self.inputs(groups), strict=True):
            if some and not whole and sum(n for _, _, n in some) + tokens > self.scorer.batch_tokens:
                batches.append(_batch(some))
                some = []
            some.append((group, inputs, tokens))
        return [*batches, _batch(some)] if some else batches

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Products inside the block are computed in the precision that was chosen."""
        import torch

        if self.precision == "float32":
            yield
        else:
            with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16):
                yield

    # -- weights ------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        """The weights that are trained, by name."""
        return {name: weight for name, weight in self.trained.named_parameters() if weight.requires_grad}

    def n_weights(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are."""
        every = sum(map(n_numbers, self.trained.parameters()))
        return sum(weight.numel() for weight in self.weights().values()), every

    def save_weights(self, path: Path) -> None:
        """Writes the weights that are trained."""
        from safetensors.torch import save_file

        save_file({name: weight.detach().contiguous() for name, weight in self.weights().items()}, path)

    def load_weights(self, path: Path) -> None:
        """Takes the weights that `save_weights` wrote.

        Raises:
            ModelError: they belong to another model or method.
        """
        import torch
        from safetensors.torch import load_file

        found, own = load_file(path, device=self.device), self.weights()
        if found.keys() != own.keys() or any(found[name].shape != own[name].shape for name in own):
            odd = sorted(found.keys() ^ own.keys()) or ["shapes"]
            raise ModelError(f"{path}: holds other weights than those that are trained here ({odd[0]}, ...)")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(found[name])

    def keep_reference(self) -> None:
        """Keeps the weights that are trained as they are now: `as_reference` computes with them."""
        self._reference = {name: weight.detach().clone() for name, weight in self.weights().items()}

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside the block the model is the one that `keep_reference` kept, at rest and without gradients."""
        import torch

        own = self.weights()
        now = {name: weight.detach().clone() for name, weight in own.items()}
        with torch.no_grad(), self.resting():
            for name, weight in own.items():
                weight.copy_(self._reference[name])
            try:
                yield
            finally:
                for name, weight in own.items():
                    weight.copy_(now[name])

    def save_model(self, folder: Path) -> None:
        """Writes what was trained as peft or transformers reads it: an adapter, or the model with its tokenizer."""
        with quiet_loading():
            if self.method is not None:
                self.trained.save_pretrained(folder, save_embedding_layers=False)
                (folder / "README.md").unlink(missing_ok=True)
                _sort_sets(folder / CONFIG)
            else:
                self._save_whole(folder)
        for path in folder.rglob("*"):
            # Weights are written readable for their owner alone, and servers run as others.
            path.chmod(0o755 if path.is_dir() else 0o644)

    def _save_whole(self, folder: Path) -> None:
        """Writes the model with its tokenizer."""
        self.trained.save_pretrained(folder)
        self.scorer.tokenizer.save_pretrained(folder)

    # -- as it is now ------------------------------------------------------------

    @abstractmethod
    def asker(self) -> Asker:
        """What answers with the weights as they are; answers are kept nowhere."""

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Inside the block the model computes as when it is used: nothing is dropped out."""
        was = self.trained.training
        self.trained.eval()
        try:
            with self.computing():
                yield
        finally:
            self.trained.train(was)


def _sort_sets(config: Path) -> None:
    """Gives an adapter's configuration one order: peft writes its sets of names in any."""
    found = json.loads(config.read_text(encoding="utf-8"))
    for name in ("target_modules", "modules_to_save"):
        if isinstance(found.get(name), list):
            found[name].sort()
    config.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _batch(some: Sequence[tuple[TrainingGroup, Any, int]]) -> Batch:
    groups, inputs, tokens = zip(*some, strict=True)
    return Batch(groups, inputs, sum(tokens))


class Uncached:
    """A student's scorer, asked past any cache, for its weights change, and computing as it does in training."""

    def __init__(self, student: Student) -> None:
        scorer = student.scorer
        self._scorer, self._computing = scorer, student.computing
        self.tokenizer = scorer.tokenizer
        self.limit = scorer.limit
        self.key = scorer.key

    def pairs(self, pairs: Any, count: Any = None, max_tokens: int | None = None, cache: Any = None) -> Any:
        with self._computing():
            return self._scorer.pairs(pairs, count, max_tokens)

    def choices(self, requests: Any, count: Any = None, cache: Any = None) -> Any:
        with self._computing():
            return self._scorer.choices(requests, count)

    def likelihood(self, requests: Any, count: Any = None, cache: Any = None) -> Any:
        with self._computing():
            return self._scorer.likelihood(requests, count)

    def generate(self, requests: Any, sampling: Any, count: Any = None, cache: Any = None) -> Any:
        with self._computing():
            return self._scorer.generate(requests, sampling, count)
