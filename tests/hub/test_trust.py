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

from repl.cli.shell import Shell
from repl.commands.trust import Trust
from repl.core import log
from repl.core.errors import BadModel, ReplError, UsageError, sentence
from repl.core.jobs import Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.hub import consent
from repl.hub.cache import LocalModel
from repl.hub.consent import Consents
from repl.hub.validate import NeedsCode
from repl.models.store import Store
from repl.session.session import Session
from repl.terminal.screen import Screen

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
    made = Session(Settings(), Store(Runtime, consents=Consents(tmp_path / "trusted.json")), Worker())
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_later_session_that_begins_with_the_model_runs_the_same_code_alone(
    session: Session, llama_folder: Path, canary: Path, tmp_path: Path
) -> None:
    folder = coded(tmp_path / "coded", llama_folder, canary)
    with pytest.raises(NeedsCode):
        load(session, folder)
    driving.run(session, "/trust always", "/info")
    named = Settings().put("model", str(folder), "command line")

    def begin(settings: Settings) -> None:
        later = Session(settings, Store(Runtime, consents=Consents(tmp_path / "trusted.json")), Worker())
        try:
            driving.finish(later.load(later.settings))
        finally:
            later.close()

    begin(named)
    with pytest.raises(NeedsCode):
        begin(named.put("trust_remote_code", False, "command line"))
    (folder / "modeling_z.py").write_text((folder / "modeling_z.py").read_text() + "# changed\n")
    with pytest.raises(NeedsCode, match="changed since you allowed it"):
        begin(named)


@pytest.mark.slow
def test_no_takes_consent_back(session: Session, llama_folder: Path, canary: Path, tmp_path: Path) -> None:
    folder = coded(tmp_path / "coded", llama_folder, canary)
    with pytest.raises(NeedsCode):
        load(session, folder)
    driving.run(session, "/trust always", "/info", "/trust no")
    load(session, llama_folder)
    with pytest.raises(NeedsCode):
        load(session, folder)
    assert json.loads((tmp_path / "trusted.json").read_text()) == {}


def test_a_consent_goes_over_to_no_other_model(
    session: Session, llama_folder: Path, canary: Path, tmp_path: Path
) -> None:
    """Not with a preset, not with a conversation that names another model; and one taken back does not come again."""
    folder = coded(tmp_path / "coded", llama_folder, canary)
    other = coded(tmp_path / "other", llama_folder, tmp_path / "other ran")
    with pytest.raises(NeedsCode):
        load(session, folder)
    driving.run(session, "/trust yes", "/info", "/greedy", "/preset save calm")
    assert session.presets["calm"] == {"do_sample": "off", "num_beams": "1"}
    with pytest.raises(NeedsCode):
        driving.finish(session.load(session.settings.put("model", str(other), "this conversation")))
    assert not (tmp_path / "other ran").exists()
    session.forget_refusal()
    driving.run(session, "/trust no")
    with pytest.raises(NeedsCode):
        driving.run(session, "/reload", "/info")


def test_without_a_refusal_there_is_nothing_to_allow(session: Session, llama_folder: Path) -> None:
    load(session, llama_folder)
    with pytest.raises(UsageError, match="no model needs your consent"):
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


def altered(path: Path) -> None:
    path.write_text(path.read_text() + "# another byte\n")


def renamed(path: Path) -> None:
    path.rename(path.with_name("other.py"))


def moved(path: Path) -> None:
    path.rename(next(path.parents[up] for up in (0, 1) if (path.parents[up] / "moved").exists()) / "moved" / path.name)


def added(path: Path) -> None:
    (path.parent / "added.py").touch()


