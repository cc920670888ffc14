"""Options of the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakeserver import FakeServer
from terminal import surroundings

from repl.cli.main import accessible_value, parser, short_help, split_model
from repl.cli.program import is_new_user
from repl.core import settings


@pytest.mark.parametrize(
    ("short", "name"),
    [("--beams", "num_beams"), ("--max", "max_new_tokens"), ("--temp", "temperature"), ("-t", "temperature")],
)
def test_short_names_of_the_prompt_are_options_too(short: str, name: str) -> None:
    assert getattr(parser().parse_args(["gpt2", short, "4"]), f"set_{name}") == "4"


@pytest.mark.slow
def test_an_answer_in_a_shell_is_no_session(tmp_path: Path) -> None:
    """Lines beside the prompt make it one: they may ask for its history."""
    with FakeServer() as server:
        one_shot("--connect", server.host, "Hi", home=tmp_path)
        assert not (tmp_path / "data" / "archive.db").exists()
        one_shot("--connect", server.host, "-c", "/max 2", "Hi", home=tmp_path)
    assert (tmp_path / "data" / "archive.db").exists()


@pytest.mark.slow
def test_a_conversation_goes_on_without_the_model_of_the_settings(gpt2_folder: Path, tmp_path: Path) -> None:
    """Its own model is what loads, and lines that need none do not wait for one."""
    one_shot(str(gpt2_folder), "--max", "2", "-c", "Hi", home=tmp_path)
    (tmp_path / "lines").write_text("/history\n", "utf-8")
    (tmp_path / "config.toml").write_text('model = "acme/missing"\n', "utf-8")
    done = one_shot("--resume", "--offline", "--script", str(tmp_path / "lines"), home=tmp_path)
    assert (done.returncode, "Hi" in done.stdout, done.stderr) == (0, True, ""), done
    more = one_shot("--resume", "--offline", "And?", home=tmp_path)
    assert (more.returncode, "missing" in more.stderr) == (0, False), more


def test_a_shell_is_told_what_to_type_in_a_shell(gpt2_folder: Path, tmp_path: Path) -> None:
    done = one_shot(str(gpt2_folder), "--temperature", "warm", "Hi", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "hub-repl: temperature 'warm' is not a number above 0 · --temperature 0.7 · hub-repl --help\n"
    )


@pytest.mark.slow
def test_a_session_that_is_not_there_is_told_in_the_words_of_a_shell(tmp_path: Path) -> None:
    done = one_shot("--resume", "zzz", "--offline", "-c", "Hi", home=tmp_path)
    assert (done.returncode, done.stderr) == (1, "hub-repl: no session 'zzz' · hub-repl -c /sessions\n")


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("/model gpt2 dtype=bfloat16", "hub-repl gpt2 --dtype bfloat16"),
        ("/max 50", "--max-new-tokens 50"),
        ("/trust yes", "hub-repl -c '/trust yes'"),
        ("/guide", "hub-repl guide"),
        ("/guide prompt", "hub-repl guide prompt"),
        ("pip install x", "pip install x"),
    ],
)
def test_a_line_of_the_prompt_is_said_as_a_shell_has_it(line: str, typed: str) -> None:
    assert settings.in_shell(line) == typed


def test_a_line_of_the_prompt_names_the_model_that_was_asked_for() -> None:
    assert settings.in_shell("/trust yes", "acme/own code") == "hub-repl 'acme/own code' -c '/trust yes'"
    assert settings.in_shell("/model gpt2", "acme/own") == "hub-repl gpt2"


@pytest.mark.parametrize("name", settings.places())
def test_every_setting_has_an_example_that_it_takes(name: str) -> None:
    settings.read_setting(name, settings.examples(name)[0])


def one_shot(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with nothing on its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "repl", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=surroundings(home),
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "model", "prompt"),
    [
        (["What is the capital of France?"], None, ["What is the capital of France?"]),
        (["why?"], None, ["why?"]),
        (["gpt2"], "gpt2", []),
        (["gpt2", "Once upon a time"], "gpt2", ["Once upon a time"]),
        (["a folder"], "a folder", []),
    ],
)
def test_a_sentence_alone_is_a_prompt_for_the_default_model(
    words: list[str], model: str | None, prompt: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    found = split_model(parser().parse_intermixed_args(words))
    assert (found.model, found.prompt) == (model, prompt)


def test_the_first_three_starts_are_those_of_a_new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that saves nothing is not counted."""
    monkeypatch.setenv("HUB_REPL_HOME", str(tmp_path))
    assert [is_new_user(noted) for noted in (False, True, True, True, True, False)] == [True] * 4 + [False] * 2


def test_help_fits_a_window_and_help_all_has_each_option_once() -> None:
    shown = short_help().splitlines()
    assert len(shown) <= 30
    assert all(len(line) <= 80 for line in shown)
    listed = re.findall(r"^ {2,}(--[\w-]+)", parser().format_help(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {"--" + name.replace("_", "-") for name in settings.places()} <= set(listed)


@pytest.mark.parametrize(
    ("words", "value", "model"),
    [
        (["--accessible", "gpt2"], "on", "gpt2"),
        (["--accessible", "off", "gpt2"], "off", "gpt2"),
        (["gpt2", "--accessible"], "on", "gpt2"),
        (["--accessible", "--json", "gpt2"], "on", "gpt2"),
    ],
)
def test_accessible_needs_no_value(words: list[str], value: str, model: str) -> None:
    found = parser().parse_intermixed_args(accessible_value(words))
    assert (found.set_accessible, found.model) == (value, model)


@pytest.mark.slow
def test_nothing_to_say_to_a_server_is_a_failure(tmp_path: Path) -> None:
    """As it is to a model here: an empty prompt gets no answer."""
    with FakeServer() as server:
        assert one_shot("--connect", server.host, home=tmp_path).returncode == 1
        assert one_shot("--connect", server.host, "-c", "/version", home=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_a_script_is_no_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with FakeServer() as server:
        done = one_shot("--connect", server.host, "--script", str(tmp_path / "pipe"), home=tmp_path)
    assert (done.returncode, "it is a pipe that nobody writes to" in done.stderr) == (2, True), done


@pytest.mark.slow
def test_quit_among_the_lines_of_a_shell_ends_quietly(gpt2_folder: Path, tmp_path: Path) -> None:
    done = one_shot(str(gpt2_folder), "-c", "/max 3", "-c", "/quit", "-c", "/no such", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "max_new_tokens 3 · from the next reply on\n")
