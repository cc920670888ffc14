"""Logits and log-probabilities of given token ids, computed in chunks that fit in memory."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig

from repl.core import library
from repl.core.errors import Failed, NoMemory, UsageError
from repl.core.jobs import JobContext
from repl.core.library_types import Cache, PreTrainedModel, Tensor
from repl.generation.decode.kv_cache import PrefixCache, can_reuse, may_go_on
from repl.generation.interface import Model
from repl.generation.measure.forward import cancellable_forward, evaluate, input_ids, model_errors, not_finite
from repl.generation.measure.token_text import Scored
from repl.models import model_config, reference
from repl.models.store import ModelInfo

CHUNK_RANGE_TOKENS = (256, 1024)  # tokens whose logits are in memory at once, at least and at most
CHUNK_LOGITS = 2**26  # and so many logits, where that allows the least: longer steps are quicker
READ_TRIAL_TOKENS = 8  # tokens on which a model is asked whether it reads a text as it writes one
READING_WAYS: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
"""How a loaded model reads a whole text: plain, placed (it is given the positions), or none."""


def score(
    resident: Model, ids: Sequence[int], emit: JobContext, first: int = 1, top: int = 0, shared: bool = False
) -> Iterator[Scored]:
    """Measure the tokens of a text from place `first` on, each with the `top` likeliest there; see `logits`."""
    for place, rows in logits(resident, ids, emit, first, shared=shared):
        yield from evaluate(rows, ids[place : place + len(rows)], resident.tokenizer, top)


def logits(
    resident: Model, ids: Sequence[int], emit: JobContext, first: int = 1, chunk: int = 0, shared: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Yield places in a text with the float32 logits there, shape (at most `chunk`, vocab).

    Row j is what the model predicts `ids[place + j]` from, the ids before it; `first` is at least 1. `shared` goes on
    from the cache that replies keep, which then stands for this text. Raises `UsageError` for a text longer than the
    context, `NoMemory` or `Failed` when the model gives up, `Cancelled`.
    """
    yield from _read(resident, list(ids[:-1]), first, emit, chunk or chunk_tokens(resident.model), shared)


