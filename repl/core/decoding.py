"""The decoding values of a reply: the user's, else the model's, else the library's; and conflicts between them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from repl.core.errors import UsageError
from repl.core.fields import FIELDS, REMOTE
from repl.core.library_types import GenerationConfig
from repl.core.settings import Decode, Settings, find_setting, setting_kind
from repl.core.values import did_you_mean, show_value

NEW_TOKENS = 512  # most tokens of a reply where neither you nor the model say
LENGTH_LIMITS = ("max_new_tokens", "max_length")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
WARPERS = (*SAMPLING, "top_h", "epsilon_cutoff", "eta_cutoff")  # what only sampling heeds
BEAMS = ("length_penalty", "early_stopping")
AHEAD = ("prompt_lookup", "assistant")
LOOKUP_TOKENS = 15  # looked up at once where nothing else is said: on a CPU the last ones cost next to nothing
APART = ("seed", "format", "ban", "boost", "think", "reuse", "overflow", *AHEAD)
"""Settings that are no fields of the library's generation config."""
PREFIX = "template."  # of the variables that a chat template reads
SERVER = "server."  # of the fields that only the server in use knows
PENALTIES = ("frequency_penalty", "presence_penalty")  # what only servers know
OURS = {"stop": "stop_strings"}  # settings that the library calls otherwise
STATIC = ("static", "offloaded_static")  # caches


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """A model's own generation config, the library's defaults, and every field name of that config."""

    model: Mapping[str, Any]
    library: Mapping[str, Any]
    known: frozenset[str] = frozenset()


NOTHING = ModelDefaults({}, {})


@dataclass(frozen=True, slots=True)
class Value:
    """A value in effect and where it comes from: default, model, config, command line or you."""

    value: Any
    origin: str


def draft_source(chosen: Settings) -> str:
    """Return the setting that turns speculative decoding on, empty if none does."""
    if chosen.decode.assistant != "none":
        return "assistant"
    return "prompt_lookup" if chosen.decode.prompt_lookup else ""


def effective_values(settings: Settings, base: ModelDefaults) -> dict[str, Value]:
    """Return every decoding value in effect for the next reply."""
    names = [spot.name for spot in fields(Decode) if spot.name not in LENGTH_LIMITS]
    table = {name: _value(name, settings, base) for name in names}
    table.update({name: Value(value, "you") for name, value in _fields(settings)})
    others = {name: Value(value, "model") for name, value in base.model.items() if name not in table}
    return {
        **_length(settings, base),
        **table,
        **{n: v for n, v in others.items() if n not in (*LENGTH_LIMITS, "stop_strings")},
    }


def _value(name: str, settings: Settings, base: ModelDefaults) -> Value:
    own, library = settings.get(name), OURS.get(name, name)
    if own is not None:
        return Value(own, settings.origins.get(name, "default"))
    if base.model.get(library) is not None:
        return Value(base.model[library], "model")
    return Value(base.library.get(library, own), "default")


def _length(settings: Settings, base: ModelDefaults) -> dict[str, Value]:
    """Return the one limit on length that counts: the user's, else the model's, else `NEW_TOKENS`."""
    own = [name for name in LENGTH_LIMITS if settings.get(name) is not None]
    if own:
        return {own[0]: Value(settings.get(own[0]), settings.origins.get(own[0], "default"))}
    theirs = [name for name in LENGTH_LIMITS if base.model.get(name)]
    if theirs:
        return {theirs[0]: Value(base.model[theirs[0]], "model")}
    return {"max_new_tokens": Value(NEW_TOKENS, "default")}


def overrides(settings: Settings, base: ModelDefaults) -> dict[str, Any]:
    """Return the values that override the model's own generation config, in the library's names.

    None switches a field off that the model's config sets.
    """
    own = {name: settings.get(name) for name in (spot.name for spot in fields(Decode)) if name not in APART}
    given = {OURS.get(name, name): value for name, value in own.items() if value is not None}
    if "stop_strings" in given:
        given["stop_strings"] = list(given["stop_strings"]) or None
    limits = {name: item.value for name, item in _length(settings, base).items()}
    others = {name: value for name, value in _fields(settings) if name not in PENALTIES}
    values = {**dict.fromkeys(LENGTH_LIMITS), **given, **limits, **others}
    return {name: value for name, value in values.items() if value is not None or name in base.model}


