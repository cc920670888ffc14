"""Where weights go: the device map in words, what was kept off the device, and that it answers all the same."""

from pathlib import Path

import pytest
from driving import ask, ask_until, bare, generated, opened, run

from repl import models
from repl.core.errors import BadModel, UsageError
from repl.core.events import Token
from repl.core.format import format_map, tally_layers
from repl.core.settings import Load

pytestmark = pytest.mark.library

SPREAD = {
    "model.embed_tokens": "cuda:0",
    **{f"model.layers.{number}": "cuda:0" for number in range(12)},
    **{f"model.layers.{number}": "cpu" for number in range(12, 30)},
    "model.layers.30.self_attn": "cpu",
    "model.layers.30.mlp": "disk",
    "model.layers.31": "disk",
    "model.norm": "cpu",
}


def test_a_device_map_is_folded_layer_by_layer():
    assert format_map(SPREAD) == [
        "model.embed_tokens: cuda:0",
        "model.layers.0-11: cuda:0",
        "model.layers.12-29: cpu",
        "model.layers.30.self_attn: cpu",
        "model.layers.30.mlp: disk",
        "model.layers.31: disk",
        "model.norm: cpu",
    ]
    assert format_map({"": "cpu"}) == ["all: cpu"]


def test_a_spread_model_says_how_many_layers_are_slow():
    assert tally_layers(SPREAD) == {"cuda:0": 12, "cpu": 19, "disk": 2}
    assert models.device_map.placement_remarks(Load(), SPREAD) == [
        "19 of 33 layers on the CPU and 2 of 33 layers on disk: slow"
    ]
    assert models.device_map.placement_remarks(Load(device="cpu"), {"": "cuda:0"}) == []


def test_max_memory_without_a_map_to_spread_is_said_to_have_no_effect():
    assert (
        "no effect with device cuda:0"
        in models.device_map.placement_remarks(Load(device="cuda:0", max_memory="0=1GiB"), {"": "cuda:0"})[0]
    )


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadModel, match="no CUDA device 7"):
        models.device_map.device_map("cuda:7")
    with pytest.raises(BadModel, match="no CUDA device 3"):
        models.device_map.placement_options(Load(max_memory="3=1GiB,cpu=2GiB"))


@pytest.fixture
def home_of_weights(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "here"


@pytest.mark.slow
@pytest.mark.parametrize("device", ["auto", "sequential"])
def test_a_model_partly_on_disk_answers_as_one_in_memory(llama_folder, home_of_weights, device):
    """With the cache kept between turns, after a cancel, and with what is slow said."""
    options = {"device": device, "max_memory": "cpu=300KB", "offload_folder": home_of_weights, "max_new_tokens": 8}
    with opened(llama_folder, **options) as session:
        facts = session.facts()
        assert "disk" in facts.device_map.values()
        assert any("disk" in remark and remark.endswith("slow") for remark in facts.remarks)
        assert "disk" in " ".join(format_map(run(session, "/info").facts.device_map))
        first = ask(session, "Once upon a time")
        cut = ask_until(session, "And then?", lambda event: isinstance(event, Token))
        assert cut.finish == "cancelled"
        again = run(session, "/retry")
        assert again.usage.reused >= len(first.prompt_ids)
    model, tokenizer = bare(llama_folder)
    for done in (first, again):
        assert generated(model, tokenizer, list(done.prompt_ids), {"max_new_tokens": 8})[0] == [list(done.token_ids)]


def test_an_offload_folder_that_cannot_be_is_refused(llama_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with opened(llama_folder) as session:
        with pytest.raises(UsageError, match="cannot write weights to"):
            run(session, f"/offload_folder {tmp_path / 'file' / 'below'}")
        assert session.settings.load.offload_folder == ""


def test_on_the_cpu_alone_nothing_is_remarked(llama_folder):
    with opened(llama_folder, device="cpu") as session:
        assert session.facts().remarks == ()
        assert session.facts().device_map == {"": "cpu"}
