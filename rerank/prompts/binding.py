"""A prompt bound to a tokenizer: queries and documents to token ids, answers to scores.

What can go wrong is found when the prompt is bound: no chat template, a template that swallows a turn, labels that the
tokenizer cannot tell apart.  What must be cut is cut when a request is made, by tokens, and reported with it; the
template, the labels and the place of the answer always survive.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank.errors import ConfigError, DataError
from rerank.prompts.layout import Layout, Slot, check_count, lay_out
from rerank.prompts.parsers import Verb
from rerank.prompts.reading import Count, opening, read_answer, read_text
from rerank.prompts.room import allotted
from rerank.prompts.tokens import Piece, Reader, Seam, cut

if TYPE_CHECKING:
    from rerank.prompts.parsers import Raw
    from rerank.prompts.prompt import Prompt
    from rerank.rules.rule import Answer

CHUNK = 1_000
"""Requests that are tokenised together."""
REMEMBERED_TOKENS = 2_000_000
"""Token ids of texts that are kept, least recently used going first: most rules show a document several times."""


class PromptRequest(NamedTuple):
    """What an engine is asked."""

    tokens: tuple[int, ...]
    """The prompt, special tokens included."""
    prefix: int
    """How many leading tokens requests of the same query share: any two of them the smaller of their two numbers, which
    differ only where the query had to be cut for want of room."""
    continuations: tuple[tuple[int, ...], ...]
    """Token ids of the labels, or of the query for `likelihood` (of an empty query perhaps none); () for `generate`."""
    verb: Verb
    truncated_documents: int
    """How many documents were cut."""
    truncated_query: bool


class _Asked(NamedTuple):
    """The texts of one request."""

    layout: Layout
    query: str
    documents: Sequence[str]
    labels: tuple[str, ...]
    instruction: str

    def text(self, slot: Slot) -> str:
        """What stands in a slot."""
        if slot.kind == "document":
            return self.documents[slot.place]
        if slot.kind == "labels":
            return ", ".join(self.labels)
        return {"query": self.query, "count": str(len(self.documents)), "instruction": self.instruction}[slot.kind]


class BoundPrompt:
    """A prompt for the models of one tokenizer.

    Args:
        prompt: what is shown and how answers are read.
        tokenizer: a fast tokenizer of transformers.

    Raises:
        ConfigError: the two do not go together.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:
        self.prompt = prompt
        self.tokenizer = tokenizer
        self._reader = Reader(tokenizer)
        self._layouts: dict[int, Layout] = {}
        self._labels: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._known: OrderedDict[tuple[Seam, str], Piece] = OrderedDict()
        self._n_known = 0
        self._lock = Lock()
        self.closing: tuple[int, ...] = tuple(self._reader.template(prompt.closing, "x")) if prompt.closing else ()
        """The tokens that end reasoning which ran out of room."""
        most = prompt.most_documents
        layout = self._layout(2 if most is None else min(2, most))
        if prompt.verb == "choices" or self.chooses_at_the_end:
            self._check_labels(most or 1)
        self.begun = opening(layout.ending)
        """What the prompt itself begins the answer with: a tag of reasoning, or nothing."""

    def _layout(self, n: int) -> Layout:
        if n not in self._layouts:
            self._layouts[n] = lay_out(self.prompt, self.tokenizer, self._reader, n)
        return self._layouts[n]

    # -- labels -------------------------------------------------------------

    def continuations(self, n: int) -> tuple[tuple[int, ...], ...]:
        """The token ids of the labels that `n` documents have, or of the answers to choose from."""
        key = n if self.prompt.shows_many else 1
        if key not in self._labels:
            tail = "" if self.prompt.seq2seq else self._layout(key).tail[-16:]
            if self.closing:
                closing = self.prompt.closing
                tail = closing[self._reader.plain_edges(closing)[1] :][-16:]
            self._labels[key] = tuple(
                tuple(self._reader.template(label, tail)) for label in self.prompt.shown_labels(key)
            )
        return self._labels[key]

    def answer_tokens(self, text: str, n: int) -> tuple[int, ...]:
        """The token ids of an answer about `n` documents, as they go on from the prompt."""
        tail = "" if self.prompt.seq2seq else self._layout(n).tail[-16:]
        return tuple(self._reader.template(text, tail))

    def _check_labels(self, n: int) -> None:
        labels = self.prompt.shown_labels(n)
        first: dict[int, str] = {}
        for label, ids in zip(labels, self.continuations(n), strict=True):
            if not ids or not self._reader.barred.isdisjoint(ids):
                raise ConfigError(f"prompt {self.prompt.name!r}: this tokenizer has no token for the label {label!r}")
            if ids[0] in first:
                token = self.tokenizer.convert_ids_to_tokens(ids[0])
                raise ConfigError(
                    f"prompt {self.prompt.name!r}: the labels {first[ids[0]]!r} and {label!r} start with the same "
                    f"token {token!r} in this tokenizer, so one forward pass cannot tell them apart; take other labels"
                )
            first[ids[0]] = label

    # -- room ---------------------------------------------------------------

    def template_tokens(self, n: int = 1) -> int:
        """How many tokens the prompt about `n` documents has when query and documents are empty, labels included."""
        asked = self._asked("", [""] * n, None)
        empty = sum(len(slot.empty) for slot in asked.layout.slots("query", "document"))
        return self._fixed(asked, self._pieces([asked])) + empty

    def capacity(self, max_tokens: int, document_tokens: int, query_tokens: int = 32) -> int:
        """How many documents of `document_tokens` fit into `max_tokens` beside a query, none of them cut.

        Args:
            max_tokens: prompt and label.
            document_tokens: of each document.
            query_tokens: of the query.
        """

        def fits(n: int) -> bool:
            return self.template_tokens(n) + query_tokens + n * document_tokens <= max_tokens

        low, high = 0, self.prompt.most_documents or max(1, max_tokens // max(1, document_tokens))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def _fixed(self, asked: _Asked, pieces: dict[tuple[Seam, str], Piece]) -> int:
        """The tokens that are never cut: template, labels, and what it says about the documents."""
        layout = asked.layout
        labels = max(map(len, self.continuations(layout.n)), default=0) if self.prompt.verb == "choices" else 0
        said = (pieces[slot.seam, asked.text(slot)] for slot in layout.slots("count", "labels", "instruction"))
        return layout.n_tokens + sum(len(piece.ids) for piece in said) + labels

    # -- requests -----------------------------------------------------------

    def request(
        self, query: str, documents: Sequence[str], max_tokens: int, *, instruction: str | None = None
    ) -> PromptRequest:
        """The request that shows `documents` for `query` in at most `max_tokens` tokens, labels included.

        Args:
            query: the query's text.
            documents: the documents' texts in the order shown.
            max_tokens: of prompt and label, or prompt and query for `likelihood`.
            instruction: what counts as relevant; default the prompt's own.

        Raises:
            ConfigError: the template alone has more than `max_tokens`, or shows no such number of documents.
        """
        return self.requests([(query, documents)], max_tokens, instruction=instruction)[0]

    def requests(
        self, asked: Sequence[tuple[str, Sequence[str]]], max_tokens: int, *, instruction: str | None = None
    ) -> list[PromptRequest]:
        """The requests for many pairs of query and documents, tokenised together; else as `request`."""
        made = []
        for start in range(0, len(asked), CHUNK):
            chunk = [self._asked(*texts, instruction) for texts in asked[start : start + CHUNK]]
            pieces = self._pieces(chunk)
            made += [self._made(one, pieces, max_tokens) for one in chunk]
        return made

    def _asked(self, query: str, documents: Sequence[str], instruction: str | None) -> _Asked:
        n = len(documents)
        check_count(self.prompt, n)
        instruction = self.prompt.instruction if instruction is None else instruction
        return _Asked(self._layout(n), query, documents, self.prompt.shown_labels(n), instruction)

    def _pieces(self, chunk: Sequence[_Asked]) -> dict[tuple[Seam, str], Piece]:
        """The tokens of every text of these requests, tokenised where they are not remembered."""
        keys = ((slot.seam, asked.text(slot)) for asked in chunk for slot in asked.layout.slots())
        wanted: dict[tuple[Seam, str], Piece | None] = dict.fromkeys(keys)
        with self._lock:
            for key in wanted:
                if key in self._known:
                    self._known.move_to_end(key)
                    wanted[key] = self._known[key]
        missing = [key for key, piece in wanted.items() if piece is None]
        found = dict(zip(missing, self._reader.pieces(missing), strict=True))
        with self._lock:
            for key, piece in found.items():
                self._n_known += 0 if key in self._known else len(piece.ids)
                self._known[key] = piece
            while self._n_known > REMEMBERED_TOKENS:
                self._n_known -= len(self._known.popitem(last=False)[1].ids)
        return {key: piece or found[key] for key, piece in wanted.items()}

    def _made(self, asked: _Asked, pieces: dict[tuple[Seam, str], Piece], max_tokens: int) -> PromptRequest:
        layout = asked.layout
        slots = layout.slots()
        found = [pieces[slot.seam, asked.text(slot)] for slot in slots]
        rooms, squeezed = self._rooms(slots, found, max_tokens - self._fixed(asked, pieces), max_tokens)
        tokens: list[int] = []
        prefix: int | None = None
        target: tuple[int, ...] = ()
        cut_documents, cut_query = 0, False
        numbered = iter(zip(slots, found, rooms, strict=True))
        for part in layout.parts:
            if not isinstance(part, Slot):
                tokens += part
                continue
            slot, piece, room = next(numbered)
            ids = cut(piece, room, slot.empty, slot.right)
            shared = slot.kind == "instruction" or (slot.kind == "query" and not squeezed)
            if prefix is None and not shared:
                prefix = len(tokens)
            cut_documents += slot.kind == "document" and room < len(piece.ids)
            cut_query |= slot.kind == "query" and room < len(piece.ids)
            if slot.kind == "query" and self.prompt.verb == "likelihood":
                target = tuple(ids)
            else:
                tokens += ids
        if self.prompt.verb == "choices":
            continuations = self.continuations(layout.n)
        else:
            continuations = (target,) if self.prompt.verb == "likelihood" else ()
        return PromptRequest(tuple(tokens), prefix or 0, continuations, self.prompt.verb, cut_documents, cut_query)

    def _rooms(
        self, slots: Sequence[Slot], pieces: Sequence[Piece], room: int, max_tokens: int
    ) -> tuple[list[int], bool]:
        """How many tokens each slot gets, and whether the query was cut for want of room."""
        kinds = [slot.kind for slot in slots]
        sizes = [len(piece.ids) for piece in pieces]
        found = allotted(kinds, sizes, [len(slot.empty) for slot in slots], self.prompt.truncation, room)
        if isinstance(found, int):
            raise ConfigError(
                f"prompt {self.prompt.name!r} needs {max_tokens - room + found:,} tokens for its template and labels "
                f"with {kinds.count('document')} documents, before any text; max_tokens is {max_tokens:,}: raise it or "
                "show fewer"
            )
        return found

    # -- answers ------------------------------------------------------------

    def answer(self, raw: Raw, n: int, count: Count | None = None) -> Answer:
        """One score a document, higher is better, from what the engine answered; all None where nothing can be read.

        Args:
            raw: the labels' logits for `choices`, a mean log-probability for `likelihood`, the text for `generate`.
            n: how many documents were shown.
            count: is told of `repaired answers`: read in spite of a flaw.

        Raises:
            PipelineError: an answer of another verb.
        """
        return read_answer(self.prompt, raw, n, count, self.begun)

    def text(self, raw: str, count: Count | None = None) -> str:
        """What was written about the query, without its reasoning; empty where nothing is left.

        Args:
            raw: what the engine wrote.
            count: is told of `failed answers`: those that nothing is left of.
        """
        return read_text(self.prompt, raw, count, self.begun)

    @property
    def chooses_at_the_end(self) -> bool:
        """Whether there are answers to choose from after reasoning, else the answer is written."""
        return bool(self.closing and self.prompt.labels) and not self.prompt.shows_many

    def finish(self, request: PromptRequest, trace: Sequence[int]) -> PromptRequest:
        """The request that asks for the answer after reasoning, which is closed by force if it was not finished.

        Where the prompt has answers to choose from they are scored (`choices`), else the model writes on (`generate`).

        Args:
            request: what was asked; its answer ended at `</think>`, or ran out of room.
            trace: the token ids that were generated.

        Raises:
            DataError: the prompt says nothing of how reasoning ends.
        """
        if not self.closing:
            raise DataError(f"prompt {self.prompt.name!r} has no reasoning to finish: its file gives no `closing`")
        finished = "</think>" in self.tokenizer.decode(list(trace))
        tokens = (*request.tokens, *trace, *(() if finished else self.closing))
        if not self.chooses_at_the_end:
            return request._replace(tokens=tokens)
        return request._replace(tokens=tokens, verb="choices", continuations=self.continuations(1))
