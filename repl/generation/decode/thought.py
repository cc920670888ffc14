"""Other settings inside of a thought than after it, and an end to the thought: a logits processor that goes by place.

In come the setting `think` and what reads the reply's parts; out comes the processor, and what it did for the record.
Inside of the thought its own warpers hold, elsewhere those of the reply; the library's are switched off meanwhile. A
thought that is too long is closed: the ids of its closing tag are all that can come.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from repl.core.decoding import SAMPLING
from repl.core.errors import UsageError
from repl.core.events import Token
from repl.core.library_types import GenerationConfig, PreTrainedTokenizerBase, Tensor
from repl.core.parts import TAGS, THINKING, PartsReader
from repl.core.reply import WARPS_NOTHING, Reply, ThoughtRecord, named_warpers
from repl.generation.decode.detokenizer import Detokenizer, Reading, reply_form
from repl.generation.word_forms import token_ids


def has_thoughts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a model writes thoughts: its template or its vocabulary has a tag around them."""
    added = map(str, tokenizer.added_tokens_decoder.values())
    written = "\0".join([str(getattr(tokenizer, "chat_template", "")), *added])
    return reply_form(tokenizer).channels or any(tag.kind == THINKING and tag.opens.strip() in written for tag in TAGS)


def make_switch(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, reading: Reading | None, prompt: int, config: Any
) -> "ThoughtSwitch | None":
    """Return what decodes thoughts with these options, None outside of chats; changes the config of the call.

    Raises `UsageError` where a model writes no thoughts, and for several sequences.
    """
    if reading is None:
        return None
    if not has_thoughts(tokenizer):
        raise UsageError("this model generates no thoughts, which /think is for", "/think off")
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise UsageError("/think works with one sequence at a time", "/think off", "/beams 1")
    outside = {name: getattr(config, name) for name in SAMPLING} if config.do_sample else {"do_sample": False}
    inside = {**outside, **{name: value for name, value in options.items() if name in SAMPLING}}
    if inside != outside:
        inside.pop("do_sample", None)
        neutralise(config)
    return ThoughtSwitch(tokenizer, reading, prompt, options.get("max", 0), inside, outside)


def neutralise(config: GenerationConfig) -> None:
    """Switch the warpers of the library off."""
    for name, value in WARPS_NOTHING.items():
        setattr(config, name, value)


def only(scores: Tensor, ids: Tensor) -> Tensor:
    """Return scores with nothing left but these ids, shape (rows, ids)."""
    return torch.full_like(scores, -torch.inf).scatter(-1, ids, 0.0)


def make_warpers(values: Mapping[str, Any]) -> list[Any]:
    """Return the warpers that the library makes of these values, in its order."""
    if values.get("do_sample") is False:
        return [transformers.TopKLogitsWarper(1)]
    return [getattr(transformers, kind)(value) for kind, value in named_warpers(values)]


class ThoughtSwitch:
    """The logits processor of one reply of one row; a text that gets shorter again is read anew."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reading: Reading,
        prompt: int,
        most: int,
        inside: Mapping[str, Any],
        outside: Mapping[str, Any],
    ) -> None:
        self._tokenizer, self._reading, self._prompt, self._most = tokenizer, reading, prompt, most
        self._values = dict(inside), dict(outside)
        differ = inside != outside
        self._warpers = (make_warpers(inside), make_warpers(outside)) if differ else ([], [])
        self._begin()

    def _begin(self) -> None:
        self._made: list[int] = []
        self._inside: list[bool] = []  # for each place whether it lies in a thought
        self._forced: list[tuple[int, int]] = []  # places and ids of the closing tag
        self._detokenizer = Detokenizer(self._tokenizer)
        self._reader: PartsReader = self._reading.begin_tags()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores as the settings at this place make them."""
        self._follow(ids[0, self._prompt :].tolist())
        place, closes = len(self._made), self._reader.closes_thought
        self._inside[place:] = [bool(closes)]
        if closes and self._most and sum(self._inside) > self._most and not self._forced:
            tag = token_ids(self._tokenizer, closes)
            self._forced = [(place + n, token) for n, token in enumerate(tag)]
        if (forced := dict(self._forced).get(place)) is not None:
            return only(scores, scores.new_tensor([[forced]], dtype=torch.long))
        for warp in self._warpers[0 if closes else 1]:
            scores = warp(ids, scores)
        return scores

    def _follow(self, made: list[int]) -> None:
        if made[: len(self._made)] != self._made:
            forced = self._forced if self._forced and self._forced[0][0] < len(made) else []
            self._begin()
            self._forced = forced
        for token in made[len(self._made) :]:
            self._inside[len(self._made) :] = [bool(self._reader.closes_thought)]
            self._made.append(token)
            self._reading.take(self._reader, Token(self._detokenizer.feed(token), token))

    def record(self, length: int) -> ThoughtRecord:
        """Return what was done for a reply of so many tokens."""
        inside = tuple(place for place, one in enumerate(self._inside[:length], 1) if one)
        return ThoughtRecord(inside, tuple(one for one in self._forced if one[0] < length), *self._values)


class RecordedSwitch:
    """The logits processor that does again what was done for a recorded reply, behind a prompt of so many ids."""

    def __init__(self, found: ThoughtRecord, prompt: int) -> None:
        self._prompt, self._forced, self._places = prompt, dict(found.forced), frozenset(found.places)
        self._warpers = make_warpers(found.inside), make_warpers(found.outside)
        self._differ = found.differs

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores as the settings at this place made them."""
        place = ids.shape[-1] - self._prompt
        if place in self._forced:
            return only(scores, scores.new_tensor([[self._forced[place]]], dtype=torch.long))
        for warp in self._warpers[0 if place + 1 in self._places else 1] if self._differ else ():
            scores = warp(ids, scores)
        return scores


def recorded_switch(record: Reply, prompt: Sequence[int], config: GenerationConfig) -> list[RecordedSwitch]:
    """Return what decoded the thought of a recorded reply, for its last call; changes the config of the call."""
    if record.thought is None:
        return []
    if record.thought.differs:
        neutralise(config)
    return [RecordedSwitch(record.thought, len(prompt))]
