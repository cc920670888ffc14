"""The logit lens: the most likely tokens after each layer, and the layer at which the model's answer leads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from rich.cells import set_cell_size
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repl import analysis
from repl.commands.registry import command
from repl.core.conversation import Turn
from repl.core.errors import UsageError
from repl.core.format import counted, shortened
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase, Tensor
from repl.core.settings import Settings
from repl.core.values import Integer, RestOfLine, RestText
from repl.generation.interface import Model, Request
from repl.generation.measure.token_text import Speller, quote
from repl.generation.measure.token_trace import least_certain, require_record
from repl.generation.prompt.chat_template import encode_prompt
from repl.session.position import next_position, require_own_reply
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import Responsive, fact_line
from repl.terminal.token_colours import CLASSES, heat, percent

LENS_EXAMPLE = "/lens The capital of France is"
HEAT_CELLS = 3  # columns that shade the probability of the answer
CELL_WIDTH = 20  # columns that one token with its probability takes


@dataclass(frozen=True, slots=True)
class LensToken:
    """A token and its probability, with its rank from 1 on."""

    id: int
    text: str
    probability: float
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class LensLayer:
    """The most likely tokens after one layer; number 0 is the embedding."""

    number: int
    top: tuple[LensToken, ...]
    answer: LensToken
    word: LensToken | None


@dataclass(frozen=True, slots=True)
class Lens:
    """The next token after every layer; `answer` is the most likely token of the model itself."""

    place: str
    tokens: int
    answer: LensToken
    first: int
    """The first layer at which the answer is the most likely token."""
    leads: int
    """The layer from which on it stays the most likely token."""
    word: str
    layers: tuple[LensLayer, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """The text to look after, its place in words, and the token that followed, -1 for none."""

    request: Request
    place: str
    said: int = -1


@command("inspect", "/lens", '/lens --word " Paris" The capital of France is', see="next why", needs_model=True)
def lens(
    session: Session,
    text: RestText = "",
    *,
    word: Annotated[str, RestOfLine("a word")] = "",
    top: Annotated[int, Integer(1, 100)] = 5,
    at: Annotated[int, Integer(1)] = 0,
) -> Task[Lens]:
    """Show the most likely next token after each layer (the logit lens).

    It looks at the least certain token of the last reply, or after TEXT, without the chat template. --at N looks
    where token N of the last reply was chosen. The first column shades the probability of the final answer after
    each layer; layers where it leads are marked. --word W follows one word (its first token) through the layers;
    quotes keep a space in front of it. Every layer is read through the final norm and the output head.
    """
    facts, last, chosen = session.facts(), session.last, session.settings
    if text.strip() and at:
        raise UsageError("--at counts the tokens of the last reply: it does not go with TEXT", LENS_EXAMPLE)
    own = bool(last and last.record and last.record.made_by(facts.id, facts.commit))
    if at or (own and not text.strip()):
        reply, record = require_own_reply(session)
        if at > len(record.token_ids):
            raise UsageError(f"the last reply has {len(record.token_ids)} tokens, not {at}", LENS_EXAMPLE)

        def look_at_token(emit: JobContext) -> Lens:
            resident = session.store.current()
            return look_through(resident, _token_spot(resident, chosen, reply, at, emit), word, top, emit)

        return session.run_on_model(look_at_token)
    if text.strip():
        spot = Spot(Request(chosen, text=text), f"after {quote(text)}")
    else:
        position = next_position(session)  # the place that /next looks at
        spot = Spot(position.request, f"after {position.after}")
    return session.run_on_model(lambda emit: look_through(session.store.current(), spot, word, top, emit))


def _token_spot(resident: Model, chosen: Settings, reply: Turn, at: int, emit: JobContext) -> Spot:
    """Return the place of token `at` of a reply, 0 for the least certain one; for the model thread."""
    record, number = require_record(reply), at or least_certain(resident, reply, emit)
    token = record.token_ids[number - 1]
    named = "" if at else f", the least certain: {quote(Speller(resident.tokenizer).text(token))}"
    request = Request(chosen, ids=(*record.prompt_ids, *record.token_ids[: number - 1]))
    return Spot(request, f"before token {number} of exchange {reply.exchange}{named}", token)


def look_through(resident: Model, spot: Spot, word: str, top: int, emit: JobContext) -> Lens:
    """Read every layer; for the model thread."""
    ids = encode_prompt(resident, spot.request, 0, emit).ids
    logs = analysis.logit_lens.layer_logits(resident, ids, emit).log_softmax(-1)
    answer = int(logs[-1].argmax())
    follow = first_token(resident.tokenizer, word, logs[-1]) if word else spot.said
    speller = Speller(resident.tokenizer)
    layers = tuple(
        LensLayer(
            number,
            tuple(lens_token(row, token, speller) for token in row.topk(min(top, len(row))).indices.tolist()),
            lens_token(row, answer, speller),
            lens_token(row, follow, speller) if follow >= 0 else None,
        )
        for number, row in enumerate(logs)
    )
    ranks = [layer.answer.rank for layer in layers]
    leads = max([place + 1 for place, rank in enumerate(ranks) if rank > 1], default=0)
    followed = speller.text(follow) if follow >= 0 else ""
    return Lens(spot.place, len(ids), layers[-1].answer, ranks.index(1), leads, followed, layers)


def lens_token(logs: Tensor, token: int, speller: Speller) -> LensToken:
    """Return a token with its probability and rank, from log-probabilities of shape (vocab,)."""
    logprob = logs[token]
    rank = int((logs > logprob).sum()) + 1
    return LensToken(token, speller.text(token), float(logprob.exp()), float(logprob), rank)


def first_token(tokenizer: PreTrainedTokenizerBase, word: str, logs: Tensor) -> int:
    """Return the first token of a word, with or without a space in front: the more likely one."""
    spellings = [word] if word[:1].isspace() else [word, f" {word}"]
    starts = [ids[0] for ids in (tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings) if ids]
    named = [start for start in starts if str(tokenizer.decode([start])).strip()] or starts
    if not named:
        raise UsageError(f"{word!r} has no token in this model's vocabulary")
    return int(max(named, key=lambda start: float(logs[start])))


def _draw(lens: Lens, width: int, plain: bool) -> Iterator[RenderableType]:
    """Draw a row for each layer, as many tokens in it as the window has room for."""
    mark = ">" if plain else "▸"
    yield fact_line(shortened(lens.place, 66), f"{counted(lens.tokens, 'token')} of context")
    table = Table.grid(padding=(0, 2))
    shown = max(1, (width - 13 - HEAT_CELLS - (20 if lens.word else 0)) // (CELL_WIDTH + 2))
    if lens.word:
        table.add_row("", "", Text(quote(lens.word, 18).rjust(18), "quiet"))
    for layer in lens.layers:
        number, share = f" {layer.number or 'embedding':>9}", layer.answer.probability
        head = Text.assemble((mark if layer.answer.rank == 1 else " ", "accent"), (number, "quiet"))
        row = [head, Text(heat(share) * HEAT_CELLS, "accent" if share >= 0.01 else "quiet")]
        if word := layer.word:
            figures = f"{'#' + format(word.rank, ','):>9}{_percent(word):>9}"
            row.append(Text(figures, "accent" if word.rank == 1 else "quiet"))
        cells = [_cell(token, "accent" if token.id == lens.answer.id else "") for token in layer.top[:shown]]
        table.add_row(*row, *cells)
    yield table
    legend = [f"{heat(least)} {words}" for least, _, words in CLASSES]
    yield Text("  ".join([f"{quote(lens.answer.text, 12)}:", *legend]), "quiet")
    last, before = len(lens.layers) - 1, f"first at {lens.first}, and " if lens.first < lens.leads else ""
    where = f"from layer {lens.leads} of {last} on" if lens.leads else "from the embedding on"
    if lens.leads == last and not before:
        where = f"only at the last layer, {last}"
    yield Text.assemble((quote(lens.answer.text, 40), "accent"), (f" leads {before}{where}", "quiet"))


def _cell(token: LensToken, style: str) -> Text:
    """Draw a token and its probability in a cell of fixed width."""
    text = set_cell_size(quote(token.text, CELL_WIDTH - 9), CELL_WIDTH - 9)
    return Text.assemble((text, style), (f"{_percent(token):>9}", style or "quiet"))


def _percent(token: LensToken) -> str:
    return percent(token.probability or 1e-9)  # 0 is only less than a float holds


render.register(Lens, lambda result: Responsive(partial(_draw, result)))
