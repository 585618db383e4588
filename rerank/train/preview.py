"""What training would read, before any model loads: groups as the model would be shown them, and what is cut."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rerank.prompts.layout import plain_text
from rerank.train.groups import Groups, Shown, TrainingGroup

if TYPE_CHECKING:
    from rerank.prompts.binding import BoundPrompt
    from rerank.prompts.prompt import Prompt
    from rerank.train.recipe import Recipe

_COLUMNS = 80
_MEASURED = 500
"""Groups whose tokens are counted: their order is random, so the first are a sample."""
_HEAD, _TAIL = 24, 8
"""Lines of an example that are shown from its beginning and from its end."""
_ALL = 1 << 40
_SURROGATES = re.compile(r"[\ud800-\udfff]")
"""Halves of characters, which tokenizers do not read."""


@dataclass(frozen=True)
class Spread:
    """How long texts are, in tokens."""

    mean: float
    p95: int
    """95 of 100 are at most as long."""
    longest: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Spread:
        """The spread of at least one size.

        >>> Spread.of([1, 2, 6])
        Spread(mean=3.0, p95=6, longest=6)
        """
        ordered = sorted(sizes)
        return cls(sum(ordered) / len(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])

    def __str__(self) -> str:
        return f"mean {self.mean:,.1f}, 95 % at most {self.p95:,}, longest {self.longest:,}"


@dataclass(frozen=True)
class TokenCounts:
    """What groups come to in tokens."""

    groups: int
    """Those that were counted."""
    inputs: int
    """What a model reads at once: a group, or a query with one document."""
    documents: int
    whole: Spread
    """Of inputs as long as they are, where room is no limit."""
    cut: Spread
    """Of inputs that fit the room."""
    cut_documents: int
    cut_queries: int


def preview(
    groups: Groups,
    prompt: Prompt | None = None,
    tokenizer: Any = None,
    *,
    recipe: Recipe | None = None,
    max_tokens: int = 512,
    examples: int = 2,
) -> str:
    """The text of a dry run, in 80 columns: the card, token counts, and a few groups as a model would be shown them.

    Args:
        groups: what is learned from.
        prompt: how a language model is shown it; None for pairs of query and document, as cross-encoders read them.
        tokenizer: a fast tokenizer of transformers; None shows texts uncut and counts no tokens.
        recipe: which knows what else takes room and how groups are cut; None for whole groups without answers.
        max_tokens: room for an input, special tokens and labels included.
        examples: how many groups are shown.

    Raises:
        ConfigError: the prompt shows fewer documents than groups have, or has no room for them.
    """
    lines = [str(groups.card())]
    if tokenizer is not None:
        counts = count_tokens(groups, prompt, tokenizer, max_tokens, recipe)
        lines += ["", *_counted(counts, _told(prompt, recipe), max_tokens)]
    for group in groups[:examples]:
        lines += ["", *_example(group, prompt, tokenizer, max_tokens, recipe)]
    return "\n".join(lines)


def count_tokens(
    groups: Groups, prompt: Prompt | None, tokenizer: Any, max_tokens: int, recipe: Recipe | None = None
) -> TokenCounts:
    """The tokens of the first 500 groups; arguments as for `preview`.

    Raises:
        ConfigError: the prompt shows fewer documents than groups have, or has no room for them.
    """
    some = groups[:_MEASURED]
    documents = sum(len(group.documents) for group in some)
    if prompt is None:
        count = _count_texts if _is_apart(recipe) else _count_pairs
        return count(some, documents, tokenizer, max_tokens)
    shown = [each for group in some for each in _inputs(group, prompt, recipe)]
    asked = [(each.query, each.documents) for each in shown]
    bound = prompt.bind(tokenizer)
    answers = [_answer_size(each, bound, recipe) for each in shown]
    whole = [len(request.tokens) for request in bound.requests(asked, _ALL)]
    if any(answers):
        rows = zip(asked, answers, strict=True)
        requests = [bound.request(query, documents, max_tokens - size) for (query, documents), size in rows]
    else:
        requests = bound.requests(asked, max_tokens)
    return TokenCounts(
        len(some),
        len(requests),
        documents,
        Spread.of([size + answer for size, answer in zip(whole, answers, strict=True)]),
        Spread.of([len(each.tokens) + answer for each, answer in zip(requests, answers, strict=True)]),
        sum(request.truncated_documents for request in requests),
        sum(request.truncated_query for request in requests),
    )


def _count_pairs(some: Sequence[TrainingGroup], documents: int, tokenizer: Any, max_tokens: int) -> TokenCounts:
    texts = list(dict.fromkeys(text for group in some for text in (group.query, *group.documents)))
    readable = [_SURROGATES.sub("\ufffd", text) for text in texts]
    encoded = tokenizer(readable, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    sizes = dict(zip(texts, map(len, encoded), strict=True))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    pairs = [(sizes[group.query], sizes[document]) for group in some for document in group.documents]
    room = max_tokens - special
    # As engines cut pairs: the query to three quarters of the room, then the document to what is left.
    queries = [min(query, room - room // 4) for query, _ in pairs]
    kept = [min(query + document, room) for query, (_, document) in zip(queries, pairs, strict=True)]
    return TokenCounts(
        len(some),
        len(pairs),
        documents,
        Spread.of([query + document + special for query, document in pairs]),
        Spread.of([size + special for size in kept]),
        sum(query + document > room for query, (_, document) in zip(queries, pairs, strict=True)),
        sum(query < whole for query, (whole, _) in zip(queries, pairs, strict=True)),
    )


def _count_texts(some: Sequence[TrainingGroup], documents: int, tokenizer: Any, max_tokens: int) -> TokenCounts:
    """For models that read queries and documents each by itself."""
    texts = [text for group in some for text in (group.query, *group.documents)]
    encoded = tokenizer([_SURROGATES.sub("\ufffd", text) for text in texts], verbose=False)["input_ids"]
    sizes = list(map(len, encoded))
    is_query = [place == 0 for group in some for place in range(1 + len(group.documents))]
    cut = [size > max_tokens for size in sizes]
    return TokenCounts(
        len(some),
        len(texts),
        documents,
        Spread.of(sizes),
        Spread.of([min(size, max_tokens) for size in sizes]),
        sum(one and not query for one, query in zip(cut, is_query, strict=True)),
        sum(one and query for one, query in zip(cut, is_query, strict=True)),
    )


def _inputs(group: TrainingGroup, prompt: Prompt, recipe: Recipe | None) -> list[Shown]:
    """What a model is shown at once for a group."""
    return group.shown(many=prompt.shows_many) if recipe is None else recipe.shown(group, prompt)


def _answer_size(shown: Shown, bound: BoundPrompt, recipe: Recipe | None) -> int:
    """How many tokens of the room are kept for an answer, and for the token that ends it."""
    if shown.answer:
        return len(bound.answer_tokens(shown.answer, len(shown.documents))) + 1
    return recipe.answer_tokens if recipe is not None else 0


def _counted(counts: TokenCounts, what: str, max_tokens: int) -> list[str]:
    facts = [
        ("tokens", f"{what}: {counts.inputs:,} inputs of the first {counts.groups:,} groups"),
        ("whole", str(counts.whole)),
        (f"in {max_tokens:,}", str(counts.cut)),
        ("cut", f"{_share(counts.cut_documents, counts.documents)} documents"),
        ("", f"queries of {_share(counts.cut_queries, counts.inputs)} inputs"),
    ]
    lines = []
    for title, text in facts:
        lines += _wrapped(text, f"{title:<10}")
    return lines


def _told(prompt: Prompt | None, recipe: Recipe | None) -> str:
    """What is counted."""
    if prompt is None:
        return "queries and documents by themselves" if _is_apart(recipe) else "pairs of query and document"
    writes = recipe is not None and recipe.trains_text
    return f"prompt {prompt.name!r}{' with room for the answer' if writes else ''}"


def _is_apart(recipe: Recipe | None) -> bool:
    """Whether the model reads queries and documents each by itself."""
    return recipe is not None and recipe.engine.label == "bi_encoder"


def _share(part: int, of: int) -> str:
    return f"{part:,} of {of:,} ({part / of:.1%})"


def _example(
    group: TrainingGroup, prompt: Prompt | None, tokenizer: Any, max_tokens: int, recipe: Recipe | None
) -> list[str]:
    """One group: what is shown, and the documents behind it with their labels."""
    lines = _wrapped(_printable(f"{group.qid}: {group.query}"), "query ")
    first = next(iter(_inputs(group, prompt, recipe)), None) if prompt is not None else None
    if prompt is not None and first is not None:
        shown = _printable(_rendered(first, prompt, tokenizer, max_tokens, recipe)).split("\n")
        body = [each for line in shown for each in _wrapped(line, "  | ", "  | ")]
        if len(body) > _HEAD + _TAIL:
            left_out = f"  | ... {len(body) - _HEAD - _TAIL:,} more lines ..."
            body = [*body[:_HEAD], left_out, *body[-_TAIL:]]
        lines += body
        if first.answer:
            lines += [each for line in first.answer.split("\n") for each in _wrapped(_printable(line), "  > ", "  > ")]
    width = max(map(len, group.docnos))
    lines.append(f"  {'label':>8}  documents, in the order shown")
    for docno, text, label in zip(group.docnos, group.documents, group.labels, strict=True):
        line = f"  {label:>8.4g}  {docno:<{min(width, 24)}}  {' '.join(_printable(text).split())}"
        lines.append(line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 4]} ...")
    return lines


def _rendered(shown: Shown, prompt: Prompt, tokenizer: Any, max_tokens: int, recipe: Recipe | None) -> str:
    if tokenizer is None:
        return plain_text(prompt, shown.query, shown.documents)
    bound = prompt.bind(tokenizer)
    tokens = bound.request(shown.query, shown.documents, max_tokens - _answer_size(shown, bound, recipe)).tokens
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    return text


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    indent = " " * len(first) if rest is None else rest
    return textwrap.wrap(text, _COLUMNS, initial_indent=first, subsequent_indent=indent) or [first.rstrip()]


def _printable(text: str) -> str:
    """A text without what a terminal might obey; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
