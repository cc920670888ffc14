"""Conversations and results as files: Markdown, plain text, HTML and JSON."""

import hashlib
import html
import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import singledispatch
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.text import Text

from repl.core import decoding
from repl.core.conversation import ASKING, Turn
from repl.core.format import join_facts
from repl.core.parts import Parts
from repl.core.reply import Reply
from repl.core.sanitize import clean, clean_line
from repl.core.settings import full_name, short_id
from repl.core.tool_calls import describe
from repl.generation.measure.token_text import quote
from repl.generation.measure.token_trace import Seen, read_trace
from repl.session.session import ShownView
from repl.terminal.screen import as_record, palette, render, to_jsonable
from repl.terminal.token_colours import SHADES, caption, percent, shade

FILE_COLUMNS, PHONE_COLUMNS = 100, 60  # width of drawings in a file, and on a narrow page
Facts = tuple[tuple[str, str], ...]
CSS = """
body { color: #1a1a1a; background: #fff; max-width: 60em; margin: 0 auto; padding: 1em 1em 6em;
  font: 1em/1.5 system-ui, sans-serif; }
h1, h2 { font-size: 1.1em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; color: #555; font-size: .9em; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font: .95em/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.drawn { line-height: 1.25; white-space: pre; overflow-x: auto; }
pre.narrow { display: none; font-size: min(.9em, 2.5vw); }
@media (max-width: 50em) { pre.wide { display: none; } pre.narrow { display: block; } }
i { font-style: normal; }
i[data-p]:hover, i[data-p]:focus { background: #ffe9a8; outline: none; }
i[data-p]:hover::after, i[data-p]:focus::after { content: attr(data-p); position: fixed; inset: auto 0 0 0;
  padding: .5em 1em; color: #fff; background: #222; font-size: .9em; font-weight: normal; white-space: pre-wrap; }
@media (prefers-color-scheme: dark) { html { background: #fff; filter: invert(.9) hue-rotate(180deg); } }
"""
"""The style sheet of a page, light or dark; details of a token are shown at the bottom, on hover or focus."""

TABLE_CSS = """
body { max-width: none; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border: 1px solid #ccc; padding: .3em .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td { white-space: pre-wrap; font-size: .9em; }
td.prompt { color: #555; }
td.other { background: #fff3d6; }
"""
"""The style sheet of a table of texts; texts that differ from the first of their row have another background."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The conversation to write: its turns in order, its title and system message."""

    id: str
    title: str
    system: str
    head: int | None
    turns: list[Turn]


def as_json(talk: Transcript) -> str:
    """Return every turn with its record and its exact text."""
    told = to_jsonable(talk)
    for turn, written in zip(talk.turns, told["turns"], strict=True):
        parts = turn.parts
        written |= {"answer": parts.answer, "thinking": parts.thinking, "tool_calls": to_jsonable(parts.tool_calls)}
    return _dumped(told)


