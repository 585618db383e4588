"""Stages and experiments from YAML and back; the dataclasses are the schema.

A stage is written as its registered name (`exclude`), as the name with its fields (`bm25: {k: 100}`), or as the name
with the value of its first field (`cut: 100`).  A list of stages is a pipeline.  There is no code in YAML.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from rerank.artifact import file_sha256, fingerprint
from rerank.errors import ConfigError, PipelineError, UnknownNameError, nearest
from rerank.registry import Part, lookup, name_of, names_of
from rerank.resources import shipped_adapter
from rerank.yamlfile import Key, Tree, dump_yaml, parse_yaml, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank.stage import Pipeline, Stage

T = TypeVar("T")
P = TypeVar("P", bound=Part)


class _PathMark:
    """Marks a text field as a path: relative to the file it is written in, hashed by content."""

    def __init__(self, named: Callable[[str], Path | None] = lambda name: None) -> None:
        self._named = named

    def place(self, value: str, path: Path) -> Path:
        """The path, or where there is nothing, what the value is the name of."""
        return path if path.exists() else self._named(value) or path


def _path_mark(hint: Any) -> _PathMark | None:
    return next((mark for mark in _marks(hint) if isinstance(mark, _PathMark)), None)


FilePath = Annotated[str, _PathMark()]
AdapterPath = Annotated[str, _PathMark(shipped_adapter)]
"""A path, or the name of an adapter that comes with the package."""


def load_pipeline(path: Path | str) -> Pipeline:
    """The pipeline of a YAML file.

    Raises:
        ConfigError: with file, line and key path.
        PipelineError: stages that do not fit.
    """
    return pipeline_from(read_yaml(Path(path)))


def parse_pipeline(text: str, origin: str = "<text>") -> Pipeline:
    """The pipeline of a YAML text.

    >>> parse_pipeline("stages: [{cut: 10}, {normalise: minmax}]")
    Cut(k=10) >> Normalise()
    """
    return pipeline_from(parse_yaml(text, origin))


def pipeline_from(tree: Tree, key: Key = (), value: Any = None) -> Pipeline:
    """The pipeline at `key` of a parsed file: a mapping with `stages`, and perhaps `name` and `description`."""
    from rerank.stage import Pipeline

    found = tree.value if value is None else value
    if not isinstance(found, dict) or "stages" not in found:
        raise tree.error(
            key, "a pipeline is a mapping with the key 'stages' (a list) and perhaps 'name', 'description'"
        )
    return build(Pipeline, found, tree, key)


def to_yaml(stage: Stage) -> str:
    """The YAML text that `parse_pipeline` reads back as an equal pipeline.

    Raises:
        ConfigError: a stage inside has no YAML form (`apply`, an unregistered class).
    """
    from rerank.stage import Pipeline

    pipeline = stage if isinstance(stage, Pipeline) else Pipeline((stage,))
    head = {n: v for n in ("name", "description") if (v := getattr(pipeline, n))}
    return dump_yaml({**head, "stages": [stage_tree(part) for part in pipeline.stages]})


def stage_tree(stage: Part, *, hashes: bool = False) -> Any:
    """A stage, rule or engine as plain data; with `hashes`, paths become the SHA-256 of what they hold."""
    from rerank.stage import Pipeline

    name = name_of(type(stage))
    if name is None:
        raise ConfigError(f"{stage!r} has no YAML form: {type(stage).__qualname__} is not registered")
    if isinstance(stage, Pipeline) and not stage.name and not stage.description and not hashes:
        return [stage_tree(part, hashes=hashes) for part in stage.stages]
    fields = _fields_tree(stage, hashes=hashes)
    if not fields and not hashes:
        return name
    if hashes:
        return {name: fields}
    first = dataclasses.fields(stage)[0].name  # type: ignore[arg-type]
    if list(fields) == [first] and isinstance(fields[first], int | float | str):
        return {name: fields[first]}
    return {name: fields}


def _fields_tree(value: Any, *, hashes: bool) -> dict[str, Any]:
    hints = typing.get_type_hints(type(value), include_extras=True)
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if _bare(hints[field.name]) is float and item is not None:
            item = float(item)  # 1 and 1.0 are equal, and so must be what is written
        if hashes or field.default is dataclasses.MISSING or item != field.default:
            mark = _path_mark(hints[field.name])
            if hashes and mark is not None and item:
                tree[field.name] = _content_hash(mark.place(item, Path(item)))
            else:
                tree[field.name] = _plain(item, hashes=hashes)
    return tree


def _plain(item: Any, *, hashes: bool) -> Any:
    if isinstance(item, Part):
        return stage_tree(item, hashes=hashes)
    if dataclasses.is_dataclass(item):
        return _fields_tree(item, hashes=hashes)
    if isinstance(item, tuple):
        return [_plain(part, hashes=hashes) for part in item]
    return item


def _content_hash(path: Path) -> Any:
    if path.is_file():
        return file_sha256(path)
    if (path / "manifest.json").is_file():
        return file_sha256(path / "manifest.json")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file_sha256(file) for file in files}
    return str(path)


def stage_fingerprint(stage: Stage) -> str:
    """SHA-256 of a stage's whole configuration, with the content of every file that it names."""
    return fingerprint(stage_tree(stage, hashes=True))


