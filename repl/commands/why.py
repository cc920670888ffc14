"""Why a token was chosen: its probability in the model's own distribution and after each logits processor."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.why import Why, WhyToken, explain
from repl.commands.registry import command
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.generation.measure.token_text import quote
from repl.generation.measure.token_trace import least_certain
from repl.session.position import require_own_reply
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, grid
from repl.terminal.token_colours import BAR_WIDTHS, bar, percent

SHORTEST_NAMES = {
    "temperature": "T",
    "top_k": "k",
    "top_p": "p",
    "repetition_penalty": "penalty",
    "no_repeat_ngram_size": "ngram",
}


@command("inspect", "/why 3", "/why Paris", see="inspect next lens", needs_model=True)
def why(session: Session, token: str = "") -> Task[Why]:
    """Explain a token of the last reply, by default the least certain one.

    /why 3 explains token 3 (/tokens --ids lists them), /why Paris the first token of that text. The least certain
    token is the one with the lowest probability; blanks do not count. With a form it is the token where the form took
    most away. The columns are the model's probabilities and those after each logits processor, in the order in which
    they ran. They come from the record of the reply, so later changes of settings do not matter.
    """
    (last, record), shared = require_own_reply(session), session.settings.decode.reuse

    def work(emit: JobContext) -> Why:
        resident = session.store.current()
        worst = record.format.worst if record.format else 0
        place = token or str(worst or least_certain(resident, last, emit))
        return replace(explain(resident, record, place, shared, emit), least_certain=not (token or worst))

    return session.run_on_model(work)


@render.register
def _(result: Why) -> RenderableType:
    least = ", the least certain" if result.least_certain else ""
    lead = Text.assemble((f"token {result.number} of {result.of}{least}: ", "quiet"), (quote(result.text), "accent"))
    return Group(
        lead,
        First(*(_table(result, cells) for cells in BAR_WIDTHS)),
        Text("\n".join([*_story(result), *result.notes]), "quiet"),
    )


def _table(result: Why, cells: int) -> Table:
    places = [0, *(place for place, step in enumerate(result.steps, 1) if step.changed)]
    steps = (result.steps[place - 1] for place in places[1:])
    values = ((SHORTEST_NAMES.get(step.name, step.name), step.value) for step in steps)
    heads = ["", "", "model", *(name if value is None else f"{name}={value:g}" for name, value in values)]
    rows = [_row(one, places, result, cells) for one in result.candidates]
    return grid("ll" + "r" * len(places), rows, heads)


def _row(one: WhyToken, places: Sequence[int], result: Why, cells: int) -> list[Text]:
    names = ["", *(step.name for step in result.steps)]
    gone = names.index(one.removed_by) if one.removed_by else len(names)
    odds = ("" if at > gone else "removed" if at == gone else percent(one.probabilities[at]) for at in places)
    chosen = one.id == result.id
    words = [Text(word, "accent" if chosen else "") for word in (f"{'>' if chosen else ' '} {quote(one.text)}", *odds)]
    words.insert(1, Text(bar(one.probabilities[0], cells) if cells else "", "accent"))
    return words


def _story(result: Why) -> list[str]:
    """Return the removed tokens, the processors without effect, and how the token was chosen, in words."""
    named = [(step, step.name + ("" if step.value is None else f" {step.value:g}")) for step in result.steps]
    lines = [
        f"{name} removed {counted(step.removed, 'token')}, {percent(step.mass)} of the probability"
        for step, name in named
        if step.removed
    ]
    idle = [name for step, name in named if not step.changed]
    lines += [f"no effect here: {', '.join(idle)}"] if idle else []
    return [*lines, f"rank {result.rank:,} for the model, entropy {result.entropy:.2f} nats · {_end(result)}"]


def _end(result: Why) -> str:
    if result.how == "taken":
        return f"put there by you with /take; its probability was {percent(result.probability)}"
    if result.how == "beams":
        return f"{percent(result.probability)} by itself: beam search compares whole sequences, not single tokens"
    if result.how == "sampled":
        chance = result.probability
        return f"sampled with probability {percent(chance)}" if chance else "could not have been sampled"
    if result.id == result.likeliest:
        return "greedy: the most likely token" + (" of those left" if result.rank > 1 else "")
    return "greedy would choose another token: a near tie, within rounding"
