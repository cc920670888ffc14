"""Models in memory, and the session's settings: whatever fails, what was current is current."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import Recorder

from repl.core.decoding import NOTHING
from repl.core.errors import BadModel, Cancelled, NoMemory, NoModel, UsageError
from repl.core.jobs import JobContext, Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Model, Runtime
from repl.models.memory.available import Room
from repl.models.store import LoadedModel, ModelInfo, Store
from repl.session.change_settings import apply
from repl.session.session import Session

FACTS = ModelInfo("a", "", "", "Fake", 1, 1, "float32", {}, {"": "cpu"}, "", 0, 1, 1, True, NOTHING, 0.0)
HUGE = 1 << 60
GIB = 1 << 30


class Known(LoadedModel[Runtime]):
    """A resident model whose end can be watched."""


class Bring:
    """Loads anything at once, except what it is told to refuse, hold or find huge."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.huge: set[str] = set()
        self.size = 1  # bytes of a model
        self.loads: list[Load] = []
        self.held = threading.Event()
        self.held.set()

    def __call__(self, load: Load, emit: JobContext, offline: bool, make_room: Callable[[int], None]) -> Model:
        self.loads.append(load)
        make_room(HUGE if load.model in self.huge else self.size)
        while not self.held.is_set():
            emit.raise_if_cancelled()
            time.sleep(0.005)
        if load.model in self.refused:
            raise BadModel(f"{load.model} is broken")
        places = {"": "cpu" if load.device == "auto" else load.device}
        facts = replace(FACTS, id=load.model, dtype=load.dtype, bytes=self.size, device_map=places)
        return Known(load, facts, object(), object(), Runtime())


@pytest.fixture
def bring() -> Bring:
    return Bring()


class Machine:
    """A machine with a given amount of memory, taken up by what the store holds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.store: Store

    def __call__(self) -> list[Room]:
        held = sum(resident.facts.bytes for resident in self.store.residents())
        return [Room("cpu", self.total, self.total - held)]


def on_machine(bring: Bring, total: int) -> Store:
    machine = Machine(total)
    machine.store = Store(Runtime, bring=bring, measure=machine)
    return machine.store


@pytest.fixture
def store(bring: Bring) -> Store:
    return on_machine(bring, 64 * GIB)


def names(store: Store) -> list[str]:
    return [resident.facts.id for resident in store.residents()]


@pytest.fixture
def session(store: Store) -> Iterator[Session]:
    made = Session(Settings(), store, Worker())
    yield made
    assert made.close(30)


def finish(task: Any) -> Any:
    while not task.job.finished():
        task.job.poll(0.01)
    return task.settle()


def test_nothing_is_resident_at_first(store: Store) -> None:
    assert store.facts() is None
    with pytest.raises(NoModel):
        store.current()


@pytest.mark.parametrize(("way", "id"), [(Store.load, "b"), (Store.reload, "a")])
def test_a_failed_load_leaves_the_model_that_was_there(
    way: Callable[[Store, Load, Recorder], None], id: str, store: Store, bring: Bring, emit: Recorder
) -> None:
    """Of another model, and of the same one read anew."""
    store.load(Load("a"), emit)
    resident = store.current()
    bring.refused.add(id)
    with pytest.raises(BadModel):
        way(store, Load(id), emit)
    assert store.current() is resident


@pytest.mark.slow
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
    assert [facts.id for facts in store.drop()] == ["a"]
    with pytest.raises(NoModel):
        store.drop()


def test_models_stay_and_a_switch_loads_nothing(store: Store, bring: Bring, emit: Recorder) -> None:
    """A model that is resident is current again at once: the same object, with the cache of its last text."""
    store.load(Load("a"), emit)
    first = store.current()
    store.load(Load("b"), emit)
    store.load(Load("a"), emit)
    assert store.current() is first
    assert [load.model for load in bring.loads] == ["a", "b"]
    assert names(store) == ["a", "b"]


def test_every_way_of_loading_a_model_is_one_of_its_own(store: Store, bring: Bring, emit: Recorder) -> None:
    for dtype in ("float32", "bfloat16", "float32"):
        store.load(Load("a", dtype=dtype), emit)
    assert [load.dtype for load in bring.loads] == ["float32", "bfloat16"]


def test_the_least_recently_used_goes_first(store: Store, emit: Recorder) -> None:
    store.keep = lambda: 2
    for name in ("a", "b", "a", "c"):
        store.load(Load(name), emit)
    assert names(store) == ["c", "a"]


def test_with_one_model_to_keep_a_switch_frees_the_other(store: Store, emit: Recorder) -> None:
    store.keep = lambda: 1
    store.load(Load("a"), emit)
    store.load(Load("b"), emit)
    assert names(store) == ["b"]


def test_models_stay_only_while_they_fit(bring: Bring, emit: Recorder) -> None:
    """Three of 3 GiB on a machine of 9 GiB: with what a reply takes two fit."""
    bring.size = 3 * GIB
    store = on_machine(bring, 9 * GIB)
    for name in ("a", "b", "c"):
        store.load(Load(name), emit)
    assert names(store) == ["c", "b"]


def test_mapped_weights_count_although_the_system_calls_them_free(bring: Bring, emit: Recorder) -> None:
    bring.size = 3 * GIB
    store = Store(Runtime, bring=bring, measure=lambda: [Room("cpu", 10 * GIB, 10 * GIB)])
    for name in ("a", "b", "c", "d"):
        store.load(Load(name), emit)
    assert names(store) == ["d", "c", "b"]


def test_a_model_on_another_device_does_not_have_to_go(bring: Bring, emit: Recorder) -> None:
    """A GPU that is full is no reason to free what lies in the processor's memory."""
    bring.size = 3 * GIB
    store = Store(Runtime, bring=bring, measure=lambda: [Room("cpu", 64 * GIB, 64 * GIB), Room("cuda:0", 8 * GIB, GIB)])
    store.load(Load("a", device="cpu"), emit)
    store.load(Load("b", device="cuda:0"), emit)
    store.load(Load("c", device="cuda:0"), emit)
    assert names(store) == ["c", "a"]


