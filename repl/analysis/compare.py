"""One message answered in several ways, by servers at the same time, and where the answers differ."""

import secrets
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import log
from statistics import fmean

from repl.analysis.answerers import (
    Answer,
    Answerer,
    ColumnContext,
    Problem,
    ThreadContext,
    open_answerer,
)
from repl.analysis.variants import Variant
from repl.core.errors import Cancelled, ReplError
from repl.core.events import Notice, SideBySide
from repl.core.jobs import JobContext, beside
from repl.core.reply import Reply
from repl.generation.decode.detokenizer import common_length
from repl.generation.interface import Models
from repl.session.position import Question


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer differs from another: the number of its token there, from 1, and the characters to mark.

    There are none if the answer ends there.
    """

    token: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Column:
    """One answer: its settings as typed, the model, where it differs from the first answer, and its record.

    `bytes` is the size of the weights. `mean_logprob` (nats) and `bits_per_byte` are in the model's own distribution.
    """

    title: str
    model: str
    bytes: int
    mean_logprob: float | None
    bits_per_byte: float | None
    text: str
    difference: Difference | None
    problem: Problem | None
    done: Reply | None


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one message.

    `exchange` is the number of the message that was asked again, None for a new one. `shown` tells whether thoughts
    are shown, folded or hidden.
    """

    prompt: str
    exchange: int | None
    columns: list[Column]
    shown: str = "show"


@dataclass(frozen=True, slots=True)
class Compared(Answers):
    """Answers of which /pick takes one; `whole` is False if they were stopped early."""

    whole: bool = True


def answer_all(
    store: Models, variants: Sequence[Variant], asked: Question, emit: JobContext, made: dict[int, Answer]
) -> None:
    """Answer in every way and add each answer to `made`, by column, when it is finished; for the model thread.

    Servers answer at the same time, while the local models take turns. An error is shown in its column and does not
    stop the others; a cancel keeps the answers so far. The KV caches of the models are not changed. If two models do
    not fit in memory together, the current one is unloaded.
    """
    seed = secrets.randbits(31)  # one for all: ways to answer differ, not the draws
    emit(SideBySide(tuple(variant.title for variant in variants)))

    there = [column for column, variant in enumerate(variants) if variant.server]

    def answer(column: int) -> None:
        aside = (ThreadContext if column in there else ColumnContext)(emit, column)
        with suppress(Cancelled):
            variant = variants[column]
            made[column] = answer_question(open_answerer(store, variant, aside), variant, asked, seed, aside)

    with beside([partial(answer, column) for column in there], emit):
        for column in range(len(variants)):
            if column not in there and not emit.stopped():
                answer(column)
        if emit.stopped():
            emit.begin_cleanup()
    store.trim()
    store.tidy()


def answer_question(
    opened: AbstractContextManager[Answerer], variant: Variant, asked: Question, seed: int, aside: ColumnContext
) -> Answer:
    """Answer once; an error is shown in the column and returned as the answer's problem. Raises `Cancelled`."""
    try:
        with opened as answer:
            return answer(asked, seed, aside)
    except ReplError as error:
        if not aside.stopped():
            aside(Notice(error.message))
        problem = Problem(error.kind, error.message, error.hints)
        return Answer(variant, error.partial, problem, pieces=aside.pieces())


def differences(made: Sequence[Answer]) -> list[Difference | None]:
    """Return where each answer differs from the first one, and of the first its earliest difference from another."""
    good = [place for place, one in enumerate(made) if one.done is not None]
    found: list[Difference | None] = [None] * len(made)
    firsts: list[Difference] = []
    for place in good[1:]:
        if parted := find_difference(made[good[0]], made[place]):
            firsts.append(parted[0])
            found[place] = parted[1]
    if firsts:
        found[good[0]] = min(firsts, key=lambda one: one.token)
    return found


def find_difference(one: Answer, other: Answer) -> tuple[Difference, Difference] | None:
    """Return where two answers differ: by token ids if the tokenizers are the same, else by text.

    An answer that was stopped does not differ where it ends.
    """
    by_ids = one.vocabulary == other.vocabulary != 0
    ways = [made.ids if by_ids else [*map(ord, made.text)] for made in (one, other)]
    same = common_length(*ways)
    ended = [made for made, way in zip((one, other), ways, strict=True) if same == len(way)]
    if len(ended) == 2 or any(made.cut for made in ended):
        return None
    return _mark(one, same, by_ids), _mark(other, same, by_ids)


def _mark(made: Answer, place: int, by_ids: bool) -> Difference:
    """Mark the token at a place, or the one that the character at a place belongs to."""
    if not by_ids:
        place = bisect_right([*accumulate(map(len, made.pieces))], place)
    start = len("".join(made.pieces[:place]))
    text = next((piece for piece in made.pieces[place:] if piece), "")  # half a character shows with its other half
    return Difference(place + 1, text, start, start + len(text))


def side_by_side(made: Sequence[Answer]) -> list[Column]:
    """Return the columns of answers, each compared with the first."""
    return [
        Column(
            title=one.variant.title,
            model=one.model,
            bytes=one.bytes,
            mean_logprob=fmean(one.logprobs) if one.logprobs else None,
            bits_per_byte=bits_per_byte(one.done, one.logprobs) if one.done else None,
            text=one.whole_text,
            difference=difference,
            problem=one.problem,
            done=one.done,
        )
        for one, difference in zip(made, differences(made), strict=True)
    ]


def bits_per_byte(done: Reply, logprobs: Sequence[float]) -> float | None:
    """Return the bits per byte of a reply in UTF-8, from the logprobs of its tokens in nats; None if there are none.

    The token that ended the reply does not count.
    """
    ended = done.finish == "stop" and len(logprobs) == len(done.token_ids)
    own, size = logprobs[:-1] if ended else logprobs, len(done.raw.encode("utf-8", "replace"))
    return -sum(own) / log(2) / size if own and size else None
