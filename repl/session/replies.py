"""Add answers that were generated outside of the conversation as turns, and continue a reply from another token."""

from dataclasses import replace

from repl import generation
from repl.core import decoding
from repl.core.conversation import Turn
from repl.core.errors import UsageError
from repl.core.events import PromptEcho
from repl.core.jobs import JobContext
from repl.core.parts import Parts
from repl.core.reply import Reply, Timing, TokenLogprobs, Usage
from repl.core.settings import Settings
from repl.generation import decode, measure
from repl.generation.decode.detokenizer import Begun, token_texts
from repl.generation.interface import Model, Request
from repl.generation.measure.token_text import TOP_K_STORED
from repl.generation.measure.token_trace import (
    Seen,
    collect_measures,
    continue_record,
    label_token,
    measure_again,
    read_trace,
    record_fields,
    require_record,
    require_same_model,
    text_seed,
)
from repl.session.position import Question
from repl.session.session import Session


def add_reply(session: Session, asked: Turn, done: Reply) -> Turn:
    """Add a reply that was generated outside of the conversation below its message, and move the head to it."""
    role = "assistant" if asked.role == "user" else "completion"
    state = "cancelled" if done.finish in ("cancelled", "failed") else "complete"
    turn = session.conversation.add(role, "", asked.id)
    session.close_turn(turn, done.prefill, done, state)
    return session.conversation.turns[turn.id]


def add_answer(session: Session, asked: Question, chats: bool, done: Reply) -> Turn:
    """Add an answer, with its message where that is not there yet in the role it was asked in; returns the message."""
    talk, turn, role = session.conversation, asked.turn, "user" if chats else "prompt"
    if turn is None or turn.role != role:
        turn = talk.add(role, asked.text, talk.head if chats else None)
    add_reply(session, turn, done)
    taken = {"prefill": ""} if chats else {}
    session.prepare(**taken, **({} if asked.turn else {"files": ()}))  # those wait for a message of their own
    return turn


def substitute_token(resident: Model, turn: Turn, place: int, token: int, emit: JobContext) -> Turn:
    """Return a reply up to a place (from 1), with another token there, as the turn to go on from; for the model thread.

    Raises `ReplError` unless the model that made the turn is loaded, `UsageError` for an id that it does not know.
    """
    record = require_record(turn)
    require_same_model(resident.facts, record, turn.exchange)
    if token >= resident.model.get_input_embeddings().weight.shape[0]:
        raise UsageError(f"{resident.facts.name} has no token {token}", "/inspect")
    found = read_trace(turn) or measure_again(resident, turn, emit)
    kept = found.tokens[: place - 1]
    new = _find_alternative(found.tokens[place - 1], token) or _score_token(resident, record, kept, token, emit)
    ids = (*(seen.id for seen in kept), token)
    pieces = token_texts(resident.tokenizer, text_seed(resident, turn), ids)
    tokens = [replace(seen, text=text) for seen, text in zip([*kept, new], pieces, strict=True)]
    own = (*(one for one in record.taken if one < place), place)
    gone = tuple(one for one in record.taken_back if one.place < place)
    begun = replace(record, token_ids=ids, finish="length", measures=collect_measures(tokens), taken=own)
    begun = replace(begun, taken_back=gone)
    return replace(turn, text=found.lead + "".join(pieces), record=begun)


def _find_alternative(there: Seen, token: int) -> Seen | None:
    """Return one of the most likely tokens at a place as if it had been chosen; None if it is not one of them."""
    for rank, (one, name, logprob) in enumerate(there.top, 1):
        if one == token:
            return replace(there, id=token, name=name, logprob=logprob, rank=rank)
    return None


def _score_token(resident: Model, record: Reply, kept: tuple[Seen, ...], token: int, emit: JobContext) -> Seen:
    """Return the figures of a token after those that are kept."""
    ids = (*record.prompt_ids, *(seen.id for seen in kept), token)
    (found,) = measure.scoring.score(resident, ids, emit, first=len(ids) - 1, top=TOP_K_STORED, shared=True)
    return label_token(resident, found, "")


def join_records(resident: Model, begun: Turn, done: Reply) -> Reply:
    """Return the record of a beginning and what followed as one reply, its text spelled from all of its ids.

    Two texts in a row will not do: a character may have begun in the one and ended in the other.
    """
    record = require_record(begun)
    lead = begun.text[: len(begun.text) - sum(record.measures.lengths)]
    found = continue_record(begun, record.token_ids, done)
    pieces = token_texts(resident.tokenizer, text_seed(resident, begun), found.token_ids)
    lengths = tuple(map(len, pieces)) if found.measures.logprobs else ()
    raw = lead + "".join(pieces)
    parts = done.parts if begun.role == "assistant" else Parts(answer=raw)
    return replace(found, **record_fields(raw, parts), measures=replace(found.measures, lengths=lengths))


def continue_reply(resident: Model, begun: Turn, settings: Settings, emit: JobContext) -> Reply:
    """Emit the beginning of a reply and generate the rest; nothing if it ends with an end token."""
    record = require_record(begun)
    chat = Begun(begun.text, record.prefill, record.token_ids) if begun.role == "assistant" else None
    ids, made = (*record.prompt_ids, *record.token_ids), len(record.token_ids)
    request = Request(settings, ids=ids, begun=chat, made=made)
    if chat is None:
        emit(PromptEcho(begun.text))
    if record.token_ids[-1] not in decoding.end_ids(decode.loop.Arguments.of_settings(resident, settings).config):
        return generation.engine.generate_reply(resident, request, emit)
    if reading := generation.engine.reading(resident, request, [*request.ids], emit):
        reading.open(emit)
    return replace(
        record,
        **{**record_fields("", Parts()), "begun": reading.begun if reading else Parts()},
        prompt_ids=request.ids,
        token_ids=(),
        finish="stop",
        usage=Usage(len(request.ids), 0, 0),
        timing=Timing(None, None, None, 0.0),
        sequences=(),
        measures=TokenLogprobs(),
    )
