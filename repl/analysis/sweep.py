"""A grid of settings over one prompt: which rows it has, what is measured of each, and taking one as the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise, product
from typing import Any

from repl.core import decoding, settings
from repl.core.decoding import SAMPLING, ModelDefaults
from repl.core.errors import UsageError
from repl.core.jobs import JobContext
from repl.core.settings import Decode, Settings
from repl.core.values import Integer, refuse
from repl.generation.decode.batch import Made, Rows
from repl.generation.decode.kv_cache import common
from repl.generation.request import Request
from repl.generation.runtime import Model
from repl.session.change_settings import changed
from repl.session.position import Question
from repl.session.replies import add_reply
from repl.session.session import Session

EXAMPLE = "/sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2"
MOST = 500  # rows
Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the grid: what was typed for it, the seed of its random numbers, and all of its settings."""

    words: Words
    seed: int | None
    chosen: Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a grid, and the greedy one that they are compared with."""

    cells: tuple[Cell, ...]
    greedy: Settings


@dataclass(frozen=True, slots=True)
class Line:
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
    lines: tuple[Line, ...]
    greedy: Line
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


def plan(chosen: Settings, base: ModelDefaults, words: Sequence[str]) -> Plan:
    """Read `name=value,value` words into the rows they ask for; raises `UsageError`."""
    grid: dict[str, tuple[str, ...]] = {}
    count, seed = 1, 1 if chosen.decode.seed is None else chosen.decode.seed
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign and text):
            raise UsageError(f"{word!r} is not name=value,value", EXAMPLE)
        if name == "n":
            count = _whole("n", text, Integer(1, MOST))
        elif name == "seed":
            seed = _whole("seed", text, Integer(0, 2**63 - 1 - MOST))
        else:
            full = _swept(name)
            grid[full] = _values(full, text)
    if not grid and count == 1:
        raise UsageError("/sweep needs settings to go through", EXAMPLE)
    neutral = _neutral(chosen, grid)
    rows = [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if len(rows) * count > MOST:
        raise UsageError(f"that is {len(rows) * count:,} rows, at most {MOST} are made", EXAMPLE)
    cells = [_cell(neutral, base, words, seed + place) for words in rows for place in range(count)]
    return Plan(tuple(cells), _greedily(neutral))


def _whole(name: str, text: str, kind: Integer) -> int:
    try:
        return kind.read(text.replace(",", " "))  # several are none: a comma would read as one between thousands
    except UsageError:
        raise UsageError(f"{name} {text!r} is not {kind.phrase}", EXAMPLE) from None


def _swept(name: str) -> str:
    full = "temperature" if name == "temp" else settings.find(name)
    if settings.places()[full] == "load":
        raise UsageError(f"{full} is a load setting; a sweep varies decoding settings only", f"/diverge {name}=VALUE")
    if settings.places()[full] != "decode" or full in ("num_return_sequences", "overflow", "reuse"):
        raise UsageError(f"{full} cannot be swept: it does not change the text", EXAMPLE)
    return full


def _values(name: str, text: str) -> tuple[str, ...]:
    parts = (text,) if name == "stop" else tuple(part for part in text.split(",") if part)
    for part in parts:
        if not (name == "temperature" and _zero(part)):
            settings.read(name, part)
    if not parts:
        raise refuse(text, "a value, or several with commas between")
    return tuple(dict.fromkeys(parts))


def _zero(text: str) -> bool:
    return text.replace(".", "").strip("0") == "" and "0" in text


def _neutral(chosen: Settings, grid: Mapping[str, object]) -> Settings:
    """Return the settings that every row begins with: one sequence, no beams, sampling if that is what is swept."""
    chosen = chosen.put("num_return_sequences", 1, "sweep")
    if "num_beams" not in grid:
        chosen = chosen.put("num_beams", 1, "sweep")
    if set(grid) & set(SAMPLING) or not grid:
        chosen = chosen.put("do_sample", True, "sweep")
    return chosen


def _cell(chosen: Settings, base: ModelDefaults, words: Words, seed: int) -> Cell:
    for name, text in words:
        if name == "temperature" and _zero(text):
            chosen = chosen.put("do_sample", False, "sweep").reset("temperature")
        else:
            chosen = chosen.put(name, settings.read(name, text), "sweep")
    samples = bool(decoding.effective(chosen, base)["do_sample"].value)
    chosen = chosen.put("seed", seed, "sweep") if samples else chosen
    return Cell(words, seed if samples else None, chosen)


def _greedily(chosen: Settings) -> Settings:
    return chosen.put("do_sample", False, "sweep").put("num_beams", 1, "sweep")


def key(chosen: Settings, base: ModelDefaults) -> Decode:
    """Return what decides the text: what only sampling reads is left out of what does not sample."""
    table = decoding.effective(chosen, base)
    own = replace(chosen.decode, do_sample=bool(table["do_sample"].value), num_beams=table["num_beams"].value or 1)
    if own.do_sample:
        return own
    blank: dict[str, Any] = {spot.name: spot.default for spot in fields(Decode) if spot.name in (*SAMPLING, "seed")}
    return replace(own, **blank)


class Run:
    """A plan being made; `made` may be looked at after it was stopped."""

    def __init__(self, resident: Model, plan: Plan, request: Request, emit: JobContext, exact: bool) -> None:
        base = resident.facts.base
        self.keys = [key(cell.chosen, base) for cell in plan.cells]
        self.plan, self._first = plan, key(plan.greedy, base)
        wanted = {self._first: plan.greedy}
        for found, cell in zip(self.keys, plan.cells, strict=True):
            wanted.setdefault(found, cell.chosen)
        requests = [replace(request, settings=chosen) for chosen in wanted.values()]
        self.rows = Rows(resident, requests, emit, exact)
        self._order = list(wanted)

    def sweep(self) -> tuple[Sweep, dict[int, Made]]:
        """Make the rows; returns what came of them, and the reply of each row by its number."""
        import time

        began = time.monotonic()
        whole = self.rows.run()
        made = dict(zip(self._order, self.rows.made, strict=True))
        greedy = made[self._first]
        reference = greedy.done.token_ids if greedy else ()
        lines: list[Line] = []
        seen: dict[Decode, int] = {}
        for number, (found, cell) in enumerate(zip(self.keys, self.plan.cells, strict=True), 1):
            if (one := made[found]) is not None:
                shown = {name: _value(name, text) for name, text in cell.words}
                lines.append(line(number, shown, cell.seed, one, reference, seen.get(found)))
                seen.setdefault(found, number)
        records = {row.number: one for row in lines if (one := made[self.keys[row.number - 1]])}
        names = tuple(dict.fromkeys(name for cell in self.plan.cells for name, _ in cell.words))
        first = line(0, {}, None, greedy, reference, seen.get(self._first)) if greedy else NONE
        total = sum(one is not None for one in self.rows.made)
        left = len(self.plan.cells) - len(lines)
        seconds = time.monotonic() - began
        prompt = tuple(self.rows.prompt)
        return Sweep(
            names, tuple(lines), first, prompt, total, self.rows.together, self.rows.alone, whole, seconds, left
        ), records


def _value(name: str, text: str) -> object:
    return 0.0 if name == "temperature" and _zero(text) else settings.read(name, text)


def line(
    number: int, shown: dict[str, object], seed: int | None, made: Made, greedy: Sequence[int], same: int | None
) -> Line:
    """Measure a reply."""
    done, logprobs = made.done, made.logprobs
    ids = done.token_ids
    return Line(
        number=number,
        settings=shown,
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


NONE = Line(0, {}, None, "cancelled", 0, None, None, None, None, "", (), ())


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that is the answer now, and how the next reply is made."""

    number: int
    text: str
    token_ids: tuple[int, ...]
    now: str


