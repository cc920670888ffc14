"""Make the pictures of the README: the real program in a pseudo-terminal, its screen drawn as SVG.

Run by hand with the built-in model in the cache: `python -m tests.make_pictures [NAME ...]`. Each picture carries the
lines and keys that were typed in its metadata, and `tests/test_guide.py` tells when they are no longer these.
"""

import io
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

from repl.core import paths
from tests.support.terminal import LOADED, Terminal

pyte.graphics.TEXT[2] = "+blink"  # the emulator knows no dim text, and nothing here blinks
FOLDER = Path(__file__).parent.parent / ".github" / "pictures"
NOTED = re.compile(r"<metadata>(.*?)</metadata>")


@dataclass(frozen=True, slots=True)
class Picture:
    """What is typed for a picture: lines before it, the line that it shows, and keys for a full screen."""

    before: tuple[str, ...]
    line: str
    live: str = ""  # what must stand on the screen while the line still runs
    leave: str = "\x03"  # the key that ends it
    rows: int = 30

    @property
    def typed(self) -> list[str]:
        """Return the lines in order."""
        return [*self.before, self.line]


WORDS = ("builtin", "--no-save")
STORY = "Tell me about the sea in two sentences."
QUIET = "/stats off"
PICTURES = {
    "beams": Picture((QUIET, "/beams 4"), STORY, live=r"-\d+\.\d+ .{48}", rows=24),
    "inspect": Picture((QUIET, STORY), "/inspect", live=r"logprob|entropy|rank", leave="q", rows=24),
    "next": Picture((QUIET,), "/next 8 The capital of France is"),
    "why": Picture((QUIET, "/sample temperature=0.7 top_p=0.9 seed=7", STORY), "/why 3"),
    "compare": Picture(
        (QUIET, "/max 40"), '/compare greedy "temperature=0.7 seed=1" beams=4 -- What is the sea?', rows=34
    ),
    "diverge": Picture((QUIET, "/max 40", "Tell me a story about a lighthouse keeper."), "/diverge quantize=int8"),
    "sweep": Picture((QUIET, "/max 24", STORY), "/sweep temperature=0,0.7,1.2 top_p=0.9,1"),
    "lens": Picture((QUIET,), "/lens The capital of France is", rows=44),
}


def make(name: str, picture: Picture) -> str:
    """Type the lines of a picture and return the screen as SVG."""
    with (
        tempfile.TemporaryDirectory() as home,
        Terminal(*WORDS, home=unpacked(home), size=(picture.rows, 100)) as terminal,
    ):
        terminal.see(LOADED)
        for line in picture.before:
            terminal.ask(line)
        terminal.wait(terminal.ready)
        terminal.keys("\x0c")  # what stood before is not in the picture
        terminal.settle()
        if picture.live:
            terminal.line(picture.line)
            terminal.wait(lambda: re.search(picture.live, "\n".join(terminal.rows())) is not None)
            terminal.read(1.0)
        else:
            terminal.ask(picture.line)
            terminal.settle()
        drawn = svg(name, terminal.screen)
        if picture.live:
            terminal.keys(picture.leave)
            terminal.wait(terminal.ready)
    return drawn.replace("<style>", f"<metadata>{escaped(picture.typed)}</metadata>\n    <style>", 1)


def unpacked(home: str) -> Path:
    """Return a home of its own that shares the unpacked built-in model of this user."""
    cache = Path(home, "cache")
    cache.mkdir()
    (cache / "builtin").symlink_to(paths.cache_folder() / "builtin")
    return Path(home)


def escaped(lines: list[str]) -> str:
    """Return lines as JSON that may stand in XML."""
    return json.dumps(lines).replace("&", "&amp;").replace("<", "&lt;")


def svg(name: str, screen: Any) -> str:
    """Draw the cells of an emulated screen."""
    rows = [cells(screen.buffer[at], screen.columns) for at in range(screen.lines)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    console = Console(record=True, width=screen.columns, file=io.StringIO(), force_terminal=True)
    for row in rows:
        console.print(row, no_wrap=True, overflow="crop", highlight=False)
    return console.export_svg(title="hub-repl", theme=MONOKAI, unique_id=f"hub-repl-{name}")


def cells(row: Any, width: int) -> Text:
    """Return a row of cells as text with styles."""
    text = Text()
    for at in range(width):
        text.append(row[at].data, style_of(row[at]))
    text.rstrip()
    return text


def style_of(cell: Any) -> Style:
    """Return the style of a cell."""
    return Style(
        color=colour(cell.fg),
        bgcolor=colour(cell.bg),
        bold=cell.bold,
        dim=cell.blink,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
        strike=cell.strikethrough,
    )


def colour(name: str) -> Color | None:
    """Return a colour of the emulator, which names sixteen and writes the others in hexadecimal."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return Color.parse(f"#{name}")
    plain = name.replace("bright", "bright_").replace("brown", "yellow")
    return Color.parse(plain)


def main() -> None:
    """Make the pictures that are named, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        (FOLDER / f"{name}.svg").write_text(make(name, PICTURES[name]), "utf-8")


if __name__ == "__main__":
    main()
