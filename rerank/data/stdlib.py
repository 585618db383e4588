"""The documents of the embedded collection `stdlib`: Python's own documentation, read from the interpreter at hand.

Modules written in Python are parsed, never imported. Compiled modules have no source, so a child process imports a
fixed list of them (`stdlib_inspect.py`) and writes down their docstrings. A document's id is its qualified name as a
user writes it after importing the module (`os.walk`, `asyncio.Queue.get`, and for built-ins `sorted`, `str.split`);
its title adds the signature; its text is the docstring.

What is left out: names with a leading underscore (all `__dunder__` methods too: the docstring of `__init__` is added
to its class), tests, codec tables, bundled and deprecated internals, docstrings of fewer than three words, and
duplicates:

- of documents with the same text and the same last name in one top-level module (`io.IOBase.close`,
  `io.RawIOBase.close`) the one with the shortest id stays, because such texts are inherited or re-exported;
- a text that more than `_BOILERPLATE` different names share says nothing about any of them, and all of them go.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rerank.data import stdlib_inspect
from rerank.data.corpus import Document
from rerank.errors import DataError

logger = logging.getLogger(__name__)

_LEFT_OUT = frozenset({
    "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "msilib", "pydoc_data", "turtledemo",
    "test", "tests",
})  # fmt: skip
"""Folders that are not read, at any depth."""

_INTERNAL = frozenset({"genericpath", "ntpath", "nturl2path", "sre_compile", "sre_constants", "sre_parse"})
"""Modules that count as private although their names have no underscore."""

_PUBLIC_NAMES = {"posixpath": "os.path"}
"""Modules that a user knows under another name."""

_HIDDEN_EXPORTS = (
    ("collections.abc", "_collections_abc"),
    ("concurrent.futures", "concurrent.futures.process"),
    ("concurrent.futures", "concurrent.futures.thread"),
    ("decimal", "_pydecimal"),
    ("io", "_pyio"),
    ("unittest", "unittest.async_case"),
)
"""(module, where its names are written): re-exports made in a way that a parser cannot see."""

_BOILERPLATE = 4
_FEWEST_WORDS = 3
_CHILD_SECONDS = 120.0  # it takes a fifth of one


class StdlibCounts(NamedTuple):
    """What went into a reading of the standard library and what did not."""

    documents: int
    parsed: int  # Python modules read
    inspected: int  # compiled modules read
    unreadable: tuple[str, ...]  # Python modules that cannot be read or parsed
    missing: tuple[str, ...]  # compiled modules of the fixed list that this interpreter lacks
    duplicates: int  # documents left out because another one has the same text


class _Entry(NamedTuple):
    module: str
    document: Document


class _Definition(NamedTuple):
    """A class or function of a module, or a member of a class."""

    name: str
    kind: str  # class, function, property
    parameters: str  # in parentheses, as a caller writes them; empty where there are none to write
    docstring: str
    bases: list[str]
    members: list[_Definition]


class _Name(NamedTuple):
    """A name in a module."""

    module: str
    name: str


class _Import(NamedTuple):
    """`from origin import name as public`; the name may be `*`."""

    origin: str
    name: str
    public: str


class _Source(NamedTuple):
    """What a module written in Python defines, imports from other modules and says about itself."""

    name: str
    docstring: str | None
    definitions: dict[str, _Definition]
    imports: list[_Import]
    listed: frozenset[str]  # the names that `__all__` spells out; empty where there is none or it is computed

    @property
    def public_name(self) -> str | None:
        """The name that a user imports, `None` for an internal module."""
        if self.name in _INTERNAL or (_is_private(self.name) and self.name != "__future__"):
            return None
        return _PUBLIC_NAMES.get(self.name, self.name)


def stdlib_id() -> str:
    """The collection's id, which names the Python version whose documentation it holds.

    >>> stdlib_id() == f"stdlib-{sys.version_info.major}.{sys.version_info.minor}"
    True
    """
    return f"stdlib-{sys.version_info.major}.{sys.version_info.minor}"


def read_stdlib(folder: Path | None = None) -> tuple[list[Document], StdlibCounts]:
    """The documents, by module and then in source order, and what was counted on the way.

    The same interpreter gives the same documents in the same order every time. Takes a few seconds.

    Args:
        folder: where the Python sources lie; by default the standard library of this interpreter.

    Raises:
        DataError: the folder holds no Python module, or the child process that reads the compiled modules fails.

    >>> documents, counts = read_stdlib()
    >>> {document.id: document.title for document in documents}["os.walk"]
    'os.walk(top, topdown=True, onerror=None, followlinks=False)'
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    sources, unreadable = _read_sources(root)
    if not sources:
        message = f"no Python module in {str(root)!r}: expected the sources of the standard library; give their folder"
        raise DataError(message)
    compiled, missing = _read_compiled({*sources, *stdlib_inspect.MODULES})
    entries: dict[str, _Entry] = {}
    for entry in [*_source_entries(sources), *compiled]:
        if len(re.findall(r"\w+", entry.document.text)) >= _FEWEST_WORDS:
            entries.setdefault(entry.document.id, entry)
    kept = _without_duplicates(entries.values())
    kept.sort(key=lambda entry: (entry.module, entry.document.id != entry.module))
    counts = StdlibCounts(
        documents=len(kept),
        parsed=len(sources),
        inspected=len(stdlib_inspect.MODULES) - len(missing),
        unreadable=tuple(unreadable),
        missing=tuple(missing),
        duplicates=len(entries) - len(kept),
    )
    logger.info("%s: %s", stdlib_id(), counts)
    return [entry.document for entry in kept], counts


