"""Prefill and decode speed on this machine: medians of repeated runs, and the limit set by memory bandwidth.

In come ways to generate a reply, each with its settings, one of them titled as the library's plain `generate`; out
comes a row for each. The model in use, its conversation and its KV cache are not changed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from repl import generation
from repl.analysis.variants import GREEDY_VALUES, Variant, greedy_settings
from repl.core import decoding
from repl.core.errors import Cancelled, ReplError, UsageError, library_errors
from repl.core.events import Progress
from repl.core.jobs import JobContext, Muted
from repl.core.library_types import Tensor
from repl.core.settings import Settings
from repl.generation import decode, measure
from repl.generation.interface import Model, Models, Request, Runtime

if TYPE_CHECKING:
    from repl.generation.decode.drafters import Get

BARE_GENERATE = "generate"

ENGLISH_TEXT = (
    "The river rises in the hills above the town, and by the time it reaches the bridge it carries the water of nine "
    "streams. In spring the meadows stand under water for a week or two; the farmers move their animals to the higher "
    "fields, and the children take the long way to school. Nobody minds much. The ground is the better for it, and the "
    "older people remember years in which the river came into the houses and stayed until May. "
)
WARM_UP_TOKENS = 3  # tokens of the run that is not counted
BLOCK_BYTES = 2**28  # read to measure the memory: far more than any cache holds
MEMORY_READS = 7
PACKED_DTYPES = ("torch.int8", "torch.uint8", "torch.int32")  # what weights that are no parameters are packed into


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """Tokens of the prompt and of the reply, and the number of timed replies of each way."""

    prompt_tokens: int
    new_tokens: int
    repeats: int


@dataclass(frozen=True, slots=True)
class TimedReply:
    """One timed reply: seconds to the first token, and tokens per second after it."""

    ttft_s: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class WaySpeed:
    """Medians for one way to generate: seconds to the first token, and tokens/s of prefill and decode.

    `of_bare` is the decode speed divided by that of the library's plain `generate`; None if that did not run with this
    model. `read_bytes` is the size of the weights read for one token. `limit_tps` is the memory bandwidth divided by
    `read_bytes`; None if the bandwidth is unknown.
    """

    way: str
    model: str
    dtype: str
    runs: int
    ttft_s: float
    prefill_tps: float
    decode_tps: float
    of_bare: float | None
    read_bytes: int
    limit_tps: float | None


@dataclass(frozen=True, slots=True)
class Benched:
    """The results of /bench; `whole` is False if it was stopped early."""

    rows: list[WaySpeed]
    problems: list[str]
    bandwidth: dict[str, float]
    """Memory bandwidth of each device, in bytes per second."""
    sizes: BenchSizes
    threads: int
    whole: bool


@dataclass(slots=True)
class Bench:
    """Measures ways to generate a reply; finished runs are kept when it is stopped. For the model thread."""

    store: Models
    sizes: BenchSizes
    emit: JobContext
    rows: list[WaySpeed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bandwidth: dict[str, float] = field(default_factory=dict)

    def run(self, ways: Sequence[Variant]) -> Benched:
        """Measure one model after another, the ways of each in turn; a way that fails does not stop the others."""
        import torch

        whole = True
        try:
            for load in dict.fromkeys(way.settings.load for way in ways):
                with self.store.visitors(), self._noting():
                    self._measure(self.store.get(load, self.emit), [way for way in ways if way.settings.load == load])
        except Cancelled:
            self.emit.begin_cleanup()
            whole = False
        return Benched(self.rows, self.problems, self.bandwidth, self.sizes, torch.get_num_threads(), whole)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Collect errors that a user can act on, and go on."""
        try:
            yield
        except ReplError as error:
            self.problems.append(error.message)

    def _measure(self, model: Model, ways: Sequence[Variant]) -> None:
        facts, sizes = model.facts, self.sizes
        if facts.context and sizes.prompt_tokens + sizes.new_tokens > facts.context:
            total = sizes.prompt_tokens + sizes.new_tokens
            raise UsageError(f"prompt and reply ({total} tokens) exceed the context of {facts.context}")
        ids, stage = text_ids(model, sizes.prompt_tokens), f"bench {facts.name} {facts.dtype}"
        rate = self._rate(set(facts.device_map.values()))
        runs: list[tuple[Variant, list[TimedReply]]] = []
        try:
            self.emit(Progress(stage, 0, sizes.repeats, "runs"))
            for way in ways:
                with self._noting():
                    self._time(model, way, ids, min(WARM_UP_TOKENS, sizes.new_tokens))
                    runs.append((way, []))
            for number in range(sizes.repeats):
                for way, found in runs:  # in turn: what else the machine does falls on all
                    found.append(self._time(model, way, ids, sizes.new_tokens))
                self.emit(Progress(stage, number + 1, sizes.repeats, "runs"))
        finally:  # also when it is stopped: what is done so far counts
            for way, found in runs:
                if found:
                    self._add_row(model, way, found, rate)

    def _time(self, model: Model, way: Variant, ids: list[int], new: int) -> TimedReply:
        """Time a greedy reply of exactly `new` tokens, without a kept cache; raises `ReplError`."""
        if way.title == BARE_GENERATE:
            return _time_bare(model, ids, new, self.emit)
        return _time_reply(model, way.settings, ids, new, self.emit, self.store.get)

    def _add_row(self, model: Model, way: Variant, runs: Sequence[TimedReply], rate: float | None) -> None:
        facts = model.facts
        first, decode = median(run.ttft_s for run in runs), median(run.decode_tps for run in runs)
        bare = next(
            (row.decode_tps for row in self.rows if (row.way, row.model) == (BARE_GENERATE, facts.id)),
            decode if way.title == BARE_GENERATE else None,
        )
        size = read_bytes(model)
        self.rows.append(
            WaySpeed(
                way=way.title,
                model=facts.id,
                dtype=facts.dtype,
                runs=len(runs),
                ttft_s=first,
                prefill_tps=self.sizes.prompt_tokens / first if first else 0.0,
                decode_tps=decode,
                of_bare=decode / bare if bare else None,
                read_bytes=size,
                limit_tps=rate / size if rate else None,
            )
        )

    def _rate(self, devices: set[str]) -> float | None:
        """Measure a device once; a model on several, or on disk, has no such limit."""
        if len(devices) != 1 or devices == {"disk"}:
            return None
        (device,) = devices
        if device not in self.bandwidth:
            self.emit(Progress("measuring memory bandwidth"))
            self.bandwidth[device] = measure_bandwidth(device, self.emit)
        return self.bandwidth[device]


