"""Prefix caching: the KV cache is kept between turns, and only the tokens after the common prefix are computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from transformers import DynamicCache, cache_utils

from repl.core import library
from repl.core.errors import Cancelled
from repl.core.library_types import Cache, CacheLayerMixin, GenerationConfig, PreTrainedConfig, PreTrainedModel, Tensor
from repl.generation.decode.detokenizer import common_length
from repl.models import model_config
from repl.models.reference import carries_on

CACHE_FIELDS = ("cache_implementation", "prompt_lookup_num_tokens", "token_healing", "use_mtp", "speculation_type")
"""Fields of a generation config that bring another cache, feed ids of their own, or change the prompt's."""
SCALED_ROPE_TYPES = ("dynamic", "longrope", "su")
"""Position embeddings that change for all tokens once a text is longer than the model was first trained for."""
LONG_TRIAL_TOKENS, TRIAL_TOKENS = 24, 8  # of a prompt that are tried: with unusual layers, and with usual
TRIAL_WINDOW_TOKENS = 4  # tokens of a sliding window in that trial


@dataclass(slots=True)
class CacheTraits:
    """The abilities of a loaded model's KV cache; found out once."""

    reusable: bool
    """Whether `generate` takes such a cache, and some layer tells how many tokens it has read."""
    scaling_start: int
    """Tokens beyond which position embeddings change for the whole text; 0 where they never do."""
    carries: bool | None = None
    """Whether reading goes on correctly from a cache; None before that was tried."""


TRAITS: WeakKeyDictionary[PreTrainedModel, CacheTraits] = WeakKeyDictionary()


def cache_traits(model: PreTrainedModel) -> CacheTraits:
    """Return the abilities of a loaded model's KV cache."""
    if model not in TRAITS:
        takes = library.takes_cache(model) and library.makes_dynamic_cache(model)
        reusable = takes and not model.config.is_encoder_decoder and any(map(_has_length, new_cache(model).layers))
        TRAITS[model] = CacheTraits(reusable, _scaling_start(model))
    return TRAITS[model]


def _scaling_start(model: PreTrainedModel) -> int:
    config = model_config.text_config(model.config)
    rope = model_config.get(config, "rope_parameters", "rope_scaling") or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # one, or one per kind of layer
    found = [part for part in parts if part.get("rope_type", part.get("type")) in SCALED_ROPE_TYPES]
    name = "original_max_position_embeddings"
    whole = model_config.get_count(config, name, "max_position_embeddings") or 1
    return min((int(part.get(name, whole)) for part in found), default=0)


class PrefixCache:
    """The KV cache of the last text, and the ids that it holds; only the model thread touches it."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids: list[int] = []

    def drop(self) -> None:
        """Drop the cache."""
        self._cache, self._ids = None, []

    def size(self) -> tuple[int, int]:
        """Return how many tokens are kept, and their bytes; a cropped tensor counts with all of its storage."""
        parts = [part for layer in getattr(self._cache, "layers", ()) for part in vars(layer).values()]
        tensors = [each for part in parts for each in (part.values() if isinstance(part, dict) else [part])]
        stores = [each.untyped_storage() for each in tensors if hasattr(each, "untyped_storage")]
        return len(self._ids), sum({each.data_ptr(): each.nbytes() for each in stores}.values())

    @contextmanager
    def lend(
        self, model: PreTrainedModel, config: GenerationConfig, prompt: Tensor, seen: Callable[[], list[int]]
    ) -> Iterator[tuple[dict[str, Cache], int]]:
        """Yield the cache argument of `generate`, and how many tokens of the prompt it holds already.

        `config` is the generation config of the call, `prompt` its ids, shape (1, tokens). After a reply, whole or
        cancelled, the valid part is kept; `seen` then returns the ids of prompt and reply. After an error nothing is.
        """
        if not can_reuse(model, config, prompt.shape[-1]):
            yield {}, 0
            return
        cache, reused = self._take(model, prompt)
        sound = cache_traits(model).scaling_start or None
        with watch_passes(model) as broken_off:
            try:
                yield {library.cache_name(): cache}, reused
            except Cancelled:
                self._give_back(cache, seen()[:sound], broken_off())
                raise
            self._give_back(cache, seen()[:sound], broken_off())

    def _take(self, model: PreTrainedModel, prompt: Tensor) -> tuple[Cache | None, int]:
        """Return a cache of a beginning of the prompt; at least the last token is left to compute."""
        cache, ids = self._cache, self._ids
        self.drop()  # from here on an interrupt leaves nothing behind that might be wrong
        reused = common_length(ids, prompt[0, :-1].tolist())
        if not reused or not crop(cache, reused) or not may_go_on(model, cache, prompt):
            cache, reused = lasting_cache(model), 0
        return cache, reused

    def _give_back(self, cache: Cache, ids: list[int], broken_off: bool) -> None:
        length = min(valid_length(cache, broken_off), len(ids))
        if length and crop(cache, length):
            self._cache, self._ids = cache, ids[:length]


def can_reuse(model: PreTrainedModel, config: GenerationConfig, prompt: int) -> bool:
    """Tell whether `generate` with this config may be given a cache, for a prompt of so many tokens."""
    beams, rows = config.num_beams or 1, config.num_return_sequences or 1
    if beams > 1 or rows > 1 or config.use_cache is False or any(getattr(config, name, None) for name in CACHE_FIELDS):
        return False
    traits = cache_traits(model)
    return traits.reusable and not 0 < traits.scaling_start < prompt


def may_go_on(model: PreTrainedModel, cache: Cache, prompt: Tensor) -> bool:
    """Tell whether reading a text in steps gives what reading it at once gives.

    The first tokens of `prompt`, shape (1, tokens), are tried once for a model; False where it has too few.
    """
    if any(type(layer).__module__ != "transformers.cache_utils" for layer in cache.layers):
        return False  # a kind of its own, which may treat what is read at once and what is made differently
    count = TRIAL_TOKENS if all(map(_is_plain, cache.layers)) else LONG_TRIAL_TOKENS
    tried, traits = prompt[:, :count], cache_traits(model)
    if tried.shape[-1] < count:
        return False
    if traits.carries is None:
        with narrow_window(model_config.text_config(model.config)):
            traits.carries = carries_on(model, tried, lambda: lasting_cache(model))
    return traits.carries


def new_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache of the kind that `generate` would make itself."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def lasting_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache whose sliding windows keep what slides out of them: else they cannot be cropped."""
    cache = new_cache(model)
    for layer in cache.layers:
        if _is_plain(layer) and hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    return cache


