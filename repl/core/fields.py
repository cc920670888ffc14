"""The fields of `GenerationConfig` that are not settings: the values each one takes, and why some have no effect.

In comes the name of a field and a word; out comes the value that `generate` takes, as JSON has it, or a `UsageError`
with a line to type. Checks that depend on the model are in `generation/decode/loop.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from repl.core.errors import UsageError
from repl.core.values import Choice, Flag, Integer, Kind, Number, OneOf

CACHES = ("dynamic", "static", "offloaded", "offloaded_static", "quantized")


@dataclass(frozen=True, slots=True)
class Json(Kind):
    """A value in JSON that passes a check."""

    phrase: str = "a value in JSON"
    check: Callable[[Any], bool] = lambda value: value is not None

    def parse(self, word: str) -> Any:
        """Read JSON that passes the check."""
        value = json.loads(word)
        if not self.check(value):
            raise ValueError
        return value

    def show(self, value: Any) -> str:
        """Return the JSON."""
        return json.dumps(value)


def is_id(value: object) -> TypeGuard[int]:
    """Tell whether a value may be a token id."""
    return type(value) is int and value >= 0


def is_ids(value: object) -> bool:
    """Tell whether a value is a list of token ids, at least one."""
    return isinstance(value, list) and bool(value) and all(map(is_id, value))


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and abs(value) != float("inf")


def _is_words(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_ids, value))


def _is_biases(value: object) -> bool:
    pairs = value if isinstance(value, list) and value else [None]
    return all(isinstance(one, list) and len(one) == 2 and is_ids(one[0]) and _is_number(one[1]) for one in pairs)


def _is_decay(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_id(value[0]) and _is_number(value[1]) and value[1] > 0


def _options(checks: Mapping[str, Callable[[object], bool]]) -> Json:
    """Return the kind of a JSON object that has some of these keys, each with a value that passes its check."""

    def fits(value: object) -> bool:
        given = value if isinstance(value, dict) else {}
        return bool(given) and all(key in checks and checks[key](given[key]) for key in given)

    return Json(f"a JSON object with some of {', '.join(checks)}", fits)


def _one_of(*words: object) -> Callable[[object], bool]:
    return lambda value: type(value) in map(type, words) and value in words


IDS = Json("a list of token ids", is_ids)
ID_OR_IDS = OneOf("a token id or a list of them", (Integer(0), IDS))
BELOW_ONE = Number(least=0, below=1)
CACHE_OPTIONS = _options(
    {"backend": _one_of("quanto", "hqq", "fp8"), "nbits": _one_of(1, 2, 3, 4, 8)}
    | dict.fromkeys(("axis_key", "axis_value"), _one_of(0, 1, -1))
    | dict.fromkeys(("q_group_size", "residual_length"), is_id)
)
MARK_OPTIONS = _options(
    {
        "greenlist_ratio": lambda value: _is_number(value) and 0 < value < 1,
        "bias": _is_number,
        "hashing_key": is_id,
        "seeding_scheme": _one_of("lefthash", "selfhash"),
        "context_width": lambda value: is_id(value) and value > 0,
    }
)
COMPILE_OPTIONS = _options(
    {
        "fullgraph": _one_of(True, False),
        "dynamic": _one_of(True, False, None),
        "backend": lambda value: isinstance(value, str) and bool(value),
        "mode": _one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        "options": lambda value: value is None or isinstance(value, dict),
    }
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field: the kind of its value, an example, and the value that `none` stands for (None: pass None)."""

    kind: Kind = Json()
    example: str = "JSON"
    off: object = None
    idle: str = ""
    """Why setting it has no effect; empty where it has."""
    hints: tuple[str, ...] = ()
    """Lines to type instead where it has no effect."""
    heeded: bool = True
    """Whether a value in the model's own generation config has an effect, so that it can be switched off."""


def _unused(why: str, *hints: str) -> Field:
    return Field(idle=why, hints=hints or ("/settings",), heeded=False)


SHAPE = _unused("it changes what `generate` returns besides the text", "/logprobs 5")
DRAFTS = Field(
    idle="it controls the library's assisted decoding, which hub-repl does not use",
    hints=("/assistant ID", "/prompt_lookup 10"),
)
REMOTE = {
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa decoding",
    "num_beam_groups": "group beam search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
}
"""Fields for decoding methods that the library runs only with code from the Hub."""


def _remote(mode: str, off: object = None) -> Field:
    why = f"it is for {mode}, which needs code from the Hub (custom_generate), which hub-repl does not run"
    return Field(off=off, idle=why, hints=("/beams 4", "/sample"))


