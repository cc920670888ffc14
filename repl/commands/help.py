"""Help: the names by family, a family with its helps, or one command or setting in full."""

from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from repl.commands import registry
from repl.commands.registry import command
from repl.core import settings
from repl.core.sanitize import clean_line
from repl.core.values import RestText
from repl.session.change_settings import describe_setting
from repl.session.session import Session
from repl.terminal.screen import render
from repl.terminal.tables import facts

FAMILIES = ("chat", "history", "models", "settings", "inspect", "compare", "reproduce", "speed", "other")
FAMILY_EXAMPLES = {
    "chat": ("/system Be brief.", "/retry", "/continue", "/edit"),
    "history": ("/undo", "/tree", "/resume", "/export talk.html"),
    "models": ("/model gpt2", "/models", "/plan gpt2", "/memory"),
    "settings": ("/temp 0.7", "/beams 4", "/greedy", "/format json", "/settings"),
    "inspect": ("/next", "/inspect", "/probs on", "/why 3", "/lens", "/choose yes | no"),
    "compare": ("/compare greedy sample", "/diverge dtype=float16"),
    "reproduce": ("/recipe", "/reproduce"),
    "speed": ("/fast", "/bench"),
    "other": ("/doctor", "/stats", "/quit"),
}
"""Lines to type: the most used commands of each family."""


@dataclass(frozen=True, slots=True)
class Help:
    """The names of the commands by family and of the settings by group; `full` shows all of them."""

    families: dict[str, list[str]]
    settings: dict[str, list[str]]
    full: bool
    keys: str


@dataclass(frozen=True, slots=True)
class HelpPage:
    """The help of one command or setting; `now` and `takes` describe the value of a setting."""

    usage: str
    help: str
    more: str = ""
    now: str = ""
    takes: str = ""
    examples: tuple[str, ...] = ()
    see: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The help of each command of a family or setting of a group; `page` is that of a command with the same name."""

    title: str
    page: HelpPage | None
    entries: list[HelpPage]


@command("other", "/help all", "/help temperature", see="guide settings", aliases=("?", "h"))
def help_(session: Session, name: RestText = "") -> Help | Family | HelpPage:
    """List commands; /help all lists every one, /help inspect a family.

    A family is a word at the left of /help. If a command has the same name, both are shown.
    """
    title = " ".join(name.lower().split())
    known = families() | groups()
    if title in ("", "all"):
        keys = "" if session.settings.view.accessible else "F2 shows settings, "
        return Help(families(), groups(), title == "all", f"Tab completes, {keys}Ctrl-D leaves")
    return family(title, known[title]) if title in known else help_page(name, session)


def families() -> dict[str, list[str]]:
    """Return the names of the commands by family."""
    names = sorted(registry.COMMANDS.keys() - {"say"})
    return {title: [name for name in names if registry.COMMANDS[name].family == title] for title in FAMILIES}


def groups() -> dict[str, list[str]]:
    """Return the names of the settings by group, except those whose command belongs to a family."""
    return {
        title: own
        for title, names in settings.GROUPS.items()
        if (own := [name for name in names if registry.COMMANDS[name].family not in FAMILIES])
    }


def family(title: str, names: list[str]) -> Family:
    """Return the help of a family, and of the command with the same name."""
    entries = [HelpPage(registry.COMMANDS[name].usage, registry.COMMANDS[name].help) for name in names]
    return Family(title, help_page(title) if title in registry.COMMANDS else None, entries)


def help_page(name: str, session: Session | None = None) -> HelpPage:
    """Return the help of a command or setting; raises `UsageError`."""
    wanted = name.strip().lstrip("/")
    if wanted in registry.USER_ALIASES:
        return HelpPage(f"/{wanted}", f"your alias for {registry.USER_ALIASES[wanted]}")
    found = registry.find_command(wanted)
    page = HelpPage(found.usage, found.help, found.more, examples=found.examples, see=found.see)
    if session is None or found.name not in settings.places():
        return page
    row = describe_setting(session, found.name)
    return replace(page, now=f"{row.text} ({row.source})", takes=f"{row.takes}; default resets it")


@render.register
def _page(result: HelpPage) -> RenderableType:
    rows = {
        "now": result.now,
        "takes": result.takes,
        "examples": "\n".join(result.examples),
        "see also": ", ".join(f"/{name}" for name in result.see),
    }
    more = [Text(" ".join(clean_line(result.more).split()))] if result.more else []
    lines = [Text(result.usage, "accent"), Text(clean_line(result.help)), *more]
    return Group(*lines, facts((name, value) for name, value in rows.items() if value))


@render.register
def _(result: Family) -> RenderableType:
    blocks: list[RenderableType] = [_page(result.page), Text()] if result.page else []
    blocks += [Text(result.title, "quiet")]
    for entry in result.entries:
        blocks += [Text(entry.usage, "accent"), Padding(Text(clean_line(entry.help)), (0, 0, 0, 2))]
    return Group(*blocks, Text("/help NAME explains one in full", "quiet"))


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
    return Group(
        Text("Lines starting with / are commands; others go to the model."),
        Text(),
        table,
        Text(),
        Text("/help all lists all, /help chat a family, /help dtype one", "quiet"),
        Text(f"/guide explains by topic, {result.keys}", "quiet"),
    )
