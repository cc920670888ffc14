"""Replies beside another busy process, against the same on a quiet machine: in turn, in the program's own engine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from driving import ask, finish, opened, run
from figures import Ground, Row, shown

from repl.session.session import Session

PROMPT = "Tell me a long story about a lighthouse keeper and a whale."
TOKENS, SHORT = 128, 12
SPIN = "while True: pass"
OTHERS = 0.15  # of a core: what other processes may take in a round that counts
TRIES = 4  # rounds for each that counts


def rows(ground: Ground) -> list[Row]:
    """Measure rounds of replies, quiet and beside a Python loop that never rests.

    A round is left out where other processes were at work as well.
    """
    names = ("after", "quiet", "sudden", "later", "bare", "single")
    found: dict[str, list[float]] = {name: [] for name in names}
    left_out = 0
    with opened(ground.model, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample="off", reuse="off") as session:
        run(session, "/max_new_tokens 8", "/min_new_tokens 8", PROMPT, "/clear")
        run(session, f"/max_new_tokens {TOKENS}", f"/min_new_tokens {TOKENS}")
        while len(found["quiet"]) < ground.rounds and left_out < TRIES * ground.rounds:
            one = in_turn(session)
            left_out += not one
            for name, speed in one.items():
                found[name].append(speed)
    if not found["quiet"]:
        return [Row("contention: the machine was never quiet", "", "", "", "", "", None)]
    aside = f" ({left_out} disturbed)" if left_out else ""
    return [
        compared(f"beside a busy process, {TOKENS} tokens : quiet{aside}", found["sudden"], found["quiet"], 0.4),
        compared("  the next reply beside it", found["later"], found["quiet"], 0.4),
        compared("  the first reply when it is quiet again", found["after"], found["quiet"], None),
        compared("  bare generate beside it", found["bare"], found["quiet"], None),
        compared("  bare generate beside it with a single thread", found["single"], found["quiet"], None),
    ]


def compared(what: str, ours: list[float], theirs: list[float], bound: float | None) -> Row:
    """Compare speeds by the median of the ratios of the rounds: the machine itself is faster and slower by turns."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    ratio = median(ratios)
    return Row(
        what,
        f"{shown(median(ours))} tokens/s",
        f"{shown(median(theirs))} tokens/s",
        f"{ratio:.3f}",
        "" if bound is None else f"≥ {bound:g}",
        f"{min(ratios):.3f} – {max(ratios):.3f}",
        None if bound is None else ratio >= bound,
    )


def in_turn(session: Session) -> dict[str, float]:
    """Return the tokens/s of one round; empty where it was disturbed."""
    found: dict[str, float] = {}
    with undisturbed(busy=False) as quiet:
        found["after"], found["quiet"] = reply(session), reply(session)
    if not quiet():
        return {}
    with undisturbed(busy=True) as quiet:
        found["sudden"], found["later"] = reply(session), reply(session)
        found["bare"], found["single"] = bare(session, 2), bare(session, 1)
    return found if quiet() else {}


@contextmanager
def undisturbed(busy: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether nobody else was at work; `busy` starts the loop that never rests."""
    spin = subprocess.Popen([sys.executable, "-c", SPIN]) if busy else None
    time.sleep(0.3)
    began, before = time.monotonic(), others(spin)
    taken: list[float] = []
    try:
        yield lambda: taken[0] <= OTHERS
    finally:
        taken.append((others(spin) - before) / (time.monotonic() - began))
        if spin is not None:
            spin.kill()
            spin.wait()


def others(spin: subprocess.Popen[bytes] | None) -> float:
    """Return the seconds of processors that neither this process nor the loop has used."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    own = sum(os.times()[:2]) + (sum(psutil.Process(spin.pid).cpu_times()[:2]) if spin else 0.0)
    return sum(times[:8]) - idle - own


def reply(session: Session) -> float:
    """Return the tokens/s of a reply, the first token left out."""
    done = ask(session, PROMPT)
    run(session, "/clear")
    assert done.timing.decode_tps
    return done.timing.decode_tps


def bare(session: Session, threads: int) -> float:
    """Return the tokens/s of the library's loop with so many threads, untreated."""
    return float(finish(session.run_on_model(lambda emit: plain(session.store.current(), threads))))


def plain(resident: Any, threads: int) -> float:
    """Run bare `generate`; for the model thread."""
    import torch
    from bare import Stamps

    ids, stamps = torch.tensor([[*range(100, 140)]]), Stamps()
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        resident.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, streamer=stamps, max_new_tokens=SHORT,
            min_new_tokens=SHORT, pad_token_id=0,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return (SHORT - 1) / (stamps.moments[-1] - stamps.moments[1])
