"""Help: the commands by family, or one command or setting in full."""

from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl import registry, settings
from repl.clean import clean_line
from repl.kinds import Rest
from repl.registry import command
from repl.screen import view
from repl.session import Session

FAMILIES = ("talk", "history", "models", "settings", "look inside", "compare", "prove", "rest")


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: how to type it and what it does."""

    usage: str
    help: str


@dataclass(frozen=True, slots=True)
class Help:
    """Every command by family, and the settings by part."""

    families: dict[str, list[Entry]]
    settings: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Page:
    """One command or setting in full."""

    usage: str
    help: str
    more: str
    takes: str


@command("rest", name="help", aliases=("?", "h"))
def help_(session: Session, name: Annotated[str, Rest()] = "") -> Help | Page:
    """Show the commands, or one of them in full: /help dtype."""
    if name:
        return page(name)
    known = [found for found in registry.COMMANDS.values() if found.name != "say"]
    families = {
        family: [Entry(found.usage, found.help) for found in known if found.family == family] for family in FAMILIES
    }
    parts = {part: [name for name, home in settings.places().items() if home == part] for part in settings.SPECS}
    return Help(families, parts)


def page(name: str) -> Page:
    """Return what is known of a command or setting; raises `UsageError`."""
    wanted = name.strip().lstrip("/")
    if wanted in registry.LINES:
        return Page(f"/{wanted}", f"your alias for {registry.LINES[wanted]}", "", "")
    found = registry.find(wanted)
    takes = settings.kind(found.name).phrase if found.name in settings.places() else ""
    return Page(found.usage, found.help, found.more, takes)


@view.register
def _(result: Page) -> RenderableType:
    lines = [Text(result.usage, "accent"), Text(clean_line(result.help))]
    lines += [Text(f"takes {result.takes}; default puts it back", "quiet")] if result.takes else []
    lines += [Text(result.more, "quiet")] if result.more else []
    return Group(*lines)


@view.register
def _(result: Help) -> RenderableType:
    blocks: list[RenderableType] = []
    for family, entries in result.families.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="accent", no_wrap=True)
        table.add_column()
        for entry in entries:
            table.add_row(Text(entry.usage), Text(entry.help))
        blocks += [Text(family, "quiet"), table, Text()]
    for part, names in result.settings.items():
        blocks += [Text(f"{part} settings, each /name VALUE or /name default", "quiet")]
        blocks += [Text("  ".join("/" + name for name in names), "accent"), Text()]
    return Group(*blocks, Text("/help NAME tells more · //text sends a line that begins with a slash", "quiet"))
