"""The whole path against a real server: `transformers serve` with the built-in model, beside the same model here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
from driving import ask, ask_until, listen, opened, run

from repl.core.errors import UsageError
from repl.core.events import Notice, Token
from repl.session.session import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not serving.available(), reason="transformers[serving] is not installed"),
]


@pytest.fixture(scope="module")
def served(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Serving]:
    with serving.Serving(builtin_folder, tmp_path_factory.mktemp("serving")) as server:
        yield server


@pytest.fixture(scope="module")
def session(builtin_folder: Path, served: serving.Serving) -> Iterator[Session]:
    """A session with the same model here, connected to the server."""
    with opened(builtin_folder, max_new_tokens=8, dtype="float32", do_sample="off") as made:
        run(made, f"/connect {served.host}")
        yield made


@pytest.fixture(autouse=True)
def afresh(session: Session) -> None:
    run(session, "/clear", "/set max_new_tokens 8", "/logprobs 0", "/top_k default")


def test_the_server_says_what_the_model_here_says(session: Session, served: serving.Serving) -> None:
    """Greedy text, its token counts and the reason of its end are the same on both sides of the border."""
    there, events = listen(session, "Name a river.")
    text = "".join(event.text for event in events if isinstance(event, Token))
    remote = session.remote
    session.connect(None)
    run(session, "/clear")
    here = ask(session, "Name a river.")
    session.connect(remote)
    assert (there.text, there.finish) == (here.text, here.finish)
    assert text == there.text
    assert (there.usage.prompt, there.usage.completion) == (len(here.prompt_ids), len(here.token_ids))
    assert (there.model.server, there.model.counted) == (served.host, "by the server")


def test_a_conversation_is_held_half_here_half_there(session: Session, tmp_path: Path) -> None:
    """Each side goes on from what the other said, and the export names who said what."""
    remote = session.remote
    session.connect(None)
    ask(session, "What is the capital of France?")
    session.connect(remote)
    there = ask(session, "Name a river there.")
    session.connect(None)
    last = ask(session, "Is it long?")
    session.connect(remote)
    assert there.text in session.store.current().tokenizer.decode(last.prompt_ids)
    page = tmp_path / "talk.json"
    run(session, f"/export {page}")
    made = [turn["record"]["model"] for turn in json.loads(page.read_text("utf-8"))["turns"] if turn["record"]]
    assert ["server" in model for model in made] == [False, True, False]


def test_texts_are_completed(session: Session) -> None:
    there = run(session, "/raw The sea is")
    remote = session.remote
    session.connect(None)
    here = run(session, "/raw The sea is")
    session.connect(remote)
    assert there.text == here.text


def test_settings_have_the_effect_that_they_have_here(session: Session) -> None:
    """Its generation_config carries them; top_k 1 leaves nothing to draw."""
    here = greedy_here(session)
    run(session, "/sample top_k=1 temperature=3")
    drawn = ask(session, "Name a river.")
    run(session, "/clear", "/sample temperature=3 top_k=default")
    wild = ask(session, "Name a river.")
    run(session, "/greedy")
    assert (drawn.text, drawn.decode["top_k"], drawn.decode["temperature"]) == (here, 1, 3.0)
    assert wild.text != here


def greedy_here(session: Session) -> str:
    """Return what the model here says."""
    remote = session.remote
    session.connect(None)
    here = ask(session, "Name a river.").text
    session.connect(remote)
    run(session, "/clear")
    return here


def test_without_a_length_it_takes_its_own(session: Session) -> None:
    """Also where its generation_config is sent, which would take the place of that: none is cut at the library's 20."""
    run(session, "/set max_new_tokens default", "/repetition_penalty 1.01")
    done = ask(session, "Count from one to forty in words.")
    run(session, "/repetition_penalty default")
    assert done.usage.completion > 20


def test_what_has_no_effect_is_said(session: Session) -> None:
    run(session, "/set presence_penalty 0.5")
    done, events = listen(session, "Name a river.")
    run(session, "/set presence_penalty default")
    assert any("presence_penalty has no effect" in event.text for event in events if isinstance(event, Notice))
    assert "presence_penalty" not in done.decode


def test_it_gives_no_log_probabilities(session: Session) -> None:
    run(session, "/logprobs 2")
    _, events = listen(session, "Name a river.")
    assert any("no log-probabilities" in event.text for event in events if isinstance(event, Notice))


def test_a_stopped_reply_frees_the_server(session: Session) -> None:
    """What came is kept, and the next message is answered."""
    run(session, "/set max_new_tokens 400")
    done = ask_until(session, "Tell me a long story.", lambda event: isinstance(event, Token) and bool(event.text))
    assert done.finish == "cancelled"
    assert done.text
    run(session, "/set max_new_tokens 4")
    assert ask(session, "Name a river.").usage.completion == 4


def test_another_model_is_refused_in_its_words(session: Session, builtin_folder: Path) -> None:
    run(session, "/model other")
    with pytest.raises(UsageError, match="pinned"):
        ask(session, "Hi")
    run(session, f"/model {builtin_folder}")
    assert ask(session, "Hi").text
    assert session.remote is not None
    session.remote.model = ""
