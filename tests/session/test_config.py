"""The config file: values with their origin; what is wrong is named with its line and stops nothing."""

import re
import tomllib
from pathlib import Path

import pytest

from repl.core import settings
from repl.session import config_file
from repl.session.config_file import Config


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text, "utf-8")
    return config_file.read_config_file(path)


def test_no_file_changes_nothing(tmp_path: Path) -> None:
    assert config_file.read_config_file(tmp_path / "config.toml") == Config()


def test_keys_are_settings_and_their_origin_is_the_file(tmp_path: Path) -> None:
    text = 'model = "gpt2"\ndtype = "bf16"\ntemperature = 0.7\ndo_sample = true\n'
    found = read(tmp_path, text + 'max_new_tokens = 9\nstop = ["a", "b"]\nstartup = ["/greedy"]\n')
    assert found.wrong == ()
    assert found.startup == ("/greedy",)
    load, decode = found.settings.load, found.settings.decode
    assert (load.model, load.dtype, decode.temperature) == ("gpt2", "bfloat16", 0.7)
    assert (decode.do_sample, decode.max_new_tokens, decode.stop) == (True, 9, ("a", "b"))
    assert set(found.settings.origins.values()) == {"config"}


def test_presets_and_aliases_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, '[presets.wild]\ntemperature = 1.5\ndo_sample = true\n[aliases]\ncalm = "/greedy"\n')
    assert found.wrong == ()
    assert found.presets == {"wild": {"temperature": "1.5", "do_sample": "on"}}
    assert found.aliases == {"calm": "/greedy"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('dtype = "fp32"\n\ntemperatur = 1\n', 3, "did you mean temperature?"),
        ('dtype = "bf17"\n', 1, "'bf17' is not one of"),
        ("# x\ntemperature = 0\n", 2, "a number above 0"),
        ("[preset.a]\nx = 1\n", 1, "no setting 'preset'"),
        ("[presets.a]\ntop_p = 2\n", 2, "top_p '2' is not"),
        ("startup = 3\n", 1, "not a list of lines"),
        ("presets = 3\n", 1, "not a table"),
        ('[presets]\na = "x"\n', 2, "write [presets.a]"),
        ('[aliases]\ncalm = "greedy"\n', 2, "alias 'calm'"),
    ],
)
def test_a_bad_key_is_named_with_its_line_and_the_rest_counts(tmp_path: Path, text: str, line: int, said: str) -> None:
    found = read(tmp_path, "seed = 5\n" + text)
    assert len(found.wrong) == 1
    assert f"config.toml:{line + 1} " in found.wrong[0]
    assert said in found.wrong[0]
    assert found.settings.decode.seed == 5


@pytest.mark.parametrize("text", ["seed = = 1\n", "\x00"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert found.settings == Config().settings
    assert len(found.wrong) == 1
    assert "not valid TOML" in found.wrong[0]


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfa")
    assert "is not UTF-8 text" in config_file.read_config_file(tmp_path / "config.toml").wrong[0]


def test_the_written_file_says_nothing_until_its_marks_are_removed(tmp_path: Path) -> None:
    text = config_file.config_template()
    assert tomllib.loads(text) == {}
    assert read(tmp_path, text) == Config()
    bare = re.sub(r"(?m)^# (?=[a-z_]+ = |\[)", "", text)
    found = read(tmp_path, bare)
    assert found.wrong == ()
    assert set(re.findall(r"(?m)^# ([a-z_]+) = ", text)) >= set(settings.places())
    assert (found.presets["creative"]["temperature"], found.aliases["calm"]) == ("1.1", "/sample temperature=0.3")


@pytest.mark.parametrize("name", list(settings.places()))
def test_every_value_is_written_so_that_it_reads_back(tmp_path: Path, name: str) -> None:
    words = {"do_sample": "on", "stop": '["a\\n", "b"]', "temperature": "0.7", "num_beams": "4", "dtype": "bf16"}
    chosen = settings.read_setting(name, words[name]) if name in words else settings.declared_field(name).default
    if chosen in (None, "", ()):
        return
    assert read(tmp_path, f"{name} = {config_file.toml_value(name, chosen)}\n").settings.get(name) == chosen


def test_a_setting_that_there_is_not_is_told_and_the_rest_counts(tmp_path: Path) -> None:
    """A file of an earlier version still opens, presets too."""
    found = read(tmp_path, "compile = true\ntop_k = 5\n[presets.quick]\ncompile = true\ntop_p = 0.5\n")
    assert found.settings.decode.top_k == 5
    assert found.presets == {"quick": {"top_p": "0.5"}}
    assert [said.split(" ", 1)[1].partition(",")[0] for said in found.wrong] == ["no setting 'compile'"] * 2
