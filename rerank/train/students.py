"""Models while they are trained: an engine's own model and batches, with gradients.

A student reads inputs exactly as its engine will: the same prompt, the same cuts, sequences packed end to end where the
engine packs them.  Batches hold no padding, and prompts of one query compute their common beginning once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from rerank.adapters.method import AdapterMethod
from rerank.adapters.targets import head_modules
from rerank.engines.causal_lm import CausalLM
from rerank.engines.cross_encoder import CrossEncoder, Head, Rows
from rerank.engines.engine import Asker, Engine
from rerank.engines.language_model import Item, Request
from rerank.engines.lora import CONFIG, WEIGHTS, read_adapter
from rerank.engines.pairs import CrossEncoderEngine, PairsAsker
from rerank.engines.prompted import CausalLMEngine, PromptedAsker
from rerank.engines.scorer import shorter_type
from rerank.engines.text_model import quiet_loading
from rerank.errors import ConfigError, ModelError
from rerank.models import ModelFolder, resolve_model
from rerank.prompts.prompt import Prompt, load_prompt
from rerank.runtime import Runtime
from rerank.train.groups import TrainingGroup
from rerank.train.targets import Target, target_of

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.engines.packing import Packing
    from rerank.prompts.binding import PromptRequest

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
_VOCABULARY_POSITIONS = 256
"""Positions whose logits over a whole vocabulary are held together, and made again for the gradient."""


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
        dropout: of the model's own dropout layers; None leaves them as the model has them.
        checkpointing: whether what layers compute is computed again for the gradient.
        freeze_embeddings: whether the vocabulary's vectors stay as they are, where all weights are trained.
        seed: of new weights.
        max_tokens: what inputs are cut to.
        batch_tokens: computed together; None: as many as the engine would.
        start: an adapter of this method whose weights are gone on from.
    """

    scorer: Any
    """The engine's scorer, whose model is trained."""
    trained: Any
    """The model as peft has wrapped it, or itself."""
    prompt: Prompt | None = None

    def __init__(
        self,
        engine: Engine,
        runtime: Runtime,
        *,
        method: AdapterMethod | None,
        precision: Precision,
        dropout: float | None,
        checkpointing: bool,
        freeze_embeddings: bool,
        seed: int,
        max_tokens: int | None,
        batch_tokens: int | None,
        start: Path | None = None,
    ) -> None:
        import torch

        self.engine, self.method, self.max_tokens = engine, method, max_tokens
        name, revision = engine.model, engine.revision  # type: ignore[attr-defined]
        self.name: str = name
        self.folder: ModelFolder = resolve_model(name, revision, runtime.home)
        self.device = runtime.device
        self.precision = precision if precision != "auto" else shorter_type(runtime.device) or "float32"
        if self.precision not in ("float32", "bfloat16"):
            self.precision = "float32"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scorer = self._load(runtime)
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
        self._reference: dict[str, Tensor] = {}

    # -- loading ------------------------------------------------------------

    @abstractmethod
    def _load(self, runtime: Runtime) -> Any:
        """The scorer, in float32."""

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
        found = load_file(adapter.path / WEIGHTS, device=self.device)
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
        prefix = f"{model.base_model_prefix}."
        for name, module in model.named_modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
            frozen = isinstance(module, torch.nn.Linear) and not module.weight.requires_grad
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

    def batches(self, groups: Sequence[TrainingGroup]) -> list[Batch]:
        """The groups of a step in batches of as many tokens as are computed together, or of one larger group."""
        batches: list[Batch] = []
        some: list[tuple[TrainingGroup, Any, int]] = []
        for group, (inputs, tokens) in zip(groups, self.inputs(groups), strict=True):
            if some and sum(n for _, _, n in some) + tokens > self.scorer.batch_tokens:
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
        every = sum(weight.numel() for weight in self.trained.parameters())
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
            else:
                self.trained.save_pretrained(folder)
                self.scorer.tokenizer.save_pretrained(folder)
        for path in folder.rglob("*"):
            # Weights are written readable for their owner alone, and servers run as others.
            path.chmod(0o755 if path.is_dir() else 0o644)

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


def _batch(some: Sequence[tuple[TrainingGroup, Any, int]]) -> Batch:
    groups, inputs, tokens = zip(*some, strict=True)
    return Batch(groups, inputs, sum(tokens))


# -- cross-encoders ------------------------------------------------------------


