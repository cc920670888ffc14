"""Our decode loop against the library's, on one model and step by step in turn: what the machine does hits both."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from driving import bare
from figures import Ground, Row, shown
from greenlet import getcurrent, greenlet

from repl.generation import decode

TOKENS = 96
WARM = 3  # steps at the beginning of a reply that do not count
PROMPT = "Once upon a time there was a lighthouse keeper who found a letter in a bottle, and it said:"

Generate = Callable[..., Any]


class Turn:
    """A streamer that notes how long a step took, and lets the others make theirs before the next one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.ids: list[int] = []
        self._back = getcurrent()
        self._began = time.perf_counter()

    def put(self, ids: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.ids += ids.flatten().tolist()
        with torch.inference_mode(False), torch.no_grad():  # the modes of one are not those of the others
            self._back.switch()
        self._began = time.perf_counter()

    def end(self) -> None:
        return


def rows(ground: Ground) -> list[Row]:
    """Let the library's loop, ours and the library's once more say the same; the last tells what chance does."""
    model, tokenizer = bare(ground.model)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    config = model.generation_config
    config.do_sample, config.min_new_tokens, config.max_new_tokens = False, TOKENS, TOKENS
    given = {**inputs, "generation_config": config}

    def ours(**more: Any) -> Any:
        return decode.loop.generate(model, **more)

    found = [step for _ in range(ground.rounds) for step in together([model.generate, ours, model.generate], given)]
    return [
        row("own loop : bare generate, step by step", [(one, other) for one, other, _ in found], 0.98),
        row("  bare generate : itself", [(one, other) for one, _, other in found], None),
    ]


def together(ways: list[Generate], given: dict[str, Any], alike: bool = True) -> list[tuple[float, ...]]:
    """Return the seconds of each step of each way, which of them first by turns; `alike` ways say the same."""
    turns = [Turn() for _ in ways]
    runs = [greenlet(lambda place=place: ways[place](**given, streamer=turns[place])) for place in range(len(ways))]
    for step in range(TOKENS + 2):
        first = step % len(runs)
        for run in runs[first:] + runs[:first]:
            run.switch()
    assert all(run.dead for run in runs)
    assert not alike or len({tuple(turn.ids) for turn in turns}) == 1, "other ids"
    return list(zip(*(turn.seconds[1 + WARM :] for turn in turns), strict=True))


def row(what: str, steps: list[tuple[float, float]], bound: float | None) -> Row:
    """Hold the median of the ratios of single steps against a bound; the spread is that of their middle half."""
    ratios = sorted(theirs / ours for theirs, ours in steps)
    speeds = [f"{shown(1 / median(step[side] for step in steps))} tokens/s" for side in (1, 0)]
    between = f"{ratios[len(ratios) // 4]:.3f} – {ratios[len(ratios) * 3 // 4]:.3f}"
    good = None if bound is None else median(ratios) >= bound
    return Row(what, *speeds, f"{median(ratios):.3f}", "" if bound is None else f"≥ {bound:g}", between, good)
