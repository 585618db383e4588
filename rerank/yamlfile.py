"""YAML as plain data with the place of every value: YAML 1.2 scalars, no tags, no duplicate keys, no bombs.

PyYAML's own resolver follows YAML 1.1, which reads `no` as false and `1e-5` as text; here the scalars of YAML 1.2's
core schema are used, for reading and for writing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NODES = 20_000

Key = tuple[str | int, ...]

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BREAK = re.compile("[\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Tree:
    """A parsed file: its values, and the line of each by its key path."""

    value: Any
    origin: str
    """The file's name for messages."""
    folder: Path
    """What relative paths in the file are relative to."""
    lines: dict[Key, int] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """`file:line: key path`, for the start of an error message."""
        known = key
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        path = show_key(key)
        return f"{self.origin}:{line}: {path}" if path else f"{self.origin}:{line}"

    def error(self, key: Key, what: str) -> ConfigError:
        """A `ConfigError` that names the place of `key`."""
        return ConfigError(f"{self.place(key)}: {what}")


def show_key(key: Key) -> str:
    """A key path as people write it.

    >>> show_key(("stages", 0, "bm25", "k"))
    'stages[0].bm25.k'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def read_yaml(path: Path) -> Tree:
    """The tree of a file.

    Raises:
        ConfigError: no such file, too large, not UTF-8, or not YAML as this module reads it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: has {path.stat().st_size:,} bytes; a configuration has at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})") from error
    return parse_yaml(text, str(path), path.resolve().parent)


def parse_yaml(text: str, origin: str = "<text>", folder: Path | None = None) -> Tree:
    """The tree of a YAML text.

    >>> parse_yaml("a: no\\nb: 1e-5").value
    {'a': 'no', 'b': 1e-05}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Leaves a value untagged where the text gives no tag; YAML 1.1 would give it one."""

        nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.nodes > MAX_NODES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"it has more than {MAX_NODES:,} values", mark)
            return super().compose_node(parent, index)

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            return None

    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{origin}:{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error
    lines: dict[Key, int] = {}
    walker = _Walker(origin, lines)
    value = walker.value(root, (), ()) if root is not None else None
    return Tree(value, origin, folder or Path.cwd(), lines)


class _Walker:
    def __init__(self, origin: str, lines: dict[Key, int]) -> None:
        self.origin = origin
        self.lines = lines
        self.nodes = 0

    def value(self, node: Any, key: Key, above: tuple[int, ...]) -> Any:
        import yaml

        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ConfigError(f"{self.origin}:{line}: expands to more than {MAX_NODES:,} values; are aliases nested?")
        if id(node) in above:
            raise ConfigError(f"{self.origin}:{line}: an alias contains itself")
        if len(above) > 100:
            raise ConfigError(f"{self.origin}:{line}: nested more than 100 levels deep")
        if node.tag is not None:
            raise ConfigError(f"{self.origin}:{line}: the tag {node.tag!r} is not allowed; write plain values only")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, line)
        inside = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, i), inside) for i, item in enumerate(node.value)]
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = self.value(name_node, (), inside)
            at = name_node.start_mark.line + 1
            if not isinstance(name, str):
                raise ConfigError(f"{self.origin}:{at}: the key {name!r} is not text; quote it")
            if name in result:
                raise ConfigError(f"{self.origin}:{at}: the key {name!r} occurs twice; keep one")
            self.lines[(*key, name)] = at
            result[name] = self.value(value_node, (*key, name), inside)
        return result

    def scalar(self, node: Any, line: int) -> Any:
        text: str = node.value
        if node.style is not None:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            if len(text) > 40:
                raise ConfigError(f"{self.origin}:{line}: a number of {len(text)} digits; quote it if it is text")
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


def dump_yaml(value: Any) -> str:
    """`value` (mappings, lists, plain scalars) as YAML that `parse_yaml` reads back as the same value.

    >>> dump_yaml({"stages": [{"bm25": {"k": 100}}, "exclude"]})
    'stages:\\n- bm25:\\n    k: 100\\n- exclude\\n'
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes every text that YAML 1.2 would read as something else."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        ambiguous = any(p.fullmatch(data) for p in (_NULL, _BOOL, _INT, _FLOAT))
        # Single quotes would turn these line breaks into blanks; double ones write them as escapes.
        style = '"' if _BREAK.search(data) else "'" if ambiguous else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def number(dumper: yaml.SafeDumper, data: float) -> yaml.ScalarNode:
        shown = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(data), repr(data))
        if "." not in shown:
            shown = shown.replace("e", ".0e")  # YAML 1.1 would want a tag before 1e-05
        return dumper.represent_scalar("tag:yaml.org,2002:float", shown)

    Dumper.add_representer(str, text)
    Dumper.add_representer(float, number)
    dumped: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return dumped
