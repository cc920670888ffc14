"""Numbers with their units, as a person would say them."""

import pytest

from repl.core.format import counted, rate


@pytest.mark.parametrize(("number", "said"), [(0, "0 tokens"), (1, "1 token"), (1024, "1,024 tokens")])
def test_a_noun_agrees_with_its_number(number: int, said: str) -> None:
    assert counted(number, "token") == said


@pytest.mark.parametrize(
    ("speed", "said"),
    [(0.041, "0.041 tokens/s"), (0.4, "0.4 tokens/s"), (0.97, "1 token/s"), (1.2, "1 token/s"), (12.6, "13 tokens/s")],
)
def test_a_slow_speed_is_not_nothing(speed: float, said: str) -> None:
    assert rate(speed) == said