class _CrossEncoder(CrossEncoder):
    """A cross-encoder through which gradients flow."""

    def pad(self) -> None:
        """Packs no more."""
        self._packing = None

    def learns(self) -> None:
        """Told once adapter layers are in place."""
        if self._head is not None:
            self._head = Head(self.model, self._head.reads)

    def logits_of(self, rows: Rows, computing: Callable[[], Any]) -> Tensor:
        """float32 [n]: the logits of pairs, with gradients."""
        import torch

        sizes = np.array([len(row) for row in rows.ids], dtype=np.int64)
        parts, order = [], []
        for batch in self._batches(sizes):
            some = Rows([rows.ids[i] for i in batch], rows.types and [rows.types[i] for i in batch])
            if self._head is None:
                with computing():
                    logits = self._logits(some)
            else:
                with computing():
                    states = self._states(some)
                # 16-bit logits tie.
                logits = self._head.logits(states, some, self._pad())
            logits = logits.float()
            parts.append(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])
            order += batch
        back = torch.from_numpy(np.argsort(np.array(order), kind="stable")).to(self.model.device)
        return torch.cat(parts)[back]


class CrossEncoderStudent(Student):
    """A cross-encoder to train; an encoder without a head gets a new one."""

    scorer: _CrossEncoder

    def _load(self, runtime: Runtime) -> _CrossEncoder:
        n_labels = None if _is_classifier(self.folder.path) else 1
        return _CrossEncoder(self.folder, device=runtime.device, threads=runtime.threads, n_labels=n_labels)

    def _heads(self, model: Any) -> tuple[str, ...]:
        return tuple(head_modules(model))

    def _wrapped(self) -> None:
        self.scorer.learns()

    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """The rows of each group's pairs."""
        pairs = [(group.query, document) for group in groups for document in group.documents]
        tokens = self.scorer.tokenise(pairs, self.max_tokens)
        found, start = [], 0
        for group in groups:
            rows = tokens.take(range(start, start + len(group.documents)))
            found.append((rows, sum(map(len, rows.ids))))
            start += len(group.documents)
        return found

    def scores(self, batch: Batch) -> list[Tensor]:
        """The logits of each group's pairs."""
        ids = [row for rows in batch.inputs for row in rows.ids]
        types = [row for rows in batch.inputs for row in rows.types or ()] or None
        scores = self.scorer.logits_of(Rows(ids, types), self.computing)
        return list(scores.split([len(rows.ids) for rows in batch.inputs]))

    def asker(self) -> Asker:
        """Scores pairs."""
        return PairsAsker(_Uncached(self), max_tokens=self.max_tokens)  # type: ignore[arg-type]


def _is_classifier(folder: Path) -> bool:
    from rerank.stage_for import kind_of

    try:
        return kind_of(folder, str(folder)) == "cross_encoder"
    except ModelError:
        return False


# -- language models ------------------------------------------------------------