# -- building ---------------------------------------------------------------


def build_stage(value: Any, tree: Tree, key: Key) -> Stage:
    """The stage that a YAML value stands for; a list is a pipeline."""
    from rerank.stage import Pipeline, Stage

    if isinstance(value, list):
        return _made(Pipeline, {"stages": _stages(value, tree, key)}, tree, key)
    return build_part(Stage, value, tree, key)  # type: ignore[type-abstract]


def build_part(base: type[P], value: Any, tree: Tree, key: Key) -> P:
    """The stage, rule or engine that a YAML value stands for: a name, or one name with its fields."""
    sort = base.__name__.lower()
    if isinstance(value, str):
        name, content = value, cast("Any", {})
    elif isinstance(value, dict) and len(value) == 1:
        name, content = next(iter(value.items()))
    else:
        raise tree.error(key, f"expected a {sort}: a name, or one 'name: fields' pair; got {_shown(value)}")
    try:
        found = lookup(name)
    except UnknownNameError:
        names = names_of(base)
        known = ", ".join(sorted(names))
        raise UnknownNameError(
            f"{tree.place(key)}: no {sort} is called {name!r}{nearest(name, names)}; known: {known}"
        ) from None
    if not issubclass(found, base):
        raise tree.error(
            key, f"{name!r} is registered, but is not a {sort}; known: {', '.join(sorted(names_of(base)))}"
        )
    inner = (*key, name) if isinstance(value, dict) else key
    if content is None:
        content = {}
    if not isinstance(content, dict):
        fields = dataclasses.fields(found)  # type: ignore[arg-type]
        if not fields:
            raise tree.error(inner, f"{name} takes no options; got {_shown(content)}")
        return build(found, {fields[0].name: content}, tree, inner, shorthand=True)
    return build(found, content, tree, inner)


def _stages(value: list[Any], tree: Tree, key: Key) -> tuple[Stage, ...]:
    return tuple(build_stage(item, tree, (*key, i)) for i, item in enumerate(value))


