"""As many threads as pay, on a clock that is told how long steps take."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from repl import threads
from repl.threads import Threads

CPU = SimpleNamespace(device=SimpleNamespace(type="cpu"))
QUIET = {2: 0.04, 1: 0.06}
BUSY = {2: 0.4, 1: 0.065}


class Machine:
    """A clock, and how long a step takes with so many threads; notes the threads of every step."""

    def __init__(self, all_: int = 2) -> None:
        self.now, self.threads, self.used = 0.0, all_, list[int]()
        self.minded = Threads(lambda: self.threads, self.put, lambda: self.now)

    def put(self, count: int) -> None:
        self.threads = count

    def reply(self, steps: int, seconds: Callable[[int, int], float], model: Any = CPU) -> list[int]:
        """Make a reply; returns the threads of its steps."""
        begun = len(self.used)
        with self.minded.minded(model):
            for number in range(steps):
                self.used.append(self.threads)
                with self.minded.step():
                    self.now += seconds(number, self.threads)
        return self.used[begun:]


def always(table: dict[int, float]) -> Callable[[int, int], float]:
    return lambda _, count: table[count]


def test_a_quiet_machine_keeps_all_threads_after_one_trial():
    machine = Machine()
    used = machine.reply(400, always(QUIET))
    assert used.count(1) == threads.TRIAL
    assert machine.reply(400, always(QUIET)) == [2] * 400
    assert machine.minded.said() == ""


def test_a_busy_machine_gets_fewer_threads_soon_and_never_falls_under_half():
    machine = Machine()
    machine.reply(100, always(QUIET))
    before = machine.now
    used = machine.reply(1000, always(BUSY))
    assert used.index(1) <= threads.SUDDEN
    assert 1000 / (machine.now - before) > 0.5 / QUIET[2]
    assert machine.minded.said() == "another process is busy: 1 of 2 threads write faster"
    assert machine.threads == 2  # other work has them all


def test_it_is_busy_from_the_very_first_step():
    """Nothing is known of a quiet time then: the trial itself tells."""
    machine = Machine()
    assert machine.reply(60, always(BUSY))[-20:] == [1] * 20


def test_all_threads_come_back_when_it_is_quiet_again():
    machine = Machine()
    machine.reply(100, always(BUSY))
    used = machine.reply(1200, always(QUIET))
    assert used[0] == 1
    assert used[-200:] == [2] * 200


def test_trials_in_vain_become_rare():
    """It never flaps: beside a process that stays busy, all threads are tried less and less often."""
    machine = Machine()
    used = machine.reply(4000, always(BUSY))
    switches = [number for number in range(1, 4000) if (used[number - 1], used[number]) == (1, 2)]
    gaps = [later - earlier for earlier, later in pairwise(switches)]
    assert len(switches) <= 8
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("every", [5, 9, 30])
def test_single_slow_steps_change_nothing(every):
    machine = Machine()
    machine.reply(40, always(QUIET))
    used = machine.reply(300, lambda number, count: QUIET[count] * (8 if number % every == 0 else 1))
    assert set(used) == {2}


def test_short_steps_other_devices_and_one_thread_are_left_alone():
    machine = Machine()
    assert set(machine.reply(100, lambda *_: threads.SHORT / 2)) == {2}
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
