"""What a run would ask of an engine, counted without loading its weights: tokens, cuts, and the work that they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from rerank.engines.passages import Passages, Span, token_passages, word_passages
from rerank.rules.judges import Form

if TYPE_CHECKING:
    from rerank.engines.cross_encoder import CrossEncoder
    from rerank.engines.engine import Asked
    from rerank.engines.late_interaction import LateInteraction
    from rerank.engines.scorer import Scorer
    from rerank.prompts.binding import BoundPrompt, PromptRequest
    from rerank.prompts.prompt import Prompt
    from rerank.runtime import Runtime

S = TypeVar("S", bound="Scorer")

CHARACTERS_OF_A_TOKEN = 4
"""What is taken for a token where the tokenizer is not at hand: right for English, too many for most other scripts."""
READING_SHARE = 0.6
"""The share of the measured matrix rate that a model is taken to reach where it reads: 0.56 to 0.72 were found on a
processor, with models of 23 and 135 million weights in both types."""
WRITING_SHARE = 0.1
"""The same where it writes, token by token and bound by reading its weights: 0.11 to 0.16 were found."""
_RATE_SECONDS = 0.3
_ROWS, _WIDTH = 1024, 1024
"""Of the matrix product whose rate is measured."""


class Size(NamedTuple):
    """What one question takes."""

    tokens: int
    """Those that are read: the prompt, and the labels or the query that it is scored on."""
    shared: int = 0
    """How many of them an earlier question of the same call begins with."""
    generated: int = 0
    """Tokens that are written at most."""
    cut_documents: int = 0
    cut_queries: int = 0


@dataclass(frozen=True)
class Work:
    """What a local model computes for a token."""

    weights: int
    """Those of its matrices, but for the vocabulary's."""
    vocabulary_weights: int
    """Those of the head, which a written token meets and a read one does not."""
    attention: int
    """Layers times width: what a token's attention costs for each token that it sees."""
    dtype: str

    def seconds(self, sizes: Iterable[Size], rate: float) -> float:
        """How long questions of these sizes take at `rate` floating-point operations a second.

        >>> Work(weights=10**8, vocabulary_weights=0, attention=0, dtype="float32").seconds([Size(300)], 1e11)
        1.0
        """
        reading = writing = 0.0
        for size in sizes:
            computed = size.tokens - size.shared
            reading += 2.0 * computed * (self.weights + 2.0 * self.attention * size.tokens)
            longest = size.tokens + size.generated
            each = self.weights + self.vocabulary_weights + 2.0 * self.attention * longest
            writing += 2.0 * size.generated * each
        return (reading / READING_SHARE + writing / WRITING_SHARE) / rate


class Price(Protocol):
    """What tokens cost."""

    def of(self, prompt_tokens: int, completion_tokens: int = 0) -> float:
        """The price of so many tokens."""
        ...


@dataclass(frozen=True)
class Meter:
    """An engine with its prompt, ready to be measured."""

    sizes: Callable[[Sequence[Asked]], list[Size]]
    """What each question takes."""
    counted_by: str
    """What tokens are, for people."""
    most_documents: int | None = None
    """How many documents a question may show; None: any number."""
    form: Form = "scores"
    """The form that answers have: rules ask on accordingly."""
    passages: Callable[[Sequence[str], Passages], Iterable[tuple[Span, ...]]] = word_passages
    """Where the passages of each text lie."""
    work: Work | None = None
    """None where another machine computes, or where the files do not tell."""
    price: Price | None = None
    remarks: tuple[str, ...] = field(default=())
    """What a reader of the figures should know."""


# -- meters ------------------------------------------------------------


