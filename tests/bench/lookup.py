"""Replies with `/fast prompt_lookup` against those without, in turn and in one process: six kinds of chats, a copy."""

import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from driving import ask, finish, opened, run
from figures import Ground, Row, shown

from repl.core.events import Event, Token
from repl.session.session import Session

TOKENS = 96
CHATS = {
    "a story": "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "an explanation": "Explain why the sky is blue to a curious ten-year-old.",
    "a list": "Give me ten tips for learning to cook at home.",
    "code": "Write a Python function that returns the prime numbers below n, with a docstring.",
    "a short answer": "Which river flows through Paris, and where does it end? Answer in one sentence.",
    "a dialogue": "Write a dialogue between a customer and a baker about the best bread.",
}
COPY = """Repeat this text word for word, nothing else:

The river rises in the hills above the town, and by the time it reaches the bridge it carries the water of nine
streams. In spring the meadows stand under water for a week or two; the farmers move their animals to the higher fields,
and the children take the long way to school."""


def rows(ground: Ground) -> list[Row]:
    """Measure every prompt in every round, with and without, which of them first by turns; the ids must be the same.

    One thread, and the processor's time: what else the machine does would hide differences of a few hundredths.
    """
    with opened(ground.model, max_new_tokens=TOKENS, do_sample="off", reuse="off") as session:
        finish(session.run_on_model(lambda emit: single_thread()))
        for line in ("/fast prompt_lookup", "/fast off"):
            reply(session, COPY, line)
        chats = {kind: [pair(session, text, turn) for turn in range(ground.rounds)] for kind, text in CHATS.items()}
        copies = [pair(session, COPY, turn) for turn in range(ground.rounds)]
    least = min(chats, key=lambda kind: middle(chats[kind]))
    return [
        row(f"prompt_lookup, the worst of {len(chats)} chats: {least}", chats[least], 0.95),
        *(row(f"  {kind}", pairs, None) for kind, pairs in chats.items() if kind != least),
        row("prompt_lookup, a copy", copies, 2.0),
    ]


def single_thread() -> None:
    """Let torch use one thread; for the model thread."""
    import torch

    torch.set_num_threads(1)


def row(what: str, pairs: list[tuple[float, float]], bound: float | None) -> Row:
    """Hold the median of the rounds' ratios against a bound."""
    ratios, ratio = [with_it / without for with_it, without in pairs], middle(pairs)
    speeds = [f"{shown(median(pair[side] for pair in pairs))} tokens/s" for side in (0, 1)]
    between = f"{min(ratios):.3f} – {max(ratios):.3f}"
    good = None if bound is None else ratio >= bound
    return Row(what, *speeds, f"{ratio:.3f}", "" if bound is None else f"≥ {bound:g}", between, good)


def middle(pairs: list[tuple[float, float]]) -> float:
    """Return the median of the ratios."""
    return median(with_it / without for with_it, without in pairs)


def pair(session: Session, text: str, turn: int) -> tuple[float, float]:
    """Return the tokens/s of a prompt with lookups and without."""
    lines = ["/fast prompt_lookup", "/fast off"]
    found = {line: reply(session, text, line) for line in (lines if turn % 2 else lines[::-1])}
    assert found[lines[0]][1] == found[lines[1]][1], "other ids"
    return found[lines[0]][0], found[lines[1]][0]


def reply(session: Session, text: str, line: str) -> tuple[float, tuple[int, ...]]:
    """Return the tokens for each second of the processor, the first token left out, and the ids."""
    run(session, line)
    moments: list[float] = []

    def heard(event: Event) -> None:
        if isinstance(event, Token) and not moments:
            moments.append(time.process_time())

    done = ask(session, text, heard)
    seconds = time.process_time() - moments[0]
    run(session, "/clear")
    return (len(done.token_ids) - 1) / seconds, done.token_ids
