"""int8 and int4 on the CPU: packed layers say what their dequantized weights would say."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from conftest import Recorder
from driving import ask, bare, listen, opened, run

from repl import models
from repl.core.errors import BadModel, Cancelled, NoMemory
from repl.core.events import Progress

pytestmark = pytest.mark.library

BOTH = pytest.mark.parametrize("quantize", ["int8", "int4"])


def linear(rows: int, columns: int, bias: bool = True) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rows * columns)
        return torch.nn.Linear(columns, rows, bias).requires_grad_(False)


def words(count: int, columns: int) -> Any:
    import torch

    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count)).bfloat16()


def dequantized(layer: Any) -> Any:
    """Undo int8 by hand, and int4 by asking for every unit vector."""
    return (
        layer.values.float() * layer.scales.float().unsqueeze(1) if layer.quantize == "int8" else layer.weight.float()
    )


@BOTH
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (15, 64), (16, 32), (33, 96), (64, 64), (500, 576)])
@pytest.mark.parametrize("count", [1, 3, 40, 130])
def test_a_packed_layer_multiplies_by_its_dequantized_weight(quantize, rows, columns, count):
    """Whatever the shape; the difference is the rounding of bfloat16."""
    import torch

    plain, input = linear(rows, columns), words(count, columns)
    layer = models.packed_linear.pack_linear(plain, quantize)
    right = torch.nn.functional.linear(input.float(), dequantized(layer), plain.bias)
    torch.testing.assert_close(layer(input).float(), right, rtol=0.02, atol=0.02)


@BOTH
def test_a_weight_is_at_most_half_a_step_from_its_original(quantize):
    """A step is 1/15 of the range of a group (int4), or 1/127 of the largest weight of a row (int8)."""
    weight = linear(80, 128).weight
    layer = models.packed_linear.pack_linear(linear(80, 128), quantize)
    groups = weight.view(80, -1, 32)
    range = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    step = (range / 15).expand_as(groups).reshape(80, 128) if quantize == "int4" else weight.abs().amax(1, True) / 127
    assert ((dequantized(layer) - weight).abs() <= 0.52 * step + 0.004 * weight.abs().max()).all()


def test_twice_int4_is_sixteen_times_as_close():
    """A head keeps eight bits: what the first four left over has a range of one step."""
    weight = linear(80, 128).weight
    once, twice = (models.packed_linear.pack_linear(linear(80, 128), "int4", twice=twice) for twice in (False, True))
    first, second = ((dequantized(layer) - weight).abs().mean() for layer in (once, twice))
    assert second < first / 8
    assert twice(words(3, 128)).shape == (3, 80)


def test_a_weight_packed_in_blocks_is_the_weight_packed_whole(monkeypatch):
    import torch

    weight = linear(3000, 64).weight
    parts = models.packed_linear.quantize_int4(weight)
    monkeypatch.setattr(models.packed_linear, "CHUNK_ROWS", 1 << 20)
    assert all(
        torch.equal(one, other) for one, other in zip(parts, models.packed_linear.quantize_int4(weight), strict=True)
    )


def test_an_odd_shape_stays_as_it_is(emit: Recorder):
    import torch

    model = torch.nn.Sequential(linear(64, 64), linear(64, 40))
    assert models.packed_linear.pack(model, "int4", emit) == models.packed_linear.Packing(1, 1)
    assert type(model[1]) is torch.nn.Linear


def test_packing_tells_how_far_it_is_and_stops_when_told(emit: Recorder):
    import torch

    model = torch.nn.Sequential(*(linear(64, 64) for _ in range(5)))
    emit.until = lambda event: event == Progress("quantizing", 2, 5, "layers")
    with pytest.raises(Cancelled):
        models.packed_linear.pack(model, "int8", emit)
    assert emit.of(Progress)[-1] == Progress("quantizing", 2, 5, "layers")


def test_the_original_weights_are_freed(llama_folder: Path, emit: Recorder):
    model, _ = bare(llama_folder)
    before = model.get_memory_footprint()
    mapped = [weakref.ref(weight) for name, weight in model.named_parameters() if "proj" in name]
    storages = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    models.packed_linear.pack(model, "int4", emit)
    gc.collect()
    assert [ref() for ref in mapped] == [None] * len(mapped)
    assert not storages & {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert model.get_memory_footprint() < before / 2


# sessions


def plain(folder: Path, quantize: str, emit: Recorder) -> tuple[Any, Any]:
    """Load with the library alone, in bfloat16, and put the dequantized weights where packed ones would be."""
    import torch

    model, tokenizer = bare(folder, "bfloat16")
    tied = model.config.tie_word_embeddings
    assert not tied
    for parent, name, found in models.packed_linear.find_linears(model):
        if models.packed_linear.upright_weight(found).shape[1] % models.packed_linear.GROUP_WEIGHTS == 0:
            layer = models.packed_linear.pack_linear(found, quantize, twice=found is model.lm_head)
            weight = dequantized(layer).bfloat16()
            new = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=torch.bfloat16)
            new.weight.data, new.bias = weight, layer.bias
            setattr(parent, name, new)
    return model, tokenizer


@BOTH
@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder"])
def test_greedy_ids_are_those_of_the_dequantized_model_up_to_a_near_tie(name, quantize, request, emit):
    """GPT-2's transposed layers too; where a token differs, both models gave it nearly the same score."""
    import torch

    folder = request.getfixturevalue(name)
    with opened(folder, dtype="auto", quantize=quantize, max_new_tokens=12) as session:
        done = ask(session, "Once upon a time")
        facts = session.facts()
    assert (facts.quantization, facts.dtype) == (quantize, "bfloat16")
    assert facts.packed > 0
    model, _ = plain(folder, quantize, emit)
    with torch.no_grad():
        logits = model(torch.tensor([[*done.prompt_ids, *done.token_ids]])).logits[0].float()
    steps = logits[len(done.prompt_ids) - 1 : -1]
    taken = steps[torch.arange(len(steps)), torch.tensor(done.token_ids)]
    assert ((steps.amax(-1) - taken) <= 0.05 * steps.std()).all()


