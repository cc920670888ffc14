"""The messages of a conversation answered anew: by another model or under other settings, beside what was answered."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import log

from repl.analysis import answerers
from repl.analysis.answerers import Answer, Aside, LocalAnswerer, Query, RemoteAnswerer
from repl.analysis.variants import Variant
from repl.core import decoding
from repl.core.conversation import Conversation, message
from repl.core.errors import Cancelled, ReplError, UsageError
from repl.core.events import ColumnEvent, Progress, SideBySide
from repl.core.jobs import JobContext
from repl.core.parts import Parts
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation.request import Message, encode
from repl.generation.runtime import Model, Models


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and its recorded answer; `messages` are the chat up to it, none for a text to complete."""

    turn: int
    text: str
    messages: tuple[Message, ...]
    turns: tuple[int, ...]
    record: Reply

    @property
    def load(self) -> Load:
        """How the model that answered was loaded."""
        known = {spot.name for spot in fields(Load)}
        return Load(**{name: value for name, value in self.record.load.items() if name in known})

    def asked(self, messages: tuple[Message, ...]) -> Query:
        """Return what is asked after the messages before it as they are now."""
        return Query(self.text, messages, self.turns, self.record.prefill)


def exchanges(talk: Conversation) -> list[Exchange]:
    """Return the messages of a conversation with their answers; without any, the texts that were completed."""
    path, system = talk.path(), (0,) if talk.system else ()
    found = []
    for place, (asked, reply) in enumerate(pairwise(path), 1):
        if asked.role == "user" and reply.record is not None:
            turns = (*system, *(turn.id for turn in path[:place]))
            found.append(Exchange(asked.id, asked.text, tuple(talk.messages(asked.id)), turns, reply.record))
    if found:
        return found
    last = {turn.parent: turn.record for turn in talk.turns.values() if turn.role == "completion" and turn.record}
    return [Exchange(turn.id, turn.text, (), (), last[turn.id]) for turn in talk.turns.values() if turn.id in last]


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits per byte of an answer: under the model that was recorded, and under the one that answers anew."""

    recorded: float | None = None
    anew: float | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """One message answered anew, after `messages`, and how likely either answer is for either model."""

    exchange: Exchange
    made: Answer
    messages: tuple[Message, ...]
    before: Bits = Bits()
    """Of the recorded answer."""
    after: Bits = Bits()
    """Of the new answer."""
    alike: bool = False
    """Whether a token id is the same token for both models."""


@dataclass(slots=True)
class Rehearsal:
    """Answers messages anew, each after the new answers before it, or `pinned` to the recorded ones.

    `home` is how the model of the session is loaded: it, and what is in memory anyway, weighs the new answers.
    """

    store: Models
    variant: Variant
    talk: Sequence[Exchange]
    pinned: bool
    home: Load
    found: list[Again] = field(default_factory=list)
    """What is done so far."""
    known: dict[Load, int] = field(default_factory=dict)
    """Tokenizers of the models that were in memory."""

    def run(self, emit: JobContext) -> None:
        """Answer everything; a cancel ends it with what there is. For the model thread; raises a `ReplError`."""
        try:
            held = self.store.residents()
            self.known = {each.load: answerers.vocabulary(each.tokenizer) for each in held}
            held.clear()  # else this frame keeps a model that has to go
            with answerers.open_answerer(self.store, self.variant, emit) as side:
                self._answer_all(side, emit)
            for load in dict.fromkeys(again.exchange.load for again in self.found if again.exchange.record.load):
                if not self._here(load) and (load == self.home or self.store.holds(load)):
                    self._weigh_all(load, Aside(emit, 0))
        except Cancelled:
            emit.begin_cleanup()
            if not self.found:
                raise
        self.store.trim()
        self.store.tidy()

    def _here(self, load: Load) -> bool:
        """Tell whether the model that answers anew is the one that was recorded, loaded alike."""
        return self.variant.server is None and load == self.variant.settings.load

    def _answer_all(self, side: LocalAnswerer | RemoteAnswerer, emit: JobContext) -> None:
        self._check(side)
        said: tuple[Message, ...] = ()
        for place, exchange in enumerate(self.talk, 1):
            stage = f"answer {place} of {len(self.talk)}"
            emit(SideBySide((f"{self.variant.title} · {stage}",)))
            emit(ColumnEvent(0, Progress(stage)))
            messages = exchange.messages if self.pinned or not said else (*said, exchange.messages[-1])
            again = self._answered(side, exchange, messages, Aside(emit, 0))
            self.found.append(again)
            if emit.stopped():
                raise Cancelled
            if again.made.problem and not self.pinned:
                return  # what follows would answer an answer that is not there
            if isinstance(side, LocalAnswerer) and again.made.done:
                self.found[-1] = self._weighed(side.resident, again, Aside(emit, 0))
            parts = again.made.done.parts if again.made.done else Parts()
            said = (*messages, message("assistant", answerers.full_text(again.made), parts)) if messages else ()

    def _check(self, side: LocalAnswerer | RemoteAnswerer) -> None:
        """Refuse a model that cannot chat; raises `UsageError`."""
        mode = self.variant.settings.view.mode
        if (
            self.talk[0].messages
            and isinstance(side, LocalAnswerer)
            and not side.resident.facts.chats
            and mode != "chat"
        ):
            name = side.resident.facts.name
            raise UsageError(f"{name} has no chat template, which a conversation needs", f"/compare now {name}")

    def _answered(
        self, side: LocalAnswerer | RemoteAnswerer, exchange: Exchange, messages: tuple[Message, ...], aside: Aside
    ) -> Again:
        seed = exchange.record.seed  # draw as the record did, where it drew
        try:
            drawn = secrets.randbits(31) if seed is None else seed
            return Again(exchange, side.answer(self.variant, exchange.asked(messages), drawn, aside), messages)
        except ReplError as error:
            return Again(exchange, answerers.failed(self.variant, error, aside.tokens), messages)

    def _weighed(self, resident: Model, again: Again, aside: Aside) -> Again:
        """Weigh both answers with the model that made the new one."""
        exchange, record, made = again.exchange, again.exchange.record, again.made
        same = (record.model.id, record.model.commit) == (resident.facts.id, resident.facts.commit)
        alike = same or self.known.get(exchange.load) == made.vocabulary
        told = exchange.asked(exchange.messages)
        before = weigh(resident, self.variant.settings, told, record.raw, record.token_ids if alike else (), aside)
        after = bits(made.logprobs[: len(_bare(resident, made.ids))], made.text)
        one = bool(record.load) and self._here(exchange.load)
        return replace(
            again, before=Bits(before if one else None, before), after=Bits(after if one else None, after), alike=alike
        )

    def _weigh_all(self, load: Load, aside: Aside) -> None:
        """Weigh the answers with a model that made some of the recorded ones."""
        try:
            resident = answerers.get_model(self.store, load, aside)
        except ReplError:  # a figure less: the answers are there
            return
        known = answerers.vocabulary(resident.tokenizer)
        for place, again in enumerate(self.found):
            if again.exchange.load != load or again.made.done is None:
                continue
            aside(Progress("weigh the answers", place, len(self.found), "answers"))
            record, made, alike = again.exchange.record, again.made, known == again.made.vocabulary
            before = bits(
                answerers.weighed(resident, record.prompt_ids, _bare(resident, record.token_ids), aside), record.raw
            )
            asked = again.exchange.asked(again.messages)
            after = weigh(resident, self.variant.settings, asked, made.text, made.ids if alike else (), aside)
            self.found[place] = replace(
                again,
                before=replace(again.before, recorded=before),
                after=replace(again.after, recorded=after),
                alike=alike,
            )


def weigh(
    resident: Model, chosen: Settings, asked: Query, text: str, ids: Sequence[int], emit: JobContext
) -> float | None:
    """Return the bits per byte of an answer under a model; `ids` are its own for this text, where it has some."""
    with suppress(ReplError):  # too long for this model: a figure less
        prompt = encode(resident, asked.request(chosen, resident.facts.chats), 1, emit).ids
        own = _bare(resident, ids) or [int(one) for one in resident.tokenizer(text, add_special_tokens=False).input_ids]
        return bits(answerers.weighed(resident, prompt, own, emit), text)
    return None


def _bare(resident: Model, ids: Sequence[int]) -> Sequence[int]:
    """Leave the token out that ended an answer: it is no part of the text."""
    return ids[:-1] if ids and ids[-1] in decoding.stops(resident.model.generation_config) else ids


def bits(logprobs: Sequence[float], text: str) -> float | None:
    """Return bits per byte of UTF-8 for the log-probabilities of a text's tokens, in nats."""
    size = len(text.encode("utf-8", "replace"))
    return -sum(logprobs) / log(2) / size if logprobs and size else None