def _is_private(qualified_name: str) -> bool:
    return any(part.startswith("_") for part in qualified_name.split("."))


# Python modules


def _read_sources(root: Path) -> tuple[dict[str, _Source], list[str]]:
    """The modules under `root` by name, in the order of names, and the names of those that do not parse."""
    sources: dict[str, _Source] = {}
    unreadable: list[str] = []
    for path in _source_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        if is_package:
            parts = parts[:-1]
        name = ".".join(parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a source's own invalid escapes
                # From bytes, so that the source's own encoding declaration counts.
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            logger.warning("%s is left out, it cannot be read: %s", path, error)
            unreadable.append(name)
        else:
            sources[name] = _source(name, tree, package=parts if is_package else parts[:-1])
    return dict(sorted(sources.items())), sorted(unreadable)


def _source_files(root: Path) -> Iterator[Path]:
    """The files under `root` that can be imported from it, without those that are left out."""

    def counts(name: str) -> bool:
        # What is no identifier (`site-packages`, `lib-dynload`) is no module.
        return name.isidentifier() and name not in _LEFT_OUT

    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if counts(name)]
        for name in files:
            path = Path(folder, name)
            if path.suffix == ".py" and counts(path.stem) and path != root / "__init__.py":
                yield path


def _source(name: str, tree: ast.Module, *, package: tuple[str, ...]) -> _Source:
    """The parts of a parsed module that matter here; `package` is what its relative imports start from."""
    definitions: dict[str, _Definition] = {}
    for definition in _definitions(tree.body, in_class=False):
        known = definitions.get(definition.name)
        if known is None or not known.docstring:
            definitions[definition.name] = definition
    imports = [_Import(origin, "*", "*") for module, origin in _HIDDEN_EXPORTS if module == name]
    listed: set[str] = set()
    for node in _statements(tree.body):
        match node:
            case ast.ImportFrom(level=level):
                start = package[: len(package) - level + 1] if level else ()
                origin = ".".join([*start, *([node.module] if node.module else [])])
                imports.extend(_Import(origin, alias.name, alias.asname or alias.name) for alias in node.names)
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=names) | ast.Tuple(elts=names))
                | ast.AugAssign(target=ast.Name(id="__all__"), value=ast.List(elts=names) | ast.Tuple(elts=names))
            ):
                listed.update(n.value for n in names if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return _Source(name, ast.get_docstring(tree), definitions, imports, frozenset(listed))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, with those inside `if`, `try` and `with`, which guard platforms."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _statements([*node.body, *handled, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With):
            yield from _statements(node.body)


def _exports(sources: dict[str, _Source]) -> dict[_Name, _Name]:
    """Where a name is defined to where users import it from, for names of which the two differ.

    A public module exports what it imports from a private module or from its own package, if its `__all__` lists that
    or spells nothing out. Of several such modules, one in the same package counts first, then the shortest name.
    """
    exports: dict[_Name, _Name] = {}
    for source in sources.values():
        module = source.public_name
        if module is None:
            continue
        for origin_name, name, public in source.imports:
            origin = sources.get(origin_name)
            if origin is None or (origin.public_name and not origin_name.startswith(f"{source.name}.")):
                continue
            names = {name: public} if name != "*" else {n: n for n in origin.listed or origin.definitions}
            for defined, exported in names.items():
                if exported.startswith("_") or (source.listed and exported not in source.listed):
                    continue
                key, target = _Name(origin_name, defined), _Name(module, exported)
                exports[key] = min(target, exports.get(key, target), key=partial(_export_order, key))
    return exports


def _export_order(defined: _Name, exported: _Name) -> tuple[bool, int, _Name]:
    other_package = _top(defined.module) != _top(exported.module)
    return other_package, len(exported.module), exported


def _source_entries(sources: dict[str, _Source]) -> Iterator[_Entry]:
    """Every documented public name, under the name by which users import it."""
    exports = _exports(sources)

    def entries_of(module: str, name: str, source: _Source, definition: _Definition) -> Iterator[_Entry]:
        yield from _definition_entries(module, module, definition._replace(name=name))
        for base in _hidden_bases(definition, source, sources, exports):
            yield from _member_entries(module, f"{module}.{name}", base)

    moved: list[_Entry] = []
    for source in sources.values():
        home = source.public_name
        if home is not None:
            yield from _entry(home, home, f"module {home}", source.docstring or _borrowed_docstring(source, sources))
        for name, definition in source.definitions.items():
            target = exports.get(_Name(source.name, name))
            if target is not None:
                moved.extend(entries_of(*target, source, definition))
            elif home is not None and not name.startswith("_"):
                yield from entries_of(home, name, source, definition)
    yield from moved  # last, so that a module's own definition wins over a re-exported one


def _borrowed_docstring(source: _Source, sources: dict[str, _Source]) -> str | None:
    """The docstring of the internal module that a module without its own takes all its names from."""
    for entry in source.imports:
        origin = sources.get(entry.origin)
        if entry.name == "*" and origin is not None and origin.public_name is None:
            return origin.docstring
    return None


def _hidden_bases(
    definition: _Definition, source: _Source, sources: dict[str, _Source], exports: dict[_Name, _Name]
) -> list[_Definition]:
    """The base classes, direct or not, that a user knows only through this class.

    A private base that a public base has too is documented there.
    """
    reached: dict[tuple[_Name, bool], _Definition] = {}  # whether a public class lies between
    waiting = [(definition, source, False)]
    while waiting:
        child, home, past_public = waiting.pop(0)
        imported = {entry.public: entry for entry in home.imports}
        for written in child.bases:
            origin, name = home, written
            if name in imported and imported[name].origin in sources:
                origin, name = sources[imported[name].origin], imported[name].name
            base, key = origin.definitions.get(name), _Name(origin.name, name)
            if base is None or base is definition:
                continue
            is_public = key in exports or not (origin.public_name is None or name.startswith("_"))
            state = (key, past_public or is_public)
            if state not in reached:
                reached[state] = base
                waiting.append((base, origin, past_public or is_public))
    return [base for (key, past_public), base in reached.items() if not past_public and (key, True) not in reached]


def _definition_entries(module: str, prefix: str, definition: _Definition) -> Iterator[_Entry]:
    """A function, or a class with its public members."""
    qualified_name = f"{prefix}.{definition.name}"
    title = qualified_name + definition.parameters
    if definition.kind != "function":
        title = f"{definition.kind} {title}"
    yield from _entry(module, qualified_name, title, definition.docstring)
    yield from _member_entries(module, qualified_name, definition)


def _member_entries(module: str, class_name: str, definition: _Definition) -> Iterator[_Entry]:
    """The public members of a class, as members of `class_name`."""
    for member in definition.members:
        if not member.name.startswith("_"):
            yield from _definition_entries(module, class_name, member)


def _definitions(body: list[ast.stmt], *, in_class: bool) -> Iterator[_Definition]:
    """The classes and functions of a module or class, in source order."""
    for node in _statements(body):
        if isinstance(node, ast.ClassDef):
            yield _class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _function(node, in_class=in_class)


def _class(node: ast.ClassDef) -> _Definition:
    members = list(_definitions(node.body, in_class=True))
    makers = {member.name: member for member in members if member.name in ("__init__", "__new__")}
    maker = makers.get("__init__", makers.get("__new__"))
    return _Definition(
        name=node.name,
        kind="class",
        parameters=maker.parameters if maker else "",
        docstring="\n\n".join(filter(None, [ast.get_docstring(node), maker.docstring if maker else None])),
        bases=[base.id for base in node.bases if isinstance(base, ast.Name)],
        members=members,
    )


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, in_class: bool) -> _Definition:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    first_parameter = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args][:1]]
    kind, parameters = "function", ""
    if any("property" in decorator or decorator.endswith((".setter", ".deleter")) for decorator in decorators):
        kind = "property"
    # A function with `self` outside a class is a special form of `typing`, which nobody calls.
    elif in_class or first_parameter != ["self"]:
        parameters = _parameters(node, drop_first=in_class and "staticmethod" not in decorators)
    return _Definition(node.name, kind, parameters, ast.get_docstring(node) or "", [], [])


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, drop_first: bool) -> str:
    """A function's parameters in parentheses, without `self` or `cls` where `drop_first` says that there is one."""
    arguments = copy.copy(node.args)
    if drop_first:
        if arguments.posonlyargs:
            arguments.posonlyargs = arguments.posonlyargs[1:]
        else:
            arguments.args = arguments.args[1:]
        n_left = len(arguments.posonlyargs) + len(arguments.args)
        arguments.defaults = arguments.defaults[max(0, len(arguments.defaults) - n_left) :]
    return f"({ast.unparse(arguments)})"


