"""As many threads as pay, on a clock that is told how long steps take."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from repl.generation.decode import threads
from repl.generation.decode.threads import Threads

CPU = SimpleNamespace(device=SimpleNamespace(type="cpu"))
QUIET = {2: 0.04, 1: 0.06}
BUSY = {2: 0.4, 1: 0.065}


class Machine:
    """A clock, and how long a step takes with so many threads; notes the threads that every step began with."""

    def __init__(self, all_: int = 2, layers: int = 30) -> None:
        self.now, self.threads, self.used = 0.0, all_, list[int]()
        self.layers = layers
        self.other = 0.0  # seconds that other processes took, and how many at once
        self.many = 0.0
        self.minded = Threads(lambda: self.threads, self.put, lambda: self.now, lambda: self.other)

    def put(self, count: int) -> None:
        self.threads = count

    def reply(self, steps: int, seconds: Callable[[int, int], float], model: Any = CPU) -> list[int]:
        """Make a reply; returns the threads of its steps."""
        begun = len(self.used)
        with self.minded.minded(model):
            for number in range(steps):
                with self.minded.step():
                    self.used.append(self.threads)
                    for _ in range(self.layers):
                        self.minded.hurry()
                        passed = seconds(number, self.threads) / self.layers
                        self.now, self.other = self.now + passed, self.other + passed * self.many
        return self.used[begun:]

    def took(self, steps: int, seconds: Callable[[int, int], float]) -> float:
        """Return the seconds that a reply takes."""
        before = self.now
        self.reply(steps, seconds)
        return self.now - before


def always(table: dict[int, float]) -> Callable[[int, int], float]:
    return lambda _, count: table[count]


def test_a_quiet_machine_keeps_all_threads_after_one_trial():
    machine = Machine()
    used = machine.reply(400, always(QUIET))
    assert used == [1] * threads.LEARN + [2] * (400 - threads.LEARN)
    assert machine.reply(400, always(QUIET)) == [2] * 400
    assert machine.minded.said() == ""


@pytest.mark.parametrize("busy", [0.08, 0.15, 0.4, 1.2, 4.0])
@pytest.mark.parametrize("steps", [32, 128, 1000])
def test_beside_a_busy_process_a_reply_loses_little_against_fewer_threads(busy, steps):
    """However slow all threads become: what finding out costs is a few steps, and more of them the longer it lasts."""
    machine = Machine()
    machine.took(100, always(QUIET))
    table = {2: busy, 1: 0.06}
    assert machine.took(steps, always(table)) <= 0.06 * (steps * 1.05 + 5)
    assert machine.took(steps, always(table)) <= 0.06 * (steps * 1.05 + 2)
    assert machine.threads == 2  # other work has them all


def test_a_busy_machine_gets_fewer_threads_soon_and_says_so():
    machine = Machine()
    machine.reply(100, always(QUIET))
    used = machine.reply(1000, always(BUSY))
    assert used.index(1) == 1
    assert machine.minded.said() == "another process is busy: 1 of 2 threads write faster"


def test_a_step_of_a_model_whose_layers_are_not_told_is_given_up_at_its_end():
    machine = Machine(layers=1)
    machine.reply(100, always(QUIET))
    assert machine.reply(60, always(BUSY)).count(2) <= 5


def test_it_is_busy_from_the_very_first_step():
    """Nothing is known of a quiet time then: fewer threads go first, so the trial itself tells."""
    machine = Machine()
    assert machine.reply(60, always(BUSY)).count(2) <= 4


def test_all_threads_come_back_when_it_is_quiet_again():
    machine = Machine()
    machine.reply(100, always(QUIET))
    machine.reply(128, always(BUSY))
    used = machine.reply(300, always(QUIET))
    assert used[0] == 1
    assert used[-100:] == [2] * 100


def test_the_end_of_a_busy_process_is_seen_at_once():
    """What others take is looked at while fewer threads are in use; one trial follows, whatever it brings."""
    machine = Machine()
    machine.reply(100, always(QUIET))
    machine.many = 1.0
    machine.reply(300, always(BUSY))
    machine.many = 0.0
    used = machine.reply(100, always(QUIET))
    assert used[0] == 1
    assert used[20:] == [2] * 80
    machine.many = 1.0
    machine.reply(300, always(BUSY))
    machine.many = 0.0
    assert machine.reply(100, always(BUSY)).count(2) <= 2


def test_a_prompt_is_read_with_the_threads_that_the_last_reply_ended_with():
    """But with all of them where nobody else was at work since then, and in the first reply of a model."""
    machine = Machine()

    def reading() -> int:
        with machine.minded.minded(CPU):
            return machine.threads

    assert reading() == 2
    machine.reply(100, always(QUIET))
    machine.many = 1.0
    machine.reply(300, always(BUSY))
    machine.now, machine.other = machine.now + 5, machine.other + 5
    assert reading() == 1
    machine.now += 5
    assert reading() == 2


def test_trials_in_vain_become_rare():
    """It never flaps: beside a process that stays busy, all threads are tried less and less often."""
    machine = Machine()
    used = machine.reply(4000, always(BUSY))
    switches = [number for number in range(1, 4000) if (used[number - 1], used[number]) == (1, 2)]
    gaps = [later - earlier for earlier, later in pairwise(switches)]
    assert len(switches) <= 24
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("every", [30, 100])
def test_single_slow_steps_cost_little_more_than_themselves(every):
    def disturbed(number: int, count: int) -> float:
        return QUIET[count] * (8 if number % every == 0 else 1)

    machine = Machine()
    machine.reply(40, always(QUIET))
    alone = sum(disturbed(number, 2) for number in range(900))
    assert machine.took(900, disturbed) <= 1.15 * alone


def test_short_steps_other_devices_and_one_thread_are_left_alone():
    machine = Machine()
    assert set(machine.reply(100, lambda *_: threads.SHORT / 2)[threads.LEARN :]) == {2}
    cuda = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    assert set(machine.reply(100, always(BUSY), cuda)) == {2}
    assert set(Machine(1).reply(100, always(BUSY))) == {1}


def test_an_error_gives_all_threads_back():
    machine = Machine()
    machine.reply(60, always(BUSY))
    used = len(machine.used)

    def fail(_: int, __: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        machine.reply(1, fail)
    assert machine.used[used:] == [1]
    assert machine.threads == 2
