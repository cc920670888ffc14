"""The config file: values with their origin; what is wrong is named with its line and stops nothing."""

from pathlib import Path

import pytest

from repl import config
from repl.settings import Settings


def read(tmp_path: Path, text: str) -> tuple[Settings, list[str], list[str]]:
    path = tmp_path / "config.toml"
    path.write_text(text, "utf-8")
    return config.read(path, Settings())


def test_no_file_changes_nothing(tmp_path: Path) -> None:
    assert config.read(tmp_path / "config.toml", Settings()) == (Settings(), [], [])


def test_keys_are_settings_and_their_origin_is_the_file(tmp_path: Path) -> None:
    text = (
        'model = "gpt2"\ndtype = "bf16"\ntemperature = 0.7\ndo_sample = true\nmax_new_tokens = 9\nstop = ["a", "b"]\n'
    )
    found, startup, wrong = read(tmp_path, text + 'startup = ["/greedy"]\n')
    assert wrong == []
    assert startup == ["/greedy"]
    assert (found.load.model, found.load.dtype, found.decode.temperature) == ("gpt2", "bfloat16", 0.7)
    assert (found.decode.do_sample, found.decode.max_new_tokens, found.decode.stop) == (True, 9, ("a", "b"))
    assert set(found.origins.values()) == {"config"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('dtype = "fp32"\n\ntemperatur = 1\n', 3, "did you mean temperature?"),
        ('dtype = "bf17"\n', 1, "'bf17' is not one of"),
        ("# x\ntemperature = 0\n", 2, "a number above 0"),
        ("[presets.a]\nx = 1\n", 1, "no setting 'presets'"),
        ("startup = 3\n", 1, "not a list of lines"),
    ],
)
def test_a_bad_key_is_named_with_its_line_and_the_rest_counts(tmp_path: Path, text: str, line: int, said: str) -> None:
    found, _, wrong = read(tmp_path, "seed = 5\n" + text)
    assert len(wrong) == 1
    assert f"config.toml:{line + 1} " in wrong[0]
    assert said in wrong[0]
    assert found.decode.seed == 5


@pytest.mark.parametrize("text", ["seed = = 1\n", "\x00"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    found, _, wrong = read(tmp_path, text)
    assert found == Settings()
    assert len(wrong) == 1
    assert "not valid TOML" in wrong[0]


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in config.read(tmp_path / "config.toml", Settings())[2][0]
