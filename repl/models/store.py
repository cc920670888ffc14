"""The models in memory: as many as fit or are allowed, one of them current; it stays current if a load fails."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from repl import models
from repl.core.decoding import ModelDefaults
from repl.core.errors import NoMemory, NoModel, ReplError
from repl.core.jobs import JobContext
from repl.core.settings import Load, short_id
from repl.hub import locate
from repl.hub.consent import Consents
from repl.hub.weight_headers import STORED
from repl.models.imports import import_libraries, release_memory
from repl.models.memory import available
from repl.models.memory.available import Room, capped, targets

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model, without tensors: safe to read on every thread."""

    id: str
    commit: str
    folder: str
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    stored: dict[str, int]
    """Number of parameters by the dtype they are stored in."""
    device_map: dict[str, str]
    attention: str
    context: int
    """Context length in tokens; 0 where there is no limit."""
    layers: int
    vocabulary: int
    chats: bool
    base: ModelDefaults
    seconds: float
    quantization: str = "none"
    """The setting `quantize`, or the method that the weights are stored in."""
    packed: int = 0
    """Linear layers with packed weights."""
    left: int = 0
    """Linear layers that the packed kernels do not take."""
    adapter: str = "none"
    remarks: tuple[str, ...] = ()
    """Notices to show after the load."""
    unexpected: tuple[str, ...] = ()
    """Tensors in the files that the model does not use."""
    touched: bool = False
    """Whether a user may have changed it in /python."""

    @property
    def form(self) -> str:
        """The quantization, or else the dtype."""
        return self.dtype if self.quantization == "none" else self.quantization

    @property
    def name(self) -> str:
        """The name shown on the screen."""
        return short_id(self.id)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel(Generic[R]):
    """A model in memory with its tokenizer and generation state; for the model thread."""

    load: Load
    facts: ModelInfo
    model: Any
    tokenizer: Any
    runtime: R
    modules: tuple[str, ...] = ()
    """The paths of its modules, for completion."""
    base: Any = None
    """The base model without its adapter, kept for the next one."""


RoomCheck = Callable[[list[Room]], None]
MakeRoom = Callable[[int, RoomCheck], None]
Bring = Callable[[Load, JobContext, bool, MakeRoom], LoadedModel[R]]
SPARE_BYTES = 512 * 2**20  # to stay free beside a load while other models stay: texts grow
MAX_FILL_SHARE = 0.9  # of a device: mapped weight files count as free, but would be read from disk repeatedly


