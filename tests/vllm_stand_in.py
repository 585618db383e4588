"""A stand-in for vLLM: its names and defaults (0.33), and answers from the stock model of transformers.

What it knows of vLLM: with `logprobs_mode="processed_logits"` and `allowed_token_ids`, the allowed tokens keep their
logits and all others have none; `prompt_logprobs` has None for the first token; the sampled token is always shown;
a text's end token is the last of its `token_ids`, the text to stop at is in `stop_reason`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ENGINE_ARGUMENTS = {
    "max_model_len", "enable_prefix_caching", "max_logprobs", "logprobs_mode", "enable_lora", "max_lora_rank",
}  # fmt: skip


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    include_stop_str_in_output: bool = False
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        assert self.max_tokens is None or self.max_tokens >= 1
        assert 0.0 <= self.temperature <= 2.0
        assert 0.0 < self.top_p <= 1.0
        assert self.allowed_token_ids is None or self.allowed_token_ids
        assert self.detokenize or not self.stop


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    num_cached_tokens: int | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


@dataclass
class StandIn:
    """What tests want to know of the models that were started, and the calls that were made."""

    started: list[dict[str, Any]] = field(default_factory=list)
    options: list[SamplingParams] = field(default_factory=list)
    lora: list[LoRARequest | None] = field(default_factory=list)
    fails: str = ""
    """The error that starting fails with."""


def install(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts the stand-in where `import vllm` finds it."""
    import importlib.machinery

    seen = StandIn()

    class LLM:
        def __init__(
            self,
            model: str,
            *,
            tokenizer: str | None = None,
            trust_remote_code: bool = False,
            tensor_parallel_size: int = 1,
            dtype: str = "auto",
            seed: int = 0,
            gpu_memory_utilization: float = 0.92,
            hf_overrides: dict[str, Any] | None = None,
            **engine: Any,
        ) -> None:
            if seen.fails:
                raise RuntimeError(seen.fails)
            assert set(engine) <= ENGINE_ARGUMENTS
            assert Path(model).is_dir()
            assert not trust_remote_code
            self._settings = {
                "tensor_parallel_size": tensor_parallel_size, "dtype": dtype, "seed": seed,
                "gpu_memory_utilization": gpu_memory_utilization, "hf_overrides": hf_overrides, **engine,
            }  # fmt: skip
            seen.started.append(self._settings)
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            self._model = AutoModelForCausalLM.from_pretrained(model).eval()
            self._seen: list[list[int]] = []

        @torch.inference_mode()
        def generate(
            self,
            prompts: list[dict[str, list[int]]],
            sampling_params: list[SamplingParams],
            *,
            use_tqdm: bool = True,
            lora_request: LoRARequest | None = None,
        ) -> list[RequestOutput]:
            assert not use_tqdm
            assert len(prompts) == len(sampling_params)
            seen.options += sampling_params
            seen.lora.append(lora_request)
            return [
                self._one(str(i), prompt["prompt_token_ids"], options)
                for i, (prompt, options) in enumerate(zip(prompts, sampling_params, strict=True))
            ]

        def _one(self, name: str, prompt: list[int], options: SamplingParams) -> RequestOutput:
            assert len(prompt) + 1 <= self._settings["max_model_len"]
            assert options.logprobs is None or options.logprobs <= self._settings["max_logprobs"]
            cached = max((_common(prompt, other) for other in self._seen), default=0) // 16 * 16
            self._seen.append(prompt)
            shown = None
            if options.prompt_logprobs is not None:
                assert self._settings["logprobs_mode"] == "raw_logprobs"
                cached = 0
                logits = self._logits(prompt).log_softmax(-1)
                shown = [None, *({t: Logprob(float(logits[i, t]))} for i, t in enumerate(prompt[1:]))]
            output = self._written(prompt, options)
            return RequestOutput(name, prompt, shown, [output], cached)

        def _written(self, prompt: list[int], options: SamplingParams) -> CompletionOutput:
            torch_random = torch.Generator().manual_seed(options.seed or 0)
            tokens: list[int] = []
            logprobs: list[dict[int, Logprob]] | None = None if options.logprobs is None else []
            finish, reason, text = "length", None, ""
            while (
                len(tokens) < (options.max_tokens or 0) and len(prompt) + len(tokens) < self._settings["max_model_len"]
            ):
                logits = self._logits([*prompt, *tokens])[-1].float()
                if options.allowed_token_ids is not None:
                    barred = torch.ones_like(logits, dtype=torch.bool)
                    barred[options.allowed_token_ids] = False
                    logits = logits.masked_fill(barred, -torch.inf)
                if options.temperature:
                    chances = (logits / options.temperature).softmax(-1)
                    token = int(torch.multinomial(chances, 1, generator=torch_random))
                else:
                    token = int(logits.argmax())
                if logprobs is not None:
                    assert options.logprobs is not None
                    values = logits if self._settings["logprobs_mode"] == "processed_logits" else logits.log_softmax(-1)
                    top = [token, *values.topk(options.logprobs).indices.tolist()]
                    logprobs.append({t: Logprob(float(values[t])) for t in top})
                tokens.append(token)
                if token == self._tokenizer.eos_token_id:
                    finish = "stop"
                    break
                if options.detokenize:
                    text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                found = next((stop for stop in options.stop or () if stop in text), None)
                if found is not None:
                    assert options.include_stop_str_in_output
                    finish, reason = "stop", found
                    text = text[: text.index(found) + len(found)]
                    break
            return CompletionOutput(0, text, tokens, None, logprobs, finish, reason)

        def _logits(self, tokens: list[int]) -> torch.Tensor:
            logits: torch.Tensor = self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            return logits

    modules = {"vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "0.33.0"}, "vllm.lora": {}}
    for name, values in {**modules, "vllm.lora.request": {"LoRARequest": LoRARequest}}.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def _common(left: list[int], right: list[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right))
    )
