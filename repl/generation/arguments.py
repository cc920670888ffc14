"""What `generate` is called with: made here alone, from settings or from the values of a record.

In come values in the library's names, where None switches a field off; out comes the generation config, with every
value that counts in it, and what has to be passed as an argument beside it: in a config None means "as the model has
it". The model itself is never changed.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import CompileConfig, WatermarkingConfig

from repl.core import decoding, fields
from repl.core.decoding import LENGTH_LIMITS
from repl.core.errors import library_errors
from repl.core.library_types import GenerationConfig, PreTrainedModel
from repl.core.settings import Decode, Settings
from repl.generation import word_forms
from repl.generation.decode import loop
from repl.generation.interface import Model
from repl.generation.word_forms import NO_PHRASES, Phrases


@dataclass(frozen=True, slots=True)
class Arguments:
    """The generation config of one call, the arguments beside it (all None), and the values that it was made from."""

    config: Any
    off: dict[str, None]
    given: dict[str, Any]
    phrases: Phrases = NO_PHRASES
    """What the text may not hold, beside the tokens that the config bans."""
    loosely: str = ""
    """Why phrases are banned by their usual tokens alone; empty where there are none, or they are banned as text."""

    def recorded(self) -> dict[str, object]:
        """Return the values with the limit on length that came to be in effect."""
        lengths = {name: getattr(self.config, name) for name in LENGTH_LIMITS if self.given.get(name) is not None}
        return {**self.given, **lengths}


def of_settings(resident: Model, settings: Settings) -> Arguments:
    """Return what a reply under these settings is made with; raises `UsageError` for a token that there is not."""
    for name, value in settings.extra:
        fields.check_ids(name, value, resident.facts.vocabulary)
    chosen = of_values(resident.model, decoding.overrides(settings, resident.facts.base))
    return _with_words(resident, settings.decode, chosen) if settings.decode.ban or settings.decode.boost else chosen


def _with_words(resident: Model, decode: Decode, chosen: Arguments) -> Arguments:
    """Return the arguments with what is banned and boosted, beside what the model's own config brings."""
    words = word_forms.read_words(resident.tokenizer, decode.ban or ())
    phrases, config = word_forms.banned_phrases(words), chosen.config
    reason = _why_tokens_alone(resident.model, config) if phrases else ""
    own = config.sequence_bias or []
    pairs = [[list(ids), bias] for ids, bias in (own.items() if isinstance(own, dict) else own)]
    more = {
        "bad_words_ids": [*(config.bad_words_ids or []), *word_forms.banned_ids(words, bool(reason))],
        "sequence_bias": [*pairs, *word_forms.biases(resident.tokenizer, decode.boost or ())],
    }
    found = of_values(resident.model, {**chosen.given, **{name: value for name, value in more.items() if value}})
    return replace(found, phrases=NO_PHRASES if reason else phrases, loosely=reason)


def _why_tokens_alone(model: PreTrainedModel, config: GenerationConfig) -> str:
    if reason := loop.why_not(model, config):
        return reason
    if (config.num_return_sequences or 1) > 1:
        return "several sequences are made at once"
    return "guidance_scale keeps a cache of its own" if config.guidance_scale not in (None, 1) else ""


def of_values(model: PreTrainedModel, values: Mapping[str, object]) -> Arguments:
    """Return what `generate` is called with for values in the library's names; None switches a field off."""
    own = model.generation_config
    limit = [name for name in LENGTH_LIMITS if values.get(name) is not None]
    others = dict.fromkeys(name for name in LENGTH_LIMITS if limit and name not in limit)
    theirs = {name: value for name, value in fields.NEUTRAL.items() if getattr(own, name, None)}
    whole = {**theirs, **others, **values}
    config = copy.deepcopy(own)
    for name, value in whole.items():
        setattr(config, name, _built(name, value))
    if isinstance(config.stop_strings, str):
        config.stop_strings = [config.stop_strings]
    if config.pad_token_id is None:  # the library would do the same with a warning
        config.pad_token_id = next(iter(decoding.end_ids(config)), None)
    off = dict.fromkeys(name for name, value in whole.items() if value is None and getattr(own, name, None) is not None)
    return Arguments(config, off, dict(values))


def _built(name: str, value: object) -> object:
    """Return a value as a generation config holds it: of two fields an object that JSON has the parts of.

    Raises `Failed` for a part that the library's class does not have.
    """
    kinds: dict[str, Any] = {"watermarking_config": WatermarkingConfig, "compile_config": CompileConfig}
    if name not in kinds or not isinstance(value, Mapping):
        return value
    with library_errors(f"{name} cannot be made"):
        return kinds[name](**value)
