"""Replies of a server: what the program costs beside the bare client loop that one would write."""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from child import Child
from echo import PROMPT
from figures import Ground, Row, against
from serving import Serving

TOKENS = 128


def overhead(ground: Ground) -> list[Row]:
    """Let the program, at its prompt in a terminal, and a bare loop ask the same server for the same tokens in turn.

    Ours is taken outside, from what arrives at the terminal; theirs inside. Each goes first in every second turn, and
    the first turn warms up.
    """
    ours, theirs = [], []
    words = ("--max-new-tokens", str(TOKENS), "--do-sample", "off", "--markdown", "off")
    with (
        Serving(ground.model, ground.scratch / "serving") as server,
        Child(sys.executable, "-m", "repl", "--connect", server.url, *words, home=ground.home) as child,
    ):
        child.wait(child.ready)
        for turn in range(1 + ground.rounds):
            found = alone(child, server.url) if turn % 2 else {}
            sent = child.ask(PROMPT)
            found = found or alone(child, server.url)
            first, last = child.arrivals(sent, found["text"])
            child.ask("/clear")
            if turn:
                ours.append((last - first) / (found["pieces"] - 1) * 1000)
                theirs.append((found["last"] - found["first"]) / (found["pieces"] - 1) * 1000)
    return [against("reply of a server, per token : bare loop", ours, theirs, 1.05, "ms")]


def alone(child: Child, url: str) -> dict[str, Any]:
    """Run the bare loop while the program is stopped."""
    with child.paused():
        return bare(url, PROMPT)


def bare(url: str, text: str) -> dict[str, Any]:
    """Stream a reply with nothing but the HTTP library."""
    import httpx2

    body = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "temperature": 0.0, "stream": True}
    pieces, moments = [], []
    with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=None, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if piece:
                    pieces.append(piece)
                    moments.append(time.monotonic())
    return {"text": "".join(pieces), "pieces": len(pieces), "first": moments[0], "last": moments[-1]}
