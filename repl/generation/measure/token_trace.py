"""The tokens of a reply with their log-probabilities: read from its record, measured again, cut and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repl.core.conversation import Turn
from repl.core.errors import ReplError, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.parts import Parts
from repl.core.reply import FormatCost, Reply, TokenLogprobs, round_figures
from repl.generation import measure
from repl.generation.decode.detokenizer import token_text, token_texts
from repl.generation.interface import Model
from repl.generation.measure.token_text import TOP_K_STORED, Scored
from repl.models.store import ModelInfo

Top = tuple[tuple[int, str, float], ...]
COLUMNS = ("logprobs", "entropies", "ranks", "ids", "values", "lengths")
"""The fields of measures that have an entry for each token."""
PROGRESS_TOKENS = 64  # tokens between two words about progress


@dataclass(frozen=True, slots=True)
class Seen:
    """One token of a reply in the model's own distribution, before any processor; figures in nats."""

    id: int
    """Below 0 where it is not known: a server gives texts."""
    text: str
    """The text that it adds to the reply: empty for an end token, and while a character is incomplete."""
    name: str
    """Its text by itself."""
    logprob: float
    entropy: float | None
    """None where it is not known: it takes more than the most likely."""
    rank: int
    """0 where it is past the most likely that are known."""
    top: Top
    """The most likely tokens there: (id, text, logprob)."""
    form: str = ""
    """given where the form of the reply left no other, overruled where it took the most likely away."""

    @property
    def place(self) -> str:
        """Return its rank in words."""
        return str(self.rank) if self.rank else f">{len(self.top)}" if self.top else "?"


@dataclass(frozen=True, slots=True)
class Trace:
    """A reply token by token; `lead` is the text before the first one: the beginning that it was given."""

    exchange: int
    """The number of the reply."""
    lead: str
    tokens: tuple[Seen, ...]
    server: str = field(default="", kw_only=True)
    """The server that gave the figures; empty where they are the model's here."""
    limit: int = field(default=0, kw_only=True)
    """How many of the most likely it gives."""

    @property
    def truncated(self) -> str:
        """Say which part of the distribution is known; empty if all of it is."""
        some = f"of the {self.limit} most likely" if self.limit else "of this token alone"
        return f"{some}, as {self.server} gives them · entropy is not known" if self.server else ""


@dataclass(frozen=True, slots=True)
class Inspection(Trace):
    """A reply to look into, coloured by probability (`on`) or `entropy`."""

    by: str


def require_record(turn: Turn) -> Reply:
    """Return the record of a reply; raises `UsageError` for a turn that is none, or has no tokens."""
    if turn.record is None:
        raise UsageError(f"exchange {turn.exchange} has no reply with tokens", "/history")
    if not turn.record.token_ids:
        if host := turn.record.server:
            said = f"exchange {turn.exchange} was answered by {host}, which returned text only; token ids are needed"
            raise UsageError(said)
        raise UsageError(f"exchange {turn.exchange} has no reply with tokens", "/history")
    return turn.record


def require_trace(turn: Turn) -> Trace | None:
    """Return the trace of a reply; None if it must be measured again; raises `UsageError` if that is impossible."""
    found = read_trace(turn)
    if found is None and turn.record is not None and (host := turn.record.server) and turn.text:
        raise UsageError(
            f"exchange {turn.exchange} came from {host} without log-probabilities; only that server can compute them",
            "/probs on",
            "/retry",
        )
    if found is None:
        require_record(turn)
    return found


def read_trace(turn: Turn) -> Trace | None:
    """Return the tokens of a reply from its record; None where they were not measured."""
    record = turn.record
    if record is None or not record.measures.logprobs:
        return None
    found, at = record.measures, max(0, len(turn.text) - sum(record.measures.lengths))
    lead, tokens = turn.text[:at], []
    for place, token in enumerate(found.made or record.token_ids):
        text, at = turn.text[at : at + found.lengths[place]], at + found.lengths[place]
        pairs = zip(found.ids[place], found.values[place], strict=True)
        top = tuple((one, found.texts.get(one, ""), value) for one, value in pairs)
        entropy = found.entropies[place] if found.entropies else None
        figures = found.logprobs[place], entropy, found.ranks[place]
        tokens.append(Seen(token, text, found.texts.get(token, ""), *figures, top))
    tokens = mark_form(tokens, record.format)
    return Trace(turn.exchange, lead, tuple(tokens), server=record.server if found.made else "", limit=found.limit)


def measure_again(resident: Model, turn: Turn, emit: JobContext) -> Trace:
    """Measure the tokens of a reply once more, for the model thread; raises `ReplError` unless its model is loaded."""
    record = require_record(turn)
    require_same_model(resident.facts, record, turn.exchange)
    pieces = token_texts(resident.tokenizer, text_seed(resident, turn), record.token_ids)
    seen: list[Seen] = []
    ids, first = (*record.prompt_ids, *record.token_ids), len(record.prompt_ids)
    scored = measure.scoring.score(resident, ids, emit, first=first, top=TOP_K_STORED, shared=True)
    for place, found in enumerate(scored):
        if place % PROGRESS_TOKENS == 0:
            emit(Progress("measuring the reply", place, len(pieces), "tokens"))
        seen.append(label_token(resident, found, pieces[place]))
    made = "".join(pieces)  # a reply of before may have another text: it left out the tags of its parts
    lead = turn.text.removesuffix(made if turn.text.endswith(made) else record.raw)
    return Trace(turn.exchange, lead, tuple(mark_form(seen, record.format)))


