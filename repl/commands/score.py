"""Score: the log-probability of a text, token by token and as a whole."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.commands.registry import command
from repl.core import texts
from repl.core.errors import ReplError, UsageError
from repl.core.events import Progress
from repl.core.format import join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.values import RestText
from repl.generation import measure
from repl.generation.interface import Model
from repl.generation.measure.token_text import Scored, Speller, TokenPiece, quote
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import fact_line, grid
from repl.terminal.token_colours import OnTerminal, caption, style, styled_text

MAX_WINDOW_TOKENS = 8192  # read at once if the context is longer or unlimited
MAX_FILE_BYTES = 64 * 2**20
MAX_SHOWN_TOKENS = 1500
PATH_WORD = re.compile(r"(~|\.{0,2})/\S+")  # always a path, never a text


@dataclass(frozen=True, slots=True)
class Score:
    """The log-probabilities of a text in nats; None for the first token, which is not predicted."""

    source: str
    """`text`, or the path of a file."""
    ids: list[int]
    logprobs: list[float | None]
    ranks: list[int | None]
    pieces: list[TokenPiece]
    total: float
    """The sum of the logprobs, in nats."""
    perplexity: float
    bits_per_byte: float
    """Over all bytes of the text in UTF-8, also those of the first token: comparable between tokenizers."""
    bytes: int
    window: int
    """Tokens read at once; a longer text is read in windows that overlap by `window - stride` tokens."""
    stride: int


def score_windows(count: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first) for a text of `count` tokens: each window scores from its `first` token on.

    After the first window each token has at least half a window of context.
    """
    end = min(window, count)
    yield 0, end, 1
    while end < count:
        begin = end - (window - _stride(window))
        first, end = end, min(begin + window, count)
        yield begin, end, first - begin


def _stride(window: int) -> int:
    return max(1, window // 2)


def measure_text(resident: Model, text: str, source: str, emit: JobContext) -> Score:
    """Score a text; for the model thread."""
    ids = [int(token) for token in resident.tokenizer(text)["input_ids"]]
    if len(ids) < 2:
        raise UsageError("a text of one token has no token to predict", "/next TEXT")
    window = min(resident.facts.context or MAX_WINDOW_TOKENS, MAX_WINDOW_TOKENS)
    scored: list[Scored] = []
    for begin, end, first in score_windows(len(ids), window):
        for one in measure.scoring.score(resident, ids[begin:end], emit, first):
            scored.append(one)
            if len(scored) % 64 == 0:
                emit(Progress("scoring", len(scored), len(ids) - 1, "tokens"))
    total = sum(one.logprob for one in scored)
    size = len(text.encode("utf-8", "replace"))
    return Score(
        source=source,
        ids=ids,
        logprobs=[None, *(one.logprob for one in scored)],
        ranks=[None, *(one.rank for one in scored)],
        pieces=Speller(resident.tokenizer).pieces(ids),
        total=total,
        perplexity=exp(min(-total / len(scored), 700.0)),
        bits_per_byte=-total / log(2) / size,
        bytes=size,
        window=window,
        stride=_stride(window),
    )


@command("inspect", "/score The cat sat on the mat.", "/score notes.txt", see="tokens next", needs_model=True)
def score_(session: Session, text: RestText) -> Task[Score]:
    """Score a text or file: token probabilities, perplexity, bits per byte.

    A text that is the path of a file means the text in the file. It is read as it is, without the chat template.
    The first token is not predicted, but its bytes count in bits per byte. A text longer than the context is read
    in windows that overlap by half.
    """
    session.facts()
    if not text:
        raise UsageError("/score needs a text or a file", "/score The capital of France is Paris.")
    source, content = _content(text)
    return session.run_on_model(lambda emit: measure_text(session.store.current(), content, source, emit))


def _content(text: str) -> tuple[str, str]:
    try:
        if not (path := Path(text).expanduser()).exists():
            if PATH_WORD.fullmatch(text):
                raise UsageError(f"there is no file {text!r}", "/score TEXT")
            return "text", text
    except (OSError, ValueError, RuntimeError):  # no name that a file could have
        return "text", text
    if path.is_dir() and not PATH_WORD.fullmatch(text):
        return "text", text
    content = texts.read_text(text, MAX_FILE_BYTES)
    if not content:
        raise ReplError(f"{text!r} is empty")
    return str(path), content


@render.register
def _(result: Score) -> RenderableType:
    source = "your text" if result.source == "text" else f"file {clean_line(result.source)}"
    shown = Group(_text(result), caption())
    return Group(Text(source, "quiet"), OnTerminal(shown, _table(result)), fact_line(_figures(result)))


def _text(result: Score) -> Text:
    pairs = zip(result.pieces[:MAX_SHOWN_TOKENS], result.logprobs, strict=False)
    drawn = styled_text((piece.text, "quiet" if value is None else style(exp(value))) for piece, value in pairs)
    drawn.rstrip()
    more = len(result.ids) - MAX_SHOWN_TOKENS
    return drawn.append(f"\n… {more:,} more tokens", "quiet") if more > 0 else drawn


def _table(result: Score) -> Table:
    columns = zip(result.pieces, result.logprobs, result.ranks, strict=True)
    rows = (
        ["" if value is None else f"{value:.4f}", str(rank or ""), quote(piece.text)] for piece, value, rank in columns
    )
    return grid("rrl", ([*map(Text, row)] for row in rows))


def _figures(result: Score) -> str:
    half = f"windows of {result.window} tokens, overlapping by half" if len(result.ids) > result.window else ""
    return join_facts(
        f"{len(result.ids):,} tokens, {result.bytes:,} bytes",
        f"total {result.total:.2f} nats",
        f"perplexity {result.perplexity:.2f}",
        f"{result.bits_per_byte:.3f} bits per byte",
        half,
    )
