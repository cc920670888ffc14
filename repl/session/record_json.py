"""Frozen values as JSON and back, exactly: fields by their types, tuples in free-form parts by a tag."""

import dataclasses
import json
from dataclasses import MISSING
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Decoded = TypeVar("Decoded")
TUPLE, PAIRS = "()", "{}"  # tags where JSON has no such thing: a tuple, and a mapping whose keys JSON cannot hold


def encode_record(kind: object, value: object) -> str:
    """Return the JSON of a value of a kind; lone surrogates stay as they are."""
    return json.dumps(_down(kind, value), ensure_ascii=False, separators=(",", ":"))


def decode_record(kind: type[Decoded], text: str) -> Decoded:
    """Return the value that `encode` was given; raises `ValueError` for a text that does not hold one.

    Fields that a later version wrote are left out, fields that it no longer writes take their defaults.
    """
    try:
        found: Decoded = _up(kind, json.loads(text))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return found


@cache
def _fields(kind: Any) -> dict[str, object]:
    hints = get_type_hints(kind)
    return {spot.name: hints[spot.name] for spot in dataclasses.fields(kind)}


@cache
def _rare(kind: Any) -> dict[str, object]:
    """Return the fields that are not written while they have their defaults, with these."""
    return {
        spot.name: spot.default if spot.default_factory is MISSING else spot.default_factory()
        for spot in dataclasses.fields(kind)
        if spot.metadata.get("rare")
    }


def _certain(kind: Any, value: Any) -> object:
    """Return which of several kinds a value has: the first that it holds all that is needed for."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [part for part in get_args(kind) if part is not NoneType]
        return next((part for part in kinds[:-1] if _needed(part) <= value.keys()), kinds[-1])
    return kind


@cache
def _needed(kind: Any) -> set[str]:
    spots = dataclasses.fields(kind)
    return {spot.name for spot in spots if spot.default is spot.default_factory is MISSING}


def _places(kind: object, count: int) -> list[object]:
    parts = get_args(kind)
    return [parts[0]] * count if parts[-1] is Ellipsis else list(parts)


def _flat(kind: object) -> bool:
    """Tell whether a kind is a row of numbers or texts, which JSON has as it is; a reply has thousands of them."""
    return kind in (tuple[int, ...], tuple[float, ...], tuple[str, ...])


def _down(kind: Any, value: Any) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value):
        return _fields_down(value)
    kind = _certain(kind, value)
    if _flat(kind):
        return list(value)
    if get_origin(kind) is tuple:
        return [_down(part, item) for part, item in zip(_places(kind, len(value)), value, strict=True)]
    return _tagged(value)


def _fields_down(value: Any) -> dict[str, object]:
    rare, kinds = _rare(value.__class__), _fields(value.__class__)
    there = {name: getattr(value, name) for name in kinds}
    return {name: _down(kinds[name], it) for name, it in there.items() if name not in rare or it != rare[name]}


def _tagged(value: object) -> object:
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
    if value is None:
        return None
    kind = _certain(kind, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        parts = _fields(kind)
        return kind(**{name: _up(parts[name], item) for name, item in value.items() if name in parts})
    if _flat(kind):
        return tuple(value)
    if get_origin(kind) is tuple:
        return tuple(_up(part, item) for part, item in zip(_places(kind, len(value)), value, strict=True))
    return _untagged(value)


def _untagged(value: object) -> object:
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
