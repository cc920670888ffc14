"""Why this token: from the model's own distribution, through each processor, to the odds it was drawn with."""

from collections.abc import Sequence
from typing import Annotated, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.why import ProcessorStep, Why, WhyToken, explain
from repl.commands.registry import command
from repl.core import decoding, fields, settings
from repl.core.errors import UsageError
from repl.core.format import counted
from repl.core.reply import Reply
from repl.core.settings import Settings
from repl.core.values import Assignment
from repl.generation.measure.processors import NAMES
from repl.generation.measure.token_text import quote
from repl.session.change_settings import full_name
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import grid
from repl.terminal.token_colours import percent

SHORT_NAMES = {
    "temperature": "T",
    "top_k": "k",
    "top_p": "p",
    "repetition_penalty": "penalty",
    "no_repeat_ngram_size": "ngram",
}
ODDS = {name for name, _ in NAMES.values()}  # what is active between the model and the draw, also what /set takes


@command("inspect", needs_model=True)
def why(session: Session, token: str, *changes: Annotated[tuple[str, str], Assignment()]) -> Task[Why]:
    """Explain a token of the last reply: /why 3, /why Paris.

    /why 3 top_p=0.8 shows it under other settings. The token is named by its number (/tokens --ids lists them) or by a
    text, whose first token is meant. The columns are the model's own odds and those behind each processor and warper,
    in the order they ran, by the record of the reply: settings that changed since do not count. NAME=VALUE asks what
    they would have been with other settings.
    """
    last, facts = session.last, session.facts()
    if last is None or last.record is None or not last.record.token_ids:
        raise UsageError("nothing was answered yet that could be explained", "/next Once upon a time")
    record = last.record
    if not record.made_by(facts.id, facts.commit):
        name, revision = record.model.id, record.model.revision
        line = f"/model {name}" + (f"@{revision}" if revision not in ("", "main") else "")
        raise UsageError(f"the last reply was made by {name}, {facts.name} is loaded", line)
    values = _values(session, record, token, changes)
    shared = session.settings.decode.reuse
    return session.run_on_model(lambda emit: explain(session.store.current(), record, token, values, shared, emit))


def _values(session: Session, record: Reply, token: str, changes: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Read changed settings; raises `UsageError`, also for one that has no effect on this reply."""
    values: dict[str, Any] = {}
    for word, text in changes:
        name = full_name(word, session.base())
        if name in ODDS and name not in settings.places():
            values[name] = fields.read(name, text, session.base().model)
            continue
        if settings.places().get(name) != "decode":
            raise UsageError(f"{name} does not change the odds of a token", f"/help {name}")
        default = decoding.effective(Settings(), session.base()).get(name)
        values[name] = settings.read(name, text) if text != "default" else default.value if default else None
    sampled = {**record.decode, **values}.get("do_sample")
    idle = [name for name in values if name in decoding.WARPERS and not sampled]
    if idle:
        line = " ".join(f"{name}={text}" for name, text in changes)
        raise UsageError(f"{idle[0]} has no effect on a greedy reply", f"/why {token} do_sample=on {line}")
    return values


@render.register
def _(result: Why) -> RenderableType:
    lead = Text.assemble((f"token {result.number} of {result.of}: ", "quiet"), (quote(result.text), "accent"))
    if result.decode:
        lead.append(f" · with {', '.join(f'{name} {value}' for name, value in result.decode.items())}", "quiet")
    return Group(lead, _table(result), Text("\n".join([*_story(result), *result.notes]), "quiet"))


def _table(result: Why) -> Table:
    places = [0, *(place for place, step in enumerate(result.steps, 1) if step.changed)]
    heads = ["", "model", *(_sign(result.steps[place - 1]) for place in places[1:])]
    rows = [_row(one, places, result) for one in result.candidates]
    return grid("l" + "r" * len(places), rows, heads)


def _row(one: WhyToken, places: Sequence[int], result: Why) -> list[Text]:
    names = ["", *(step.name for step in result.steps)]
    gone = names.index(one.removed_by) if one.removed_by else len(names)
    odds = ("" if at > gone else "removed" if at == gone else percent(one.probabilities[at]) for at in places)
    chosen = one.id == result.id
    words = [f"{'>' if chosen else ' '} {quote(one.text)}", *odds]
    return [Text(word, "accent" if chosen else "") for word in words]


def _sign(step: ProcessorStep) -> str:
    return SHORT_NAMES.get(step.name, step.name) + ("" if step.value is None else f"={step.value:g}")


def _story(result: Why) -> list[str]:
    """Say in words what the table cannot: what was removed besides, and how the choice was made."""
    named = [(step, step.name + ("" if step.value is None else f" {step.value:g}")) for step in result.steps]
    lines = [
        f"{name} removed {counted(step.removed, 'token')}, {percent(step.mass)} of the odds"
        for step, name in named
        if step.removed
    ]
    idle = [name for step, name in named if not step.changed]
    lines += [f"no effect here: {', '.join(idle)}"] if idle else []
    return [*lines, f"rank {result.rank} for the model, entropy {result.entropy:.2f} nats · {_end(result)}"]


def _end(result: Why) -> str:
    if result.how == "taken":
        return f"put in by you with /take; the settings give it {percent(result.probability)}"
    if result.how == "beams":
        return f"{percent(result.probability)} alone: a beam search weighs whole sequences, not single tokens"
    if result.how == "sampled":
        would = "would be" if result.decode else "was"
        return f"{would} drawn with {percent(result.probability)}" if result.probability else "could not be drawn"
    if result.id == result.likeliest:
        return "greedy: taken as the likeliest"
    return "greedy would take another one" + ("" if result.decode else ": a near tie, within rounding")
