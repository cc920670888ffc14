"""Records as JSON and back: fields by their types; free-form parts hold what JSON holds, so a list is a list there."""

import dataclasses
import json
from contextlib import suppress
from dataclasses import MISSING
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Decoded = TypeVar("Decoded")


def encode_record(record: object) -> str:
    """Return the JSON of a dataclass; lone surrogates stay as they are, what JSON does not have becomes its text."""
    return json.dumps(record, default=_fields, ensure_ascii=False, separators=(",", ":"))


def decode_record(kind: type[Decoded], text: str) -> Decoded:
    """Return the value that `encode_record` was given; raises `ValueError` for a text that does not hold one.

    Fields that a later version wrote are left out, fields that it no longer writes take their defaults.
    """
    try:
        found: Decoded = _build(kind, json.loads(text, object_hook=_untagged))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return found


def _fields(value: Any) -> object:
    """Return the fields of a dataclass, rare ones where they differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    there = ((spot, getattr(value, spot.name)) for spot in dataclasses.fields(value))
    return {spot.name: it for spot, it in there if not (spot.metadata.get("rare") and it == _default(spot))}


def _default(spot: dataclasses.Field[Any]) -> object:
    return spot.default if spot.default_factory is MISSING else spot.default_factory()


def _untagged(table: dict[str, Any]) -> object:
    """Read the tags that earlier versions gave to tuples, and to mappings whose keys were no text."""
    match table:
        case {"()": [*items], **rest} if not rest:
            return items
        case {"{}": [*pairs], **rest} if not rest:
            with suppress(TypeError, ValueError):  # keys that were tuples, or no tag but an argument of a tool
                return dict(pairs)
    return table


def _build(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):  # the first that it holds all that is needed for
        kinds = [part for part in get_args(kind) if part is not NoneType]
        kind = next((part for part in kinds[:-1] if _needed(part) <= value.keys()), kinds[-1])
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: _build(hints[name], item) for name, item in value.items() if name in hints})
    of = get_args(kind)[:1]
    if get_origin(kind) is tuple:  # a reply has thousands of numbers
        return tuple(value) if of[0] in (int, float, str) else tuple(_build(of[0], item) for item in value)
    return {int(key): item for key, item in value.items()} if kind == dict[int, str] else value


@cache
def _hints(kind: Any) -> dict[str, object]:
    return get_type_hints(kind)


@cache
def _needed(kind: Any) -> set[str]:
    return {spot.name for spot in dataclasses.fields(kind) if spot.default is spot.default_factory is MISSING}