def _fields(settings: Settings) -> list[tuple[str, object]]:
    """Return the fields of the library's generation config that were set by name; other names have a prefix."""
    return [(name, value) for name, value in settings.extra if not name.startswith((PREFIX, SERVER))]


IN_PHRASE = {"num_beams", "do_sample", "temperature", "top_k", "top_p", "min_p"}
"""The settings that `phrase` names."""


def phrase(table: Mapping[str, Value]) -> str:
    """Return the decoding method in a few words: `greedy`, `beams 4`, `sample T=0.7 p=0.9`."""
    values = {name: item.value for name, item in table.items()}
    beams = values.get("num_beams") or 1
    words = [f"beams {beams}"] if beams > 1 else []
    if values.get("do_sample"):
        shown = (("T", "temperature", 1.0), ("k", "top_k", 0), ("p", "top_p", 1.0), ("min_p", "min_p", 0.0))
        kept = [f"{sign}={values[name]:g}" for sign, name, off in shown if values.get(name) not in (None, off)]
        words.append(" ".join(["sample", *kept]))
    return " ".join(words) or "greedy"


@dataclass(frozen=True, slots=True)
class Idle:
    """Why a value that was just set has no effect; a line that changes that, and its effect."""

    said: str
    line: str = ""
    effect: str = ""


def find_idle(name: str, settings: Settings, base: ModelDefaults, chats: bool = False) -> Idle | None:
    """Return why a value that was just set has no effect, None if it has one; `chats`: messages use a template."""
    values = {key: item.value for key, item in effective_values(settings, base).items()}
    shown = settings.get(name) if is_setting(name) else show_value(dict(settings.extra).get(name))
    beams = (values.get("num_beams") or 1) > 1
    if name in (*WARPERS, "seed") and not values.get("do_sample"):
        if beams:
            said = f"{name} {shown} · beam search does not sample, so it is not used yet"
            return Idle(said, "/do_sample on", "turns on beam sampling")
        return Idle(f"{name} {shown} · decoding is greedy, so it is not used yet", "/sample", "samples")
    if name in BEAMS and not beams:
        return Idle(f"{name} {shown} · there are no beams, so it is not used yet", "/beams 4", "searches with 4 beams")
    several = beams or (values.get("num_return_sequences") or 1) > 1
    if name == "prompt_lookup" and shown and several:
        said = "prompt_lookup has no effect while several sequences are generated"
        return Idle(said, "/greedy", "generates one")
    if name == "token_healing" and shown == "on" and chats:
        said = "token_healing on · it works on plain text only: chat messages are refused, /raw TEXT is not"
        return Idle(said, "/mode complete", "continues plain text")
    return _lacking(name, values)


def _lacking(name: str, values: Mapping[str, Any]) -> Idle | None:
    """Return which other value a field of the library's needs to have an effect."""
    kept = values.get("cache_implementation")
    if name == "cache_config" and kept != "quantized":
        line = "/set cache_implementation quantized"
        return Idle("cache_config has no effect without a quantized cache", line, "uses one")
    if name == "max_cache_len" and kept not in STATIC:
        line = "/set cache_implementation static"
        return Idle("max_cache_len has no effect without a static cache", line, "uses one")
    if name in ("compile_config", "disable_compile"):
        line = "/set cache_implementation static"
        return Idle(f"{name} has an effect only on a GPU with a static cache", line, "uses a static cache")
    if name == "forced_bos_token_id":
        return Idle("forced_bos_token_id has an effect only after a prompt of one token · /raw TEXT")
    most, least = values.get("max_new_tokens"), values.get("min_new_tokens")
    if name in ("max_new_tokens", "min_new_tokens") and most and least and least > most:
        said = f"min_new_tokens {least} cannot be reached: max_new_tokens is {most}"
        return Idle(said, f"/max {least}", f"allows {least}")
    if name == "min_length" and values.get("min_new_tokens"):
        return Idle("min_length has no effect beside min_new_tokens", "/min_new_tokens none", "unsets that")
    return None