def text_ids(model: Model, count: int) -> list[int]:
    """Return `count` token ids of plain English."""
    ids = [int(token) for token in model.tokenizer(ENGLISH_TEXT)["input_ids"]]
    return (ids * (count // len(ids) + 1))[:count]


def read_bytes(model: Model) -> int:
    """Return the bytes of weights read for one token: all except an untied input embedding, of which it reads a row.

    Every expert of a mixture of experts counts.
    """
    packed = [one for one in model.model.buffers() if str(one.dtype) in PACKED_DTYPES]
    total = sum(weight.numel() * weight.element_size() for weight in (*model.model.parameters(), *packed))
    first, last = model.model.get_input_embeddings(), model.model.get_output_embeddings()
    if last is not None and first is not None and first.weight is not last.weight:
        total -= first.weight.numel() * first.weight.element_size()
    return int(total)


def measure_bandwidth(device: str, emit: JobContext, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the memory bandwidth of a device in bytes per second, with all threads of torch."""
    import torch

    block = torch.ones(BLOCK_BYTES // 4, device=device)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(block.device.type, lambda: None)
    seconds: list[float] = []
    for _ in range(MEMORY_READS + 1):  # the first touches the pages
        emit.raise_if_cancelled()
        wait()
        began = clock()
        torch.dot(block, block)
        wait()
        seconds.append(clock() - began)
    return BLOCK_BYTES / min(seconds[1:])


def _time_bare(model: Model, ids: list[int], new: int, emit: JobContext) -> TimedReply:
    """Time the library's plain `generate`."""
    values = {**GREEDY_VALUES, "stop_strings": None, "max_new_tokens": new, "min_new_tokens": new}
    chosen = decode.loop.Arguments.of_values(model.model, values)
    prompt = measure.forward.input_ids(model.model, ids)

    def note(made: Tensor, _: object) -> bool:
        emit.raise_if_cancelled()
        made[0, -1].item()  # waits for the device
        times.append(time.perf_counter())
        return False

    with library_errors("the run stopped"):
        times = [time.perf_counter()]
        model.model.generate(
            input_ids=prompt,
            attention_mask=prompt.new_ones(prompt.shape),
            generation_config=chosen.config,
            stopping_criteria=[note],
            **chosen.off,
        )
    return TimedReply(times[1] - times[0], (new - 1) / (times[-1] - times[1]))


def _time_reply(model: Model, asked: Settings, ids: list[int], new: int, emit: JobContext, get: "Get") -> TimedReply:
    """Time a reply of the decode loop used here, with the speculative decoding that is set and nothing else.

    `get` loads the assistant. Raises `UsageError` if speculative decoding is off for this model.
    """
    chosen = greedy_settings(replace(Settings(), load=asked.load))
    values = {name: asked.get(name) for name in decoding.AHEAD}
    for name, value in {**values, "max_new_tokens": new, "min_new_tokens": new}.items():
        chosen = chosen.put(name, value, "bench")
    muted = Muted(emit)
    done = generation.engine.generate_reply(
        replace(model, runtime=Runtime()), Request(chosen, ids=tuple(ids)), muted, get
    )
    if done.finish == "cancelled":
        raise Cancelled
    if done.drafts is None and (name := decoding.draft_source(chosen)):
        raise UsageError(f"{name} is off for this model")
    return TimedReply(done.timing.ttft_s or 0.0, done.timing.decode_tps or 0.0)
