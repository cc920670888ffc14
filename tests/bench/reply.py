"""Replies: tokens per second through the whole program, and how soon a reply stops."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from child import Child
from echo import PROMPT
from figures import Ground, Row, against, percentile, within

TOKENS = 256
BARE = Path(__file__).with_name("bare.py")


def decode(ground: Ground) -> list[Row]:
    """Let the program, at its prompt in a terminal, and a bare `generate` say the same 256 tokens in turn.

    Ours is taken outside, from what arrives at the terminal; theirs inside, from a streamer that only notes the time.
    While one is measured the other is stopped. The first turn of each warms up.
    """
    ours, theirs, whole, bare_whole = [], [], [], []
    words = ("--max-new-tokens", str(TOKENS), "--min-new-tokens", str(TOKENS), "--do-sample", "off")
    with Child(sys.executable, "-m", "repl", *words, home=ground.home) as child, Bare(ground.model) as bare:
        child.load()
        for turn in range(1 + ground.rounds):
            with child.paused():
                found = bare.reply(PROMPT, TOKENS if turn else 8)
            sent = child.ask(PROMPT)
            if not turn:
                child.ask("/clear")
                continue
            first, last = child.arrivals(sent, found["text"])
            child.ask("/clear")
            ours.append((TOKENS - 1) / (last - first))
            theirs.append((TOKENS - 1) / (found["last"] - found["first"]))
            whole.append(last - sent)
            bare_whole.append(found["last"] - found["began"])
    return [
        against(f"decode, {TOKENS} tokens : bare generate", ours, theirs, 0.97, "tokens/s", least=True),
        against("  Enter to the last token", whole, bare_whole, None),
    ]


class Bare:
    """The hand-written program, waiting for prompts; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(BARE), "replies", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Bare":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def reply(self, text: str, tokens: int) -> dict[str, Any]:
        """Return what it measured of one reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"text": text, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        assert found["tokens"] == tokens
        return dict(found)


def cancel(ground: Ground) -> list[Row]:
    """Time from the key until the next prompt waits: in the prefill of 3000 tokens, and in the middle of a reply."""
    prefill, decoding, escape = [], [], []
    with Child(sys.executable, "-m", "repl", "--min-new-tokens", "400", home=ground.home) as child:
        child.load()
        for _ in range(ground.rounds):
            prefill.append(stopped(child, "\x1b[200~" + " one two three" * 1000 + "\x1b[201~", "\x03", 1.0))
            decoding.append(stopped(child, PROMPT, "\x03", 2.0))
            escape.append(stopped(child, PROMPT, "\x1b", 2.0))
    return [
        within(what, percentile(found, 0.5), 0.5, "s", found)
        for what, found in (
            ("Ctrl-C in a prefill of 3000 tokens", prefill),
            ("Ctrl-C in decode", decoding),
            ("Esc in decode", escape),
        )
    ]


def stopped(child: Child, text: str, key: str, after: float) -> float:
    """Send a message, press a key some seconds later, and return the seconds until the prompt is back."""
    child.keys(text)
    child.watch(0.5)
    child.keys("\r")
    child.watch(after)
    assert not child.ready(), "the reply ended before it could be stopped"
    pressed = child.keys(key)
    seconds = child.wait(child.ready) - pressed
    child.ask("/clear")
    return seconds
