"""What engines that score with a transformer share: loading, types, the way a batch is computed, batches by tokens."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from rerank.artifact import fingerprint
from rerank.engines.lora import Adapter, Adapters, read_adapter
from rerank.engines.packing import Packing, find_packing, ordinary_tokens, still_agrees
from rerank.engines.products import speed_up
from rerank.engines.text_model import Count, DType, has_bfloat16, quiet_loading, torch_threads
from rerank.engines.trials import Trials
from rerank.errors import ModelError
from rerank.extras import need

if TYPE_CHECKING:
    from pathlib import Path

    from rerank.engines.cache import Stored
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

PATH_VERSION = 2
"""Raised when the way from a request to its answer changes so that stored answers no longer fit."""
_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of a batch: more gain nothing on a processor; halved where a device's memory does not hold them."""
MAX_TOKENS = 1 << 20
"""Limits above this are a configuration's way to say that there is none."""

FloatVector = npt.NDArray[np.float32]
Answer = TypeVar("Answer")

OBVIOUS = (
    (
        "how do vaccines work",
        "A vaccine trains the immune system to recognise a pathogen before it meets the real one.",
        "Paris has been the seat of French government since the Middle Ages.",
    ),
    (
        "what is the capital of France",
        "Paris is the capital of France.",
        "Feed the starter twice a day and keep it warm until it doubles in four hours.",
    ),
)
"""Queries with a document that answers them and one that does not."""


