"""Every command in windows from 20 to 400 columns: nothing is drawn over the edge, and nothing fails."""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from driving import opened, run
from rich.cells import cell_len
from rich.console import Console
from terminal import LOADED, Terminal

from repl.commands import registry
from repl.core.errors import ReplError
from repl.session.session import Session
from repl.terminal.screen import THEME, render

WIDTHS = (20, 40, 60, 80, 140, 400)
APART = {"say", "quit", "unload", "reload", "clear", "copy"}
"""Commands that are no view, end the session, or act on the world outside."""
CALM = sorted(
    name
    for name, found in registry.COMMANDS.items()
    if name not in APART and not any(word.needed for word in found.words)
)
"""Commands that can be typed alone."""


@pytest.fixture(scope="module")
def session(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session in which something was said."""
    with opened(llama_folder, max_new_tokens=6) as session:
        run(session, "/mode chat", "Once upon a time", "there were 三只小猪 who said nothing at all")
        yield session


@pytest.mark.slow
@pytest.mark.parametrize("name", CALM)
def test_every_command_fits_every_window(name: str, session: Session) -> None:
    """No row of a result is wider than the window; a refusal is one of ours."""
    result = None
    with suppress(ReplError):  # a refusal is a sentence
        result = run(session, f"/{name}")
    for width in WIDTHS if result is not None else ():
        paper = io.StringIO()
        Console(file=paper, width=width, height=24, theme=THEME, highlight=False).print(render(result))
        rows = paper.getvalue().splitlines()
        assert rows
        assert max(map(cell_len, rows)) <= width, f"/{name} at {width} columns:\n{paper.getvalue()}"


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(8, 20), (50, 400)])
def test_a_talk_in_the_narrowest_and_the_widest_window(
    rows: int, columns: int, scripted_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The prompt, a reply and a table work, and the toolbar keeps to its row."""
    with Terminal(
        str(scripted_folder(b"Hello there, how are you today?")), home=tmp_path, size=(rows, columns)
    ) as terminal:
        terminal.see(LOADED)
        assert "today?" in " ".join(terminal.ask("hi"))
        terminal.ask("/dtype")
        assert all(len(row) <= columns for row in terminal.rows())
