"""/plan: what is said of a model before its weights are fetched, and what typing a row's number does."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import driving
import pytest
from fakehub import FakeHub, sha

from repl.cli import shell as repl_shell
from repl.cli.shell import Shell
from repl.commands.plan import Plan
from repl.core.errors import BadModel, NotFound, Unreachable
from repl.core.jobs import Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.hub.validate import examine
from repl.hub.weight_headers import Weights
from repl.models.memory import plan
from repl.models.memory.available import Room
from repl.models.memory.fit import FITS, OFFLOAD, TOO_LARGE
from repl.models.memory.survey import Survey
from repl.models.store import Store
from repl.session.session import Session
from repl.terminal.screen import Screen, as_record

GB = 10**9
ROOMS = [Room("cpu", 64 * GB, 32 * GB)]
CARDS = [Room("cuda:0", 24 * GB, 20 * GB), Room("cuda:1", 24 * GB, 20 * GB), *ROOMS]
HEADER = 100_000  # bytes that the Hub's library reads of every file of weights


@contextmanager
def planning(rooms: list[Room] = ROOMS, offline: bool = False) -> Iterator[Session]:
    """A session that has loaded nothing yet."""
    session = Session(Settings(), Store(Runtime, offline=offline, measure=lambda: rooms), Worker())
    try:
        yield session
    finally:
        session.close()


def planned(session: Session, line: str) -> Plan:
    found = driving.run(session, line)
    assert isinstance(found, Plan)
    return found


@pytest.fixture
def heavy(llama_folder: Path, tmp_path: Path) -> Path:
    """A model whose weights are larger than what a header's request fetches, twice over."""
    from models import seeded
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    shape = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    with seeded(0):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **shape))
    model.save_pretrained(tmp_path / "heavy", max_shard_size="1MB")
    tokenizer.save_pretrained(tmp_path / "heavy")
    return tmp_path / "heavy"


def test_a_plan_fetches_no_weights(fake_hub: FakeHub, heavy: Path) -> None:
    """Headers, config and index are all that is read; the figures are those of the whole folder."""
    commit = fake_hub.add("acme/heavy", heavy)
    weights = examine(heavy)
    with planning() as session:
        found = planned(session, "/plan acme/heavy")
    assert fake_hub.sent < (len(weights.files) + 1) * HEADER < weights.bytes
    assert (found.parameters, found.stored) == (weights.parameters, weights.dtypes)
    assert (found.commit, found.gated, found.layers, found.context) == (commit, False, 4, 4096)
    assert found.fetch.items() >= {(name, (heavy / name).stat().st_size) for name in weights.files}
    assert found.fetch.keys() >= {"tokenizer.json"}
    assert "README.md" not in found.fetch
    assert 0 < found.cached < 20_000  # config and index
    assert [(row.form, row.tokens) for row in found.rows] == [
        (form, tokens) for form in plan.FORMS for tokens in (2048, 4096)
    ]
    assert found.rows[0].weights == weights.bytes == 2 * found.rows[2].weights
    assert all(row.needs == row.weights + row.cache + row.working for row in found.rows)


def test_what_is_cached_is_not_fetched_again(fake_hub: FakeHub, llama_folder: Path) -> None:
    """After a load there is nothing to download, and the Hub is not asked."""
    fake_hub.add("acme/tiny", llama_folder)
    with planning() as session:
        driving.run(session, "/model acme/tiny", "/info")
        before = len(fake_hub.requests)
        found = planned(session, "/plan")
        assert (found.model, found.fetch, len(fake_hub.requests)) == ("acme/tiny", {}, before)
        local = planned(session, f"/plan {llama_folder}")
        assert [row.needs for row in found.rows] == [row.needs for row in local.rows]


def test_a_gated_model_shows_what_can_be_told(fake_hub: FakeHub, llama_folder: Path) -> None:
    """Its size, that it is gated, and no table without a config."""
    fake_hub.add("acme/secret", llama_folder, gated=True)
    with planning() as session:
        found = planned(session, "/plan acme/secret")
    assert found.gated
    assert found.rows == []
    assert found.fetch["model.safetensors"] == (llama_folder / "model.safetensors").stat().st_size
    assert "gated: accept its terms" in driving.drawn(found)


