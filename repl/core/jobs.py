"""The model thread: one worker owns every tensor; jobs go in through a queue, events come back through another."""

import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from repl.core import library, log
from repl.core.errors import Cancelled
from repl.core.events import Event, Notice, Progress, Token

T = TypeVar("T")
INTERRUPT_S = 0.3  # seconds a cancelled job may take to notice by itself, before its thread is interrupted
POLL_S = 0.05
GIVE_UP_S = 1.5  # seconds after which a cancelled job is no longer waited for: imports cannot be interrupted


class JobContext:
    """The job as its own work sees it: send events, or find out that it was cancelled.

    A subclass may stand before another context, `emit`, and change some of the events on their way.
    """

    emit: "JobContext"

    def __call__(self, event: Event) -> None:
        """Send an event to the main thread; raises `Cancelled` once the user stopped the job."""
        self.emit(event)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` once the user stopped the job."""
        self.emit.raise_if_cancelled()

    def stopped(self) -> bool:
        """Tell whether the user stopped the job."""
        return self.emit.stopped()

    def uninterruptible(self) -> AbstractContextManager[None]:
        """Context in which the thread is not interrupted: imports, or writes that must be whole."""
        return self.emit.uninterruptible()

    def begin_cleanup(self) -> None:
        """Do not interrupt the thread from here on: the work has noticed the cancel and cleans up."""
        self.emit.begin_cleanup()


class Aside(JobContext):
    """A job as another thread sees it: stopped with it, also while its own thread cleans up."""

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` once the job was cancelled."""
        if self.stopped():
            raise Cancelled

    def begin_cleanup(self) -> None:
        """Do nothing: nobody interrupts this thread, and the job's own must still be stopped."""


@dataclass(eq=False)
class Muted(JobContext):
    """A job that hears nothing of a reply's text: `tell` is called with each token."""

    emit: JobContext
    tell: Callable[[Token], object] = lambda token: None

    def __call__(self, event: Event) -> None:
        """Pass on progress and notices; raises `Cancelled`."""
        if isinstance(event, Token):
            self.tell(event)
        elif isinstance(event, Progress | Notice):
            self.emit(event)
        self.raise_if_cancelled()