class _CausalLM(CausalLM):
    """A causal language model through which gradients flow."""

    _writes_with: Packing | None = None
    """How sequences were packed before `pad`."""

    def pad(self) -> None:
        """Packs no more, but for what is written."""
        self._writes_with, self._packing = self._packing, None

    def states(self, items: Sequence[Item]) -> tuple[Tensor, list[int]]:
        """float32 [positions, d] that items read, and how many of them each does."""
        import torch

        reads = [item.reads + sum(map(len, item.branches)) for item in items]
        parts: dict[int, Tensor] = {}
        for batch in self._batches(items):
            found, _ = self._states([items[i] for i in batch])
            parts.update(zip(batch, found.split([reads[i] for i in batch]), strict=True))
        return torch.cat([parts[i] for i in range(len(items))]), reads

    def item(self, request: Request) -> Item:
        """A request for labels as a sequence."""
        return self._choice(request)

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that are computed for items together."""
        return self._cost(items)

    def continued(self, request: Request) -> Item:
        """A request with the text that follows it as a sequence."""
        return self._continued(request)

    def label_logits(self, states: Tensor, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """float32 [labels] from the states [positions, d] that one request reads, as the engine answers `choices`.

        Logits where all labels are single tokens, else summed log-probabilities.
        """
        import torch

        if all(len(label) == 1 for label in labels):
            weights, bias = self._head_rows(torch.tensor([label[0] for label in labels], device=states.device))
            return self._finished(weights @ states[0] + bias)
        rows: list[int] = []
        tokens: list[int] = []
        owners: list[int] = []
        branch = 1
        for i, label in enumerate(labels):
            rows += [0, *range(branch, branch + len(label) - 1)]
            tokens += label
            owners += [i] * len(label)
            branch += len(label) - 1
        found = self.log_probabilities(states[torch.tensor(rows, device=states.device)], tokens)
        owner = torch.tensor(owners, device=states.device)
        return found.new_zeros(len(labels)).index_add(0, owner, found)

    def log_probabilities(self, states: Tensor, tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
        """float32 [positions]: of each position's token among the whole vocabulary, its logits over `temperature`."""
        import torch
        from torch.utils.checkpoint import checkpoint

        weights, bias = self._head_rows(slice(None))
        plain = self._cap is None and not weights.requires_grad
        scale = self._scale / temperature

        def some(rows: Tensor, wanted: Tensor) -> Tensor:
            logits = self.logits(rows) / temperature
            return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)

        wanted = torch.tensor(tokens, dtype=torch.int64, device=states.device)
        pieces = zip(states.split(_VOCABULARY_POSITIONS), wanted.split(_VOCABULARY_POSITIONS), strict=True)
        with torch.autocast(states.device.type, enabled=False):
            if plain:
                found = [_frozen_head().apply(rows.float(), weights, bias, ids, scale) for rows, ids in pieces]
            else:
                found = [checkpoint(some, rows, ids, use_reentrant=False) for rows, ids in pieces]
        return torch.cat(found)

    def logits(self, states: Tensor) -> Tensor:
        """float32 [positions, vocabulary] from states [positions, d]: they tie in 16 bits."""
        import torch

        weights, bias = self._head_rows(slice(None))
        with torch.autocast(states.device.type, enabled=False):
            return self._finished(states.float() @ weights.T + bias)

    @property
    def transformer(self) -> Any:
        """The model without its head."""
        return self._base

    @property
    def writes_together(self) -> bool:
        """Whether the completions of a prompt can look at the same keys and values.

        So they can where sequences that continue others were found to have the states that they have alone, and
        attention is neither limited to a window nor bent.
        """
        settings = (getattr(self.model.config, name, None) for name in ("sliding_window", "attn_logit_softcapping"))
        packing = self._packing or self._writes_with
        return packing is not None and packing.shares_prefixes and not any(settings)

    @property
    def pad_token(self) -> int:
        """What fills up batches."""
        return int(self._pad())

    @property
    def end_tokens(self) -> frozenset[int]:
        """What a text ends with; the token that it learns to end with among them."""
        learnt = self.end_token
        return self._end_tokens if learnt is None else self._end_tokens | {learnt}

    @property
    def end_token(self) -> int | None:
        """What the model ends its texts with."""
        token = self.tokenizer.eos_token_id
        return int(token) if token is not None else min(self._end_tokens, default=None)


@functools.cache
def _frozen_head() -> Any:
    """Log-probabilities of tokens by a head that is not trained.

    Their gradient in the states is known as soon as they are, so it is taken at once, and no logits are kept or made
    again for it.
    """
    import torch

    class FrozenHead(torch.autograd.Function):  # type: ignore[misc]  # torch leaves its type open
        @staticmethod
        def forward(ctx: Any, rows: Tensor, weights: Tensor, bias: Any, wanted: Tensor, scale: float) -> Tensor:
            logits = (rows @ weights.T).add_(bias).mul_(scale)
            totals = logits.logsumexp(dim=1, keepdim=True)
            found = logits.gather(1, wanted[:, None]) - totals
            if ctx.needs_input_grad[0]:
                expected = logits.sub_(totals).exp_() @ weights
                ctx.save_for_backward((weights[wanted] - expected).mul_(scale))
            return found[:, 0]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            (slopes,) = ctx.saved_tensors
            return gradients[0][:, None] * slopes, None, None, None, None

    return FrozenHead


class _Read(NamedTuple):
    """What is read of a group."""

    requests: tuple[PromptRequest, ...]
    items: tuple[Item, ...]


