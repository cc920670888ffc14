"""What is drawn of a thing with several drawings."""

import io

import pytest
from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from repl.terminal.tables import First, LineConsole, fact_line, facts, grid


@pytest.mark.parametrize(("width", "shown"), [(90, "a line of text"), (14, "a line of text"), (13, "a line"), (3, "a")])
def test_the_first_that_fits_is_drawn(width: int, shown: str) -> None:
    """And the last where none does; so it is for a screen reader."""
    for console in (Console(width=width), LineConsole(width=width, soft_wrap=True)):
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


@pytest.mark.parametrize(("width", "drawn"), [(9, "a b c\nd e f g\nh\n"), (11, "a b c\nd e f g · h\n")])
def test_a_line_of_facts_is_broken_between_them(width: int, drawn: str) -> None:
    console = Console(width=width)
    with console.capture() as text:
        console.print(fact_line("a b c", "d e f g", "h"))
    assert text.get() == drawn


def test_a_tree_is_lines_for_a_screen_reader() -> None:
    """How deep a branch lies is a number, who speaks a word."""
    tree = Tree("", hide_root=True)
    tree.add(Text("1 ❯ hello")).add(grid("lr", [["world", "0.5"]]))
    console = LineConsole(soft_wrap=True)
    with console.capture() as text:
        console.print(tree)
    assert text.get() == "depth 1: 1 You: hello\ndepth 2: world: 0.5\n"


def test_a_table_in_a_pipe_is_the_first_that_is_not_cut() -> None:
    """Cells would lose their ends; other drawings are whole in a pipe, however long."""
    tables = [grid("lr", [("a word " * 5, "b" * size)]) for size in (60, 30)]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(First(*tables), soft_wrap=True)
    console.print(First(Text("long " * 30), Text("short")), soft_wrap=True)
    said = console.export_text()
    assert "b" * 30 in said
    assert "…" not in said
    assert "short" not in said
