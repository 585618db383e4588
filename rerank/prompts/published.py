"""Prompt files that others published, checked by their SHA-256 and turned into prompts of this package.

Two layouts are read: TOML as in ielab/llm-rankers (a system and a user text) and YAML as in castorini/rank_llm (system
message, prefix, body, suffix, and turns of the assistant).  Checkpoints want the words they were trained with, so a
text counts as theirs when its SHA-256 is the one that a prompt of the package knows of them.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rerank.errors import ConfigError
from rerank.prompts.prompt import (
    PROFILES,
    DocumentFormat,
    Message,
    Prompt,
    Slots,
    Source,
    load_prompt,
    same_digest,
    sha256,
)
from rerank.yamlfile import read_yaml

_SLOTS = {
    "query": ("{query}", "{QUERY}"),
    "documents": ("{docs}", "{documents}", "{passages}", "{PASSAGES}"),
    "document": ("{doc_content}", "{document}"),
    "count": ("{num}", "{count}", "{TOPK}"),
    "label": ("{rank}", "{label}"),
}
"""How published wordings write the places for texts."""
_BODIES = ("user", "suffix", "body")


@dataclass(frozen=True)
class Published:
    """The texts of a published prompt file."""

    path: Path
    texts: dict[str, str]
    """By part: system and user; in rank_llm's files system, prefix, body, suffix, prefix_assistant, body_assistant."""
    format: DocumentFormat | None
    """How the file shows documents, where it says so."""


class Imported(NamedTuple):
    """A prompt made of a published file."""

    prompt: Prompt
    like: str
    """The prompt of the package that gave verb, labels, parser and limits."""
    verified: bool
    """Whether the wording is the one that the checkpoints were trained with."""
    remarks: tuple[str, ...]
    """What of the file was not taken."""


def read_published(path: Path) -> Published:
    """The texts of a published prompt file.

    Raises:
        ConfigError: it is in neither layout.
    """
    if path.suffix == ".toml":
        return _read_toml(path)
    if path.suffix in (".yaml", ".yml"):
        return _read_rank_llm(path)
    raise ConfigError(f"{path}: a published prompt is a .toml file of llm-rankers or a .yaml file of rank_llm")


def import_prompt(path: Path, *, like: str | None = None, name: str | None = None, unchecked: bool = False) -> Imported:
    """The prompt with the wording of a published file.

    Args:
        path: the file.
        like: the prompt of the package that gives verb, labels, parser and limits; default the one whose checkpoints
            the wording belongs to.
        name: what the prompt is called; default that prompt's name with `-published`, or the file's name.
        unchecked: take a wording that no prompt of the package knows.

    Raises:
        ConfigError: the file cannot be read, its wording is not known, or it does not fit.
    """
    published = read_published(path)
    known = [like] if like is not None else [each.stem for each in sorted(PROFILES.glob("*.yaml"))]
    candidates = [load_prompt(each) for each in known]
    family = next((each for each in candidates if _is_wording_of(published, each)), None)
    verified = family is not None
    if family is None:
        if like is None or not unchecked:
            raise ConfigError(_unknown(published, candidates[0] if like is not None else None))
        family = candidates[0]
    name = name or (f"{family.name}-published" if verified else path.stem)
    if (PROFILES / f"{name}.yaml").is_file():
        raise ConfigError(f"the package has a prompt called {name!r}; give the imported one another name")
    remarks = []
    shape = family.document if verified else published.format or family.document
    if verified and published.format is not None and published.format != dataclasses.replace(shape, line_breaks="keep"):
        trained = f"the checkpoints were trained with {shape.format!r}"
        remarks.append(f"the file shows documents as {published.format.format!r}; {trained}")
    prompt = _made(published, family, shape, name)
    return Imported(prompt, family.name, verified, tuple(remarks))


def _is_wording_of(published: Published, prompt: Prompt) -> bool:
    digests = prompt.source.sha256 if prompt.source is not None else {}
    both = [part for part in published.texts if part in digests]
    return any(part in _BODIES for part in both) and all(
        same_digest(digests[part], published.texts[part]) for part in both
    )


