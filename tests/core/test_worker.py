"""Laws of the model thread: order, errors, cancel, shield, settle, and what comes after."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repl.core.errors import Cancelled, ReplError
from repl.core.events import Notice, Progress
from repl.core.jobs import (
    GIVE_UP_S,
    INTERRUPT_S,
    Job,
    JobContext,
    Worker,
    run_in_thread,
    stream_from_thread,
    strip_traceback,
)

HANG = 20.0  # seconds after which a test that waits has failed


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A model thread that is ended afterwards."""
    worker = Worker()
    yield worker
    worker.close()


def spin(_: JobContext) -> None:
    """Compute without ever looking up, as a library does."""
    while True:
        sum(range(1000))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def started(worker: Worker, work: Callable[[JobContext], Any]) -> Job[Any]:
    """Start work and wait until it runs."""
    running = threading.Event()

    def begin(emit: JobContext) -> Any:
        running.set()
        return work(emit)

    job = worker.start(begin)
    assert running.wait(HANG)
    return job


def end(job: Job[Any]) -> None:
    """Read a job to its end, as the shell does."""
    until(lambda: job.poll(0.01) is not None and job.finished())


def test_events_arrive_in_order_and_the_value_after_them(worker: Worker) -> None:
    def work(emit: JobContext) -> str:
        for number in range(100):
            emit(Progress("count", number))
        return "all"

    job = worker.start(work)
    assert [event.done for event in job if isinstance(event, Progress)] == list(range(100))
    assert job.result() == "all"


def test_jobs_run_one_after_the_other_in_the_order_they_were_started(worker: Worker) -> None:
    seen: list[int] = []
    jobs = [worker.start(lambda _, number=number: seen.append(number)) for number in range(20)]  # type: ignore[misc]
    for job in jobs:
        end(job)
    assert seen == list(range(20))


@pytest.mark.parametrize(
    "error", [ValueError("x"), ReplError("x"), SystemExit(3), KeyboardInterrupt(), BaseException()]
)
def test_whatever_the_work_raises_reaches_the_reader(worker: Worker, error: BaseException) -> None:
    """After the events before it, whatever its kind; the thread lives on."""

    def work(emit: JobContext) -> None:
        emit(Notice("before"))
        raise error

    job = worker.start(work)
    seen = []
    with pytest.raises(type(error)) as caught:
        seen += list(iter(job))
    assert caught.value is error
    end(after := worker.start(lambda _: "next"))
    assert after.result() == "next"


def test_events_before_an_error_are_not_lost(worker: Worker) -> None:
    def work(emit: JobContext) -> None:
        emit(Notice("before"))
        raise ValueError

    job = worker.start(work)
    until(lambda: job.wait(0))
    assert job.poll() == [Notice("before")]
    assert job.finished()


def test_an_error_keeps_its_words_but_none_of_its_frames(worker: Worker) -> None:
    """A frame would keep the model in memory; the log needs the traceback."""

    class Model:
        """Stands for gigabytes."""

    kept: list[weakref.ref[Model]] = []

    def work(emit: JobContext) -> None:
        model = Model()
        kept.append(weakref.ref(model))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    job = worker.start(work)
    end(job)
    with pytest.raises(ValueError, match="outer") as caught:
        job.result()
    assert "KeyError" in caught.value.__dict__["trace"]
    del caught, job
    gc.collect()
    assert kept[0]() is None


def test_bare_is_for_every_link_of_the_chain() -> None:
    try:
        try:
            raise KeyError
        except KeyError as error:
            raise ValueError from error
    except ValueError as error:
        found = strip_traceback(error)
    assert found.__traceback__ is None
    assert found.__cause__ is not None
    assert found.__cause__.__traceback__ is None


def test_a_cancel_is_raised_where_the_work_speaks(worker: Worker) -> None:
    def work(emit: JobContext) -> None:
        while True:
            emit(Notice("tick"))
            time.sleep(0.001)

    job = started(worker, work)
    job.cancel()
    end(job)
    with pytest.raises(Cancelled):
        job.result()


def test_a_cancel_reaches_a_loop_that_never_looks(worker: Worker) -> None:
    """The thread is interrupted once it had its chance."""
    job = started(worker, spin)
    job.cancel()
    job.cancel()  # more than once does no harm
    until(lambda: job.poll(0.01) is not None and job.wait(0))
    with pytest.raises(Cancelled):
        job.result()


@pytest.mark.slow
def test_an_interrupted_thread_serves_the_next_job(worker: Worker) -> None:
    """And is not hit by a second, late interrupt."""
    for round_ in range(5):
        job = started(worker, spin)
        job.cancel()
        end(job)
        end(after := worker.start(lambda _: sum(range(200_000))))
        assert after.result() == 19999900000, f"round {round_}"


def test_a_job_cancelled_before_its_turn_never_begins(worker: Worker) -> None:
    gate, touched = threading.Event(), []
    first = worker.start(lambda _: gate.wait(HANG))
    second = worker.start(lambda _: touched.append(1))
    second.cancel()
    gate.set()
    end(first)
    until(lambda: second.wait(0))
    assert not touched
    with pytest.raises(Cancelled):
        second.result()


