"""How fast a model reads prompts and makes replies here: the median of repeated runs, and the limit of memory.

In come models, each with ways to make a reply; out come their speeds. The model in use, its conversation and its KV
cache stay as they are.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import psutil

from repl.core import decoding
from repl.core.errors import Cancelled, NoMemory, ReplError, UsageError
from repl.core.events import Event, Notice, Progress
from repl.core.jobs import JobContext
from repl.core.settings import Load, Settings
from repl.generation import arguments, engine
from repl.generation.decode import drafters
from repl.generation.decode.batch import Muted
from repl.generation.measure.forward import input_device, library_errors
from repl.generation.provenance import versions
from repl.generation.request import Request
from repl.generation.runtime import Model, Models, Runtime
from repl.models.imports import release
from repl.models.loader import bring

BARE, LOOP = "generate", "loop"
"""The library's `generate`, and the program's own way with nothing that `/fast` adds."""
PLAIN = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None}
"""Values of a bare greedy `generate`."""
FASTER = decoding.AHEAD
"""Settings for decoding that change how fast replies come, and nothing else."""
TEXT = (
    "The river rises in the hills above the town, and by the time it reaches the bridge it carries the water of nine "
    "streams. In spring the meadows stand under water for a week or two; the farmers move their animals to the higher "
    "fields, and the children take the long way to school. Nobody minds much. The ground is the better for it, and the "
    "older people remember years in which the river came into the houses and stayed until May. "
)
WARM_UP_TOKENS = 3  # tokens of the run that is not counted
BLOCK_BYTES = 2**28  # read to measure the memory: far more than any cache holds
READS = 7
PACKED = ("torch.int8", "torch.uint8", "torch.int32")  # what weights that are no parameters are packed into
FREE_SHARE = 1.1  # a model is taken to fit where this much of its size is free


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

    mode: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    ttft_s: Spread
    prefill_tps: Spread
    decode_tps: Spread
    limit: float | None
    of_bare: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in one format: what it takes, how long it took to load, its speeds, and what went wrong, if anything.

    `read_bytes` are the weights that a single token needs, `limit_tps` how often in a second memory could deliver
    those, None where that is unknown.
    """

    model: str
    dtype: str
    quantization: str
    device_map: dict[str, str] = field(default_factory=dict)
    load_s: float = 0.0
    weight_bytes: int = 0
    read_bytes: int = 0
    limit_tps: float | None = None
    speeds: list[Speed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    models: tuple[tuple[Load, tuple[Way, ...]], ...]
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Benched:
    """What was measured, with what decides it; `whole` is False where it was stopped before the end."""

    entries: list[Entry]
    bandwidth: dict[str, float]
    """Bytes per second that each device reads from its memory."""
    new_tokens: int
    repeats: int
    threads: int
    versions: dict[str, str]
    whole: bool


class Bench:
    """Measures what a plan says; what is done stays in `entries` when it is stopped. For the model thread."""

    def __init__(self, plan: Plan, store: Models, emit: JobContext) -> None:
        self._plan, self._emit, self._offline = plan, emit, store.offline
        self._current = store.current() if store.facts() else None
        self._entries: list[Entry] = []
        self._bandwidth: dict[str, float] = {}

    def run(self) -> Benched:
        """Measure model after model; one that fails leaves the others their turn."""
        import torch

        whole = True
        try:
            for load, ways in self._plan.models:
                self._measure(load, ways)
        except Cancelled:
            self._emit.begin_cleanup()
            whole = False
        entries = compared([one for one in self._entries if one.speeds or one.problems])
        plan, threads = self._plan, torch.get_num_threads()
        return Benched(entries, self._bandwidth, plan.new_tokens, plan.repeats, threads, versions(), whole)

    def _measure(self, load: Load, ways: Sequence[Way]) -> None:
        problems: list[str] = []
        with noted(problems):
            try:
                self._measure_model(self._model(load), ways)
            except Cancelled:
                self._emit.begin_cleanup()  # no interrupt may fall into the collection of garbage
                raise
            finally:
                release()
        if problems:
            self._entries.append(Entry(load.model, load.dtype, load.quantize, problems=problems))

    def _model(self, load: Load) -> Model:
        """Return the current model where it is meant, else one that is loaded for this."""
        if self._current is not None and same(load, self._current):
            return self._current
        return bring(load, self._emit, self._offline, lambda needed, _: check_free(load, needed), Runtime)

    def _measure_model(self, model: Model, ways: Sequence[Way]) -> None:
        facts, size = model.facts, read_bytes(model)
        rate = self._rate(sorted(set(facts.device_map.values())))
        entry = Entry(
            model=facts.id,
            dtype=facts.dtype,
            quantization=facts.quantization,
            device_map=dict(facts.device_map),
            load_s=facts.seconds,
            weight_bytes=facts.bytes,
            read_bytes=size,
            limit_tps=rate / size if rate else None,
        )
        self._entries.append(entry)
        for prompt in self._plan.prompt_tokens:
            with noted(entry.problems):
                self._measure_length(model, prompt, ways, entry)

    def _measure_length(self, model: Model, prompt: int, ways: Sequence[Way], entry: Entry) -> None:
        new, repeats, emit = self._plan.new_tokens, self._plan.repeats, self._emit
        check_context(model, prompt + new)
        ids = text_ids(model, prompt)
        stage = f"bench {model.facts.name} {model.facts.dtype}, prompt of {prompt}"
        runs: list[tuple[Way, list[Run]]] = []
        try:
            emit(Progress(stage, 0, repeats, "runs"))
            for way in ways:
                with noted(entry.problems):  # one that cannot leaves the others their turn
                    timed(model, ids, min(WARM_UP_TOKENS, new), emit, way)
                    runs.append((way, []))
            for number in range(repeats):
                for way, found in runs:  # in turn: what else the machine does falls on all
                    found.append(timed(model, ids, new, emit, way))
                emit(Progress(stage, number + 1, repeats, "runs"))
        finally:  # also when it is stopped: what is done so far counts
            entry.speeds.extend(speed(way.name, found, prompt, new, entry.limit_tps) for way, found in runs if found)

    def _rate(self, devices: Sequence[str]) -> float | None:
        """Measure a device once; a model on several, or on disk, has no such limit."""
        if len(devices) != 1 or devices[0] == "disk":
            return None
        if devices[0] not in self._bandwidth:
            self._emit(Progress("measure the memory"))
            self._bandwidth[devices[0]] = bandwidth(devices[0], self._emit)
        return self._bandwidth[devices[0]]


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Write down what a user could mend, and go on."""
    try:
        yield
    except ReplError as error:
        problems.append(error.message)


def compared(entries: Sequence[Entry]) -> list[Entry]:
    """Set every decode speed against bare `generate` in the first entry of the same model."""
    first: dict[tuple[str, int], float] = {}
    for entry in entries:
        for one in entry.speeds:
            if one.mode == BARE:
                first.setdefault((entry.model, one.prompt_tokens), one.decode_tps.median)
            if bare := first.get((entry.model, one.prompt_tokens)):
                place = entry.speeds.index(one)
                entry.speeds[place] = replace(one, of_bare=one.decode_tps.median / bare)
    return list(entries)


def same(load: Load, resident: Model) -> bool:
    """Tell whether the resident model is what a `Load` asks for."""
    exact = load.dtype in (resident.load.dtype, resident.facts.dtype)  # auto, or what it turned out to be
    return exact and replace(load, dtype="auto") == replace(resident.load, dtype="auto")


def check_free(load: Load, needed: int) -> None:
    """Refuse to load what does not fit beside the resident model; raises `NoMemory`."""
    free = psutil.virtual_memory().available
    if load.device == "cpu" and needed * FREE_SHARE > free:
        raise NoMemory(f"{load.model} needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free", "/unload")


def check_context(resident: Model, tokens: int) -> None:
    """Refuse a length that the model was not made for; raises `UsageError`."""
    context = resident.facts.context
    if context and tokens > context:
        raise UsageError(f"prompt and reply of {tokens} tokens do not fit into the context of {context}")


def text_ids(resident: Model, count: int) -> list[int]:
    """Return so many ids of plain English."""
    ids = [int(token) for token in resident.tokenizer(TEXT)["input_ids"]]
    return (ids * (count // len(ids) + 1))[:count]


def read_bytes(resident: Model) -> int:
    """Return the bytes of weights that one token needs: all but an input embedding of its own, of which it reads a row.

    Of a mixture of experts this counts every expert.
    """
    model = resident.model
    packed = [one for one in model.buffers() if str(one.dtype) in PACKED]
    total = sum(weight.numel() * weight.element_size() for weight in (*model.parameters(), *packed))
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is not None and first is not None and first.weight is not last.weight:
        total -= first.weight.numel() * first.weight.element_size()
    return int(total)


def bandwidth(device: str, emit: JobContext, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the bytes per second that a device reads, with all of torch's threads."""
    import torch

    block = torch.ones(BLOCK_BYTES // 4, device=device)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(block.device.type, lambda: None)
    seconds: list[float] = []
    for _ in range(READS + 1):  # the first touches the pages
        emit.raise_if_cancelled()
        wait()
        began = clock()
        torch.dot(block, block)
        wait()
        seconds.append(clock() - began)
    return BLOCK_BYTES / min(seconds[1:])


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


def speed(mode: str, runs: Sequence[Run], prompt: int, new: int, limit: float | None) -> Speed:
    """Turn runs into rates; `limit` is the most tokens/s that memory allows."""
    first = [run.first_s for run in runs]
    decode = spread([(run.made - 1) / run.rest_s if run.rest_s else 0.0 for run in runs])
    prefill = spread([prompt / seconds for seconds in first])
    share = decode.median / limit if limit else None
    return Speed(mode, prompt, new, len(runs), spread(first), prefill, decode, share)


def spread(values: Sequence[float]) -> Spread:
    """Return median and range."""
    return Spread(statistics.median(values), min(values), max(values))
