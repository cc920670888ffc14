"""The call of `generate`: its arguments, from settings or a record, and the one decode loop of our own that it runs.

The loop takes the place of the library's, and the ids are the same. In come how tokens are chosen, for all rows alike
or for each in a way of its own; proposals, which are only checked; a streamer. What it does not cover, beams above all,
stays with the library: see `why_not`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers import CompileConfig, StopStringCriteria, WatermarkingConfig
from transformers.generation import GenerateDecoderOnlyOutput

from repl.core import decoding, fields, library
from repl.core.decoding import LENGTH_LIMITS
from repl.core.errors import library_errors
from repl.core.library_types import (
    BaseStreamer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    ModelOutput,
    PreTrainedModel,
    StoppingCriteriaList,
    Tensor,
)
from repl.core.settings import Decode, Settings
from repl.generation import word_forms
from repl.generation.decode import kv_cache
from repl.generation.interface import Model
from repl.generation.word_forms import Phrases

OUTPUT_FIELDS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
OWN_PROMPT_FIELDS = ("token_healing", "prefill_chunk_size", "use_mtp", "speculation_type")
"""Fields of a generation config that keep more than ids, and those that change the prompt or how it is read."""
DEVICES = ("cpu", "cuda", "meta")


# what `generate` is called with


@dataclass(frozen=True, slots=True)
class Arguments:
    """The generation config of one call of `generate`, and what has to be passed beside it.

    The config has every value that counts; the model's own is never changed.
    """

    config: Any
    off: dict[str, None]
    """Fields to switch off: None as an argument, because None in a config means the model's own value."""
    given: dict[str, Any]
    """The values that the config was made from, in the library's names."""
    phrases: Phrases | None = None
    """Texts that the reply must not contain, beside the tokens that the config bans."""
    loosely: str = ""
    """Why phrases are banned as their usual tokens alone; empty where there are none, or they are banned as text."""

    @classmethod
    def of_settings(cls, resident: Model, settings: Settings) -> "Arguments":
        """Return the arguments of a reply under these settings; raises `UsageError` for an id that does not exist."""
        for name, value in settings.extra:
            fields.check_ids(name, value, resident.facts.vocabulary)
        chosen = cls.of_values(resident.model, decoding.overrides(settings, resident.facts.base))
        decode = settings.decode
        return _add_words(resident, decode, chosen) if decode.ban or decode.boost else chosen

    @classmethod
    def of_values(cls, model: PreTrainedModel, values: Mapping[str, object]) -> "Arguments":
        """Return the arguments for values in the library's names; None switches a field off."""
        own = model.generation_config
        limit = [name for name in LENGTH_LIMITS if values.get(name) is not None]
        others = dict.fromkeys(name for name in LENGTH_LIMITS if limit and name not in limit)
        theirs = {name: value for name, value in fields.NEUTRAL.items() if getattr(own, name, None)}
        whole = {**theirs, **others, **values}
        config = copy.deepcopy(own)
        for name, value in whole.items():
            setattr(config, name, _build_value(name, value))
        if isinstance(config.stop_strings, str):
            config.stop_strings = [config.stop_strings]
        if config.pad_token_id is None:  # the library would do the same with a warning
            config.pad_token_id = next(iter(decoding.end_ids(config)), None)
        off = dict.fromkeys(
            name for name, value in whole.items() if value is None and getattr(own, name, None) is not None
        )
        return cls(config, off, dict(values))

    def recorded(self) -> dict[str, object]:
        """Return the values with the limit on length that came to be in effect."""
        lengths = {name: getattr(self.config, name) for name in LENGTH_LIMITS if self.given.get(name) is not None}
        return {**self.given, **lengths}


def _add_words(resident: Model, decode: Decode, chosen: Arguments) -> Arguments:
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
    found = Arguments.of_values(
        resident.model, {**chosen.given, **{name: value for name, value in more.items() if value}}
    )
    return replace(found, phrases=None if reason else phrases or None, loosely=reason)


def _why_tokens_alone(model: PreTrainedModel, config: GenerationConfig) -> str:
    if reason := why_not(model, config):
        return reason
    if (config.num_return_sequences or 1) > 1:
        return "several sequences are made at once"
    return "guidance_scale keeps a cache of its own" if config.guidance_scale not in (None, 1) else ""


