"""How fast a model reads and writes here: repeated runs, their spread, and the limit that memory sets."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import psutil

from repl.analysis.timed_reply import BARE, Run, Speed, Way, speed, timed
from repl.core.errors import Cancelled, NoMemory, ReplError, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.settings import Load
from repl.generation.provenance import versions
from repl.generation.runtime import Model, Models, Runtime
from repl.models.imports import release
from repl.models.loader import bring

TEXT = (
    "The river rises in the hills above the town, and by the time it reaches the bridge it carries the water of nine "
    "streams. In spring the meadows stand under water for a week or two; the farmers move their animals to the higher "
    "fields, and the children take the long way to school. Nobody minds much. The ground is the better for it, and the "
    "older people remember years in which the river came into the houses and stayed until May. "
)
WARM = 3  # tokens of the run that is not counted
BLOCK = 2**28  # bytes that are read to measure the memory: far more than any cache holds
READS = 7
PACKED = ("torch.int8", "torch.uint8", "torch.int32")  # what weights that are no parameters are packed into
SPARE = 1.1  # a model is taken to fit where this much of its size is free


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in one format: what it takes, how long it took to load, its speeds, and what went wrong, if anything.

    `read_bytes` are the weights that a single token needs, `limit_tps` how often in a second memory could deliver
    those, None where that is unknown; `used_bytes` is what the process holds after the runs (CUDA: the device at most).
    """

    model: str
    dtype: str
    device_map: dict[str, str]
    resident: bool
    load_s: float
    weight_bytes: int
    read_bytes: int
    limit_tps: float | None
    used_bytes: int
    speeds: tuple[Speed, ...]
    problem: str = ""
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per second that a device reads from its memory: the fastest of a few dot products over a large block."""

    device: str
    bytes_per_s: float


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
    memory: list[Memory]
    new_tokens: int
    repeats: int
    threads: int
    versions: dict[str, str]
    whole: bool
    file: str = ""


class Bench:
    """Measures what a plan says; what is done stays in `entries` when it is stopped. For the model thread."""

    def __init__(self, plan: Plan, resident: Model | None, offline: bool, emit: JobContext) -> None:
        self.plan, self._resident, self._offline, self._emit = plan, resident, offline, emit
        self.entries: list[Entry] = []
        self.memory: list[Memory] = []

    def run(self) -> bool:
        """Measure model after model; False if it was stopped."""
        try:
            for load, ways in self.plan.models:
                self._model(load, ways)
        except Cancelled:
            self._emit.begin_cleanup()
            return False
        return True

    def _model(self, load: Load, ways: Sequence[Way]) -> None:
        try:
            with self._brought(load) as resident:
                self._measure(resident, ways)
        except ReplError as error:  # one that fails leaves the others their turn
            self.entries.append(
                Entry(load.model, load.dtype, {}, False, 0.0, 0, 0, None, 0, (), error.message, load.quantize)
            )

    @contextmanager
    def _brought(self, load: Load) -> Iterator[Model]:
        """Yield the resident model where it is meant, else one that is loaded for this and freed after it."""
        if self._resident is not None and same(load, self._resident):
            yield self._resident
            return
        with ExitStack() as stack:
            stack.callback(release)
            resident = bring(load, self._emit, self._offline, lambda needed, _: room(load, needed), Runtime)
            yield resident

    def _measure(self, resident: Model, ways: Sequence[Way]) -> None:
        speeds: list[Speed] = []
        problems: list[str] = []
        memory = self._bandwidth(resident)
        limit = memory.bytes_per_s / read_bytes(resident) if memory else None
        try:
            for prompt in self.plan.prompt_tokens:
                with noted(problems):
                    self._length(resident, prompt, ways, limit, speeds)
        finally:  # also when it is stopped: what is done so far counts
            if speeds or problems:
                self.entries.append(entry_of(resident, resident is self._resident, limit, speeds, "; ".join(problems)))

    def _length(
        self, resident: Model, prompt: int, ways: Sequence[Way], limit: float | None, speeds: list[Speed]
    ) -> None:
        new = self.plan.new_tokens
        fits(resident, prompt + new)
        ids = text_ids(resident, prompt)
        stage = f"bench {resident.facts.name} {resident.facts.dtype}, prompt of {prompt}"
        runs: list[tuple[Way, list[Run]]] = []
        problems: list[str] = []
        try:
            self._emit(Progress(stage, 0, self.plan.repeats, "runs"))
            for way in ways:
                with noted(problems):  # one that cannot leaves the others their turn
                    timed(resident, ids, min(WARM, new), self._emit, way)
                    runs.append((way, []))
            for number in range(self.plan.repeats):
                for way, found in runs:  # in turn: what else the machine does falls on all
                    found.append(timed(resident, ids, new, self._emit, way))
                self._emit(Progress(stage, number + 1, self.plan.repeats, "runs"))
        finally:
            speeds += [replace(speed(found, prompt, new, limit), mode=way.name) for way, found in runs if found]
        if problems:
            raise UsageError("; ".join(problems))

    def _bandwidth(self, resident: Model) -> Memory | None:
        """Measure a device once; a model on several, or on disk, has no such limit."""
        places = sorted(set(resident.facts.device_map.values()))
        if len(places) != 1 or places[0] == "disk":
            return None
        if known := [one for one in self.memory if one.device == places[0]]:
            return known[0]
        self._emit(Progress("measure the memory"))
        self.memory.append(Memory(places[0], bandwidth(places[0], self._emit)))
        return self.memory[-1]


def measured(plan: Plan, store: Models, emit: JobContext) -> Benched:
    """Run a plan; for the model thread."""
    import torch

    runs = Bench(plan, store.current() if store.facts() else None, store.offline, emit)
    whole = runs.run()
    threads = torch.get_num_threads()
    return Benched(beside(runs.entries), runs.memory, plan.new_tokens, plan.repeats, threads, versions(), whole)


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Write down what a user could mend, and go on."""
    try:
        yield
    except ReplError as error:
        problems.append(error.message)


