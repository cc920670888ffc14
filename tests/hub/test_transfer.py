"""Calls of the Hub's library report, stop and keep quiet."""

import logging

import pytest
from conftest import Recorder

from repl.core.errors import Cancelled
from repl.core.events import Progress
from repl.hub.download import DownloadProgress, call_hub, prepare

SIZES = {"a": 1_500_000, "b": 3_000_000_000, "c": 0}


def steps(emit: Recorder) -> list[tuple[int, int]]:
    return [(event.done, event.total) for event in emit.of(Progress)]


def test_a_meter_adds_the_files_up(emit):
    meter = DownloadProgress(emit, SIZES)
    assert meter.plan(["a", "b"]) == 3_001_500_000
    for name, counts in {"a": [500_000, 1_000_000], "b": [10]}.items():
        with meter.begin(name)(total=SIZES[name], unit="B", desc=name) as bar:
            for count in counts:
                bar.update(count)
                bar.update_transfer(count)
        meter.end()
    total = 3_001_500_000
    assert steps(emit) == [(n, total) for n in (500_000, 1_500_000, 1_500_000, 1_500_010, total)]


def test_a_file_that_needed_no_transfer_counts_as_done(emit):
    meter = DownloadProgress(emit, SIZES)
    meter.plan(["a", "c"])
    for name in ("a", "c"):
        meter.begin(name)
        meter.end()
    assert steps(emit) == [(1_500_000, 1_500_000)] * 2


def test_a_meter_without_a_plan_is_silent_and_still_stops(emit):
    bar = DownloadProgress(emit, SIZES).begin("a")()
    bar.update(5)
    emit.cancel()
    with pytest.raises(Cancelled):
        bar.update(5)
    assert emit.events == []


def test_nothing_is_raised_where_xet_calls_from_rust(emit):
    bar = DownloadProgress(emit, SIZES).begin("a")(bar_format="{bar}")
    emit.cancel()
    bar.update(5)
    assert bar.n == 5


def test_it_says_how_far_a_file_came(emit):
    meter = DownloadProgress(emit, SIZES)
    meter.begin("a")().update(1_000_000)
    assert meter.stopped() == "the download of a stopped at 1.0 of 1.5 MB and will restart"
    meter.begin("b")().update(2_125_000_000)
    assert meter.stopped() == "the download of b stopped at 2,125.0 of 3,000.0 MB and will restart"
    meter.begin("c")
    assert meter.stopped() == "the download of c stopped at 0.0 of 0.0 MB and will restart"


def test_the_log_of_the_library_stays_off_the_terminal(emit, capfd, caplog):
    prepare(emit)
    prepare(emit)
    logger = logging.getLogger("huggingface_hub.file_download")
    call_hub(lambda: logger.warning("retrying"), emit)
    logger.warning("said on another thread")
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records] == ["retrying", "said on another thread"]


def test_waiting_for_a_busy_hub_is_said(emit):
    """The library waits in silence where it is told to come back later."""
    prepare(emit)
    call_hub(lambda: logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s [Retry 4/5]."), emit)
    assert Progress("waiting for the Hub") in emit.events


def test_a_call_that_was_left_ends_when_it_logs(emit):
    from threading import Event

    prepare(emit)
    waiting, ended, logged = Event(), Event(), Event()

    def work() -> None:
        try:
            waiting.wait(30)
            logging.getLogger("huggingface_hub.utils").warning("trying again")
            logged.set()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        call_hub(work, emit, 0.1)
    waiting.set()
    assert ended.wait(30)
    assert not logged.is_set()
