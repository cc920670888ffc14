"""/python: what is bound there, how it ends, and what is told of the model afterwards."""

import io
import signal
import sys
from pathlib import Path

import pytest
from driving import ask, opened, run

from repl.commands import python
from repl.commands.models import Info
from repl.core.errors import NeedsLocal, UsageError
from repl.core.reply import Reply, decode_record, encode_record
from repl.session.session import Session

PROMPT = "Once upon a time"


def visit(session: Session, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Type lines of Python; the end of input leaves."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, ""])))
    python.visit(session)


def last(session: Session) -> Reply:
    assert session.last is not None
    assert session.last.record is not None
    return session.last.record


def test_the_model_and_the_last_exchange_are_bound(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a batch that the model takes, and the record; a mistake is a traceback, `exit` leaves standard input open."""
    with opened(llama_folder, max_new_tokens=3) as session:
        visit(session, monkeypatch, "print(ids, reply)")
        ask(session, PROMPT)
        before = signal.getsignal(signal.SIGINT)
        lines = (
            "print(tuple(model(ids).logits.shape[:2]), tokenizer.decode(ids[0]))",
            "1 / 0",
            "exit",
            "exit()",
            "print('no')",
        )
        visit(session, monkeypatch, *lines)
        assert signal.getsignal(signal.SIGINT) == before
        assert sys.stdin.readline() == "print('no')\n"
        ids = [*last(session).prompt_ids, *last(session).token_ids]
        text = session.store.current().tokenizer.decode(ids)
    printed = capsys.readouterr()
    assert "None None\n" in printed.out
    assert f"(1, {len(ids)}) {text}\n" in printed.out
    assert "returns to hub-repl\n" in printed.out
    assert "ZeroDivisionError" in printed.err


def test_a_change_shows_at_once_and_is_told_until_the_model_is_loaded_anew(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was computed before is used again; record, /recipe, /reproduce and /info say what may be."""
    with opened(llama_folder, max_new_tokens=8) as session:
        run(session, "/mode complete")
        before = ask(session, PROMPT)
        assert not before.model.touched
        visit(session, monkeypatch, "_ = model.lm_head.weight.data.neg_()")
        after = ask(session, PROMPT)
        assert after.token_ids != before.token_ids
        assert after.usage.reused == 0
        assert after.model.touched
        assert decode_record(Reply, encode_record(after)).model.touched
        assert "open in /python" in run(session, "/recipe").script
        assert "open in /python" not in run(session, "/recipe 1").script
        assert "the model" in [one.name for one in run(session, "/reproduce").changed]
        found = run(session, "/info")
        assert isinstance(found, Info)
        assert found.facts.touched
        run(session, "/reload")
        again = ask(session, PROMPT)
        assert (again.token_ids, again.model.touched) == (before.token_ids, False)


def test_it_opens_at_a_terminal_alone_and_for_a_model_here(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the sentence names what does the same."""
    with opened(llama_folder) as session:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(UsageError, match="from repl import open_session"):
            run(session, "/python")
        facts = session.store.facts()
        assert facts is not None
        assert not facts.touched
        session.remote = object()  # type: ignore[assignment] # a server answers
        with pytest.raises(NeedsLocal):
            run(session, "/python")
        session.remote = None


@pytest.mark.parametrize(("code", "ends"), [(3, False), ("no", False), (143, True)])
def test_only_a_signal_ends_more_than_the_prompt(code: object, ends: bool) -> None:
    """`sys.exit()` returns to hub-repl; the exit code of a signal is 128 and its number."""
    try:
        with python.interruptible():
            raise SystemExit(code)
    except SystemExit:
        assert ends
    else:
        assert not ends
