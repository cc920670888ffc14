"""The screen: views of results, errors and notices on one line each, or JSON lines."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from functools import singledispatch
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.theme import Theme

from repl.core.errors import ReplError
from repl.core.format import amount, count, counted, device, join_facts, rate
from repl.core.reply import Reply, ServedModel
from repl.core.sanitize import clean, clean_line
from repl.core.settings import in_shell, short_id
from repl.models.adapters import Adapter
from repl.remote.engine import Connected
from repl.session.results import Draft, Message
from repl.session.session import Loaded
from repl.terminal.tables import FactLine, First, LineConsole, OutputConsole, Responsive, fact_line, grid

ACCENTS = {"dark": "cyan", "light": "blue", "mono": "bold"}
TOLD = ("id", "commit", "dtype", "device_map", "quantization", "adapter", "parameters", "bytes")
"""The facts about a loaded model in a JSON line, beside its revision."""
OPTION_LINES = ("/resume", "/connect")  # lines that command-line options stand for
SHARED_CHARACTERS = 28  # shown of the common beginning of all sequences, at least
PROGRESS_S = 10.0  # seconds between two lines of progress
THEME_SHADES = {
    "dark": ("#5fafff", "#ffaf00", "on #3a3a3a"),
    "light": ("#005fd7", "#af5f00", "on #dadada"),
    "mono": ("", "", "underline"),
}
"""Styles of less likely and of unlikely tokens, and of every other token; distinct for colour-blind people too."""


def shown_theme(theme: str) -> str:
    """Return the theme to draw in: `mono` if `NO_COLOR` is set."""
    return "mono" if "NO_COLOR" in os.environ else theme


def palette(theme: str) -> Theme:
    """Return the styles of a theme; token shades differ by more than colour."""
    (less, least, band), accent = THEME_SHADES[theme], ACCENTS[theme]
    styles = {"accent": accent, "quiet": "dim", "special": f"bold {accent}", "band": band, "overruled": "reverse"}
    shades = {"shade1": f"underline {less}", "shade2": f"bold underline {least}", "shade3": f"italic underline {least}"}
    return Theme({**styles, **shades, "error": "" if theme == "mono" else "red"})


THEME = palette(shown_theme("dark"))
PICK_HINT = Text.assemble(("/pick N", "accent"), (" selects another answer", "quiet"))


@singledispatch
def render(result: Any) -> RenderableType:
    """Draw a result; every result class registers its own."""
    raise TypeError(f"no view for {type(result).__name__}")


@render.register
def _(result: Message) -> FactLine:
    offered = (f"{number} {effect}" for number, (_, effect) in enumerate(result.choices, 1))
    return fact_line(clean(result.text), *map(clean, offered))


@render.register
def _(result: Draft) -> Text:
    return Text(clean(result.said), "quiet")


@render.register
def _(result: Loaded) -> RenderableType:
    """Draw the line of a load: model, size, device, time; a narrow window drops facts from its end."""
    facts, before, asked = result.facts, result.before, result.asked.dtype
    was = before.bytes if before and before.id == facts.id and before.bytes != facts.bytes else 0
    other = asked not in ("auto", facts.dtype) and facts.form != facts.quantization
    parts = [
        f"{count(facts.parameters)} parameters",
        facts.form + f" (asked for {asked})" * other,
        f"adapter {_named(facts.adapter)}" if facts.adapter != "none" else "",
        amount(facts.bytes) + (f" (was {amount(was)})" if was else ""),
        device(facts.device_map),
        "" if facts.chats else "no chat template",
    ]
    took = f"{facts.seconds:.1f} s" if facts.seconds > 0.1 else f"{max(1, facts.seconds * 1000):.0f} ms"
    name = clean_line(facts.name + (" (built in)" if facts.id == "builtin" else "")), "accent"
    shown = [*(parts[:end] for end in range(len(parts), 1, -1)), parts[3:4], []]
    lines = (clean_line(join_facts(*each, f"ready in {took}")) for each in shown)
    drawn = (Text.assemble(name, (f" · {line}", "quiet")) for line in lines)
    return Group(First(*drawn), *(Text(clean_line(remark), "quiet") for remark in facts.remarks))


def _named(adapter: str) -> str:
    """Return an adapter's id, or the last part of its path."""
    found = Adapter.of(adapter)
    return short_id(found.name) + (" (merged)" if found.merge else "")


@render.register
def _(result: Reply) -> RenderableType:
    return Group(*sequences(result), fact_line(reply_figures(result)))


