"""Settings: a command for each field, the table of all, and the shorthands for decoding."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands import registry
from repl.commands.registry import command
from repl.core import decoding, fields, settings
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.values import Assignment, RestOfLine
from repl.core.values import Text as Words
from repl.generation.prompt.chat_template import argument, template_values
from repl.session.change_settings import Setting, apply, change, describe, put_field, read_field, settings_of
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.screen import render

UNCHANGED = ("default", "model")
"""Where values come from that nobody has set."""


@dataclass(frozen=True, slots=True)
class Table_:
    """Every setting by part."""

    load: list[Setting]
    decode: list[Setting]
    view: list[Setting]
    extra: list[Setting]


@render.register
def _(result: Setting) -> RenderableType:
    lead = Text.assemble((result.name, "accent"), f" {_shown(result) or 'not set'}", (f" · {result.origin}", "quiet"))
    return Text.assemble(lead, "\n", (f"{clean_line(result.help)} · takes {result.takes}", "quiet"))


@command("settings", name="settings")
def all_settings(session: Session, words: Annotated[str, RestOfLine()] = "") -> Table_:
    """Show every setting with its value and origin, changed ones first.

    /settings beams shows those with that word in their name or help.
    """
    rows = {part: [describe(session, name) for name in settings_of(part)] for part in settings.SPECS}
    parts = (rows["load"], rows["decode"], rows["view"], _others(session))
    wanted = words.lower()
    return Table_(*([row for row in part if wanted in f"{row.name} {row.help}".lower()] for part in parts))


def _others(session: Session) -> list[Setting]:
    """List what has a value in effect and no command of its own."""
    decode = {name: found for name, found in session.decoding().items() if name not in settings.places()}
    more = {name: decoding.Value(value, "you") for name, value in session.settings.extra if name not in decode}
    return [_other(name, found) for name, found in {**decode, **more}.items()]


def _other(name: str, found: decoding.Value) -> Setting:
    if name.startswith(decoding.PREFIX):
        return Setting(name, found.value, found.origin, "variable of the chat template", "JSON or text")
    if name.startswith(decoding.SERVER):
        return Setting(name, found.value, found.origin, "field of the server", "JSON or text")
    return Setting(name, found.value, found.origin, "generation config", fields.find_field(name).kind.phrase)


@render.register
def _(result: Table_) -> RenderableType:
    parts = {"loading": result.load, "decoding": result.decode, "view": result.view, "other": result.extra}
    groups = {"changed": [row for part in parts.values() for row in part if row.origin not in UNCHANGED]}
    groups |= {title: [row for row in part if row.origin in UNCHANGED] for title, part in parts.items()}
    table = Table.grid(padding=(0, 2))
    for style in ("accent", "", "quiet", "quiet"):
        table.add_column(style=style, no_wrap=style == "accent", overflow="fold")
    for title, rows in groups.items():
        if rows:
            table.add_row(Text(title, "bold"))
        for row in rows:
            origin = "" if row.origin == "default" else row.origin
            table.add_row(f"  {row.name}", _shown(row) or "–", origin, row.help)
    return table if table.rows else Text("no setting has that in its name or help", "quiet")


def _shown(row: Setting) -> str:
    if row.name in settings.places():
        return clean_line(settings.show_setting(row.name, row.value))
    return "" if row.value is None and row.origin == "default" else clean_line(fields.show_field(row.value))


@command("settings", needs_model=True)
def set_(session: Session, name: str, value: Annotated[str, RestOfLine()] = "") -> Any:
    """Set or show anything by name: a setting, a generation field, template.NAME.

    /set template.chat_template NAME chooses one of several chat templates. /set FIELD none switches a field of the
    generation config off that the model's own config sets, /set FIELD default leaves it to the model again.
    """
    name = {theirs: ours for ours, theirs in decoding.OURS.items()}.get(name, name)
    if decoding.is_setting(name):
        return change(session, settings.find_setting(name), value)

    def check(emit: JobContext) -> Any:
        word = value or "default"
        if session.remote is not None and (found := session.remote.parameter(name, word)):
            return found
        if name.startswith(decoding.PREFIX):
            return argument(session.store.current().tokenizer, name, word, template_values(session.settings.extra))
        return read_field(session, decoding.find_other(name.replace("-", "_"), session.base()), word)

    def settle(job: Any) -> Setting | Message:
        full, found = job.result()
        if not value:
            rows = {row.name: row for row in _others(session)}
            return rows.get(full) or _other(full, decoding.Value(None, "default"))
        session.change(put_field(session.settings, full, found, value != "default"))
        shown = "reset to the model's default" if value == "default" else fields.show_field(found)
        unset = value in ("default", fields.NONE)
        idle = None if unset else decoding.find_idle(full, session.settings, session.base(), session.uses_template())
        offered = ((idle.line, idle.effect),) if idle and idle.line else ()
        return Message(idle.said if idle else f"{full} {shown} · from the next reply on", offered)

    return session.run_on_model(check, settle)


@command("settings")
def reset(session: Session, name: Annotated[str, Words(suggest=lambda: list(settings.places()))] = "") -> Any:
    """Put a setting back to its default, or every decoding setting."""
    if not decoding.is_setting(name) and name.replace("-", "_") in dict(session.settings.extra):
        return set_(session, name, "default")
    if name:
        return change(session, settings.find_setting(name), "default")
    session.change(replace(session.settings, extra=()))
    apply(session, [(one, "default") for one in settings_of("decode")])
    return Message(f"decoding reset to the model's defaults: {decoding.phrase(session.decoding())}")


@command("settings")
def greedy(session: Session) -> Message:
    """Take the likeliest token at every step."""
    return apply(session, [("do_sample", "off"), ("num_beams", "1"), ("num_return_sequences", "default")])


@command("settings")
def sample(session: Session, *changes: Annotated[tuple[str, str], Assignment()]) -> Message:
    """Draw tokens at random: /sample temperature=0.8 top_p=0.95."""
    return apply(session, [("do_sample", "on"), ("num_beams", "1"), ("num_return_sequences", "default"), *changes])


def _register(name: str) -> None:
    """Make `/name [value]` from the field."""

    def run(
        session: Session, value: Annotated[str, RestOfLine(suggest=settings.setting_kind(name).complete)] = ""
    ) -> Any:
        return change(session, name, value)

    registry.add(name, run, "setting", settings.help_of(name))


for _name in settings.places():
    # commands of their own: id@revision and id:file.gguf; the totals beside it; the last reply once more; loads it
    if _name not in ("model", "stats", "probs", "assistant"):
        _register(_name)
