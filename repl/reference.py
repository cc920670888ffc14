"""What `generate` itself has behind a text: the yardstick for whatever is computed in another way."""

from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from repl import library

PLAIN: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "max_new_tokens": 1, "min_new_tokens": None},
    **{"stop_strings": None, "prompt_lookup_num_tokens": None, "cache_implementation": None, "guidance_scale": None},
    **{"return_dict_in_generate": True, "output_logits": True, "use_cache": True},
}
"""Arguments of `generate` for one token with nothing of a model's own generation config in the way."""
TIMES, COARSE = 50, 4  # so much closer has the right way to be than reading without what came before, in half precision
CLOSE = 1e-3  # of the largest logit: how far two ways to the same number may lie apart in float32


def following(model: Any, ids: Any, cache: Any = None) -> Any:
    """Return the float32 logits behind `ids`, shape (1, tokens), as `generate` has them: shape (vocab,).

    `cache` holds the beginning of the ids; it is filled up to their end.
    """
    import torch

    given = {library.cache_name(): cache} if cache is not None else {}
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **PLAIN, **given)
    return output.logits[0][0].float()


def carries_on(model: Any, ids: Any, blank: Callable[[], Any]) -> bool:
    """Tell whether `generate` goes on from a cache as if it had read everything at once.

    Some models take a cache and heed it wrongly or not at all, without a word. `ids` are read at once, in two halves,
    and the second half alone: the halves must come far closer to the whole.
    """
    import torch

    half, cache = ids.shape[-1] // 2, blank()
    try:
        following(model, ids[:, :half], cache)
        halves, whole, alone = following(model, ids, cache), following(model, ids), following(model, ids[:, half:])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):  # it cannot be asked so
        return False
    times = TIMES if torch.finfo(model.dtype).bits > 16 else COARSE
    return bool((halves - whole).abs().max() * times < (alone - whole).abs().max())


def same(logits: Any, expected: Any, dtype: Any) -> bool:
    """Tell whether two rows of logits, shape (vocab,), are the same up to how a dtype rounds."""
    import torch

    most = max(CLOSE, 8 * torch.finfo(dtype).eps) * max(1.0, float(expected.abs().max()))
    return logits.shape == expected.shape and bool((logits - expected).abs().max() <= most)


class Known:
    """What was once found out about each loaded model."""

    def __init__(self) -> None:
        self._found: MutableMapping[Any, Any] = WeakKeyDictionary()

    def get(self, model: Any, find: Callable[[], Any]) -> Any:
        """Return what is known of a model; `find` finds it out where nothing is."""
        if model not in self._found:
            self._found[model] = find()
        return self._found[model]