def sequences(done: Reply) -> list[RenderableType]:
    """Return a table of several sequences: their common beginning once, then the score and the end of each."""
    if len(done.sequences) < 2:
        return []
    texts = [found.text for found in done.sequences]
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts), strict=False))
    shared = "".join(one for one, _ in alike).rpartition(" ")[0]
    unit = score_unit(float(done.decode.get("length_penalty", 1.0) or 0.0))
    scored = done.sequences[0].score is not None
    told = clean_line(" ".join(shared.split()))

    def head(width: int, _: bool) -> Iterator[Text]:
        room = max(SHARED_CHARACTERS, width - len(unit) - 10)
        tail = told if len(told) <= room else "…" + told[1 - room :]
        yield Text(join_facts(unit if scored else "", f"after {tail}" if tail else ""), "quiet")

    rows = [
        (
            Text(f"{number:>2}", "quiet"),
            Text("" if found.score is None else f"{found.score:.3f}", "quiet"),
            clean_line(" ".join(found.text[len(shared) :].split())) or "(ends)",
        )
        for number, found in enumerate(done.sequences, 1)
    ]
    return [*([Responsive(head)] if scored or told else []), grid("rrl", rows), PICK_HINT]


def score_unit(length_penalty: float) -> str:
    """Return the unit of a beam's score."""
    return "mean log-probability" if length_penalty == 1 else f"log-probability / tokens^{length_penalty:g}"


def reply_figures(done: Reply) -> str:
    """Return the line of statistics under a reply."""
    made, timing = done.usage.completion, done.timing
    goes_on = "/continue goes on"
    if done.format and not done.format.finished:
        goes_on = "the form is unfinished: /continue finishes it"
    ends = {"cancelled": f"stopped by you · {goes_on}", "length": _limit(done, goes_on)}
    given, overruled = "", list[str]()
    if done.format and done.format.nats:
        given = f", {len(done.format.given)} of them given by the form"
        times, place = counted(len(done.format.overruled), "time"), done.format.worst
        overruled = [f"overruled the model {times}, {sum(done.format.nats):.1f} nats", f"/why {place}" if place else ""]
    return join_facts(
        counted(made, _unit(done)) + given,
        *overruled,
        f"first after {timing.ttft_s:.2f} s" if timing.ttft_s is not None else "",
        rate(timing.decode_tps) if timing.decode_tps else "",
        f"{done.usage.reused} of {done.usage.prompt} reused" if done.usage.reused else "",
        f"seed {done.seed}" if done.seed is not None else "",
        f"took back {counted(len(done.taken_back), 'phrase')}" if done.taken_back else "",
        ends.get(done.finish, ""),
    )


def _unit(done: Reply) -> str:
    """Return the unit of a reply's length: pieces where a server did not tell the number of tokens."""
    return "piece" if isinstance(done.model, ServedModel) and done.model.counted == "by pieces" else "token"


def _limit(done: Reply, goes_on: str) -> str:
    """Return the limit that ended a reply, and how to continue."""
    context, made, server = done.model.context, done.usage.completion, done.server
    if server and done.decode.get("max_new_tokens") is None and not 0 < context <= done.usage.prompt + made:
        return f"cut by {clean_line(server)} after {counted(made, _unit(done))}, /max {2 * made} asks for more"
    if context and done.usage.prompt + done.usage.completion >= context:
        return f"the context of {context} tokens is full"
    if done.out_of_time:
        seconds = done.decode["max_time"]
        return f"cut after {seconds:g} s, /set max_time {2 * seconds:g} allows more"
    if (limit := done.decode.get("max_new_tokens")) is not None:
        return f"cut at {counted(limit, 'token')} · {goes_on}"
    return f"cut at max_length {done.decode.get('max_length')}"


