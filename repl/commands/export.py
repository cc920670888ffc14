"""Export: the conversation or a view to a file, the last reply to the clipboard."""

import base64
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Group, RenderableType
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from repl.analysis.prompt_grid import PromptGrid
from repl.commands.registry import command
from repl.core import children
from repl.core.atomic_write import write
from repl.core.conversation import Conversation
from repl.core.errors import MissingExtra, ReplError, UsageError
from repl.core.format import counted
from repl.core.sanitize import clean, clean_line
from repl.core.values import AnyText, Choice
from repl.session.results import NotAView
from repl.session.session import Session, ShownView
from repl.terminal.export import FORMATS, VIEWS, Transcript, as_html
from repl.terminal.screen import render

MAX_OSC52_BYTES = 56_244  # of a text in one OSC 52: terminals accept 74,994 characters of base64
TOOL_WAIT_S = 3.0  # seconds for a clipboard tool
TOOLS = (
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
    ("pbcopy",),
    ("clip.exe",),
)


@dataclass(frozen=True, slots=True)
class Exported(NotAView):
    """A file that was written: a number of turns, or the view that `line` had shown."""

    file: str
    turns: int
    bytes: int
    line: str = ""


@command("history", "/export talk.md", "/export next.html --view", see="copy recipe sessions")
def export(
    session: Session,
    file: Annotated[str, AnyText("a file")],
    *,
    view: bool = False,
    all: bool = False,
    force: bool = False,
) -> Exported:
    """Write the conversation to a file: .md, .txt, .html or .json.

    It writes the current branch, with --all every branch; .json holds every record. --view writes the last result
    of a command such as /next or /inspect instead, in .html with its colours, in .json as --json does; without a
    conversation, as after /compare --prompts, this is the default. In .html, pointing at a token shows its
    probability and the alternatives. --force replaces an existing file. In .md, .txt and .html, control characters
    are made visible.
    """
    if (ending := Path(file).suffix.lower()) not in FORMATS:
        hint = "/export view.html --view" if view else "/export chat.md"
        raise UsageError(f"{file!r} does not end in one of {', '.join(FORMATS)}", hint)
    again = f"/export {file} --force" + " --view" * view
    shown, talk, archive = session.last_view, session.conversation, session.archive
    branch = talk.path() or talk.path(session.last.id if session.last else None)
    turns = list(talk.turns.values()) if all else branch
    if shown is not None and (view or not turns or (ending == ".html" and _is_new_grid(shown, talk))):
        content = VIEWS[ending](shown).encode("utf-8", "replace")
        return Exported(str(write(file, content, force, again)), 0, len(content), shown.line)
    if view:
        raise UsageError("there is no view to export yet", "/next Once upon a time")
    if not turns:
        raise UsageError("there is nothing to export: the conversation is empty")
    told = Transcript(archive.id, archive.title, talk.system, talk.head, turns)
    written = as_html(told, by=session.settings.view.probs) if ending == ".html" else FORMATS[ending](told)
    content = written.encode()
    return Exported(str(write(file, content, force, again)), len(turns), len(content))


def _is_new_grid(shown: ShownView, talk: Conversation) -> bool:
    """Tell whether the last thing that was made are the answers to a file of prompts."""
    return isinstance(shown.result, PromptGrid) and shown.turns == len(talk.turns)


@render.register
def _(result: Exported) -> Text:
    what = clean_line(result.line) or counted(result.turns, "message")
    return Text.assemble((clean_line(result.file), "accent"), (f" · {what} · {result.bytes:,} bytes", "quiet"))


@dataclass(frozen=True, slots=True)
class Copied(NotAView):
    """The reply that was copied; `through` is the clipboard tool, or osc52 for the terminal."""

    text: str
    through: str


@command("history", "/copy", "/copy osc52", see="export")
def copy(session: Session, how: Annotated[str, Choice(("auto", "osc52"))] = "auto") -> Copied:
    """Copy the last reply to the clipboard.

    It uses a clipboard tool. /copy osc52 sends the text to the terminal as an escape sequence (OSC 52), which also
    works over ssh if the terminal allows it.
    """
    text = clean(session.last.parts.answer) if session.last else ""
    if not text:
        raise UsageError("there is no reply to copy yet")
    if how == "osc52":
        if len(text.encode("utf-8", "replace")) > MAX_OSC52_BYTES:
            raise UsageError("the reply is too long for terminals", "/export reply.txt")
        return Copied(text, how)
    return Copied(text, hand_over(text))


def hand_over(text: str) -> str:
    """Copy a text with the first clipboard tool that works, and return its name; raises `ReplError`."""
    found = [(tool, path) for tool in TOOLS if (path := shutil.which(tool[0]))]
    if not found:
        names = ", ".join(tool[0] for tool in TOOLS)
        raise MissingExtra(f"no clipboard tool is installed ({names})", "/copy osc52")
    for tool, path in found:
        content = text.encode("utf-16" if tool[0] == "clip.exe" else "utf-8", "replace")
        with suppress(OSError, subprocess.SubprocessError):
            # some tools stay to serve the clipboard: they must not hold our pipes, nor receive our Ctrl-C
            subprocess.run(
                [path, *tool[1:]],
                input=content,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TOOL_WAIT_S,
                check=True,
                start_new_session=True,
                env=children.environment(),
            )
            return tool[0]
    raise ReplError(f"{', '.join(tool[0] for tool, _ in found)} could not copy the text", "/copy osc52")


@render.register
def _(result: Copied) -> RenderableType:
    size = f"{len(result.text):,} characters"
    if result.through != "osc52":
        return Text(f"{size} in the clipboard · {result.through}", "quiet")
    coded = base64.b64encode(result.text.encode("utf-8", "replace")).decode()
    sequence = Segment(f"\x1b]52;c;{coded}\x07", None, [(ControlType.BELL,)])  # written to terminals only
    return Group(Segments([sequence]), Text(f"{size} sent to the terminal for its clipboard", "quiet"))
