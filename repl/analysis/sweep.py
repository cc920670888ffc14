"""A grid of settings over one prompt: its rows, their figures, and making one of them the answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from repl.analysis.variants import GREEDY_WORDS
from repl.core import decoding, settings
from repl.core.decoding import WARPERS, ModelDefaults
from repl.core.errors import UsageError
from repl.core.format import join_facts
from repl.core.jobs import JobContext
from repl.core.settings import Settings
from repl.core.values import Integer
from repl.generation import decode
from repl.generation.decode.detokenizer import common_length
from repl.generation.interface import Model, Request
from repl.session.change_settings import changed, full_name
from repl.session.position import Question
from repl.session.replies import add_answer
from repl.session.results import Message
from repl.session.session import Session

if TYPE_CHECKING:
    from repl.generation.decode.batch import BatchReply

SWEEP_EXAMPLE = "/sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2"
MAX_SWEEP_ROWS = 500
Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the grid: the settings that it varies as words and as values, its seed, and all its settings."""

    words: Words
    values: dict[str, Any]
    seed: int | None
    chosen: Settings


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One row of the table; `logprob` is the mean over its tokens in the model's own distribution, in nats."""

    number: int
    settings: dict[str, Any]
    seed: int | None
    finish: str
    length: int
    distinct_2: float | None
    """The share of distinct bigrams; None if there are none."""
    logprob: float | None
    parts: int | None
    """The first token, from 1, that differs from the greedy row; None if none does."""
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The rows of a grid; `whole` is False if it was stopped early."""

    names: tuple[str, ...]
    lines: tuple[SweepRow, ...]
    greedy: SweepRow | None
    prompt_ids: tuple[int, ...]
    made: int
    """Rows that were generated, including the greedy one."""
    together: int
    """Rows that were generated in one batch; the others were generated one after another, `alone` says why."""
    alone: str
    whole: bool
    seconds: float
    left_out: int = 0
    """Rows that were not started when it was stopped."""


def plan_grid(chosen: Settings, base: ModelDefaults, words: Sequence[str]) -> list[Cell]:
    """Return the rows that `name=value,value` words ask for, after the greedy row that they are compared with.

    Raises `UsageError`.
    """
    grid: dict[str, tuple[str, ...]] = {}
    count, seed = 1, 1 if chosen.decode.seed is None else chosen.decode.seed
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign and text):
            raise UsageError(f"{word!r} is not name=value,value", SWEEP_EXAMPLE)
        if name == "n":
            count = _whole("n", text, Integer(1, MAX_SWEEP_ROWS))
        elif name == "seed":
            seed = _whole("seed", text, Integer(0, 2**63 - 1 - MAX_SWEEP_ROWS))
        else:
            whole = name == "stop" or text[0] in "[{"  # JSON and stop strings may hold commas
            values = (text,) if whole else tuple(dict.fromkeys(part for part in text.split(",") if part))
            grid[_swept_name(name, base)] = values or (text,)
    if not grid and count == 1:
        raise UsageError("/sweep needs settings to vary", SWEEP_EXAMPLE)
    beams = [] if "num_beams" in grid else [("num_beams", "1")]
    samples = [("do_sample", "on")] if set(grid) & set(WARPERS) or not grid else []
    neutral = changed(chosen, [("num_return_sequences", "1"), *beams, *samples])
    rows = [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if len(rows) * count > MAX_SWEEP_ROWS:
        raise UsageError(f"that is {len(rows) * count:,} rows; the limit is {MAX_SWEEP_ROWS}", SWEEP_EXAMPLE)
    cells = (_cell(neutral, base, words, seed + place) for words in rows for place in range(count))
    distinct_cells = {(cell.words, cell.seed): cell for cell in cells}  # greedy rows read no seed
    return [Cell((), {}, None, changed(neutral, GREEDY_WORDS)), *distinct_cells.values()]


def _whole(name: str, text: str, kind: Integer) -> int:
    try:
        return int(kind.read(text))
    except UsageError:
        raise UsageError(f"{name} {text!r} is not {kind.phrase}", SWEEP_EXAMPLE) from None


def _swept_name(name: str, base: ModelDefaults) -> str:
    full = full_name(name, base)
    part = settings.places().get(full, "decode")
    if part == "load":
        raise UsageError(f"{full} is a load setting; a sweep varies decoding settings only", f"/diverge {name}=VALUE")
    if part != "decode" or full in ("num_return_sequences", "overflow", "reuse"):
        raise UsageError(f"{full} cannot be swept: it does not change the text", SWEEP_EXAMPLE)
    return full


def _cell(neutral: Settings, base: ModelDefaults, words: Words, seed: int) -> Cell:
    zero = [(name, text) for name, text in words if name == "temperature" and text.strip("0.") == "" and "0" in text]
    greedy = [("do_sample", "off"), ("temperature", "default")] if zero else []
    chosen = changed(neutral, [*greedy, *(pair for pair in words if pair not in zero)], ("decode",), base)
    samples = bool(decoding.effective_values(chosen, base)["do_sample"].value)
    words = tuple(pair for pair in words if samples or pair in zero or pair[0] not in WARPERS)
    known = {**dict(chosen.extra), **{name: chosen.get(name) for name, _ in words if name in settings.places()}}
    values = {name: 0.0 if (name, text) in zero else known[name] for name, text in words}
    return Cell(words, values, seed if samples else None, chosen.put("seed", seed, "sweep") if samples else chosen)


def run_sweep(
    resident: Model, cells: Sequence[Cell], request: Request, emit: JobContext, exact: bool
) -> tuple[Sweep, dict[int, "BatchReply"]]:
    """Generate the rows of a grid; returns the results, and the reply of each row by its number."""
    began = time.monotonic()
    rows = decode.batch.Batch(resident, [replace(request, settings=cell.chosen) for cell in cells], emit, exact)
    whole = rows.run()
    made = {number: one for number, one in enumerate(rows.made) if one is not None}
    reference = made[0].done.token_ids if 0 in made else ()
    lines = {number: _measure(number, cells[number], one, reference) for number, one in made.items()}
    greedy = lines.pop(0, None)
    found = Sweep(
        names=tuple(dict.fromkeys(name for cell in cells for name in cell.values)),
        lines=tuple(lines.values()),
        greedy=greedy,
        prompt_ids=tuple(rows.prompt),
        made=len(made),
        together=rows.together,
        alone=rows.alone,
        whole=whole,
        seconds=time.monotonic() - began,
        left_out=len(cells) - 1 - len(lines),
    )
    return found, {number: made[number] for number in lines}


def _measure(number: int, cell: Cell, made: "BatchReply", greedy: Sequence[int]) -> SweepRow:
    done, logprobs = made.done, made.logprobs
    ids = done.token_ids
    return SweepRow(
        number=number,
        settings=cell.values,
        seed=cell.seed,
        finish=done.finish,
        length=len(ids),
        distinct_2=distinct(ids[:-1] if done.finish == "stop" else ids),
        logprob=fmean(logprobs) if logprobs else None,
        parts=first_difference(ids, greedy),
        text=done.raw,
        token_ids=ids,
        logprobs=logprobs,
    )


def distinct(ids: Sequence[int]) -> float | None:
    """Return distinct-2, the share of distinct bigrams (Li et al. 2016); None if there are none."""
    pairs = list(pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else None


def first_difference(ids: Sequence[int], greedy: Sequence[int]) -> int | None:
    """Return the first place, from 1, at which two token sequences differ; None if they are the same."""
    same = common_length(ids, greedy)
    return None if same == len(ids) == len(greedy) else same + 1


def take_row(
    session: Session,
    asked: Question,
    chats: bool,
    cells: Sequence[Cell],
    made: Mapping[int, "BatchReply"],
    number: int,
) -> Message:
    """Make a row the reply to its message, and use its settings from now on; raises `UsageError`."""
    if number not in made:
        raise UsageError(f"there is no row {number}: rows are numbered {min(made)} to {max(made)}", "/sweep")
    done, samples = made[number].done, made[number].done.seed is not None
    # its seed is left out: it would fix all further replies
    beams = [("num_beams", "1")] if (session.decoding()["num_beams"].value or 1) > 1 else []
    kept = [(name, text) for name, text in cells[number].words if samples or name not in WARPERS]
    words = [("do_sample", "on" if samples else "off"), *beams, *kept]
    session.change(changed(session.settings, words, ("decode",), session.base()))
    asked = replace(asked, turn=add_answer(session, asked, chats, done))
    session.set_pick(partial(take_row, session, asked, chats, cells, made))
    return Message(join_facts(f"row {number} taken", decoding.phrase(session.decoding()), "from the next reply on"))
