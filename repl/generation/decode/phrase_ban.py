"""Keep banned phrases out of a reply: where one is complete, go back to its first token and choose another there.

A token is masked at a place if decoding that goes on from it, by its own rule, masks and draws, first comes to hold a
banned phrase that begins with this token. That is:

- the text is what the reply would say if it ended there, behind the text that it goes on from;
- of several phrases that are complete at once the one counts that begins last;
- a phrase begins with the first token behind which the text reads as it does up to the phrase's first character, and
  with the reply's first token where it begins before the reply;
- the numbers of a random draw belong to its place: a draw that is repeated has the same ones, with fewer tokens left.

So the ids are those of a plain reply with the same seed whose logits are masked at some places, and these are few: the
record names them. Nothing that may be taken back is given out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from repl.core.errors import Failed
from repl.core.library_types import BaseStreamer, PreTrainedTokenizerBase, Tensor
from repl.core.reply import Reply, TakenBack
from repl.generation.decode.detokenizer import Detokenizer, token_text
from repl.generation.decode.loop import RowChoice, RowIds
from repl.generation.measure.forward import Meter
from repl.generation.word_forms import Phrases

BROKEN = "\ufffd"  # what a part of a character reads as
MAX_LOST_TOKENS = 1000
"""Tokens taken back since one was given out, at most: then all ways lead to a phrase."""


@dataclass(frozen=True, slots=True)
class TextSoFar:
    """A text up to some token: what reads it on, how much of it is settled, and how it reads if it ends here."""

    detokenizer: Detokenizer
    settled: str
    text: str

    @classmethod
    def behind(cls, tokenizer: PreTrainedTokenizerBase, ids: list[int], phrases: Phrases) -> "TextSoFar":
        """Return the text of some ids, as far as phrases may begin in it."""
        lead = str(tokenizer.decode(ids, skip_special_tokens=True))[-phrases.longest - 1 :]
        return cls(Detokenizer(tokenizer, ids), lead, lead)

    def feed(self, token: int) -> "TextSoFar":
        """Return the text with one token more."""
        reader = self.detokenizer.fork()
        settled = self.settled + reader.feed(token)
        return TextSoFar(reader, settled, settled + reader.fork().flush())

    def cut(self, count: int) -> "TextSoFar":
        """Return the text without its first characters."""
        return TextSoFar(self.detokenizer, self.settled[max(0, count) :], self.text[max(0, count) :])


@dataclass(slots=True)
class Step:
    """A place that may be decided anew: logits of the model there, the generator's state, the tokens taken away."""

    logits: Tensor
    random: Tensor | None
    banned: list[int] = field(default_factory=list)
    ids: Any = None
    """The token, shape (1,)."""
    reading: Any = None
    """The text with the token."""


