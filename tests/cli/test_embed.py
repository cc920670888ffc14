"""The documented Python face: lines in, results out, errors as they are."""

from pathlib import Path

import pytest

import repl
from repl.core.errors import ReplError, UsageError
from repl.core.events import Event, Token
from repl.core.reply import Reply


def test_lines_give_their_results(llama_folder: Path) -> None:
    with repl.open_session(str(llama_folder), dtype="float32", max_new_tokens=6) as session:
        events: list[Event] = []
        reply = session.run("/raw Once upon a time", events.append)
        assert isinstance(reply, Reply)
        assert len(reply.token_ids) == 6
        assert "".join(event.text for event in events if isinstance(event, Token)) == reply.raw
        assert session.run("/next 3").candidates[0].id
        session.run("/sample temperature=0.5")
        assert session.settings.decode.temperature == 0.5


def test_what_is_wrong_is_raised_with_what_to_type(llama_folder: Path, tmp_path: Path) -> None:
    with repl.open_session(str(llama_folder)) as session:
        with pytest.raises(UsageError) as caught:
            session.run("/temprature 1")
        assert caught.value.hints
    with pytest.raises(ReplError):
        repl.open_session(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="tempo"):
        repl.open_session(str(llama_folder), tempo=1)


def test_only_public_names_are_promised() -> None:
    assert {name: bool(getattr(repl, name)) for name in repl.__all__} == dict.fromkeys(repl.__all__, True)
    with pytest.raises(AttributeError):
        _ = repl.nothing
