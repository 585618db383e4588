"""Engines that ask a language model by a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank.engines.causal_lm import Sampling
from rerank.engines.engine import Asked, Asker, Engine
from rerank.engines.passages import Passages, Span, token_passages
from rerank.engines.text_model import DType
from rerank.errors import ConfigError
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.causal_lm import CausalLM
    from rerank.prompts.binding import BoundPrompt, PromptRequest
    from rerank.prompts.parsers import Raw


@dataclass(frozen=True, repr=False)
class CausalLMEngine(Engine):
    """A causal language model and a prompt: judged by how likely labels or the query are, or by what it writes."""

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int = 4096
    """Tokens of a prompt at most; documents are cut to fit, then the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"causal_lm: max_tokens is {self.max_tokens}, at least 1 is needed")

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded model with the prompt bound to its tokenizer."""
        if prompt is None:
            raise ConfigError(f"{self.label}: needs a prompt: the name of a profile (rerank prompts list) or a file")
        from rerank.engines.causal_lm import load_causal_lm
        from rerank.prompts.prompt import load_prompt

        model = load_causal_lm(runtime, self.model, self.revision, self.dtype)
        loaded = load_prompt(prompt)
        bound = runtime.resource(("prompt", loaded.fingerprint, model.key), lambda: loaded.bind(model.tokenizer))
        runtime.note("prompt", {"name": prompt, "fingerprint": loaded.fingerprint})
        return _Prompted(self, model, bound)


class _Prompted:
    """A language model with its prompt."""

    kind = ScoreKind.UNKNOWN

    def __init__(self, engine: CausalLMEngine, model: CausalLM, bound: BoundPrompt) -> None:
        self._engine, self._model, self._bound = engine, model, bound
        self.most_documents: int | None = bound.prompt.most_documents
        written = engine.sampling.max_tokens if bound.prompt.verb == "generate" else 0
        self._max_tokens = min(engine.max_tokens, model.limit - written)

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        requests = self._bound.requests([(asked.query, asked.documents) for asked in questions], self._max_tokens)
        runtime.count("truncated documents", sum(request.truncated_documents for request in requests))
        runtime.count("truncated queries", sum(request.truncated_query for request in requests))
        shown = [len(asked.documents) for asked in questions]
        return [
            self._bound.answer(raw, n, runtime.count)
            for raw, n in zip(self._raw(requests, runtime), shown, strict=True)
        ]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return token_passages(self._model.tokenizer, texts, passages)

    def _raw(self, requests: Sequence[PromptRequest], runtime: Runtime) -> Sequence[Raw]:
        verb = self._bound.prompt.verb
        if verb == "choices":
            return self._model.choices(requests, runtime.count)
        if verb == "likelihood":
            return self._model.likelihood(requests, runtime.count)
        written = self._model.generate(requests, self._engine.sampling, runtime.count)
        runtime.count("unfinished answers", sum(each.finish == "length" for each in written))
        return [each.text for each in written]
