"""One model in memory, and the session's settings: whatever fails, what was there is there."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import Recorder

from repl.decoding import NOTHING
from repl.errors import BadModel, Cancelled, NoModel
from repl.loading import Facts, Resident
from repl.session import Session
from repl.settings import Load, Settings
from repl.store import Store
from repl.worker import Emit, Worker

FACTS = Facts("a", "", "", "Fake", 1, 1, "float32", {}, {"": "cpu"}, "", 0, 1, 1, True, NOTHING, 0.0)
HUGE = 1 << 60


class Bring:
    """Loads anything at once, except what it is told to refuse, hold or find huge."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.huge: set[str] = set()
        self.loads: list[Load] = []
        self.held = threading.Event()
        self.held.set()

    def __call__(self, load: Load, emit: Emit, offline: bool, make_room: Callable[[int], None]) -> Resident:
        self.loads.append(load)
        make_room(HUGE if load.model in self.huge else 1)
        while not self.held.is_set():
            emit.check()
            time.sleep(0.005)
        if load.model in self.refused:
            raise BadModel(f"{load.model} is broken")
        return Resident(load, replace(FACTS, id=load.model, dtype=load.dtype), object(), object())


@pytest.fixture
def bring() -> Bring:
    return Bring()


@pytest.fixture
def store(bring: Bring) -> Store:
    return Store(bring=bring)


@pytest.fixture
def session(store: Store) -> Iterator[Session]:
    made = Session(Settings(), store, Worker())
    yield made
    assert made.close()


def finish(task: Any) -> Any:
    while not task.job.finished():
        task.job.poll(0.01)
    return task.settle()


def test_nothing_is_resident_at_first(store: Store) -> None:
    assert store.facts() is None
    with pytest.raises(NoModel):
        store.current()


def test_a_failed_load_leaves_the_model_that_was_there(store: Store, bring: Bring, emit: Recorder) -> None:
    store.load(Load("a"), emit)
    resident = store.current()
    bring.refused.add("b")
    with pytest.raises(BadModel):
        store.load(Load("b"), emit)
    assert store.current() is resident


def test_where_both_do_not_fit_the_old_one_goes_first_and_comes_back(
    store: Store, bring: Bring, emit: Recorder
) -> None:
    store.load(Load("a"), emit)
    bring.refused.add("b")
    bring.huge.add("b")
    with pytest.raises(BadModel, match="b is broken"):
        store.load(Load("b"), emit)
    assert store.current().load == Load("a")
    assert [load.model for load in bring.loads] == ["a", "b", "a"]


def test_a_cancelled_load_leaves_the_model_that_was_there(store: Store, emit: Recorder) -> None:
    store.load(Load("a"), emit)
    resident = store.current()
    emit.cancel()
    with pytest.raises(Cancelled):
        store.load(Load("b"), emit)
    assert store.current() is resident


def test_dropping_frees_and_says_what(store: Store, emit: Recorder) -> None:
    store.load(Load("a"), emit)
    assert store.drop(emit).id == "a"
    with pytest.raises(NoModel):
        store.drop(emit)


def test_settings_follow_a_load_only_when_it_succeeds(session: Session, bring: Bring) -> None:
    finish(session.load(session.settings.put("model", "a", "you")))
    before = session.settings
    bring.refused.add("b")
    task = session.load(session.settings.put("model", "b", "you").put("dtype", "bfloat16", "you"))
    with pytest.raises(BadModel):
        finish(task)
    assert session.settings == before
    assert session.loading is None
    assert session.facts().id == "a"


def test_a_change_while_loading_builds_on_what_is_wanted(session: Session, bring: Bring) -> None:
    """The first load is cancelled; the second carries both changes."""
    bring.held.clear()
    first = session.load(session.settings.put("model", "a", "you"))
    second = session.load(session.pending().put("dtype", "bfloat16", "you"))
    bring.held.set()
    with pytest.raises(Cancelled):
        finish(first)
    finish(second)
    assert (session.settings.load.model, session.settings.load.dtype) == ("a", "bfloat16")
    assert session.loading is None


def test_decoding_changed_while_loading_is_kept(session: Session, bring: Bring) -> None:
    bring.held.clear()
    task = session.load(session.settings.put("model", "a", "you"))
    session.settings = session.settings.put("temperature", 0.5, "you")
    bring.held.set()
    finish(task)
    assert session.settings.decode.temperature == 0.5
    assert session.settings.origins == {"model": "you", "temperature": "you"}


def test_a_cancelled_load_changes_nothing(session: Session, bring: Bring) -> None:
    finish(session.load(session.settings.put("model", "a", "you")))
    before = session.settings
    bring.held.clear()
    task = session.load(session.settings.put("model", "b", "you"))
    task.job.cancel()
    with pytest.raises(Cancelled):
        finish(task)
    assert session.settings == before
    assert session.facts().id == "a"


def test_without_a_model_a_message_is_refused(session: Session) -> None:
    with pytest.raises(NoModel):
        session.ready()