class Scorer(ABC):
    """A loaded model folder that scores; made in float32, turned to another type by `to`.

    Raises:
        ModelError: weights that are missing or do not load.
    """

    library_class: ClassVar[str]
    """The class of transformers that reads the folder."""
    min_agreement: ClassVar[float]
    """Kendall's tau, against float32, that a 16-bit type must reach to be chosen by `auto`."""
    unread: ClassVar[tuple[str, ...]] = ()
    """How the names of weights begin that nothing reads, so that a folder need not have them."""

    def __init__(self, folder: ModelFolder, *, device: str, threads: int, trials: Trials | None = None) -> None:
        self.folder = folder
        self.device = device
        self.trials = trials or Trials()
        """Remembers what was found out about the model."""
        self.adapter: Adapter | None = None
        """What the weights are changed by."""
        self.missing: tuple[str, ...] = ()
        """Weights that the folder does not have, so that they are random unless an adapter brings them."""
        self.dtype = "float32"
        self.batch_tokens = _BATCH_TOKENS.get(device.partition(":")[0], 4096)
        self._threads = threads
        self.tokenizer: Any = None
        self.model = self._load()
        self._base: Any = self.model.base_model
        self._adapters = Adapters(self.model, folder.name)
        with self._computing():
            self._packing = self._find_packing()
        logger.info("model %s: %s batches", folder.name, self.path)

    # -- loading ------------------------------------------------------------

    def _load(self) -> Any:
        transformers = need("transformers", "dense", f"the model {self.folder.name!r}")
        torch = need("torch", "dense", f"the model {self.folder.name!r}")
        from safetensors import SafetensorError

        path = str(self._transformer)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet_loading():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
                model, report = getattr(transformers, self.library_class).from_pretrained(
                    path, dtype=torch.float32, output_loading_info=True, **options, **self._settings
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"model {self.folder.name!r} ({path}) does not load as {self.library_class}: "
                f"{type(error).__name__}: {reason[:300]}; check the folder or fetch the model again"
            ) from error
        missing = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
        self.missing = tuple(name for name in missing if not name.startswith(self.unread))
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=False)
        speed_up(model)
        return model.to(self.device)

    @classmethod
    def without_weights(cls, folder: ModelFolder) -> Self:
        """The model as its configuration describes it: it tokenises and cuts as the loaded one does, but cannot score.

        Raises:
            ModelError: configuration or tokenizer are missing or cannot be read.
        """
        made = cls.__new__(cls)
        made.folder, made.device, made.dtype = folder, "meta", "float32"
        transformers = need("transformers", "dense", f"the model {folder.name!r}")
        torch = need("torch", "dense", f"the model {folder.name!r}")
        path = str(made._transformer)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet_loading(), torch.device("meta"):
                made.tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
                config = transformers.AutoConfig.from_pretrained(path, **options)
                made.model = getattr(transformers, cls.library_class).from_config(config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"model {folder.name!r} ({path}): {type(error).__name__}: {reason}") from error
        made._base = made.model.base_model
        return made

    @property
    def _transformer(self) -> Path:
        """The folder of the transformer and the tokenizer."""
        return self.folder.path

    @property
    def _settings(self) -> Mapping[str, Any]:
        """What is to be other than the folder's configuration says."""
        return {}

    def adapted(self, adapter: Adapter | None) -> Self:
        """The same model with `adapter`, sharing all other weights with this one.

        Raises:
            ModelError: the two do not fit, or weights are missing and the adapter does not bring them.
        """
        missing = [name for name in self.missing if adapter is None or name not in adapter.replaced]
        if missing:
            raise ModelError(
                f"model {self.folder.name!r} ({self._transformer}) has no weights for {', '.join(missing[:3])}"
                f"{' ...' if len(missing) > 3 else ''}, so its scores would be random; {self._missing_advice}"
            )
        if adapter is None:
            return self
        fitted = copy.copy(self)
        fitted.adapter = adapter
        fitted._take(adapter)
        with fitted._computing():
            fitted._keep_packing()
        return fitted

    def has_room_for(self, adapter: Adapter | None) -> bool:
        """Whether `adapter` can be loaded beside those that are."""
        return adapter is None or self._adapters.has_room_for(adapter)

    def _take(self, adapter: Adapter) -> None:
        """Loads an adapter into the model."""
        self._adapters.load(adapter)

    @classmethod
    def options_for(cls, folder: ModelFolder, adapter: Adapter) -> dict[str, Any]:
        """What this class is to be made with so that `adapter` fits."""
        return {}

    @property
    @abstractmethod
    def _missing_advice(self) -> str:
        """What a folder without some weights probably is."""

    @abstractmethod
    def _find_packing(self) -> Packing | None:
        """How the model is packed; None where its own padded batches are used."""

    def _tried_packing(self, n_types: int = 0) -> Packing | None:
        """How packed batches of the transformer are called; None where they do not hold."""

        def run() -> dict[str, int | bool | None] | None:
            found = find_packing(self._base, self.words(), self.limit, n_types=n_types)
            return None if found is None else dataclasses.asdict(found)

        found: dict[str, Any] | None = self.trials.result("packing", run=run)
        return None if found is None else Packing(**found)

    def to(self, dtype: str) -> None:
        """Computes in `dtype` from now on; packed batches are tried again in it."""
        import torch

        self._convert(getattr(torch, dtype))
        self.dtype = dtype
        with self._computing():
            self._keep_packing()

    def _keep_packing(self) -> None:
        """Packs no more where the packing that was found does not hold for the type or the adapter there is now."""
        packing = self._packing
        if packing is None:
            return
        change = self.adapter.fingerprint if self.adapter is not None else ""
        if self.trials.result(
            "still packed", self.dtype, change, run=lambda: still_agrees(packing, self._base, self.words(), self.limit)
        ):
            return
        state = self.dtype if self.adapter is None else f"{self.dtype} with adapter {self.adapter.path}"
        logger.warning("model %s: packed batches do not hold in %s; padded ones are used", self.folder.name, state)
        self._packing = None

    @abstractmethod
    def _convert(self, dtype: Any) -> None:
        """Turns the weights to `dtype`."""

    def words(self) -> list[int]:
        """Token ids that are no special tokens, for trials."""
        return ordinary_tokens(self.tokenizer, self.model)

    @property
    def path(self) -> str:
        """How batches are computed: `packed`, or the model's own way, `padded`."""
        return "packed" if self._packing is not None else "padded"

    @property
    @abstractmethod
    def limit(self) -> int:
        """The longest sequence that the model reads, special tokens included."""

    @property
    def key(self) -> str:
        """SHA-256 of all that an answer depends on besides the request and the batch that it is in."""
        device = self.device.partition(":")[0]
        adapter = self.adapter.fingerprint if self.adapter is not None else ""
        facts = (self.folder.fingerprint, adapter, self.dtype, device, self.limit, self.path, self.batch_tokens)
        return fingerprint([type(self).__name__, PATH_VERSION, *map(str, facts)])

    @abstractmethod
    def trial(self) -> list[FloatVector]:
        """Scores of a few fixed lists; their order decides whether a 16-bit type may be used."""

    @abstractmethod
    def order_holds(self) -> bool | None:
        """Whether obviously relevant documents come before irrelevant ones, else a warning is logged.

        None where that cannot be tried without a prompt.
        """

    # -- batches ------------------------------------------------------------

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Within the block the adapter is active, torch has this engine's threads and keeps nothing for gradients."""
        import torch

        self._adapters.activate(self.adapter)
        with torch_threads(self._threads), torch.inference_mode():
            yield

    def _pad(self) -> int:
        """The token that fills padded batches; what it is does not matter under the mask."""
        for token in (self.tokenizer.pad_token_id, self.model.config.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    def _in_batches(
        self, batches: Sequence[Sequence[int]], cost: Callable[[list[int]], int], run: Callable[[list[int]], Answer]
    ) -> Iterator[tuple[list[int], Answer]]:
        """What `run` gives for each batch; a batch that a device's memory does not hold is cut in half, for good.

        Args:
            batches: numbers of requests.
            cost: tokens of a batch.
            run: computes one batch.
        """
        import torch

        waiting = deque(list(batch) for batch in batches)
        while waiting:
            batch = waiting.popleft()
            if len(batch) > 1 and cost(batch) > self.batch_tokens:
                waiting.extendleft((batch[len(batch) // 2 :], batch[: len(batch) // 2]))
                continue
            try:
                answer = run(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise ModelError(
                        f"model {self.folder.name!r}: {cost(batch):,} tokens do not fit into the memory of "
                        f"{self.device}; cut documents shorter or use a smaller model"
                    ) from error
                self.batch_tokens = max(1, cost(batch) // 2)
                logger.warning(
                    "model %s: out of memory on %s; batches of %d tokens from now on",
                    self.folder.name, self.device, self.batch_tokens,
                )  # fmt: skip
                waiting.appendleft(batch)
                continue
            yield batch, answer

    def _answers(
        self,
        batches: Sequence[Sequence[int]],
        cost: Callable[[list[int]], int],
        run: Callable[[list[int]], list[Answer]],
        stored: Stored[Answer] | None,
        count: Count | None,
    ) -> list[Answer]:
        """The answer to each request, in their order, computed by `run` where they are not stored.

        Batches are planned before it is asked what is stored: those of a run that goes on are those of the first try.
        """
        answers: dict[int, Answer] = {}

        def answered(batch: list[int]) -> list[Answer]:
            if stored is None:
                return run(batch)
            known = stored.get(batch)
            if known is None:
                return stored.put(batch, run(batch))
            if count is not None:
                count("cached answers", len(batch))
            return known

        for batch, found in self._in_batches(batches, cost, answered):
            answers.update(zip(batch, found, strict=True))
        if count is not None:
            count("requests", len(answers))
        return [answers[i] for i in range(len(answers))]

    def _finite(self, scores: FloatVector) -> FloatVector:
        """`scores`; values that are not finite are refused."""
        if not np.isfinite(scores).all():
            advice = "use dtype: float32" if self.dtype != "float32" else "its weights are damaged; fetch it again"
            raise ModelError(f"model {self.folder.name!r} in {self.dtype} gave scores that are not finite; {advice}")
        return scores


def shorter_type(device: str) -> str | None:
    """The 16-bit type that the device computes in hardware."""
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if device == "cpu" and has_bfloat16() else None


def agreement(left: Sequence[FloatVector], right: Sequence[FloatVector]) -> float:
    """Kendall's tau between two scorings of the same lists, the mean over lists; ties on the left do not count.

    >>> left = [np.array([3, 2, 1], dtype=np.float32)]
    >>> agreement(left, left), agreement(left, [-left[0]])
    (1.0, -1.0)
    """
    taus = []
    for a, b in zip(left, right, strict=True):
        pairs = np.triu_indices(len(a), 1)
        first, second = (np.sign(np.subtract.outer(scores, scores))[pairs] for scores in (a, b))
        if first.any():
            taus.append(float(np.mean((first * second)[first != 0])))
    return float(np.mean(taus)) if taus else 1.0


def check_order(score: Callable[[list[tuple[str, str]]], Iterable[float]], subject: str, causes: str) -> bool:
    """Whether `score` puts relevant documents before irrelevant ones; else a warning with likely causes is logged.

    Args:
        score: (query, document) texts to scores, higher is better.
        subject: what is tried, for the message.
        causes: what is probably wrong.

    >>> check_order(lambda pairs: [float("Paris" in document) for _, document in pairs], "a toy", "it only knows Paris")
    False
    """
    pairs = [(query, document) for query, *documents in OBVIOUS for document in documents]
    scores = list(score(pairs))
    wrong = [place for place in range(0, len(pairs), 2) if not scores[place] > scores[place + 1]]
    for place in wrong:
        query, irrelevant = pairs[place + 1]
        logger.warning(
            "%s FAILED its self-test: for %r it prefers an irrelevant text, %r (%.4f), to a relevant one, %r (%.4f); "
            "likely causes: %s",
            subject, query, irrelevant, scores[place + 1], pairs[place][1], scores[place], causes,
        )  # fmt: skip
    return not wrong


S = TypeVar("S", bound=Scorer)


class Trial(NamedTuple):
    """Scores by which a 16-bit type is judged, where they are others than a model's own `trial`."""

    key: str
    """What is asked."""
    scores: Callable[[Any], list[FloatVector]]
    """The scores of a few fixed lists by a model."""


class _Known(NamedTuple):
    """A model's folder, and what was found out about it."""

    folder: ModelFolder
    facts: dict[Hashable, tuple[str, dict[str, Any]]]
    """The type that was chosen and what a run says of it, by kind of scorer, wanted type, adapter and trial."""


def load_scorer(
    kind: type[S],
    runtime: Runtime,
    name: str,
    revision: str | None,
    dtype: DType,
    adapter: str | None = None,
    trial: Trial | None = None,
) -> S:
    """The scorer of that name, loaded once in `runtime`, tried, and noted in the run.

    `auto` is the device's 16-bit type where it has one and the rankings of `trial` agree in it, else float32.  Adapters
    of one model share its weights.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files of model or adapter are missing, do not load, or do not fit.
    """
    from rerank.models import resolve_model

    known = runtime.resource(
        ("scored model", name, revision), lambda: _Known(resolve_model(name, revision, runtime.home), {})
    )
    folder, device = known.folder, runtime.device
    change = read_adapter(adapter, runtime.home / "models" / "checksums.json") if adapter is not None else None
    options = kind.options_for(folder, change) if change is not None else {}
    subject = (kind.__name__, folder.fingerprint, device, *options.items())
    trials = Trials(runtime.home / "models" / "trials.json", *map(str, (*subject, PATH_VERSION)))
    changed = change.fingerprint if change is not None else ""
    asked = (trial.key,) if trial is not None else ()

    def tried(model: S) -> list[FloatVector]:
        return model.trial() if trial is None else trial.scores(model)

    def fresh() -> S:
        return kind(folder, device=device, threads=runtime.threads, trials=trials, **options)

    def loaded(concrete: str, make: Callable[[], S] = fresh) -> S:
        def load() -> S:
            model = make()
            if model.dtype != concrete:
                model.to(concrete)
            return model

        def fit() -> S:
            model = runtime.resource((*subject, concrete), load)
            return (model if model.has_room_for(change) else load()).adapted(change)

        return fit() if change is None else runtime.resource((*subject, concrete, change.fingerprint), fit)

    def choose() -> tuple[str, dict[str, Any]]:
        facts: dict[str, Any] = {}
        concrete: str = "float32" if dtype == "auto" else dtype
        if dtype == "auto" and (shorter := shorter_type(device)) is not None:

            def agreed() -> float:
                model = fresh()
                before = tried(model.adapted(change))
                model.to(shorter)
                found = round(agreement(before, tried(model.adapted(change))), 4)
                if found >= kind.min_agreement:  # rounded weights do not come back: else only a fresh model has them
                    loaded(shorter, lambda: model)
                return found

            facts["agreement"] = trials.result("agreement", shorter, changed, *asked, run=agreed)
            if facts["agreement"] >= kind.min_agreement:
                concrete = shorter
            else:
                logger.info(
                    "model %s: %s would change rankings (Kendall's tau %.3f, at least %s wanted); float32 is used",
                    name, shorter, facts["agreement"], kind.min_agreement,
                )  # fmt: skip
        holds = trials.result("self-test", concrete, changed, run=lambda: loaded(concrete).order_holds(), keep=bool)
        if holds is not None:
            facts["self-test"] = "passed" if holds else "failed"
        return concrete, facts

    question = (*subject, dtype, changed, *asked)
    if question not in known.facts:
        known.facts[question] = runtime.timed(choose)
    concrete, facts = known.facts[question]
    model = loaded(concrete)
    facts = {**facts, "source": folder.source, "revision": folder.revision, "fingerprint": folder.fingerprint}
    if change is not None:
        facts["adapter"] = change.facts
    subject_name = name if adapter is None else f"{name} with {adapter}"
    runtime.note(f"model {subject_name}", {**facts, "dtype": model.dtype, "device": model.device, "path": model.path})
    return model