def mark_form(tokens: list[Seen], cost: FormatCost | None) -> list[Seen]:
    """Return the tokens of a reply, marked where its form left one token or overruled the most likely."""
    if cost is None:
        return tokens
    marks = {**dict.fromkeys(cost.given, "given"), **dict.fromkeys(cost.overruled, "overruled")}
    return [replace(token, form=marks.get(place, "")) for place, token in enumerate(tokens, 1)]


def least_certain(resident: Model, turn: Turn, emit: JobContext) -> int:
    """Return the number, from 1, of the least likely token of a reply that is not blank; for the model thread."""
    tokens = (read_trace(turn) or measure_again(resident, turn, emit)).tokens
    return min(range(len(tokens)), key=lambda place: (not tokens[place].text.strip(), tokens[place].logprob)) + 1


def require_same_model(facts: ModelInfo, record: Reply, number: int) -> None:
    """Raise `ReplError` unless the model that is loaded is the one that made a reply, in the same numbers."""
    made = record.model
    if (made.id, made.commit) != (facts.id, facts.commit):
        raise ReplError(f"exchange {number} was generated by {made.id}, which is not loaded", f"/model {made.id}")
    if made.dtype != facts.dtype:
        said = f"exchange {number} was generated in {made.dtype}, but the model is loaded in {facts.dtype}"
        raise ReplError(said, f"/dtype {made.dtype}")


def text_seed(resident: Model, turn: Turn) -> Sequence[int]:
    """Return the ids whose text a reply's text goes on from: of a chat reply none, of a continuation the prompt's."""
    record = require_record(turn)
    fits = turn.text.endswith("".join(token_texts(resident.tokenizer, (), record.token_ids)))
    return () if fits else record.prompt_ids


def label_token(resident: Model, found: Scored, text: str) -> Seen:
    """Return a token that was scored with the text it adds."""
    name = token_text(resident.tokenizer, found.id)
    return Seen(found.id, text, name, found.logprob, found.entropy, found.rank, found.top)


def collect_measures(tokens: Sequence[Seen]) -> TokenLogprobs:
    """Return the measures of some tokens as a record keeps them."""
    return TokenLogprobs(
        logprobs=round_figures(tuple(token.logprob for token in tokens)),
        entropies=round_figures(tuple(token.entropy for token in tokens if token.entropy is not None)),
        ranks=tuple(token.rank for token in tokens),
        ids=tuple(tuple(one for one, _, _ in token.top) for token in tokens),
        values=tuple(round_figures(tuple(value for _, _, value in token.top)) for token in tokens),
        texts={token.id: token.name for token in tokens}
        | {one: text for token in tokens for one, text, _ in token.top},
        lengths=tuple(len(token.text) for token in tokens),
    )


def join_measures(one: TokenLogprobs, first: int, other: TokenLogprobs, second: int) -> TokenLogprobs:
    """Return the measures of the `first` tokens of one text and all `second` of another; nothing where some lack."""
    if (first and not one.logprobs) or (second and not other.logprobs):
        return TokenLogprobs()
    columns = {name: getattr(one, name)[:first] + getattr(other, name) for name in COLUMNS}
    return TokenLogprobs(texts=one.texts | other.texts, **columns)


def join_costs(one: FormatCost | None, first: int, other: FormatCost | None, second: int) -> FormatCost | None:
    """Return the cost of the forms of two texts in a row, of so many tokens each; None if neither had a form."""
    if one is None and other is None:
        return None
    before, after = one or FormatCost(), other or FormatCost()

    def join(then: Sequence[int], now: Sequence[int]) -> tuple[int, ...]:
        return (*(place for place in then if place <= first), *(first + place for place in now if place <= second))

    nats = (*before.nats[:first], *([0.0] * (first - len(before.nats))), *after.nats[:second])
    return FormatCost(
        given=join(before.given, after.given),
        overruled=join(before.overruled, after.overruled),
        nats=nats if any(nats) else (),
        finished=after.finished,
    )


def record_fields(raw: str, parts: Parts) -> dict[str, Any]:
    """Return the fields of a record for a text with its parts."""
    fields = {"text": parts.answer, "thinking": parts.thinking, "tool_calls": parts.tool_calls}
    return {"raw": raw, "begun": Parts(), **fields}


def continue_record(before: Turn, kept: Sequence[int], done: Reply) -> Reply:
    """Return the record of a reply that went on from the `kept` ids of another as one reply."""
    assert before.record is not None
    raw = before.text + done.raw
    return replace(
        done,
        **record_fields(raw, done.parts if before.role == "assistant" else Parts(answer=raw)),
        prompt_ids=before.record.prompt_ids,
        token_ids=(*kept, *done.token_ids),
        prefill=before.record.prefill,
        taken=tuple(place for place in before.record.taken if place <= len(kept)),
        taken_back=(
            *(one for one in before.record.taken_back if one.place <= len(kept)),
            *(replace(one, place=one.place + len(kept)) for one in done.taken_back),
        ),
        continued=(*(place for place in before.record.continued if place < len(kept)), len(kept)),
        measures=join_measures(before.record.measures, len(kept), done.measures, len(done.token_ids)),
        format=join_costs(before.record.format, len(kept), done.format, len(done.token_ids)),
    )
