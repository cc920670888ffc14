"""Our decode loop and its recorded steps: ids, draws, streams and caches are the library's own, bit for bit."""

import copy
import gc
import weakref
from typing import Any

import pytest
from driving import ask, ask_until, bare, opened, run

from repl import loop, recording
from repl.events import Token

KINDS = ("llama", "gpt2", "recurrent")
DTYPES = ("float32", "bfloat16")
LONG = recording.START + recording.PROOFS + 30
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": LONG},
    "greedy, to its end": {"max_new_tokens": LONG, "eos_token_id": list(range(0, 240, 7))},
    "greedy, fewest tokens": {"max_new_tokens": 30, "min_new_tokens": 20, "eos_token_id": list(range(0, 240, 2))},
    "greedy, max_length": {"max_length": 40},
    "greedy, penalties": {"max_new_tokens": LONG, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "greedy, no cache": {"max_new_tokens": 8, "use_cache": False},
    "greedy, a static cache": {"max_new_tokens": 24, "cache_implementation": "static"},
    "greedy, in chunks": {"max_new_tokens": 24, "prefill_chunk_size": 8},
    "greedy, a text that ends it": {"max_new_tokens": LONG, "stop_strings": ["e", "a"]},
    "drawn": {"max_new_tokens": LONG, "do_sample": True, "temperature": 1.4},
    "drawn, three rows": {"max_new_tokens": 24, "do_sample": True, "num_return_sequences": 3, "top_k": 40},
    "drawn, rows that end": {
        **{"max_new_tokens": 30, "do_sample": True, "num_return_sequences": 4, "temperature": 2.0},
        "eos_token_id": list(range(0, 240, 9)),
    },
    "left to the library: beams": {"max_new_tokens": 12, "num_beams": 3},
    "left to the library: scores": {"max_new_tokens": 12, "output_scores": True},
    "left to the library: copies": {"max_new_tokens": 24, "prompt_lookup_num_tokens": 3},
}


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.steps.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KINDS for dtype in DTYPES], ids="-".join)
def tiny(request):
    """A model and its tokenizer."""
    kind, dtype = request.param
    return bare(request.getfixturevalue(f"{kind}_folder"), dtype)


