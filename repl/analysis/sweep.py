"""A grid of settings over one prompt: which rows it has, what is measured of each, and taking one as the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise, product
from typing import Any

from repl.core import decoding, settings
from repl.core.decoding import SAMPLING, WARPERS, ModelDefaults
from repl.core.errors import UsageError
from repl.core.jobs import JobContext
from repl.core.settings import Decode, Settings
from repl.core.values import Integer
from repl.generation.decode.batch import Made, Rows
from repl.generation.decode.kv_cache import common
from repl.generation.request import Request
from repl.generation.runtime import Model
from repl.session.change_settings import changed, full_name
from repl.session.position import Question
from repl.session.replies import add_reply
from repl.session.session import Session

EXAMPLE = "/sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2"
MAX_ROWS = 500
Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the grid: the words and values of what it varies, the seed of its random numbers, all its settings."""

    words: Words
    values: dict[str, Any]
    seed: int | None
    chosen: Settings


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows of a grid, and the greedy one that they are compared with."""

    cells: tuple[Cell, ...]
    greedy: Settings


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One row of the table; `logprob` is the mean of its tokens in the model's own distribution, in nats."""

    number: int
    settings: dict[str, Any]
    seed: int | None
    finish: str
    length: int
    distinct_2: float | None
    """Different pairs of neighbouring tokens, as a share of all pairs; None where there are none."""
    logprob: float | None
    parts: int | None
    """The first token, from 1, that is not the greedy row's; None where all are."""
    same_as: int | None
    """The row that was made with settings that come to the same: this one is its copy."""
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What came of a grid; `whole` is False where it was stopped."""

    names: tuple[str, ...]
    lines: tuple[SweepRow, ...]
    greedy: SweepRow
    prompt_ids: tuple[int, ...]
    made: int
    """Rows that were made: those that come to the same are made once, and the greedy one is always made."""
    together: int
    """Rows that shared the steps of the model; the others were made one after another, `alone` says why."""
    alone: str
    whole: bool
    seconds: float
    left_out: int = 0
    """Rows that were not begun when it was stopped."""


def plan(chosen: Settings, base: ModelDefaults, words: Sequence[str]) -> Grid:
    """Read `name=value,value` words into the rows they ask for; raises `UsageError`."""
    grid: dict[str, tuple[str, ...]] = {}
    count, seed = 1, 1 if chosen.decode.seed is None else chosen.decode.seed
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign and text):
            raise UsageError(f"{word!r} is not name=value,value", EXAMPLE)
        if name == "n":
            count = _whole("n", text, Integer(1, MAX_ROWS))
        elif name == "seed":
            seed = _whole("seed", text, Integer(0, 2**63 - 1 - MAX_ROWS))
        else:
            grid[_swept(name, base)] = _split_values(name, text)
    if not grid and count == 1:
        raise UsageError("/sweep needs settings to go through", EXAMPLE)
    neutral = _neutral(chosen, grid)
    rows = [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if len(rows) * count > MAX_ROWS:
        raise UsageError(f"that is {len(rows) * count:,} rows, at most {MAX_ROWS} are made", EXAMPLE)
    cells = [_cell(neutral, base, words, seed + place) for words in rows for place in range(count)]
    return Grid(tuple(cells), changed(neutral, [("do_sample", "off"), ("num_beams", "1")]))


def _whole(name: str, text: str, kind: Integer) -> int:
    try:
        return kind.read(text.replace(",", " "))  # several are none: a comma would read as one between thousands
    except UsageError:
        raise UsageError(f"{name} {text!r} is not {kind.phrase}", EXAMPLE) from None


def _swept(name: str, base: ModelDefaults) -> str:
    full = full_name(name, base)
    part = settings.places().get(full, "decode")
    if part == "load":
        raise UsageError(f"{full} is a load setting; a sweep varies decoding settings only", f"/diverge {name}=VALUE")
    if part != "decode" or full in ("num_return_sequences", "overflow", "reuse"):
        raise UsageError(f"{full} cannot be swept: it does not change the text", EXAMPLE)
    return full


def _split_values(name: str, text: str) -> tuple[str, ...]:
    """Cut a text at its commas; one in JSON, and strings to stop at, stay whole."""
    whole = name == "stop" or text[0] in "[{"
    return (text,) if whole else tuple(dict.fromkeys(part for part in text.split(",") if part)) or (text,)


def _neutral(chosen: Settings, grid: Mapping[str, object]) -> Settings:
    """Return the settings that every row begins with: one sequence, no beams, sampling if that is what is swept."""
    beams = [] if "num_beams" in grid else [("num_beams", "1")]
    samples = [("do_sample", "on")] if set(grid) & set(WARPERS) or not grid else []
    return changed(chosen, [("num_return_sequences", "1"), *beams, *samples])


def _cell(neutral: Settings, base: ModelDefaults, words: Words, seed: int) -> Cell:
    zero = [(name, text) for name, text in words if name == "temperature" and text.strip("0.") == "" and "0" in text]
    greedy = [("do_sample", "off"), ("temperature", "default")] if zero else []
    chosen = changed(neutral, [*greedy, *(pair for pair in words if pair not in zero)], ("decode",), base)
    known = {**dict(chosen.extra), **{name: chosen.get(name) for name, _ in words if name in settings.places()}}
    values = {name: 0.0 if (name, text) in zero else known[name] for name, text in words}
    if not decoding.effective(chosen, base)["do_sample"].value:
        return Cell(words, values, None, chosen)
    return Cell(words, values, seed, chosen.put("seed", seed, "sweep"))


def key(chosen: Settings, base: ModelDefaults) -> tuple[Decode, str]:
    """Return what decides the text: what only sampling reads is left out of what does not sample."""
    table = decoding.effective(chosen, base)
    own = replace(chosen.decode, do_sample=bool(table["do_sample"].value), num_beams=table["num_beams"].value or 1)
    if own.do_sample:
        return own, repr(chosen.extra)
    blank: dict[str, Any] = {spot.name: spot.default for spot in fields(Decode) if spot.name in (*SAMPLING, "seed")}
    return replace(own, **blank), repr([pair for pair in chosen.extra if pair[0] not in WARPERS])


def sweep(
    resident: Model, grid: Grid, request: Request, emit: JobContext, exact: bool
) -> tuple[Sweep, dict[int, Made]]:
    """Make the rows of a grid; returns what came of them, and the reply of each row by its number."""
    import time

    began, base = time.monotonic(), resident.facts.base
    first, keys = key(grid.greedy, base), [key(cell.chosen, base) for cell in grid.cells]
    wanted = {first: grid.greedy}
    for found, cell in zip(keys, grid.cells, strict=True):
        wanted.setdefault(found, cell.chosen)
    rows = Rows(resident, [replace(request, settings=chosen) for chosen in wanted.values()], emit, exact)
    whole = rows.run()
    made = dict(zip(wanted, rows.made, strict=True))
    greedy = made[first]
    reference = greedy.done.token_ids if greedy else ()
    lines: list[SweepRow] = []
    seen: dict[tuple[Decode, str], int] = {}
    for number, (found, cell) in enumerate(zip(keys, grid.cells, strict=True), 1):
        if (one := made[found]) is not None:
            lines.append(_measure(number, cell.values, cell.seed, one, reference, seen.get(found)))
            seen.setdefault(found, number)
    return Sweep(
        names=tuple(dict.fromkeys(name for cell in grid.cells for name in cell.values)),
        lines=tuple(lines),
        greedy=_measure(0, {}, None, greedy, reference, seen.get(first)) if greedy else NONE,
        prompt_ids=tuple(rows.prompt),
        made=sum(one is not None for one in rows.made),
        together=rows.together,
        alone=rows.alone,
        whole=whole,
        seconds=time.monotonic() - began,
        left_out=len(grid.cells) - len(lines),
    ), {number: one for number, found in enumerate(keys, 1) if (one := made[found])}


def _measure(
    number: int, values: dict[str, Any], seed: int | None, made: Made, greedy: Sequence[int], same: int | None
) -> SweepRow:
    done, logprobs = made.done, made.logprobs
    ids = done.token_ids
    return SweepRow(
        number=number,
        settings=values,
        seed=seed,
        finish=done.finish,
        length=len(ids),
        distinct_2=distinct(ids[:-1] if done.finish == "stop" else ids),
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        parts=parted(ids, greedy),
        same_as=same,
        text=done.raw,
        token_ids=ids,
        logprobs=logprobs,
    )


def distinct(ids: Sequence[int]) -> float | None:
    """Return distinct-2: different pairs of neighbours as a share of all (Li et al. 2016); None for no pairs."""
    pairs = list(pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else None


def parted(ids: Sequence[int], greedy: Sequence[int]) -> int | None:
    """Return the first place, from 1, at which two texts differ; None where they are the same."""
    same = common(ids, greedy)
    return None if same == len(ids) == len(greedy) else same + 1


NONE = SweepRow(0, {}, None, "cancelled", 0, None, None, None, None, "", (), ())


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that is the answer now, and how the next reply is made."""

    number: int
    text: str
    token_ids: tuple[int, ...]
    now: str


def offer_rows(session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made]) -> None:
    """Let /pick take one of these rows."""
    session.set_pick(lambda number: take_row(session, asked, cells, made, number))


def take_row(
    session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made], number: int
) -> Taken:
    """Make a row the reply to its question, and its settings those of the session; raises `UsageError`."""
    if number not in made:
        raise UsageError(f"there is no row {number}: they are numbered {min(made)} to {max(made)}", "/sweep")
    done, samples = made[number].done, made[number].done.seed is not None
    # its seed is left out: it would fix all further replies
    beams = [("num_beams", "1")] if (session.decoding()["num_beams"].value or 1) > 1 else []
    kept = [(name, text) for name, text in cells[number].words if samples or name not in WARPERS]
    words = [("do_sample", "on" if samples else "off"), *beams, *kept]
    session.change(changed(session.settings, words, ("decode",), session.base()))
    if asked.turn is None:
        asked = replace(asked, turn=session.conversation.add(asked.role, asked.text, asked.parent).id)
        session.prepare(files=(), prefill="")
    reply = add_reply(session, session.conversation.turns[asked.turn or 0], done)
    offer_rows(session, asked, cells, made)
    return Taken(number, reply.parts.answer, done.token_ids, decoding.phrase(session.decoding()))
