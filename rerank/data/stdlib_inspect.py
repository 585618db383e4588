"""The documentation of compiled modules, as JSON lines on the standard output.

`stdlib.py` runs this file as a script in a fresh interpreter (`python -I -S`), because a compiled module has no source
to parse and importing it belongs in a process that ends afterwards. It needs nothing but the standard library, and
writes one object a line: `{"missing": module}` for a module that this interpreter lacks, otherwise `{"module", "name",
"kind", "signature", "doc"}`, where `name` is relative to the module (empty for the module itself).
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from typing import NamedTuple

MODULES = (
    "builtins", "array", "atexit", "binascii", "bisect", "bz2", "cmath", "codecs", "collections", "contextvars",
    "csv", "ctypes", "curses", "datetime", "decimal", "errno", "faulthandler", "fcntl", "functools", "gc", "grp",
    "hashlib", "heapq", "hmac", "io", "itertools", "locale", "lzma", "marshal", "math", "mmap", "multiprocessing",
    "operator", "os", "pickle", "pwd", "queue", "random", "re", "resource", "select", "signal", "socket", "sqlite3",
    "ssl", "statistics", "struct", "sys", "syslog", "termios", "threading", "time", "tracemalloc", "types", "typing",
    "unicodedata", "warnings", "weakref", "xml.etree.ElementTree", "xml.parsers.expat", "zlib", "zoneinfo",
)  # fmt: skip
"""The public modules that are compiled, or whose names come from a compiled module beside them."""

_METHODS = (types.MethodDescriptorType, types.ClassMethodDescriptorType, types.BuiltinFunctionType, staticmethod)
_ATTRIBUTES = (types.GetSetDescriptorType, types.MemberDescriptorType)


class Entry(NamedTuple):
    """One documented object; `signature` is None where the object does not tell it."""

    module: str
    name: str
    kind: str  # module, class, function, property
    signature: str | None
    doc: str


def entries(module_name: str) -> Iterator[Entry]:
    """The documented public objects of a module, in the order in which it holds them.

    >>> [entry.signature for entry in entries("math") if entry.name == "sqrt"]
    ['(x, /)']
    """
    module = importlib.import_module(module_name)
    if isinstance(module.__doc__, str):
        yield Entry(module_name, "", "module", None, module.__doc__)
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not _belongs(value, name, module):
            continue
        if inspect.isclass(value):
            yield from _class_entries(module_name, name, value)
        elif inspect.isroutine(value) and isinstance(value.__doc__, str):
            yield Entry(module_name, name, "function", _signature(value), value.__doc__)


def _belongs(value: object, name: str, module: types.ModuleType) -> bool:
    """Whether users know `value` as `name` of `module`, which neither only uses it nor has another name for it."""
    own_name = getattr(value, "__name__", name)
    if own_name != name and getattr(module, own_name, None) is value:
        return False
    if module is not builtins and getattr(builtins, own_name, None) is value:
        return False
    owner = getattr(value, "__module__", None)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return name in listed
    return owner is None or owner == module.__name__ or owner.startswith("_") or module is builtins


def _class_entries(module: str, name: str, cls: type) -> Iterator[Entry]:
    """A class and its compiled members, with those that it inherits from classes of private modules."""
    written_in_python = any(isinstance(member, types.FunctionType) for member in vars(cls).values())
    if isinstance(cls.__doc__, str) and not written_in_python:
        yield Entry(module, name, "class", _signature(cls), cls.__doc__)
    seen: set[str] = set()
    # A private base that a public base has too is documented there.
    elsewhere = {ancestor for base in cls.__mro__[1:] if not _is_private(base) for ancestor in base.__mro__}
    for base in cls.__mro__:
        if base in elsewhere:
            continue
        for member_name, member in vars(base).items():
            if member_name.startswith("_") or member_name in seen:
                continue
            seen.add(member_name)
            if isinstance(member, _METHODS):
                method = getattr(cls, member_name)
                if isinstance(method.__doc__, str):
                    yield Entry(module, f"{name}.{member_name}", "function", _signature(method), method.__doc__)
            elif isinstance(member, _ATTRIBUTES) and isinstance(member.__doc__, str):
                yield Entry(module, f"{name}.{member_name}", "property", None, member.__doc__)


def _is_private(cls: type) -> bool:
    return cls.__module__.startswith("_") or cls.__name__.startswith("_")


def _signature(value: object) -> str | None:
    """The parameters as a caller writes them: without `self`, and without memory addresses of default values.

    Compiled objects carry theirs as a text, which is taken as it stands: `inspect.signature` would evaluate defaults.
    """
    if isinstance(value, types.FunctionType | types.MethodType):
        return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "...", str(inspect.signature(value)))
    text = getattr(value, "__text_signature__", None)
    if not isinstance(text, str):
        return None
    return re.sub(r"^\(\$\w+(, /)?(, )?", "(", text).replace("<unrepresentable>", "...")


def main() -> None:
    """Write the entries of every module of the fixed list."""
    for module in MODULES:
        try:
            lines: list[dict[str, str | None]] = [entry._asdict() for entry in entries(module)]
        except ImportError:
            lines = [{"missing": module}]
        for line in lines:
            sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
