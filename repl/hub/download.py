"""Calls of the Hub's library, made quiet, countable and possible to stop."""

import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from repl.core.errors import Cancelled
from repl.core.events import Progress
from repl.core.jobs import JobContext, T, run_in_thread
from repl.core.library import abort_downloads
from repl.core.log import Bar

WAITING: ContextVar[list[JobContext]] = ContextVar("waiting")
"""Who waits for the call of the library that runs on a thread: the list is empty once nobody does any longer."""


class HubLogHandler(logging.Handler):
    """Keeps the library's words off the terminal; that it tries again ends a call that was left, and else is told."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise `Cancelled` on a thread that nobody waits for."""
        if (waiting := WAITING.get(None)) is not None:
            if not waiting:
                raise Cancelled
            if "Retrying" in record.getMessage():
                waiting[0](Progress("waiting for the Hub"))  # by 429 it may ask for half a minute


def prepare(emit: JobContext) -> None:
    """Import the library and take its log off the terminal."""
    with emit.uninterruptible():  # an import cut short stays broken
        import_library()


def import_library() -> None:
    """Import it on a thread that nothing interrupts."""
    importlib.import_module("huggingface_hub.hf_api")
    logger = logging.getLogger("huggingface_hub")
    if not any(isinstance(each, HubLogHandler) for each in logger.handlers):
        logger.handlers[:] = [HubLogHandler()]
    logger.propagate = True


def call_hub(work: Callable[[], T], emit: JobContext, seconds: float = 0.0) -> T:
    """Run a call of the library aside; raises `TimeoutError` after `seconds`, `Cancelled` at once."""
    waiting = [emit]

    def run() -> T:
        WAITING.set(waiting)
        return work()

    try:
        return run_in_thread(run, emit, seconds)
    except Cancelled:
        abort_downloads()
        raise
    finally:
        waiting.clear()


class DownloadProgress:
    """Adds up the bytes of several files and says how far they are; before there is a plan it is silent."""

    def __init__(self, emit: JobContext, sizes: dict[str, int]) -> None:
        self._emit, self._sizes = emit, sizes
        self._total = self._before = self._done = 0
        self._name = ""

    def plan(self, names: list[str]) -> int:
        """Count from here on towards the bytes of these files; returns their sum."""
        self._before, self._total = 0, sum(self._sizes[name] for name in names)
        return self._total

    def begin(self, name: str) -> object:
        """Start the next file; returns the class that the library takes for tqdm."""
        self._name, self._done = name, 0
        meter = self

        class Transfer(Bar):
            def __init__(self, *args: Any, **options: Any) -> None:
                rust = "bar_format" in options  # xet calls from Rust, where nothing may be raised
                super().__init__(meter.note if rust else meter.report, *args, **options)

            def update_transfer(self, _: int) -> None:
                """Leave bytes on the wire uncounted; without this method xet would make, and count, two bars."""

        return Transfer

    def report(self, _: str, done: int, __: int) -> None:
        """Take a step of the file under way; raises `Cancelled` once the job was stopped."""
        self._emit.raise_if_cancelled()
        self._done = done
        if self._total:
            self._emit(Progress("downloading", self._before + done, self._total, "B"))

    def note(self, name: str, done: int, total: int) -> None:
        """Take a step and raise nothing."""
        with suppress(Cancelled):
            self.report(name, done, total)

    def end(self) -> None:
        """Count the file under way as done, however it came."""
        self._before += self._sizes[self._name]
        self.report(self._name, 0, 0)

    def stopped(self) -> str:
        """Say how far the file under way has come, in full tenths of a megabyte: what is not whole is less."""
        done, size = self._done // 100_000 / 10, -(-self._sizes[self._name] // 100_000) / 10
        return f"the download of {self._name} stopped at {done:,} of {size:,} MB and will restart"