@pytest.mark.slow
@BOTH
def test_conversation_beams_samples_and_the_kept_cache_work_on_packed_layers(llama_folder, quantize):
    with opened(llama_folder, dtype="auto", quantize=quantize, max_new_tokens=8) as session:
        ask(session, "Hello there, how are you?")
        again = ask(session, "And now?")
        assert again.usage.reused > 10
        fresh = run(session, "/reuse off", "/retry")
        assert fresh.prompt_ids == again.prompt_ids
        assert len(run(session, "/beams 3", "/retry").sequences) == 3
        first = run(session, "/sample temperature=0.9 seed=3 num_return_sequences=2", "/retry")
        assert run(session, "/retry").token_ids == first.token_ids


def test_a_dtype_you_ask_for_holds_between_the_layers(llama_folder):
    with opened(llama_folder, dtype="float32", quantize="int4", max_new_tokens=4) as session:
        assert session.facts().dtype == "float32"
        assert ask(session, "Hello").model.quantization == "int4"


def test_what_was_packed_is_said_after_the_load_and_in_info(llama_folder):
    with opened(llama_folder, quantize="int4") as session:
        facts = run(session, "/info").facts
        assert facts.packed == 15
        assert facts.left == 0
        assert any("15 linear layers quantized to int4" in remark for remark in facts.remarks)
        assert facts.remarks[-1].endswith("/diverge quantize=none shows the effect")  # what tells its quality
        plainly = run(session, "/quantize none").facts
        assert (plainly.quantization, plainly.packed) == ("none", 0)
        assert plainly.bytes > 2 * facts.bytes


@pytest.mark.slow
def test_weights_on_disk_are_not_packed(llama_folder):
    with opened(llama_folder) as session:
        run(session, "/max_memory cpu=300KB")
        with pytest.raises(NoMemory, match="cpu may hold"):
            run(session, "/quantize int4")
        with pytest.raises(BadModel, match="some are on disk"):
            run(session, f"/model! {llama_folder} quantize=int4 max_memory=cpu=300KB")
        assert session.facts().quantization == "none"


def test_a_kept_model_streams_as_before(llama_folder):
    with opened(llama_folder, quantize="int8", max_new_tokens=6, logprobs=2) as session:
        done, events = listen(session, "Hi")
        assert "".join(event.text for event in events if hasattr(event, "text") and hasattr(event, "id")) == done.text
