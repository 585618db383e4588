"""A prompt: what is shown to a model, what it may answer, how the answer is read, and what is cut when room is short.

One YAML file is one prompt.  Prompts that come with the package lie in `profiles/`; those that `rerank prompts import`
took from published files lie in the cache root's folder `prompts/`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rerank.artifact import cache_home, fingerprint
from rerank.config import build
from rerank.errors import ConfigError, UnknownNameError, nearest
from rerank.prompts.parsers import LETTERS, PARSERS, Parser, Verb, distinct, numbers
from rerank.yamlfile import Key, dump_yaml, parse_yaml, read_yaml

if TYPE_CHECKING:
    from rerank.prompts.binding import BoundPrompt
    from rerank.yamlfile import Tree

PROFILES = Path(__file__).parent / "profiles"

_SLOT = re.compile(r"\{[A-Za-z_]+\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn of the conversation that the model sees."""

    role: Literal["system", "user", "assistant"]
    content: str
    """The text, with slots.  An assistant's turn at the end is the start of the answer, which the model continues."""
    each: bool = False
    """Whether this turn is repeated for every document, together with the turns beside it that are too."""


@dataclass(frozen=True)
class DocumentFormat:
    """How documents look where several are shown."""

    format: str = "[{label}] {text}"
    """One document, with the slots `{label}` and `{text}`."""
    separator: str = "\n"
    """What stands between two documents."""
    line_breaks: Literal["keep", "blank"] = "keep"
    """Whether runs of line breaks inside a document become one blank, so that no document can begin another one."""


@dataclass(frozen=True)
class Truncation:
    """What is cut when not everything fits: documents first, then the query, never the template."""

    document_tokens: int | None = None
    """What a document may have at most, room or not."""
    query_tokens: int | None = None
    """What the query may have at most, room or not."""
    least_document_tokens: int = 32
    """What documents are cut down to before the query is cut; where the query is cut to nothing, they are cut on."""


@dataclass(frozen=True)
class Slots:
    """How the places for texts are written in the template: other than here in wordings that others published."""

    query: str = "{query}"
    document: str = "{document}"
    """The one document, or the document of a repeated turn."""
    documents: str = "{documents}"
    """All documents, in the document format."""
    count: str = "{count}"
    """How many documents are shown."""
    labels: str = "{labels}"
    """The labels shown, separated by commas."""
    instruction: str = "{instruction}"
    """What counts as relevant; the prompt's own `instruction` unless a request brings one."""
    label: str = "{label}"
    """The document's label, in a repeated turn."""


@dataclass(frozen=True)
class Source:
    """Where the wording comes from, for prompts that released checkpoints were trained with."""

    checkpoints: str
    """The checkpoints, as their authors name them."""
    where: str
    """The paper, file or model card."""
    wording: Literal["published", "own", "imported"]
    """`published`: theirs, byte for byte.  `own`: their layout in this package's words; `rerank prompts import` takes
    the published file.  `imported`: taken from a file."""
    sha256: dict[str, str] = field(default_factory=dict, hash=False)
    """Of the published texts, or a beginning of 16 digits or more: by role (system, user), or by the part of a rank_llm
    file (prefix, suffix, ...)."""
    names: tuple[str, ...] = ()
    """Patterns of the checkpoints' names, without their owners', by which `Reranker` takes this prompt for them."""


