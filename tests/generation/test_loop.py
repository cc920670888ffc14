"""Our decode loop: ids, draws, streams and caches are the library's own, bit for bit."""

import copy
from typing import Any

import pytest
from decoding import in_turn
from driving import bare

from repl.core import library
from repl.generation import decode

pytestmark = pytest.mark.library

KINDS = ("gpt2", "recurrent", "llama")
DTYPES = ("float32", "bfloat16")
LONG = 48
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": LONG},
    "greedy, to its end": {"max_new_tokens": LONG, "eos_token_id": list(range(0, 240, 7))},
    "greedy, fewest tokens": {"max_new_tokens": 30, "min_new_tokens": 20, "eos_token_id": list(range(0, 240, 2))},
    "greedy, max_length": {"max_length": 40},
    "greedy, penalties": {"max_new_tokens": LONG, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "greedy, no cache": {"max_new_tokens": 8, "use_cache": False},
    "greedy, a static cache": {"max_new_tokens": 24, "cache_implementation": "static"},
    "greedy, a text that ends it": {"max_new_tokens": LONG, "stop_strings": ["e", "a"]},
    "drawn": {"max_new_tokens": LONG, "do_sample": True, "temperature": 1.4},
    "drawn, three rows": {"max_new_tokens": 24, "do_sample": True, "num_return_sequences": 3, "top_k": 40},
    "drawn, rows that end": {
        **{"max_new_tokens": 30, "do_sample": True, "num_return_sequences": 4, "temperature": 2.0},
        "eos_token_id": list(range(0, 240, 9)),
    },
    "left to the library: beams": {"max_new_tokens": 12, "num_beams": 3},
    "left to the library: chunks": {"max_new_tokens": 24, "prefill_chunk_size": 8},
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
    for call in (model.generate, lambda **given: decode.loop.generate(model, **given)):
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


@pytest.mark.slow
@pytest.mark.parametrize(("tiny", "name"), in_turn(KINDS, CASES), indirect=["tiny"], ids=str)
def test_ids_draws_stream_and_cache_are_those_of_the_library(tiny, name):
    """Twice: nothing of the first reply is left for the second."""
    import torch

    model, tokenizer = tiny
    values = CASES[name]
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
        kept, own = states(library.cache_of(wanted)), states(library.cache_of(found))
        assert len(kept) == len(own)
        assert all(map(torch.equal, kept, own))
    assert bool(decode.loop.why_not(model, configured(model, values))) == name.startswith("left")


@pytest.mark.slow
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


def test_a_reply_that_breaks_off_leaves_the_cache_of_the_library_behind(tiny):
    """In the middle, with what was made by then; the layers work as they did before."""
    import torch
    from transformers import DynamicCache

    class Enough(Heard):
        def put(self, value: Any) -> None:
            super().put(value)
            if len(self.steps) == 30:
                raise KeyboardInterrupt

    model, tokenizer = tiny
    if "Mamba" in type(model).__name__:
        pytest.skip("this model keeps no keys")
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for cache, call in zip(caches, (model.generate, lambda **given: decode.loop.generate(model, **given)), strict=True):
        given = {
            "generation_config": configured(model, {"min_new_tokens": 90, "max_new_tokens": 90}),
            "tokenizer": tokenizer,
        }
        ids = prompt()
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            call(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=Enough(),
                **given,
                **{library.cache_name(): cache},
            )
    kept, own = map(states, caches)
    assert own[0].shape[-2] == 20 + 28
    assert all(map(torch.equal, kept, own))


@pytest.mark.slow
def test_the_number_of_threads_changes_no_id(tiny):
    import torch

    model, tokenizer = tiny
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(both(model, tokenizer, {"max_new_tokens": 12})[1][0].sequences)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