def _entry(module: str, qualified_name: str, title: str, text: str | None) -> Iterator[_Entry]:
    """One entry, or none where there is no text."""
    if text:
        text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
        yield _Entry(module, Document(qualified_name, title, text))


# Compiled modules


def _read_compiled(module_names: set[str]) -> tuple[list[_Entry], list[str]]:
    """The entries of the compiled modules, and the names of those that are missing."""
    entries: list[_Entry] = []
    missing: list[str] = []
    for line in _child_output().splitlines():
        try:
            record = json.loads(line)
        except ValueError as error:
            message = f"{sys.executable!r} wrote {line[:60]!r} where {stdlib_inspect.__file__!r} writes JSON; {_hint()}"
            raise DataError(message) from error
        if "missing" in record:
            missing.append(record["missing"])
        else:
            entries.extend(_compiled_entry(stdlib_inspect.Entry(**record), module_names))
    return entries, missing


def _compiled_entry(record: stdlib_inspect.Entry, module_names: set[str]) -> Iterator[_Entry]:
    qualified_name = f"{record.module}.{record.name}" if record.name else record.module
    # Built-ins need no import, so a user writes them without a module, unless a module has that name.
    if record.module == "builtins" and record.name and record.name.split(".")[0] not in module_names:
        qualified_name = record.name
    text = inspect.cleandoc(record.doc)
    title = qualified_name
    if record.kind in ("class", "function"):
        title += _told_signature(text, record.name) if record.signature is None else " ".join(record.signature.split())
    if record.kind != "function":
        title = f"{record.kind} {title}"
    text = re.sub(r"\A\w+\([^\n]*\)\n--\n", "", text)  # a signature that the interpreter could not read
    yield from _entry(record.module, qualified_name, title, text)