FIELDS: dict[str, Field] = {
    "min_length": Field(Integer(0), "20", 0),
    "max_time": Field(Number(above=0), "5"),
    "use_cache": Field(Flag(), "off", False),
    "cache_implementation": Field(Choice(CACHES), "static"),
    "cache_config": Field(CACHE_OPTIONS, '{"nbits": 4}'),
    "max_cache_len": Field(Integer(1), "512"),
    "prefill_chunk_size": Field(Integer(1), "256"),
    "top_h": Field(Number(above=0, most=1), "0.4"),
    "epsilon_cutoff": Field(BELOW_ONE, "0.0003", 0.0),
    "eta_cutoff": Field(BELOW_ONE, "0.0003", 0.0),
    "encoder_repetition_penalty": Field(Number(above=0), "1.2", 1.0),
    "encoder_no_repeat_ngram_size": Field(Integer(0), "3", 0),
    "bad_words_ids": Field(Json("a list of lists of token ids", _is_words), "[[5], [7, 9]]"),
    "renormalize_logits": Field(Flag(), "on", False),
    "forced_bos_token_id": Field(Integer(0), "5"),
    "forced_eos_token_id": Field(ID_OR_IDS, "2"),
    "remove_invalid_values": Field(Flag(), "on", False),
    "exponential_decay_length_penalty": Field(Json("[start, factor], a factor above 0", _is_decay), "[20, 1.05]"),
    "suppress_tokens": Field(IDS, "[5, 7]"),
    "begin_suppress_tokens": Field(IDS, "[5, 7]"),
    "sequence_bias": Field(Json("a list of [token ids, bias] pairs", _is_biases), "[[[5], -2.5], [[7, 9], 1.0]]"),
    "token_healing": Field(Flag(), "on", False),
    "guidance_scale": Field(Number(least=0), "1.5", 1.0),
    "watermarking_config": Field(MARK_OPTIONS, '{"bias": 2.0}'),
    "eos_token_id": Field(ID_OR_IDS, "[2, 5]"),
    "compile_config": Field(COMPILE_OPTIONS, '{"mode": "default"}'),
    "disable_compile": Field(Flag(), "on", False),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), SHAPE),
    "return_dict_in_generate": SHAPE,
    **dict.fromkeys(("num_assistant_tokens", "assistant_lookbehind", "target_lookbehind", "use_mtp"), DRAFTS),
    **dict.fromkeys(("max_matching_ngram_size", "assistant_early_exit", "prompt_lookup_num_tokens"), DRAFTS),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_ensemble_weight", "speculation_type"), DRAFTS),
    "num_assistant_tokens_schedule": DRAFTS,
    "is_assistant": _unused("it is for the smaller model that assists another", "/assistant ID"),
    "pad_token_id": _unused("it pads rows after their end, which is cut off here"),
    "bos_token_id": _unused("it is used only without a prompt"),
    "decoder_start_token_id": _unused("it is for models with an encoder"),
    "continuous_batching_config": _unused("it is for the library's continuous batching, which hub-repl does not use"),
    "low_memory": _unused("the library no longer reads it"),
    "transformers_version": _unused("it names the version that wrote the config", "/version"),
    **{name: _remote(mode) for name, mode in REMOTE.items()},
    "num_beam_groups": _remote(REMOTE["num_beam_groups"], 1),
    "diversity_penalty": _remote(REMOTE["num_beam_groups"], 0.0),
}
WITH_IDS = (
    *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("sequence_bias", "eos_token_id"),
)
"""Fields that hold token ids."""
NEUTRAL = {
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_logits", "is_assistant"), False),
    "assistant_early_exit": None,  # cancelling such a reply would leave the model with fewer layers
}
"""Values that override a model's own generation config in every reply."""


def find_field(name: str) -> Field:
    """Return the entry of a field; a field that is newer than this table takes JSON."""
    return FIELDS.get(name, Field())


def read_field(name: str, word: str, model: Mapping[str, Any]) -> Any:
    """Read the value of a field; None means that `generate` gets None as an argument.

    `model` is the model's own generation config: its values can be switched off even where they cannot be set.
    Raises `UsageError` with a line to type.
    """
    spot = find_field(name)
    if word.strip().lower() == "none" and (not spot.idle or (spot.heeded and name in model)):
        return spot.off
    if spot.idle:
        raise UsageError(f"{name} has no effect here: {spot.idle}", *spot.hints)
    try:
        return spot.kind.read(word)
    except UsageError as error:
        raise UsageError(f"{name} {error.message}", f"/set {name} {spot.example}", f"/set {name} none") from None


def ids(value: object) -> Iterator[int]:
    """Yield the token ids in a value, at any depth."""
    if is_id(value):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from ids(item)


def check_ids(name: str, value: object, vocabulary: int) -> None:
    """Raise `UsageError` for a token id that the model does not have."""
    parts = [pair[0] for pair in value] if name == "sequence_bias" and isinstance(value, list) else value
    wrong = [one for one in ids(parts) if one >= vocabulary] if name in WITH_IDS and vocabulary else []
    if wrong:
        said = f"{name} {wrong[0]} is not a token of this model: its ids go from 0 to {vocabulary - 1}"
        raise UsageError(said, "/tokens --ids TEXT")