def test_getting_a_model_leaves_the_current_one_current(store: Store, bring: Bring, emit: Recorder) -> None:
    store.load(Load("a"), emit)
    current = store.current()
    other = store.get(Load("b"), emit)
    assert (other.facts.id, store.current()) == ("b", current)
    assert store.get(Load("b"), emit) is other
    assert store.get(Load("a"), emit) is current
    assert [load.model for load in bring.loads] == ["a", "b"]


def test_getting_counts_as_use_and_never_frees_the_current_one(store: Store, emit: Recorder) -> None:
    store.keep = lambda: 1
    store.load(Load("a"), emit)
    store.get(Load("b"), emit)
    assert names(store) == ["b", "a"]
    store.get(Load("c"), emit)
    assert names(store) == ["c", "a"]
    store.trim()
    assert names(store) == ["a"]


def test_getting_what_does_not_fit_beside_the_current_one_is_refused(bring: Bring, emit: Recorder) -> None:
    bring.size = 3 * GIB
    store = on_machine(bring, 5 * GIB)
    store.load(Load("a"), emit)
    with pytest.raises(NoMemory, match="not enough memory for b and a together"):
        store.get(Load("b"), emit)
    assert names(store) == ["a"]


@pytest.mark.parametrize("how", ["refused", "cancelled"])
def test_getting_that_fails_changes_nothing(store: Store, bring: Bring, emit: Recorder, how: str) -> None:
    store.load(Load("a"), emit)
    bring.refused.add("b")
    if how == "cancelled":
        emit.cancel()
        bring.held.clear()
    with pytest.raises((BadModel, Cancelled)):
        store.get(Load("b"), emit)
    assert names(store) == ["a"]
    assert store.current().facts.id == "a"


def test_reading_anew_replaces_the_one_in_memory(store: Store, bring: Bring, emit: Recorder) -> None:
    store.load(Load("a"), emit)
    before = store.current()
    store.reload(Load("a"), emit)
    assert store.current() is not before
    assert names(store) == ["a"]
    assert len(bring.loads) == 2


def test_one_of_several_is_freed_by_name(store: Store, emit: Recorder) -> None:
    for name in ("a", "b", "c"):
        store.load(Load(name), emit)
    assert [facts.id for facts in store.drop("b")] == ["b"]
    assert names(store) == ["c", "a"]
    with pytest.raises(NoModel, match="'b' is not in memory; in memory: c, a"):
        store.drop("b")
    store.drop()
    assert store.facts() is None
    assert names(store) == ["a"]


def test_what_is_freed_leaves_memory_at_once(store: Store, emit: Recorder) -> None:
    """Nothing else holds on to a model: not the store, not the job that loaded it."""
    alive = []
    for name in ("a", "b", "c"):
        store.load(Load(name), emit)
        alive.append(weakref.ref(store.current()))
    store.drop("a")
    store.drop()
    assert [each() is None for each in alive] == [True, False, True]


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


def test_switching_to_a_resident_model_is_no_background_work(session: Session) -> None:
    """The prompt need not come back first: it is over at once."""
    for name, background in (("a", True), ("b", True), ("a", False)):
        task = session.load(session.settings.put("model", name, "you"))
        assert task.background is background
        finish(task)
    assert session.settings.load.model == "a"
    assert session.facts().id == "a"


def test_what_may_stay_is_a_setting_that_frees_at_once(session: Session) -> None:
    for name in ("a", "b", "c"):
        finish(session.load(session.settings.put("model", name, "you")))
    assert apply(session, [("keep_models", "1")]).text == "keep_models 1"
    finish(session.run_on_model(lambda emit: None))
    assert names(session.store) == ["c"]
    assert apply(session, [("keep_models", "auto")]).text == "keep_models auto"
    with pytest.raises(UsageError, match="keep_models '0' is not auto or a whole number"):
        apply(session, [("keep_models", "0")])


def test_without_a_model_a_message_is_refused(session: Session) -> None:
    with pytest.raises(NoModel):
        session.require_local_model()
