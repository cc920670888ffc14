"""Sweep: one prompt under a grid of settings, all rows together."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from repl import settings
from repl.adopt import Answer, Offer
from repl.clean import clean, clean_line
from repl.decoding import SAMPLING
from repl.errors import UsageError
from repl.kinds import Rest, Whole
from repl.point import question, split
from repl.registry import command
from repl.rows import Made
from repl.screen import Said, joined, view
from repl.session import Session, Task
from repl.sweep import EXAMPLE, Line, Run, Sweep, plan
from repl.worker import Job
from repl.writing import write

SAVE = "/sweep save FILE.jsonl"
OPENING = 16  # least columns worth giving to the beginning of a text beside the figures


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of a sweep with its whole text."""

    line: Line


@command("compare", name="sweep", waits=True)
def sweep(session: Session, text: Annotated[str, Rest()] = "", *, exact: bool = False, force: bool = False) -> Any:
    """Answer one prompt under a grid of settings: /sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2 [seed=1] [-- PROMPT].

    Each combination is made n times, with the seeds from seed on; temperature=0 is greedy. Without a prompt the last
    message is answered. All rows are made together, from one reading of the prompt, each with its own processors and
    random numbers; --exact makes them one after another. Ctrl-C keeps what is done. /sweep show 5 shows a row,
    /pick 5 takes it as the answer with its settings, /sweep save FILE.jsonl [--force] keeps all.
    """
    words, prompt = split(text)
    flags = {word for word in words if word in ("--exact", "--force")}
    words = [word for word in words if word not in flags]
    if words[:1] == ["show"] and not prompt:
        return Shown(_line(_last(session), words[1:]))
    if words[:1] == ["save"] and not prompt:
        return _saved(_last(session), text.partition("save")[2].replace("--force", ""), force or "--force" in flags)
    if not words and not prompt:
        return _last(session)
    return _begin(session, words, prompt, exact or "--exact" in flags)


def _begin(session: Session, words: list[str], prompt: str, exact: bool) -> Task[Sweep]:
    session.facts()
    chosen = plan(session.settings, session.base(), words)
    asked = question(session, prompt, f"{EXAMPLE} -- PROMPT")
    last = session.last

    def settle(job: Job[tuple[Sweep, dict[int, Made]]]) -> Sweep:
        found, made = job.result()
        words_of = dict(enumerate(chosen.cells, 1))
        taken = {number: Answer(one.done, _adopted(words_of[number].words, one)) for number, one in made.items()}
        session.offer = Offer(asked, taken, last) if taken else session.offer
        session.swept = found
        return found

    return session.start(lambda emit: Run(session.store.current(), chosen, asked.request, emit, exact).sweep(), settle)


def _adopted(words: tuple[tuple[str, str], ...], made: Made) -> tuple[tuple[str, str], ...]:
    """Return what has to be set to go on as a row was made; its seed is not: it would fix all further replies."""
    samples = made.done.seed is not None
    kept = [(name, text) for name, text in words if samples or name not in SAMPLING]
    return (("do_sample", "on" if samples else "off"), *kept)


def _last(session: Session) -> Sweep:
    if not isinstance(session.swept, Sweep):
        raise UsageError("there is no sweep to show", EXAMPLE)
    return session.swept


def _line(found: Sweep, words: list[str]) -> Line:
    number = Whole(1).read(" ".join(words) or "nothing")
    lines = {line.number: line for line in found.lines}
    if number not in lines:
        raise UsageError(f"there is no row {number} in the last sweep, it has {len(lines)}", "/sweep")
    return lines[number]


def _saved(found: Sweep, file: str, force: bool) -> Said:
    file = file.strip().strip("\"'")
    if not file.endswith(".jsonl"):
        raise UsageError(f"{file!r} does not end in .jsonl", SAVE)
    rows = [_record(found, line) for line in found.lines]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = write(file, content.encode("utf-8", "replace"), force, f"/sweep save {file} --force")
    return Said(f"{len(rows)} rows written to {path}")


def _record(found: Sweep, line: Line) -> dict[str, Any]:
    own = {name: getattr(line, name) for name in Line.__slots__ if name not in ("text", "token_ids", "logprobs")}
    ids = {"prompt_ids": found.prompt_ids, "token_ids": line.token_ids, "logprobs": line.logprobs}
    return {**own, "text": line.text, **ids}