class PhraseBan:
    """Chooses the tokens of one reply in place of `over`, and is its streamer: one object, for one reply of one row.

    It is a logits processor too, which the choice has to have.

    `reading` is the text that the reply goes on from; `meter` measures each token while its logits are the last ones;
    `emit` hears what is taken back; `draws` tells that tokens are drawn at random.
    """

    copies = 1

    def __init__(
        self, phrases: Phrases, reading: TextSoFar, meter: Meter, emit: Callable[[TakenBack], None], draws: bool
    ) -> None:
        self._phrases, self._reading, self._meter, self._emit, self._draws = phrases, reading, meter, emit, draws
        self._steps: list[Step] = []  # not given out yet
        self._figures: list[dict[str, Any]] = []  # of their tokens
        self._start = self._lost = 0
        self.first_at = 0.0  # when the first token was chosen; it may be given out later
        self._streamer: Any = None
        self._choice: Any = None
        self._text: Any = None
        self._gone: list[TakenBack] = []

    # as the choice of the loop

    def over(self, choice: RowChoice, text: RowIds) -> RowChoice:
        """Choose by another choice from now on, in a text that may be shortened."""
        self._choice, self._text, self._start = choice, text, text.ids.shape[-1]
        return self

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the next token behind the text, which may be shorter then."""
        self._steps.append(Step(logits.clone(), generator_state(logits.device) if self._draws else None))
        while True:
            step = self._steps[-1]
            self._draw(step)
            begun = self._phrases.find_last(step.reading.text, len(self._reading.text))
            if begun is None:
                return step.ids
            self._go_back(step.reading.text, begun)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores without what was taken away at the next place: one of the processors of the choice."""
        scores[:, self._steps[-1].banned] = -torch.inf
        if not bool(scores.isfinite().any()):
            raise self._no_way()
        return scores

    def left(self, ids: Tensor) -> Tensor:
        """Return the rows that go on."""
        return self._choice.left(ids)

    def _draw(self, step: Step) -> None:
        if self._lost > MAX_LOST_TOKENS:
            raise self._no_way()
        if step.banned and step.random is not None:
            generator_state(step.logits.device, step.random)
        step.ids = self._choice.choose(self._text.ids, step.logits.clone())
        before = self._steps[-2].reading if len(self._steps) > 1 else self._reading
        step.reading = before.feed(int(step.ids))

    def _go_back(self, text: str, begun: int) -> None:
        """Take back all tokens from the first one of a phrase on, and that one away from its place."""
        lead = text[: begun + 1]
        place = next(n for n, step in enumerate(self._steps) if step.reading.text[: begun + 1] == lead)
        first, lost = self._steps[place], self._steps[place:]
        made = self._text.ids.shape[-1] - self._start - (len(self._steps) - 1) + place  # tokens before it
        before = self._steps[place - 1].reading if place else self._reading
        gone = TakenBack(made + 1, tuple(int(step.ids) for step in lost), text[len(before.text) :])
        self._gone = [*self.taken_back(gone.place), gone]
        first.banned.append(gone.token_ids[0])
        del self._steps[place + 1 :], self._figures[place:]
        self._lost += len(lost)
        self._text.shorten(self._start + made)
        self._meter.rewind(made, first.logits)
        self._emit(gone)

    def _no_way(self) -> Failed:
        gone = self._gone[-1].text.strip() if self._gone else ""
        said = f"every continuation leads to a banned text, lastly {gone!r}" if gone else "all is banned"
        return Failed(said, "/ban off", "/retry")

    # as its streamer

    def stream(self, streamer: BaseStreamer) -> BaseStreamer:
        """Give the tokens out through another streamer, whose figures are `next_figures`."""
        self._streamer = streamer
        return self

    def put(self, value: Tensor) -> None:
        """Take the prompt, or the token that was just chosen, and give out what cannot be taken back any more."""
        if self._text is None:
            self._streamer.put(value)
            return
        self.first_at = self.first_at or time.monotonic()
        self._figures.append(self._meter.measure(int(value)))
        if self._is_clean(self._steps[-1].reading):
            self._give_out()

    def end(self) -> None:
        """Give out the rest."""
        if self._steps:
            self._give_out()
        self._streamer.end()

    def taken_back(self, length: int) -> tuple[TakenBack, ...]:
        """Return what was taken back at the first places of the text as it stands."""
        return tuple(one for one in self._gone if one.place <= length)

    def next_figures(self, token: int) -> dict[str, Any]:
        """Return the figures of the token that is given out."""
        return self._figures.pop(0)

    def _is_clean(self, reading: TextSoFar) -> bool:
        """Tell whether no phrase can begin in a text that ends here, whatever follows."""
        return reading.settled == reading.text and self._phrases.find_begun(reading.text) == len(reading.text)

    def _give_out(self) -> None:
        """Give out all tokens: none of them is taken back any more."""
        context = self._phrases.longest + 1
        steps, self._steps, self._lost = self._steps, [], 0
        self._reading = steps[-1].reading.cut(len(steps[-1].reading.text) - context)
        for step in steps:
            self._streamer.put(step.ids.cpu())


class NextBan:
    """A logits processor for one place: it masks the tokens that complete a banned phrase behind a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phrases: Phrases, reading: TextSoFar) -> None:
        self._tokenizer, self._phrases, self._reading = tokenizer, phrases, reading

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of the place without these tokens."""
        length, endings = len(self._reading.text), self._phrases.find_endings(self._reading.text)
        texts = ((token, token_text(self._tokenizer, token)) for token in range(scores.shape[-1]))
        likely = [token for token, text in texts if BROKEN in text or any(ending in text for ending in endings)]
        gone = [one for one in likely if self._phrases.find_last(self._reading.feed(one).text, length) is not None]
        scores[:, gone] = -torch.inf
        return scores


def next_ban(
    tokenizer: PreTrainedTokenizerBase, phrases: Phrases | None, prompt: list[int], seeded: bool
) -> list[NextBan]:
    """Return what keeps banned phrases out of the first token behind a prompt, where there are any.

    `seeded` tells that the text goes on from the prompt's.
    """
    if not phrases:
        return []
    return [NextBan(tokenizer, phrases, TextSoFar.behind(tokenizer, prompt if seeded else [], phrases))]


class RecordedBan:
    """A logits processor that masks the same tokens as were taken back when a reply was made."""

    def __init__(self, record: Reply) -> None:
        self._masked = record.masked

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores without the tokens that were taken away behind as many ids."""
        scores[:, self._masked.get(ids.shape[-1], [])] = -torch.inf
        return scores


def recorded_ban(record: Reply) -> list[RecordedBan]:
    """Return what kept banned phrases out of a recorded reply; nothing where nothing was taken back."""
    return [RecordedBan(record)] if record.taken_back else []


def generator_state(device: torch.device, state: Tensor | None = None) -> Tensor:
    """Return the state of a device's random numbers, and set it where one is given."""
    if device.type == "cpu":
        if state is not None:
            torch.set_rng_state(state)
        return torch.get_rng_state()
    module: Any = torch.get_device_module(device)
    if state is not None:
        module.set_rng_state(state, device)
    found: Tensor = module.get_rng_state(device)
    return found
