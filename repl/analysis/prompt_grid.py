"""The prompts of a file answered by several models or under several settings: a table over all of them.

In come a file and the ways to answer; out comes for each way how often it answers as the first does, how long and how
probable its answers are, and for items with a right answer how often that is the likeliest.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from repl.analysis import choose
from repl.analysis.answerers import get_model, reach_server, with_seed
from repl.analysis.batch import Answered, LocalBatches, ServedPrompts
from repl.analysis.choose import HitRate
from repl.analysis.prompt_file import Prompt, PromptFile
from repl.analysis.variants import Variant
from repl.core.errors import Cancelled
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.generation.interface import Models, Runtime


@dataclass(frozen=True, slots=True)
class GridAnswer:
    """One answer, or the `problem` that there is none for; `logprob` is the mean of its tokens, in nats."""

    text: str = ""
    tokens: int = 0
    logprob: float | None = None
    finish: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class GridRow:
    """A prompt with its answers, one for each way; None where it was not asked any more."""

    line: int
    id: Any
    prompt: str
    answers: tuple[GridAnswer | None, ...]


@dataclass(frozen=True, slots=True)
class GridColumn:
    """A way to answer, over all prompts: `same` answers are those of the first way, to the letter.

    `tokens` is the mean length of an answer, `logprob` the mean over all tokens in the model's own distribution, in
    nats; `accuracy` is that of /choose, for lines with answers.
    """

    title: str
    model: str
    answered: int
    failed: int
    same: int
    tokens: float | None
    logprob: float | None
    tokens_per_s: float | None
    accuracy: HitRate | None


@dataclass(frozen=True, slots=True)
class PromptGrid:
    """The answers to the prompts of a file; `whole` is False where it was stopped before the end."""

    file: str
    columns: tuple[GridColumn, ...]
    rows: tuple[GridRow, ...]
    whole: bool = True


class GridRun:
    """One way to answer: what came of each line by now."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.model, self.seconds = "", 0.0
        self.made: dict[int, Answered] = {}
        self.accuracy: HitRate | None = None

    def answer(self, line: int) -> GridAnswer | None:
        """Return the answer to a line."""
        if (made := self.made.get(line)) is None:
            return None
        if made.done is None:
            return GridAnswer(problem=made.problem.message if made.problem else "")
        mean = fmean(made.logprobs) if made.logprobs else None
        return GridAnswer(made.done.raw, made.done.usage.completion, mean, made.done.finish)


def compare_prompts(store: Models, ways: Sequence[Variant], file: PromptFile, emit: JobContext) -> PromptGrid:
    """Answer a file of prompts in every way, one after another; a cancel ends it with what there is by then."""
    seed, whole = secrets.randbits(31), True  # one for all: ways to answer differ, not the draws
    runs = [GridRun(replace(variant, settings=with_seed(variant.settings, seed))) for variant in ways]
    try:
        for run in runs:
            began = time.monotonic()
            try:
                _answer(store, run, file, emit)
            finally:
                run.seconds = time.monotonic() - began
    except Cancelled:
        emit.begin_cleanup()
        if not runs[0].made:
            raise
        whole = False
    store.trim()
    store.tidy()
    return _grid(file.path, runs, whole)


def _answer(store: Models, run: GridRun, file: PromptFile, emit: JobContext) -> None:
    chosen, server = run.variant.settings, run.variant.server
    if server is not None:
        with closing(reach_server(server, emit)) as remote:
            run.model = f"{remote.name} at {remote.host}"
            told = _told(run, file, emit)
            ServedPrompts(remote, 8, emit, told).answer(replace(file, chosen=chosen, base=remote.base))
        return
    resident = replace(get_model(store, chosen.load, emit), runtime=Runtime())
    run.model = resident.facts.name
    file = replace(file, chosen=chosen, base=resident.facts.base)
    LocalBatches(resident, emit, _told(run, file, emit)).answer(file)
    if any(made.prompt.right is not None for made in run.made.values()):
        run.accuracy = choose.choose_all(resident, file, emit).total


def _told(run: GridRun, file: PromptFile, emit: JobContext) -> Callable[[Answered], object]:
    """Return what takes an answer and says how far things are."""
    total = file.count()

    def put(answered: Answered) -> None:
        run.made[answered.prompt.line] = answered
        if not emit.stopped():
            emit(Progress(run.variant.title, len(run.made), total, "prompts"))

    return put


def _grid(path: str, runs: Sequence[GridRun], whole: bool) -> PromptGrid:
    prompts: dict[int, Prompt] = {}
    for run in runs:
        prompts |= {line: made.prompt for line, made in run.made.items()}
    rows = tuple(
        GridRow(line, prompts[line].id, prompts[line].asked.text, tuple(run.answer(line) for run in runs))
        for line in sorted(prompts)
    )
    return PromptGrid(path, tuple(_column(place, run, rows) for place, run in enumerate(runs)), rows, whole)


def _column(place: int, run: GridRun, rows: Sequence[GridRow]) -> GridColumn:
    pairs = [(row.answers[0], one) for row in rows if (one := row.answers[place]) and not one.problem]
    counts = [one.tokens for _, one in pairs]
    logprobs = [value for made in run.made.values() for value in made.logprobs]
    return GridColumn(
        run.variant.title,
        run.model,
        answered=len(pairs),
        failed=len(run.made) - len(pairs),
        same=sum(first is not None and not first.problem and first.text == one.text for first, one in pairs),
        tokens=fmean(counts) if counts else None,
        logprob=fmean(logprobs) if logprobs else None,
        tokens_per_s=sum(counts) / run.seconds if run.seconds else None,
        accuracy=run.accuracy,
    )
