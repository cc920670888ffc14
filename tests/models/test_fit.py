"""What is free, and what becomes of a load that needs more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import driving
import pytest

from repl import models
from repl.core import settings
from repl.core.errors import NoMemory, UsageError
from repl.core.format import amount
from repl.core.jobs import Worker
from repl.core.settings import Load, Settings
from repl.generation.interface import Runtime
from repl.hub.weight_headers import Weights
from repl.models.memory import estimate, fit
from repl.models.memory.available import Room, capped, measure_rooms
from repl.models.memory.estimate import Needs
from repl.models.store import Store
from repl.session.session import Session

MB, GB = 10**6, 10**9
CPU = Room("cpu", 64 * GB, 32 * GB)
CARD, OTHER = Room("cuda:0", 24 * GB, 20 * GB), Room("cuda:1", 24 * GB, 20 * GB)


# whether it fits


def needing(size: int) -> Needs:
    return Needs(size, 0, 0)


@pytest.mark.parametrize(
    ("size", "load", "rooms", "verdict"),
    [
        (19, Load(), [CARD, CPU], fit.FITS),
        (21, Load(), [CARD, CPU], fit.OFFLOAD),
        (53, Load(), [CARD, CPU], fit.TOO_LARGE),
        (39, Load(), [CARD, OTHER, CPU], fit.FITS),
        (39, Load(device="cuda:1"), [CARD, OTHER, CPU], fit.TOO_LARGE),
        (19, Load(device="cuda"), [CARD, OTHER, CPU], fit.FITS),
        (31, Load(device="cpu"), [CARD, CPU], fit.FITS),
        (33, Load(device="cpu"), [CARD, CPU], fit.TOO_LARGE),
        (33, Load(), [CPU], fit.TOO_LARGE),
        (33, Load(offload_folder="/tmp"), [CPU], fit.OFFLOAD),
        (2, Load(max_memory="cpu=1GiB"), [CPU], fit.OFFLOAD),
        (2, Load(max_memory="cpu=1GiB", device="cpu"), [CPU], fit.TOO_LARGE),
        (21, Load(quantize="4bit"), [CARD, CPU], fit.TOO_LARGE),
    ],
)
def test_a_load_fits_where_it_is_to_go(size: int, load: Load, rooms: list[Room], verdict: str) -> None:
    """Parts may go to slower memory only where the device is not named, and to the disk only where that was asked."""
    assert fit.verdict(needing(size * GB), load, rooms) == verdict


def test_the_smallest_change_that_fits_comes_first() -> None:
    """Half the width before packing, and nothing that would not do."""
    weights = Weights(("a",), 10 * GB, 40 * GB, {"F32": 10 * GB}, "safetensors", matrices=9 * GB)
    with pytest.raises(
        NoMemory, match=r"m does not fit: it needs 37\.\d+ GiB .*, and cpu has 29\.80 GiB free"
    ) as caught:
        fit.check_fits(weights, object(), Load("owner/m", device="cpu"), [CPU])
    lines = [line for line, _ in caught.value.choices]
    assert lines[0] == "/model owner/m device=cpu dtype=bfloat16"
    assert lines[-1] == "/model! owner/m"


def test_what_no_memory_holds_may_stay_on_disk() -> None:
    """Only where nothing else fits; memory keeps room for the text, and the line loads without another refusal."""
    weights = Weights(("a",), 10 * GB, 40 * GB, {"F32": 10 * GB}, "safetensors", matrices=9 * GB)
    rooms = [replace(CPU, free=GB)]
    with pytest.raises(NoMemory) as caught:
        fit.check_fits(weights, object(), Load("owner/m"), rooms)
    (line, effect), (override, _) = caught.value.choices
    assert override == "/model! owner/m"
    words = dict(word.split("=", 1) for word in line.removeprefix("/model owner/m ").split())
    load = Load("owner/m", **words)
    (kept,) = capped(rooms, load.max_memory)
    needs = estimate.estimate_needs(weights, object(), load)
    assert 0 <= GB - kept.free - needs.cache - needs.working < 2**20
    assert effect.startswith(f"{amount(needs.weights - kept.free)} of the weights stay on disk")
    fit.check_fits(weights, object(), load, rooms)


def test_packing_is_offered_where_it_works() -> None:
    """On the CPU the kernels of torch, which are tried first; what is packed already is not packed again."""
    weights = Weights(("a",), 10 * GB, 20 * GB, {"BF16": 10 * GB}, "safetensors", matrices=9 * GB)
    load = Load("owner/m", dtype="bfloat16", device="cpu")
    kernels = [form for form in ("int8", "int4") if models.quantization.can_quantize(replace(load, quantize=form))]
    assert [change["quantize"] for change in fit.load_changes(weights, load, [CPU])] == kernels
    assert list(fit.load_changes(weights, replace(load, quantize="int8"), [CPU])) == []
    card = models.quantization.can_quantize(replace(load, device="cuda", quantize="8bit"))
    assert card == (find_spec("bitsandbytes") is not None)


def test_a_device_that_is_not_there_is_no_matter_of_room() -> None:
    """Placing says so in its own words."""
    weights = Weights(("a",), 10 * GB, 40 * GB, {"F32": 10 * GB}, "safetensors")
    fit.check_fits(weights, object(), Load("owner/m", device="cuda"), [CPU])


def test_a_name_with_spaces_reads_back() -> None:
    """What a choice types is what the command takes."""
    from repl.commands import registry

    line = fit.load_line(Load("/my models/a", revision="v1", dtype="float32"), {"quantize": "4bit"})
    arguments, _ = registry.parse_arguments(registry.find_command("model"), registry.split_name(line)[1])
    assert arguments == ["/my models/a@v1", ("dtype", "float32"), ("quantize", "4bit")]


# the real thing


@contextmanager
def limited(folder: Path, free: int) -> Iterator[Session]:
    """A session with a model of a folder, on a machine with so many bytes free for the next."""
    rooms = [Room("cpu", 10**12, 10**12)]
    chosen = Settings().put("model", str(folder), "you").put("dtype", "float32", "you")
    session = Session(chosen, Store(Runtime, offline=True, measure=lambda: rooms), Worker())
    try:
        driving.finish(session.load(chosen))
        rooms[0] = Room("cpu", 10**9, free)
        yield session
    finally:
        session.close()


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_the_old_model_stays(llama_folder: Path, builtin_folder: Path) -> None:
    """Needed against free, what would fit, and a way to load anyway; nothing of the session changes."""
    with limited(llama_folder, 560 * MB) as session:
        before, resident = session.settings, session.store.current()
        with pytest.raises(NoMemory, match=r"does not fit: it needs .* and cpu has 534 MiB free") as caught:
            driving.run(session, f'/model "{builtin_folder}"', "/info")
        assert session.settings == before
        assert session.store.current() is resident
        first, effect = caught.value.choices[0]
        assert first == f"/model {builtin_folder} dtype=bfloat16"
        assert effect.startswith("needs ")
        driving.run(session, "/max_new_tokens 2")
        assert driving.ask(session, "Hello").finish == "length"
        driving.run(session, first, "/info")
        assert session.facts().dtype == "bfloat16"


@pytest.mark.slow
def test_all_the_same_means_all_the_same(llama_folder: Path, gpt2_folder: Path) -> None:
    """/model! loads what does not seem to fit; for that load alone."""
    with limited(llama_folder, 1) as session:
        with pytest.raises(NoMemory):
            driving.run(session, f"/model {gpt2_folder}", "/info")
        driving.run(session, f"/model! {gpt2_folder}", "/info")
        assert session.facts().id == str(gpt2_folder)
        with pytest.raises(NoMemory):
            driving.run(session, "/dtype bfloat16", "/info")


@pytest.mark.slow
def test_what_the_old_model_gives_back_counts_as_free(llama_folder: Path) -> None:
    """Converted weights are freed with their model; weights mapped from the file are counted as free by the system."""
    with limited(llama_folder, 0) as session:
        assert session.store.rooms()[0].free == 0
        session.store.allowed.add(session.settings.put("dtype", "bfloat16", "you").load)
        driving.run(session, "/dtype bfloat16", "/info")
        assert session.store.rooms()[0].free == session.facts().bytes


@pytest.mark.slow
def test_load_settings_may_follow_a_model(llama_folder: Path, gpt2_folder: Path) -> None:
    with limited(llama_folder, GB) as session:
        driving.run(session, f"/model {gpt2_folder} dtype=bfloat16 device=cpu", "/info")
        assert (session.facts().dtype, session.settings.load.device) == ("bfloat16", "cpu")
        with pytest.raises(UsageError, match="temperature has nothing to do with loading"):
            driving.run(session, f"/model {gpt2_folder} temperature=0.5")
        assert settings.Settings().load.device == "auto"


def test_every_load_is_weighed_for_a_short_talk() -> None:
    config = type("Config", (), {"max_position_embeddings": 100_000, "hidden_size": 8, "num_hidden_layers": 1})
    found = estimate.estimate_needs(Weights(("a",), 1, 4, {"F32": 1}, "safetensors"), config, Load())
    assert found.cache == estimate.cache_bytes(config, estimate.GLANCE_TOKENS, 4)


def test_cards_whose_driver_is_too_old_are_no_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted, and cannot be asked: `is_available` says no."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [room.device for room in measure_rooms()] == ["cpu"]