def _dumped(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
        text.encode()
    except UnicodeEncodeError:  # lone surrogates can be escaped in JSON, but not encoded in UTF-8
        text = json.dumps(value, indent=1, default=str)
    return text + "\n"


def as_text(talk: Transcript) -> str:
    """Return plain text; control characters are made visible."""
    sections = []
    for head, parts, _ in _sections(talk):
        thought = f"[thinking]\n{parts.thinking}\n[/thinking]" if parts.thinking else ""
        calls = [f"[tool call] {json.dumps(one, ensure_ascii=False)}" for one in parts.tool_calls]
        told = "\n\n".join(text for text in (thought, parts.answer, *calls) if text)
        sections.append(f"{head}:\n{clean(told)}\n")
    return "\n".join(sections)


def as_markdown(talk: Transcript) -> str:
    """Return Markdown in which a code block that was cut off does not swallow the rest."""
    blocks = [f"# {clean_line(talk.title) or 'Conversation'}"]
    for head, parts, _ in _sections(talk):
        quoted = "\n".join(f"> {line}".rstrip() for line in fenced(clean(parts.thinking)).split("\n"))
        thought = f"> **thinking**\n>\n{quoted}" if parts.thinking else ""
        calls = [block(json.dumps(one, ensure_ascii=False, indent=1), "json") for one in parts.tool_calls]
        blocks += [f"## {head}", *(text for text in (thought, fenced(clean(parts.answer)), *calls) if text)]
    return "\n\n".join(blocks) + "\n"


def block(text: str, language: str = "") -> str:
    """Return a Markdown code block whose fence does not occur in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{clean(text).rstrip()}\n{fence}"


def as_html(talk: Transcript, by: str = "off") -> str:
    """Return a self-contained page; hovering over a token shows its probability and alternatives.

    Tokens are coloured by probability (`by="on"`), by `entropy`, or not at all (`off`).
    """
    made, body = [turn.record for turn in talk.turns if turn.record], list[str]()
    if by != "off" and any(one.measures.logprobs for one in made):
        drawn = caption(by)
        words = ((drawn.plain[span.start : span.end].replace(" to ", "\xa0to\xa0"), span.style) for span in drawn.spans)
        body.append(f"<pre>{''.join(_escaped(word, str(name)) for word, name in words)}</pre>")
    for head, parts, turn in _sections(talk):
        shown = _in_html(turn, by) if turn else _escaped(parts.answer, "quiet")
        body.append(f"<h2>{html.escape(head)}</h2>\n<pre>\n{shown}\n</pre>")
    return html_page(talk.title or "Conversation", about(made[-1]) if made else (), "\n".join(body))


def about(record: Reply) -> Facts:
    """Return the model, commit and settings of a reply."""
    model, decode = record.model, {name: decoding.Value(value, "") for name, value in record.decode.items()}
    given = [f"{name}={value}" for name, value in record.given.items() if name not in decoding.IN_PHRASE]
    settings = join_facts(decoding.phrase(decode), *given, "" if record.seed is None else f"seed {record.seed}")
    form = join_facts(*(word for word in (model.dtype, model.quantization, model.adapter) if word != "none"))
    return (
        ("model", join_facts(full_name(model.id), record.server, form)),
        ("commit", model.commit),
        ("settings", settings),
    )


def _escaped(text: str, name: str = "", told: str = "") -> str:
    """Return a text as HTML, in a style, with details shown on hover."""
    held = f' class="{name}"' * (name not in ("", "none")) + f' tabindex="0" data-p="{html.escape(told)}"' * bool(told)
    return f"<i{held}>{html.escape(clean(text))}</i>" if held and text else html.escape(clean(text))


def _in_html(turn: Turn, by: str) -> str:
    """Return a turn as HTML, token by token where log-probabilities were recorded; all but the answer is dim."""
    found, parts = read_trace(turn), turn.parts
    if found is None:
        return "\n\n".join(_escaped(text, name) for text, name in _drawn(parts))
    begins, at = max(0, turn.text.rfind(parts.answer)), len(found.lead)
    ends, pieces = begins + len(parts.answer), [_escaped(found.lead, "quiet")]
    for token in found.tokens:
        name = "" if begins <= at < ends else "quiet"
        pieces.append(_escaped(token.text, shade(token, by) if by != "off" else name, _told(token)))
        at += len(token.text)
    return "".join(pieces)


def _told(token: Seen) -> str:
    """Return a token's probability and entropy, and the most likely alternatives."""
    others = [f"{percent(math.exp(logprob)):>9} {quote(text)}" for _, text, logprob in token.top[:5]]
    entropy = "" if token.entropy is None else f"entropy {token.entropy:.2f} nats"
    return "\n".join([join_facts(quote(token.name), percent(math.exp(token.logprob)), entropy), *others])


def sheet(in_colours: bool = True) -> Console:
    """Return a console that records its output, in the colours of the light theme."""
    return Console(
        record=True,
        file=io.StringIO(),
        width=FILE_COLUMNS,
        color_system="truecolor",
        force_terminal=in_colours,  # views with a form for terminals use it
        legacy_windows=False,
        highlight=False,
        markup=False,
        theme=palette("light" if in_colours else "mono"),
        no_color=not in_colours,
    )


def said(parts: Parts) -> Text:
    """Return thinking, answer and tool calls; all but the answer dim."""
    return Text("\n\n").join(Text(clean(text), name) for text, name in _drawn(parts))


def _drawn(parts: Parts) -> list[tuple[str, str]]:
    """List thinking, answer and tool calls, each with its style."""
    calls = "\n".join(map(describe, parts.tool_calls))
    return [(text, name) for text, name in ((parts.thinking, "quiet"), (parts.answer, ""), (calls, "quiet")) if text]


def html_page(title: str, facts: Facts, body: str, style: str = "") -> str:
    """Return a page with facts above its body; its content security policy allows no scripts and no requests."""
    named = {name: palette("light").styles[name].get_html_style() for name in SHADES}
    plain = {"quiet": "opacity: .6", "overruled": "color: #fff; background: #1a1a1a"}
    style = CSS + "".join(f".{name} {{ {rule} }}\n" for name, rule in {**named, **plain}.items()) + style
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    name, now = html.escape(clean_line(title)), datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    told = "".join(
        f"<dt>{key}</dt><dd>{html.escape(clean_line(said))}</dd>\n" for key, said in (*facts, ("date", now)) if said
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
<dl>
{told}</dl>
{body}
</body>
</html>
"""


@singledispatch
def page_body(result: Any) -> str:
    """Return HTML for a result that is too large to be drawn in a terminal; '' for all others."""
    return ""


def html_table(heads: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> str:
    """Return an HTML table of texts with their style names ('' for none); line breaks are kept."""
    head = "".join(f"<th>{html.escape(clean_line(one))}</th>" for one in heads)
    body = ""
    for row in rows:
        cells = (f'<td class="{name}">{html.escape(clean(text))}</td>' for text, name in row)
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f"<table>\n<tr>{head}</tr>\n{body}</table>"


def view_as_html(shown: ShownView) -> str:
    """Return a result as a page under its command line, drawn twice: for wide and for narrow windows."""
    if body := page_body(shown.result):
        return html_page(shown.line, shown.about, body, TABLE_CSS)
    console = sheet()
    console.print(render(shown.result))
    console.print("\0", end="")
    console.print(render(shown.result), width=PHONE_COLUMNS)
    style, wide, narrow = console.export_html(code_format="{stylesheet}\0{code}").split("\0")
    drawn = f'<pre class="drawn wide">\n{wide}</pre>\n<pre class="drawn narrow">\n{narrow}</pre>'
    return html_page(shown.line, shown.about, drawn, style)


def view_as_text(shown: ShownView) -> str:
    """Return a result as plain text under its command line."""
    console = sheet(in_colours=False)
    console.print(Text(clean_line(shown.line)), "", render(shown.result), sep="\n")
    return "\n".join(row.rstrip() for row in console.export_text().splitlines()) + "\n"


def view_as_markdown(shown: ShownView) -> str:
    """Return a result as a Markdown code block under its command line."""
    _, _, drawn = view_as_text(shown).partition("\n\n")
    return f"# {clean_line(shown.line)}\n\n{block(drawn)}\n"


def view_as_json(shown: ShownView) -> str:
    """Return a result as --json writes it."""
    return _dumped(as_record(shown.command, shown.result))


VIEWS = {".md": view_as_markdown, ".json": view_as_json, ".txt": view_as_text, ".html": view_as_html}
FORMATS = {".md": as_markdown, ".json": as_json, ".txt": as_text, ".html": as_html}


def fenced(text: str) -> str:
    """Close a code block that the text leaves open."""
    fence = ""
    for mark, rest in re.findall(r"^ {0,3}(`{3,}|~{3,})(.*)$", text, re.M):
        if not fence:
            fence = mark if mark[0] == "~" or "`" not in rest else ""
        elif mark.startswith(fence) and not rest.strip():
            fence = ""
    return text + ("\n" * (not text.endswith("\n")) + fence if fence else "")


def _sections(talk: Transcript) -> list[tuple[str, Parts, Turn | None]]:
    """Return the system message and each turn, with headings: speaker, state, and in a tree its position."""
    tree = any(turn.parent != before.id for before, turn in pairwise(talk.turns))
    numbers = {turn.id: turn.exchange for turn in talk.turns} if tree else {}
    system = [("system", Parts(answer=talk.system), None)] if talk.system else []
    return [*system, *((clean_line(_label(turn) + _place(turn, numbers)), turn.parts, turn) for turn in talk.turns)]


def _label(turn: Turn) -> str:
    model = short_id(turn.record.model.id) if turn.record else ""
    who = "you" if turn.role in ("user", "prompt") else model or turn.role
    return who if turn.state == "complete" else f"{who} · {turn.state}"


def _place(turn: Turn, numbers: Mapping[int, int]) -> str:
    """Return the number of a turn's exchange in a tree, and the exchange it follows if that is not the one above."""
    before = numbers.get(turn.parent or 0, turn.exchange)
    follows = f" after {before}" if turn.role in ASKING else f", another answer to {before}"
    return f" · {turn.exchange}" + (follows if before != turn.exchange else "") if numbers else ""
