"""What a reply must be: what is typed becomes a schema, a pattern or a grammar, or is refused in a sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core import settings
from repl.core.errors import NotFound, ReplError, UsageError
from repl.core.reply_format import FormatKind, parse_format

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
GRAMMARS = {"a.lark": 'start: "yes" | "no"\n', "a.gbnf": 'root ::= "yes" | "no"\n'}


def fields(**each: object) -> dict[str, object]:
    return {"type": "object", "properties": each, "required": list(each), "additionalProperties": False}


def array(items: object) -> dict[str, object]:
    return {"type": "array", "items": items}


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("name", fields(name=STRING)),
        ("name, age int", fields(name=STRING, age=INTEGER)),
        ("score number,ok bool", fields(score={"type": "number"}, ok={"type": "boolean"})),
        ("tags [string], sizes [[int]]", fields(tags=array(STRING), sizes=array(array(INTEGER)))),
        ("kind: a|b | c d, n", fields(kind={"enum": ["a", "b", "c d"]}, n=STRING)),
        ("age: int", fields(age=INTEGER)),
        ("tags []", fields(tags=array(STRING))),
        ("home {street, city}, n int", fields(home=fields(street=STRING, city=STRING), n=INTEGER)),
        ("people [{name, kind: a|b}]", fields(people=array(fields(name=STRING, kind={"enum": ["a", "b"]})))),
        ('"first name", größe', fields(**{"first name": STRING, "größe": STRING})),
    ],
)
def test_a_list_of_fields_is_a_schema(text: str, schema: object) -> None:
    found = parse_format(settings.read_setting("format", text))
    assert found.kind == "json_schema"
    assert found.schema == schema


@pytest.mark.parametrize(
    ("text", "kind", "title"),
    [
        ("json", "json_schema", "JSON"),
        ("JSON", "json_schema", "JSON"),
        ("a, b int", "json_schema", "JSON with a, b"),
        ('{"type": "array"}', "json_schema", "JSON list"),
        ("{}", "json_schema", "JSON"),
        ("/[0-9]{4}/", "regex", "text that matches /[0-9]{4}/"),
        ('start: "a"', "lark", "text of a Lark grammar"),
        ('root ::= "a"', "gbnf", "text of a GBNF grammar"),
    ],
)
def test_forms_are_told_apart(text: str, kind: str, title: str) -> None:
    found = parse_format(settings.read_setting("format", text))
    assert (found.kind, found.title) == (kind, title)


@pytest.mark.parametrize("word", ["off", "none", "OFF", ""])
def test_off_is_no_form(word: str) -> None:
    assert settings.read_setting("format", word) == ""
    assert FormatKind().show("") == "off"


@pytest.mark.parametrize(("name", "text"), [*GRAMMARS.items(), ("a.json", '{\n  "type": "array"\n}\n')])
def test_a_file_is_kept_as_what_stands_in_it(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    value = settings.read_setting("format", str(file))
    file.unlink()
    assert settings.read_setting("format", FormatKind().show(value)) == value
    assert value.strip() == (json.dumps(json.loads(text)) if name.endswith("json") else text.strip())


@pytest.mark.parametrize(
    "text",
    [
        *("age integ", "a,,b", "a,", ",", "a {b", "a [b", "a [int", "kind: a||b", "kind: |", "a, a", "a b c", "a }"),
        *('{"type": ', '["a"]', '{"name": "string"}', "{" * 100, "x" + " {x" * 100, "a " + "[" * 100_000),
        '{"a":' * 100_000,
    ],
)
def test_what_is_no_form_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.read_setting("format", text)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(("format '", "format: "))
    assert caught.value.hints


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b" " * (2**20 + 1))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "prose.txt").write_text("hello")
    for name in ("big.json", "bytes.json", "prose.txt"):
        with pytest.raises(UsageError):
            settings.read_setting("format", str(tmp_path / name))
    with pytest.raises(NotFound):
        settings.read_setting("format", str(tmp_path / "none.json"))


@given(st.text(alphabet='ab,:|[]{}" \n/intjson', max_size=40))
def test_any_text_is_a_form_or_a_sentence(text: str) -> None:
    try:
        value = settings.read_setting("format", text)
    except ReplError:
        return
    assert settings.read_setting("format", FormatKind().show(value)) == value
