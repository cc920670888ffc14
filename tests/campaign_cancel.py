"""Ctrl-C at any moment: `pytest -s -m campaign tests/campaign_cancel.py` (figures at the end, 10 minutes)."""

import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import models
import pytest
from terminal import LOADED, Terminal

STOP = "\x03"
PRESSES, SESSION = 300, 50  # how often in all, and how often before the program is started anew
ANSWERS = [f"answer {number} " + "word " * 12 + "done" for number in range(1, 10)]
FILLER = b"x" * 1500  # makes every turn that long: reading it takes a while


class Round:
    """One running program, with what its archive holds."""

    def __init__(self, screen: Terminal, chance: random.Random) -> None:
        self.screen = screen
        self.chance = chance
        self.sent = 0
        self.seen = 0  # turns of the archive that were looked at
        self.landed: Counter[str] = Counter()

    def send(self) -> None:
        """Send a message that no other is like."""
        self.sent += 1
        self.screen.line(f"message {self.sent}")

    def press(self, most: float) -> None:
        """Press Ctrl-C within some seconds, one time in four more than once."""
        deadline = time.monotonic() + self.chance.random() * most
        while (left := deadline - time.monotonic()) > 0:
            self.screen.read(left)
        self.screen.keys(STOP * self.chance.choice([1, 1, 1, 2]))

    def empty(self) -> None:
        """Come to an empty prompt: a message that was given back is taken away."""
        screen = self.screen
        screen.wait(lambda: screen.prompt() >= 0 and screen.screen.cursor.y >= screen.prompt() and not loading(screen))
        screen.settle(0.15)
        screen.wait(lambda: screen.prompt() >= 0)
        if not screen.ready():
            screen.clear()

    # where Ctrl-C lands

    def prompt(self) -> None:
        """At the prompt, over whatever is typed."""
        self.screen.wait(self.screen.ready)
        self.screen.keys(
            self.chance.choice(["", "half a mess", "/", "/temp", "two\nlines", "\x1b[A", "\x12mess", "你好"])
        )
        self.press(0.2)
        if "\x12" in (typed := self.screen.draft()) or "search" in typed:
            self.screen.keys(STOP)

    def prefill(self) -> None:
        """Before the first token."""
        self.send()
        self.press(0.5)

    def decode(self) -> None:
        """Between tokens."""
        self.send()
        self.screen.wait(lambda: "answer" in self.screen.tail())
        self.press(0.5)

    def load(self) -> None:
        """While a model loads, with the prompt there or a message waiting for it."""
        self.screen.line("/reload")
        if self.chance.random() < 0.5:
            self.screen.wait(self.screen.ready)
            self.send()
        self.press(0.3)

    # what must hold

    def raise_if_cancelled(self) -> None:
        """Have a good turn, and find a good archive."""
        self.landed.update(self.states())
        asked = len(self.path()) // 2
        if asked >= len(ANSWERS) - 3:
            self.screen.ask("/clear")
            asked = 0
        self.sent += 1
        below = self.screen.ask(f"message {self.sent}")
        said = " ".join(" ".join(below).split())
        assert said.startswith(ANSWERS[asked]), f"expected {ANSWERS[asked]!r}\n{self.screen.text()}"
        assert set(self.states()) == {"user complete", "assistant complete"}
        self.path()

    def states(self) -> list[str]:
        """Return what became of the turns that are new in the archive; none may be open."""
        rows = self.rows("select role, state from turns where number > ? order by number", self.seen)
        self.seen += len(rows)
        assert self.rows("select number from turns where state = 'open'") == []
        return [f"{role} {state}" for role, state in rows]

    def path(self) -> list[str]:
        """Return the roles from the beginning to the head: user and assistant by turns."""
        turns = {number: (parent, role) for number, parent, role in self.rows("select number, parent, role from turns")}
        assert all(parent is None or parent in turns for parent, _ in turns.values())
        heads = self.rows("select head from sessions")
        here = heads[0][0] if heads else None
        path = []
        while here is not None:
            here, role = turns[here]
            path.insert(0, role)
        assert path == ["user", "assistant"] * (len(path) // 2)
        return path

    def rows(self, statement: str, *values: object) -> list[tuple]:
        with closing(sqlite3.connect(self.screen.home / "data" / "archive.db")) as connection:
            return connection.execute(statement, values).fetchall()


def loading(screen: Terminal) -> bool:
    return "loading" in screen.bar()


PLACES: dict[str, Callable[[Round], None]] = {
    "prompt": Round.prompt,
    "prefill": Round.prefill,
    "decode": Round.decode,
    "load": Round.load,
}


@pytest.mark.campaign
def test_three_hundred_presses_of_ctrl_c_leave_a_program_that_answers(tmp_path: Path) -> None:
    """Wherever Ctrl-C lands the program lives, its next answer is right, and the archive is in order."""
    folder = models.scripted(tmp_path / "talker", *(answer.encode() for answer in ANSWERS), FILLER)
    chance, pressed, landed, began = random.Random(3), Counter[str](), Counter[str](), time.monotonic()
    for start in range(0, PRESSES, SESSION):
        with Terminal(str(folder), home=tmp_path / f"home{start}", size=(24, 80)) as screen:
            screen.see(LOADED)
            screen.ask("hi")
            here = Round(screen, chance)
            here.states()
            for _ in range(SESSION):
                place = chance.choice(list(PLACES))
                PLACES[place](here)
                here.empty()
                here.raise_if_cancelled()
                pressed[place] += 1
                screen.screen.history.top.clear()  # else every look at it takes longer
            screen.keys("\x04")
            assert screen.end() == 0
            landed += here.landed
    figures = f"{dict(pressed)}, turns they met {dict(landed)}, {time.monotonic() - began:.0f} s"
    sys.stderr.write(f"\n{PRESSES} presses of Ctrl-C: {figures}\n")