def check_values(settings: Settings, base: ModelDefaults) -> None:
    """Check values that the library would only refuse in the middle of a reply; raises `UsageError`."""
    table = effective_values(settings, base)
    values = {key: item.value for key, item in table.items()}
    contrasts = not values.get("do_sample") and (values.get("num_beams") or 1) == 1 and (values.get("top_k") or 0) > 1
    asked = [name for name in REMOTE if values.get(name) not in (None, 0, FIELDS[name].off)]
    if asking := [name for name in asked if contrasts or name != "penalty_alpha"]:
        said = f"{REMOTE[asking[0]]} needs code from the Hub (custom_generate), which hub-repl does not run"
        raise UsageError(said, *(f"/set {name} none" for name in asking))
    _sensible(table)
    if values.get("prefill_chunk_size") and values.get("use_cache") is False:
        hints = "/set use_cache default", "/set prefill_chunk_size none"
        raise UsageError("prefill_chunk_size needs the KV cache, but use_cache is off", *hints)
    if values.get("exponential_decay_length_penalty") and "eos_token_id" in values and values["eos_token_id"] is None:
        hints = "/set exponential_decay_length_penalty none", "/set eos_token_id default"
        raise UsageError("exponential_decay_length_penalty needs an end token, and eos_token_id is none", *hints)
    wanted, beams = values.get("num_return_sequences") or 1, values.get("num_beams") or 1
    if wanted > beams and not (values.get("do_sample") and beams == 1):
        more = f"/beams {wanted}"
        raise UsageError(f"num_return_sequences {wanted} needs sampling or at least {wanted} beams", "/sample", more)
    if settings.decode.prompt_lookup and settings.decode.assistant != "none":
        raise UsageError("prompt_lookup and an assistant cannot be combined", "/assistant none", "/prompt_lookup off")


def remarks(base: ModelDefaults) -> list[str]:
    """Return why a model's own generation config would refuse every reply, with a remedy; mostly empty."""
    try:
        check_values(Settings(), base)
    except UsageError as error:
        return [" · ".join((error.message, *error.hints))]
    return []


def _sensible(table: Mapping[str, Value]) -> None:
    """Raise `UsageError` for a value of the model's own that the library refuses, with what puts it right."""
    values = {name: item.value for name, item in table.items() if item.origin == "model"}
    samples = bool(table["do_sample"].value) if "do_sample" in table else False
    if samples and "temperature" in values and not values["temperature"]:
        raise UsageError(
            "the model's generation config samples with temperature 0, which is greedy decoding",
            *("/greedy", "/temperature 0.7"),
        )
    names = ("repetition_penalty", "no_repeat_ngram_size", "num_beams", *(SAMPLING if samples else ()))
    for name in (name for name in names if name in values):
        if name == "top_p" and values[name] == 0:  # the library takes it as greedy
            continue
        try:
            setting_kind(name).read(str(values[name]))
        except UsageError as error:
            said = f"{name} of the model's generation config: {error.message}"
            raise UsageError(said, f"/{name} none") from None


def fit_context(config: GenerationConfig, prompt: int, context: int, model: str) -> str:
    """Limit the reply to the context after a prompt of so many tokens; returns a notice, mostly empty.

    `config` is the generation config of this reply, `context` 0 where there is no limit. Raises `UsageError` when
    nothing fits behind the prompt.
    """
    if config.max_length is not None and config.max_length <= prompt:
        longer = f"/max_length {prompt + 50}"
        raise UsageError(f"the prompt has {prompt} tokens, but max_length is {config.max_length}", longer, "/max 50")
    if not context:
        return ""
    if prompt >= context:
        raise UsageError(f"the prompt has {prompt} tokens; {model}'s context is {context}")
    if config.max_length is not None:
        config.max_length = min(config.max_length, context)
    room = context - prompt
    if config.max_new_tokens is None or config.max_new_tokens <= room:
        return ""
    config.max_new_tokens = room
    late = prompt * 2 > context  # before that, nobody needs to know
    return f"max_new_tokens is {room} for this reply: the context is {context} tokens" if late else ""


def end_ids(config: GenerationConfig) -> list[int]:
    """Return the ids that end a sequence."""
    found = config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def find_other(name: str, base: ModelDefaults) -> str:
    """Return the name of a field of the library's GenerationConfig; raises `UsageError` with the nearest name."""
    if name in base.known and not name.startswith("_"):
        return name
    public = [one for one in base.known if not one.startswith("_")]
    like = did_you_mean(name, [*public, *(spot.name for spot in fields(Decode))])
    raise UsageError(f"no setting {name!r}, and no such field in generation_config{like}", "/settings")


def is_setting(name: str) -> bool:
    """Tell whether a word names a setting of ours."""
    try:
        find_setting(name)
    except UsageError:
        return False
    return True
