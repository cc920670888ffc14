"""As many threads as pay: beside a busy process every step waits for the thread that was put off, so fewer are faster.

Torch splits each matrix product over its threads and waits for all of them, hundreds of times for one token. What
decides is measured: the seconds of a step with all threads, and with fewer. A step with all of them that takes too
long gives threads up before it is over.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from repl.core.library_types import PreTrainedModel

LEARN = 3  # steps with fewer threads before all are tried
TRIAL = 3  # steps of a trial of all threads; one more goes before them, in which threads are woken
WINDOW = 5  # steps with fewer threads whose median counts
BETTER = 0.9  # all threads are taken again where they take at most this part of a step with fewer
WORSE = 1.3  # and another process is blamed where they take this many times as long
PATIENCE = 1.5  # steps with fewer threads: what all may lose against fewer before they are given up
LATE, LATE_IN_TRIAL = 2.0, 1.3  # steps with fewer threads that one step with all may take
WAIT, LONGEST = 1.0, 16.0  # seconds until all are tried again: twice as long after each time in vain
LASTS = 60.0  # seconds for which what one reply found holds for the next
SHORT = 0.01  # seconds: steps below that are left alone
LOOK = 0.3  # seconds over which it is looked at what other processes take
BUSY, IDLE = 0.6, 0.25  # processors that they take when one is busy, and when none is


class Threads:
    """Chooses between all of torch's threads and fewer, step by step; lives as long as its model."""

    def __init__(
        self,
        count: Callable[[], int] | None = None,
        put: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        others: Callable[[], float] | None = None,
    ) -> None:
        self._count, self._put, self._clock, self._others = count or in_use, put or use, clock, others or elsewhere
        self.all = self.fewer = self.now = 1
        self._few: deque[float] = deque(maxlen=WINDOW)  # seconds of the last steps with fewer threads
        self._learnt = 0  # of them since threads were given up
        self._trial: list[float] | None = None  # seconds of the steps of a trial, while there is one
        self._lost = 0.0  # seconds that all threads took longer than fewer would have, of late
        self._began: float | None = None  # when the step that is being made began
        self._late = False
        self._wait, self._since = 0.0, 0.0  # how long threads are given up, and since when all or fewer are in use
        self._looked: tuple[float, float] | None = None  # when, and what others had taken by then
        self._busy = False  # whether somebody else was when it was looked last
        self._kept, self._ended = False, -LASTS  # fewer threads at the end of the last reply, and when that was
        self._gave_up = False

    def said(self) -> str:
        """Return a sentence where all threads were tried in vain in the last reply, else nothing."""
        if not self._gave_up:
            return ""
        return f"another process is busy: {self.fewer} of {self.all} threads write faster"

    @contextmanager
    def minded(self, model: PreTrainedModel) -> Iterator[None]:
        """Mind the steps of one reply; all threads are back afterwards. Models on other devices are left alone."""
        self.all = self.now = self._count() if model.device.type == "cpu" else 1
        self.fewer = max(1, min(self.all - 1, self.all * 3 // 4))
        self._trial, self._gave_up, self._lost = None, False, 0.0
        if self._kept and self._clock() - self._ended < LASTS and not self._idle():
            self._learnt = 0
            self._take(self.fewer)
        try:
            yield
        finally:
            self._kept, self._ended = self.now < self.all, self._clock()
            self._looked = (self._ended, self._others()) if self._kept else None
            self._take(self.all)

    def _idle(self) -> bool:
        """Tell whether nobody else was at work since the last reply."""
        if self._looked is None or (passed := self._clock() - self._looked[0]) < LOOK:
            return False
        return (self._others() - self._looked[1]) / passed < IDLE

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, and choose the threads of the next one; the first of all are made with fewer, to learn."""
        if not self._few:
            self._take(self.fewer)
        self._began, self._late = self._clock(), False
        try:
            yield
            seconds = self._clock() - self._began
        finally:
            self._began = None
        if self.all > 1:
            self._note(seconds)

    def hurry(self) -> None:
        """Give threads up where the step that is being made takes too long; to be called between two layers."""
        if self._began is None or self.now < self.all or not self._few:
            return
        most = LATE if self._trial is None else LATE_IN_TRIAL if self._trial else LATE
        if self._clock() - self._began > max(SHORT, most * self._fewer_s()):
            self._late = True
            self._take(self.fewer)

    def _fewer_s(self) -> float:
        return statistics.median(self._few)

    def _note(self, seconds: float) -> None:
        if self._late:
            self._retreat(seconds)
        elif self.now < self.all:
            self._with_fewer(seconds)
        elif self._trial is not None:
            self._judge(seconds)
        elif self._few:
            self._lost = max(0.0, self._lost + seconds - max(SHORT, self._fewer_s()))
            if self._lost > PATIENCE * self._fewer_s():
                self._retreat(seconds)

    def _with_fewer(self, seconds: float) -> None:
        self._few.append(seconds)
        self._learnt += 1
        if self._learnt >= LEARN and (self._others_went() or self._clock() - self._since >= self._wait):
            self._trial = None if self._fewer_s() < SHORT else []
            self._advance()

    def _others_went(self) -> bool:
        """Tell, once, that a process that was busy is so no longer."""
        now = self._clock()
        if self._looked is None or now - self._looked[0] > 10 * LOOK:
            self._looked = now, self._others()
        if (passed := now - self._looked[0]) < LOOK:
            return False
        taken = self._others()
        share = (taken - self._looked[1]) / passed
        self._looked = now, taken
        went = self._busy and share < IDLE
        self._busy = not went and (self._busy or share > BUSY)
        return went

    def _judge(self, seconds: float) -> None:
        """Go on with a trial of all threads, or end it."""
        self._trial = [*(self._trial or ()), seconds]
        steps = self._trial[1:]
        if seconds > (LATE_IN_TRIAL if steps else LATE) * self._fewer_s():
            self._retreat(seconds)
        elif len(steps) == TRIAL and statistics.median(steps) <= BETTER * self._fewer_s():
            self._trial = None
        elif len(steps) == TRIAL:
            self._retreat(statistics.median(steps))

    def _advance(self) -> None:
        """Take all threads."""
        self._lost, self._since = 0.0, self._clock()
        self._take(self.all)

    def _retreat(self, seconds: float) -> None:
        """Give threads up, for twice as long where that is soon after the last time."""
        soon = self._clock() - self._since < max(WAIT, self._wait)
        self._gave_up |= self._trial is not None and seconds > WORSE * self._fewer_s()
        self._wait = min(LONGEST, max(WAIT, 2 * self._wait)) if soon else 0.0
        self._trial, self._learnt, self._since = None, 0, self._clock()
        self._few.clear()
        self._take(self.fewer)

    def _take(self, threads: int) -> None:
        if threads != self.now:
            self.now = threads
            self._put(threads)


def in_use() -> int:
    """Return how many threads torch uses."""
    import torch

    return int(torch.get_num_threads())


def elsewhere() -> float:
    """Return the seconds of processors that other processes have used."""
    times = psutil.cpu_times()
    busy = times.user + times.system + getattr(times, "nice", 0.0)
    return float(busy - sum(os.times()[:2]))


def use(threads: int) -> None:
    """Let torch use so many threads, where the calling thread begins a computation."""
    import torch

    torch.set_num_threads(threads)
