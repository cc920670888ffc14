"""The model in memory: load another, keep the old one until it is ready, roll back when it fails."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psutil

from repl import loading
from repl.errors import NoModel, ReplError
from repl.libraries import release
from repl.loading import Facts, MakeRoom, Resident
from repl.room import Room, measure, with_back
from repl.settings import Load
from repl.trust import Consents
from repl.weigh import STORED
from repl.worker import Emit

Bring = Callable[[Load, Emit, bool, MakeRoom], Resident]
SPARE = 1.1  # a load is taken to fit where this much of its size is free


class Store:
    """Holds at most one resident model. `load` and `drop` run on the model thread."""

    def __init__(
        self,
        offline: bool = False,
        bring: Bring | None = None,
        measure: Callable[[], list[Room]] = measure,
        consents: Consents | None = None,
    ) -> None:
        self.offline = offline
        self.allowed: set[Load] = set()  # loads that begin however little is free
        self._measure = measure
        self.consents = consents or Consents()
        self._bring = bring or partial(loading.bring, consents=self.consents)
        self._current: Resident | None = None

    def facts(self) -> Facts | None:
        """Return what is loaded; safe on every thread."""
        resident = self._current
        return resident.facts if resident else None

    def current(self) -> Resident:
        """Return the resident model; raises `NoModel`."""
        if self._current is None:
            raise NoModel("no model is loaded", "/model builtin")
        return self._current

    def load(self, load: Load, emit: Emit) -> Facts:
        """Make a model the resident one; on any failure the one before is still, or again, there."""
        before = self._current.load if self._current else None
        try:
            resident = self._bring(load, emit, self.offline, partial(self._make_room, load))
            emit.check()
        except BaseException:
            emit.settle()
            self._restore(before, emit)
            raise
        self._current = resident
        release()
        return resident.facts

    def drop(self, emit: Emit) -> Facts:
        """Free the resident model; raises `NoModel`."""
        facts = self.current().facts
        self._current = None
        release()
        return facts

    def rooms(self) -> list[Room]:
        """Return the devices with what would be free on them if nothing were loaded."""
        return with_back(self._measure(), _held(self._current.facts) if self._current else {})

    def _make_room(self, load: Load, needed: int, check: Callable[[list[Room]], None] = lambda rooms: None) -> None:
        """Refuse what would not fit alone; free the old model first where both do not fit side by side."""
        if load not in self.allowed:
            check(self.rooms())
        if self._current is not None and needed * SPARE > _free(self._current):
            self._current = None
            release()

    def _restore(self, load: Load | None, emit: Emit) -> None:
        if load is not None and self._current is None:
            with suppress(ReplError):  # then nothing is resident, and the first failure is the one to tell
                self._current = self._bring(load, emit, True, lambda *_: None)
        release()


def _free(resident: Resident) -> int:
    """Return the free bytes of the device that the resident model is on."""
    if not any(place.startswith("cuda") for place in resident.facts.device_map.values()):
        return int(psutil.virtual_memory().available)
    import torch

    return int(sum(torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())))


def _held(facts: Facts) -> dict[str, int]:
    """Return what a model would give back, by device; weights used as they lie in their file count as free already."""
    mapped = {STORED.get(name) for name in facts.stored} == {facts.dtype}
    places = list(facts.device_map.values())
    shares = {place: facts.bytes * places.count(place) // len(places) for place in places}
    return {place: 0 if place == "cpu" and mapped else share for place, share in shares.items()}
