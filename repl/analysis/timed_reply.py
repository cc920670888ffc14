"""One timed reply: the library's bare generate, or the program's own under some settings, with the same prompt."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from repl.core import decoding
from repl.core.errors import Cancelled, UsageError
from repl.core.events import Event, Notice
from repl.core.jobs import JobContext
from repl.core.settings import Settings
from repl.generation import arguments, engine
from repl.generation.decode import drafters
from repl.generation.decode.batch import Muted
from repl.generation.measure.forward import input_device, library_errors
from repl.generation.request import Request
from repl.generation.runtime import Model, Runtime

BARE, LOOP = "generate", "loop"
"""The library's `generate`, and the program's own way with nothing that `/fast` adds."""
PLAIN = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None}
"""Values of a bare greedy `generate`."""
FASTER = decoding.AHEAD
"""Settings for decoding that change how fast replies come, and nothing else."""


@dataclass(frozen=True, slots=True)
class Way:
    """How replies are made: under settings, or by the library's bare `generate` where there are none."""

    name: str
    settings: Settings | None = None
    get: drafters.Get | None = None
    """Brings another model beside it, the assistant."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed reply: how many tokens were made, seconds to the first one, seconds from there to the last."""

    made: int
    first_s: float
    rest_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of a few measurements, and their range."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Speed:
    """One model at one length of prompt: seconds to the first token, tokens/s while reading and while writing.

    `of_bare` is what is written for each token of bare `generate` with the first of a model's formats, `limit` the
    share of the tokens/s at which memory could deliver the weights.
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    ttft_s: Spread
    prefill_tps: Spread
    decode_tps: Spread
    limit: float | None
    mode: str = BARE
    of_bare: float | None = None


class Notices(Muted):
    """Lets nothing of a reply through, and keeps what was to be said about it."""

    def __init__(self, emit: JobContext) -> None:
        super().__init__(emit, lambda: None)
        self.heard: list[str] = []

    def __call__(self, event: Event) -> None:
        """Keep a notice; raises `Cancelled`."""
        if isinstance(event, Notice):
            self.heard.append(event.text)
        self.raise_if_cancelled()


class Clock:
    """A streamer that notes when the first and the last token came; raises `Cancelled`."""

    def __init__(self, emit: JobContext) -> None:
        self._emit = emit
        self._began = time.perf_counter()
        self._times: list[float] = []
        self._calls = 0

    def put(self, _: object) -> None:
        """Take a token; the first call brings the prompt."""
        self._emit.raise_if_cancelled()
        self._calls += 1
        if self._calls > 1:
            self._times.append(time.perf_counter())

    def end(self) -> None:
        """Be told that it is over."""

    def run(self) -> Run:
        """Return the times of the reply."""
        return Run(len(self._times), self._times[0] - self._began, self._times[-1] - self._times[0])


def timed(resident: Model, ids: list[int], new: int, emit: JobContext, way: Way) -> Run:
    """Time a greedy reply of exactly `new` tokens, without a kept cache; raises `ReplError`."""
    return bare(resident, ids, new, emit) if way.settings is None else own(resident, ids, new, emit, way)


def bare(resident: Model, ids: list[int], new: int, emit: JobContext) -> Run:
    """Time what the library does by itself."""
    import torch

    model = resident.model
    chosen = arguments.of_values(model, {**PLAIN, "max_new_tokens": new, "min_new_tokens": new})
    prompt = torch.tensor([ids], device=input_device(model))
    with library_errors("the run stopped"):
        clock = Clock(emit)
        mask = torch.ones_like(prompt)
        model.generate(
            input_ids=prompt, attention_mask=mask, generation_config=chosen.config, streamer=clock, **chosen.off
        )
        return clock.run()


def own(resident: Model, ids: list[int], new: int, emit: JobContext, way: Way) -> Run:
    """Time a reply as the program makes it; raises `UsageError` where what should make it faster rests."""
    chosen = asked(way, new)
    notices = Notices(emit)
    done = engine.reply(replace(resident, runtime=Runtime()), Request(chosen, ids=tuple(ids)), notices, way.get)
    if done.finish == "cancelled":
        raise Cancelled
    if done.drafts is None and drafters.wanted(chosen):
        raise UsageError(next(iter(notices.heard), f"{way.name} is off for this model"))
    made, timing = len(done.token_ids), done.timing
    return Run(made, timing.ttft_s or 0.0, (made - 1) / timing.decode_tps if timing.decode_tps else 0.0)


def asked(way: Way, new: int) -> Settings:
    """Return the settings of one greedy reply: of those for decoding, only what makes it faster is kept."""
    assert way.settings is not None
    values = {name: getattr(way.settings.decode, name) for name in FASTER}
    values |= {"do_sample": False, "num_beams": 1, "max_new_tokens": new, "min_new_tokens": new}
    chosen = replace(Settings(), load=way.settings.load)
    for name, value in values.items():
        chosen = chosen.put(name, value, "bench")
    return chosen


def speed(runs: Sequence[Run], prompt: int, new: int, limit: float | None) -> Speed:
    """Turn runs into rates; `limit` is the most tokens/s that memory allows."""
    first = [run.first_s for run in runs]
    decode = spread([(run.made - 1) / run.rest_s if run.rest_s else 0.0 for run in runs])
    prefill = spread([prompt / seconds for seconds in first])
    return Speed(prompt, new, len(runs), spread(first), prefill, decode, decode.median / limit if limit else None)


def spread(values: Sequence[float]) -> Spread:
    """Return median and range."""
    return Spread(statistics.median(values), min(values), max(values))