@contextmanager
def narrow_window(config: PreTrainedConfig) -> Iterator[None]:
    """Make the sliding window meanwhile so narrow that a few tokens go beyond it.

    moshi leaves the window to its cache: from a longer one, or in other steps, it reads other things.
    """
    window = model_config.get_count(config, "sliding_window")
    if window:
        config.sliding_window = min(window, TRIAL_WINDOW_TOKENS)
    try:
        yield
    finally:
        if window:
            config.sliding_window = window


def croppable_cache(model: PreTrainedModel) -> Cache | None:
    """Return an empty cache that can be cut back at any length; None where this model has none such."""
    cache = lasting_cache(model)
    return cache if all(map(_is_plain, cache.layers)) else None


@contextmanager
def watch_passes(model: PreTrainedModel) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a forward pass was begun and not ended."""
    under_way = [False]
    hooks = [
        model.register_forward_pre_hook(lambda *_: under_way.__setitem__(0, True)),
        model.register_forward_hook(lambda *_: under_way.__setitem__(0, False)),
    ]
    try:
        yield lambda: under_way[0]
    finally:
        for hook in hooks:
            hook.remove()


# layers


def is_plain_kv(model: PreTrainedModel) -> bool:
    """Tell whether a model's cache holds keys and values by position and nothing else: its rows can be copied."""
    return all(map(_is_plain, new_cache(model).layers))


def _is_plain(layer: CacheLayerMixin) -> bool:
    """Tell whether a layer holds keys and values by position and nothing else."""
    return type(layer) in (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer, cache_utils.DummyLayer)


def _has_length(layer: CacheLayerMixin) -> bool:
    """Tell whether a layer knows how many tokens it has read; recurrent ones do not."""
    return hasattr(layer, "get_seq_length")


def valid_length(cache: Cache, broken_off: bool) -> int:
    """Return how many tokens, from the first on, all layers hold; 0 where that cannot be told."""
    if broken_off:  # some layers are a step ahead of others
        whole = all(_is_plain(layer) and _holds_all(layer) for layer in cache.layers)
        return min((_count_whole(layer) for layer in cache.layers if _has_length(layer)), default=0) if whole else 0
    lengths = {int(layer.get_seq_length()) for layer in cache.layers if _has_length(layer) and _has_tokens(layer)}
    return lengths.pop() if len(lengths) == 1 else 0


def _has_tokens(layer: CacheLayerMixin) -> bool:
    return layer.is_initialized and layer.keys is not None


def _holds_all(layer: CacheLayerMixin) -> bool:
    """Tell whether a layer holds every token it has read."""
    return not _has_length(layer) or not _has_tokens(layer) or layer.keys.shape[-2] == layer.get_seq_length()


def _count_whole(layer: CacheLayerMixin) -> int:
    """Return the tokens of which a layer holds key and value: an interrupt may come between the two."""
    return min(layer.keys.shape[-2], layer.values.shape[-2]) if _has_tokens(layer) else 0


def can_crop(cache: Cache) -> bool:
    """Tell whether a cache holds keys and values by position and nothing else."""
    return bool(getattr(cache, "layers", ())) and all(map(_is_plain, cache.layers))


def crop(cache: Cache, length: int) -> bool:
    """Cut a cache back to its first tokens; False where it cannot be, and is then of no use any more.

    The library's own `crop` also cuts what a sliding window remembers, so that a second one comes out wrong.
    """
    layers = [layer for layer in cache.layers if _has_length(layer) and _has_tokens(layer)]
    if all(layer.get_seq_length() == length for layer in layers) and all(map(_is_even, layers)):
        return True
    return all(map(_is_plain, cache.layers)) and all(_crop(layer, length) for layer in layers)


def _is_even(layer: CacheLayerMixin) -> bool:
    return not _is_plain(layer) or layer.keys.shape == layer.values.shape


def _crop(layer: CacheLayerMixin, length: int) -> bool:
    left = layer.keys.shape[-2] - (layer.get_seq_length() - length)
    window = layer.sliding_window - 1 if layer.is_sliding else length
    if left < min(window, length):
        return False
    layer.keys, layer.values = layer.keys[..., :left, :], layer.values[..., :left, :]
    if layer.is_sliding:
        layer.cumulative_length = length
    return True