def _build_value(name: str, value: object) -> object:
    """Return a value as a generation config holds it: of two fields an object that JSON has the parts of.

    Raises `Failed` for a part that the library's class does not have.
    """
    kinds: dict[str, Any] = {"watermarking_config": WatermarkingConfig, "compile_config": CompileConfig}
    if name not in kinds or not isinstance(value, Mapping):
        return value
    with library_errors(f"{name} cannot be made"):
        return kinds[name](**value)


# the loop


class RowChoice(Protocol):
    """How the tokens of all rows are chosen, and which rows go on."""

    @property
    def copies(self) -> int:
        """Return how many rows are made of each prompt."""

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the next tokens, shape (rows,); `logits`, shape (rows, vocab) in float32, may be changed."""

    def left(self, ids: Tensor) -> Sequence[int]:
        """Return the places of the rows that go on after their new tokens; none ends the reply."""


class Proposals(Protocol):
    """A source of draft tokens; one saves a forward pass if it is the token that the model chooses anyway."""

    def offer(self, ids: Tensor, room: int) -> list[int]:
        """Return up to `room` ids that may follow `ids`, shape (1, tokens)."""

    def settle(self, made: int) -> None:
        """Take note of how many tokens the pass over the last offer produced; 1 if none of it was accepted."""


class Ban(Protocol):
    """Takes tokens back: its choice may shorten the text before it returns a token."""

    def over(self, choice: RowChoice, text: "RowIds") -> RowChoice:
        """Return the choice to make in place of another, in a text of one row."""


def why_not(model: PreTrainedModel, config: GenerationConfig) -> str:
    """Return why the library's own loop is used for a model with a generation config; empty if ours is."""
    if library.decodes_itself(type(model)) or "generate" in vars(model):
        return "this model overrides parts of generate()"
    if model.config.is_encoder_decoder:
        return "this model is an encoder-decoder"
    if model.device.type not in DEVICES:
        return f"the library has a loop of its own for {model.device.type}"
    if model.device.type != "cpu" and config.cache_implementation:
        return "the library compiles steps for this kind of cache"
    mode = str(config.get_generation_mode().value)
    if mode not in ("greedy_search", "sample"):
        return f"{mode.replace('_', ' ')} is decoded by the library"
    return next((f"{name} is set" for name in (*OUTPUT_FIELDS, *OWN_PROMPT_FIELDS) if getattr(config, name, None)), "")


def generate(
    model: PreTrainedModel,
    proposals: Proposals | None = None,
    choice: RowChoice | None = None,
    mask: LogitsProcessor = None,
    ban: Ban | None = None,
    **given: Any,
) -> ModelOutput:
    """Call the library's `generate` with our loop, or as it is where that does not fit.

    `given` are the arguments of `generate`, `generation_config` among them; `choice` and `ban` need a model that
    `why_not` has nothing against, and there are no proposals beside a ban. `mask` is a processor that comes before all
    others; in the library's loops, before our others.
    """
    with torch.inference_mode():
        if why_not(model, effective_config(model, given)):
            ours = {"logits_processor": [mask, *(given.get("logits_processor") or ())]} if mask else {}
            return model.generate(**{**given, **ours})
        loop = Loop(given.get("streamer"), proposals, choice, mask, ban)
        return model.generate(**_for_own_loop(model, given), custom_generate=loop)


def put_first(mask: LogitsProcessor, processors: LogitsProcessorList) -> LogitsProcessorList:
    """Return processors with one before them, where there is one."""
    return type(processors)([mask, *processors]) if mask else processors


def capture_processors(
    model: PreTrainedModel, mask: LogitsProcessor = None, **given: Any
) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
    """Return the logits processors and the stopping criteria that `generate` would use; the model is not run."""

    def catch(
        model: object, ids: object, logits_processor: object, stopping_criteria: object, **_: object
    ) -> tuple[object, object]:
        return logits_processor, stopping_criteria

    processors, criteria = model.generate(**_for_own_loop(model, given), custom_generate=catch)
    return put_first(mask, processors), criteria


