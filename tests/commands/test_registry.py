"""Commands from functions: the signature is the grammar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl import commands
from repl.commands import registry
from repl.commands.registry import complete_line, find_command, parse_arguments, parse_line, split_name
from repl.core import settings
from repl.core.errors import UsageError
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session

assert commands


@pytest.mark.parametrize(
    ("word", "name"),
    [("temp", "temperature"), ("max", "max_new_tokens"), ("?", "help"), ("exit", "quit"), ("dty", "dtype")],
)
def test_aliases_and_unambiguous_starts_work(word: str, name: str) -> None:
    assert find_command(word).name == name


@pytest.mark.parametrize(
    ("word", "said"), [("tempreature", "did you mean /temperature"), ("xyzzy", "no command /xyzzy"), ("re", "could be")]
)
def test_an_unknown_command_names_the_nearest(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_command(word)


def test_every_name_finds_itself() -> None:
    for name in registry.COMMANDS:
        assert find_command(name).name == name


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("/beams 4", [4]),
        ("/beams 4 length_penalty=1.5", [4, ("length_penalty", "1.5")]),
        ("/sample", []),
        ("/sample temperature=0.8 top_p=0.95", [("temperature", "0.8"), ("top_p", "0.95")]),
        ("/raw  Once   upon", ["Once   upon"]),
        ("/system", [""]),
        ('/model "a b"', ["a b"]),
        ("/set epsilon_cutoff 0.1", ["epsilon_cutoff", "0.1"]),
        ("/set stop two words", ["stop", "two words"]),
    ],
)
def test_words_become_arguments(line: str, arguments: list[object]) -> None:
    name, rest = split_name(line)
    assert parse_arguments(find_command(name), rest)[0] == arguments


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/beams", "needs count"),
        ("/beams x", "not a whole number"),
        ("/beams 4 5", "name=value"),
        ("/pick", "needs number"),
        ("/clear now", "does not take 'now'"),
        ("/raw", "needs text"),
        ("/sample warm", "name=value"),
        ("/set", "needs name"),
    ],
)
def test_wrong_words_are_told_the_usage(line: str, said: str) -> None:
    name, rest = split_name(line)
    with pytest.raises(UsageError, match=said):
        parse_arguments(find_command(name), rest)


NAMES = st.sampled_from([*registry.COMMANDS, *registry.COMMAND_ALIASES])
SEEN_WORDS = ["4", "0.5", "on", "none", "--turn", "--turn 2", "temperature=0.8", "=", '"', "a b", "[1]", "{}", "--"]
WORDS = st.lists(st.sampled_from(SEEN_WORDS) | st.text(max_size=10), max_size=4).map(" ".join)


@given(NAMES | st.text(max_size=30), WORDS)
def test_any_line_is_parsed_or_refused(name: str, words: str) -> None:
    name, rest = split_name(f"/{name} {words}")
    try:
        arguments, named = parse_arguments(find_command(name), rest)
    except UsageError:
        return
    takes = find_command(name).words
    assert {*named} <= {word.name for word in takes if word.flag}
    assert len(arguments) <= len(takes) or any(word.many for word in takes)


@pytest.mark.parametrize(
    ("line", "name"),
    [("hello", "say"), ("//etc", "say"), ("/beams 2", "beams"), ("/dtype bf16", "dtype"), ("/?", "help")],
)
def test_a_line_has_a_title(line: str, name: str) -> None:
    assert parse_line(line).command.name == name


def test_the_menu_begins_with_what_is_used_most_and_looks_into_names_and_helps() -> None:
    """A setting that was changed stands near the head, each with the value of now."""
    session = Session(Settings().put("temperature", 0.5, "you"), Store(Runtime), Worker())
    offered = dict(complete_line("/", session))
    session.close()
    assert [*offered][:4] == ["/help", "/model", "/temperature", "/settings"]
    assert offered["/temperature"].startswith("0.5 · ")
    rest = [*offered][len(registry.MOST_USED) + 1 :]
    assert rest == sorted(rest)
    assert words("/beam")[:2] == ["/beams", "/num_beams"]
    assert "/temperature" in words("/sharpens")
    assert words("/zzz") == []


def words(line: str) -> list[str]:
    return [word for word, _ in complete_line(line)]


def test_completion_offers_commands_values_and_names() -> None:
    assert "/dtype" in words("/dt")
    assert words("/dtype b") == ["bfloat16"]
    assert words("/dtype ") == ["auto", "float32", "bfloat16", "float16"]
    assert words("/model bui") == ["builtin"]
    assert words("/sample tempe") == ["temperature="]
    assert words("/beams 4 length") == ["length_penalty="]
    assert words("/do_sample o") == ["on", "off"]
    assert words("hello") == words("//dt") == words("/nothing x") == []


def test_every_offered_command_is_explained() -> None:
    assert all(help_text for _, help_text in complete_line("/"))


def test_every_command_and_setting_has_examples_and_related_names() -> None:
    """What a help page shows can be typed, and what it names is there."""
    for name, found in registry.COMMANDS.items():
        lines = [parse_line(line).command.name for line in found.examples]
        assert name in lines, name
        assert len(lines) == 2, name
        assert set(found.see) <= registry.COMMANDS.keys() - {name}, name
        assert found.see, name


def test_every_setting_is_in_one_group() -> None:
    assert sorted(name for names in settings.GROUPS.values() for name in names) == sorted(settings.places())


def test_a_help_fits_beside_its_name() -> None:
    """In a window of 80 columns; what needs more stands below it in /help NAME."""
    lines = [f"/{name}  {found.help}" for name, found in registry.COMMANDS.items() if name != "say"]
    assert [line for line in lines if len(line) > 80] == []


def test_a_usage_line_can_be_typed_as_it_stands() -> None:
    """Options have the hyphens that one types, and say whether a value follows."""
    assert find_command("connect").usage == "/connect [URL] [--key-env VALUE] [--model VALUE] [--insecure]"
    assert find_command("take").usage == "/take PLACE TOKEN [--exchange N]"
