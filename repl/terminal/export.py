"""A conversation as a file: Markdown, plain text and HTML to read, JSON to compute with."""

import html
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from repl.core.conversation import ASKING, Turn
from repl.core.parts import Parts
from repl.core.sanitize import clean, clean_line
from repl.generation.measure.token_trace import read_trace
from repl.session.session import ShownView
from repl.terminal.screen import as_record, palette, render, to_jsonable
from repl.terminal.token_colours import caption, colour_trace

FILE_COLUMNS = 100  # columns of what is drawn in a file
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
{stylesheet}
body {{ color: {foreground}; background-color: {background}; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
pre {{ font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<pre>{code}</pre>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is written: turns in their order, and what stands above them."""

    id: str
    title: str
    system: str
    head: int | None
    turns: list[Turn]


def as_json(talk: Transcript) -> str:
    """Return every turn with its whole record and its exact text."""
    told = to_jsonable(talk)
    for turn, written in zip(talk.turns, told["turns"], strict=True):
        parts = turn.parts
        written |= {"answer": parts.answer, "thinking": parts.thinking, "tool_calls": to_jsonable(parts.tool_calls)}
    return _dumped(told)


def _dumped(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
        text.encode()
    except UnicodeEncodeError:  # lone surrogates have an escape in JSON, and no place in UTF-8
        text = json.dumps(value, indent=1, default=str)
    return text + "\n"


def as_text(talk: Transcript) -> str:
    """Return plain text; control characters are made visible."""
    system = [f"system:\n{clean(talk.system)}\n"] if talk.system else []
    return "\n".join([*system, *(f"{head}:\n{_plainly(turn.parts)}\n" for head, turn in _labelled(talk))])


def _plainly(parts: Parts) -> str:
    thought = [f"[thinking]\n{clean(parts.thinking)}\n[/thinking]"] if parts.thinking else []
    calls = [f"[tool call] {clean(json.dumps(one, ensure_ascii=False))}" for one in parts.tool_calls]
    return "\n\n".join([*thought, *([clean(parts.answer)] if parts.answer or not thought + calls else []), *calls])


def as_markdown(talk: Transcript) -> str:
    """Return Markdown in which a code block that was cut off does not swallow the rest."""
    blocks = [f"# {clean_line(talk.title) or 'Conversation'}"]
    blocks += [f"## system\n\n{fenced(clean(talk.system))}"] if talk.system else []
    blocks += [f"## {head}\n\n{_in_markdown(turn.parts)}" for head, turn in _labelled(talk)]
    return "\n\n".join(blocks) + "\n"


def _in_markdown(parts: Parts) -> str:
    quoted = "\n".join(f"> {line}".rstrip() for line in fenced(clean(parts.thinking)).split("\n"))
    thought = [f"> **thinking**\n>\n{quoted}"] if parts.thinking else []
    calls = [block(json.dumps(one, ensure_ascii=False, indent=1), "json") for one in parts.tool_calls]
    return "\n\n".join(text for text in [*thought, fenced(clean(parts.answer)), *calls] if text)


def block(text: str, language: str = "") -> str:
    """Return a block of code, fenced so that nothing in it ends it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{clean(text).rstrip()}\n{fence}"


def as_html(talk: Transcript, by: str = "off") -> str:
    """Return one page that needs no other file; replies in their colours by probability (`on`) or `entropy`."""
    console = sheet()
    if by != "off" and any(turn.record and turn.record.measures.logprobs for turn in talk.turns):
        console.print(caption(by), "", soft_wrap=True)
    if talk.system:
        console.print(Text.assemble(("system", "bold"), "\n", (clean(talk.system), "italic"), "\n"), soft_wrap=True)
    for head, turn in _labelled(talk):
        console.print(Text.assemble((head, "bold"), "\n", coloured(turn, by), "\n"), soft_wrap=True)
    return html_page(console, talk.title or "Conversation")


def sheet() -> Console:
    """Return a console that keeps what is drawn on it, in colours on a light ground."""
    return Console(
        record=True,
        file=io.StringIO(),
        width=FILE_COLUMNS,
        color_system="truecolor",
        force_terminal=True,  # what has another form without colours is drawn in the one with them
        legacy_windows=False,
        highlight=False,
        theme=palette("light"),
        no_color=False,
    )


def html_page(console: Console, title: str) -> str:
    """Return what was drawn on a sheet as one HTML page."""
    name = html.escape(clean_line(title)).replace("{", "{{").replace("}", "}}")
    return console.export_html(code_format=PAGE.replace("TITLE", name), inline_styles=True)


def coloured(turn: Turn, by: str = "off") -> Text:
    """Return a turn as a page shows it: in the colours of its tokens where they were measured."""
    found = read_trace(turn) if by != "off" else None
    return colour_trace(found, by) if found else said(turn.parts)


def said(parts: Parts) -> Text:
    """Return what was thought, answered and called; all but the answer dim."""
    calls = "\n".join(json.dumps(one, ensure_ascii=False) for one in parts.tool_calls)
    drawn = [(parts.thinking, "quiet"), (parts.answer, ""), (calls, "quiet")]
    return Text("\n\n").join(Text(clean(text), words) for text, words in drawn if text)


def view_as_html(shown: ShownView) -> str:
    """Return a result as a page, in its colours, under the line that asked for it."""
    console = sheet()
    console.print(Text(clean_line(shown.line), "bold"), "", render(shown.result), sep="\n")
    return html_page(console, shown.line)


def view_as_text(shown: ShownView) -> str:
    """Return a result as it reads without colours."""
    paper = io.StringIO()
    console = Console(file=paper, width=FILE_COLUMNS, force_terminal=False, highlight=False, theme=palette("mono"))
    with console.capture() as drawn:
        console.print(Text(clean_line(shown.line)), "", render(shown.result), sep="\n")
    return "\n".join(row.rstrip() for row in drawn.get().splitlines()) + "\n"


def view_as_markdown(shown: ShownView) -> str:
    """Return a result in a block of code, under the line that asked for it."""
    _, _, drawn = view_as_text(shown).partition("\n\n")
    return f"# {clean_line(shown.line)}\n\n{block(drawn)}\n"


def view_as_json(shown: ShownView) -> str:
    """Return a result field by field, as --json writes it."""
    return _dumped(as_record(shown.command, shown.result))


VIEWS: dict[str, Callable[[ShownView], str]] = {
    ".md": view_as_markdown,
    ".json": view_as_json,
    ".txt": view_as_text,
    ".html": view_as_html,
}


FORMATS: dict[str, Callable[[Transcript], str]] = {
    ".md": as_markdown,
    ".json": as_json,
    ".txt": as_text,
    ".html": as_html,
}


def fenced(text: str) -> str:
    """Close the code block that a text leaves open."""
    fence = ""
    for mark, rest in re.findall(r"^ {0,3}(`{3,}|~{3,})(.*)$", text, re.M):
        if not fence:
            fence = mark if mark[0] == "~" or "`" not in rest else ""
        elif mark.startswith(fence) and not rest.strip():
            fence = ""
    return text + ("\n" * (not text.endswith("\n")) + fence if fence else "")


def _labelled(talk: Transcript) -> list[tuple[str, Turn]]:
    """Return each turn under who spoke, with which model, how it ended, and in a tree where it hangs."""
    tree = any(turn.parent != before.id for before, turn in zip(talk.turns, talk.turns[1:], strict=False))
    numbers = {turn.id: turn.exchange for turn in talk.turns} if tree else {}
    return [(clean_line(_label(turn) + _place(turn, numbers)), turn) for turn in talk.turns]


def _label(turn: Turn) -> str:
    model = turn.record.model.id if turn.record else ""
    who = "you" if turn.role in ("user", "prompt") else model or turn.role
    return who if turn.state == "complete" else f"{who} · {turn.state}"


def _place(turn: Turn, numbers: Mapping[int, int]) -> str:
    """Return the number of a turn's exchange in a tree, and what it follows where that is not the one before."""
    before = numbers.get(turn.parent or 0, turn.exchange)
    follows = f" after {before}" if turn.role in ASKING else f", another answer to {before}"
    return f" · {turn.exchange}" + (follows if before != turn.exchange else "") if numbers else ""
