"""A model's own code runs only after typed consent, for one repository at one commit; the token is never shown."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driving
import pytest
from fakehub import FakeHub, Fault

from repl import quiet
from repl.commands.trust import Trust
from repl.errors import BadModel, ReplError, UsageError
from repl.folder import NeedsCode
from repl.screen import Screen
from repl.session import Session
from repl.settings import Settings
from repl.shell import Shell
from repl.store import Store
from repl.trust import Consents
from repl.worker import Worker

MODEL = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({canary!r}).touch()
class Config(LlamaConfig):
    model_type = "zorg9"
class Model(LlamaForCausalLM):
    config_class = Config
"""
TOKEN = "hf_canary" + "Q7" * 15


def coded(folder: Path, source: Path, canary: Path, **auto_map: Any) -> Path:
    """Write a model whose config and class are Python files of its own, which leave a trace when they run."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "modeling_z.Config", "AutoModelForCausalLM": "modeling_z.Model"}
    config |= {"model_type": "zorg9", "architectures": ["Model"], "auto_map": named | auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_z.py").write_text(MODEL.format(canary=str(canary)))
    return folder


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where code leaves its trace; the library copies code below the home of this test."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(Settings(), Store(consents=Consents(tmp_path / "trusted.json")), Worker())
    yield made
    made.close()


def load(session: Session, model: Path | str) -> None:
    driving.run(session, f"/model {model}", "/info")


def test_code_runs_only_after_typed_consent(session: Session, llama_folder: Path, canary: Path, tmp_path: Path) -> None:
    """Refused, shown, allowed: the code runs at the last step and at no other."""
    folder = coded(tmp_path / "coded", llama_folder, canary)
    with pytest.raises(NeedsCode, match=r"modeling_z\.py") as caught:
        load(session, folder)
    assert caught.value.hints == ("/trust",)
    shown = driving.run(session, "/trust")
    assert isinstance(shown, Trust)
    assert shown.files == {"modeling_z.py": (folder / "modeling_z.py").stat().st_size}
    assert not shown.allowed
    assert not canary.exists()
    driving.run(session, "/trust yes", "/info")
    assert canary.exists()
    assert session.facts().architecture == "Model"
    assert not (tmp_path / "trusted.json").exists()


def test_consent_is_for_what_was_there(session: Session, llama_folder: Path, canary: Path, tmp_path: Path) -> None:
    """Within the session a model comes back without a question, until one byte of its code is another."""
    folder = coded(tmp_path / "coded", llama_folder, canary)
    with pytest.raises(NeedsCode):
        load(session, folder)
    driving.run(session, "/trust yes", "/info")
    load(session, llama_folder)
    assert not session.settings.load.trust_remote_code
    load(session, folder)
    canary.unlink()
    (folder / "modeling_z.py").write_text((folder / "modeling_z.py").read_text() + "# changed\n")
    with pytest.raises(NeedsCode, match="changed since you allowed it"):
        driving.run(session, "/reload", "/info")
    assert not canary.exists()
    assert session.facts().architecture == "Model"
    driving.run(session, "/trust yes", "/info")
    assert canary.exists()


def test_consent_for_a_repository_is_for_its_commit(
    session: Session, fake_hub: FakeHub, llama_folder: Path, canary: Path, tmp_path: Path
) -> None:
    """The question names the commit and its files; they are downloaded only with consent."""
    commit = fake_hub.add("acme/coded", coded(tmp_path / "coded", llama_folder, canary))
    with pytest.raises(NeedsCode):
        load(session, "acme/coded")
    assert not fake_hub.asked("GET", "modeling_z.py")
    shown = driving.run(session, "/trust")
    assert (shown.commit, list(shown.files)) == (commit, ["modeling_z.py"])
    assert shown.where.endswith(f"acme/coded/tree/{commit}")
    driving.run(session, "/trust always", "/info")
    assert canary.exists()
    assert json.loads((tmp_path / "trusted.json").read_text()) == {"acme/coded": commit}
    assert Consents(tmp_path / "trusted.json").given == {"acme/coded": commit}


def test_no_takes_consent_back(session: Session, llama_folder: Path, canary: Path, tmp_path: Path) -> None:
    folder = coded(tmp_path / "coded", llama_folder, canary)
    with pytest.raises(NeedsCode):
        load(session, folder)
    driving.run(session, "/trust always", "/info", "/trust no")
    load(session, llama_folder)
    with pytest.raises(NeedsCode):
        load(session, folder)
    assert json.loads((tmp_path / "trusted.json").read_text()) == {}


def test_without_a_refusal_there_is_nothing_to_allow(session: Session, llama_folder: Path) -> None:
    load(session, llama_folder)
    with pytest.raises(UsageError, match="no model was refused"):
        driving.run(session, "/trust yes")
    assert driving.run(session, "/trust").files == {}


def test_code_of_another_repository_never_runs(
    session: Session, llama_folder: Path, canary: Path, tmp_path: Path
) -> None:
    """What is there cannot be pinned to a commit that was looked at."""
    folder = coded(tmp_path / "coded", llama_folder, canary, AutoModelForCausalLM="acme/other--modeling_y.Y")
    with pytest.raises(NeedsCode):
        load(session, folder)
    with pytest.raises(BadModel, match="code from another repository"):
        driving.run(session, "/trust yes", "/info")
    assert not canary.exists()


def test_the_code_of_a_tokenizer_is_code(session: Session, llama_folder: Path, canary: Path, tmp_path: Path) -> None:
    """A changed tokenizer file is noticed too, where the model itself needs no code."""
    folder = shutil.copytree(llama_folder, tmp_path / "tok")
    options = json.loads((folder / "tokenizer_config.json").read_text())
    options |= {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["other/repo--tok.Tok", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    session.settings = session.settings.put("model", str(folder), "you")
    with pytest.raises(BadModel, match="code from another repository"):
        driving.run(session, "/trust_remote_code on", "/info")


def test_a_broken_file_of_consents_allows_nothing(tmp_path: Path) -> None:
    for content in ("", "[]", "{", '{"a": '):
        (tmp_path / "trusted.json").write_text(content)
        assert Consents(tmp_path / "trusted.json").given == {}


# the token


FAULTS = {
    "none": Fault(on="^$"),
    "401": Fault(status=401),
    "403": Fault(status=403),
    "404": Fault(status=404),
    "429": Fault(status=429),
    "500": Fault(status=500),
    "cut": Fault(on="GET .*safetensors", drop_at=10),
    "short": Fault(on="GET .*safetensors", missing=7),
    "config cut": Fault(on="GET .*config.json", drop_at=3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_token_is_never_told(
    fault: str, fake_hub: FakeHub, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Sent to the Hub, but not on the screen, in an error, in a log at its most talkative, or in any file."""
    import time

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    fake_hub.add("acme/tiny", llama_folder)
    fake_hub.add("acme/gated", llama_folder, gated=True)
    fake_hub.fault = FAULTS[fault]
    home = tmp_path / "home"
    home.mkdir()
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    quiet.install(home)
    root.setLevel(logging.DEBUG)
    try:
        session = Session(Settings(), Store(), Worker(), home / "archive.db")
        shell = Shell(session, Screen(interactive=True))
        shell.unopened = False
        for line in ("/plan acme/tiny", "/model acme/tiny", "/info", "/model acme/gated", "/info", "/model acme/no"):
            shell.run(line)
        shell.run("/info")
        assert any(request.token for request in fake_hub.requests)
        session.close()
    finally:
        logging.captureWarnings(False)
        root.setLevel(logging.WARNING)
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_an_error_does_not_repeat_what_holds_a_token() -> None:
    """Even a library that quotes its headers."""
    from repl.mishaps import sentence

    assert TOKEN not in sentence(ReplError(f"401 for Authorization: Bearer {TOKEN} at hub"))
