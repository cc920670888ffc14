"""Options of the command line."""

import pytest

from repl.cli.main import parser


@pytest.mark.parametrize(
    ("short", "name"), [("--beams", "num_beams"), ("--max", "max_new_tokens"), ("--temp", "temperature")]
)
def test_short_names_of_the_prompt_are_options_too(short: str, name: str) -> None:
    assert getattr(parser().parse_args(["gpt2", short, "4"]), f"set_{name}") == "4"