def entry_of(resident: Model, kept: bool, limit: float | None, speeds: Sequence[Speed], problem: str) -> Entry:
    """Describe a model that was measured."""
    facts = resident.facts
    return Entry(
        model=facts.id,
        dtype=facts.dtype,
        device_map=dict(facts.device_map),
        resident=kept,
        load_s=facts.seconds,
        weight_bytes=facts.bytes,
        read_bytes=read_bytes(resident),
        limit_tps=limit,
        used_bytes=used_bytes(facts.device_map),
        speeds=tuple(speeds),
        problem=problem,
        quantization=facts.quantization,
    )


def beside(entries: Sequence[Entry]) -> list[Entry]:
    """Set every speed of writing against bare `generate` in the first entry of the same model."""
    first: dict[tuple[str, int], float] = {}
    for entry in entries:
        for one in entry.speeds:
            if one.mode == BARE:
                first.setdefault((entry.model, one.prompt_tokens), one.decode_tps.median)

    def against(model: str, one: Speed) -> Speed:
        bare = first.get((model, one.prompt_tokens))
        return replace(one, of_bare=one.decode_tps.median / bare) if bare else one

    return [replace(entry, speeds=tuple(against(entry.model, one) for one in entry.speeds)) for entry in entries]


def loads(base: Load, models: Sequence[str], dtypes: Sequence[str]) -> tuple[Load, ...]:
    """Return every model (`id` or `id@revision`) in every format; without models the one that `base` names."""
    chosen = [base if name == base.model else _named(base, name) for name in models or [base.model]]
    return tuple(replace(one, dtype=dtype) for one in chosen for dtype in dtypes or [base.dtype])


def _named(base: Load, words: str) -> Load:
    name, _, revision = words.partition("@")
    return replace(base, model=name, revision=revision or "main", gguf_file="", trust_remote_code=False)


def same(load: Load, resident: Model) -> bool:
    """Tell whether the resident model is what a `Load` asks for."""
    exact = load.dtype in (resident.load.dtype, resident.facts.dtype)  # auto, or what it turned out to be
    return exact and replace(load, dtype="auto") == replace(resident.load, dtype="auto")


def room(load: Load, needed: int) -> None:
    """Refuse to load what does not fit beside the resident model; raises `NoMemory`."""
    free = psutil.virtual_memory().available
    if load.device == "cpu" and needed * SPARE > free:
        raise NoMemory(f"{load.model} needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free", "/unload")


def fits(resident: Model, tokens: int) -> None:
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


def used_bytes(device_map: dict[str, str]) -> int:
    """Return what the process holds; on CUDA the most that its tensors took on the devices."""
    if not any(place.startswith("cuda") for place in device_map.values()):
        return int(psutil.Process().memory_info().rss)
    import torch

    return int(sum(torch.cuda.max_memory_allocated(place) for place in range(torch.cuda.device_count())))


def bandwidth(device: str, emit: JobContext, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the bytes per second that a device reads, with all of torch's threads."""
    import torch

    block = torch.ones(BLOCK // 4, device=device)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(block.device.type, lambda: None)
    seconds: list[float] = []
    for _ in range(READS + 1):  # the first touches the pages
        emit.raise_if_cancelled()
        wait()
        began = clock()
        torch.dot(block, block)
        wait()
        seconds.append(clock() - began)
    return BLOCK / min(seconds[1:])