def test_code_is_listed_with_its_commit_and_not_run(fake_hub: FakeHub, llama_folder: Path, tmp_path: Path) -> None:
    """Python files with sizes; the table is made from the plain numbers of the config."""
    folder = shutil.copytree(llama_folder, tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "zorg9", "auto_map": {"AutoModelForCausalLM": "modeling_z.Z", "AutoConfig": "conf.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    canary = tmp_path / "canary"
    for name in ("modeling_z.py", "conf.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w')")
    commit = fake_hub.add("acme/coded", folder)
    with planning() as session:
        found = planned(session, "/plan acme/coded")
        local = planned(session, f"/plan {folder}")
    size = (folder / "conf.py").stat().st_size
    assert found.code is not None
    assert (found.code.commit, found.code.files["conf.py"]) == (commit, size)
    assert local.code is not None
    assert local.code.files == found.code.files
    assert found.rows[0].cache == local.rows[0].cache > 0
    assert not canary.exists()
    assert "does not run unless you allow it" in driving.drawn(found)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("/plan acme/nothing", NotFound, "no model 'acme/nothing' on the Hub"),
        ("/plan acme/tiny@v9", NotFound, "no revision 'v9'"),
        ("/plan /nowhere", NotFound, "no folder or file '/nowhere'"),
    ],
)
def test_what_is_not_there_is_said_as_for_model(
    line: str, error: type[Exception], words: str, fake_hub: FakeHub, llama_folder: Path
) -> None:
    fake_hub.add("acme/tiny", llama_folder)
    with planning() as session, pytest.raises(error, match=words):
        driving.run(session, line)


