"""Time to the first token at the eighth turn of a growing chat: with the kept cache against without."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from repl import generation, models
from repl.core.events import Event
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation.interface import Model, Request, Runtime

TURNS, NEW = 8, 64
LEAST = 6.0
TALK = (
    "Tell me in some detail how a small town by the sea lives through the year: who gets up first in the morning, "
    "what the market sells in spring, how the harbour sounds in summer, and which stories people tell one another "
    "when the storms of autumn keep the boats at home; this is question number {}."
)


class Quiet:
    """The job as its work sees it, when nobody watches."""

    def __call__(self, event: Event) -> None: ...
    def raise_if_cancelled(self) -> None: ...
    def begin_cleanup(self) -> None: ...
    def stopped(self) -> bool:
        return False

    def uninterruptible(self) -> object:
        from contextlib import nullcontext

        return nullcontext()


def main() -> int:
    """Print the table; exit code 1 when reuse at the last turn is less than six times as fast."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--folder", type=Path, help="the model's folder; by default the built-in model")
    given = options.parse_args()
    load = Load(model=str(given.folder) if given.folder else "builtin", dtype="float32")
    resident = models.loader.load_model(load, Quiet(), False, lambda size: None, Runtime)  # type: ignore[arg-type]
    rounds = [side_by_side(resident) for _ in range(given.rounds)]
    print(f"{'turn':>5} {'prompt':>7} {'reused':>7} {'with s':>8} {'without s':>10} {'ratio':>7}")
    ratio = 0.0
    for turn in range(TURNS):
        kept, fresh = ([one[turn][place] for one in rounds] for place in (0, 1))
        ours, theirs = ttft(kept), ttft(fresh)
        ratio = theirs / ours
        usage = kept[0].usage
        print(f"{turn + 1:>5} {usage.prompt:>7} {usage.reused:>7} {ours:>8.3f} {theirs:>10.3f} {ratio:>7.2f}")
    return int(ratio < LEAST)


def side_by_side(resident: Model) -> list[tuple[Reply, Reply]]:
    """Have one chat, each turn with the kept cache and, for its first token, without; that must be the same."""
    settings = Settings().put("do_sample", False, "you")
    whole = settings.put("max_new_tokens", NEW, "you").put("min_new_tokens", NEW, "you")
    first = settings.put("max_new_tokens", 1, "you").put("min_new_tokens", 1, "you").put("reuse", False, "you")
    ways = replace(resident, runtime=Runtime()), replace(resident, runtime=Runtime())
    messages: list[dict[str, str]] = []
    found = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": TALK.format(turn + 1)})
        asked = [Request(way, tuple(messages)) for way in (whole, first)]
        kept, fresh = (
            generation.engine.generate_reply(way, request, Quiet()) for way, request in zip(ways, asked, strict=True)
        )  # type: ignore[arg-type]
        assert kept.token_ids[:1] == fresh.token_ids, f"turn {turn + 1} differs"
        messages.append({"role": "assistant", "content": kept.text})
        found.append((kept, fresh))
    return found


def ttft(replies: Sequence[Reply]) -> float:
    """Return the median time to the first token in seconds."""
    return median(one.timing.ttft_s or 0.0 for one in replies)


if __name__ == "__main__":
    sys.exit(main())