class Job(JobContext, Generic[T]):
    """Work on the model thread. Iterate for its events; the iteration raises what the work raised."""

    def __init__(self, work: Callable[[JobContext], T]) -> None:
        self._work: Callable[[JobContext], T] | None = work
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._outcome: Future[T] = Future()
        self._stop = self._shielded = self._settling = False
        self._lock = threading.Lock()
        self._thread = 0  # ident of the thread that runs the work, 0 before and after
        self._stopped_at = self._asked_at = 0.0

    # as the work sees it

    def __call__(self, event: Event) -> None:
        """Send an event; raises `Cancelled` once the job was cancelled."""
        self.raise_if_cancelled()
        self._events.put(event)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` once the job was cancelled, unless it is settling."""
        if self._stop and not self._settling:
            raise Cancelled

    def stopped(self) -> bool:
        """Tell whether the job was cancelled."""
        return self._stop

    @contextmanager
    def uninterruptible(self) -> Iterator[None]:
        """Keep the thread from being interrupted; a cancel takes effect at the end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = self._settling
        self.raise_if_cancelled()

    def begin_cleanup(self) -> None:
        """Do not interrupt the thread from here on."""
        self._shielded = self._settling = True

    # as the main thread sees it

    def cancel(self) -> None:
        """Ask the job to stop; may be called from any thread and more than once."""
        if not self._stop:
            self._stopped_at = self._asked_at = time.monotonic()
            self._stop = True

    def finished(self) -> bool:
        """Tell whether the work has ended and every event was read, or was cancelled and is not worth waiting for."""
        given_up = self._stop and time.monotonic() - self._stopped_at > GIVE_UP_S
        return given_up or (self._outcome.done() and self._events.empty())

    def poll(self, seconds: float = 0.0) -> list[Event]:
        """Return the events that are there, waiting at most `seconds` for the first."""
        events: list[Event] = []
        with suppress(Empty):
            event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
            while True:
                if event is not None:
                    events.append(event)
                event = self._events.get_nowait()
        self.interrupt()
        return events

    def __iter__(self) -> Iterator[Event]:
        while not self.finished():
            yield from self.poll(0.1)
        self.result()

    def result(self) -> T:
        """Return the result of the work, or raise its error; call it when `finished`."""
        if not self._outcome.done():
            raise Cancelled
        return self._outcome.result()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, whatever is told meanwhile; False if it has not come by then."""
        return bool(futures.wait([self._outcome], seconds).done)

    def on_done(self, wake: Callable[[], object]) -> None:
        """Have `wake` called when the work has ended, on its thread; at once where it has."""

        def call(_: object) -> None:
            with suppress(RuntimeError):  # whoever was to be called is gone
                wake()

        self._outcome.add_done_callback(call)

    def interrupt(self) -> None:
        """Interrupt a thread that was asked to stop and has not noticed, unless it is shielded."""
        if not self._stop or time.monotonic() - self._asked_at < INTERRUPT_S:
            return
        with self._lock:  # the thread leaves the work under this lock, so it is never hit outside it
            if self._thread and not self._shielded:
                library.interrupt(self._thread, Cancelled)
                self._asked_at = time.monotonic() + 1.0

    # as the worker sees it

    def run(self) -> None:
        """Do the work on this thread; whatever happens, the reader is told."""
        try:
            self._outcome.set_result(self._run_work())
        except BaseException as error:
            self._outcome.set_exception(strip_traceback(error))
        self._events.put(None)  # wakes a reader

    def _run_work(self) -> T:
        assert self._work is not None
        self._thread = threading.get_ident()
        try:
            self.raise_if_cancelled()
            return self._work(self)
        finally:
            with self._lock:  # an interrupt is sent under this lock: it arrives here at the latest
                self._thread = 0
            self._work = None  # the closure may hold a model


def strip_traceback(error: BaseException) -> BaseException:
    """Drop the frames of an error and of its causes, which would keep a model alive; their text stays in `trace`."""
    error.__dict__["trace"] = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


class Worker:
    """One persistent thread that runs jobs in the order they were started."""

    def __init__(self, name: str = "model") -> None:
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._current: Job[Any] | None = None
        self._thread.start()

    def start(self, work: Callable[[JobContext], T]) -> Job[T]:
        """Queue work; it runs when everything started before it has ended."""
        job = Job(work)
        self._jobs.put(job)
        return job

    def idle(self) -> bool:
        """Tell whether nothing waits for what runs now to end."""
        return self._jobs.empty()

    def close(self, seconds: float = 1.0) -> bool:
        """Cancel what runs and end the thread; False if it is still busy after `seconds`."""
        self._jobs.put(None)
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            if (job := self._current) is not None:
                job.cancel()
                job.interrupt()
            self._thread.join(0.05)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        log.mute_thread()
        while True:
            try:
                job = self._jobs.get()
                if job is None:
                    return
                self._current = job
                job.run()
                self._current = job = None
            except Cancelled:  # an interrupt that arrived just after its job had ended
                continue


class CachedLookup(Generic[T]):
    """A value that is looked up on a thread of its own, and again when it is older than some seconds."""

    def __init__(self, work: Callable[[], T], value: T, seconds: float) -> None:
        self._work = work
        self._value = value
        self._seconds = seconds
        self._stale_at = 0.0
        self._thread: threading.Thread | None = None

    def now(self, patience: float = 0.0) -> T:
        """Return the newest value there is; `patience` is what a new one may take to be waited for."""
        if time.monotonic() > self._stale_at and (self._thread is None or not self._thread.is_alive()):
            self._stale_at = time.monotonic() + self._seconds
            self._thread = threading.Thread(target=self._look, name="lookup", daemon=True)
            self._thread.start()
            self._thread.join(patience)
        return self._value

    def _look(self) -> None:
        self._value = self._work()


def _spawn(work: Callable[[], T]) -> Future[T]:
    """Run work on a thread of its own, which is left to end by itself where nobody waits any longer."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return outcome


def run_isolated(work: Callable[[], T], seconds: float | None = None) -> T:
    """Run work on a thread of its own, whose frames end with it, and wait for it; raises what it raised.

    Raises `TimeoutError` after `seconds`; the thread is left to end by itself then.
    """
    return _spawn(work).result(seconds)


def run_in_thread(work: Callable[[], T], emit: JobContext, seconds: float = 0.0) -> T:
    """Run blocking network work on a thread of its own, so that a cancel is never held up by a silent peer.

    Raises `TimeoutError` after `seconds` (0: none) and `Cancelled` at once; the thread is left to end by itself.
    """
    outcome, deadline = _spawn(work), time.monotonic() + seconds
    while not outcome.done():
        emit.raise_if_cancelled()
        if seconds and time.monotonic() > deadline:
            raise TimeoutError
        futures.wait([outcome], POLL_S)
    emit.raise_if_cancelled()
    return outcome.result()


@contextmanager
def beside(works: Sequence[Callable[[], None]], emit: JobContext) -> Iterator[None]:
    """Run network work on threads of its own while the context does something else, and wait for all of it at the end.

    Works look for a cancel themselves; after one, the job is left alone until they have ended. Raises what one raised.
    """
    outcomes = [_spawn(work) for work in works]
    yield
    while futures.wait(outcomes, POLL_S).not_done:
        if emit.stopped():
            emit.begin_cleanup()
    for outcome in outcomes:
        outcome.result()


def stream_from_thread(
    work: Callable[[Callable[[T], None]], None], emit: JobContext, cut: Callable[[], None], seconds: float = 0.0
) -> Generator[T]:
    """Yield the values that blocking network work passes on, from a thread of its own that `cut` must end.

    Raises what the work raised, `TimeoutError` after `seconds` without anything (0: none), and `Cancelled` at once.
    """
    pieces: SimpleQueue[T | None] = SimpleQueue()

    def run() -> None:
        try:
            work(pieces.put)
        finally:
            pieces.put(None)

    outcome, since = _spawn(run), time.monotonic()
    try:
        while True:
            emit.raise_if_cancelled()
            try:
                piece = pieces.get(timeout=POLL_S)
            except Empty:
                if seconds and time.monotonic() - since > seconds:
                    raise TimeoutError from None
                continue
            if piece is None:
                return outcome.result()
            yield piece
            since = time.monotonic()
    finally:
        cut()
