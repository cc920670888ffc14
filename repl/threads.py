"""As many threads as pay: beside a busy process every step waits for the thread that was put off, so fewer are faster.

Torch splits each matrix product over its threads and waits for all of them, hundreds of times for one token. What
decides is measured: the seconds of a step with all threads, and with fewer.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WINDOW = 6  # steps whose median counts
SUDDEN = 3  # steps, each of them slow, that are enough
TRIAL = 4  # steps of a trial; the first does not count, threads are woken in it
WORSE = 1.3  # threads are given up where all take this many times as long as fewer
BETTER = 0.9  # and all are taken again where they take at most this part of it
WAIT, LONGEST = 8.0, 60.0  # seconds until all are tried again: twice as long after each time in vain
LASTS = 60.0  # seconds for which what one reply found holds for the next
SHORT = 0.01  # seconds: steps below that are left alone


class Threads:
    """Chooses between all of torch's threads and fewer, step by step; lives as long as its model."""

    def __init__(
        self,
        count: Callable[[], int] | None = None,
        put: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._count, self._put, self._clock = count or in_use, put or use, clock
        self.all = self.fewer = self.now = 1
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._trial: list[float] | None = None  # seconds of the steps of a trial, while there is one
        self._before = 0.0  # median before the trial
        self._with_fewer = 0.0  # median with fewer threads, 0 until that was tried
        self._wait, self._since = WAIT, -LASTS
        self._gave_up = False

    def said(self) -> str:
        """Return a sentence where threads were given up in the last reply, else nothing."""
        if not self._gave_up:
            return ""
        return f"another process is busy: {self.fewer} of {self.all} threads write faster"

    @contextmanager
    def minded(self, model: Any) -> Iterator[None]:
        """Mind the steps of one reply; all threads are back afterwards. Models on other devices are left alone."""
        self.all = self.now = self._count() if model.device.type == "cpu" else 1
        self.fewer = max(1, min(self.all - 1, self.all * 3 // 4))
        self._trial, self._gave_up = None, False
        self._steps.clear()
        if self.all > 1 and self._clock() - self._since < LASTS:
            self._take(self.fewer)
        try:
            yield
        finally:
            self._take(self.all)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, and choose the threads of the next one."""
        began = self._clock()
        yield
        if self.all > 1:
            self._note(self._clock() - began)

    def _note(self, seconds: float) -> None:
        if self._trial is not None:
            self._trial.append(seconds)
            self._judge(self._trial[1:])
            return
        self._steps.append(seconds)
        slow = self.now == self.all and 0 < WORSE * self._with_fewer < min([*self._steps][-SUDDEN:])
        if len(self._steps) < (SUDDEN if slow else WINDOW):
            return
        median = statistics.median(self._steps)
        if self.now < self.all:
            self._with_fewer = median
            if self._clock() - self._since > self._wait:
                self._try(self.all, median)
        elif slow or median > max(SHORT, WORSE * self._with_fewer):  # what is 0 is yet to be learnt
            self._try(self.fewer, median)

    def _try(self, threads: int, before: float) -> None:
        self._trial, self._before = [], before
        self._take(threads)

    def _judge(self, steps: list[float]) -> None:
        if self.now == self.all:
            if sum(steps) > (TRIAL - 1) * self._before or len(steps) == TRIAL - 1:  # no longer than fewer would take
                self._settle(statistics.median(steps) < BETTER * self._before)
        elif len(steps) == TRIAL - 1:
            self._with_fewer = statistics.median(steps)
            self._settle(self._before <= WORSE * self._with_fewer)

    def _settle(self, all_pay: bool) -> None:
        """End a trial."""
        came_from_fewer = self.now == self.all
        self._trial = None
        self._steps.clear()
        if all_pay:
            self._wait, self._since = WAIT, -LASTS
            self._take(self.all)
            return
        self._wait = min(LONGEST, 2 * self._wait) if came_from_fewer else WAIT
        self._since, self._gave_up = self._clock(), True
        self._take(self.fewer)

    def _take(self, threads: int) -> None:
        if threads != self.now:
            self.now = threads
            self._put(threads)


def in_use() -> int:
    """Return how many threads torch uses."""
    import torch

    return int(torch.get_num_threads())


def use(threads: int) -> None:
    """Let torch use so many threads, where the calling thread begins a computation."""
    import torch

    torch.set_num_threads(threads)
