"""Reference results from the library's `generate`, which faster computations are checked against."""

from collections.abc import Callable
from typing import Any

import torch

from repl.core import library
from repl.core.library_types import Cache, PreTrainedModel, Tensor

GREEDY_CALL: dict[str, Any] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
GREEDY_CALL |= {"return_dict_in_generate": True, "output_logits": True}
"""Arguments of `generate` for the likeliest tokens, with their logits."""
KEPT_FIELD_ENDS = ("token_id", "version", "from_model_config")
"""Endings of generation config fields that stay in effect for a reference; all others are switched off."""
TIMES_CLOSER, TIMES_CLOSER_HALF = 50, 4  # than logits without the beginning; in half precision
TRIAL_ANSWER_TOKENS = 3  # length of the short answer
TOLERANCE = 1e-3  # of the largest logit: how far two computations may differ in float32


def reference_logits(model: PreTrainedModel, ids: Tensor, cache: Cache = None) -> Tensor:
    """Return the logits `generate` computes after `ids`, shape (1, tokens): float32, shape (vocab,).

    `cache` holds the beginning of the ids; it is filled up to their end.
    """
    return generate_plainly(model, ids, cache).logits[0][0].float()


def generate_plainly(
    model: PreTrainedModel, ids: Tensor, cache: Cache = None, tokens: int = 1, mask: Tensor = None
) -> Tensor:
    """Generate exactly so many greedy tokens after `ids`, with their logits; see `reference_logits`.

    `mask` is the attention mask of ids that are padded.
    """
    given = {library.cache_name(): cache} if cache is not None else {}
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens if tokens > 1 else None}
    off = {name: None for name in model.generation_config.to_diff_dict() if not name.endswith(KEPT_FIELD_ENDS)}
    with torch.inference_mode():
        values = {**off, **GREEDY_CALL, **length, **given}
        return model.generate(**values, input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask)


def carries_on(model: PreTrainedModel, ids: Tensor, blank: Callable[[], object]) -> bool:
    """Tell whether `generate` continues from a cache as if it had read everything at once.

    Some models ignore a cache or use it wrongly, and some keep state beyond the tokens they make (moshi). The same text
    (half of `ids`, a short answer, the other half) is read at once, from a cache that made the answer, and without its
    beginning: the logits from the cache must be far closer to the first than those without the beginning.
    """
    half, cache = ids.shape[-1] // 2, blank()
    try:
        made = generate_plainly(model, ids[:, :half], cache, TRIAL_ANSWER_TOKENS).sequences
        ids = torch.cat([made, ids[:, half:]], dim=-1)
        halves, whole = reference_logits(model, ids, cache), reference_logits(model, ids)
        alone = reference_logits(model, ids[:, made.shape[-1] :])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):  # it does not take them so
        return False
    times = TIMES_CLOSER if torch.finfo(model.dtype).bits > 16 else TIMES_CLOSER_HALF
    return bool((halves - whole).abs().max() * times < (alone - whole).abs().max())


def same_logits(logits: Tensor, expected: Tensor, dtype: object, tolerance: float = TOLERANCE) -> bool:
    """Tell whether two rows of logits, shape (vocab,), agree within the rounding of a dtype."""
    most = max(tolerance, 8 * torch.finfo(dtype).eps) * max(1.0, float(expected.abs().max()))
    return logits.shape == expected.shape and bool((logits - expected).abs().max() <= most)