class Drawing:
    """A line for each row; where the window is narrow, the beginning of its text stands below its figures."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        found = self._sweep
        heads = ["", *map(_short, found.names), "seed", "tokens", "end", "distinct-2", "logprob", "parts at"]
        rows = [self._cells(line) for line in found.lines if line.same_as is None]
        first = ["", *[""] * len(found.names), *self._figures(found.greedy)]
        widths = [max(map(cell_len, column)) for column in zip(heads, first, *rows, strict=True)]
        room = options.max_width - sum(widths) - 2 * len(widths)
        yield Text(_aligned(heads, widths), "quiet")
        if found.greedy.same_as is None and found.greedy.length:
            first[1 if found.names else 0] = ""
            yield from self._drawn(_aligned(first, widths), found.greedy, room, "quiet", "greedy: ")
        yield from self._body(widths, room)
        yield Text(_said(found), "quiet")
        if found.lines:
            yield Text.assemble(
                ("/sweep show N", "accent"), (" shows a row, ", "quiet"), ("/pick N", "accent"), (" takes it", "quiet")
            )

    def _body(self, widths: list[int], room: int) -> Iterator[Text]:
        same: list[Line] = []
        for line in self._sweep.lines:
            if line.same_as is not None:
                same.append(line)
                continue
            yield from _folded(same, widths[0])
            same = []
            yield from self._drawn(_aligned(self._cells(line), widths), line, room, "")
        yield from _folded(same, widths[0])

    def _cells(self, line: Line) -> list[str]:
        values = [settings.show(name, line.settings[name]) for name in self._sweep.names]
        return [str(line.number), *values, *self._figures(line)]

    def _figures(self, line: Line) -> list[str]:
        return [
            "" if line.seed is None else str(line.seed),
            str(line.length),
            "stopped" if line.finish == "cancelled" else line.finish.replace("_", " "),
            "" if line.distinct_2 is None else f"{line.distinct_2:.2f}",
            "" if line.logprob is None else f"{line.logprob:.2f}",
            ""
            if line.number in (0, self._sweep.greedy.same_as)
            else "never"
            if line.parts is None
            else str(line.parts),
        ]

    def _drawn(self, figures: str, line: Line, room: int, style: str, lead: str = "") -> Iterator[Text]:
        if room >= OPENING:
            yield Text.assemble((figures + "  ", "quiet"), _opening(lead + line.text, room, style))
            return
        yield Text(figures, "quiet")
        yield Text("   ") + _opening(lead + line.text, max(20, room + cell_len(figures) - 3), style)


def _opening(text: str, most: int, style: str) -> Text:
    """Return the beginning of a text in so many columns."""
    drawn = Text(clean_line(" ".join(text[: 2 * most].split())), style, no_wrap=True)
    drawn.truncate(most, overflow="ellipsis")
    return drawn


def _short(name: str) -> str:
    return {"temperature": "temp", "repetition_penalty": "rep. penalty"}.get(name, name)


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join(" " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True))


def _folded(same: list[Line], width: int) -> Iterator[Text]:
    """Draw rows that are copies of others in one line."""
    if same:
        numbers = str(same[0].number) if len(same) == 1 else f"{same[0].number}-{same[-1].number}"
        rows = ", ".join(str(number) for number in dict.fromkeys(line.same_as for line in same))
        yield Text(f"{numbers:>{width}}  as row {rows}: settings that come to the same", "quiet")


def _said(found: Sweep) -> str:
    made = sum(line.length for line in found.lines if line.same_as is None)
    made += found.greedy.length if found.greedy.same_as is None else 0
    alone = f"one after another: {found.alone}"
    how = "all together" if not found.alone else f"{found.together} together, the others {alone}"
    how = how if found.together else alone
    return joined(
        f"{found.made} rows made {how}",
        f"{made} tokens in {found.seconds:.1f} s, {made / found.seconds:.0f} tokens/s" if found.seconds else "",
        f"stopped by you{f', {found.left_out} rows not begun' if found.left_out else ''}" if not found.whole else "",
    )


@view.register
def _(result: Sweep) -> RenderableType:
    return Drawing(result)


@view.register
def _(result: Shown) -> RenderableType:
    line = result.line
    chosen = joined(
        f"row {line.number}",
        *(f"{_short(name)} {settings.show(name, value)}" for name, value in line.settings.items()),
        f"seed {line.seed}" if line.seed is not None else "greedy",
        f"{line.length} tokens",
    )
    return Text.assemble((chosen, "quiet"), "\n", clean(line.text))
