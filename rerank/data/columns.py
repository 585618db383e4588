"""The values of a ranking's columns as JSON, for the formats that hold a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError


def column_to_json(name: str, column: npt.NDArray[Any]) -> dict[str, Any]:
    """A column as JSON values, with its type; sets, tuples, dicts and arrays inside an object column are kept apart.

    >>> column_to_json("excluded", np.array([frozenset({"d1"}), None], dtype=object))
    {'dtype': 'object', 'values': [{'set': ['d1']}, None]}

    Raises:
        DataError: an object that is none of these.
    """
    if column.dtype != object:
        return {"dtype": column.dtype.str, "values": column.tolist()}
    return {"dtype": "object", "values": [_encoded(name, value) for value in column.tolist()]}


def column_from_json(record: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The column that `column_to_json` made the record of."""
    values = record["values"]
    if record["dtype"] != "object":
        return np.array(values, dtype=np.dtype(record["dtype"]))
    column = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        column[place] = _decoded(value)
    return column


def _encoded(name: str, value: object) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case np.ndarray():
            return {"array": value.tolist(), "dtype": value.dtype.str}
        case frozenset():
            return {"set": sorted(_encoded(name, v) for v in value)}
        case tuple():
            return {"tuple": [_encoded(name, v) for v in value]}
        case list():
            return [_encoded(name, v) for v in value]
        case Mapping():
            return {"items": [[_encoded(name, k), _encoded(name, v)] for k, v in value.items()]}
    message = (
        f"column {name!r} holds a {type(value).__name__}, which cannot be written; use numbers, text, sets or lists"
    )
    raise DataError(message)


def _decoded(value: Any) -> Any:
    match value:
        case {"array": values, "dtype": dtype}:
            return np.array(values, dtype=np.dtype(dtype))
        case {"set": values}:
            return frozenset(map(_decoded, values))
        case {"tuple": values}:
            return tuple(map(_decoded, values))
        case {"items": items}:
            return {_decoded(key): _decoded(item) for key, item in items}
        case list():
            return list(map(_decoded, value))
    return value