def chunk_tokens(model: PreTrainedModel) -> int:
    """Return how many tokens are read at once."""
    vocabulary = model_config.get_count(model_config.text_config(model.config), "vocab_size")
    return min(max(CHUNK_LOGITS // max(vocabulary, 1), CHUNK_RANGE_TOKENS[0]), CHUNK_RANGE_TOKENS[1])


def next_logits(resident: Model, ids: Sequence[int], emit: JobContext, shared: bool = False) -> Tensor:
    """Return the float32 logits of the token after a text, shape (vocab,); see `logits`.

    Those of the last text are kept: asking again computes nothing.
    """
    kept, key = resident.runtime.last_logits, tuple(ids)
    if key not in kept:
        row = _read_last(resident, list(ids), emit, shared).clone()
        kept.clear()
        kept[key] = row
    return kept[key]


def _read_last(resident: Model, ids: list[int], emit: JobContext, shared: bool) -> Tensor:
    model = resident.model
    given = input_ids(model, ids)
    with reading_errors(resident, emit), cancellable_forward(model, emit.raise_if_cancelled):
        if reading_way(model, given) == "none":
            return _check_finite(resident.facts, len(ids), reference.reference_logits(model, given)[None])[0]
    [(_, rows)] = _read(resident, ids, len(ids), emit, chunk_tokens(model), shared)
    return rows[-1]


def reading_way(model: PreTrainedModel, ids: Tensor) -> str:
    """Return one of `READING_WAYS`, the one with the logits of `generate`; `ids` are tried, once for a model."""
    if ids.shape[-1] <= 3:
        return "plain"
    if model not in READING_WAYS:
        READING_WAYS[model] = _find_way(model, ids[:, :READ_TRIAL_TOKENS])
    return READING_WAYS[model]


def _find_way(model: PreTrainedModel, ids: Tensor) -> str:
    stops = ids.shape[-1] // 2, ids.shape[-1]
    expected = [reference.reference_logits(model, ids[:, :stop]) for stop in stops]
    for name, extra in (("plain", {}), ("placed", _position_ids(model, 0, ids))):
        try:
            with torch.no_grad():
                rows = model(input_ids=ids, use_cache=False, **extra).logits[0].float()
        except (TypeError, ValueError):  # kosmos-2 reads text alone in `generate` only
            continue
        pairs = zip(stops, expected, strict=True)
        if not rows.isfinite().all() or all(
            reference.same_logits(rows[stop - 1], each, model.dtype) for stop, each in pairs
        ):
            return name
    return "none"


def place_ids(model: PreTrainedModel, start: int, ids: Tensor) -> dict[str, Tensor]:
    """Return the positions of ids that begin at a place, for a model that has to be told them."""
    return _position_ids(model, start, ids) if READING_WAYS.get(model) == "placed" else {}


def _position_ids(model: PreTrainedModel, start: int, ids: Tensor) -> dict[str, Tensor]:
    known = "position_ids" in signature(model.forward).parameters
    return {"position_ids": torch.arange(start, start + ids.shape[-1], device=ids.device)[None]} if known else {}


def _read(
    resident: Model, fed: list[int], first: int, emit: JobContext, chunk: int, shared: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yield the logits behind each of the ids that are fed to the model, from the one before place `first` on."""
    if first > len(fed):
        return
    model, facts, config = resident.model, resident.facts, GenerationConfig()
    if facts.context and len(fed) > facts.context:
        raise UsageError(f"the text has {len(fed)} tokens; {facts.id}'s context is {facts.context}")
    kept = resident.runtime.kv_cache if shared else PrefixCache()
    ids = input_ids(model, fed)
    with reading_errors(resident, emit), cancellable_forward(model, emit.raise_if_cancelled):
        if reading_way(model, ids) == "none":
            said = "gives a whole text other logits than the same text token by token, so no text can be scored"
            raise Failed(f"{facts.architecture} {said}")
    with reading_errors(resident, emit), kept.lend(model, config, ids[:, :first], lambda: fed) as (past, reused):
        cache = past.get(library.cache_name())
        steps = cache is not None and can_reuse(model, config, len(fed)) and may_go_on(model, cache, ids)
        read = (
            _read_in_steps(model, ids, first, chunk, cache, reused, emit)
            if steps
            else _read_whole(model, ids, first, chunk, emit)
        )
        for place, rows in read:
            yield place, _check_finite(facts, place, rows)


def _check_finite(facts: ModelInfo, place: int, rows: Tensor) -> Tensor:
    good = torch.isfinite(rows.amax(-1))
    if not good.all():
        raise not_finite(facts, place + int(good.logical_not().nonzero()[0]) + 1)
    return rows


def _read_in_steps(
    model: PreTrainedModel, ids: Tensor, first: int, chunk: int, cache: Cache, reused: int, emit: JobContext
) -> Iterator[tuple[int, Tensor]]:
    """Read a text piece by piece into a cache that holds its first `reused` tokens."""
    for start in range(reused, ids.shape[-1], chunk):
        piece = ids[:, start : start + chunk]
        skipped = max(0, first - 1 - start)
        given = {library.cache_name(): cache, "use_cache": True, **place_ids(model, start, piece)}
        rows = _last_rows(model, piece, max(1, piece.shape[-1] - skipped), emit, **given)
        if skipped < piece.shape[-1]:
            yield start + skipped + 1, rows


def _read_whole(
    model: PreTrainedModel, ids: Tensor, first: int, chunk: int, emit: JobContext
) -> Iterator[tuple[int, Tensor]]:
    """Read a text from its beginning, anew for each piece of logits."""
    for start in range(first - 1, ids.shape[-1], chunk):
        piece = ids[:, : start + chunk]
        rows = _last_rows(model, piece, piece.shape[-1] - start, emit, use_cache=False, **place_ids(model, 0, piece))
        yield start + 1, rows


def _last_rows(model: PreTrainedModel, ids: Tensor, count: int, emit: JobContext, **options: Any) -> Tensor:
    """Return the logits behind the last ids, shape (count, vocab); most heads need not see the others."""
    kept = {"logits_to_keep": count} if "logits_to_keep" in signature(model.forward).parameters else {}
    with torch.no_grad(), cancellable_forward(model, emit.raise_if_cancelled):
        return model(input_ids=ids, **options, **kept).logits[0, -count:].float()


def reading_errors(
    resident: Model, emit: JobContext, what: str = "the text cannot be read"
) -> AbstractContextManager[None]:
    """Turn errors of the library into one sentence, and free memory when it ran out."""
    hints = [*(["/dtype bfloat16"] if resident.facts.dtype == "float32" else []), "/quantize 4bit"]
    return model_errors(resident, emit, what, lambda words: NoMemory(f"memory ran out: {words}", *hints))