class Store(Generic[R]):
    """Holds models in memory by their `Load`; methods that load, free or use a model run on the model thread.

    `make_runtime` makes the generation state of each.
    """

    def __init__(
        self,
        make_runtime: Callable[[], R],
        offline: bool = False,
        bring: Bring[R] | None = None,
        measure: Callable[[], list[Room]] = available.measure_rooms,
        consents: Consents | None = None,
    ) -> None:
        self.offline = offline
        self.keep: Callable[[], int] = lambda: 0
        """Returns how many models may stay in memory; 0: as many as fit."""
        self.allowed: set[Load] = set()  # loads that are not checked for free memory
        self.consents = consents or Consents()
        self._bring = bring or self._load
        self._make_runtime = make_runtime
        self.measure = measure
        """Returns the devices with their free memory."""
        self._held: tuple[LoadedModel[R], ...] = ()  # least recently used first; replaced whole: other threads read it
        self._current: LoadedModel[R] | None = None
        self._untidy = False  # some freed memory is not returned to the system yet
        self._going: tuple[LoadedModel[R], ...] = ()  # freed in `tidy`

    # safe on every thread, which reads only `load` and `facts` of a model

    def facts(self) -> ModelInfo | None:
        """Return the facts of the current model; None where there is none."""
        resident = self._current
        return resident.facts if resident else None

    def current(self) -> LoadedModel[R]:
        """Return the current model; raises `NoModel`."""
        if self._current is None and self._held:
            raise NoModel("no model is in use", *(f"/model {each.facts.id}" for each in self.residents()))
        if self._current is None:
            raise NoModel("no model is loaded", "/model builtin")
        return self._current

    def residents(self) -> list[LoadedModel[R]]:
        """Return every model in memory, most recently used first."""
        return list(reversed(self._held))

    def holds(self, load: Load) -> bool:
        """Tell whether the model of a load is in memory."""
        return any(each.load == load for each in self._held)

    # on the model thread

    def load(self, load: Load, emit: JobContext) -> ModelInfo:
        """Make a model the current one, loaded only if it is not in memory; on failure the previous one stays current.

        Call `tidy` afterwards.
        """
        began = time.monotonic()
        resident = self._used(load)
        if resident is None:
            return self.reload(load, emit)
        emit.begin_cleanup()  # an interrupt from here on would leave settings and model out of step
        self._current = resident
        self.trim()
        return replace(resident.facts, seconds=time.monotonic() - began)

    def reload(self, load: Load, emit: JobContext) -> ModelInfo:
        """Load a model again and make it the current one; on failure the previous one stays, or is restored.

        Call `tidy` afterwards.
        """
        self._going = ()
        resident = self._read(load, None, self._current.load if self._current else None, emit)
        emit.begin_cleanup()  # as above
        self._current = None
        self._keep(resident)
        self._current = resident
        self.trim()
        return resident.facts

    def get(self, load: Load, emit: JobContext) -> LoadedModel[R]:
        """Return a model, loaded if it is not in memory, without making it the current one.

        It becomes the most recently used; the current one stays in memory. Raises `NoMemory` where both do not fit:
        `load` one after the other then. Keep no reference to it beyond the job.
        """
        resident = self._used(load, alike=True)
        if resident is None:
            resident = self._read(load, self._current, None, emit)
            self._keep(resident)
        self.trim(resident)
        self.tidy()
        return resident

    def drop(self, id: str = "") -> list[ModelInfo]:
        """Free the current model, or every one with this id; returns their facts, with the bytes each one frees.

        Raises `NoModel`.
        """
        gone = [each for each in self._held if id in (each.facts.id, each.facts.name)] if id else [self.current()]
        if not gone:
            there = dict.fromkeys(each.facts.name for each in self.residents())
            known = f"; in memory: {', '.join(there)}" if there else ""
            raise NoModel(f"{id!r} is not in memory{known}", *(f"/unload {name}" for name in there))
        kept = [each for each in self._held if each not in gone]
        facts = [replace(each.facts, bytes=size) for each, size in resident_sizes((*kept, *gone)) if each in gone]
        self._let_go(each.load for each in gone)
        gone.clear()  # else this frame keeps them
        release_memory()
        return facts

    def trim(self, besides: LoadedModel[R] | None = None) -> None:
        """Free models beyond the number allowed, least recently used first; the current one and `besides` stay."""
        most = self.keep() or len(self._held)
        others = [each.load for each in self._held if each not in (self._current, besides)]
        if extra := others[: max(0, len(self._held) - most)]:
            self._going += tuple(each for each in self._held if each.load in extra)
            self._let_go(extra)
            self._untidy = True

    def tidy(self) -> None:
        """Return freed memory to the system; separate from `trim`, since a ready model must not wait for it."""
        if self._untidy:
            self._untidy, self._going = False, ()
            release_memory()

    # what stays and what goes

    def _load(self, load: Load, emit: JobContext, offline: bool, make_room: MakeRoom) -> LoadedModel[R]:
        locate.local(load)  # refuse a path that does not exist before the large imports
        import_libraries(emit)
        return models.loader.load_model(load, emit, offline, make_room, self._make_runtime, self.consents)

    def _read(self, load: Load, beside: LoadedModel[R] | None, before: Load | None, emit: JobContext) -> LoadedModel[R]:
        """Load a model; on failure `before` is loaded again if it was freed for it."""
        try:
            resident = self._bring(load, emit, self.offline, partial(self._make_room, load, beside))
            emit.raise_if_cancelled()
            return resident
        except BaseException:
            emit.begin_cleanup()
            if before is not None and self._current is None:
                with suppress(ReplError):  # then none is current, and the first error is raised
                    self._current = self._bring(before, emit, True, lambda *_: None)
                    self._keep(self._current)
            release_memory()
            raise

    def _used(self, load: Load, alike: bool = False) -> LoadedModel[R] | None:
        """Return the model of a load if it is in memory; it becomes the most recently used.

        `alike` also takes one whose dtype `auto` came to the one that is asked for.
        """
        found = next((each for each in self._held if each.load == load), None)
        if found is None and alike:
            named = (each for each in self._held if each.facts.dtype == load.dtype)
            found = next((each for each in named if replace(load, dtype=each.load.dtype) == each.load), None)
        if found is not None:
            self._held = (*(each for each in self._held if each is not found), found)
        return found

    @contextmanager
    def visitors(self) -> Iterator[None]:
        """Free the models loaded within the context at its end, except the current one."""
        before = {each.load for each in self._held}
        try:
            yield
        finally:
            self._let_go([each.load for each in self._held if each is not self._current and each.load not in before])
            release_memory()

    def _keep(self, resident: LoadedModel[R]) -> None:
        """Hold a model, in place of one with the same load."""
        self._untidy = True  # loading takes more memory than the model
        self._held = (*(each for each in self._held if each.load != resident.load), resident)

    def touch(self) -> LoadedModel[R]:
        """Return the current model to code that may change it, while the model thread is idle.

        Every model that shares its weights is marked as touched.
        """
        current = self.current()
        shared = [each for each in self._held if each is current or (each.base and each.base is current.base)]
        if current.base:
            current.base.touched = True
        noted = {each.load: replace(each, facts=replace(each.facts, touched=True)) for each in shared}
        self._held = tuple(noted.get(each.load, each) for each in self._held)
        self._current = noted[current.load]
        return self._current

    def _let_go(self, loads: Iterable[Load]) -> None:
        gone = set(loads)
        if self._current is not None and self._current.load in gone:
            self._current = None
        self._held = tuple(each for each in self._held if each.load not in gone)

    def rooms(self) -> list[Room]:
        """Return the devices with the memory that would be free if no model were loaded."""
        rooms = self.measure()
        for each, size in resident_sizes(self._held):
            given = _given(each.facts, size)
            rooms = [replace(room, free=room.free + given.get(room.device, 0)) for room in rooms]
        return rooms

    def _make_room(
        self, load: Load, beside: LoadedModel[R] | None, needed: int, check: RoomCheck = lambda rooms: None
    ) -> None:
        """Free models, least recently used first and the current one last, until `needed` bytes fit.

        Raises `NoMemory` if they do not fit while `beside` stays in memory. `check` raises it before anything is freed,
        for a model that would not fit alone.
        """
        if load not in self.allowed:
            check(self.rooms())
        spared = beside.load if beside else None
        del beside  # it may be the current one, which this frame must not keep alive
        while self._lacking(load, needed, SPARE_BYTES) > 0:
            there = targets(load.device, self.measure())
            order = (each for each in sorted(self._held, key=lambda one: one is self._current) if _lies(each, there))
            if not (victims := [each.load for each in order if each.load != spared]):
                break
            self._let_go(victims[:1])
            release_memory()
        if spared is not None and (lack := self._lacking(load, needed)) > 0:
            sentence = f"not enough memory for {load.model} and {spared.model} together ({lack / 2**30:.1f} GiB short)"
            raise NoMemory(sentence, f"/model {load.model}", "/memory")

    def _lacking(self, load: Load, needed: int, spare: int = 0) -> int:
        """Return how many bytes are missing on the devices of a load, within its `max_memory`."""
        if not (there := targets(load.device, self.measure())):
            return 0
        free, total = sum(each.free for each in there), sum(each.total for each in there)
        emptied = (replace(each, free=each.total) for each in there)
        needed = min(needed, sum(each.free for each in capped(emptied, load.max_memory)))
        held = sum(size for each, size in resident_sizes(self._held) if _lies(each, there))
        return int(max(needed + spare - free, held + needed - MAX_FILL_SHARE * total))


def resident_sizes(residents: Iterable[LoadedModel[R]]) -> Iterator[tuple[LoadedModel[R], int]]:
    """Yield the size of each in bytes; a base model shared by several adapters counts with the first of them."""
    seen: set[int] = set()
    for each in residents:
        shared = each.base.bytes if id(each.base) in seen else 0
        if each.base is not None:
            seen.add(id(each.base))
        yield each, each.facts.bytes - shared


def _lies(resident: LoadedModel[Any], there: list[Room]) -> bool:
    parts = {part.removesuffix(":0") if part.startswith("mps") else part for part in resident.facts.device_map.values()}
    return any(each.device in parts for each in there)


def _given(facts: ModelInfo, size: int) -> dict[str, int]:
    """Return the bytes that freeing a model returns, by device; memory-mapped weights count as free already."""
    mapped = facts.quantization == "none" and {STORED.get(name) for name in facts.stored} == {facts.dtype}
    places = list(facts.device_map.values())
    shares = {place: size * places.count(place) // len(places) for place in places}
    return {place: 0 if place == "cpu" and mapped else share for place, share in shares.items()}