def effective_config(model: PreTrainedModel, given: dict[str, Any]) -> Any:
    """Return the generation config of a call: None in it means the model's value, an argument comes first."""
    config = copy.copy(given["generation_config"])
    for name, value in vars(model.generation_config).items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    for name in set(given) & set(vars(config)):
        setattr(config, name, given[name])
    return config


def _for_own_loop(model: PreTrainedModel, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate`, stop strings as a criterion: it gives own loops no tokenizer."""
    strings, config = effective_config(model, given).stop_strings, copy.copy(given["generation_config"])
    rest = {name: value for name, value in given.items() if name not in ("tokenizer", "stop_strings")}
    if strings and "tokenizer" in given:
        criterion = StopStringCriteria(given["tokenizer"], strings)
        rest["stopping_criteria"] = [*(given.get("stopping_criteria") or ()), criterion]
    config.stop_strings = None
    if model.generation_config.stop_strings:  # None in a config means these
        rest["stop_strings"] = None
    return {**rest, "generation_config": config}


@dataclass(frozen=True, slots=True)
class Loop:
    """The function for `generate(custom_generate=...)`: one pass over the prompt, then one for each step."""

    streamer: BaseStreamer = None
    proposals: Proposals | None = None
    choice: RowChoice | None = None
    mask: LogitsProcessor = None
    ban: Ban | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **given: Any,
    ) -> Any:
        """Return the ids, shape (rows, tokens), or a `GenerateDecoderOnlyOutput` with the cache, as `_sample` does."""
        rows = input_ids.shape[0]
        processors = put_first(self.mask, logits_processor)
        choice = self.choice or Alike(processors, stopping_criteria, generation_config, rows)
        text = RowIds(model, input_ids, given)
        logits = text.read([])
        if choice.copies > 1:
            logits = text.multiply(logits, choice.copies)
        if self.ban is not None:
            choice = self.ban.over(choice, text)
        with library.decoding(model):
            self._decode(text, choice, logits, generation_config.max_length)
        if self.streamer is not None:
            self.streamer.end()
        if not generation_config.return_dict_in_generate:
            return text.ids
        return GenerateDecoderOnlyOutput(sequences=text.ids, **{library.cache_name(): text.cache})

    def _decode(self, text: "RowIds", choice: RowChoice, logits: Tensor, most: int) -> None:
        """Make tokens until all rows have ended; no text gets longer than `most`."""
        going = self._take(text, choice, logits, [])
        del logits
        while going:
            length = text.ids.shape[-1]
            draft = [] if self.proposals is None else self.proposals.offer(text.ids, most - length - 1)
            logits = text.read(draft)
            going = self._take(text, choice, logits, draft)
            if self.proposals is not None:
                self.proposals.settle(text.ids.shape[-1] - length)

    def _take(self, text: "RowIds", choice: RowChoice, logits: Tensor, draft: list[int]) -> bool:
        """Choose tokens for as long as a draft has them, from logits of shape (rows, draft + 1, vocab).

        Returns whether a row goes on.
        """
        left: Sequence[int] = ()
        for place, proposed in enumerate([*draft, None]):
            tokens = choice.choose(text.ids, logits[:, place])
            wrong = proposed is not None and int(tokens) != proposed
            if wrong:
                text.forget()  # before anybody hears of it: a cancel may come any time
            text.ids = torch.cat([text.ids, tokens[:, None]], dim=-1)
            left = choice.left(text.ids)
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            if wrong or not left:
                break
        if 0 < len(left) < text.ids.shape[0]:
            text.keep(left)
        return bool(left)


class Alike:
    """All rows have the processors, criteria and draws of one call, as in `_sample`; a row that has ended is padded."""

    copies = 1

    def __init__(
        self, processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig, rows: int
    ) -> None:
        self._processors, self._criteria, self._draws = processors, criteria, config.do_sample
        ends = [each.eos_token_id for each in criteria if hasattr(each, "eos_token_id")]
        self._pad = config.pad_token_id if config.pad_token_id is not None or not ends else int(ends[0].flatten()[0])
        self._pads = bool(ends)
        self._going: Any = True
        self._rows = range(rows)

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Take the likeliest tokens, or draw with the very calls of the library: they decide what a seed gives."""
        scores = self._processors(ids, logits)
        if self._draws:
            tokens = torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if self._pads and self._going is not True:
            tokens = tokens.masked_fill(~self._going, self._pad)
        return tokens

    def left(self, ids: Tensor) -> Sequence[int]:
        """Return all rows for as long as one of them goes on."""
        self._going = ~self._criteria(ids, None) & self._going
        return self._rows if bool(self._going.any()) else ()


class RowIds:
    """The ids of all rows so far, shape (rows, tokens), and the other inputs of the next forward pass.

    `given` are the arguments of a forward pass that `generate` has prepared for the prompt.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, given: dict[str, Any]) -> None:
        self.ids, self._model = ids, model
        self._name = next((name for name in library.CACHE_NAMES if name in given), library.cache_name())
        self.cache = given.pop(self._name, None)
        self._mask, self._positions = given.pop("attention_mask", None), given.pop("position_ids", None)
        self._rest, self._first = given, True
        known = any(hasattr(layer, "get_seq_length") for layer in getattr(self.cache, "layers", ()))
        self._read = int(self.cache.get_seq_length()) if known else 0  # tokens that the cache holds

    def read(self, draft: list[int]) -> Tensor:
        """Run the model on what it has not read and on a draft behind it.

        Returns the logits behind the last token and those of the draft, shape (rows, draft + 1, vocab), as a copy:
        so that the logits of a long prompt can be freed.
        """
        ids = torch.cat([self.ids, self.ids.new_tensor([draft])], -1) if draft else self.ids
        end, count = ids.shape[-1], len(draft) + 1
        fresh = end - self._read if self._read and self._rest.get("use_cache") else None
        inputs = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=fresh, is_first_iteration=self._first, **self._arguments(end, count)
        )
        output = self._model(**inputs, return_dict=True)
        self.cache = library.cache_of(output) or self.cache
        self._read, self._first = end, False
        return output.logits[:, -count:].to(copy=True, dtype=torch.float32, device=ids.device)

    def _arguments(self, end: int, count: int) -> dict[str, Any]:
        """Return the arguments for a text of `end` tokens: mask and positions reach to its end."""
        found = dict(self._rest) if self.cache is None else {**self._rest, self._name: self.cache}
        if "logits_to_keep" in found:
            found["logits_to_keep"] = count
        if self._mask is not None:
            more = self._mask.new_ones(self._mask.shape[0], end - self._mask.shape[-1])
            found["attention_mask"] = torch.cat([self._mask, more], -1)
        if self._positions is not None:
            steps = torch.arange(1, end - self._positions.shape[-1] + 1, device=self._positions.device)
            found["position_ids"] = torch.cat([self._positions, self._positions[..., -1:] + steps], -1)
        return found

    def forget(self) -> None:
        """Crop the cache to the text."""
        self._read = self.ids.shape[-1]
        kv_cache.crop(self.cache, self._read)

    def shorten(self, length: int) -> None:
        """Shorten the text; a cache that cannot be cropped is given up, and all of it read again."""
        self.ids = self.ids[:, :length]
        if self._read <= length:
            return
        self._read = length
        if self.cache is not None and not (kv_cache.can_crop(self.cache) and kv_cache.crop(self.cache, length)):
            self.cache, self._read, self._first = None, 0, True

    def multiply(self, logits: Tensor, count: int) -> Tensor:
        """Make a text of one row one of many, with a cache of its own; returns logits for all of them."""
        self.cache = copy.deepcopy(self.cache)
        self.cache.batch_repeat_interleave(count)
        self._select([0] * count)
        return logits.repeat(count, 1, 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Leave out the rows that have ended."""
        self.cache.batch_select_indices(self._select(rows))

    def _select(self, rows: Sequence[int]) -> Tensor:
        places = torch.tensor(list(rows), device=self.ids.device)
        self.ids = self.ids[places]
        self._mask = None if self._mask is None else self._mask[places]
        self._positions = None if self._positions is None else self._positions.index_select(-2, places)
        return places
