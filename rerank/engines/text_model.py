"""Sentence-transformers models, fed well: texts tokenised in bulk, sorted by tokens, batched by a budget of tokens.

`SentenceTransformer.encode` sorts by characters and batches by a count of texts, so mixed lengths cost padding, and it
cuts long texts without a word.  Here every batch holds about the same number of tokens, end to end without padding
where the model gives the same states that way, texts that are cut are counted, and special tokens inside a text are
read as plain characters.  Vectors are the same to rounding; a probe at load compares a few and falls back to padded
batches, or to the library's own path, for a model where they are not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rerank.artifact import fingerprint
from rerank.engines.packing import (
    Pack,
    Packing,
    find_packing,
    ordinary_tokens,
    packed_batches,
    padded_inputs,
    position_shift,
    still_agrees,
)
from rerank.engines.products import speed_up
from rerank.engines.trials import Trials
from rerank.errors import ModelError
from rerank.extras import need

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Side = Literal["query", "document"]
Count = Callable[[str, int], None]
Rows = TypeVar("Rows")
FloatMatrix = npt.NDArray[np.float32]

PATH_VERSION = 1
"""Raised when the way from text to vector changes so that stored vectors no longer fit."""
MIN_AGREEMENT = 0.98
"""Kendall's tau, against float32, that a shorter type must reach on the probe texts to be chosen by itself."""
_PROMPTS: dict[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Under which names a model keeps what it wants before texts."""
_TOLERANCE = 1e-4
_LARGE_ENOUGH, _MOST_PADDING = 4096, 0.04
"""Tokens of a batch that is not made larger at the price of more padding than this share of it."""

PROBE_TEXTS = (
    "how do vaccines work",
    "A vaccine trains the immune system to recognise a pathogen before it meets the real one.",
    "mRNA vaccines deliver instructions for making a harmless piece of a viral protein.",
    "side effects of the influenza vaccine in older adults",
    "Antibiotics act on bacteria and do nothing against viruses.",
    "what is the capital of France",
    "Paris has been the seat of French government since the Middle Ages.",
    "Lyon is the third largest city in France and lies on the Rhone.",
    "Berlin became the capital of reunified Germany in 1990.",
    "how are mountains formed",
    "When two continental plates collide, the crust folds and thickens into a mountain range.",
    "Volcanoes build cones out of lava and ash around a vent.",
    "Rivers carve valleys and carry sediment to the sea.",
    "lift of a wing at high angle of attack",
    "Boundary layer separation on the upper surface makes a wing stall.",
    "The drag coefficient of a blunt body at hypersonic speed depends on the shock stand-off distance.",
    "sort a list of dictionaries by a key in Python",
    "sorted() takes a key function that is called once for every element.",
    "A dictionary keeps its insertion order since version 3.7.",
    "TypeError: unhashable type: 'list'",
    "contract law: when is an offer binding?",
    "An offer may be revoked until it is accepted, unless it was promised to stay open.",
    "The court found that the seller had breached an implied warranty.",
    "recipe for sourdough bread",
    "Feed the starter twice a day and keep it warm until it doubles in four hours.",
    "Bake at 240 degrees with steam for the first twenty minutes.",
    "stock market falls as interest rates rise",
    "Central banks raise rates to slow inflation, which makes borrowing dearer.",
    "A bond's price falls when its yield rises.",
    "who wrote the Tempest",
    "Shakespeare's late romances mix comedy with the threat of loss.",
    "The printing press spread through Europe within fifty years.",
)


def prompt_of(prompts: Mapping[str, str], default: str | None, side: Side) -> str:
    """What a model wants before every query or document, of the prompts that it keeps by name.

    >>> prompt_of({"query": "query: ", "passage": "passage: "}, None, "document"), prompt_of({}, None, "query")
    ('passage: ', '')
    """
    name = next((name for name in _PROMPTS[side] if name in prompts), default)
    return prompts.get(name, "") if name is not None else ""


class Tokens(NamedTuple):
    """Tokenised texts, cut to the model's length."""

    ids: list[list[int]]
    lengths: npt.NDArray[np.int64]
    """[n] tokens of each text, prompt and special ones included, before anything was cut."""


class Encoded(NamedTuple):
    """What a model made of some texts."""

    rows: Any
    """A matrix, dense or sparse, with one row a text."""
    lengths: npt.NDArray[np.int64]
    """[n] tokens of each text before anything was cut; 0 where the library's own path does not say."""


@dataclass(frozen=True)
class Identity:
    """What a text's vector depends on besides the text; vectors of equal identities may be compared and reused."""

    model: str
    """Fingerprint of the model's files."""
    dtype: str
    prompt: str
    max_tokens: int
    form: str
    """How the model's output is read: `unit`, `plain`, `sparse`."""
    path: str
    """`packed` or `tokens` (this module's batches, with their version), or `library` (the library's own)."""

    @property
    def key(self) -> str:
        """SHA-256 of all of it."""
        return fingerprint(vars(self))


class TextModel(ABC):
    """A loaded model folder; subclasses say what a batch becomes.

    Raises:
        ModelError: the weights are missing, do not load, or give numbers that are not finite.
    """

    library_class: ClassVar[str]
    """Which of the library's classes a folder must have been saved from."""
    batch_tokens: ClassVar[int]
    """Tokens of a batch on a processor, padding included; an accelerator, which wants more work at a time, gets 16
    times as many."""
    packs: ClassVar[bool] = False
    """Whether what comes first in the model is a plain transformer, which packed batches may be tried with."""

    def __init__(
        self, folder: ModelFolder, *, device: str, dtype: str, threads: int, trials: Trials | None = None
    ) -> None:
        self.folder = folder
        self.trials = trials or Trials()
        """Remembers what was found out about the model."""
        self.device = device
        self.dtype = "float32"
        self._threads = threads
        self.model = self._load()
        self._reader = self.model[0]
        self._tokenizer: Any = getattr(self._reader, "tokenizer", None)
        self._packing: Packing | None = None
        self._reads_itself = self.trials.result("own batches", run=self._agrees_with_library)
        if not self._reads_itself:
            logger.warning("model %s: read through its library's own batches; cut texts are not counted", folder.name)
        elif self.packs:
            with self._computing():
                found = self.trials.result("packing", run=self._tried_packing)
            self._packing = None if found is None else Packing(**found)
        if dtype != "float32":
            self._convert(dtype)
        logger.info("model %s: %s batches", folder.name, self.path)

    # -- loading ------------------------------------------------------------

    @property
    def path(self) -> str:
        """How batches are computed: `packed`, padded by `tokens`, or the `library`'s own way."""
        if not self._reads_itself:
            return "library"
        return "tokens" if self._packing is None else "packed"

    def _tried_packing(self) -> dict[str, Any] | None:
        """How packed batches are called; None where they do not give what the library gives."""
        self._packing = find_packing(
            self._reader.model, self._words(), self._packed_limit, n_types=int(self._tells_types)
        )
        if self._packing is None or not self._agrees_with_library():
            return None
        return asdict(self._packing)

    def _words(self) -> list[int]:
        return ordinary_tokens(self._tokenizer, self._reader.model)

    @property
    def _packed_limit(self) -> int:
        positions = getattr(self._reader.model.config, "max_position_embeddings", None) or sys.maxsize
        return min(int(positions) - position_shift(self._reader.model), int(self.model.max_seq_length or sys.maxsize))

    @property
    def _tells_types(self) -> bool:
        return "token_type_ids" in getattr(self._tokenizer, "model_input_names", ())

    def _convert(self, dtype: str) -> None:
        """Turns the transformer to `dtype`; pooling and what follows it stay in float32."""
        import torch

        (self._reader if self._reads_itself else self.model).to(getattr(torch, dtype))
        self.dtype = dtype
        if self._packing is None:
            return
        packing = self._packing

        def holds() -> bool:
            with self._computing():
                model, types = self._reader.model, int(self._tells_types)
                return still_agrees(packing, model, self._words(), self._packed_limit, n_types=types)

        if self.trials.result("still packed", dtype, run=holds):
            return
        logger.warning("model %s: packed batches do not hold in %s; padded ones are used", self.folder.name, dtype)
        self._packing = None

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Within the block torch has this engine's threads and keeps nothing for gradients."""
        import torch

        with torch_threads(self._threads), torch.inference_mode():
            yield

    @abstractmethod
    def _open(self, path: str) -> Any:
        """The library's model of the folder, in float32."""

    def _load(self) -> Any:
        need("sentence_transformers", "dense", f"the encoder {self.folder.name!r}")
        from safetensors import SafetensorError

        # The library would make one kind of model from another by adding random layers.
        saved = _saved_class(self.folder)
        if saved not in (None, self.library_class):
            raise ModelError(f"model {self.folder.name!r} is a {saved}, a {self.library_class} is needed here")
        try:
            with quiet_loading():
                model = self._open(str(self.folder.path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"model {self.folder.name!r} ({self.folder.path}) does not load as a {self.library_class}: "
                f"{type(error).__name__}: {reason[:300]}; check the folder or fetch the model again"
            ) from error
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=False)
        if not any(True for _ in model.parameters()):
            raise ModelError(f"model {self.folder.name!r} ({self.folder.path}) has no weights; fetch it again")
        if self.device == "cpu":
            speed_up(model)
        return model

    def _agrees_with_library(self) -> bool:
        """Whether own batches give what the library gives, for a few texts under both prompts."""
        first = self._reader
        if not hasattr(first, "preprocess") or not isinstance(getattr(first, "modality_config", None), dict):
            return False
        plain = callable(self._tokenizer) and set(first.modality_config) == {"text"}
        if not plain or getattr(first, "query_expansion", None) is not None:
            return False
        some = list(PROBE_TEXTS[:4])
        try:
            with self._computing():
                return all(
                    np.allclose(
                        self._dense(self._run(some, side).rows), self._dense(self._library(some, side)), atol=_TOLERANCE
                    )
                    for side in _sides()
                )
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            logger.warning("model %s: own batches fail (%s)", self.folder.name, " ".join(str(error).split())[:200])
            return False

    def shorter_type(self) -> str | None:
        """The 16-bit type that the device computes in hardware."""
        import torch

        if self.device.startswith("cuda"):
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return "bfloat16" if self.device == "cpu" and has_bfloat16() else None

    def similarities(self) -> FloatMatrix:
        """float32 [n, n]: the dot products of the probe texts' rows."""
        rows = self._dense(self.read(PROBE_TEXTS, "document").rows)
        return rows @ rows.T

    # -- reading ------------------------------------------------------------

    def prompt(self, side: Side) -> str:
        """The text that the model wants before every query or document."""
        return prompt_of(self.model.prompts, self.model.default_prompt_name, side)

    def identity(self, side: Side) -> Identity:
        """What vectors of that side depend on."""
        path = f"{self.path} {PATH_VERSION}" if self._reads_itself else self.path
        limit = self.limit(side)
        return Identity(self.folder.fingerprint, self.dtype, self.prompt(side), limit, self._form, path)

    @property
    @abstractmethod
    def _form(self) -> str:
        """How outputs are read, for `Identity`."""

    def limit(self, side: Side) -> int:
        """The longest query or document that the model reads, prompt and special tokens included."""
        own = getattr(self._reader, f"{side}_length", None)
        most = int(self.model.max_seq_length or sys.maxsize)
        return min(int(own), most) if own else most

    def tokenise(self, texts: Sequence[str], side: Side) -> Tokens:
        """The token ids of `texts` behind their prompt; special tokens inside a text are split into characters."""
        prompt, limit = self.prompt(side), self.limit(side)
        full = [prompt + text for text in texts] if prompt else list(texts)
        options = {"split_special_tokens": True, "verbose": False, "return_attention_mask": False}
        ids: list[list[int]] = self._tokenizer(full, truncation=False, **options)["input_ids"] if full else []
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        cut = np.flatnonzero(lengths > limit).tolist()
        if cut:
            shorter = self._tokenizer([full[i] for i in cut], truncation=True, max_length=limit, **options)["input_ids"]
            for i, tokens in zip(cut, shorter, strict=True):
                ids[i] = tokens
        return Tokens(ids, lengths)

    def read(self, texts: Sequence[str], side: Side) -> Encoded:
        """What the model makes of `texts`, in their order.

        Raises:
            ModelError: numbers that are not finite.
        """
        with self._computing():
            if self._reads_itself:
                encoded = self._run(texts, side)
            else:
                encoded = Encoded(self._library(list(texts), side), np.zeros(len(texts), dtype=np.int64))
        if not np.isfinite(self._values(encoded.rows)).all():
            advice = "use dtype: float32" if self.dtype != "float32" else "its weights are damaged; fetch it again"
            raise ModelError(f"model {self.folder.name!r} in {self.dtype} gave values that are not finite; {advice}")
        return encoded

    def _counted(self, texts: Sequence[str], side: Side, count: Count | None) -> Any:
        """The rows of `read`, its tokens and cut texts told to `count`."""
        encoded = self.read(texts, side)
        if count is not None:
            limit = self.limit(side)
            count("tokens", int(np.minimum(encoded.lengths, limit).sum()))
            cut = "truncated documents" if side == "document" else "truncated queries"
            count(cut, int((encoded.lengths > limit).sum()))
        return encoded.rows

    def _run(self, texts: Sequence[str], side: Side) -> Encoded:
        tokens = self.tokenise(texts, side)
        sizes = np.fromiter(map(len, tokens.ids), dtype=np.int64, count=len(tokens.ids))
        parts = []
        order = []
        for rows in self._batches(sizes):
            parts += self._batch([tokens.ids[i] for i in rows])
            order.append(rows)
        rows = self._join(parts, np.concatenate(order) if order else np.empty(0, dtype=np.int64))
        return Encoded(rows, tokens.lengths)

    def _batches(self, sizes: npt.NDArray[np.int64]) -> Iterable[npt.NDArray[np.int64]]:
        """The positions of texts in batches, longest first."""
        budget = self.batch_tokens * (1 if self.device == "cpu" else 16)
        if self._packing is None:
            return token_batches(sizes, budget)
        order = np.argsort(-sizes, kind="stable").tolist()
        return map(np.array, packed_batches(order, np.maximum(sizes, 1), budget, self._packing.longest))

    def _batch(self, ids: list[list[int]]) -> list[Any]:
        """One batch's rows, in halves where it does not fit into the device's memory."""
        import torch

        try:
            return [self._read(self._forward(ids))]
        except torch.OutOfMemoryError as error:
            if len(ids) == 1:
                message = (
                    f"model {self.folder.name!r}: one text of {len(ids[0]):,} tokens does not fit on {self.device}"
                )
                raise ModelError(message) from error
        half = len(ids) // 2
        return self._batch(ids[:half]) + self._batch(ids[half:])

    def _forward(self, ids: list[list[int]]) -> Any:
        """The tensor [n, d] of one batch."""
        import torch

        if self._packing is not None and len(ids) > 1:
            return self._pool(self._packed(self._packing, ids))
        width = max(1, *map(len, ids))
        left = getattr(self._tokenizer, "padding_side", "right") == "left"
        padded = np.full((len(ids), width), getattr(self._tokenizer, "pad_token_id", None) or 0, dtype=np.int64)
        mask = np.zeros((len(ids), width), dtype=np.int64)
        for row, tokens in enumerate(ids):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            padded[row, place] = tokens
            mask[row, place] = 1
            if not tokens:  # attention over nothing is not a number
                mask[row, 0] = 1
        features = {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}
        if self._tells_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        features = {name: tensor.to(self.device) for name, tensor in features.items()}
        return self._pool(self._reader({**features, "modality": "text"}))

    def _packed(self, packing: Packing, ids: list[list[int]]) -> dict[str, Any]:
        """What the transformer gives for texts that lie end to end, in the form that the modules after it read."""
        pad = getattr(self._tokenizer, "pad_token_id", None) or 0
        rows = [np.array(tokens or [pad], dtype=np.int64) for tokens in ids]
        types = np.zeros(sum(map(len, rows)), dtype=np.int64) if self._tells_types else None
        states = packing.states(self._reader.model, np.concatenate(rows), Pack([len(row) for row in rows]), types)
        features = padded_inputs(rows, None, pad, self.device)
        inside = features["attention_mask"].bool()
        embeddings = states.new_zeros((*inside.shape, states.shape[-1]))
        embeddings[inside] = states
        return {**features, "token_embeddings": embeddings, "modality": "text"}

    def _pool(self, features: dict[str, Any]) -> Any:
        """The modules after the transformer; in float32, whatever the transformer computes in."""
        features["token_embeddings"] = features["token_embeddings"].float()
        for position, module in enumerate(self.model):
            if position:
                features = module(features)
        return features["sentence_embedding"]

    @abstractmethod
    def _read(self, output: Any) -> Any:
        """One batch's output on the processor."""

    @abstractmethod
    def _join(self, parts: list[Any], order: npt.NDArray[np.int64]) -> Any:
        """All batches as one; row i of their concatenation belongs to text `order[i]`."""

    @abstractmethod
    def _library(self, texts: list[str], side: Side) -> Any:
        """What the library's own `encode` gives."""

    @abstractmethod
    def _dense(self, rows: Any) -> FloatMatrix:
        """Rows as a plain matrix."""

    @abstractmethod
    def _values(self, rows: Any) -> npt.NDArray[np.float32]:
        """The stored numbers of rows."""


def _saved_class(folder: ModelFolder) -> str | None:
    """The library's class that a folder was saved from; None for a plain transformer."""
    if not (folder.path / "modules.json").is_file():
        return None
    config = folder.path / "config_sentence_transformers.json"
    if not config.is_file():
        return "SentenceTransformer"
    try:
        saved = json.loads(config.read_text(encoding="utf-8")).get("model_type", "SentenceTransformer")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"model {folder.name!r}: {config} is not a JSON object ({error}); get it again") from error
    return str(saved)