def _command() -> list[str]:
    """A fresh interpreter, without the user's site and environment, that runs `stdlib_inspect.py`."""
    return [sys.executable, "-I", "-S", "-X", "utf8", stdlib_inspect.__file__]


def _hint() -> str:
    return f"run {shlex.join(_command())} to see why"


def _child_output() -> str:
    """What `stdlib_inspect.py` writes."""
    try:
        child = subprocess.run(
            _command(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"reading the compiled modules took longer than {_CHILD_SECONDS:g} seconds; {_hint()}"
        raise DataError(message) from error
    except OSError as error:
        message = f"the interpreter {sys.executable!r}, which should read the compiled modules, does not start: {error}"
        raise DataError(message) from error
    if child.returncode:
        last_line = (child.stderr.strip().splitlines() or ["no message"])[-1]
        message = f"reading the compiled modules ended with exit code {child.returncode} ({last_line}); {_hint()}"
        raise DataError(message)
    return child.stdout


def _told_signature(text: str, name: str) -> str:
    """The parameters that the first line of a compiled object's docstring tells; empty if it tells none or several.

    >>> _told_signature("D.get(k[,d]) -> D[k] if k in D, else d.", "dict.get")
    '(k[,d])'
    """
    told = re.findall(rf"^(?:\w+\.)?{re.escape(name.split('.')[-1])}(\(.*?\))(?:$|:| *->| --)", text, re.MULTILINE)
    return told[0] if len(told) == 1 and told[0] in text.split("\n")[0] else ""


def _without_duplicates(entries: Iterable[_Entry]) -> list[_Entry]:
    """The entries without aliases, inherited texts and boilerplate; the rule is in the module's docstring."""
    entries = list(entries)
    names: dict[str, set[str]] = defaultdict(set)
    shortest: dict[tuple[str, str, str], str] = {}
    for entry in entries:
        id_ = entry.document.id
        names[entry.document.text].add(_last_name(id_))
        shortest[_alias_key(entry)] = min(shortest.get(_alias_key(entry), id_), id_, key=len)
    return [
        entry
        for entry in entries
        if shortest[_alias_key(entry)] == entry.document.id and len(names[entry.document.text]) <= _BOILERPLATE
    ]


def _alias_key(entry: _Entry) -> tuple[str, str, str]:
    """What two entries for the same thing share: the top-level module, the last name and the text."""
    return _top(entry.module), _last_name(entry.document.id), entry.document.text


def _top(module: str) -> str:
    return module.partition(".")[0]


def _last_name(qualified_name: str) -> str:
    return qualified_name.rpartition(".")[2]