class CausalLMStudent(Student):
    """A causal language model to train, asked by its prompt."""

    scorer: _CausalLM
    prompt: Prompt

    def __init__(self, engine: CausalLMEngine, runtime: Runtime, prompt: str, **options: Any) -> None:
        self.prompt = load_prompt(prompt)
        super().__init__(engine, runtime, **options)
        self.bound = self.prompt.bind(self.scorer.tokenizer)
        limit = min(engine.max_tokens, self.scorer.limit)
        self.max_tokens = limit if self.max_tokens is None else min(limit, self.max_tokens)

    def _load(self, runtime: Runtime) -> _CausalLM:
        return _CausalLM(self.folder, device=runtime.device, threads=runtime.threads)

    def _heads(self, model: Any) -> tuple[str, ...]:
        return ()

    def _wrapped(self) -> None:
        """Nothing: states are read from the layers as they are."""

    # -- scores ------------------------------------------------------------

    def check_scores(self) -> None:
        """Returns when the prompt's answers are scores with gradients.

        Raises:
            ConfigError: they are texts.
        """
        prompt = self.prompt
        if prompt.verb == "generate":
            raise ConfigError(
                f"the prompt {prompt.name!r} has answers that are written, which have no gradient; take the recipe "
                "sft, or a prompt that asks for labels (choices) or likelihoods"
            )

    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """The requests about each group, as sequences."""
        most = self.prompt.most_documents
        for group in groups:
            if self.prompt.shows_many and most is not None and len(group.documents) > most:
                raise ConfigError(
                    f"groups have up to {len(group.documents)} documents, but the prompt {self.prompt.name!r} shows "
                    f"{most} at most; make smaller groups (sizes)"
                )
        asked = [_asked(group, many=self.prompt.shows_many) for group in groups]
        room = self.max_tokens or self.scorer.limit
        requests = iter(self.bound.requests([one for some in asked for one in some], room))
        make = self.scorer.continued if self.prompt.verb == "likelihood" else self.scorer.item
        found = []
        for some in asked:
            of_group = tuple(next(requests) for _ in some)
            items = tuple(map(make, of_group))
            found.append((_Read(of_group, items), self.scorer.cost(items)))
        return found

    def scores(self, batch: Batch) -> list[Tensor]:
        """What the prompt's parser makes of the labels' logits, or the likelihood of the query."""
        import torch

        requests = [request for read in batch.inputs for request in read.requests]
        with self.computing():
            states, reads = self.scorer.states([item for read in batch.inputs for item in read.items])
        if self.prompt.verb == "likelihood":
            tokens = [token for request in requests for token in request.continuations[0]]
            found = [each.mean() for each in self.scorer.log_probabilities(states, tokens).split(reads)]
            scores = torch.stack(found)
        else:
            parts = zip(states.split(reads), requests, strict=True)
            logits = [self.scorer.label_logits(part, request.continuations) for part, request in parts]
            scores = torch.cat([self._score(each) for each in logits])
        return list(scores.split([len(group.documents) for group in batch.groups]))

    def _score(self, logits: Tensor) -> Tensor:
        """[documents]: scores from the logits of one request's labels."""
        import torch

        if self.prompt.parser == "binary":
            return (logits[0] - logits[1]).unsqueeze(0)
        if self.prompt.parser == "expectation":
            values = self.prompt.values or tuple(map(float, range(len(logits))))
            return (logits.softmax(0) @ torch.tensor(values, device=logits.device)).unsqueeze(0)
        return logits

    # -- completions ------------------------------------------------------------

    def asked(self, groups: Sequence[TrainingGroup], room: int) -> list[PromptRequest]:
        """For each group the request that shows it, with room for an answer of so many tokens."""
        most = (self.max_tokens or self.scorer.limit) - room
        return self.bound.requests([(group.query, group.documents) for group in groups], most)

    def branched(self, prompt: Sequence[int], completions: Sequence[tuple[int, ...]]) -> Item:
        """A prompt as a sequence that its completions, with a token or more each, go on from."""
        branches = tuple(np.array(tokens[:-1], dtype=np.int32) for tokens in completions if len(tokens) > 1)
        return Item(np.array(prompt, dtype=np.int32), 0, 1, branches)

    def completion_log_probabilities(
        self, items: Sequence[Item], completions: Sequence[Sequence[tuple[int, ...]]], temperature: float
    ) -> Tensor:
        """float32 [tokens]: of the tokens of all completions, item by item.

        Args:
            items: of `branched`.
            completions: of each item, the same that it was made of.
            temperature: of the distribution that they were drawn from.
        """
        import torch

        with self.computing():
            states, reads = self.scorer.states(items)
        rows: list[int] = []
        start = 0
        for some, n_reads in zip(completions, reads, strict=True):
            branch = start + 1
            for tokens in some:
                rows += [start, *range(branch, branch + len(tokens) - 1)]
                branch += len(tokens) - 1
            start += n_reads
        wanted = [token for some in completions for tokens in some for token in tokens]
        return self.scorer.log_probabilities(states[torch.tensor(rows, device=states.device)], wanted, temperature)

    # -- answers ------------------------------------------------------------

    def answers(self, groups: Sequence[TrainingGroup], relevant: float, top: float | None) -> list[list[Answered]]:
        """For each group its requests with the answers to learn.

        Args:
            groups: whose labels say what is right.
            relevant: the label from which on a document is.
            top: the label that the highest grade stands for; default the highest of each group.
        """
        found = []
        for group in groups:
            some = []
            for query, documents, labels in _shown(group, many=self.prompt.shows_many):
                target = target_of(self.prompt, labels, relevant, top)
                some.append(self._answered(query, documents, target))
            found.append([each for each in some if each is not None])
        return found

    def _answered(self, query: str, documents: Sequence[str], target: Target | None) -> Answered | None:
        if target is None:
            return None
        room = self.max_tokens or self.scorer.limit
        if isinstance(target, str):
            tokens = self.bound.answer_tokens(target, len(documents))
            if self.scorer.end_token is not None:
                tokens = (*tokens, self.scorer.end_token)
            request = self.bound.request(query, documents, room - len(tokens))
            item = self.scorer.continued(_Answer(request.tokens, request.prefix, (tokens,)))
            return Answered(item, (tokens,), None)
        request = self.bound.request(query, documents, room)
        if self.prompt.verb == "likelihood":
            return Answered(self.scorer.continued(request), request.continuations, None)
        return Answered(self.scorer.item(request), request.continuations, target)

    def answer_loss(self, answered: Sequence[Answered]) -> tuple[Tensor, int]:
        """The summed cross-entropy of answers, and over how many tokens; of labels among themselves alone."""
        import torch

        with self.computing():
            states, reads = self.scorer.states([each.item for each in answered])
        total = states.new_zeros(())
        count = 0
        texts = [(part, each) for part, each in zip(states.split(reads), answered, strict=True) if each.shares is None]
        if texts:
            tokens = [token for _, each in texts for token in each.continuations[0]]
            total = total - self.scorer.log_probabilities(torch.cat([part for part, _ in texts]), tokens).sum()
            count += len(tokens)
        for part, each in zip(states.split(reads), answered, strict=True):
            if each.shares is not None:
                logits = self.scorer.label_logits(part, each.continuations)
                shares = torch.tensor(each.shares, device=logits.device)
                total = total - (shares * logits.log_softmax(0)).sum()
                count += 1
        return total, count

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that are computed for items together."""
        return self.scorer.cost(items)

    def asker(self) -> Asker:
        """Answers as the engine would."""
        engine = self.engine
        if not isinstance(engine, CausalLMEngine):
            raise ConfigError(f"{engine.label}: is not trained as a causal language model")
        return PromptedAsker(engine, _Uncached(self), self.bound, engine.sampling)


class Answered(NamedTuple):
    """A prompt with its answer."""

    item: Item
    continuations: tuple[tuple[int, ...], ...]
    """The answer's tokens, or those of each label to choose from."""
    shares: tuple[float, ...] | None
    """How right each label is, summing to 1; None where the answer is a text."""


