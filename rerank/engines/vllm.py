"""Causal language models in vLLM, inside this process: the verbs of `causal_lm`, for accelerators and large models.

Written to vLLM 0.33's signatures, as its documentation and its published wheel give them, and tested against a stand-in
with these signatures; vLLM itself needs an accelerator, and this module has never met one.

vLLM plans its own batches, so the last bits of an answer depend on what else is asked.  The head computes in float32,
because 16-bit logits tie.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rerank.artifact import fingerprint
from rerank.engines.cache import NUMBER, VECTOR, Form, RequestCache, Stored, request_key
from rerank.engines.language_model import WRITTEN, Generated, Request, Sampling
from rerank.engines.lora import CONFIG, Adapter, read_adapter
from rerank.engines.scorer import MAX_TOKENS, FloatVector
from rerank.engines.text_model import Count, DType, quiet_loading
from rerank.errors import DataError, ModelError
from rerank.extras import need

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

PATH_VERSION = 1
"""Raised when the way from a request to its answer changes so that stored answers no longer fit."""
_TOGETHER = 1024
"""Requests that are handed over at once; when all are answered, their answers are stored."""
_MOST_LABELS = 1000
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""

Answer = TypeVar("Answer")
Tokens = tuple[int, ...]


class Place(NamedTuple):
    """Where a model runs, and what for."""

    gpus: int = 1
    """How many accelerators share its weights."""
    gpu_memory: float = 0.9
    """The share of each one's memory that is taken."""
    room: int = 4096
    """Tokens of a prompt and what follows it, together."""
    reads_texts: bool = False
    """Whether log-probabilities of given texts are asked for, or of labels of several tokens; else logits of labels."""