def _unknown(published: Published, like: Prompt | None) -> str:
    found = ", ".join(f"{part} {sha256(text)[:16]}" for part, text in published.texts.items())
    if like is None:
        return (
            f"{published.path}: no prompt of the package knows this wording (SHA-256: {found}); to take it all the "
            "same, name the prompt whose labels and parser it goes with: --like NAME --unchecked"
        )
    wanted = like.source.sha256 if like.source is not None else {}
    expected = ", ".join(f"{part} {digest[:16]}" for part, digest in wanted.items()) or "none is known"
    return (
        f"{published.path}: this is not the wording of {like.name} (SHA-256: {found}; expected: {expected}); "
        "--unchecked takes it all the same"
    )


def _made(published: Published, family: Prompt, shape: DocumentFormat, name: str) -> Prompt:
    texts = {part: text.replace("{{", "{").replace("}}", "}") for part, text in published.texts.items()}
    messages = [Message("system", texts["system"])] if texts.get("system") else []
    messages += _turns(texts, shape) if "user" not in texts else [Message("user", texts["user"])]
    if family.messages and family.messages[-1].role == "assistant":
        messages.append(family.messages[-1])  # the start of the answer belongs to how it is read
    whole = "".join(message.content for message in messages)
    slots = {
        slot: next((written for written in ways if written in whole), getattr(Slots(), slot))
        for slot, ways in _SLOTS.items()
    }
    source = Source(
        checkpoints=family.source.checkpoints if family.source is not None else "",
        where=f"imported from {published.path.name}",
        wording="imported",
        sha256={part: sha256(text) for part, text in published.texts.items()},
        names=family.source.names if family.source is not None else (),
    )
    if "{documents}" in whole:
        slots["documents"] = "{documents}"
    try:
        return dataclasses.replace(
            family,
            messages=tuple(messages),
            template="",
            document=shape,
            slots=Slots(**slots),
            source=source,
            name=name,
        )
    except ConfigError as error:
        raise ConfigError(f"{published.path}: {error}") from error


def _turns(texts: dict[str, str], shape: DocumentFormat) -> list[Message]:
    """The turns of a rank_llm file: all documents in one turn, or one turn each."""
    body, prefix, suffix = texts["body"], texts.get("prefix", ""), texts.get("suffix", "")
    if "{candidate}" not in body:
        return [Message("user", prefix + body + suffix)]
    if "body_assistant" not in texts:
        joint = "" if not shape.separator else "\n"
        turns = [Message("user", f"{prefix}{{documents}}{joint}{suffix}")]
        if "prefix_assistant" in texts:
            opening = [Message("user", prefix), Message("assistant", texts["prefix_assistant"])]
            turns = [*opening, Message("user", f"{{documents}}{joint}{suffix}")]
        return turns
    turns = [Message("user", prefix), Message("assistant", texts["prefix_assistant"])] if prefix else []
    turns.append(Message("user", body.replace("{candidate}", "{document}"), each=True))
    turns.append(Message("assistant", texts["body_assistant"], each=True))
    return [*turns, Message("user", suffix)]


def _read_toml(path: Path) -> Published:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    texts = {part: _text(values, (f"prompt_{part}", part), path) for part in ("system", "user")}
    if not texts["user"]:
        raise ConfigError(f"{path}: has no user text (`prompt_user` or `user`); is it a prompt file of llm-rankers?")
    prefix = _text(values, ("doc_prefix",), path)
    separator = _text(values, ("doc_separator",), path)
    shape = None
    if prefix or separator:
        prefix = (prefix or "[{num}] ").replace("{label}", "[{label}]").replace("{num}", "{label}")
        shape = DocumentFormat(prefix + "{text}", separator or "\n")
    return Published(path, {part: text for part, text in texts.items() if text}, shape)


def _read_rank_llm(path: Path) -> Published:
    tree = read_yaml(path)
    values = tree.value
    if not isinstance(values, dict) or "method" not in values or "body" not in values:
        raise tree.error((), "a prompt file of rank_llm has `method` and `body`")
    parts = ("system_message", "prefix", "prefix_assistant", "body", "body_assistant", "suffix")
    texts = {part.removesuffix("_message"): _text(values, (part,), path) for part in parts if part in values}
    body = texts["body"].replace("{rank}", "{label}").replace("{candidate}", "{text}")
    separator = "" if body.endswith("\n") else "\n"
    return Published(path, texts, DocumentFormat(body, separator) if "{text}" in body else None)


def _text(values: dict[str, Any], keys: tuple[str, ...], path: Path) -> str:
    for key in keys:
        if key in values:
            if not isinstance(values[key], str):
                raise ConfigError(f"{path}: {key} is not a text")
            return str(values[key])
    return ""
