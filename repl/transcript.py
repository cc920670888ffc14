"""A conversation as a file: Markdown, plain text and HTML to read, JSON to compute with."""

import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from repl.clean import clean, clean_line
from repl.colours import caption, painted
from repl.conversation import Turn
from repl.screen import palette, plain
from repl.traces import traced

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
    try:
        text = json.dumps(plain(talk), ensure_ascii=False, indent=1, default=str)
        text.encode()
    except UnicodeEncodeError:  # lone surrogates have an escape in JSON, and no place in UTF-8
        text = json.dumps(plain(talk), indent=1, default=str)
    return text + "\n"


def as_text(talk: Transcript) -> str:
    """Return plain text; control characters are made visible."""
    system = [f"system:\n{clean(talk.system)}\n"] if talk.system else []
    return "\n".join([*system, *(f"{head}:\n{clean(turn.text)}\n" for head, turn in _labelled(talk))])


def as_markdown(talk: Transcript) -> str:
    """Return Markdown in which a code block that was cut off does not swallow the rest."""
    blocks = [f"# {clean_line(talk.title) or 'Conversation'}"]
    blocks += [f"## system\n\n{fenced(clean(talk.system))}"] if talk.system else []
    blocks += [f"## {head}\n\n{fenced(clean(turn.text))}" for head, turn in _labelled(talk)]
    return "\n\n".join(blocks) + "\n"


def as_html(talk: Transcript, by: str = "off") -> str:
    """Return one page that needs no other file; replies in their colours by probability (`on`) or `entropy`."""
    console = Console(
        record=True,
        file=io.StringIO(),
        width=100,
        color_system="truecolor",
        legacy_windows=False,
        highlight=False,
        theme=palette("light"),
        no_color=False,
    )
    if by != "off" and any(turn.record and turn.record.measures.logprobs for turn in talk.turns):
        console.print(caption(by), "", soft_wrap=True)
    if talk.system:
        console.print(Text.assemble(("system", "bold"), "\n", (clean(talk.system), "italic"), "\n"), soft_wrap=True)
    for head, turn in _labelled(talk):
        console.print(Text.assemble((head, "bold"), "\n", coloured(turn, by), "\n"), soft_wrap=True)
    title = html.escape(clean_line(talk.title) or "Conversation").replace("{", "{{").replace("}", "}}")
    return console.export_html(code_format=PAGE.replace("TITLE", title), inline_styles=True)


def coloured(turn: Turn, by: str = "off") -> Text:
    """Return a turn as a page shows it: in the colours of its tokens where they were measured."""
    found = traced(turn) if by != "off" else None
    return painted(found, by) if found else Text(clean(turn.text))


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
    return [(clean_line(_label(turn) + (_place(turn) if tree else "")), turn) for turn in talk.turns]


def _label(turn: Turn) -> str:
    model = str(turn.record.model.get("id", "")) if turn.record else ""
    who = "you" if turn.role in ("user", "prompt") else model or turn.role
    return who if turn.state == "complete" else f"{who} · {turn.state}"


def _place(turn: Turn) -> str:
    return f" · {turn.id}" + (f" after {turn.parent}" if turn.parent else "")
