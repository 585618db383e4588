"""What every file of a synthesis says at its top: one body, and perhaps a name and a description."""

from __future__ import annotations

from typing import Any, NamedTuple

from rerank.errors import nearest
from rerank.yamlfile import Tree


class Told(NamedTuple):
    """A file's top."""

    name: str
    """Empty where the file gives none."""
    description: str
    body: Any


def told_by(tree: Tree, what: str, body: str) -> Told:
    """The top of a parsed file that is a mapping with that body.

    Args:
        tree: the file.
        what: what it says, for messages.
        body: the key of its body.

    Raises:
        ConfigError: another key, or a name that is no text; with file, line and key path.
    """
    value, keys = tree.value, ("name", "description", body)
    for key, text in value.items():
        if key not in keys:
            hint = nearest(key, keys) or f"; it has {', '.join(keys)}"
            raise tree.error((key,), f"{what} has no option {key!r}{hint}")
        if key != body and not isinstance(text, str):
            raise tree.error((key,), f"expected text; got {text!r}")
    return Told(value.get("name", ""), value.get("description", ""), value[body])
