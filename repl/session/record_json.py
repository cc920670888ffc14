"""Frozen values as JSON and back, exactly: fields by their types, tuples in free-form parts by a tag."""

import dataclasses
import json
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
TUPLE, PAIRS = "()", "{}"  # tags where JSON has no such thing: a tuple, and a mapping whose keys JSON cannot hold


def encode(kind: Any, value: Any) -> str:
    """Return the JSON of a value of a kind; lone surrogates stay as they are."""
    return json.dumps(_down(kind, value), ensure_ascii=False, separators=(",", ":"))


def decode(kind: type[T], text: str) -> T:
    """Return the value that `encode` was given; raises `ValueError` for a text that does not hold one.

    Fields that a later version wrote are left out, fields that it no longer writes take their defaults.
    """
    try:
        found: T = _up(kind, json.loads(text))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return found


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {spot.name: hints[spot.name] for spot in dataclasses.fields(kind)}


def _certain(kind: Any) -> Any:
    """Return what an optional kind is when it is there."""
    if get_origin(kind) in (Union, UnionType):
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _places(kind: Any, count: int) -> list[Any]:
    parts = get_args(kind)
    return [parts[0]] * count if parts[-1] is Ellipsis else list(parts)


def _flat(kind: Any) -> bool:
    """Tell whether a kind is a row of numbers or texts, which JSON has as it is; a reply has thousands of them."""
    return kind in (tuple[int, ...], tuple[float, ...], tuple[str, ...])


def _down(kind: Any, value: Any) -> Any:
    kind = _certain(kind)
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value):
        exact: Any = type(value)
        return {name: _down(part, getattr(value, name)) for name, part in _fields(exact).items()}
    if _flat(kind):
        return list(value)
    if get_origin(kind) is tuple:
        return [_down(part, item) for part, item in zip(_places(kind, len(value)), value, strict=True)]
    return _tagged(value)


def _tagged(value: Any) -> Any:
    match value:
        case None | str() | int() | float():
            return value
        case tuple():
            return {TUPLE: [_tagged(item) for item in value]}
        case list():
            return [_tagged(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value) and not {TUPLE, PAIRS} & value.keys():
            return {key: _tagged(item) for key, item in value.items()}
        case dict():
            return {PAIRS: [[_tagged(key), _tagged(item)] for key, item in value.items()]}
        case _:
            return str(value)


def _up(kind: Any, value: Any) -> Any:
    kind = _certain(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        parts = _fields(kind)
        return kind(**{name: _up(parts[name], item) for name, item in value.items() if name in parts})
    if _flat(kind):
        return tuple(value)
    if get_origin(kind) is tuple:
        return tuple(_up(part, item) for part, item in zip(_places(kind, len(value)), value, strict=True))
    return _untagged(value)


def _untagged(value: Any) -> Any:
    match value:
        case {"()": items, **rest} if not rest:
            return tuple(_untagged(item) for item in items)
        case {"{}": pairs, **rest} if not rest:
            return {_untagged(key): _untagged(item) for key, item in pairs}
        case dict():
            return {key: _untagged(item) for key, item in value.items()}
        case list():
            return [_untagged(item) for item in value]
        case _:
            return value
