"""Keys: how soon they are on the screen while a model loads, and how soon they are taken while a reply streams."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from child import Child
from figures import Ground, Row, percentile, within

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST = 190  # letters on one row of the screen
PROMPT = "Tell me a long story about a lighthouse and its keeper."
NOTING = Path(__file__).with_name("noting.py")


def loading(ground: Ground) -> list[Row]:
    """Type ten letters a second from the first prompt until the model is ready; each is timed until it is drawn.

    Letters go on being pressed while others wait, so that a stall counts for every key that falls into it.
    """
    waits: list[float] = []
    worst = []
    for _ in range(ground.rounds):
        with Child(sys.executable, "-m", "repl", home=ground.home) as child:
            child.wait(child.ready)
            found = echoes(child, child.loaded)
            waits += found
            worst.append(max(found))
    return [
        within(f"key echo while loading, p50 of {len(waits)}", percentile(waits, 0.5), 20, "ms", ()),
        within("  p99 (spread: worst of each round)", percentile(waits, 0.99), 250, "ms", worst),
    ]


def echoes(child: Child, enough: Callable[[], bool]) -> list[float]:
    """Type until it is enough, and return for each letter the milliseconds until it was drawn."""
    sent: list[float] = []
    waits: list[float] = []
    rhythm, due, typing = Random(0), time.monotonic(), True
    while typing or len(waits) < len(sent):
        typing = typing and not enough() and len(sent) < MOST
        if typing and time.monotonic() >= due:
            sent.append(child.keys(LETTERS[len(sent) % len(LETTERS)]))
            due += rhythm.uniform(0.05, 0.15)
        child.read(min(0.05, due - time.monotonic()) if typing else 0.05)
        for place in range(len(waits), child.drafted()):
            waits.append((child.pieces[-1][0] - sent[place]) * 1000)
    return waits


def streaming(ground: Ground) -> list[Row]:
    """Press keys while a reply streams, and time each until the program has taken it from the terminal.

    Echo is off then: keys are kept for the next prompt, so there is nothing to see. What an echo stands for, that
    the program hears the key, is measured instead, inside the program, at the call that reads the terminal; Esc and
    Ctrl-C take the same way. The reply afterwards must be followed by a prompt that holds every key.
    """
    notes, waits, worst = ground.scratch / "keys", [], []
    words = ("--max-new-tokens", "256", "--min-new-tokens", "256", "--do-sample", "off")
    with Child(sys.executable, str(NOTING), str(notes), *words, home=ground.home) as child:
        child.load()
        for _ in range(min(2, ground.rounds)):
            found = taken(child, notes)
            waits += found
            worst.append(max(found))
    return [within(f"key taken while a reply streams, p99 of {len(waits)}", percentile(waits, 0.99), 30, "ms", worst)]


def taken(child: Child, notes: Path) -> list[float]:
    """Return for each key pressed during one reply the milliseconds until it was read."""
    child.line(PROMPT)
    child.watch(1.0)
    begins = len(notes.read_text("utf-8").splitlines())
    sent, rhythm = [], Random(0)
    while len(sent) < 100 and child.drafted() < 0:
        sent.append(child.keys(LETTERS[len(sent) % len(LETTERS)]))
        child.watch(rhythm.uniform(0.02, 0.08))
    child.wait(lambda: child.drafted() == len(sent))
    heard = [float(line.split()[0]) for line in notes.read_text("utf-8").splitlines()[begins:]]
    child.keys("\x15")
    child.wait(child.ready)
    child.ask("/clear")
    return [(moment - key) * 1000 for key, moment in zip(sent, heard, strict=False)]
