"""Examples that a few-shot prompt shows: documents with the queries that people asked for them.

A prompt for writing queries is a template with the slot `{examples}`, and what follows that slot is the form of one
example: the document's place, and at its end the label behind which the query stands.  The examples are the text of the
slot, so they are data: whatever in them reads as a special token or as a slot is plain characters to the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rerank.artifact import write_text
from rerank.config import FilePath
from rerank.data.lines import read_json_lines
from rerank.errors import ConfigError, DataError
from rerank.prompts.prompt import Prompt
from rerank.prompts.tokens import clean
from rerank.ranking import TextSource
from rerank.rules.rule import at_least
from rerank.words import one_line


class Example(NamedTuple):
    """A document and a query that it answers."""

    document: str
    query: str
    docno: str = ""
    """The document's id, where it is one of the collection's."""


@dataclass(frozen=True)
class Examples:
    """Which examples a prompt shows: the prompt's own, those of a file, or ones made of the collection itself.

    Documents of the collection that are shown get no query of their own.

    Raises:
        ConfigError: both a file and bootstrapping, or numbers that make no sense.
    """

    file: FilePath | None = None
    """Lines `{"query": ..., "document": ...}`, or with `docno` in place of `document`; `prompt` names the one prompt
    that shows the example, default all."""
    bootstrap: bool = False
    """Makes them: queries are written for central documents of the largest clusters, with the prompt's own examples,
    and those whose documents rank best on the way back are shown."""
    k: int = 3
    """How many are shown.  Source: the paper."""
    candidates: int = 16
    """Documents that bootstrapping tries."""
    characters: int = 400
    """What of an example's document is shown at most, to the end of a word."""

    def __post_init__(self) -> None:
        at_least("examples", 1, k=self.k, characters=self.characters)
        at_least("examples", self.k, candidates=self.candidates)
        if self.file is not None and self.bootstrap:
            raise ConfigError("examples: either of a file or bootstrapped; leave one out")


def form_of(prompt: Prompt) -> str:
    """What follows the examples in a prompt: the form of one.

    >>> from rerank.prompts import load_prompt
    >>> form_of(load_prompt("duqgen-question"))
    '\\nDocument: {document}\\nRelevant Query:'

    Raises:
        ConfigError: the prompt has no place for examples, or shows something behind the document's label.
    """
    before, slot, form = prompt.template.partition(prompt.slots.instruction)
    del before
    if prompt.verb != "generate" or prompt.shows_documents or not slot or form.count(prompt.slots.query) != 1:
        raise ConfigError(
            f"prompt {prompt.name!r} writes no queries by examples; it needs the verb generate, the parser text, and a "
            "template with the places of examples and then of the document (see duqgen-question)"
        )
    return form


def shown(examples: Sequence[Example], form: str, place: str, characters: int) -> str:
    """The text of a prompt's slot for examples, with the heading of the one that is to be written.

    >>> print(shown([Example("A wing makes lift.", "what makes lift")], "\\nDocument: {d}\\nQuery:", "{d}", 100))
    Example 1:
    Document: A wing makes lift.
    Query: what makes lift
    <BLANKLINE>
    Example 2:

    Args:
        examples: what is shown.
        form: of one example.
        place: how the form writes the document's place.
        characters: of a document at most.
    """
    before, _, after = form.partition(place)
    blocks = [
        f"Example {number}:{before}{clipped(_plain(document), characters)}{after} {_plain(query)}\n\n"
        for number, (document, query, _) in enumerate(examples, 1)
    ]
    return "".join(blocks) + f"Example {len(examples) + 1}:"


def _plain(text: str) -> str:
    return one_line(clean(text))


def clipped(text: str, characters: int) -> str:
    """The beginning of a text, cut at a blank where one is near.

    >>> clipped("lift of a wing", 9), clipped("升力是怎么产生的", 4)
    ('lift of a', '升力是怎')
    """
    if len(text) <= characters:
        return text
    cut = text.rfind(" ", characters // 2, characters + 1)
    return text[: cut if cut > 0 else characters].rstrip()


def own_examples(prompt: Prompt) -> list[Example]:
    """The examples that a prompt shows.

    >>> from rerank.prompts import load_prompt
    >>> own_examples(load_prompt("duqgen-keyword"))[0].query
    'dishwasher white film glasses'
    """
    before, _, after = form_of(prompt).partition(prompt.slots.query)
    example = re.compile(rf"Example \d+:{re.escape(before)}(.*){re.escape(after)} (.*)")
    return [Example(*found.groups()) for found in example.finditer(prompt.instruction)]


def with_examples(prompt: Prompt, examples: Sequence[Example], characters: int) -> Prompt:
    """The prompt with these examples in place of its own."""
    return dataclasses.replace(prompt, instruction=shown(examples, form_of(prompt), prompt.slots.query, characters))


def stored(prompt: Prompt, home: Path) -> Path:
    """The file of a prompt, under a name that its content decides: what engines are given."""
    path = home / "prompts" / "synthesis" / prompt.fingerprint[:32] / f"{prompt.name}.yaml"
    if not path.is_file():
        write_text(path, prompt.to_yaml())
    return path


def read_examples(path: Path, corpus: TextSource) -> list[tuple[str | None, Example]]:
    """The examples of a file, each with the prompt that it is for; None: for all.

    Raises:
        DataError: a line without a query, or whose document is not there; file and line are named.
    """
    return list(_examples(path, corpus))


def _examples(path: Path, corpus: TextSource) -> Iterator[tuple[str | None, Example]]:
    for number, record in read_json_lines(path):
        place = f"{path}:{number}"
        query, document, prompt = record.get("query"), record.get("document"), record.get("prompt")
        if document is None and isinstance(record.get("docno"), str):
            code = int(corpus.ids.find([record["docno"]])[0])
            if code < 0:
                raise DataError(f"{place}: the collection has no document {record['docno']!r}")
            (document,) = corpus.texts(np.array([code]))
        if not all(isinstance(text, str) and text.strip() for text in (query, document)):
            raise DataError(f"{place}: an example has 'query' and 'document' (or 'docno'), texts that are not empty")
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"{place}: prompt must be a prompt's name, found {prompt!r}")
        yield prompt, Example(str(document), str(query), str(record.get("docno") or ""))
