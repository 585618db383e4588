"""Encoder-decoder language models such as T5: labels at the decoder's start, likelihoods of texts, generated text.

A prompt is encoded once, whatever is asked about it; the decoder reads a few tokens only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rerank.engines.language_model import Generated, Ids, Item, LanguageModel, Request, Sampling
from rerank.engines.packing import Packing, padded_inputs
from rerank.engines.scorer import Trial, load_scorer
from rerank.engines.text_model import DType
from rerank.errors import DataError, ModelError

if TYPE_CHECKING:
    from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

_NOTHING: Ids = np.empty(0, dtype=np.int32)


class EncoderDecoder(LanguageModel):
    """An encoder that reads the prompt, and a decoder with a head over the vocabulary that answers."""

    library_class: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def _checked(self, request: Request, more: int) -> Ids:
        """The prompt's tokens; `more` others are the decoder's."""
        if more + 1 > self.limit:
            raise DataError(
                f"a text of {more + 1:,} tokens does not fit into the {self.limit:,} that the decoder of model "
                f"{self.folder.name!r} reads; make requests with a lower max_tokens"
            )
        return super()._checked(request, 0)

    def _continued(self, request: Request) -> Item:
        text = self._only_continuation(request)
        tokens = self._checked(request, max(0, len(text) - 1))
        return Item(tokens, 0, 1, (np.array(text[:-1], dtype=np.int32),))

    def _cost(self, items: Sequence[Item]) -> int:
        """Tokens that a batch computes."""
        return sum(item.cost for item in items)

    def _states(self, items: list[Item]) -> tuple[Any, int]:
        """float32 [positions, d] that a batch reads, item by item; and the tokens that were computed."""
        inputs = padded_inputs([item.tokens for item in items], None, self._pad(), self.device)
        encoded, mask = self.model.get_encoder()(**inputs).last_hidden_state, inputs["attention_mask"]
        texts = [item.branches or (_NOTHING,) for item in items]
        owners = [i for i, branches in enumerate(texts) for _ in branches]
        if len(owners) > len(items):
            encoded, mask = encoded[owners], mask[owners]
        said = [np.concatenate(([self._start], text)) for branches in texts for text in branches]
        decoded = padded_inputs(said, None, self._pad(), self.device)
        # What fills a row up comes after all that is read, and the decoder looks back only.
        states = self.model.get_decoder()(
            input_ids=decoded["input_ids"], encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state
        rows: list[int] = []
        places: list[int] = []
        row = 0
        for branches in texts:
            # All texts of an item begin alike.
            rows.append(row)
            places.append(0)
            for text in branches:
                rows += [row] * len(text)
                places += range(1, len(text) + 1)
                row += 1
        return states[rows, places].float(), sum(item.cost for item in items)

    def _head_rows(self, tokens: Any) -> tuple[Any, Any]:
        weights, bias = super()._head_rows(tokens)
        more = getattr(self.model, "final_logits_bias", None)
        return weights, bias if more is None else bias + more[0, tokens].float()

    def _write(self, prompts: list[Ids], sampling: Sampling) -> list[Generated]:
        from transformers import GenerationConfig

        ends, listeners = self._listeners(prompts, sampling, 1)
        written = self.model.generate(
            **padded_inputs(prompts, None, self._pad(), self.device),
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                pad_token_id=self._pad(),
                decoder_start_token_id=self._start,
                forced_bos_token_id=self._first,
            ),
            **listeners,
        )
        return ends.answers(written[:, 1:].tolist())

    # -- loading ------------------------------------------------------------

    @property
    def _missing_advice(self) -> str:
        return "it is not an encoder-decoder language model"

    def _find_packing(self) -> Packing | None:
        settings = self.model.generation_config
        names = ("decoder_start_token_id", "bos_token_id")
        starts = (getattr(place, name, None) for name in names for place in (settings, self.model.config))
        start = next((code for code in starts if isinstance(code, int)), None)
        if start is None:
            raise ModelError(
                f"model {self.folder.name!r}: its configuration does not say what decoders start with "
                "(decoder_start_token_id); add it to config.json"
            )
        self._start = start
        self._first = settings.forced_bos_token_id
        self._read_settings()
        self._read_head()
        return None

    def _tried(self) -> tuple[Any, Any]:
        import torch

        words = np.array(self.words()[:8], dtype=np.int32)
        said = torch.tensor([[self._start, *words[:3].tolist()]], device=self.device)
        inputs = padded_inputs([words], None, self._pad(), self.device)
        logits = self.model(**inputs, decoder_input_ids=said, use_cache=False).logits[0, -1]
        states, _ = self._states([Item(words, 0, 1, (words[:3],))])
        return states[-1], logits

    def order_holds(self) -> None:
        """Nothing: such models answer only as they were tuned to, so they are tried together with a prompt."""


def load_encoder_decoder(
    runtime: Runtime,
    model: str,
    revision: str | None = None,
    dtype: DType = "auto",
    adapter: str | None = None,
    trial: Trial | None = None,
) -> EncoderDecoder:
    """The encoder-decoder of that name, loaded once in `runtime`; with the LoRA adapter in the folder `adapter`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: files are missing, do not load, or do not fit.
    """
    return load_scorer(EncoderDecoder, runtime, model, revision, dtype, adapter, trial)
