"""What is drawn of a thing with several drawings."""

import pytest
from rich.console import Console
from rich.text import Text

from repl.terminal.responsive import First


@pytest.mark.parametrize(("width", "shown"), [(90, "a line of text"), (14, "a line of text"), (13, "a line"), (3, "a")])
def test_the_first_that_fits_is_drawn(width: int, shown: str) -> None:
    """And the last where none does."""
    console = Console(width=width)
    with console.capture() as text:
        console.print(First(Text("a line of text"), Text("a line"), Text("a")))
    assert text.get() == f"{shown}\n"
