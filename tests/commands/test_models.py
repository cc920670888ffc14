"""The tiny models behave as the tests that use them assume."""

from pathlib import Path

import pytest
from conftest import Recorder

from repl.core.errors import Cancelled
from repl.core.events import Notice, Progress


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def greedy(model, ids: list[int], count: int) -> list[int]:
    import torch

    output = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return output[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder", "recurrent_folder", "metaspace_folder"])
def test_a_tiny_model_says_many_different_things(name, request):
    """Greedy text depends on the prompt and neither ends at once nor goes round in a small circle."""
    model, tokenizer = loaded(request.getfixturevalue(name))
    replies = [greedy(model, tokenizer.encode(text), 24) for text in ("Once upon a time", "The capital of", "def f(")]
    assert len({tuple(reply) for reply in replies}) == 3
    assert all(len(reply) == 24 and len(set(reply)) > 8 for reply in replies)


@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder", "recurrent_folder", "metaspace_folder"])
def test_a_tiny_tokenizer_brings_any_text_back(name, request):
    _, tokenizer = loaded(request.getfixturevalue(name))
    text = "Grüße, 你好\n    return  x\n\t👩‍🚀 zażółć"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_only_the_llama_has_a_chat_template(llama_folder, gpt2_folder, recurrent_folder, metaspace_folder):
    templates = [loaded(folder)[1].chat_template for folder in (gpt2_folder, recurrent_folder, metaspace_folder)]
    tokenizer = loaded(llama_folder)[1]
    messages = [{"role": "user", "content": "hi"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert templates == [None, None, None]
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_folders_hold_what_a_hub_model_holds(llama_folder):
    names = {path.name for path in llama_folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def test_the_context_lengths_are_known(llama_folder, gpt2_folder):
    assert loaded(llama_folder)[0].config.max_position_embeddings == 512
    assert loaded(gpt2_folder)[0].config.n_positions == 128


def test_a_scripted_model_says_exactly_what_it_was_told(scripted_folder):
    """Any bytes, turn after turn, whatever the user types."""
    replies = (b"\x1b[31mred\x1b[0m \xf0\x9f\x98\x80 \xff\x00 end\n", b"second", b"")
    model, tokenizer = loaded(scripted_folder(*replies))
    messages, said = [], []
    for text in ("hello", "x" * 50, "U"):
        messages.append({"role": "user", "content": text})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        said.append(greedy(model, ids, 40))
        messages.append({"role": "assistant", "content": tokenizer.decode(said[-1])})
    end = tokenizer.eos_token_id
    assert [ids.pop() for ids in said] == [end, end, end]
    assert tuple(bytes(ids) for ids in said) == replies
    assert tokenizer.decode([*replies[1], end], skip_special_tokens=True) == "second"


def test_the_recording_emit_cancels_at_the_chosen_event(emit: Recorder):
    emit.until = lambda event: isinstance(event, Notice)
    emit(Progress("read", 1, 2))
    with pytest.raises(Cancelled):
        emit(Notice("enough"))
    assert emit.stopped()
    assert emit.of(Progress) == [Progress("read", 1, 2)]
    with pytest.raises(Cancelled):
        emit.raise_if_cancelled()


def test_no_test_touches_the_home_of_the_user(home):
    from huggingface_hub import constants

    assert Path(constants.HF_HUB_CACHE).is_relative_to(home)
    assert not Path(constants.HF_TOKEN_PATH).exists()