@dataclass(frozen=True)
class Prompt:
    """What a model is shown and how its answer is read.

    Raises:
        ConfigError: parts that do not fit each other.

    >>> prompt = load_prompt("yes-no")
    >>> prompt.verb, prompt.labels, prompt.parser, prompt.shows_many
    ('choices', ('yes', 'no'), 'binary', False)
    """

    description: str
    """One line that says what it is for."""
    verb: Verb
    """What is asked of the engine: `choices` (logits of labels), `generate` (text), `likelihood` (of the query)."""
    parser: str
    """How the answer is read; one of `rerank.prompts.parsers.PARSERS`."""
    messages: tuple[Message, ...] = ()
    """The conversation, put into the model's chat template."""
    template: str = ""
    """Plain text instead of `messages`, for models without a chat template."""
    labels: tuple[str, ...] | Literal["numbers", "letters"] = ()
    """The documents' labels where several are shown, else the answers to choose from."""
    values: tuple[float, ...] = ()
    """What the answers are worth, for the parser `expectation`; default 0, 1, 2, ..."""
    document: DocumentFormat = DocumentFormat()
    truncation: Truncation = Truncation()
    max_documents: int | None = None
    """How many documents may be shown at once."""
    instruction: str = ""
    """The text of the slot `{instruction}`."""
    thinking: bool = False
    """Told to chat templates that can switch reasoning on and off (`enable_thinking`)."""
    closing: str = ""
    """What ends reasoning that ran out of room, so that the answer can be asked for."""
    seq2seq: bool = False
    """Whether an encoder-decoder reads it: labels then start the decoder's text, and the prompt ends as inputs do."""
    slots: Slots = Slots()
    source: Source | None = None
    rule: str = ""
    """The rule that it is worded for, where how many documents it shows and how it is read do not tell."""
    name: str = ""
    """The file's name unless given."""

    def __post_init__(self) -> None:
        for key, problem in _problems(self):
            raise PromptError(problem, key)

    @property
    def shows_documents(self) -> bool:
        """Whether documents are shown; else the model writes about the query alone."""
        return PARSERS[self.parser].documents

    @property
    def shows_many(self) -> bool:
        """Whether a request shows a group of documents, else one."""
        return self.documents_slot or any(message.each for message in self.messages)

    @property
    def documents_slot(self) -> bool:
        """Whether the documents stand in one place, in the document format."""
        return any(self.slots.documents in text for _, text in self.texts())

    @property
    def most_documents(self) -> int | None:
        """How many documents a request may show; None where only the model's context limits it."""
        if not self.shows_many:
            return 1 if self.shows_documents else 0
        named = {"numbers": None, "letters": len(LETTERS)}
        n_labels = named[self.labels] if isinstance(self.labels, str) else len(self.labels)
        return min((n for n in (self.max_documents, n_labels) if n is not None), default=None)

    @property
    def usual_rule(self) -> str:
        """The name of the rule that takes this prompt.

        >>> load_prompt("order").usual_rule, load_prompt("yes-no").usual_rule
        ('listwise', 'pointwise')
        """
        if self.rule or not self.shows_many:
            return self.rule or "pointwise"
        rules = {"permutation": "listwise", "group-scores": "groupwise", "label-grades": "groupwise"}
        return rules.get(self.parser, "setwise")

    def shown_labels(self, n: int) -> tuple[str, ...]:
        """The labels of `n` documents shown, or the answers to choose from.

        >>> load_prompt("order").shown_labels(3)
        ('1', '2', '3')
        """
        if self.labels == "numbers":
            return numbers(n)
        labels = LETTERS if isinstance(self.labels, str) else self.labels
        return labels[:n] if self.shows_many else labels

    def texts(self) -> Iterator[tuple[Key, str]]:
        """The template's texts, each with its place in the file."""
        if self.template:
            yield ("template",), self.template
        for i, message in enumerate(self.messages):
            yield ("messages", i, "content"), message.content

    def bind(self, tokenizer: Any) -> BoundPrompt:
        """The prompt ready to make token ids for the models of `tokenizer`, a fast one of transformers.

        Raises:
            ConfigError: the tokenizer lacks a chat template, or cannot tell the labels apart.
        """
        from rerank.prompts.binding import BoundPrompt

        return BoundPrompt(self, tokenizer)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that requests and scores depend on: all but name, description, source and rule."""
        said = {**dataclasses.asdict(self), "name": "", "description": "", "source": None}
        del said["rule"]
        return fingerprint(said)

    def to_yaml(self) -> str:
        """The file that `load_prompt` reads back as an equal prompt."""
        return dump_yaml({name: value for name, value in _tree(self).items() if name != "name"})


class PromptError(ConfigError):
    """A prompt whose parts do not fit, with the place of the misfit in the file."""

    def __init__(self, problem: str, key: Key = ()) -> None:
        super().__init__(problem)
        self.key = key


# -- reading and writing ------------------------------------------------------


def load_prompt(name: str | Path) -> Prompt:
    """The prompt of that name, or of that file: a path has a slash or ends in `.yaml`.

    Names are looked up among the prompts of the package first, then among imported ones.

    Raises:
        UnknownNameError: nothing is called so; the nearest name is given.
        ConfigError: with file, line and key.

    >>> load_prompt("yes-n")
    Traceback (most recent call last):
    rerank.errors.UnknownNameError: no prompt is called 'yes-n'; did you mean 'yes-no'? (...
    """
    text = str(name)
    if isinstance(name, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return prompt_of(read_yaml(Path(text).expanduser()), Path(text).stem)
    known = list_prompts()
    if text not in known:
        hint = f"{nearest(text, known)} (`rerank prompts list` shows all; a file is given as ./{text}.yaml)"
        raise UnknownNameError(f"no prompt is called {text!r}{hint}")
    return prompt_of(read_yaml(known[text]), text)


def list_prompts() -> dict[str, Path]:
    """The file of every prompt that has a name: those of the package, then imported ones.

    >>> "rank-r1" in list_prompts()
    True
    """
    built_in = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    imported = {path.stem: path for path in sorted(imported_folder().glob("*.yaml"))}
    return {**built_in, **{name: path for name, path in imported.items() if name not in built_in}}


def imported_folder() -> Path:
    """Where imported prompts are kept."""
    return cache_home() / "prompts"


def parse_prompt(text: str, origin: str = "<text>") -> Prompt:
    """The prompt of a YAML text.

    >>> parse_prompt('''
    ... description: Query likelihood.
    ... verb: likelihood
    ... parser: likelihood
    ... template: "Passage: {document} Question: {query}"
    ... ''').template
    'Passage: {document} Question: {query}'
    """
    return prompt_of(parse_yaml(text, origin), Path(origin).stem)


def prompt_of(tree: Tree, name: str) -> Prompt:
    """The prompt of a parsed file, called `name` unless the file says otherwise."""
    value = tree.value
    if isinstance(value, dict):
        value = {"name": name, **value}
    try:
        return build(Prompt, value, tree, ())
    except PromptError as error:
        cause = error.__cause__
        if not isinstance(cause, PromptError):
            raise
        raise PromptError(f"{tree.place(cause.key)}: {cause}", cause.key) from None


def _tree(value: Any) -> dict[str, Any]:
    """A dataclass as plain data, without the fields that have their default value."""
    tree: dict[str, Any] = {}
    for each in dataclasses.fields(value):
        item = getattr(value, each.name)
        default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        if item == default:
            continue
        if dataclasses.is_dataclass(item):
            item = _tree(item)
        elif isinstance(item, tuple):
            item = [_tree(part) if dataclasses.is_dataclass(part) else part for part in item]
        tree[each.name] = item
    return tree


# -- checks -------------------------------------------------------------------


def _problems(prompt: Prompt) -> Iterator[tuple[Key, str]]:
    """What is wrong with a prompt, each with its place; the first is reported."""
    if prompt.parser not in PARSERS:
        known = ", ".join(PARSERS)
        yield ("parser",), f"no parser is called {prompt.parser!r}{nearest(prompt.parser, PARSERS)}; known: {known}"
        return
    yield from _template_problems(prompt)
    yield from _slot_problems(prompt)
    yield from _answer_problems(prompt, PARSERS[prompt.parser])
    limits = {"document_tokens": 1, "query_tokens": 1, "least_document_tokens": 0}
    for name, least in limits.items():
        tokens = getattr(prompt.truncation, name)
        if tokens is not None and tokens < least:
            yield ("truncation", name), f"{tokens} tokens; at least {least} are needed"
    if prompt.max_documents is not None and prompt.max_documents < 1:
        yield ("max_documents",), f"{prompt.max_documents} documents; at least 1 is needed"
    if prompt.source is not None and prompt.source.wording == "published":
        yield from _wording_problems(prompt, prompt.source)


def _template_problems(prompt: Prompt) -> Iterator[tuple[Key, str]]:
    if bool(prompt.messages) == bool(prompt.template):
        yield (), "a prompt has either messages or a template"
    for key, text in [*prompt.texts(), (("document", "format"), prompt.document.format)]:
        if found := _CONTROL.search(text):
            yield key, f"the control character {found.group()!r} cannot stand in a template"
    roles = [message.role for message in prompt.messages]
    if "system" in roles[1:]:
        yield ("messages", roles.index("system", 1)), "the system's turn comes first"
    if prompt.messages and "user" not in roles:
        yield ("messages",), "a conversation has a user's turn"
    if prompt.messages and prompt.messages[-1].each:
        yield ("messages", len(roles) - 1), "the last turn is not repeated for each document"
    repeated = [i for i, message in enumerate(prompt.messages) if message.each]
    if repeated and repeated != list(range(repeated[0], repeated[-1] + 1)):
        yield ("messages", repeated[-1]), "turns that are repeated for each document stand side by side"


def _slot_problems(prompt: Prompt) -> Iterator[tuple[Key, str]]:
    slots = dataclasses.asdict(prompt.slots)
    whole = "".join(text for _, text in prompt.texts())
    for key, text in prompt.texts():
        for written in _SLOT.findall(text):
            if written not in slots.values():
                hint = nearest(written, slots.values()) or f"; slots are: {', '.join(slots.values())}"
                yield key, f"there is no slot {written}{hint}"
    for i, message in enumerate(prompt.messages):
        if slots["label"] in message.content and not message.each:
            yield ("messages", i, "content"), f"the slot {slots['label']} stands in turns repeated for each document"
    repeated = [slots["document"] in message.content for message in prompt.messages if message.each]
    n_places = whole.count(slots["document"]) + whole.count(slots["documents"])
    if not prompt.shows_documents:
        if n_places:
            yield ("parser",), f"{prompt.parser} reads what is written about the query; no document can be shown"
    elif n_places != 1:
        yield (), f"{slots['document']} or {slots['documents']} is needed in one place; found in {n_places}"
    elif repeated and not any(repeated):
        yield (), f"turns that are repeated for each document need the slot {slots['document']}"
    if slots["query"] not in whole:
        yield (), f"the slot {slots['query']} is needed"
    if slots["instruction"] in whole and not prompt.instruction:
        yield ("instruction",), f"the slot {slots['instruction']} needs a text: give `instruction`"
    if prompt.documents_slot:
        for written in ("{text}", "{label}"):
            if prompt.document.format.count(written) != 1:
                yield ("document", "format"), f"the slot {written} is needed once"


def _answer_problems(prompt: Prompt, parser: Parser) -> Iterator[tuple[Key, str]]:
    if prompt.verb not in parser.verbs:
        yield ("verb",), f"the parser {prompt.parser} reads answers of {' or '.join(sorted(parser.verbs))}"
    if prompt.shows_many != parser.many:
        reads = "a group of documents" if parser.many else "one document"
        yield ("parser",), f"{prompt.parser} reads answers about {reads}, and the template shows the other"
    yield from _label_problems(prompt, parser)
    if prompt.values and (prompt.parser != "expectation" or len(prompt.values) != len(prompt.labels)):
        yield ("values",), "the parser expectation takes one value a label, other parsers none"
    if prompt.verb == "likelihood":
        last = prompt.template or prompt.messages[-1].content
        if not last.endswith(prompt.slots.query) or sum(t.count(prompt.slots.query) for _, t in prompt.texts()) != 1:
            yield (
                ("verb",),
                f"likelihood scores what ends the template: {prompt.slots.query} stands there, and only there",
            )
        elif prompt.messages and prompt.messages[-1].role != "assistant":
            yield ("messages", len(prompt.messages) - 1), "likelihood scores the assistant's turn, which comes last"
    if prompt.closing and prompt.verb != "generate":
        yield ("closing",), "only generated text has reasoning to close"


def _label_problems(prompt: Prompt, parser: Parser) -> Iterator[tuple[Key, str]]:
    counts = {"none": (0, 0), "one": (1, 1), "two": (2, 2), "several": (2, 100)}
    key: Key = ("labels",)
    if isinstance(prompt.labels, str):
        if parser.labels not in ("documents", "numbers"):
            yield key, f"the parser {prompt.parser} needs a list of answers; {prompt.labels} are names of documents"
        elif parser.labels == "numbers" and prompt.labels != "numbers":
            yield key, f"the parser {prompt.parser} needs numbers"
        elif prompt.parser == "label-grades" and prompt.labels == "numbers":
            yield key, "the parser label-grades needs letters: numbers could not be told from grades"
        elif prompt.labels == "numbers" and prompt.verb == "choices" and prompt.max_documents is None:
            yield key, "numbers to choose from need max_documents: 1 and 10 can start with the same token"
        return
    if parser.labels == "numbers":
        yield key, f"the parser {prompt.parser} needs numbers"
    low, high = counts.get(parser.labels, (2, 1000))
    if not low <= len(prompt.labels) <= high:
        wanted = str(low) if low == high else f"{low} or more"
        yield key, f"the parser {prompt.parser} needs {wanted}; found {len(prompt.labels)}"
    if not distinct(prompt.labels) or not all(label.strip() for label in prompt.labels):
        yield key, "labels must be distinct and not blank"


def _wording_problems(prompt: Prompt, source: Source) -> Iterator[tuple[Key, str]]:
    texts: dict[str, tuple[Key, str]] = {"template": (("template",), prompt.template)}
    for i, message in enumerate(prompt.messages):
        texts.setdefault(message.role, (("messages", i, "content"), message.content))
    for role, digest in source.sha256.items():
        key, text = texts.get(role, (("source", "sha256", role), ""))
        if not same_digest(digest, text):
            yield key, f"the wording differs from the published one (SHA-256 {digest[:16]}...); restore it"


def sha256(text: str) -> str:
    """SHA-256 (hex) of a text in UTF-8.

    >>> sha256("")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def same_digest(digest: str, text: str) -> bool:
    """Whether `text` has the SHA-256 that begins with `digest`, of which 16 digits are enough."""
    return len(digest) >= 16 and sha256(text).startswith(digest.lower())
