"""The student that trains an engine's model."""

from __future__ import annotations

from typing import Any

from rerank.engines.engine import Engine, refuse_prompt
from rerank.engines.pairs import BiEncoderEngine, CrossEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.errors import ConfigError
from rerank.runtime import Runtime
from rerank.train.bi_encoder_student import BiEncoderStudent
from rerank.train.causal_lm_student import CausalLMStudent
from rerank.train.cross_encoder_student import CrossEncoderStudent
from rerank.train.student import Student


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
    if isinstance(engine, CrossEncoderEngine | BiEncoderEngine):
        refuse_prompt(engine, prompt)
        student = CrossEncoderStudent if isinstance(engine, CrossEncoderEngine) else BiEncoderStudent
        return student(engine, runtime, **options)
    if isinstance(engine, CausalLMEngine):
        if prompt is None:
            raise ConfigError("causal_lm: needs a prompt: the name of a profile (rerank prompts list) or a file")
        return CausalLMStudent(engine, runtime, prompt, **options)
    raise ConfigError(f"{engine.label}: cannot be trained; take cross_encoder, bi_encoder or causal_lm")