def configured(model: Any, values: dict[str, Any]) -> Any:
    config = copy.deepcopy(model.generation_config)
    for name, value in {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_length": None}.items():
        setattr(config, name, value)
    for name, value in values.items():
        setattr(config, name, value)
    config.return_dict_in_generate = True
    return config


def both(model: Any, tokenizer: Any, values: dict[str, Any], ids: Any = None, mask: Any = None) -> tuple[Any, Any]:
    """Return output, streamer and the generator's state, once from the library's `generate` and once from ours."""
    import torch

    ids = prompt() if ids is None else ids
    found = []
    for call in (model.generate, lambda **given: loop.generate(model, **given)):
        torch.manual_seed(5)
        heard = None if values.get("num_beams") else Heard()
        mask = torch.ones_like(ids) if mask is None else mask
        given = {"generation_config": configured(model, values), "tokenizer": tokenizer}
        with torch.no_grad():
            output = call(input_ids=ids.clone(), attention_mask=mask.clone(), streamer=heard, **given)
        found.append((output, heard, torch.get_rng_state()))
    return found[0], found[1]


def prompt(length: int = 20, seed: int = 3) -> Any:
    import torch

    return torch.randint(5, 240, (1, length), generator=torch.Generator().manual_seed(seed))


def states(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", ())
    found = [getattr(layer, name, None) for layer in layers for name in ("keys", "values", "conv_states")]
    return [one for one in found if one is not None and not isinstance(one, dict)]


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_ids_draws_stream_and_cache_are_those_of_the_library(tiny, values):
    """Twice: the second reply plays back from its first step on what the first one recorded."""
    import torch

    model, tokenizer = tiny
    if "prefill_chunk_size" in values and "Mamba" in type(model).__name__:
        pytest.skip("the library reads this model's prompts in one piece")
    if "prompt_lookup_num_tokens" in values and "Mamba" in type(model).__name__:
        pytest.skip("this model cannot take tokens back")
    if "cache_implementation" in values and not model._can_compile_fullgraph:
        pytest.skip("this model has no static cache")
    for _ in range(2):
        (wanted, theirs, state), (found, ours, after) = both(model, tokenizer, values)
        assert torch.equal(found.sequences, wanted.sequences)
        assert torch.equal(state, after)
        assert type(found) is type(wanted)
        assert theirs is None or (ours.steps, ours.ended) == (theirs.steps, theirs.ended)
        kept, own = states(wanted.past_key_values), states(found.past_key_values)
        assert len(kept) == len(own)
        assert all(map(torch.equal, kept, own))
    left = [name for name, one in CASES.items() if one is values and name.startswith("left")]
    assert loop.fits(model, configured(model, values)) == (not left)


def test_rows_of_different_lengths_are_those_of_the_library(tiny):
    """Padded on the left, drawn and greedy."""
    import torch

    model, tokenizer = tiny
    ids = torch.cat([prompt(seed=1), prompt(seed=2)])
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    for values in ({"max_new_tokens": 30}, {"max_new_tokens": 30, "do_sample": True, "temperature": 1.5}):
        (wanted, theirs, _), (found, ours, _) = both(model, tokenizer, values, ids, mask)
        assert torch.equal(found.sequences, wanted.sequences)
        assert ours.steps == theirs.steps


# recorded steps


def made(kind: str = "Llama", **values: Any) -> Any:
    """A random model of a kind of the library's."""
    import torch
    import transformers

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(**{**size, "vocab_size": 256, "pad_token_id": 0, **values})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # logits apart from each other: a wrong step changes the ids
        model.get_output_embeddings().weight.mul_(8)
    return model


def agree(model: Any, values: dict[str, Any] | None = None) -> None:
    import torch

    (wanted, _, _), (found, _, _) = both(model, None, values or {"max_new_tokens": LONG})
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(map(torch.equal, states(wanted.past_key_values), states(found.past_key_values)))


RECORDED = ("Llama", "Qwen2", "Qwen3", "GPTNeoX", "Olmo2")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", RECORDED)
def test_a_long_reply_is_played_back(kind, attention):
    """Families that only differ in their operations; shared key heads are what a plain recording gets wrong."""
    heads = {"num_key_value_heads": 2} if kind in ("Llama", "Qwen2", "Qwen3") else {}
    model = made(kind, attn_implementation=attention, **heads)
    for _ in range(2):
        agree(model)
    assert recording.recording(model).proven
    assert recording.recording(model).good


STRETCHED = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
OTHERWISE = {
    "positions that stretch": ("Llama", {"rope_parameters": STRETCHED}),
    "a sliding window": ("Mistral", {"sliding_window": 24, "num_key_value_heads": 2}),
    "sizes in Python numbers": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "sizes looked at by the model": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
}


@pytest.mark.parametrize(("kind", "values"), OTHERWISE.values(), ids=OTHERWISE)
def test_what_depends_on_the_length_is_right_all_the_same(kind, values):
    """Across the length at which these models change what they do."""
    model = made(kind, max_position_embeddings=32, **values)
    agree(model, {"max_new_tokens": LONG, "use_cache": True})


def test_what_the_recorder_cannot_follow_is_left_to_the_model():
    """The recorder itself tells that the model looked at a number which another step changes."""
    kind, values = OTHERWISE["positions that stretch"]
    model = made(kind, max_position_embeddings=32, **values)
    agree(model)
    assert not recording._known[model].good  # the model itself has other buffers by now
    agree(model)


def test_a_recording_that_is_wrong_is_found_out():
    """A step that differs in one bit of one number is never played."""
    import torch

    model = made()
    agree(model, {"max_new_tokens": recording.START + 1})
    found = recording.recording(model)
    assert found.made
    assert not found.proven
    right = found._run

    def wrong(*given: Any) -> Any:
        logits, keys, values = right(*given)
        return torch.nextafter(logits, logits + 1), keys, values

    found._run = wrong
    agree(model)
    assert not found.good


def test_a_changed_weight_counts_at_once():
    import torch

    model = made()
    agree(model)
    found = recording.recording(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-3)  # in place: the recording reads it
    assert recording.recording(model) is found
    agree(model)
    swapped = torch.nn.Linear(32, 32, bias=False)
    model.model.layers[1].self_attn.o_proj = swapped
    agree(model)
    assert recording.recording(model) is not found
    model.set_attn_implementation("eager")
    agree(model)
    assert recording.recording(model).proven


def test_a_hook_inside_the_model_is_obeyed():
    """What steers or reads a layer is no part of a recording: it takes effect, and is gone again."""
    import torch

    model = made()
    agree(model)
    before = both(model, None, {"max_new_tokens": LONG})[1][0].sequences
    hook = model.model.layers[1].register_forward_hook(lambda _, __, output: output * -1.5)
    changed = both(model, None, {"max_new_tokens": LONG})[1][0].sequences
    agree(model)
    hook.remove()
    agree(model)
    assert not torch.equal(before, changed)


def test_hooks_of_the_whole_model_see_every_step():
    """Measures per token and the kept cache rely on them."""
    import torch

    model = made()
    agree(model)
    assert recording.recording(model).proven
    seen: list[Any] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: seen.append("begun")),
        model.register_forward_hook(lambda _, __, output: seen.append(output.logits[0, -1].clone())),
    ]
    found = loop.generate(
        model,
        input_ids=prompt(),
        attention_mask=torch.ones_like(prompt()),
        generation_config=configured(model, {"max_new_tokens": 30}),
    )
    for hook in hooks:
        hook.remove()
    assert seen[::2] == ["begun"] * 30
    assert [int(logits.argmax()) for logits in seen[1::2]] == found.sequences[0, 20:].tolist()
    assert "forward" not in vars(model)


def test_a_recording_keeps_no_model_in_memory():
    model = made()
    agree(model)
    assert recording.recording(model).proven
    gone = weakref.ref(model)
    weight = weakref.ref(model.model.layers[0].mlp.down_proj.weight)
    del model
    gc.collect()
    assert gone() is None
    assert weight() is None


def test_weights_want_gradients_afterwards_as_before():
    model = made()
    model.lm_head.weight.requires_grad_(False)
    agree(model)
    asking = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert asking == {"lm_head.weight"}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_cancel_while_a_recording_plays_leaves_a_sound_cache(kind, request):
    with opened(request.getfixturevalue(f"{kind}_folder"), max_new_tokens=LONG) as session:
        run(session, "/set suppress_tokens [0, 1, 2]")
        whole = ask(session, "hello")
        assert recording.recording(session.store.current().model).proven
        run(session, "/clear")
        count = iter(range(100))
        broken = ask_until(session, "hello", lambda event: isinstance(event, Token) and next(count) == 9)
        assert broken.token_ids == whole.token_ids[: len(broken.token_ids)]
        run(session, "/clear")
        again = ask(session, "hello")
        assert again.token_ids == whole.token_ids
        assert again.usage.reused


def test_the_number_of_threads_changes_no_id(tiny):
    import torch

    model, tokenizer = tiny
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(both(model, tokenizer, {"max_new_tokens": LONG})[1][0].sequences)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
