"""The catalogue: what is in memory, in the cache and on the Hub, without ever waiting long for the Hub."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driving
import pytest
from conftest import Recorder
from driving import drawn, run
from fakehub import FakeHub, Fault

from repl.cli.shell import Shell
from repl.commands import registry
from repl.commands.memory import Memory
from repl.commands.model_list import ModelList, ResidentRow
from repl.commands.models import Info
from repl.core.errors import Cancelled, NoModel, NotFound, Unreachable, UsageError
from repl.core.events import Progress
from repl.core.format import amount
from repl.core.jobs import CachedLookup, Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.hub import cache as hub_cache
from repl.hub import catalog
from repl.hub.catalog import Cached, Listed
from repl.models.store import Store
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.screen import to_jsonable

HANG = 20.0  # seconds: far above what any of this takes
FACTS = {
    "downloads": 1_234_567,
    "tags": ["text-generation", "license:mit"],
    "pipeline_tag": "text-generation",
    "usedStorage": 5 << 20,
    "safetensors": {"parameters": {"BF16": 1_500_000}, "total": 1_500_000},
    "cardData": {"license": "mit", "language": ["en", "de"], "base_model": "acme/base"},
    "config": {"architectures": ["LlamaForCausalLM"]},
}


@pytest.fixture
def hub(fake_hub: FakeHub, llama_folder: Path) -> FakeHub:
    fake_hub.add("acme/tiny", llama_folder, facts=FACTS)
    return fake_hub


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Settings(), Store(Runtime), Worker())
    yield made
    assert made.close(30)


# listing


def test_a_search_says_what_one_chooses_by(hub: FakeHub, llama_folder: Path, session: Session) -> None:
    hub.add("acme/tiny-gated", llama_folder, gated=True, facts={"downloads": 5})
    hub.add("other/thing", llama_folder)
    found = run(session, "/models TINY")
    assert isinstance(found, ModelList)
    assert to_jsonable(found)["hub"] == [
        {
            "id": "acme/tiny",
            "downloads": 1_234_567,
            "parameters": 1_500_000,
            "bytes": 5 << 20,
            "gated": False,
            "licence": "mit",
        },
        {"id": "acme/tiny-gated", "downloads": 5, "parameters": 0, "bytes": 0, "gated": True, "licence": ""},
    ]
    text = drawn(found)
    assert "1  acme/tiny " in text
    assert "mit" in text
    assert "gated" in text
    assert "1.2M downloads" in text


def test_the_cache_is_listed_with_size_and_state(hub: FakeHub, session: Session) -> None:
    run(session, "/download acme/tiny")
    run(session, "/download acme/tiny")  # once more changes nothing
    partial = hub_cache.home() / "models--acme--half"
    whole = hub_cache.snapshot("acme/tiny", "main")
    assert whole is not None
    commit = partial / "snapshots" / whole.name
    commit.mkdir(parents=True)
    (partial / "refs").mkdir()
    (partial / "refs" / "main").write_text(whole.name)
    shutil.copy(whole / "config.json", commit / "config.json")
    found = run(session, "/models")
    by_id = {each.id: each for each in found.cached}
    tiny = by_id["acme/tiny"]
    files = [path for path in (whole.parent.parent / "blobs").iterdir() if path.is_file()]
    assert (tiny.complete, tiny.dtype) == (True, "float32")
    assert tiny.bytes == sum(path.stat().st_size for path in files)
    assert tiny.parameters == parameters(whole)
    assert abs(tiny.used - time.time()) < 3600
    assert not by_id["acme/half"].complete
    assert found.hub == []  # what is in the cache is not listed twice
    assert "partial" in drawn(found)


def parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as content:
        return sum(content.get_tensor(name).numel() for name in content.offset_keys())


def test_without_a_cache_nothing_is_cached(emit: Recorder) -> None:
    assert catalog.list_cached(emit) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault(silent=True), Fault(status=500), Fault(status=429)])
def test_a_hub_that_fails_is_passed_over(hub: FakeHub, session: Session, fault: Fault) -> None:
    hub.fault = fault
    began = time.monotonic()
    found = run(session, "/models tiny")
    assert (found.hub, found.silence) == ([], "the Hub does not answer")
    assert "the Hub does not answer" in drawn(found)
    assert time.monotonic() - began < HANG


def test_offline_nobody_is_asked(hub: FakeHub) -> None:
    made = Session(Settings(), Store(Runtime, offline=True), Worker())
    found = run(made, "/models tiny")
    assert (found.hub, found.silence) == ([], "offline: the Hub is not used")
    catalog.ModelNames()()
    with pytest.raises(Unreachable, match="offline"):
        run(made, "/info acme/tiny")
    made.close()
    assert hub.requests == []


@pytest.mark.slow
def test_a_number_loads_what_stands_there(hub: FakeHub, session: Session) -> None:
    run(session, "/download acme/tiny")
    shell = Shell(session, Silent())  # type: ignore[arg-type]
    shell.unopened = False
    assert shell.run("/models tiny")
    assert shell.run("1")
    assert session.facts().id == "acme/tiny"
    assert shell.offered == ([], "")


class Silent:
    """A screen that shows nothing."""

    as_json = interactive = False

    def __getattr__(self, name: str) -> Any:
        class Terminal:
            is_terminal, width, size, file = False, 80, (80, 25), io.StringIO()

        return Terminal() if name in ("out", "err") else lambda *_: None


def test_in_a_narrow_window_a_name_stays_whole() -> None:
    """What is said of a model goes below it then; numbers and facts are those of the wide window."""
    name = "somebody/a-model-with-a-rather-long-name-instruct"
    found = ModelList(
        [ResidentRow("llama", "float32", 137_000, 600_000, True, "/model llama")],
        [Cached(name, 5 << 30, False, "", 0, time.time())],
        [Listed("meta/other", 14_000_000, 8_000_000_000, 16 << 30, True, "llama3.1")],
    )
    wide, narrow = drawn(found, 140), drawn(found, 60)
    assert f"2  {name} " in wide
    assert "3  meta/other " in wide
    assert [line.rstrip() for line in narrow.splitlines()] == [
        "   in memory",
        "1  llama",
        "   137K · 586 KiB · float32 · current",
        "   cached",
        f"2  {name}",
        "   5.00 GiB · partial",
        "   on the Hub",
        "3  meta/other",
        "   8.0B · 16.00 GiB · llama3.1 · gated · 14M downloads",
        "type a number to load a model · /info ID describes one",
    ]


# cards


def test_a_card_tells_what_the_hub_knows(hub: FakeHub, llama_folder: Path, session: Session) -> None:
    card = run(session, "/info acme/tiny")
    assert (card.source, card.licence, card.downloads, card.gated) == ("Hub", "mit", 1_234_567, False)
    assert (card.languages, card.base_models, card.task) == (["en", "de"], ["acme/base"], "text-generation")
    assert (card.architecture, card.parameters, card.dtype) == ("LlamaForCausalLM", 1_500_000, "bfloat16")
    sizes = {path.name: path.stat().st_size for path in llama_folder.iterdir()}
    assert dict(card.files) == sizes
    assert not card.cached
    assert "1,234,567" in drawn(card)
    assert "model.safetensors" in drawn(card)


def test_a_card_of_a_silent_hub_comes_from_the_cache(hub: FakeHub, session: Session) -> None:
    run(session, "/download acme/tiny")
    hub.fault = Fault(status=500)
    card = run(session, "/info acme/tiny")
    assert (card.source, card.cached, card.architecture) == ("cache", True, "LlamaForCausalLM")
    assert "the Hub did not answer" in drawn(card)


def test_a_card_that_is_nowhere_is_an_error(hub: FakeHub, session: Session) -> None:
    with pytest.raises(NotFound, match="no model 'acme/none'"):
        run(session, "/info acme/none")


def test_foreign_words_cannot_act_on_the_terminal(hub: FakeHub, llama_folder: Path, session: Session) -> None:
    hub.add("evil/one", llama_folder, facts={**FACTS, "cardData": {"license": "mit\x1b[31m\r\u202e"}})
    text = drawn(run(session, "/info evil/one"))
    assert not {"\x1b", "\r", "\u202e"} & set(text)


# download and delete


def test_a_download_can_be_stopped_and_keeps_whole_files(hub: FakeHub, session: Session) -> None:
    """What is whole by then is not fetched again."""
    hub.fault = Fault(on="GET .*safetensors", delay=0.05)
    task = registry.parse_line("/download acme/tiny").run(session)

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and event.unit == "B" and event.done:
            task.job.cancel()

    with pytest.raises(Cancelled, match=r"complete files are kept; .* will restart"):
        driving.finish(task, stop)
    hub.fault = Fault(on="^$")
    hub.requests.clear()
    said = run(session, "/download acme/tiny")
    assert "acme/tiny is in the cache" in said.text
    fetched = [path.rpartition("/")[2] for path in hub.asked("GET", "resolve")]
    assert "model.safetensors" in fetched
    assert "config.json" not in fetched


@pytest.mark.slow
def test_deleting_asks_and_says_what_is_freed(hub: FakeHub, llama_folder: Path, session: Session) -> None:
    hub.add("acme/twin", llama_folder)  # the same commit in another repository
    run(session, "/download acme/tiny", "/download acme/twin")
    place = hub_cache.home() / "models--acme--tiny"
    size = sum(path.stat().st_size for path in (place / "blobs").iterdir() if path.is_file())
    asked = run(session, "/delete acme/tiny")
    assert asked.freed.bytes == size
    assert place.is_dir()
    assert drawn(asked).startswith(f"acme/tiny takes {amount(size)} in ")
    assert drawn(asked).count("1 deletes it\n") == 1
    said = run(session, *(line for line, _ in asked.choices))
    assert isinstance(said, Message)
    assert not place.exists()
    assert hub_cache.find_cached(Load("acme/twin")) is not None
    with pytest.raises(NotFound, match="'acme/tiny' is not in the cache; cached models: acme/twin"):
        run(session, "/delete acme/tiny --yes")


@pytest.mark.slow
def test_what_is_in_memory_is_not_deleted(hub: FakeHub, session: Session) -> None:
    driving.finish(session.load(session.settings.put("model", "acme/tiny", "you")))
    with pytest.raises(UsageError, match="in memory"):
        run(session, "/delete acme/tiny --yes")
    with pytest.raises(UsageError, match="built-in"):
        run(session, "/delete builtin")
    run(session, "/unload acme/tiny", "/delete acme/tiny --yes")
    assert hub_cache.find_cached(Load("acme/tiny")) is None


# completion


def test_completion_never_waits_and_learns(hub: FakeHub, session: Session) -> None:
    """The first key gets what is known; what is cached since is there a moment later, by owner or by name."""
    hub.fault = Fault(on="api/models", delay=0.0, silent=True)
    names = catalog.ModelNames()
    began = time.monotonic()
    assert "builtin" in names(offline=False)
    assert time.monotonic() - began < 1.0  # the Hub says nothing for a minute
    hub.fault = Fault(on="^$")
    run(session, "/download acme/tiny")
    deadline = time.monotonic() + HANG
    while ("acme/tiny", "") not in registry.complete_line("/model acme/t"):
        assert time.monotonic() < deadline, "the cache was not looked at again"
        time.sleep(0.1)
    assert ("acme/tiny", "") in registry.complete_line("/model acme/t")
    assert ("acme/tiny", "") in registry.complete_line("/model tin")
    assert registry.complete_line("/model cme") == []


def test_models_in_memory_are_offered_too(llama_folder: Path) -> None:
    """A folder that is loaded is neither in the cache nor on the Hub; only what is in memory can be freed."""
    with driving.opened(llama_folder) as session:
        line = f"/model {str(llama_folder)[:-2]}"
        assert (str(llama_folder), "") in registry.complete_line(line, session)
        assert registry.complete_line("/unload ", session) == [(str(llama_folder), "")]


@pytest.mark.slow
def test_what_is_loaded_already_is_said_in_few_words(llama_folder: Path) -> None:
    """Only what was typed is spoken of; another model in memory is named where the current one went."""
    with driving.opened(llama_folder) as session:
        assert run(session, f"/model {llama_folder}").text == f"model is {llama_folder} already"
        run(session, "/dtype bfloat16", "/unload")
        with pytest.raises(NoModel, match="no model is in use") as caught:
            run(session, "/unload")
        assert caught.value.hints == (f"/model {llama_folder}",)


@pytest.mark.slow
def test_a_number_switches_to_a_model_as_it_lies_in_memory(llama_folder: Path) -> None:
    """Settings that are others by now are named in the line behind the number."""
    with driving.opened(llama_folder, dtype="bfloat16") as session:
        run(session, "/quantize int8", "/dtype float32", "/quantize none")
        found = run(session, "/models")
        forms = {row.dtype: line for row, (line, _) in zip(found.resident, found.choices, strict=False)}
        assert {"float32", "bfloat16"} <= forms.keys()
        assert forms["float32"] == f"/model {llama_folder}"
        held = session.store.residents()
        run(session, forms["bfloat16"], "/info")
        assert session.facts().dtype == "bfloat16"
        assert set(map(id, held)) == set(map(id, session.store.residents()))


def test_the_most_used_models_of_the_hub_are_offered(hub: FakeHub) -> None:
    names = catalog.ModelNames()
    deadline = time.monotonic() + HANG
    while "acme/tiny" not in names(offline=False):
        assert time.monotonic() < deadline, "no name of the Hub came"
        time.sleep(0.02)


def test_a_lookup_is_not_made_again_while_it_is_fresh() -> None:
    looks: list[int] = []

    def look() -> int:
        looks.append(1)
        return len(looks)

    lookup = CachedLookup(look, 0, 1000.0)
    assert [lookup.now(5.0), lookup.now(5.0)] == [1, 1]
    stale = CachedLookup(look, 0, 0.0)
    assert [stale.now(5.0), stale.now(5.0)] == [2, 3]


# in memory


def test_a_switch_keeps_the_cache_of_the_text(llama_folder: Path, gpt2_folder: Path) -> None:
    """Back with the first model, what was said there need not be computed again."""
    with driving.opened(llama_folder, max_new_tokens=4) as session:
        first = driving.ask(session, "Hello there")
        run(session, f"/model {gpt2_folder}", f"/model {llama_folder}")
        again = driving.ask(session, "And more")
        assert again.usage.reused >= len(first.prompt_ids)
        shown = run(session, "/memory")
    assert isinstance(shown, Memory)
    current, other = shown.models
    assert (current.current, other.current) == (True, False)
    assert current.tokens == len(again.prompt_ids) + len(again.token_ids) - 1
    assert current.cache > 0
    assert other.tokens == 0


def test_memory_counts_the_bytes_of_weights_and_cache(llama_folder: Path) -> None:
    with driving.opened(llama_folder, max_new_tokens=4) as session:
        driving.ask(session, "Hello there")
        shown = run(session, "/memory")
        resident = session.store.current()
        model, kept = resident.model, resident.runtime.kv_cache
        cache = kept._cache  # the very tensors are compared
        weights = sum(each.numel() * each.element_size() for each in model.parameters())
        stores = {
            part.untyped_storage().data_ptr(): part for layer in cache.layers for part in (layer.keys, layer.values)
        }
        token = sum(part.numel() * part.element_size() for part in stores.values()) // cache.get_seq_length()
        prompt = len(session.last.record.prompt_ids)
    (one,) = shown.models
    assert weights <= one.weights <= weights * 1.1
    assert one.cache == cache.get_seq_length() * token
    assert cache.get_seq_length() >= prompt
    (cpu,) = [each for each in shown.devices if each.name == "cpu"]
    assert 0 < cpu.program < cpu.total
    assert 0 < cpu.free < cpu.total
    assert "keep_models auto" in drawn(shown)


@pytest.mark.slow
def test_one_of_two_is_shown_and_unloaded_by_name(llama_folder: Path, gpt2_folder: Path) -> None:
    with driving.opened(llama_folder) as session:
        run(session, f"/model {gpt2_folder}")
        info = run(session, f"/info {llama_folder.name}")
        assert isinstance(info, Info)
        assert info.facts.architecture == "LlamaForCausalLM"
        assert run(session, "/info").facts.architecture == "GPT2LMHeadModel"
        listed = run(session, "/models")
        assert [(row.id, row.current) for row in listed.resident] == [
            (str(gpt2_folder), True),
            (str(llama_folder), False),
        ]
        assert "unloaded" in run(session, f"/unload {llama_folder.name}").text
        assert len(session.store.residents()) == 1
        assert "/reload the same" in run(session, "/unload").text
        with pytest.raises(NoModel):
            run(session, "/info")


@pytest.mark.slow
def test_reading_anew_takes_the_files_as_they_are(gpt2_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(gpt2_folder, copy)
    with driving.opened(copy) as session:
        before = session.store.current()
        driving.run(session, "/reload")
        assert session.store.current() is not before
        assert len(session.store.residents()) == 1
