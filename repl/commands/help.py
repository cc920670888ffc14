"""Help: the names by family, a family with what each does, or one command or setting in full."""

from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from repl.commands import registry
from repl.commands.registry import command
from repl.core import settings
from repl.core.sanitize import clean_line
from repl.core.values import RestOfLine
from repl.session.change_settings import describe
from repl.session.session import Session
from repl.terminal.screen import render

FAMILIES = ("chat", "history", "models", "settings", "inspect", "compare", "reproduce", "speed", "other")
FAMILY_EXAMPLES = {
    "chat": ("/system Be brief.", "/retry temperature=1.2", "/continue", "/edit"),
    "history": ("/undo", "/tree", "/sessions", "/resume", "/export talk.html"),
    "models": ("/model gpt2", "/models", "/plan gpt2", "/memory"),
    "settings": ("/temperature 0.7", "/max 256", "/beams 4", "/greedy", "/settings"),
    "inspect": ("/next", "/inspect", "/probs on", "/why 3", "/lens", "/tokens"),
    "compare": ("/compare greedy temperature=0.9", "/diverge dtype=float16"),
    "reproduce": ("/recipe", "/reproduce"),
    "speed": ("/fast", "/bench"),
    "other": ("/doctor", "/stats", "/quit"),
}
"""Lines to type as they stand: what is used most of each family."""


@dataclass(frozen=True, slots=True)
class HelpEntry:
    """One command: how to type it and what it does."""

    usage: str
    help: str


@dataclass(frozen=True, slots=True)
class Help:
    """The names of the commands by family, and of the settings by part; `full` asks to see all of them."""

    families: dict[str, list[str]]
    settings: dict[str, list[str]]
    full: bool = False


@dataclass(frozen=True, slots=True)
class HelpPage:
    """One command or setting in full."""

    usage: str
    help: str
    more: str
    takes: str
    now: str = ""
    """The value of a setting, and where it comes from."""


@dataclass(frozen=True, slots=True)
class Family:
    """What each command of a family does, or each setting of a part; first the command that has the same name."""

    title: str
    page: HelpPage | None
    entries: list[HelpEntry]


@command("other", name="help", aliases=("?", "h"))
def help_(session: Session, name: Annotated[str, RestOfLine()] = "") -> Help | Family | HelpPage:
    """List commands: /help all, /help inspect for a family, /help dtype for one.

    A family is a word at the left of /help; where a command has the same name, both are shown.
    """
    title = " ".join(name.lower().split())
    known = families() | settings_by_part()
    if title in ("", "all"):
        return Help(families(), settings_by_part(), title == "all")
    return family(title, known[title]) if title in known else help_page(name, session)


def families() -> dict[str, list[str]]:
    """Return the names of the commands by family."""
    names = sorted(registry.COMMANDS.keys() - {"say"})
    return {title: [name for name in names if registry.COMMANDS[name].family == title] for title in FAMILIES}


def settings_by_part() -> dict[str, list[str]]:
    """Return the names of the settings by part, without those that a command of a family shows."""
    parts: dict[str, list[str]] = {part: [] for part in settings.SPECS}
    for name, part in settings.places().items():
        if registry.COMMANDS[name].family not in FAMILIES:
            parts[part].append(name)
    return parts


def family(title: str, names: list[str]) -> Family:
    """Return what is known of a family, and of the command that has its name."""
    if title in settings.SPECS:
        return Family(f"{title} settings", None, [HelpEntry(f"/{name}", settings.help_of(name)) for name in names])
    entries = [HelpEntry(registry.COMMANDS[name].usage, registry.COMMANDS[name].help) for name in names]
    return Family(title, help_page(title) if title in registry.COMMANDS else None, entries)


def help_page(name: str, session: Session | None = None) -> HelpPage:
    """Return what is known of a command or setting; raises `UsageError`."""
    wanted = name.strip().lstrip("/")
    if wanted in registry.USER_ALIASES:
        return HelpPage(f"/{wanted}", f"your alias for {registry.USER_ALIASES[wanted]}", "", "")
    found = registry.find_command(wanted)
    if session is None or found.name not in settings.places():
        return HelpPage(found.usage, found.help, found.more, "")
    row = describe(session, found.name)
    value = settings.show_setting(row.name, row.value) or "not set"
    return HelpPage(found.usage, found.help, found.more, row.takes, f"{value} ({row.origin})")


def drawn(result: HelpPage) -> RenderableType:
    """Draw one command or setting in full."""
    lines = [Text(result.usage, "accent"), Text(clean_line(result.help))]
    if result.takes:
        lines.append(Text(f"now {clean_line(result.now)}; takes {result.takes}; default puts it back", "quiet"))
    lines += [Text(" ".join(result.more.split()), "quiet")] if result.more else []
    return Group(*lines)


@render.register
def _(result: HelpPage) -> RenderableType:
    return drawn(result)


@render.register
def _(result: Family) -> RenderableType:
    blocks: list[RenderableType] = [drawn(result.page), Text()] if result.page else []
    blocks += [Text(result.title, "quiet")]
    for entry in result.entries:
        blocks += [Text(entry.usage, "accent"), Padding(Text(clean_line(entry.help)), (0, 0, 0, 2))]
    last = "/NAME VALUE changes one, /NAME default puts it back" if result.title.endswith(" settings") else ""
    return Group(*blocks, Text(last or "/help NAME tells more of one", "quiet"))


@render.register
def _(result: Help) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="quiet", no_wrap=True)
    table.add_column(style="accent")
    for title, names in result.families.items():
        shown = ["/" + name for name in names] if result.full else FAMILY_EXAMPLES[title]
        table.add_row(title, Text("  ".join(shown)))
    if result.full:
        table.add_row("")
        for part, names in result.settings.items():
            table.add_row(part, Text("  ".join("/" + name for name in names)))
    more = "" if result.full else "/help all lists more, "
    return Group(
        Text("A line that begins with / is a command; every other line goes to the model."),
        Text(),
        table,
        Text(),
        Text(f"{more}/help inspect explains a family, /help dtype one", "quiet"),
        Text("/guide explains by topic, Tab completes, F2 shows settings, Ctrl-D leaves", "quiet"),
    )