def relinked(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("b")


def remapped(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "modeling_z.Config"
    (folder / "config.json").write_text(json.dumps(config))


CODE = (
    "modeling_z.py",
    "a/same.py",
    "b/same.py",
    "custom_generate/generate.py",
    "kernels/fast.cu",
    "lib/x.SO",
    ".h/i.py",
)
CHANGES = {
    **{f"{each.__name__} {name}": (each, name) for name in CODE for each in (altered, renamed, moved, added)},
    "the class that is asked for": (remapped, ""),
    "a link to a folder": (relinked, ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_code_asks_again(name: str, llama_folder: Path, tmp_path: Path) -> None:
    """Whatever could run is watched by its path: no file can change, come, go or change places unseen."""
    folder = coded(tmp_path / "coded", llama_folder, tmp_path / "canary")
    (folder / "moved").mkdir()
    for file in CODE[1:]:
        (folder / file).parent.mkdir()
        (folder / file).write_text("x = 1\n")
    (folder / "link").symlink_to("a")
    load, found = Load(model=str(folder), trust_remote_code=True), LocalModel(str(folder), folder, "", "")
    consents = Consents(tmp_path / "trusted.json")
    consents.give(load.model, consent.mark(found), lasting=True)
    change, file = CHANGES[name]
    consents.check(load, found)
    change(folder / file)
    with pytest.raises(NeedsCode, match="changed since you allowed it"):
        Consents(tmp_path / "trusted.json").check(load, found)


def test_two_files_that_change_places_are_a_change(llama_folder: Path, tmp_path: Path) -> None:
    folder = coded(tmp_path / "coded", llama_folder, tmp_path / "canary")
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "same.py").write_text(name)
    found = LocalModel(str(folder), folder, "", "")
    before = consent.mark(found)
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")
    assert consent.mark(found) != before


OUTSIDE: dict[str, dict[str, Any]] = {
    "config.json": {"auto_map": {"AutoModel": "other/repo--m.M"}},
    "config.4.0.0.json": {"auto_map": {"AutoConfig": "other/repo--m.M"}},
    "preprocessor_config.json": {"auto_map": {"AutoProcessor": "other/repo--m.M"}},
    "tokenizer_config.json": {"auto_map": ["other/repo--m.M", None]},
    "processor_config.json": {"inner": [{"auto_map": {"A": "other/repo--m.M"}}, {"auto_map": {"A": "m.M"}}]},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_config_takes_code_from_elsewhere(name: str, llama_folder: Path, tmp_path: Path) -> None:
    """Wherever the library would read it: an older config, a processor, the older form for tokenizers."""
    folder = shutil.copytree(llama_folder, tmp_path / "sly")
    before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(before | OUTSIDE[name]))
    for gguf_file in ("", "x.gguf"):
        with pytest.raises(BadModel, match=rf"{name} takes code from another repository"):
            Consents().check(Load(model=str(folder)), LocalModel(str(folder), folder, "", gguf_file))


@pytest.mark.parametrize("link", ["modeling_y.py", "sub/modeling_y.py", "folder"])
def test_code_behind_a_link_that_leads_out_is_refused(link: str, llama_folder: Path, tmp_path: Path) -> None:
    """What lies outside could change unseen; so could what a config names by a full path."""
    folder = coded(tmp_path / "coded", llama_folder, tmp_path / "canary")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "modeling_y.py").touch()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "out" / ("" if link == "folder" else "modeling_y.py"))
    with pytest.raises(BadModel, match="link that leads out of the folder"):
        Consents().check(Load(model=str(folder)), LocalModel(str(folder), folder, "", ""))
    (folder / link).unlink()
    named = {"AutoModel": f"{tmp_path}/out/modeling_y.Y"}
    (folder / "config.json").write_text(json.dumps({"auto_map": named}))
    with pytest.raises(BadModel, match="leads out of the folder"):
        Consents().check(Load(model=str(folder)), LocalModel(str(folder), folder, "", ""))


def test_a_consent_is_for_a_folder_however_its_path_is_typed(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = coded(tmp_path / "coded", llama_folder, tmp_path / "canary")
    consents = Consents(tmp_path / "trusted.json")
    consents.give(str(folder), "mark", lasting=True)
    monkeypatch.chdir(tmp_path)
    for typed in ("coded", "./coded/", str(folder / ".." / "coded")):
        assert Consents(tmp_path / "trusted.json").allows(typed)
    assert consents.withdraw("./coded")
    assert not Consents(tmp_path / "trusted.json").allows(str(folder))


def test_a_consent_that_watched_less_is_asked_for_again(llama_folder: Path, tmp_path: Path) -> None:
    folder = coded(tmp_path / "coded", llama_folder, tmp_path / "canary")
    consents = Consents()
    consents.give(str(folder), "0" * 40)
    with pytest.raises(NeedsCode, match="changed since you allowed it"):
        consents.check(Load(model=str(folder)), LocalModel(str(folder), folder, "", ""))


TOKENIZER = """
import pathlib
from transformers import PreTrainedTokenizerFast
pathlib.Path({canary!r}).touch()
class Tok(PreTrainedTokenizerFast):
    pass
"""


def test_code_in_a_tokenizer_alone_leads_to_the_question(
    session: Session, llama_folder: Path, canary: Path, tmp_path: Path
) -> None:
    """The model is the library's own; its tokenizer is made by a file in a folder below."""
    folder = shutil.copytree(llama_folder, tmp_path / "tok")
    options = {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": [None, "tok.Tok"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    (folder / "tok.py").write_text(TOKENIZER.format(canary=str(canary)))
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(NeedsCode, match=r"tokenizer_config.json asks .*\(tok\.py\)") as caught:
        load(session, folder)
    assert caught.value.hints == ("/trust",)
    assert list(driving.run(session, "/trust").files) == ["tok.py"]
    assert not canary.exists()
    (folder / "vocab.json").rename(folder / "tokenizer.json")
    driving.run(session, "/trust yes", "/info")
    assert canary.exists()


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


@pytest.mark.slow
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
    log.install(home)
    root.setLevel(logging.DEBUG)
    try:
        session = Session(Settings(), Store(Runtime), Worker(), home / "archive.db")
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

    assert TOKEN not in sentence(ReplError(f"401 for Authorization: Bearer {TOKEN} at hub"))
