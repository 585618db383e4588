"""Measures by name, as ir-measures spells them: `nDCG@10`, `R(rel=2)@100`, `AP`, `RR@10`, ...

Names are read here and not by ir-measures' own parser, because a misspelt name must be answered with the nearest
one, and a missing parameter with what to write.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rerank.errors import ConfigError, UnknownNameError, nearest

# Providers whose measures read judgments per subtopic, which a `Dataset` does not have.
_SUBTOPIC_PROVIDER = "pyndeval"


@dataclass(frozen=True)
class MeasureInfo:
    """What one measure is and needs."""

    name: str
    description: str
    parameters: tuple[str, ...]
    """In the form in which they are written: `cutoff` (after the @), `rel=1`, ...; without a default: required."""
    missing: str
    """What keeps it from being computed here; empty where nothing does."""


def known_measures() -> tuple[MeasureInfo, ...]:
    """Every measure of ir-measures, by name, with its parameters and what is missing to compute it.

    >>> [info.parameters for info in known_measures() if info.name == "P"]
    [('cutoff (required)', 'rel=1', 'judged_only=False')]
    """
    by_name = {str(measure.NAME): measure for measure in _registry().values()}
    return tuple(
        MeasureInfo(
            name,
            by_name[name].SHORT_DESC,
            tuple(_parameter(key, spec) for key, spec in by_name[name].SUPPORTED_PARAMS.items()),
            _missing(name),
        )
        for name in sorted(by_name, key=str.lower)
    )


def parse_measures(names: Sequence[str]) -> dict[str, Any]:
    """The ir-measures object of each name, by its canonical name, in the order given and each once.

    >>> list(parse_measures(["MAP", "R(rel=2)@100", "AP"]))
    ['AP', 'R(rel=2)@100']

    Raises:
        UnknownNameError: no measure, or no parameter of it, has that name.
        ConfigError: no measure was given, one is malformed, lacks a parameter, or cannot be computed here.
    """
    if isinstance(names, str):
        raise ConfigError(f"measures must be a list of names; got the text {names!r}, write {names.split()!r}")
    measures = [parse_measure(name) for name in names]
    if not measures:
        raise ConfigError("no measure was given; name at least one, e.g. 'nDCG@10'")
    return {str(measure): measure for measure in measures}


def parse_measure(name: str) -> Any:
    """The ir-measures object of one name.

    >>> parse_measure("nDCG(dcg='log2')@10")
    nDCG@10

    Raises:
        UnknownNameError: no measure, or no parameter of it, has that name.
        ConfigError: it is malformed, lacks a parameter, or cannot be computed here.
    """
    base, parameters, at = _read(name)
    registry = _registry()
    if base not in registry:
        raise UnknownNameError(f"no measure is called {base!r}{nearest(base, registry) or _listed(registry)}")
    kind = registry[base]
    if at is not None:
        parameters = {**parameters, kind.AT_PARAM: at}
    given = {**kind.params, **{key: _checked(name, kind, key, value) for key, value in parameters.items()}}
    for key, spec in kind.SUPPORTED_PARAMS.items():
        if spec.required and key not in given:
            write = f"{base}@10" if key == kind.AT_PARAM else f"{base}({key}=...)"
            raise ConfigError(f"measure {name!r} needs the parameter {key!r}: write {write}")
    measure = type(kind)(**given)
    _check_computable(name, measure)
    return measure


def depth_needed(measures: Iterable[Any]) -> int | None:
    """The largest cutoff of the measures, None where one of them reads whole lists.

    >>> depth_needed(parse_measures(["nDCG@10", "R@100"]).values()), depth_needed([parse_measure("AP")])
    (100, None)
    """
    largest = 0
    for measure in measures:
        # A cutoff that counts judged documents only may lie at any depth.
        if "cutoff" not in measure.params or measure.params.get("judged_only"):
            return None
        largest = max(largest, measure.params["cutoff"])
    return largest


def _registry() -> dict[str, Any]:
    from ir_measures.measures import registry

    found: dict[str, Any] = registry
    return found


def _listed(registry: dict[str, Any]) -> str:
    return f"; known: {', '.join(sorted(registry))}"


def _read(name: str) -> tuple[str, dict[str, Any], Any]:
    """The parts of `base(key=value, ...)@at`."""
    malformed = ConfigError(f"measure {name[:60]!r} is not in the form Name, Name@10 or Name(rel=2)@10")
    try:
        node: ast.expr = ast.parse(name.strip(), mode="eval").body
        at = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            at, node = ast.literal_eval(node.right), node.left
        parameters: dict[str, Any] = {}
        if isinstance(node, ast.Call):
            if node.args or any(keyword.arg is None for keyword in node.keywords):
                raise malformed
            parameters = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            node = node.func
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        if error is malformed:
            raise
        raise malformed from None
    if not isinstance(node, ast.Name):
        raise malformed
    return node.id, parameters, at


def _checked(name: str, kind: Any, key: str, value: Any) -> Any:
    """The value of a parameter, once it was found to be one that the measure takes."""
    specs = kind.SUPPORTED_PARAMS
    if key not in specs:
        known = ", ".join(specs) or "none"
        raise UnknownNameError(
            f"measure {name!r}: {kind.NAME} has no parameter {key!r}{nearest(key, specs)} (it has: {known})"
        )
    spec = specs[key]
    if spec.dtype is float and type(value) is int:
        value = float(value)
    if not spec.validate(value) or (spec.dtype is int and isinstance(value, bool)):
        kind_of = spec.dtype.__name__ if spec.dtype is not None else "another value"
        raise ConfigError(f"measure {name!r}: {key} is {value!r}, {kind_of} was expected")
    if key == "gains" and not all(type(k) is type(v) is int and v >= 0 for k, v in value.items()):
        raise ConfigError(
            f"measure {name!r}: gains must map whole grades to whole gains from 0, such as {{1: 0, 2: 1}}"
        )
    if key in ("cutoff", "rel") and value < 1:
        raise ConfigError(f"measure {name!r}: {key} is {value}, at least 1 is needed")
    # pytrec_eval names the level with two decimals, and would answer for another one.
    if key == "recall" and not (0.0 <= value <= 1.0 and round(value, 2) == value):
        raise ConfigError(f"measure {name!r}: the recall is {value}, 0 to 1 with at most two decimals was expected")
    return value


def _check_computable(name: str, measure: Any) -> None:
    """Raises unless a provider at hand computes the measure with these parameters."""
    from ir_measures import DefaultPipeline

    if missing := _missing(measure.NAME):
        raise ConfigError(f"measure {name!r} {missing}")
    able = [provider for provider in DefaultPipeline.providers if provider.supports(measure)]
    if any(provider.is_available() for provider in able):
        return
    if able:
        raise ConfigError(f"measure {name!r} {_to_install(able)}")
    for provider in DefaultPipeline.providers:
        for supported in provider.SUPPORTED_MEASURES:
            if supported.NAME == measure.NAME and provider.is_available():
                takes = ", ".join(f"{key}: {spec!r}" for key, spec in supported.params.items())
                raise ConfigError(f"measure {name!r}: cannot be computed with these parameters ({takes})")
    raise ConfigError(f"measure {name!r}: nothing installed computes it with these parameters")


def _missing(name: str) -> str:
    """What keeps every form of a measure from being computed; empty where nothing does."""
    from ir_measures import DefaultPipeline

    able = [p for p in DefaultPipeline.providers if any(name == m.NAME for m in p.SUPPORTED_MEASURES)]
    if all(provider.NAME == _SUBTOPIC_PROVIDER for provider in able):
        return "needs judgments for each subtopic, which data sets do not have here"
    return "" if any(provider.is_available() for provider in able) else _to_install(able)


def _to_install(providers: Sequence[Any]) -> str:
    return f"is not computed by anything installed here; to have it: {providers[0].install_instructions()}"


def _parameter(name: str, spec: Any) -> str:
    from ir_measures.providers.base import NOT_PROVIDED

    if spec.required:
        return f"{name} (required)"
    return name if spec.default is NOT_PROVIDED else f"{name}={spec.default!r}"
