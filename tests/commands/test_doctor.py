"""The doctor: true figures, no secrets, and an end within seconds."""

import time
from collections.abc import Iterator

import pytest
from conftest import Recorder
from driving import run
from fakehub import FakeHub, Fault
from rich.console import Console

from repl.analysis.matmul_speed import MatmulSpeed, advice, measure_speeds
from repl.commands.doctor import Doctor
from repl.core.errors import Cancelled
from repl.core.events import Progress
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session
from repl.terminal.screen import THEME, render, to_jsonable

SECRET = "hf_" + "x" * 30


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Settings(), Store(Runtime), Worker())
    yield made
    assert made.close(30)


def drawn(result: Doctor) -> str:
    console = Console(width=100, no_color=True, theme=THEME)
    with console.capture() as text:
        console.print(render(result))
    return text.get()


def test_the_doctor_finds_what_is_there(fake_hub: FakeHub, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token of which only its being there is told."""
    import torch

    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = run(session, "/doctor")
    assert isinstance(found, Doctor)
    assert torch.__version__.startswith(found.versions["torch"])  # a wheel for CUDA has "+cu130" behind it
    assert found.threads == torch.get_num_threads()
    assert {speed.dtype for speed in found.speeds} >= {"float32", "bfloat16"}
    assert all(speed.reading > 0 and speed.replying > 0 for speed in found.speeds)
    assert found.hub.startswith(f"answers at {fake_hub.url}")
    assert found.token
    text = drawn(found)
    assert SECRET not in text + str(to_jsonable(found))
    assert "GFLOP/s" in text
    assert text.count("torchao") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("offline", "said"), [(True, "not checked"), (False, "does not answer")])
def test_a_hub_that_says_nothing_is_not_waited_for(fake_hub: FakeHub, offline: bool, said: str) -> None:
    fake_hub.fault = Fault(silent=True)
    made = Session(Settings(), Store(Runtime, offline=offline), Worker())
    began = time.monotonic()
    found = run(made, "/doctor")
    assert time.monotonic() - began < 30
    assert found.hub.startswith(said)
    assert not found.token
    assert bool(fake_hub.requests) is not offline
    made.close()


def test_a_measurement_can_be_stopped(emit: Recorder) -> None:
    emit.until = lambda event: isinstance(event, Progress) and "bfloat16" in event.stage
    with pytest.raises(Cancelled):
        measure_speeds(emit)


@pytest.mark.parametrize(
    ("prompt", "reply", "hint"),
    [(0.25, 0.5, "4.0 times slower"), (0.25, 1.5, "prefill is 4.0 times slower"), (2.0, 2.0, "2.0 times as fast")],
)
def test_the_advice_is_what_was_measured(prompt: float, reply: float, hint: str) -> None:
    speeds = [MatmulSpeed("float32", "cpu", 10.0, 10.0), MatmulSpeed("bfloat16", "cpu", 10 * prompt, 10 * reply)]
    (said,) = advice(speeds)
    assert hint in said
    assert advice(speeds[:1]) == []
