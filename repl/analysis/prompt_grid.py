"""The prompts of a file answered by several models or under several settings: a table over all of them.

In come a file and the ways to answer; out comes for each way how often it answers as the first does, how long and how
probable its answers are, and for items with a right answer how often that is the likeliest.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from repl.analysis import choose
from repl.analysis.answerers import get_model
from repl.analysis.batch import Answered, LocalBatches, ServedPrompts
from repl.analysis.choose import Score
from repl.analysis.prompt_file import Prompt, PromptFile
from repl.analysis.variants import Server, Variant
from repl.core.errors import Cancelled
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.settings import Settings
from repl.generation.interface import Models, Runtime
from repl.remote.engine import Remote, reach


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
    accuracy: Score | None


@dataclass(frozen=True, slots=True)
class PromptGrid:
    """The answers to the prompts of a file; `whole` is False where it was stopped before the end."""

    file: str
    columns: tuple[GridColumn, ...]
    rows: tuple[GridRow, ...]
    whole: bool = True


class Way:
    """One way to answer on its way: what came of each line."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.model, self.seconds = "", 0.0
        self.made: dict[int, Answered] = {}
        self.accuracy: Score | None = None

    def put(self, answered: Answered) -> None:
        """Take an answer."""
        self.made[answered.prompt.line] = answered

    def answer(self, line: int) -> GridAnswer | None:
        """Return the answer to a line."""
        if (made := self.made.get(line)) is None:
            return None
        if made.done is None:
            return GridAnswer(problem=made.problem.message if made.problem else "")
        mean = fmean(made.logprobs) if made.logprobs else None
        return GridAnswer(made.done.raw, made.done.usage.completion, mean, made.done.finish)


def compare_prompts(
    store: Models, ways: Sequence[Variant], path: str, template: str, system: str, emit: JobContext
) -> PromptGrid:
    """Answer a file of prompts in every way, one after another; a cancel ends it with what there is by then."""
    seed, whole = secrets.randbits(31), True  # one for all: ways to answer differ, not the draws
    columns = [Way(replace(variant, settings=_seeded(variant.settings, seed))) for variant in ways]
    try:
        for way in columns:
            began = time.monotonic()
            try:
                _answer(store, way, path, template, system, emit)
            finally:
                way.seconds = time.monotonic() - began
    except Cancelled:
        emit.begin_cleanup()
        if not columns[0].made:
            raise
        whole = False
    store.trim()
    store.tidy()
    return _grid(path, columns, whole)


def _seeded(chosen: Settings, seed: int) -> Settings:
    return chosen if chosen.decode.seed is not None else replace(chosen, decode=replace(chosen.decode, seed=seed))


def _answer(store: Models, way: Way, path: str, template: str, system: str, emit: JobContext) -> None:
    chosen, server = way.variant.settings, way.variant.server
    if server is not None:
        remote = _reached(server, emit)
        try:
            way.model = f"{remote.name} at {remote.host}"
            file = PromptFile(path, chosen, remote.base, template)
            ServedPrompts(remote, system, 8, emit, _told(way, file, emit)).answer(file)
        finally:
            remote.close()
        return
    resident = replace(get_model(store, chosen.load, emit), runtime=Runtime())
    way.model = resident.facts.name
    file = PromptFile(path, chosen, resident.facts.base, template)
    LocalBatches(resident, system, emit, _told(way, file, emit)).answer(file)
    if any(made.prompt.right is not None for made in way.made.values()):
        way.accuracy = choose.choose_all(resident, file, system, emit).total


def _reached(server: Server, emit: JobContext) -> Remote:
    if server.listing is None:
        return reach(server.where, server.model, emit)
    return Remote(server.where, server.model, server.listing)


def _told(way: Way, file: PromptFile, emit: JobContext) -> Callable[[Answered], object]:
    """Return what takes an answer and says how far things are."""
    total = file.count()

    def put(answered: Answered) -> None:
        way.put(answered)
        if not emit.stopped():
            emit(Progress(way.variant.title, len(way.made), total, "prompts"))

    return put


def _grid(path: str, columns: Sequence[Way], whole: bool) -> PromptGrid:
    prompts: dict[int, Prompt] = {}
    for way in columns:
        prompts |= {line: made.prompt for line, made in way.made.items()}
    rows = tuple(
        GridRow(line, prompts[line].id, prompts[line].text, tuple(way.answer(line) for way in columns))
        for line in sorted(prompts)
    )
    return PromptGrid(path, tuple(_column(place, way, rows) for place, way in enumerate(columns)), rows, whole)


def _column(place: int, way: Way, rows: Sequence[GridRow]) -> GridColumn:
    pairs = [(row.answers[0], one) for row in rows if (one := row.answers[place]) and not one.problem]
    counts = [one.tokens for _, one in pairs]
    logprobs = [value for made in way.made.values() for value in made.logprobs]
    return GridColumn(
        way.variant.title,
        way.model,
        answered=len(pairs),
        failed=len(way.made) - len(pairs),
        same=sum(first is not None and not first.problem and first.text == one.text for first, one in pairs),
        tokens=fmean(counts) if counts else None,
        logprob=fmean(logprobs) if logprobs else None,
        tokens_per_s=sum(counts) / way.seconds if way.seconds else None,
        accuracy=way.accuracy,
    )