class Screen:
    """Two consoles: `out` for answers and results, `err` for progress, notices and errors."""

    def __init__(self, as_json: bool = False, interactive: bool = False) -> None:
        self.as_json = as_json
        self.interactive = interactive
        self.accessible = False
        self._explained: set[str] = set()
        self._progress_due = 0.0  # when the next line of progress may be written
        self._mono = False
        self.out, self.err = self._consoles(OutputConsole, not interactive)

    def show(self, command: str, result: Any, beside: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Show the result of a command; `beside` is added to its JSON line."""
        if self.as_json:
            self.record({**as_record(command, result), **beside})
        elif self.interactive:
            self.out.print(render(result))
        elif isinstance(result, Message):
            self.notice(join_facts(result.text, *(f"{line} {effect}" for line, effect in result.choices)))
        elif isinstance(result, Draft):
            self.err.print(render(result))
        elif not isinstance(result, Reply | Loaded | Connected):  # a reply is written already; a load is silent
            self.out.print(render(result))

    def adapt(self, accessible: bool) -> None:
        """Switch to output for screen readers (whole lines, no colours), or back."""
        self.accessible = accessible
        if self.as_json:
            return
        kind = LineConsole if accessible else OutputConsole
        self.out, self.err = self._consoles(kind, accessible or not self.interactive)

    def _consoles(self, kind: type[Console], wrap: bool) -> list[Console]:
        terminal = False if self.accessible else None
        return [
            kind(theme=THEME, highlight=False, markup=False, stderr=stderr, soft_wrap=wrap, force_terminal=terminal)
            for stderr in (False, True)
        ]

    def progress(self, text: str) -> None:
        """Write a line of progress, at most every `PROGRESS_S`, where no line is redrawn."""
        if time.monotonic() >= self._progress_due:
            self._progress_due = time.monotonic() + PROGRESS_S
            self.err.print(text)

    def paint(self, theme: str) -> None:
        """Use a theme from now on."""
        theme = shown_theme(theme)
        self._mono = theme == "mono"
        for console in (self.out, self.err):
            console.push_theme(palette(theme))
            console.no_color = self._mono

    def space(self) -> None:
        """Write a blank line before the next prompt."""
        if self.interactive:
            self.out.print()

    def record(self, record: dict[str, Any]) -> None:
        """Write one JSON line."""
        self.out.file.write(json.dumps(record, ensure_ascii=self.out.is_terminal, default=str) + "\n")
        self.out.file.flush()

    def error(self, error: ReplError, repeats: bool = True, line: str = "", model: str = "") -> None:
        """Show an error and what to type next; `repeats` tells that a choice runs the line again.

        `line` is the one that failed. Without a prompt, a line that is no command came from a shell, and hints are
        shell commands for `model`.
        """
        if self.as_json:
            hints = list(error.hints)
            self.record({"event": "error", "kind": error.kind, "message": error.message, "hints": hints})
        else:
            sign = "error: " if self._mono or self.accessible else "✗ "
            name = sign if self.interactive else "hub-repl: "
            numbered = self.interactive and error.choices
            asked_in_shell = not self.interactive and (line.startswith(OPTION_LINES) or not line.startswith("/"))
            hints = [in_shell(hint, model) for hint in error.hints] if asked_in_shell else list(error.hints)
            said = (name + clean(error.message), "error" if self.interactive else "")
            told = [line for line, _ in error.choices] if numbered else []
            more = [Text.assemble((" · ", "quiet"), (clean_line(hint), "accent")) for hint in hints if hint not in told]
            self.err.print(FactLine(Text.assemble(said, *more)))
            if numbered:
                rows: list[list[str | Text]] = [
                    [f"{number:>3}", Text.assemble((clean_line(line), "accent"), (f"  {clean_line(effect)}", "quiet"))]
                    for number, (line, effect) in enumerate(error.choices, 1)
                ]
                again = " and retry" if repeats and error.again else ""
                rows.append(["", Text(f"type a number to apply it{again}", "quiet")])
                self.err.print(grid("rl", rows, gap=1))

    def explain_once(self, explained: Text) -> None:
        """Write an explanation to `err`, only once."""
        if explained.plain not in self._explained:
            self._explained.add(explained.plain)
            self.err.print(explained)

    def notice(self, text: str) -> None:
        """Write a notice to `err`."""
        if not self.as_json or not self.interactive:
            self.err.print(fact_line(clean(text)))


def as_record(command: str, result: Any) -> dict[str, Any]:
    """Return the JSON object of a result."""
    match result:
        case Loaded(facts=facts, asked=asked):
            told = {name: getattr(facts, name) for name in TOLD} | {"revision": asked.revision}
            return {"event": "loaded", "model": told, "seconds": round(facts.seconds, 3)}
        case Reply():
            kept = {name: value for name, value in to_jsonable(result).items() if name not in ("measures", "begun")}
            return {"event": "done", **kept}
        case _:
            return {"event": "result", "command": command, "data": to_jsonable(result)}


def to_jsonable(value: Any) -> Any:
    """Turn dataclasses, mappings, sets and tuples into JSON objects and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spot.name: to_jsonable(getattr(value, spot.name)) for spot in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    return value
