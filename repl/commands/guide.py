"""The guide: Markdown pages that lie in the package.

In: the name of a page. Out: its text, or the list of pages with a line for each. It needs no model and no network.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.values import AnyText, closest_match
from repl.session.session import Session
from repl.terminal.markdown import WholeMarkdown
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


def page_text(name: str) -> str:
    """Return the Markdown of a page."""
    return files("repl.commands").joinpath("pages", f"{name}.md").read_text("utf-8")


def page_title(name: str) -> str:
    """Return the heading of a page."""
    return page_text(name).partition("\n")[0].removeprefix("# ")


def page_titles() -> dict[str, str]:
    """Return the pages with what each is about."""
    return {name: page_title(name) for name in PAGES}


@command("other", "/guide", "/guide decoding", see="help")
def guide(session: Session, name: Annotated[str, AnyText("a page", suggest=page_titles)] = "") -> Guide | GuidePage:
    """Show the pages of the guide, or one of them: /guide loading."""
    return guide_page(name)


def guide_page(name: str) -> Guide | GuidePage:
    """Return the page that a word names or begins, or the list of all; raises `UsageError`."""
    if not name:
        return Guide(page_titles())
    wanted = name.strip().lower()
    found = [page for page in PAGES if page.startswith(wanted)]
    if wanted not in PAGES and len(found) != 1:
        close = closest_match(wanted, [*PAGES])
        raise UsageError(f"no page {name!r} in the guide" + (f", did you mean {close}?" if close else ""), "/guide")
    page = wanted if wanted in PAGES else found[0]
    return GuidePage(page, page_text(page))


@render.register
def _(result: GuidePage) -> RenderableType:
    return WholeMarkdown(result.text)


@render.register
def _(result: Guide) -> RenderableType:
    subjects = {name: about.partition(": ")[2] for name, about in result.pages.items()}
    table = facts(((name, subject[:1].upper() + subject[1:]) for name, subject in subjects.items()), "accent")
    return Group(table, Text("/guide NAME shows a page", "quiet"))
