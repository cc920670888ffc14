"""Adapters: put beside the weights or merged, switched without reading the model again, wrong ones refused."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Recorder
from driving import ask, bare, opened, run, session_for

from repl.core.errors import BadModel, NotFound, ReplError, Unreachable
from repl.hub.download import prepare
from repl.models import adapters
from repl.models.store import resident_sizes
from repl.session.session import Session

pytestmark = [pytest.mark.library, pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")]

PROMPT = "Once upon a time"


def lora(folder: Path, base: Path, seed: int, **options: Any) -> Path:
    """Write a LoRA with weights large enough to change what is said."""
    import peft
    import torch

    model, _ = bare(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=options.pop("target_modules", ["q_proj", "up_proj"]), **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dressed = peft.get_peft_model(model, config)
        for name, weight in dressed.named_parameters():
            if "lora_" in name:
                weight.data.normal_(std=0.2)
    dressed.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return lora(tmp_path_factory.mktemp("one"), llama_folder, 1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return lora(tmp_path_factory.mktemp("other"), llama_folder, 2)


@pytest.fixture
def session(llama_folder: Path) -> Iterator[Session]:
    made = session_for(llama_folder, max_new_tokens=12, mode="complete")
    yield made
    made.close()


@pytest.fixture
def copied(one: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy an adapter with other values in its config."""

    def copy(**values: Any) -> Path:
        folder = Path(shutil.copytree(one, tmp_path / "copy"))
        config = json.loads((folder / adapters.CONFIG).read_text())
        (folder / adapters.CONFIG).write_text(json.dumps(config | values))
        return folder

    return copy


def expected(base: Path, adapter: Path, prompt: tuple[int, ...]) -> list[int]:
    """Generate with nothing but transformers and peft."""
    import peft
    import torch

    model = peft.PeftModel.from_pretrained(bare(base)[0], adapter).eval()
    output = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    return list(output[0, len(prompt) :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["", " merge"])
def test_the_script_of_a_reply_puts_the_adapter_on(session, one, merge, tmp_path):
    run(session, f"/adapter {one}{merge}", "/greedy", "/max 6")
    done = run(session, "hello")
    run(session, f"/recipe {tmp_path / 'reply.py'}")
    names = runpy.run_path(str(tmp_path / "reply.py"))
    assert names["output"].tolist() == [[*done.prompt_ids, *done.token_ids]]


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["", " merge"])
def test_an_adapter_says_what_it_says_in_peft(session, llama_folder, one, merge):
    without = ask(session, PROMPT)
    loaded = run(session, f"/adapter {one}{merge}")
    done = run(session, "/retry")
    assert list(done.token_ids) == expected(llama_folder, one, done.prompt_ids) != list(without.token_ids)
    assert done.model.adapter == done.load["adapter"] == f"{one}{merge}"
    assert loaded.facts.adapter == f"{one}{merge}"
    assert ("lora_" in str(session.store.current().model)) == (not merge)


@pytest.mark.slow
def test_switching_and_taking_off_reads_the_model_only_once(session, llama_folder, one, other):
    """The tensors of the model are the same ones; a merged adapter has its own."""
    tensors = [weight.data_ptr() for weight in session.store.current().model.parameters()]
    plain = ask(session, PROMPT)
    said = []
    for adapter in (one, other, one, "none"):
        run(session, f"/adapter {adapter}")
        model = session.store.current().model
        shared = [weight.data_ptr() for name, weight in model.named_parameters() if "lora_" not in name]
        assert shared == tensors
        said.append(run(session, "/retry").token_ids)
    assert said[0] == said[2] != said[1]
    assert said[3] == plain.token_ids
    run(session, f"/adapter {one} merge")
    assert not set(tensors) & {weight.data_ptr() for weight in session.store.current().model.parameters()}
    assert run(session, "/adapter none", "/retry").token_ids == plain.token_ids


@pytest.mark.slow
def test_reload_reads_the_model_again(session, one):
    run(session, f"/adapter {one}")
    before = session.store.current().base
    run(session, "/reload")
    assert session.store.current().base is not before
    assert session.facts().adapter == str(one)


@pytest.mark.slow
def test_unloading_frees_the_model_under_the_adapter(session, one):
    import gc
    import weakref

    run(session, "/keep_models 1", f"/adapter {one}")
    base = weakref.ref(session.store.current().base.model)
    run(session, "/unload")
    gc.collect()
    assert base() is None


@pytest.mark.slow
def test_the_cache_of_one_adapter_is_not_used_by_another(session, one, other):
    ask(session, PROMPT)
    run(session, f"/adapter {one}", "/retry")
    done = run(session, f"/adapter {other}", "/retry")
    assert done.usage.reused == 0
    assert run(session, "/retry").token_ids == done.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("merge", ["", " merge"])
def test_an_adapter_works_on_packed_layers(llama_folder, one, quantize, merge):
    with opened(llama_folder, quantize=quantize, adapter=f"{one}{merge}", max_new_tokens=6) as session:
        assert session.facts().packed == 15
        with_it = ask(session, "Hello").token_ids
        assert run(session, "/adapter none", "/retry").token_ids != with_it


