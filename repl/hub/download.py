"""Calls of huggingface_hub, with progress, cancellation, and its log kept off the terminal."""

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
"""The job that waits for the call running on this thread; the list is empty once it no longer waits."""


class HubLogHandler(logging.Handler):
    """Keeps the library's log off the terminal; a retry ends an abandoned call, and is shown as progress otherwise."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise `Cancelled` on a thread that nobody waits for."""
        if (waiting := WAITING.get(None)) is not None:
            if not waiting:
                raise Cancelled
            if "Retrying" in record.getMessage():
                waiting[0](Progress("waiting for the Hub"))  # with status 429 it may wait for half a minute


def prepare(emit: JobContext) -> None:
    """Import huggingface_hub for a job, and take its log off the terminal."""
    with emit.uninterruptible():  # an interrupted import stays broken
        import_library()


def import_library() -> None:
    """Import huggingface_hub; for a thread that is not interrupted."""
    importlib.import_module("huggingface_hub.hf_api")
    logger = logging.getLogger("huggingface_hub")
    if not any(isinstance(each, HubLogHandler) for each in logger.handlers):
        logger.handlers[:] = [HubLogHandler()]
    logger.propagate = True


def call_hub(work: Callable[[], T], emit: JobContext, seconds: float = 0.0) -> T:
    """Run a call of the library on a thread; raises `TimeoutError` after `seconds`, `Cancelled` at once."""
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
    """Emits the progress of several downloads together, once `plan` has set the total."""

    def __init__(self, emit: JobContext, sizes: dict[str, int]) -> None:
        self._emit, self._sizes = emit, sizes
        self._total = self._before = self._done = 0
        self._name = ""

    def plan(self, names: list[str]) -> int:
        """Set the files to download; returns the sum of their bytes."""
        self._before, self._total = 0, sum(self._sizes[name] for name in names)
        return self._total

    def begin(self, name: str) -> object:
        """Start the next file; returns the `tqdm_class` for `hf_hub_download`."""
        self._name, self._done = name, 0
        meter = self

        class Transfer(Bar):
            def __init__(self, *args: Any, **options: Any) -> None:
                rust = "bar_format" in options  # xet calls from Rust, where exceptions are not allowed
                super().__init__(meter.note if rust else meter.report, *args, **options)

            def update_transfer(self, _: int) -> None:
                """Ignore bytes on the wire; without this method xet would create, and count, two bars."""

        return Transfer

    def report(self, _: str, done: int, __: int) -> None:
        """Report the bytes of the current file; raises `Cancelled` once the job was cancelled."""
        self._emit.raise_if_cancelled()
        self._done = done
        if self._total:
            self._emit(Progress("downloading", self._before + done, self._total, "B"))

    def note(self, name: str, done: int, total: int) -> None:
        """Report without raising."""
        with suppress(Cancelled):
            self.report(name, done, total)

    def end(self) -> None:
        """Count the current file as complete."""
        self._before += self._sizes[self._name]
        self.report(self._name, 0, 0)

    def stopped(self) -> str:
        """Return a sentence about the interrupted file; bytes are rounded down, the size up."""
        done, size = self._done // 100_000 / 10, -(-self._sizes[self._name] // 100_000) / 10
        return f"the download of {self._name} stopped at {done:,} of {size:,} MB and will restart"