def offer_rows(session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made]) -> None:
    """Let /pick take one of these rows."""
    session.set_pick(lambda number: take(session, asked, cells, made, number))


def take(session: Session, asked: Question, cells: Mapping[int, Cell], made: Mapping[int, Made], number: int) -> Taken:
    """Make a row the reply to its question, and its settings those of the session; raises `UsageError`."""
    if number not in made:
        raise UsageError(f"there is no row {number}: they are numbered {min(made)} to {max(made)}", "/sweep")
    talk, done = session.conversation, made[number].done
    session.change(changed(session.settings, words(session, cells[number], made[number]), parts=("decode",)))
    if asked.turn is None:
        asked = replace(asked, turn=talk.add(asked.role, asked.text, asked.parent).id)
        session.prepare(files=(), prefill="")
    reply = add_reply(session, talk.turns[asked.turn or 0], done)
    offer_rows(session, asked, cells, made)
    return Taken(number, reply.parts.answer, done.token_ids, decoding.phrase(session.decoding()))


def words(session: Session, cell: Cell, made: Made) -> list[tuple[str, str]]:
    """Return what has to be set to go on as a row was made; its seed is not: it would fix all further replies."""
    samples = made.done.seed is not None
    beams = [("num_beams", "1")] if (session.decoding()["num_beams"].value or 1) > 1 else []
    kept = [(name, text) for name, text in cell.words if samples or name not in SAMPLING]
    return [("do_sample", "on" if samples else "off"), *beams, *kept]
