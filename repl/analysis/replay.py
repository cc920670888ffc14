"""The messages of a conversation answered again, by another model or under other settings.

In come the messages with their recorded answers; out come the new answers, one for each. Nothing is added to the
conversation here.
"""

import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from repl.analysis.answerers import Answer, ColumnContext, open_answerer
from repl.analysis.compare import Answers, answer_question, side_by_side
from repl.analysis.variants import Variant
from repl.core.conversation import Conversation, message
from repl.core.errors import Cancelled
from repl.core.events import ColumnEvent, Progress, SideBySide
from repl.core.jobs import JobContext
from repl.core.parts import Parts
from repl.core.reply import Reply
from repl.generation.decode.detokenizer import AnyMessage
from repl.generation.interface import Models
from repl.session.position import Question

RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and its recorded answer."""

    turn: int
    number: int
    asked: Question
    record: Reply


def recorded_exchanges(talk: Conversation) -> list[Exchange]:
    """Return the messages of a conversation with their answers; if there are none, the completed texts."""
    found = [
        Exchange(
            asked.id,
            reply.exchange,
            Question(asked.text, tuple(talk.messages(asked.id)), talk.numbers(asked.id), record.prefill),
            record,
        )
        for asked, reply in pairwise(talk.path())
        if asked.role == "user" and (record := reply.record) is not None
    ]
    last = {turn.parent: turn for turn in talk.turns.values() if turn.role == "completion" and turn.record}
    texts = [
        Exchange(turn.id, last[turn.id].exchange, Question(turn.text), record)
        for turn in talk.turns.values()
        if turn.id in last and (record := last[turn.id].record)
    ]
    return found or texts


def beside_record(exchange: Exchange, answer: Answer, shown: str) -> Answers:
    """Return the recorded and the new answer as two columns; `shown` is the setting for thoughts."""
    record, done = exchange.record, answer.done
    same_model = done is not None and record.made_by(done.model.id, done.model.commit)
    ends = [0, *accumulate(record.measures.lengths)]
    before = Answer(
        Variant(RECORDED, answer.variant.settings),
        record,
        model=record.model.id,
        pieces=tuple(record.raw[start:end] for start, end in pairwise(ends)),
        logprobs=record.measures.logprobs,
        vocabulary=answer.vocabulary if same_model else 0,
    )
    first, second = side_by_side([before, answer])
    known = first if before.pieces else replace(first, difference=None)  # where its tokens lie was not recorded
    return Answers(exchange.asked.text, exchange.number, [known, second], shown)


def is_same(answers: Answers) -> bool:
    """Tell whether the new answer equals the recorded one and both are complete."""
    whole = (one.done is not None and one.done.finish not in ("cancelled", "failed") for one in answers.columns)
    return answers.columns[1].difference is None and all(whole)


def answer_again(
    store: Models, variant: Variant, talk: Sequence[Exchange], pinned: bool, emit: JobContext, made: list[Answer]
) -> None:
    """Answer messages again, each after the new answers before it, or with `pinned` after the recorded ones.

    Each answer is added to `made` when it is finished; a cancel keeps the answers so far. For the model thread; raises
    a `ReplError` if the model cannot be opened.
    """
    said: tuple[AnyMessage, ...] = ()
    try:
        with open_answerer(store, variant, emit, chats=bool(talk[0].asked.messages)) as answer:
            for place, exchange in enumerate(talk, 1):
                stage = f"answer {place} of {len(talk)}"
                emit(SideBySide((f"{variant.title} · {stage}",)))
                emit(ColumnEvent(0, Progress(stage)))
                asked = exchange.asked if pinned or not said else exchange.asked.after(said)
                seed = secrets.randbits(31) if exchange.record.seed is None else exchange.record.seed
                aside = ColumnContext(emit, 0)
                made.append(found := answer_question(nullcontext(answer), variant, asked, seed, aside))
                if emit.stopped():  # the partial answer is kept
                    raise Cancelled
                if found.problem and not pinned:
                    break  # later messages need this answer
                parts = found.done.parts if found.done else Parts()
                if asked.messages:
                    said = (*asked.messages, message("assistant", found.whole_text, parts))
    except Cancelled:
        emit.begin_cleanup()
        if not made:
            raise
    store.trim()
    store.tidy()
