"""Sweep: one prompt under a grid of settings, all rows together."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from repl.analysis.sweep import SWEEP_EXAMPLE, Sweep, SweepRow, plan_grid, run_sweep, take_row
from repl.commands.registry import command
from repl.core import settings
from repl.core.errors import UsageError
from repl.core.format import counted, join_facts, rate
from repl.core.jobs import Job
from repl.core.sanitize import clean, clean_line
from repl.core.values import Integer, RestOfLine, show_value
from repl.session.position import question, split_prompt
from repl.session.session import Session
from repl.terminal.screen import render
from repl.terminal.tables import Responsive, fact_line, grid

if TYPE_CHECKING:
    from repl.generation.decode.batch import BatchReply

MIN_OPENING_CELLS = 16  # columns for the beginning of a text beside the figures
MIN_SHARED_LETTERS = 20  # of a beginning that all replies share, to show it once
LESSER_COLUMNS = ("distinct-2", "end", "logprob")  # left out in this order in a narrow window
SHORT_HEADS = {"temperature": "temp", "repetition_penalty": "rep. penalty"}
SWEEP_WORDS = ("temperature=0,0.7,1.2", "top_p=0.9,1", "top_k=0,50", "repetition_penalty=1,1.1", "show")


@command("compare", "/sweep temperature=0,0.7,1.2", "/sweep show 2", see="compare pick sample", needs_model=True)
def sweep(
    session: Session,
    text: Annotated[str, RestOfLine(suggest=lambda: SWEEP_WORDS)] = "",
    *,
    exact: bool = False,
) -> object:
    """Answer a prompt with every combination of settings.

    Write /sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2 [seed=1] [-- PROMPT]. Each combination is generated n times,
    with the seeds from seed on; temperature=0 is greedy. Without a prompt the last message is answered. All rows
    are generated in one batch, each with its own logits processors and random numbers; --exact generates them one
    after another. Ctrl-C keeps the finished rows. /sweep show 5 shows a row, /pick 5 makes it the answer with its
    settings, /export FILE --view writes all rows with their ids.
    """
    words, prompt = split_prompt(text)
    if words[:1] == ["show"] and not prompt:
        return _last(session, words[1:])
    if not words and not prompt:
        return _last(session)
    facts = session.facts()
    chosen = plan_grid(session.settings, session.base(), words)
    asked = question(session, prompt, f"{SWEEP_EXAMPLE} -- PROMPT")
    request = asked.request(session.settings, facts.chats)

    def settle(job: Job[tuple[Sweep, dict[int, "BatchReply"]]]) -> Sweep:
        found, made = job.result()
        if made:
            session.set_pick(partial(take_row, session, asked, request.chats, chosen, made))
        session.keep_sweep(found)
        return found

    return session.run_on_model(lambda emit: run_sweep(session.store.current(), chosen, request, emit, exact), settle)


def _last(session: Session, words: Sequence[str] | None = None) -> Sweep | SweepRow:
    """Return the last sweep, or the row of it that words name; raises `UsageError`."""
    if not isinstance(found := session.last_sweep, Sweep):
        raise UsageError("there is no sweep to show", SWEEP_EXAMPLE)
    if words is None:
        return found
    number = Integer(1).read(" ".join(words) or "nothing")
    lines = {line.number: line for line in found.lines}
    if number not in lines:
        raise UsageError(f"there is no row {number} in the last sweep, it has {len(lines)}", "/sweep")
    return lines[number]


@render.register
def _(line: SweepRow) -> RenderableType:
    chosen = join_facts(
        f"row {line.number}",
        *(f"{SHORT_HEADS.get(name, name)} {_show(name, value)}" for name, value in line.settings.items()),
        f"seed {line.seed}" if line.seed is not None else "greedy",
        counted(line.length, "token"),
    )
    return Text.assemble((chosen, "quiet"), "\n", clean(line.text))


def _draw(found: Sweep, width: int, _: bool) -> Iterator[RenderableType]:
    """Draw a line for each row; in a narrow window the beginning of its text is below its figures."""
    shown = [(found.greedy, "quiet")] if found.greedy else []
    shown += [(row, "") for row in found.lines]
    names = [SHORT_HEADS.get(name, name) for name in found.names]
    heads = ["", *names, "seed", "tokens", "end", "distinct-2", "logprob", "parts at"]
    columns = [*zip(heads, *(_cells(found, row) for row, _ in shown), strict=True)]
    for lesser in LESSER_COLUMNS:
        if sum(max(map(cell_len, column)) + 2 for column in columns) > width:
            columns = [column for column in columns if column[0] != lesser]
    widths = [max(map(cell_len, column)) for column in columns]
    room = width - sum(widths) - 2 * len(widths)
    heads, *rows = map(list, zip(*columns, strict=True))
    begun, texts = split_beginning([row.text for row, _ in shown])
    if begun:
        yield Text(f"all begin: {clean_line(begun)}", "quiet")
    told = [(cells, text, style) for cells, text, (_, style) in zip(rows, texts, shown, strict=True)]
    if room >= MIN_OPENING_CELLS:
        lines = [[*(Text(cell, "quiet") for cell in cells), _opening(text, room, style)] for cells, text, style in told]
        yield grid("r" * len(heads) + "l", lines, [*heads, ""])
    else:
        yield Text(_aligned(heads, widths), "quiet")
        for cells, text, style in told:
            figures = _aligned(cells, widths)
            yield Text(figures, "quiet")
            yield Text("   ") + _opening(text, max(20, room + cell_len(figures) - 3), style)
    yield fact_line(_said(found))
    if found.lines:
        yield Text.assemble(
            ("/sweep show N", "accent"), (" shows a row, ", "quiet"), ("/pick N", "accent"), (" takes it", "quiet")
        )


def _cells(found: Sweep, row: SweepRow) -> list[str]:
    parts = "never" if row.parts is None else str(row.parts)
    return [
        str(row.number or "greedy"),
        *(_show(name, row.settings[name]) if name in row.settings else "" for name in found.names),
        "" if row.seed is None else str(row.seed),
        str(row.length),
        "stopped" if row.finish == "cancelled" else row.finish.replace("_", " "),
        "" if row.distinct_2 is None else f"{row.distinct_2:.2f}",
        "" if row.logprob is None else f"{row.logprob:.2f}",
        parts if row.number else "",
    ]


def split_beginning(texts: list[str]) -> tuple[str, list[str]]:
    """Split off the words that all texts begin with, if they are long enough to be shown once."""
    places = zip(*(text.split() for text in texts), strict=False)
    begun = " ".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, places))
    if len(texts) < 2 or len(begun) < MIN_SHARED_LETTERS:
        return "", texts
    return begun, [f"… {' '.join(text.split())[len(begun) :].lstrip()}" for text in texts]


def _opening(text: str, most: int, style: str) -> Text:
    """Return the beginning of a text in at most `most` columns."""
    drawn = Text(clean_line(" ".join(text[: 2 * most].split())), style, no_wrap=True)
    drawn.truncate(most, overflow="ellipsis")
    return drawn


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join(" " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True))


def _show(name: str, value: object) -> str:
    return settings.show_setting(name, value) if name in settings.places() else show_value(value)


def _said(found: Sweep) -> str:
    made = sum(row.length for row in (*found.lines, *([found.greedy] if found.greedy else [])))
    alone = f"one by one: {found.alone}"
    how = "in one batch" if not found.alone else f"{found.together} in one batch, the others {alone}"
    how = how if found.together else alone
    return join_facts(
        f"{counted(found.made, 'row')} generated {how}",
        f"{counted(made, 'token')} in {found.seconds:.1f} s, {rate(made / found.seconds)}" if found.seconds else "",
        "" if found.whole else "stopped by you",
        f"{counted(found.left_out, 'row')} not started" if found.left_out else "",
    )


render.register(Sweep, lambda result: Responsive(partial(_draw, result)))
