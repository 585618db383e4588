"""Typed reading of a request's fields; what is wrong is told with the field's name, never with its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rerank.serve.errors import bad_field

Body = Mapping[str, Any]

_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def kind_of(value: object) -> str:
    """What a JSON value is, in words.

    >>> kind_of(None), kind_of([1])
    ('null', 'a list')
    """
    return "null" if value is None else _NAMES.get(type(value), "something else")


def query_text(body: Body, name: str = "query") -> str:
    """A query: a string, or an object with `text`."""
    value = body.get(name)
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, str):
        said = f"{name} is missing" if name not in body else f"{name} is {kind_of(body[name])}"
        raise bad_field(name, f"{said}; a string is expected")
    if not value.strip():
        raise bad_field(name, f"{name} must not be empty")
    return value


def strings(body: Body, name: str) -> tuple[str, ...]:
    """A list of strings."""
    value = body.get(name)
    if not isinstance(value, list):
        said = f"{name} is missing" if name not in body else f"{name} is {kind_of(value)}"
        raise bad_field(name, f"{said}; a list of strings is expected")
    return tuple(
        value[place] if isinstance(value[place], str) else _no_string(name, value, place) for place in range(len(value))
    )


def _no_string(name: str, value: Sequence[Any], place: int) -> str:
    raise bad_field(name, f"{name}[{place}] is {kind_of(value[place])}; a string is expected")


def one_or_more(body: Body, name: str) -> tuple[str, ...]:
    """A string, or a list of strings."""
    value = body.get(name)
    return (value,) if isinstance(value, str) else strings(body, name)


def flag(body: Body, name: str, *, words: bool = False) -> bool | None:
    """true or false; None where it is null or not given.

    Args:
        body: the request.
        name: the field.
        words: take the strings "true" and "false" too.
    """
    value = body.get(name)
    if words and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value is None or isinstance(value, bool):
        return value
    raise bad_field(name, f"{name} is {kind_of(value)}; true or false is expected")


def integer(body: Body, name: str, least: int) -> int | None:
    """An integer of at least `least`; None where it is null or not given."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_field(name, f"{name} is {kind_of(value)}; an integer is expected")
    if value < least:
        raise bad_field(name, f"{name} is {value if abs(value) < 10**18 else 'far below'}, at least {least} is needed")
    return value


def choice(body: Body, name: str, known: Sequence[str]) -> str | None:
    """One of some words; None where it is null or not given."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value in known:
        return value
    raise bad_field(name, f"{name} must be {' or '.join(known)}")


def text(body: Body, name: str) -> str | None:
    """A string; None where it is null or not given."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise bad_field(name, f"{name} is {kind_of(value)}; a string is expected")


def limited(value: int | None, n: int) -> int:
    """How many of `n` results are wanted: all for none or 0.

    >>> limited(None, 5), limited(0, 5), limited(3, 5), limited(9, 5)
    (5, 5, 3, 5)
    """
    return min(value, n) if value else n