def by_characters(prompt: str | None, *, generated: int = 0, price: Price | None = None, remark: str = "") -> Meter:
    """A meter for engines whose tokenizer is not here: four characters are a token, and nothing is cut.

    Args:
        prompt: the name or path of a prompt; None where (query, document) pairs are asked.
        generated: tokens that an answer has at most.
        price: of tokens.
        remark: why the tokenizer is not here.
    """
    from rerank.prompts.layout import plain_text
    from rerank.prompts.prompt import load_prompt

    loaded = None if prompt is None else load_prompt(prompt)

    def sizes(questions: Sequence[Asked]) -> list[Size]:
        texts = (
            plain_text(loaded, each.query, each.documents) if loaded else "".join((each.query, *each.documents))
            for each in questions
        )
        return [Size(-(-len(text) // CHARACTERS_OF_A_TOKEN), generated=generated) for text in texts]

    counted_by = f"{CHARACTERS_OF_A_TOKEN} characters a token, nothing cut"
    remarks = (remark,) if remark else ()
    if loaded is None:
        return Meter(sizes, counted_by, price=price, remarks=remarks)
    return Meter(sizes, counted_by, loaded.most_documents, answer_form(loaded), price=price, remarks=remarks)


def by_prompt(
    bound: BoundPrompt,
    max_tokens: int,
    *,
    generated: int = 0,
    samples: int = 1,
    work: Work | None = None,
    price: Price | None = None,
) -> Meter:
    """A meter for a prompt that is bound to its model's tokenizer.

    Args:
        bound: the prompt.
        max_tokens: of a prompt.
        generated: tokens that an answer has at most, all samples together.
        samples: how often a prompt is read.
        work: what the model computes.
        price: of tokens.
    """

    def sizes(questions: Sequence[Asked]) -> list[Size]:
        seen: set[tuple[int, ...]] = set()
        made = []
        for request in bound.requests([(each.query, each.documents) for each in questions], max_tokens):
            # Where answers are written every prompt is read by itself.
            prompt = request.tokens if request.verb != "generate" else ()
            prefix = prompt[: request.prefix]
            # Another continuation of a prompt shares all of it, another prompt of a query what these have in common.
            shared = next((len(some) for some in (prompt, prefix) if some in seen), 0)
            seen.update((prefix, prompt))
            cuts = request.truncated_documents, int(request.truncated_query)
            made.append(Size(samples * _read_tokens(request), shared, generated, *cuts))
        return made

    return Meter(
        sizes,
        "the model's tokenizer",
        bound.prompt.most_documents,
        answer_form(bound.prompt),
        lambda texts, passages: token_passages(bound.tokenizer, texts, passages),
        work,
        price,
    )


def by_pairs(model: CrossEncoder, work: Work, max_tokens: int | None = None) -> Meter:
    """A meter for a cross-encoder without weights."""

    def sizes(questions: Sequence[Asked]) -> list[Size]:
        tokens = model.tokenise([(each.query, each.documents[0]) for each in questions], max_tokens)
        made = [
            Size(int(size), cut_documents=int(length > size))
            for size, length in zip(tokens.sizes, tokens.lengths, strict=True)
        ]
        if made:
            made[0] = made[0]._replace(cut_queries=tokens.cut_queries)
        return made

    return Meter(
        sizes,
        "the model's tokenizer",
        1,
        passages=lambda texts, passages: token_passages(model.tokenizer, texts, passages),
        work=work,
    )


def by_texts(model: LateInteraction, work: Work, max_tokens: int | None) -> Meter:
    """A meter for a late-interaction model without weights, which reads each query and each document once a call."""

    def sizes(questions: Sequence[Asked]) -> list[Size]:
        queries = model.tokenise([each.query for each in questions], "query")
        documents = model.tokenise([each.documents[0] for each in questions], "document", max_tokens)
        seen: set[tuple[str, str]] = set()
        made = []
        for i, each in enumerate(questions):
            texts = (
                (("query", each.query), len(queries.ids[i])),
                (("document", each.documents[0]), len(documents.ids[i])),
            )
            shared = sum(size for text, size in texts if text in seen)
            seen.update(text for text, _ in texts)
            cuts = int(documents.is_cut[i]), int(queries.is_cut[i])
            made.append(Size(sum(size for _, size in texts), shared, 0, *cuts))
        return made

    return Meter(
        sizes,
        "the model's tokenizer",
        1,
        passages=lambda texts, passages: token_passages(model.tokenizer, texts, passages),
        work=work,
    )


def answer_form(prompt: Prompt) -> Form:
    """The form of the answers to a prompt.

    >>> from rerank.prompts import load_prompt
    >>> answer_form(load_prompt("rank-r1")), answer_form(load_prompt("order"))
    ('pick', 'order')
    """
    if prompt.parser in ("think-answer-pick", "answer-pick"):
        return "pick"
    return "order" if prompt.parser == "permutation" else "scores"


def _read_tokens(request: PromptRequest) -> int:
    """The tokens that a scorer computes for a request, its last one's aside: that is not read."""
    return len(request.tokens) + sum(max(0, len(each) - 1) for each in request.continuations)


# -- work ------------------------------------------------------------


def outlined(kind: type[S], name: str, revision: str | None, runtime: Runtime) -> S:
    """The model of that name without its weights, which are neither downloaded nor opened.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: its configuration or tokenizer cannot be had.
    """
    from rerank.models.resolve import ModelFolder, locate_model

    def load() -> S:
        found = locate_model(name, revision, runtime.home, weights=False)
        return kind.without_weights(ModelFolder(found.path, name, found.source, found.revision, fingerprint=""))

    return runtime.resource(("without weights", kind.__name__, name, revision), load)


def work_of(model: Scorer, dtype: str, device: str) -> Work:
    """What a model computes; it may be one without weights."""
    from torch import nn

    from rerank.engines.scorer import shorter_type

    base, head = model.model.base_model, model.model.get_output_embeddings()
    embedded = {id(part.weight) for part in base.modules() if isinstance(part, nn.Embedding)}
    weights = sum(part.numel() for part in base.parameters() if part.dim() > 1 and id(part) not in embedded)
    config = model.model.config
    attention = int(config.num_hidden_layers) * int(config.hidden_size)
    resolved = (shorter_type(device) or "float32") if dtype == "auto" else dtype
    return Work(weights, 0 if head is None else head.weight.numel(), attention, resolved)


def matrix_rate(dtype: str, device: str, threads: int) -> float:
    """Floating-point operations a second of a linear layer, tried for 0.3 seconds."""
    import torch

    from rerank.engines.products import speed_up
    from rerank.engines.text_model import torch_threads

    with torch_threads(threads), torch.inference_mode():
        layer = torch.nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=getattr(torch, dtype), device=device)
        speed_up(layer)
        rows = torch.ones((_ROWS, _WIDTH), dtype=layer.weight.dtype, device=device)

        def multiply() -> None:
            layer(rows)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        multiply()
        products, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < _RATE_SECONDS:
            multiply()
            products += 1
    return 2.0 * products * _ROWS * _WIDTH**2 / taken