@pytest.mark.slow
def test_a_shield_holds_an_interrupt_back_until_its_end(worker: Worker) -> None:
    """What must be whole is whole; the cancel counts right after it."""
    done: list[str] = []

    def work(emit: JobContext) -> None:
        with emit.uninterruptible():
            deadline = time.monotonic() + 3 * INTERRUPT_S
            while time.monotonic() < deadline:
                sum(range(100))
            done.append("whole")
        done.append("too far")

    job = started(worker, work)
    job.cancel()
    until(lambda: job.poll(0.01) is not None and job.wait(0))
    assert done == ["whole"]
    with pytest.raises(Cancelled):
        job.result()


def test_settled_work_is_left_alone_and_its_value_counts(worker: Worker) -> None:
    """A reply that noticed the cancel puts its partial text in order."""

    def work(emit: JobContext) -> str:
        until(emit.stopped)
        emit.begin_cleanup()
        deadline = time.monotonic() + 3 * INTERRUPT_S
        while time.monotonic() < deadline:
            emit.raise_if_cancelled()
        emit(Notice("rest"))
        return "partial"

    job = started(worker, work)
    job.cancel()
    seen = []
    until(lambda: seen.extend(job.poll(0.01)) or job.finished())
    assert seen == [Notice("rest")]
    assert job.result() == "partial"


def test_a_cancelled_job_that_cannot_be_interrupted_is_given_up(worker: Worker) -> None:
    """Nobody waits for an import longer than the grace; what runs next waits for it."""
    gate = threading.Event()

    def work(emit: JobContext) -> str:
        with emit.uninterruptible():
            gate.wait(HANG)
        return "never mind"

    job = started(worker, work)
    job.cancel()
    assert not job.finished()
    began = time.monotonic()
    end(job)
    assert time.monotonic() - began > GIVE_UP_S / 2
    with pytest.raises(Cancelled):
        job.result()
    after = worker.start(lambda _: "next")
    assert not after.finished()
    gate.set()
    end(after)
    assert after.result() == "next"


def test_close_ends_the_thread_whatever_runs() -> None:
    worker = Worker()
    assert worker.close()
    busy = Worker()
    job = started(busy, spin)
    assert busy.close(HANG)
    end(job)
    with pytest.raises(Cancelled):
        job.result()


def test_close_says_when_the_thread_is_stuck() -> None:
    worker, gate = Worker(), threading.Event()

    def work(emit: JobContext) -> None:
        with emit.uninterruptible():
            gate.wait(HANG)

    started(worker, work)
    assert not worker.close(0.1)
    gate.set()


def test_the_closure_is_dropped_when_the_work_has_ended(worker: Worker) -> None:
    """It may hold a model."""

    class Model:
        """Stands for gigabytes."""

    model = Model()
    seen = weakref.ref(model)
    job = worker.start(lambda _, model=model: None)  # type: ignore[misc]
    end(job)
    del model
    until(lambda: gc.collect() is not None and seen() is None)


def test_polling_does_not_wait_unless_told(worker: Worker) -> None:
    gate = threading.Event()
    job = worker.start(lambda _: gate.wait(HANG))
    assert job.poll() == []
    assert not job.finished()
    gate.set()
    end(job)


def test_aside_returns_what_the_work_returns_and_raises_what_it_raises(emit: Any) -> None:
    def fails() -> None:
        raise OSError("gone")

    assert run_in_thread(lambda: 7, emit) == 7
    with pytest.raises(OSError, match="gone"):
        run_in_thread(fails, emit)


def test_aside_does_not_wait_for_a_silent_peer(worker: Worker, emit: Any) -> None:
    """Neither past its time, nor past a cancel."""
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        run_in_thread(lambda: gate.wait(HANG), emit, 0.1)
    job = started(worker, lambda emit: run_in_thread(lambda: gate.wait(HANG), emit))
    job.cancel()
    until(lambda: job.wait(0))
    with pytest.raises(Cancelled):
        job.result()
    gate.set()


def test_network_work_that_flows_is_left_at_once(worker: Worker) -> None:
    """What it hands over arrives in order; a cancel does not wait for it, and cuts it."""
    cut = threading.Event()

    def work(put: Callable[[int], None]) -> None:
        put(1)
        put(2)
        cut.wait(HANG)

    heard: list[int] = []

    def read(emit: JobContext) -> None:
        for number in stream_from_thread(work, emit, cut.set):
            heard.append(number)
            emit(Notice(str(number)))

    job = worker.start(read)
    while len(heard) < 2:
        job.poll(0.01)
    job.cancel()
    with pytest.raises(Cancelled):
        list(job)
    assert (heard, cut.is_set()) == ([1, 2], True)


def test_network_work_that_flows_raises_what_it_raised(worker: Worker) -> None:
    def work(put: Callable[[int], None]) -> None:
        put(1)
        raise ConnectionError("gone")

    job = worker.start(lambda emit: list(stream_from_thread(work, emit, lambda: None)))
    with pytest.raises(ConnectionError, match="gone"):
        list(job)