class VLLM:
    """A causal language model in vLLM.

    Args:
        folder: its files.
        adapter: a LoRA adapter that answers with it.
        dtype: what it computes in; `auto` is what its configuration says, 16 bits where that is 32.
        place: where it runs.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: vLLM does not load the model, or not the adapter.
    """

    def __init__(self, folder: ModelFolder, adapter: Adapter | None, dtype: DType, place: Place) -> None:
        self._vllm = need("vllm", "vllm", "the engine vllm")
        self.folder, self.dtype, self.place = folder, dtype, place
        self._adapter = adapter
        self._lora = None if adapter is None else self._lora_request(adapter)
        path = str(folder.path)
        try:
            self.tokenizer, n_positions = _outline(path)
            self._room = min(place.room + 1, n_positions)
            self._model = self._vllm.LLM(
                model=path,
                tokenizer=path,
                dtype=dtype,
                seed=0,
                tensor_parallel_size=place.gpus,
                gpu_memory_utilization=place.gpu_memory,
                max_model_len=self._room,
                hf_overrides={"head_dtype": "float32"},
                enable_prefix_caching=True,
                logprobs_mode="raw_logprobs" if place.reads_texts else "processed_logits",
                max_logprobs=_MOST_LABELS,
                **({} if adapter is None else {"enable_lora": True, "max_lora_rank": _rank(adapter)}),
            )
        # vLLM starts processes of its own, whose errors arrive as these.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"model {folder.name!r} ({path}) does not load in vLLM: {type(error).__name__}: {reason[:300]}; "
                "the engine causal_lm may load it"
            ) from error

    # -- verbs ------------------------------------------------------------

    def choices(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[FloatVector]:
        """float32 [labels] for each request: the labels' logits, or, of a model that reads texts, their summed
        log-probabilities.

        Args:
            requests: prompts with one label or more.
            count: is told `requests`, `cached answers`, and of the other prompts `tokens` and `reused tokens`, those
                whose states vLLM still had.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty or too long, or without labels.
            ModelError: vLLM gave no logit of a label.
        """
        labels = [request.continuations for request in requests]
        if not all(each and all(each) for each in labels):
            raise DataError("a request for choices has no labels, or an empty one; give at least one token each")
        prompts = [self._checked(request, max(map(len, request.continuations))) for request in requests]
        if self.place.reads_texts:

            def answers(batch: list[int]) -> list[FloatVector]:
                pairs = [(prompts[i], label) for i in batch for label in labels[i]]
                sums = iter(self._log_probabilities(pairs, count))
                return [np.array([next(sums) for _ in labels[i]], dtype=np.float32) for i in batch]

        else:
            if any(len(label) > 1 for each in labels for label in each):
                raise DataError(
                    f"model {self.folder.name!r} was loaded for labels of single tokens, and one has several; load it "
                    "for texts (Place.reads_texts)"
                )

            def answers(batch: list[int]) -> list[FloatVector]:
                return self._label_logits([(prompts[i], labels[i]) for i in batch], count)

        return self._answers(answers, self._stored("choices", prompts, labels, VECTOR, cache), len(requests), count)

    def likelihood(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[float]:
        """The mean log-probability of each request's continuation given its prompt; 0 for an empty one.

        vLLM computes whole prompts anew for this: what they share is not reused.

        Args:
            requests: prompts with one continuation.
            count: as for `choices`.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty or too long, or not one continuation, or a model that was loaded for
                labels.
        """
        if not self.place.reads_texts:
            raise DataError(f"model {self.folder.name!r} was loaded for labels; load it for texts (Place.reads_texts)")
        wrong = next((request for request in requests if len(request.continuations) != 1), None)
        if wrong is not None:
            n = len(wrong.continuations)
            raise DataError(f"a request for a likelihood has {n} continuations; it takes exactly one")
        asked = [i for i, request in enumerate(requests) if any(request.continuations)]
        texts = [requests[i].continuations[0] for i in asked]
        prompts = [self._checked(requests[i], len(text)) for i, text in zip(asked, texts, strict=True)]

        def means(batch: list[int]) -> list[float]:
            sums = self._log_probabilities([(prompts[i], texts[i]) for i in batch], count)
            return [total / len(texts[i]) for i, total in zip(batch, sums, strict=True)]

        found = self._answers(means, self._stored("likelihood", prompts, texts, NUMBER, cache), len(asked), count)
        answers = [0.0] * len(requests)
        for i, mean in zip(asked, found, strict=True):
            answers[i] = mean
        return answers

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        count: Count | None = None,
        cache: RequestCache | None = None,
    ) -> list[Generated]:
        """What the model writes after each prompt.

        Args:
            requests: prompts; together with `max_tokens` they fit into the room.
            sampling: how tokens are chosen; each prompt draws by a seed of its own, made of the seed and the prompt.
            count: is told `requests`, `cached answers`, and of the others `tokens` of prompts and `generated tokens`.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty, or too long.
        """
        prompts = [self._checked(request, sampling.max_tokens) for request in requests]

        def write(batch: list[int]) -> list[Generated]:
            some = [prompts[i] for i in batch]
            outputs = self._run(some, [self._writing(prompt, sampling) for prompt in some], count)
            written = [self._written(output.outputs[0]) for output in outputs]
            if count is not None:
                count("generated tokens", sum(answer.n_tokens for answer in written))
            return written

        keys = [sampling.key] * len(prompts)
        return self._answers(write, self._stored("generate", prompts, keys, WRITTEN, cache), len(prompts), count)

    @property
    def key(self) -> str:
        """SHA-256 of all that an answer depends on besides the request and what else is asked."""
        adapter = "" if self._adapter is None else self._adapter.fingerprint
        version = str(getattr(self._vllm, "__version__", ""))
        facts = (self.folder.fingerprint, adapter, self.dtype, self._room, self.place.reads_texts, version)
        return fingerprint(["vllm", PATH_VERSION, *map(str, facts)])

    @property
    def limit(self) -> int:
        """The most tokens of a prompt and what follows it; one more is written whatever is asked."""
        return self._room - 1

    # -- asking ------------------------------------------------------------

    def _label_logits(
        self, asked: Sequence[tuple[Tokens, tuple[Tokens, ...]]], count: Count | None
    ) -> list[FloatVector]:
        """Logits of single tokens: all others are ruled out, so that these are the likeliest, which vLLM shows."""
        options = [
            self._vllm.SamplingParams(
                max_tokens=1,
                temperature=0.0,
                allowed_token_ids=sorted({label[0] for label in labels}),
                logprobs=len({label[0] for label in labels}),
                detokenize=False,
            )
            for _, labels in asked
        ]
        answers = []
        for output, (_, labels) in zip(self._run([prompt for prompt, _ in asked], options, count), asked, strict=True):
            shown = output.outputs[0].logprobs[0]
            missing = [label[0] for label in labels if label[0] not in shown]
            if missing:
                raise ModelError(
                    f"model {self.folder.name!r}: vLLM gave no logit of token {missing[0]}, which it was asked for; it "
                    "is perhaps another version than this engine was written for (0.33)"
                )
            answers.append(np.array([shown[label[0]].logprob for label in labels], dtype=np.float32))
        return answers

    def _log_probabilities(self, asked: Sequence[tuple[Tokens, Tokens]], count: Count | None) -> list[float]:
        """The summed log-probability of each text's tokens after its prompt, as parts of a longer prompt."""
        options = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._run([(*prompt, *text) for prompt, text in asked], [options] * len(asked), count)
        return [
            float(sum(output.prompt_logprobs[len(prompt) + step][token].logprob for step, token in enumerate(text)))
            for output, (prompt, text) in zip(outputs, asked, strict=True)
        ]

    def _writing(self, prompt: Tokens, sampling: Sampling) -> Any:
        digest = hashlib.sha256(f"{sampling.seed} ".encode() + np.array(prompt, dtype=np.int32).tobytes()).digest()
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=int.from_bytes(digest[:4], "little") >> 1 if sampling.temperature else None,
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
        )

    def _written(self, output: Any) -> Generated:
        tokens = tuple(output.token_ids)
        ends = {self.tokenizer.eos_token_id, output.stop_reason}
        if output.finish_reason == "stop" and tokens and tokens[-1] in ends:
            tokens = tokens[:-1]
        return Generated(output.text, "stop" if output.finish_reason == "stop" else "length", tokens)

    def _run(self, prompts: Sequence[Tokens], options: Sequence[Any], count: Count | None) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._model.generate(given, list(options), use_tqdm=False, lora_request=self._lora)
        if count is not None:
            count("tokens", sum(map(len, prompts)))
            count("reused tokens", sum(output.num_cached_tokens or 0 for output in outputs))
        return outputs

    def _checked(self, request: Request, more: int) -> Tokens:
        """The prompt, when it fits in with `more` others."""
        if not request.tokens:
            raise DataError("a prompt has no tokens; its template is empty")
        if len(request.tokens) + more > self.limit:
            raise DataError(
                f"a prompt of {len(request.tokens):,} tokens and {more:,} more do not fit into the {self.limit:,} that "
                f"model {self.folder.name!r} was loaded for; make requests with a lower max_tokens"
            )
        return request.tokens

    # -- answers ------------------------------------------------------------

    def _stored(
        self,
        verb: str,
        prompts: Sequence[Tokens],
        rest: Sequence[object],
        form: Form[Answer],
        cache: RequestCache | None,
    ) -> Stored[Answer] | None:
        if cache is None:
            return None
        key, asked = self.key, zip(prompts, rest, strict=True)
        return Stored(cache, [request_key(key, verb, str(prompt), str(more)) for prompt, more in asked], form)

    def _answers(
        self, run: Callable[[list[int]], list[Answer]], stored: Stored[Answer] | None, n: int, count: Count | None
    ) -> list[Answer]:
        """The answer to each request, run in batches of the order given, where they are not stored."""
        answers: list[Answer] = []
        for start in range(0, n, _TOGETHER):
            batch = list(range(start, min(n, start + _TOGETHER)))
            known = None if stored is None else stored.get(batch)
            if known is not None and count is not None:
                count("cached answers", len(batch))
            if known is None:
                known = run(batch) if stored is None else stored.put(batch, run(batch))
            answers += known
        if count is not None:
            count("requests", n)
        return answers

    # -- loading ------------------------------------------------------------

    def _lora_request(self, adapter: Adapter) -> Any:
        if adapter.replaced:
            raise ModelError(
                f"adapter {str(adapter.path)!r} replaces {next(iter(adapter.replaced))} whole, which vLLM does not do; "
                "merge it into its model, or use the engine causal_lm"
            )
        requests = need("vllm.lora.request", "vllm", "the engine vllm")
        return requests.LoRARequest(adapter.name, 1, str(adapter.path))


