"""What looking inside costs: coloured replies, a text that is scored, a turn that is opened."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from child import Child
from echo import PROMPT
from figures import Ground, Row, against, within
from pyte import Screen

from repl.core import library

TOKENS = 128
UNMEASURED = (sys.executable, str(Path(__file__).with_name("unmeasured.py")))
TEXT = "The keeper of the lighthouse wrote down what he saw, and what he did not see he left to the whale. "


def probs(ground: Ground) -> list[Row]:
    """Let a program that colours its replies, and one that does not even measure them, say the same in turn.

    While one is measured the other is stopped; each goes first in every second turn, and the first turn warms up.
    """
    words = (
        "--max-new-tokens",
        str(TOKENS),
        "--min-new-tokens",
        str(TOKENS),
        "--do-sample",
        "off",
        "--markdown",
        "off",
    )
    measured = Child(sys.executable, "-m", "repl", *words, "--probs", "on", "--markdown", "off", home=ground.home)
    plain = Child(*UNMEASURED, *words, "--markdown", "off", home=ground.home)
    spent: dict[Child, list[float]] = {measured: [], plain: []}
    with measured, plain:
        for child in spent:
            child.load()
        for turn in range(1 + 2 * ground.rounds):
            for child, other in ((measured, plain), (plain, measured))[:: 1 if turn % 2 else -1]:
                with other.paused():
                    child.ask("/clear")
                    sent = child.ask(PROMPT)
                    moments = [moment for moment, _ in child.pieces if moment > sent]
                    if turn:
                        spent[child].append(moments[-1] - sent)
    speeds = ([TOKENS / seconds for seconds in spent[child]] for child in (measured, plain))
    return [against(f"{TOKENS} coloured tokens : not even measured", *speeds, 0.95, "tokens/s", least=True)]


def score(ground: Ground) -> list[Row]:
    """Score a text of about 2000 tokens beside a loop that only reads it, piece by piece, and takes what it needs."""
    from driving import bare, opened, run

    model, tokenizer = bare(ground.model)
    file = ground.scratch / "long.txt"
    file.write_text(TEXT * 90)
    ids = tokenizer(file.read_text())["input_ids"]
    ours, theirs = [], []
    with opened(ground.model) as session:
        for turn in range(1 + ground.rounds):
            began = time.monotonic()
            found = run(session, f"/score {file}")
            middle = time.monotonic()
            total = read(model, ids)
            ended = time.monotonic()
            assert abs(found.total - total) < 1e-4 * len(ids)
            if turn:
                ours.append(len(ids) / (middle - began))
                theirs.append(len(ids) / (ended - middle))
    return [against(f"/score of {len(ids)} tokens : bare loop", ours, theirs, 0.9, "tokens/s", least=True)]


def read(model: Any, ids: list[int], step: int = 1024) -> float:
    """Return the log-probability of a text, in nats."""
    import torch
    from transformers import DynamicCache

    whole, cache, total = torch.tensor([ids]), DynamicCache(config=model.config), 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, step):
            fed = whole[:, start : min(start + step, len(ids) - 1)]
            logits = model(fed, **{library.cache_name(): cache}, use_cache=True).logits[0].float()
            wanted = whole[0, start + 1 : start + 1 + fed.shape[1], None]
            total += float(logits.log_softmax(-1).gather(1, wanted).sum())
    return total


def inspect(ground: Ground) -> list[Row]:
    """Open the full screen of a turn with 1000 tokens: from the Enter key until its table is drawn."""
    spent = []
    words = ("--max-new-tokens", "1000", "--min-new-tokens", "1000", "--do-sample", "off")
    with Child(sys.executable, "-m", "repl", *words, home=ground.home, size=(24, 80)) as child:
        child.load()
        child.ask(PROMPT)
        for _ in range(ground.rounds):
            sent = child.line("/inspect")
            spent.append(child.wait(lambda: opened_on(child.screen)) - sent)
            child.keys("q")
            child.wait(child.ready)
    return [within("/inspect of 1000 tokens, Enter to the table", sorted(spent)[len(spent) // 2], 0.5, "s", spent)]


def opened_on(screen: Screen) -> bool:
    """Tell whether the view of a turn is drawn."""
    return any("entropy" in row for row in screen.display)