def build(kind: type[T], value: Any, tree: Tree, key: Key, *, shorthand: bool = False) -> T:
    """The dataclass `kind` from a YAML mapping, strictly: unknown keys and wrong types are errors with their place."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise tree.error(key, f"expected a mapping with {', '.join(fields)}; got {_shown(value)}")
    for name in value:
        if name not in fields:
            hint = nearest(name, fields) or f"; it has: {', '.join(fields) or 'no options'}"
            raise tree.error((*key, name), f"{_name(kind)} has no option {name!r}{hint}")
    hints = typing.get_type_hints(kind, include_extras=True)
    made: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            made[name] = _field(hints[name], value[name], tree, key if shorthand else (*key, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise tree.error(key, f"{_name(kind)} needs the option {name!r}")
    return _made(kind, made, tree, key)


def _made(kind: type[T], fields: dict[str, Any], tree: Tree, key: Key) -> T:
    try:
        return kind(**fields)
    except PipelineError as error:
        raise PipelineError(f"{tree.place(key)}: {error}") from error
    except ConfigError as error:
        raise type(error)(f"{tree.place(key)}: {error}") from error


def _field(hint: Any, value: Any, tree: Tree, key: Key) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    from rerank.stage import Stage

    bare = _bare(hint)
    if isinstance(bare, type) and issubclass(bare, Part):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return build_stage(value, tree, key) if bare is Stage else build_part(bare, value, tree, key)
    if (kind := _parts(bare)) is not None:
        if not isinstance(value, list):
            raise tree.error(key, f"expected a list of {kind.__name__.lower()}s; got {_shown(value)}")
        made = build_stage if kind is Stage else functools.partial(build_part, kind)
        return tuple(made(item, tree, (*key, i)) for i, item in enumerate(value))
    if isinstance(bare, type) and dataclasses.is_dataclass(bare) and value is not None:
        return build(bare, value, tree, key)
    if isinstance(value, list) and (member := _member(bare)) is not None:
        return tuple(build(member, item, tree, (*key, i)) for i, item in enumerate(value))
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
        result = adapter.validate_python(_tupled(value), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [tuple(part for part in each["loc"] if isinstance(part, int)) for each in found]
        deeper = max(places, key=len)  # of several allowed types, the one that fits furthest
        tried = [each for each, place in zip(found, places, strict=True) if place == deeper]
        expected = " or ".join(dict.fromkeys(_message(each["msg"]) for each in tried)).replace("or expected", "or")
        raise tree.error((*key, *deeper), f"{expected}; got {_shown(tried[0]['input'])}") from None
    mark = _path_mark(hint)
    if result is not None and mark is not None:
        return str(mark.place(result, Path(_path(result, tree, key))))
    return result


def _path(value: str, tree: Tree, key: Key) -> str:
    """A path made absolute; a relative one must stay inside the folder of the file that names it."""
    path = Path(value).expanduser()
    if path.is_absolute():
        return str(path)
    resolved = (tree.folder / path).resolve()
    if not resolved.is_relative_to(tree.folder):
        raise tree.error(
            key, f"the path {value!r} leaves the file's folder {tree.folder}; write it as an absolute path"
        )
    return str(resolved)


def _bare(hint: Any) -> Any:
    """A type without `Annotated` and without `| None`."""
    if typing.get_origin(hint) is Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else hint
    return hint


def _parts(bare: Any) -> type[Part] | None:
    """The kind of part that a type is a list of."""
    kinds = typing.get_args(bare) if typing.get_origin(bare) is tuple else ()
    many = len(kinds) == 2 and kinds[1] is ... and isinstance(kinds[0], type) and issubclass(kinds[0], Part)
    return kinds[0] if many else None


def _member(bare: Any) -> type | None:
    """The dataclass that a tuple of any length holds, parts aside; None for other types."""
    if typing.get_origin(bare) is not tuple or typing.get_args(bare)[1:] != (...,):
        return None
    member = _bare(typing.get_args(bare)[0])
    is_plain = isinstance(member, type) and dataclasses.is_dataclass(member) and not issubclass(member, Part)
    return member if is_plain else None


def _marks(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Annotated:
        return list(typing.get_args(hint)[1:])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [mark for part in typing.get_args(hint) for mark in _marks(part)]
    return []


def _tupled(value: Any) -> Any:
    return tuple(_tupled(part) for part in value) if isinstance(value, list) else value


def _message(text: str) -> str:
    text = text.replace("Input should be", "expected").replace("a valid tuple", "a list")
    return text.replace("a valid integer", "an integer").replace("a valid ", "a ")


def _name(kind: type) -> str:
    return name_of(kind) or kind.__name__


def _shown(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    text = repr(value)
    return (text if len(text) <= 60 else text[:57] + "...") + f" ({type(value).__name__})"


# -- JSON schema ------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON schema of a pipeline file: what an editor needs to complete and check one."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rerank pipeline",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "stages": {"type": "array", "items": {"$ref": "#/$defs/stage"}, "minItems": 1},
        },
        "required": ["stages"],
        "additionalProperties": False,
        "$defs": part_schemas(),
    }


def part_schemas(*more: type[Part]) -> dict[str, Any]:
    """The JSON schemas of all registered stages, rules and engines, and of the parts whose bases are in `more`."""
    from rerank.engines.engine import Engine
    from rerank.rules.rule import Rule
    from rerank.stage import Stage

    definitions: dict[str, Any] = {}
    bases: tuple[type[Part], ...] = (Stage, Rule, Engine, *more)
    for base in bases:
        parts = {name: lookup(name) for name in sorted(names_of(base))}
        definitions |= {name: object_schema(kind) for name, kind in parts.items()}
        definitions[base.__name__.lower()] = _choice_schema(parts)
    definitions["stage"]["anyOf"].append(
        {"type": "array", "items": {"$ref": "#/$defs/stage"}, "description": "a pipeline of stages"}
    )
    return definitions


def _choice_schema(parts: dict[str, type]) -> dict[str, Any]:
    """A bare name where every field has a default, or one name with its fields or its first field's value."""
    choices: list[dict[str, Any]] = [{"enum": [n for n, k in parts.items() if all(map(_has_default, _fields(k)))]}]
    for name, kind in parts.items():
        value: dict[str, Any] = {"$ref": f"#/$defs/{name}"}
        if _fields(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            value = {"anyOf": [value, _schema_of(hints[_fields(kind)[0].name])]}
        choices.append(
            {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}
        )
    return {"anyOf": choices}


def _fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def object_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a dataclass: its fields, their documentation, which are required."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    docs = _field_docs(kind)
    properties: dict[str, Any] = {}
    for field in fields:
        properties[field.name] = dict(_schema_of(hints[field.name]))
        if field.name in docs:
            properties[field.name]["description"] = docs[field.name]
        if isinstance(field.default, str | int | float | bool):
            properties[field.name]["default"] = field.default
    return {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").split("\n\n")[0],
        "properties": properties,
        "required": [field.name for field in fields if not _has_default(field)],
        "additionalProperties": False,
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    bare = _bare(hint)
    if isinstance(bare, type) and issubclass(bare, Part):
        return {"$ref": f"#/$defs/{bare.__name__.lower()}"}
    if (kind := _parts(bare)) is not None:
        return {"type": "array", "items": {"$ref": f"#/$defs/{kind.__name__.lower()}"}}
    if isinstance(bare, type) and dataclasses.is_dataclass(bare):
        return object_schema(bare)
    if (member := _member(bare)) is not None:
        return {"type": "array", "items": object_schema(member)}
    return TypeAdapter(hint).json_schema()


def _field_docs(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass and of those that it inherits from, from their sources."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__dataclass_fields__" in vars(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    docs: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for before, after in itertools.pairwise(statements):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[before.target.id] = " ".join(after.value.value.split())
    return docs