def test_gpt2_takes_an_adapter_on_its_transposed_layers(gpt2_folder, tmp_path):
    adapter = lora(tmp_path / "adapter", gpt2_folder, 3, target_modules=["c_attn"], fan_in_fan_out=True)
    with opened(gpt2_folder, adapter=adapter, max_new_tokens=12) as session:
        done = ask(session, PROMPT)
        assert list(done.token_ids) == expected(gpt2_folder, adapter, done.prompt_ids)


# refused


def refused(session: Session, words: object) -> ReplError:
    """Ask for an adapter, and check that the session is as before."""
    before = session.store.current()
    with pytest.raises(ReplError) as caught:
        run(session, f"/adapter {words}")
    assert session.settings.load.adapter == "none"
    assert session.store.current() is before or session.store.facts()
    assert "\n" not in caught.value.message
    assert "/adapter none" in caught.value.hints or isinstance(caught.value, NotFound | Unreachable)
    return caught.value


@pytest.mark.slow
def test_an_adapter_for_another_model_is_refused_by_name_and_size(session, gpt2_folder, one, tmp_path, copied):
    from safetensors.torch import load_file, save_file

    assert (
        "this one has no transformer.h.0"
        in refused(
            session, lora(tmp_path / "gpt2", gpt2_folder, 4, target_modules=["c_attn"], fan_in_fan_out=True)
        ).message
    )
    narrow = copied(base_model_name_or_path="someone/large")
    tensors = {name: value[..., :32].contiguous() for name, value in load_file(one / adapters.WEIGHTS).items()}
    save_file(tensors, narrow / adapters.WEIGHTS)
    said = refused(session, narrow).message
    assert "someone/large" in said
    assert "has size 64 here and 32 in the adapter" in said


@pytest.mark.slow
def test_pickles_and_missing_files_are_refused(session, copied, tmp_path, llama_folder):
    folder = copied()
    (folder / adapters.WEIGHTS).rename(folder / adapters.PICKLE)
    assert "is a pickle" in refused(session, folder).message
    (folder / adapters.PICKLE).unlink()
    assert "has no weights" in refused(session, folder).message
    assert "is not an adapter" in refused(session, llama_folder).message
    assert isinstance(refused(session, tmp_path / "nowhere"), NotFound)
    assert isinstance(refused(session, "someone/adapter"), Unreachable)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": "../../x"}, "asks for a"),
        ({"target_modules": "(a+)+$"}, "is not supported"),
        ({"rank_pattern": {"(x|x)*y": 3}}, "is not supported"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"layer_replication": [[0, 9]]}, "layer_replication"),
        ({"r": "many"}, "does not fit"),
    ],
)
def test_a_config_that_asks_for_the_absurd_is_refused(session, copied, values, said):
    assert said in refused(session, copied(**values)).message


def test_a_truncated_adapter_is_refused(session, copied):
    folder = copied()
    content = (folder / adapters.WEIGHTS).read_bytes()
    (folder / adapters.WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(BadModel, match="not a complete safetensors file"):
        run(session, f"/adapter {folder}")


@pytest.mark.slow
def test_an_adapter_comes_from_the_hub_once(fake_hub, one, llama_folder, emit: Recorder):
    prepare(emit)
    fake_hub.add("someone/poet", one)
    with opened(llama_folder, max_new_tokens=3) as session:
        session.store.offline = False
        run(session, "/adapter someone/poet")
        assert session.facts().adapter == "someone/poet"
        asked = len(fake_hub.asked())
        run(session, "/adapter none", "/adapter someone/poet")
        assert len(fake_hub.asked()) == asked


@pytest.mark.slow
def test_a_model_under_several_adapters_counts_once(session, one, other, emit):
    """What is held is the model and what each adapter adds to it, whatever the order."""
    bare = session.store.current().facts.bytes
    run(session, f"/adapter {one}")
    run(session, f"/adapter {other}")
    held = session.store.residents()
    assert len(held) == 3
    added = sum(resident.facts.bytes - bare for resident in held)
    assert (
        sum(size for _, size in resident_sizes(held))
        == sum(size for _, size in resident_sizes(held[::-1]))
        == bare + added
    )
    assert sum(model.weights for model in run(session, "/memory").models) == bare + added
    current = session.store.current().facts.bytes
    assert [gone.bytes for gone in session.store.drop()] == [current - bare]


@pytest.mark.slow
def test_an_adapter_beside_a_model_is_not_put_on_unasked(llama_folder, one, tmp_path):
    """The library would do it without a word; asked for by its folder, it is put on."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "both"))
    for file in (adapters.CONFIG, adapters.WEIGHTS):
        shutil.copy(one / file, folder / file)
    with opened(llama_folder, max_new_tokens=8) as alone:
        without = ask(alone, PROMPT).token_ids
    with opened(folder, max_new_tokens=8) as both:
        assert ask(both, PROMPT).token_ids == without
        resident = both.store.current()
        assert "lora_" not in str(resident.model)
        assert resident.facts.remarks[-1].startswith("adapter_config.json in the folder of the model is ignored")
        loaded = run(both, f"/adapter {folder}")
        assert not loaded.facts.remarks
        assert "lora_" in str(both.store.current().model)
        assert ask(both, PROMPT).token_ids != without