class _Answer(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int
    continuations: tuple[tuple[int, ...], ...]
    verb: str = "likelihood"


def _asked(group: TrainingGroup, *, many: bool) -> list[tuple[str, Sequence[str]]]:
    return [(query, documents) for query, documents, _ in _shown(group, many=many)]


def _shown(group: TrainingGroup, *, many: bool) -> list[tuple[str, Sequence[str], Sequence[float]]]:
    """What a prompt shows of a group at once: all documents, or each by itself; with their labels."""
    if many:
        return [(group.query, group.documents, group.labels)]
    return [(group.query, (document,), (label,)) for document, label in zip(group.documents, group.labels, strict=True)]


class _Uncached:
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


def load_student(engine: Engine, runtime: Runtime, prompt: str | None, **options: Any) -> Student:
    """The model that `engine` names, ready to be trained; other arguments as for `Student`.

    Raises:
        ConfigError: an engine that cannot be trained, or a prompt where none is taken, or none where one is needed.
        ModelError: the model cannot be had, or does not load.
    """
    if getattr(engine, "adapter", None) is not None:
        raise ConfigError(
            f"{engine.label}: an adapter is given, and another would be trained beside it; merge it into its model "
            "first (rerank adapters merge) and give the merged folder"
        )
    if isinstance(engine, CrossEncoderEngine):
        if prompt is not None:
            raise ConfigError(f"cross_encoder: takes no prompt, but {prompt!r} is given; leave it out")
        return CrossEncoderStudent(engine, runtime, **options)
    if isinstance(engine, CausalLMEngine):
        if prompt is None:
            raise ConfigError("causal_lm: needs a prompt: the name of a profile (rerank prompts list) or a file")
        return CausalLMStudent(engine, runtime, prompt, **options)
    raise ConfigError(f"{engine.label}: cannot be trained; take cross_encoder or causal_lm")
