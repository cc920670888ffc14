"""What a model makes of several continuations of one text: it is read once, and they are read together behind it."""

import copy
from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig

from repl.core import library
from repl.core.errors import library_errors
from repl.core.jobs import JobContext
from repl.core.library_types import Cache, Tensor
from repl.generation.decode.kv_cache import can_reuse, is_plain_kv
from repl.generation.interface import Model
from repl.generation.measure import scoring
from repl.generation.measure.forward import cancellable_forward, input_device, input_ids
from repl.models import model_config

MAX_BATCH_LOGITS = 2**26  # logits of all rows that are read together
MAX_COPIED_TOKENS = 2**16  # tokens of the text that is copied for each of them, and of the rows


def score_continuations(
    resident: Model, context: Sequence[int], rows: Sequence[Sequence[int]], emit: JobContext
) -> list[tuple[float, ...]]:
    """Return the log-probability of each token of some continuations, in nats, each behind `context`.

    What the rows begin with in common is read in one pass with all the rest. A model whose cache cannot be copied, and
    a short text, are read anew for each row. Raises what `scoring.logits` raises.
    """
    first = scoring.next_logits(resident, context, emit, shared=True).log_softmax(-1)
    if max(map(len, rows)) == 1:
        return [(float(first[row[0]]),) for row in rows]
    found = _together(resident, list(context), first, rows, emit) if is_plain_kv(resident.model) else None
    return found or [_alone(resident, context, row, emit) for row in rows]


def _alone(resident: Model, context: Sequence[int], row: Sequence[int], emit: JobContext) -> tuple[float, ...]:
    scored = scoring.score(resident, [*context, *row], emit, len(context), shared=True)
    return tuple(one.logprob for one in scored)


def _together(
    resident: Model, context: list[int], first: Tensor, rows: Sequence[Sequence[int]], emit: JobContext
) -> list[tuple[float, ...]] | None:
    """Read the rows behind copies of the cache of the text; None where none is kept."""
    model, config, longest = resident.model, GenerationConfig(), len(context) + max(map(len, rows))
    if not can_reuse(model, config, longest) or 0 < resident.facts.context < longest:
        return None  # the other way says what is too long
    ids = input_ids(model, [*context, rows[0][0]])
    with resident.runtime.kv_cache.lend(model, config, ids, lambda: context) as (past, reused):
        if reused < len(context):
            return None
        found: list[tuple[float, ...]] = []
        with library_errors("the answers cannot be read"), cancellable_forward(model, emit.raise_if_cancelled):
            for some in _batches(resident, len(context), rows):
                found += _read(resident, past[library.cache_name()], len(context), first, some)
    return found


def _batches(resident: Model, context: int, rows: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Cut rows into as many as are read at once."""
    vocabulary = model_config.get_count(model_config.text_config(resident.model.config), "vocab_size")
    longest = max(map(len, rows))
    count = max(1, min(MAX_BATCH_LOGITS // (longest * max(1, vocabulary)), MAX_COPIED_TOKENS // (context + longest)))
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def _read(
    resident: Model, cache: Cache, context: int, first: Tensor, rows: Sequence[Sequence[int]]
) -> list[tuple[float, ...]]:
    """Read rows that are padded at their ends, which nothing before it sees."""
    longest, model = max(map(len, rows)), resident.model
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=input_device(model))
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(len(rows))
    given = {library.cache_name(): own, "use_cache": True}
    places = {name: each.expand(len(rows), -1) for name, each in scoring.place_ids(model, context, ids[:1]).items()}
    with torch.no_grad():
        logs = model(input_ids=ids, **given, **places).logits.float().log_softmax(-1)
    values = logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].tolist()
    starts = first[ids[:, 0].to(first.device)].tolist()
    pairs = zip(rows, starts, values, strict=True)
    return [(start, *row_values[: len(row) - 1]) for row, start, row_values in pairs]
