"""The distribution of the next token: the model's own, and the one after the logits processors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import decoding
from repl.core.errors import UsageError
from repl.core.format import counted, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import ascii_only, clean_line
from repl.core.values import RestText
from repl.generation import decode, measure
from repl.generation.interface import Model, Request
from repl.generation.measure.token_text import Speller, quote
from repl.generation.prompt.chat_template import encode_prompt
from repl.session.position import Position, next_position
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, fact_line, grid
from repl.terminal.token_colours import BAR_WIDTHS, bar, percent

DEFAULT_TOKENS = 10  # candidates shown where no number is given
MAX_TOKENS = 1000
TAIL_CHARACTERS = 48  # characters of the text before that are shown


@dataclass(frozen=True, slots=True)
class NextToken:
    """A candidate for the next token; `probability` and `logprob` are in the model's own distribution."""

    id: int
    text: str
    probability: float
    logprob: float
    drawn: float
    """The probability after the logits processors; 0 if one of them removed the token."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The most likely next tokens that a server returns: text and logprob in nats."""

    after: str
    text: str
    candidates: list[tuple[str, float]]
    server: str
    model: str


@dataclass(frozen=True, slots=True)
class Next:
    """The most likely next tokens; entropies in nats."""

    after: str
    text: str
    """The text before them; in a chat the last message."""
    candidates: list[NextToken]
    entropy: float
    processors: list[str]
    """The active logits processors, in the order in which they run."""
    drawn_entropy: float
    left: int
    """The number of tokens that the processors leave."""
    greedy: bool


def compute_next(resident: Model, spot: Position, count: int, emit: JobContext) -> Next:
    """Compute the distribution of the next token; for the model thread."""
    request = spot.request
    decoding.check_values(request.settings, resident.facts.base)
    chosen = decode.loop.Arguments.of_settings(resident, request.settings)
    ids = encode_prompt(resident, request, 1, emit).ids
    decoding.fit_context(chosen.config, len(ids), resident.facts.context, resident.facts.id)
    logits = measure.scoring.next_logits(resident, ids, emit, shared=request.settings.decode.reuse)
    mask = decode.format_mask.make_mask(resident, request, ids, chosen.config)
    ban = decode.phrase_ban.next_ban(resident.tokenizer, chosen.phrases, ids, request.seeded)
    raw, *active = measure.processors.stages(resident, chosen, ids, (), logits, mask, ban)
    final = active[-1] if active else raw
    speller = Speller(resident.tokenizer)
    logs, drawn = raw.scores.log_softmax(-1), final.probabilities
    values, places = logs.topk(min(count, len(logs)))
    return Next(
        spot.after,
        spot.text,
        [
            NextToken(token, speller.text(token), float(logs[token].exp()), value, float(drawn[token]))
            for token, value in zip(places.tolist(), values.tolist(), strict=True)
        ],
        raw.entropy,
        [stage.label for stage in active],
        final.entropy,
        final.left,
        not chosen.config.do_sample and (chosen.config.num_beams or 1) == 1,
    )


@command("inspect", "/next", "/next 20 The capital of France is", see="probs lens why", needs_model=True)
def next_(session: Session, text: RestText = "") -> Task[object]:
    """Show the most likely next tokens here, or after TEXT.

    /next 20 and /next 20 TEXT show 20. Without TEXT it continues the last reply, as /continue does; if the reply
    ended by itself, it shows the end token and its alternatives. TEXT is used as it is, without the chat template.
    If settings change the probabilities (/temperature, /top_p, ...), those after the logits processors are shown
    beside the model's own; of banned phrases the tokens that complete one here are out. A server returns a limited
    number.
    """
    remote, chosen = session.remote, session.settings
    if remote is None:
        session.facts()
    count, said = _counted(text)
    spot = Position(Request(chosen, text=said), "your text", said) if said else next_position(session)
    if remote is not None:
        return session.run_network(
            lambda emit: Offered(
                spot.after, spot.text, [*remote.next(spot.request, count, emit)], remote.host, remote.name
            )
        )
    return session.run_on_model(lambda emit: compute_next(session.store.current(), spot, count, emit))


def _counted(text: str) -> tuple[int, str]:
    """Split off a number in front; raises `UsageError`."""
    first, _, rest = text.partition(" ")
    if not first.isdecimal():
        return DEFAULT_TOKENS, text
    if not 0 < int(first) <= MAX_TOKENS:
        raise UsageError(f"/next shows 1 to {MAX_TOKENS} tokens, not {first}", "/next 20")
    return int(first), rest.strip()


@render.register
def _(result: Next) -> RenderableType:
    nothing = "-" if ascii_only() else "–"
    rows = [(one.text, one.probability) for one in result.candidates]
    drawn = [percent(one.drawn) if one.drawn else nothing for one in result.candidates]
    return Group(draw_context(result), _tables(rows, drawn if result.processors else []), fact_line(_figures(result)))


@render.register
def _(result: Offered) -> RenderableType:
    tables = _tables([(text, exp(logprob)) for text, logprob in result.candidates])
    told = f"the {len(result.candidates)} likeliest that {clean_line(result.server)} gives"
    return Group(draw_context(result), tables, fact_line(told, "entropy is not known"))


def _tables(rows: Sequence[tuple[str, float]], drawn: Sequence[str] = ()) -> First:
    return First(*(_table(rows, drawn, cells) for cells in BAR_WIDTHS))


def _table(rows: Sequence[tuple[str, float]], drawn: Sequence[str], cells: int) -> Table:
    """Draw tokens with their probabilities, and those after the processors."""
    heads = ["", "", "", "model", "sum", *(["drawn"] if drawn else [])]
    sums = accumulate(share for _, share in rows)
    drawings: list[list[str | Text]] = [
        [
            Text(f"{place + 1:>2}", "quiet"),
            quote(text),
            Text(bar(share, cells).ljust(cells), "accent"),
            percent(share),
            Text(percent(min(total, 1.0)), "quiet"),
            *drawn[place : place + 1],
        ]
        for place, ((text, share), total) in enumerate(zip(rows, sums, strict=True))
    ]
    return grid("lllrrr"[: len(heads)], drawings, heads)


def draw_context(result: Next | Offered) -> Text:
    """Draw the end of the text before the tokens."""
    line = clean_line(" ".join(result.text.split()))
    line = line if len(line) <= TAIL_CHARACTERS else ("..." if ascii_only() else "…") + line[-TAIL_CHARACTERS:]
    return Text.assemble((f"after {result.after}: ", "quiet"), line)


def _figures(result: Next) -> str:
    entropy = f"entropy {result.entropy:.2f} nats"
    end = "greedy takes the likeliest" if result.greedy else ""
    if not result.processors:
        return join_facts(entropy, end)
    tokens = f"{counted(result.left, 'token')} left"
    return join_facts(f"{entropy}, drawn {result.drawn_entropy:.2f}", tokens, ", ".join(result.processors), end)
