"""Settings: a command for each, the table of all, and the shorthands for decoding."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.variants import GREEDY_WORDS, SAMPLE_WORDS
from repl.commands.registry import command
from repl.core import decoding, fields, settings
from repl.core.jobs import Job, JobContext
from repl.core.sanitize import clean_line
from repl.core.values import AnyText, NameValue, RestOfLine, RestText, show_value
from repl.generation.prompt.chat_template import argument, template_values
from repl.session.change_settings import (
    ORIGINS,
    Setting,
    apply,
    change,
    describe_setting,
    put_field,
    read_model_field,
    settings_of,
)
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.screen import render
from repl.terminal.tables import Responsive

WITH_HELP_COLUMNS = 80  # of a window: the help stands beside each setting
FEW_SETTINGS = 12
NAME_COLUMNS, VALUE_COLUMNS = 22, 12


@dataclass(frozen=True, slots=True)
class SettingsTable:
    """The settings by group, the changed ones first."""

    groups: dict[str, list[Setting]]


@render.register
def _(result: Setting) -> RenderableType:
    lead = Text.assemble((result.name, "accent"), f" {result.text}", (f" ({result.source})", "quiet"))
    return Text.assemble(lead, "\n", (f"{clean_line(result.help)} · takes {result.takes}", "quiet"))


@command("settings", "/settings", "/settings beams", see="set reset config", name="settings")
def all_settings(session: Session, words: RestText = "") -> SettingsTable:
    """Show all settings with values and origins, changed ones first.

    /settings beams shows those with that word in their name, help or group.
    """
    groups = {title: [describe_setting(session, name) for name in names] for title, names in settings.GROUPS.items()}
    groups["other"] = _others(session)
    rows = [row for group in groups.values() for row in group]
    changed = [row for row in rows if row.origin not in ORIGINS]
    said = [(row, f"{title} {row.name} {row.help}") for title, group in groups.items() for row in group]
    fits = [row for row, text in said if words.lower().removesuffix("s") in text.lower()]
    shown = {"changed": [row for row in changed if row in fits]}
    shown |= {title: [row for row in group if row in fits and row not in changed] for title, group in groups.items()}
    return SettingsTable({title: found for title, found in shown.items() if found})


def _others(session: Session) -> list[Setting]:
    """List the values in effect without a command: fields of generation_config, template and server fields."""
    decode = {name: found for name, found in session.decoding().items() if name not in settings.places()}
    more = {name: decoding.Value(value, "you") for name, value in session.settings.extra if name not in decode}
    return [_other(session, name, found) for name, found in {**decode, **more}.items()]


def _other(session: Session, name: str, found: decoding.Value) -> Setting:
    about = {decoding.PREFIX: "chat template variable", decoding.SERVER: "field of the server's API"}
    said = next((text for prefix, text in about.items() if name.startswith(prefix)), "")
    if said:
        return Setting(name, found.value, found.origin, said, "JSON or text")
    own = session.base().model
    default = decoding.Value(own[name], "model") if name in own else decoding.Value(None, "default")
    kind = fields.find_field(name).kind
    return Setting(name, found.value, found.origin, "field of generation_config", kind.phrase, default)


def _tables(result: SettingsTable, width: int, _: bool) -> Iterator[RenderableType]:
    """Draw a table for each group; in a narrow window without the help, unless few settings are shown."""
    if not result.groups:
        yield Text("no setting matches", "quiet")
    full = width >= WITH_HELP_COLUMNS or sum(map(len, result.groups.values())) <= FEW_SETTINGS
    for title, rows in result.groups.items():
        yield Text(title, "bold")
        table = Table.grid(padding=(0, 2))
        table.add_column(style="accent" if title == "changed" else "", min_width=NAME_COLUMNS, no_wrap=True)
        table.add_column(min_width=VALUE_COLUMNS, overflow="fold")
        table.add_column(style="quiet", overflow="fold")
        for row in rows:
            source = "" if row.origin == "default" else f" ({row.source})"
            cells = f"  {row.name}", Text.assemble(row.text, (source, "quiet"))
            table.add_row(*cells, clean_line(row.help) if full else "")
        yield table
    if not full:
        yield Text("/help NAME explains one", "quiet")


render.register(SettingsTable, lambda result: Responsive(partial(_tables, result)))


@command("settings", "/set temperature 0.7", "/set max_time 5", see="settings reset", needs_model=True)
def set_(session: Session, name: str, value: RestText = "") -> object:
    """Set or show a setting, a field of generation_config, or template.NAME.

    /set template.chat_template NAME chooses one of several chat templates. /set FIELD none turns off a field that the
    model's own generation_config sets, /set FIELD default returns to the model's value.
    """
    if "=" in name and not value:
        name, _, value = name.partition("=")
    name = {theirs: ours for ours, theirs in decoding.OURS.items()}.get(name, name)
    if decoding.is_setting(name):
        return change(session, settings.find_setting(name), value)

    def check(emit: JobContext) -> tuple[str, object]:
        word = value or "default"
        if session.remote is not None and (found := session.remote.parameter(name, word)):
            return found
        if name.startswith(decoding.PREFIX):
            return argument(session.store.current().tokenizer, name, word, template_values(session.settings.extra))
        return read_model_field(session, decoding.find_other(name.replace("-", "_"), session.base()), word)

    def settle(job: Job[tuple[str, object]]) -> Setting | Message:
        full, found = job.result()
        if not value:
            rows = {row.name: row for row in _others(session)}
            return rows.get(full) or _other(session, full, decoding.Value(None, "default"))
        session.change(put_field(session.settings, full, found, value != "default"))
        shown = "reset to the model's default" if value == "default" else show_value(found)
        unset = value in ("default", "none")
        idle = None if unset else decoding.find_idle(full, session.settings, session.base(), session.uses_template())
        offered = ((idle.line, idle.effect),) if idle and idle.line else ()
        return Message(idle.said if idle else f"{full} {shown} · from the next reply on", offered)

    return session.run_on_model(check, settle)


@command("settings", "/reset", "/reset temperature", see="settings preset")
def reset(session: Session, name: Annotated[str, AnyText(suggest=lambda: list(settings.places()))] = "") -> object:
    """Reset a setting to its default, or all decoding settings."""
    if not decoding.is_setting(name) and name.replace("-", "_") in dict(session.settings.extra):
        return set_(session, name, "default")
    if name:
        return change(session, settings.find_setting(name), "default")
    session.change(replace(session.settings, extra=()))
    apply(session, [(one, "default") for one in settings_of("decode")])
    return Message(f"decoding reset to the model's defaults: {decoding.phrase(session.decoding())}")


@command("settings", "/greedy", "/compare greedy sample", see="sample beams temperature")
def greedy(session: Session) -> Message:
    """Decode greedily: take the most likely token at every step."""
    return apply(session, GREEDY_WORDS)


@command("settings", "/sample", "/sample temperature=0.8 top_p=0.95", see="greedy seed sweep")
def sample(session: Session, *changes: NameValue) -> Message:
    """Turn sampling on, with these settings."""
    return apply(session, [*SAMPLE_WORDS, *changes])


def _register(name: str) -> None:
    """Make `/name [value]` from the field."""

    def run(
        session: Session, value: Annotated[str, RestOfLine(suggest=settings.setting_kind(name).complete)] = ""
    ) -> Any:
        return change(session, name, value)

    text = settings.help_of(name)
    run.__doc__ = text[:1].upper() + text[1:]
    lines = (f"/{name} {word}" for word in settings.examples(name))
    command("setting", *lines, see=" ".join(settings.related(name)), name=name)(run)


for _name in settings.places():
    # commands of their own: id@revision and id:file.gguf; the totals beside it; the last reply once more; loads it;
    # tries the grammar; list their tokens
    if _name not in ("model", "stats", "probs", "assistant", "format", "ban", "boost"):
        _register(_name)
