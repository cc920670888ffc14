"""The tokens of a reply with what the model made of each: read off its record, cut, joined, and laid out as rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repl.conversation import Turn
from repl.events import Done, Measures

Top = tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One token of a reply in the model's own distribution, before any processor; figures in nats."""

    id: int
    text: str
    """What it adds to the reply: empty for an end token, and while a character is incomplete."""
    name: str
    """Its text by itself."""
    logprob: float
    entropy: float
    rank: int
    top: Top
    """The likeliest tokens there: (id, text, logprob)."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A reply token by token; `lead` is what stands before the first one: the beginning that it was given."""

    turn: int
    lead: str
    tokens: tuple[Seen, ...]


def traced(turn: Turn) -> Trace | None:
    """Return the tokens of a reply from its record; None where they were not measured."""
    record = turn.record
    if record is None or not record.measures.logprobs:
        return None
    return spread(turn.id, turn.text, record.token_ids, record.measures)


def spread(number: int, text: str, ids: Sequence[int], found: Measures) -> Trace:
    """Return measures in columns as tokens of a text."""
    at = max(0, len(text) - sum(found.lengths))
    lead, tokens = text[:at], []
    for place, token in enumerate(ids):
        piece, at = text[at : at + found.lengths[place]], at + found.lengths[place]
        pairs = zip(found.ids[place], found.values[place], strict=True)
        top = tuple((one, found.texts.get(one, ""), value) for one, value in pairs)
        figures = found.logprobs[place], found.entropies[place], found.ranks[place]
        tokens.append(Seen(token, piece, found.texts.get(token, ""), *figures, top))
    return Trace(number, lead, tuple(tokens))


def cut(found: Measures, count: int) -> Measures:
    """Return the measures of the first tokens."""
    columns = ("logprobs", "entropies", "ranks", "ids", "values", "lengths")
    return replace(found, **{name: getattr(found, name)[:count] for name in columns})


def joined(one: Measures, other: Measures) -> Measures:
    """Return the measures of two texts in a row; nothing where one of them was not measured."""
    if not (one.logprobs and other.logprobs):
        return Measures()
    return Measures(
        logprobs=one.logprobs + other.logprobs,
        entropies=one.entropies + other.entropies,
        ranks=one.ranks + other.ranks,
        ids=one.ids + other.ids,
        values=one.values + other.values,
        texts=one.texts | other.texts,
        lengths=one.lengths + other.lengths,
    )


def onward(before: Turn, kept: Sequence[int], done: Done) -> Done:
    """Return the record of a reply that went on from the `kept` ids of another as one reply."""
    assert before.record is not None
    return replace(
        done,
        text=before.text + done.text,
        prompt_ids=before.record.prompt_ids,
        token_ids=(*kept, *done.token_ids),
        measures=joined(cut(before.record.measures, len(kept)), done.measures),
    )