@pytest.mark.parametrize("entry", [{"shape": ["x"]}, {"dtype": 7}])
def test_a_header_on_the_hub_that_lies_is_refused(
    entry: dict[str, object], fake_hub: FakeHub, llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    fake_hub.add("acme/liar", tmp_path)
    with planning() as session, pytest.raises(BadModel, match="weights of 'acme/liar' are not safetensors files"):
        driving.run(session, "/plan acme/liar")


def test_offline_asks_nobody(fake_hub: FakeHub) -> None:
    with planning(offline=True) as session, pytest.raises(Unreachable, match="offline"):
        driving.run(session, "/plan acme/tiny")
    assert fake_hub.requests == []


# the table


class Shape:
    """A config like that of a model of eight billion parameters."""

    num_hidden_layers, hidden_size, intermediate_size, vocab_size = 32, 4096, 14336, 128256
    num_attention_heads, num_key_value_heads, max_position_embeddings = 32, 8, 131072


BILLIONS = Weights(("a",), 8 * GB, 16 * GB, {"BF16": 8 * GB}, "safetensors", matrices=7 * GB)
EIGHT = Survey("c", BILLIONS, Shape())


def verdicts(rooms: list[Room]) -> dict[tuple[str, int], dict[str, str]]:
    return {(row.form, row.tokens): row.verdicts for row in plan.rows(EIGHT, Load("m"), rooms)}


def test_every_row_is_judged_on_every_device() -> None:
    found = verdicts(CARDS)
    assert found["bfloat16", 2048] == {"cuda:0": FITS, "cuda:1": FITS, plan.TOGETHER: FITS, "cpu": FITS}
    assert found["float32", 2048] == {"cuda:0": OFFLOAD, "cuda:1": OFFLOAD, plan.TOGETHER: FITS, "cpu": TOO_LARGE}
    assert found["float32", 131072] == dict.fromkeys(["cuda:0", "cuda:1", plan.TOGETHER, "cpu"], TOO_LARGE)
    assert found["4-bit", 8192]["cuda:0"] == FITS


def test_less_room_never_fits_more() -> None:
    """Longer texts and wider numbers never fit where shorter and narrower ones do not."""
    table = plan.rows(EIGHT, Load("m"), ROOMS)
    needs = {(row.form, row.tokens): row.needs for row in table}
    for shorter, longer in ((2048, 8192), (8192, 131072)):
        assert all(needs[form, shorter] < needs[form, longer] for form in plan.FORMS)
    for wider, narrower in (("float32", "bfloat16"), ("bfloat16", "8-bit"), ("8-bit", "4-bit")):
        assert all(needs[wider, tokens] > needs[narrower, tokens] for tokens in (2048, 8192, 131072))


@pytest.mark.parametrize(
    ("free", "taken"),
    [(64, ("bfloat16", 131072)), (21, ("bfloat16", 8192)), (12, ("8-bit", 8192)), (7, ("4-bit", 2048)), (1, None)],
)
def test_the_row_to_take_is_as_stored_where_that_fits(free: int, taken: tuple[str, int] | None) -> None:
    """With as much context as fits, and packed only where nothing else does."""
    table = plan.rows(EIGHT, Load("m"), [replace(ROOMS[0], free=free * GB)])
    number = plan.best(table, BILLIONS)
    assert ((table[number - 1].form, table[number - 1].tokens) if number else None) == taken


def test_a_packed_repository_is_weighed_as_it_is() -> None:
    config = Shape()
    config.quantization_config = {"quant_method": "gptq"}  # type: ignore[attr-defined]
    table = plan.rows(replace(EIGHT, config=config), Load("m"), ROOMS)
    assert {row.form for row in table} == {"as stored"}
    assert {row.weights for row in table} == {BILLIONS.bytes}


def test_the_parts_go_where_there_is_room(llama_folder: Path) -> None:
    """With two small cards and the machine: every part has a place, in order, and no card gets more than it holds."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(llama_folder)
    weights = examine(llama_folder)
    each = weights.bytes // 2
    rooms = [Room("cuda:0", each, each), Room("cuda:1", each, each), Room("cpu", GB, GB)]
    places = plan.plan_device_map(config, Load("m", device="sequential", dtype="float32"), rooms)
    assert set(places.values()) == {"cuda:0", "cuda:1", "cpu"}
    assert next(iter(places)) == "model.embed_tokens"


def test_a_plan_over_several_devices_shows_the_map(llama_folder: Path) -> None:
    with planning(CARDS) as session:
        found = planned(session, f"/plan {llama_folder}")
    assert set(found.device_map.values()) <= {"cuda:0", "cuda:1", "cpu"}
    assert found.device_map
    assert ": cuda:0\n" in driving.drawn(found)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_plan_can_be_read(llama_folder: Path, width: int) -> None:
    """No row is broken or cut, with two cards too; at 80 columns every number of the table is there."""
    for rooms in (ROOMS, CARDS):
        with planning(rooms) as session:
            text = driving.drawn(planned(session, f"/plan {llama_folder}"), width)
        assert all(len(line) <= width for line in text.splitlines())
        assert "…" not in text
        for number, form in enumerate(plan.FORMS, 1):
            assert f" {number} {form} " in " ".join(text.split())
        assert "fits" in text
        assert "needs" in text
        assert "Enter loads it as in row 1" in text
        assert width < 80 or "working" in text


# typed


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with planning() as session:
        made = Shell(session, Screen(interactive=True))
        made.unopened = False
        yield made


def lines(*typed: str) -> Callable[[str], str]:
    waiting = iter(typed)

    def read(draft: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return read


def test_weights_may_lie_on_disk_where_that_was_asked() -> None:
    """As the load itself would have it: with a folder for them, on no device by name, and not packed."""
    rooms = [replace(ROOMS[0], free=4 * GB)]
    asked = {row.form: row.verdicts["cpu"] for row in plan.rows(EIGHT, Load("m", offload_folder="/tmp"), rooms)}
    assert asked == {"float32": OFFLOAD, "bfloat16": OFFLOAD, "8-bit": TOO_LARGE, "4-bit": TOO_LARGE}
    named = plan.rows(EIGHT, Load("m", device="cuda:0"), CARDS)
    assert OFFLOAD not in {verdict for row in named for verdict in row.verdicts.values()}


@pytest.mark.parametrize(("typed", "dtype"), [("", "float32"), ("2", "bfloat16"), ("1", "float32")])
def test_a_number_or_an_empty_line_loads_it_so(shell: Shell, llama_folder: Path, typed: str, dtype: str) -> None:
    shell.interactive(lines(f"/plan {llama_folder}", typed, "/info"))
    assert shell.session.facts().dtype == dtype


def test_an_empty_line_means_nothing_a_line_later(shell: Shell, llama_folder: Path) -> None:
    """The offer stands for the very next line only; empty lines otherwise stay without effect."""
    shell.interactive(lines(f"/plan {llama_folder}", "/version", "", "2"))
    assert shell.session.loading is None
    assert shell.session.store.facts() is None


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_refused_offers_numbers(
    gpt2_folder: Path, capsys: Any, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that ends beside the prompt offers its remedies too, behind the line that waited for its end."""
    if beside:
        monkeypatch.setattr(Shell, "_wait_briefly", lambda shell, task: True)
    else:
        monkeypatch.setattr(repl_shell, "WAIT_FOR_LOAD_S", 30.0)
    with planning([Room("cpu", GB, 1000)]) as session:
        shell = Shell(session, Screen(interactive=True))
        shell.unopened = False
        shell.interactive(lines(f"/model {gpt2_folder}", *["/info"][: int(beside)], "1", "/info"))
        assert session.facts().id == str(gpt2_folder)
    said = capsys.readouterr().err
    assert "does not fit: it needs" in said
    assert f"1 /model! {gpt2_folder}" in " ".join(said.split())
    assert "sends the message again" not in said


def test_a_plan_is_plain_data(llama_folder: Path) -> None:
    """--json gets every field, and so the numbers."""
    with planning() as session:
        record = json.loads(json.dumps(as_record("plan", planned(session, f"/plan {llama_folder}"))))
    assert record["data"]["rows"][0]["verdicts"] == {"cpu": "fits"}
    assert record["data"]["rooms"] == [
        {"device": "cpu", "total": 64 * GB, "free": 32 * GB, "limit": "", "own": 0, "back": 0}
    ]
    assert sha(llama_folder) != record["data"]["commit"] == ""