def _sides() -> tuple[Side, Side]:
    return "query", "document"


def token_batches(sizes: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """The positions of texts in batches of at most `budget` tokens with padding, longest first, at least one each.

    A batch that is large enough ends where more than one in 25 of its tokens would be padding.

    >>> [rows.tolist() for rows in token_batches(np.array([2, 9, 2, 8]), budget=18)]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        width = max(1, int(sizes[order[start]]))
        some = order[start : start + max(1, budget // width)]
        padded = width * np.arange(1, len(some) + 1)
        good = (padded <= _LARGE_ENOUGH) | (np.cumsum(sizes[some]) >= (1 - _MOST_PADDING) * padded)
        stop = start + max(1, int(good.sum()))
        yield order[start:stop]
        start = stop


def rank_agreement(left: FloatMatrix, right: FloatMatrix) -> float:
    """Kendall's tau between two similarity matrices [n, n]: the mean over rows, each without its own column.

    >>> same = np.array([[1, 0.5, 0.2], [0.5, 1, 0.1], [0.2, 0.1, 1]], dtype=np.float32)
    >>> rank_agreement(same, same), rank_agreement(same, -same)
    (1.0, -1.0)
    """
    pairs = np.triu_indices(len(left) - 1, 1)
    taus = []
    for row in range(len(left)):
        others = np.arange(len(left)) != row
        first, second = (np.sign(np.subtract.outer(m[row, others], m[row, others]))[pairs] for m in (left, right))
        # Pairs that tie on the left have no order to keep: a sparse encoder's unrelated texts all score 0.
        if first.any():
            taus.append(float(np.mean((first * second)[first != 0])))
    return float(np.mean(taus)) if taus else 1.0


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: AMX tiles, or the AVX-512 instructions for it."""
    import torch

    # torch has no public name for these questions (2.6 to 2.13).
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(ask() for name in names if (ask := getattr(torch.cpu, name, None)) is not None)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch computes with `threads` threads inside the block and as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Weights load without the library's progress bar and load report; errors are raised as ever."""
    from transformers.utils import logging as library

    level = library.get_verbosity()
    bars = library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


M = TypeVar("M", bound=TextModel)


def loaded(
    kind: type[M],
    runtime: Runtime,
    name: str,
    revision: str | None,
    dtype: DType,
    is_stored: Callable[[Identity], bool] = lambda identity: False,
) -> M:
    """The model of that name, loaded once in this runtime; how it is read is noted in the run.

    The type `auto` is, in this order: that of what is stored, since queries must be read as the documents were; the
    device's 16-bit type where the probe texts keep their order in it; float32.

    Args:
        kind: the engine's class.
        runtime: who keeps it.
        name: catalogue name, folder or hub id.
        revision: of a hub model.
        dtype: what it computes in.
        is_stored: whether documents were read under this identity before.
    """
    from rerank.models import resolve_model

    folder = runtime.resource(("model folder", name, revision), lambda: resolve_model(name, revision, runtime.home))

    trials = Trials(runtime.home / "models" / "trials.json", kind.__name__, folder.fingerprint, runtime.device)

    def load(concrete: str) -> M:
        key = (kind.__name__, folder.fingerprint, concrete, runtime.device)
        return runtime.resource(
            key, lambda: kind(folder, device=runtime.device, dtype=concrete, threads=runtime.threads, trials=trials)
        )

    facts: dict[str, Any] = {}
    if dtype != "auto":
        model = load(dtype)
    else:
        model = load("float32")
        here = model.identity("document")
        stored = next((t for t in ("float32", "bfloat16", "float16") if is_stored(replace(here, dtype=t))), None)
        if stored is not None:
            model = load(stored)
        elif (shorter := model.shorter_type()) is not None:
            float32, other = model, shorter
            agreement = trials.result(
                "agreement", shorter, run=lambda: rank_agreement(float32.similarities(), load(other).similarities())
            )
            facts["agreement"] = round(agreement, 4)
            if agreement >= MIN_AGREEMENT:
                model = load(shorter)
            else:
                said = (
                    f"{shorter} would change rankings (Kendall's tau {agreement:.3f}, at least {MIN_AGREEMENT} wanted)"
                )
                logger.info("model %s: %s; float32 is used", name, said)
    facts |= {"source": folder.source, "revision": folder.revision, "fingerprint": folder.fingerprint}
    runtime.note(f"model {name}", {**facts, "dtype": model.dtype, "device": model.device, "path": model.path})
    return model