def _outline(path: str) -> tuple[Any, int]:
    """A model's tokenizer, and how many tokens the model reads."""
    transformers = need("transformers", "vllm", "the engine vllm")
    with quiet_loading():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    positions = int(getattr(config, "max_position_embeddings", None) or MAX_TOKENS)
    return tokenizer, min(positions, int(tokenizer.model_max_length), MAX_TOKENS)


def _rank(adapter: Adapter) -> int:
    """The rank that vLLM must make room for."""
    config = json.loads((adapter.path / CONFIG).read_text(encoding="utf-8"))
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    enough = [each for each in _RANKS if each >= rank]
    if not enough:
        raise ModelError(f"adapter {str(adapter.path)!r} has rank {rank}; vLLM takes {_RANKS[-1]} at most")
    return enough[0]


def load_tokenizer(runtime: Runtime, model: str, revision: str | None) -> Any:
    """The tokenizer of the model of that name, without the model.

    Raises:
        UnknownNameError: the name means nothing.
        MissingExtraError: vLLM is not installed.
        ModelError: its files are missing or cannot be read.
    """
    folder = _folder(runtime, model, revision)
    try:
        return runtime.resource(("tokenizer", folder.fingerprint), lambda: _outline(str(folder.path))[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {model!r} ({folder.path}): {type(error).__name__}: {reason}") from error


def _folder(runtime: Runtime, model: str, revision: str | None) -> ModelFolder:
    from rerank.models import resolve_model

    need("vllm", "vllm", "the engine vllm")
    return runtime.resource(("model folder", model, revision), lambda: resolve_model(model, revision, runtime.home))


def load_vllm(
    runtime: Runtime, model: str, revision: str | None, dtype: DType, adapter: str | None, place: Place
) -> VLLM:
    """The model of that name in vLLM, loaded once in `runtime`.

    Raises:
        UnknownNameError: the name means nothing.
        MissingExtraError: vLLM is not installed.
        ModelError: files that are missing, or that vLLM does not load.
    """
    folder = _folder(runtime, model, revision)
    read = None if adapter is None else read_adapter(adapter, runtime.home / "models" / "checksums.json")
    which = (folder.fingerprint, None if read is None else read.fingerprint, dtype, place)
    loaded = runtime.resource(("vllm", *which), lambda: VLLM(folder, read, dtype, place))
    facts: dict[str, Any] = {"source": folder.source, "revision": folder.revision, "fingerprint": folder.fingerprint}
    if read is not None:
        facts["adapter"] = read.facts
    runtime.note(f"model {model}", {**facts, "dtype": dtype, "device": "vllm", "gpus": place.gpus})
    return loaded
