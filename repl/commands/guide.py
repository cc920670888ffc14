"""The guide: Markdown pages that lie in the package.

In: the name of a page. Out: its text, or the list of pages with a line for each. It needs no model and no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.values import nearest
from repl.session.session import Session
from repl.terminal.markdown import Markdown
from repl.terminal.screen import render
from repl.terminal.tables import facts

PAGES = (
    *("prompt", "loading", "decoding", "inside", "compare", "reproduce", "speed"),
    *("models", "memory", "trust", "servers", "scripts", "files"),
)
"""The pages in the order to read them."""


@dataclass(frozen=True, slots=True)
class Guide:
    """The names of the pages, each with what it is about."""

    pages: dict[str, str]


@dataclass(frozen=True, slots=True)
class GuidePage:
    """One page: its name and its Markdown."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PageName:
    """The name of a page; read and completed at the prompt."""

    phrase: str = "a page of the guide"

    def read(self, word: str) -> str:
        """Return the name of the page that a word names or begins; raises `UsageError`."""
        wanted = word.strip().lower()
        found = [name for name in PAGES if name == wanted] or [name for name in PAGES if name.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        close = nearest(wanted, [*PAGES])
        raise UsageError(f"no page {word!r} in the guide" + (f", did you mean {close}?" if close else ""), "/guide")

    def show(self, value: str) -> str:
        """Return it unchanged."""
        return value

    def complete(self) -> Mapping[str, str]:
        """Return the names with their titles."""
        return {name: page_title(name) for name in PAGES}


def page_text(name: str) -> str:
    """Return the Markdown of a page."""
    return files("repl.commands").joinpath("pages", f"{name}.md").read_text("utf-8")


def page_title(name: str) -> str:
    """Return the heading of a page."""
    return page_text(name).partition("\n")[0].removeprefix("# ")


@command("other")
def guide(session: Session, name: Annotated[str, PageName()] = "") -> Guide | GuidePage:
    """Show the pages of the guide, or one of them: /guide loading."""
    return guide_page(name)


def guide_page(name: str) -> Guide | GuidePage:
    """Return a page, or the list of all where no name is given."""
    return GuidePage(name, page_text(name)) if name else Guide({page: page_title(page) for page in PAGES})


class Drawn:
    """A page as the renderer of replies draws it, at the width of the screen."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reader = Markdown(console)
        for line in [*reader.feed(self.text), *reader.end()]:
            yield from line
            yield Segment.line()


@render.register
def _(result: GuidePage) -> RenderableType:
    return Drawn(result.text)


@render.register
def _(result: Guide) -> RenderableType:
    subjects = {name: about.partition(": ")[2] for name, about in result.pages.items()}
    table = facts(((name, subject[:1].upper() + subject[1:]) for name, subject in subjects.items()), "accent")
    return Group(table, Text("/guide NAME shows a page", "quiet"))
