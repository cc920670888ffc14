"""What is drawn of a thing with several drawings."""

import pytest
from rich.console import Console, Group
from rich.text import Text

from repl.terminal.responsive import First
from repl.terminal.tables import LineConsole, facts, grid


@pytest.mark.parametrize(("width", "shown"), [(90, "a line of text"), (14, "a line of text"), (13, "a line"), (3, "a")])
def test_the_first_that_fits_is_drawn(width: int, shown: str) -> None:
    """And the last where none does."""
    console = Console(width=width)
    with console.capture() as text:
        console.print(First(Text("a line of text"), Text("a line"), Text("a")))
    assert text.get() == f"{shown}\n"


def test_a_table_is_lines_for_a_screen_reader() -> None:
    """Values stand behind the names of their columns, in a table without them behind the first cell."""
    console = LineConsole(soft_wrap=True)
    table = grid("lrr", [["a", "1", "▇▇"], [Text("b"), "", "2"]], ["", "id", "sum"])
    with console.capture() as text:
        console.print(Group(table, facts([("x", "y\nz")])))
    assert text.get() == "a, id: 1\nb, sum: 2\nx: y z\n"
