"""What a reply must be, with a server: sent in the server's own words, or refused before anything is sent."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from driving import ask, run
from fakeserver import FakeServer, chat, completion, models

from repl.core.errors import NeedsLocal, UsageError
from repl.core.jobs import Worker
from repl.core.reply_format import parse_format
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.remote.dialects import (
    DIALECTS,
    LLAMA_CPP,
    LLAMA_PYTHON,
    OLLAMA,
    OPENAI,
    SGLANG,
    TGI,
    TRANSFORMERS,
    VLLM,
    Dialect,
)
from repl.session.session import Session

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
STRICT = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}}
GBNF, LARK = 'root ::= "a"', 'start: "a"'
SENT: list[tuple[Dialect, str, bool, dict[str, Any] | None]] = [
    *((kind, "a", True, {"response_format": STRICT}) for kind in (VLLM, SGLANG, OLLAMA, OPENAI)),
    (VLLM, "a", False, {"response_format": STRICT}),
    (VLLM, "/[0-9]/", True, {"structured_outputs": {"regex": "[0-9]"}}),
    (VLLM, GBNF, True, {"structured_outputs": {"grammar": GBNF}}),
    (VLLM, LARK, False, {"structured_outputs": {"grammar": LARK}}),
    (SGLANG, "/[0-9]/", False, {"regex": "[0-9]"}),
    (SGLANG, GBNF, True, {"ebnf": GBNF}),
    (SGLANG, LARK, True, None),
    (LLAMA_CPP, "a", True, {"json_schema": SCHEMA}),
    (LLAMA_CPP, GBNF, False, {"grammar": GBNF}),
    (LLAMA_CPP, "/[0-9]/", True, None),
    (LLAMA_PYTHON, "a", True, {"response_format": {"type": "json_object", "schema": SCHEMA}}),
    (LLAMA_PYTHON, "a", False, None),
    (TGI, "a", True, {"response_format": {"type": "json_object", "value": SCHEMA}}),
    (TGI, "/[0-9]/", True, {"response_format": {"type": "regex", "value": "[0-9]"}}),
    (OPENAI, "/[0-9]/", True, None),
    (OPENAI, "a", False, None),
    (TRANSFORMERS, "a", True, None),
]


@pytest.mark.parametrize(("kind", "form", "chats", "fields"), SENT, ids=lambda value: getattr(value, "name", None))
def test_a_form_is_asked_for_in_the_words_of_the_server(kind: Dialect, form: str, chats: bool, fields: Any) -> None:
    assert kind.form_fields(parse_format(form), chats) == fields


def test_what_is_sent_is_a_field_that_the_server_knows() -> None:
    """The names are those that `/set` passes on too, by the server's own description."""
    for kind in DIALECTS:
        for forms in (kind.forms, kind.text_forms):
            assert {name for fields in forms.values() for name in fields} <= kind.own


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Settings(), Store(Runtime, offline=True), Worker())
    yield made
    made.close()


def test_a_server_is_sent_the_form_and_the_record_says_so(session: Session) -> None:
    with FakeServer() as server:
        run(session, f"/connect {server.host}", "/format a")
        server.answers = [chat('{"a": ', '"b"}')]
        done = ask(session, "Hi")
        assert json.loads(done.text) == {"a": "b"}
        assert server.sent[-1]["response_format"] == STRICT
        assert done.decode["format"] == "a"
        assert done.model.sent["response_format"] == STRICT  # type: ignore[union-attr]
        server.answers = [completion("7")]
        run(session, "/format /[0-9]/")
        run(session, "/raw 3 + 4 =")
        assert server.sent[-1]["structured_outputs"] == {"regex": "[0-9]"}
        server.answers = [chat("Hello")]
        run(session, "/format off")
        assert "format" not in ask(session, "Hi").decode
        assert not {"response_format", "structured_outputs"} & server.sent[-1].keys()


def test_what_cannot_be_sent_is_refused_and_nothing_is_asked(session: Session) -> None:
    with FakeServer() as server:
        server.listed = models("llama", owned_by="openai")
        run(session, f"/connect {server.host}")
        before = len(server.asked)
        with pytest.raises(UsageError, match=r"OpenAI. does not support text that matches /x/ in a chat"):
            run(session, "/format /x/")
        run(session, "/format a")
        with pytest.raises(UsageError, match="in text completion"):
            run(session, "/raw Once")
        assert len(server.asked) == before


def test_a_form_behind_a_beginning_is_refused(session: Session) -> None:
    with FakeServer() as server:
        run(session, f"/connect {server.host}", "/format a", '/prefill {"a')
        with pytest.raises(NeedsLocal):
            run(session, "Hi")
