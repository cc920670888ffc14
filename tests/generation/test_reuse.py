"""A reply that goes on from the kept cache has the ids of one that is computed anew."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import models
import pytest
from conftest import Recorder
from decoding import ways
from driving import ask, opened, run
from hypothesis import HealthCheck, given
from hypothesis import settings as laws
from hypothesis import strategies as st

from repl import generation
from repl import models as model_loading
from repl.core import library
from repl.core.errors import Failed, NoMemory
from repl.core.reply import Reply
from repl.core.settings import Load, Settings
from repl.generation import decode
from repl.generation.interface import Model, Request, Runtime

pytestmark = pytest.mark.library

WINDOW = 8  # far shorter than the texts here
SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": models.SPREAD},
}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding": ("Mistral", {"sliding_window": WINDOW}),
    "alternating": ("Gemma2", {"sliding_window": WINDOW}),
    "convolving": ("Lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3}),
    "delta": (
        "Qwen3Next",
        {
            **{"layer_types": ["linear_attention"] * 3 + ["full_attention"], "decoder_sparse_step": 1},
            **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            **{"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
        },
    ),
    "stretched": (
        "Phi3",
        {
            "original_max_position_embeddings": 40,
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40},
                **{"short_factor": [1.0] * 4, "long_factor": [3.0] * 4},
            },
        },
    ),
}
CROPPED = ("llama", "gpt2", "sliding", "alternating")
EXTENDED = ("convolving", "delta")
KINDS = (*CROPPED, *EXTENDED, "stretched", "recurrent")
CASES = ways("greedy", "greedy, repetition penalty", "sample, temperature", "beams 2", "sample, three answers")


class Halting(Recorder):
    """Is cancelled the n-th time that anything asks: before a layer, in a prefill or later, or as a token is told."""

    def __init__(self, halt: int = 0) -> None:
        super().__init__()
        self.left = halt

    def raise_if_cancelled(self) -> None:
        self.left -= 1
        if not self.left:
            self.cancel()
        super().raise_if_cancelled()

    def begin_cleanup(self) -> None:
        super().begin_cleanup()
        self._stop, self.left = False, 0


def load(folder: Any) -> Model:
    return model_loading.loader.load_model(
        Load(model=str(folder), dtype="float32"), Recorder(), True, lambda *_: None, Runtime
    )


def made(kind: str, folder: Any) -> Any:
    """Write a tiny random model of a kind that `models` has none of."""
    import transformers

    family, shape = MADE[kind]
    tokenizer = models.byte_level(["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    with models.seeded(0):
        config = getattr(transformers, f"{family}Config")(**models.sizes(tokenizer), **{**SHAPE, **shape})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    return models.save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def residents(request, tmp_path_factory) -> Callable[[str], Model]:
    """A model of a kind, loaded once."""
    found: dict[str, Model] = {}

    def get(kind: str) -> Model:
        if kind not in found:
            new = kind in MADE
            place = made(kind, tmp_path_factory.mktemp(kind)) if new else request.getfixturevalue(f"{kind}_folder")
            found[kind] = load(place)
        return replace(found[kind], runtime=Runtime())

    return get


@pytest.fixture(params=CROPPED)
def cropped(request, residents) -> Model:
    return residents(request.param)


@pytest.fixture(params=EXTENDED)
def extended(request, residents) -> Model:
    return residents(request.param)


@pytest.fixture
def llama(residents) -> Model:
    return residents("llama")


def chosen(way: str = "greedy", **values: object) -> Settings:
    settings = Settings()
    for name, value in {"max_new_tokens": 6, **CASES[way], **values}.items():
        settings = settings.put(name, value, "you")
    return settings


def answer(resident: Model, ids: list[int], way: str = "greedy", halt: int = 0, **values: object) -> Reply:
    return generation.engine.generate_reply(resident, Request(chosen(way, **values), ids=tuple(ids)), Halting(halt))


def anew(resident: Model, ids: list[int], way: str = "greedy", **values: object) -> Reply:
    return answer(replace(resident, runtime=Runtime()), ids, way, reuse=False, **values)


def told(done: Reply) -> list[int]:
    return [*done.prompt_ids, *done.token_ids]


def agrees(resident: Model, ids: list[int], way: str = "greedy", halt: int = 0) -> Reply:
    """Ask with the kept cache and without: the same ids, as far as a cancelled reply goes."""
    done, fresh = answer(resident, ids, way, halt), anew(resident, ids, way)
    assert 0 <= done.usage.reused < len(ids)
    assert fresh.usage.reused == 0
    if done.finish == "cancelled":
        assert way == "beams 2" or done.token_ids == fresh.token_ids[: len(done.token_ids)]
    else:
        assert (done.token_ids, done.sequences) == (fresh.token_ids, fresh.sequences)
    return done


# the law

texts = st.lists(st.integers(3, 450), min_size=1, max_size=14)
moves = st.tuples(
    st.sampled_from(["extend", "extend", "edit", "undo", "retry", "branch", "shorten", "leave"]),
    st.integers(0, 10**6),  # where, modulo what there is
    texts,
    st.sampled_from(list(CASES)),
    st.one_of(st.just(0), st.just(0), st.integers(1, 40)),  # when to cancel
)


def turned(kind: str, where: int, new: list[int], asked: list[list[int]], last: list[int]) -> list[int]:
    """Return the next prompt of a conversation: `asked` are the prompts so far, `last` the last one with its reply."""
    match kind:
        case "extend":
            return [*last, *new]
        case "edit":
            return [*last[: where % len(last)], *new, *last[where % len(last) + 1 :]]
        case "undo":
            return asked[where % len(asked)]
        case "retry":
            return asked[-1]
        case "branch":
            return [*asked[where % len(asked)], *new]
        case "shorten":
            return last[: where % len(last) + 1]
    return new


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.campaign)])
def test_reused_and_fresh_replies_have_the_same_ids(residents, kind, examples):
    """Over random edits, undos, retries, branches and cancels, greedy or drawn, with beams in between."""

    @laws(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts, st.lists(moves, min_size=3, max_size=6))
    def law(first: list[int], steps: list[Any]) -> None:
        resident = residents(kind)
        asked, last = [first], told(agrees(resident, first))
        for move, where, new, way, halt in steps:
            asked.append(turned(move, where, new, asked, last)[:100])
            last = told(agrees(resident, asked[-1], way, halt))

    law()


# what is saved

FIRST = list(range(20, 60))


def test_a_next_turn_computes_only_what_is_new(cropped):
    done = answer(cropped, FIRST)
    again = agrees(cropped, [*told(done), 7, 8, 9])
    assert done.usage.reused == 0
    assert again.usage.reused == len(told(done)) - 1  # the last token made was never read


@pytest.mark.slow
def test_a_next_turn_of_layers_that_cannot_be_cropped_computes_only_what_is_new(extended):
    done = answer(extended, FIRST)
    assert agrees(extended, [*told(done), 7, 8, 9]).usage.reused == len(told(done)) - 1
    assert agrees(extended, [*FIRST, 7, 8, 9]).usage.reused == 0
    assert agrees(extended, FIRST).usage.reused == 0


@pytest.mark.slow
def test_a_retry_computes_one_token(cropped):
    answer(cropped, FIRST)
    for way in ("sample, temperature", "greedy", "greedy, repetition penalty"):
        assert agrees(cropped, FIRST, way).usage.reused == len(FIRST) - 1


@pytest.mark.slow
def test_cuts_go_deeper_and_deeper(cropped):
    """A window that slid on is not cut to its minimum by the first cut."""
    answer(cropped, FIRST)
    for length in (38, 30, 22, 14, 6):
        assert agrees(cropped, [*FIRST[:length], 9, 9]).usage.reused == length


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sliding", "alternating"])
def test_a_window_without_its_past_is_extended_but_not_cut(residents, kind):
    """On some devices the library itself cuts windows to their minimum after each token."""
    import torch

    resident = residents(kind)
    model, ids = resident.model, torch.tensor([FIRST])
    with (
        resident.runtime.kv_cache.lend(model, model.generation_config, ids, lambda: FIRST) as (past, _),
        torch.no_grad(),
    ):
        model(ids, **past)
        past[library.cache_name()].crop(0)
    assert agrees(resident, [*FIRST, 9]).usage.reused == len(FIRST)
    past[library.cache_name()].crop(0)
    assert agrees(resident, [*FIRST[:20], 9]).usage.reused == 0


def test_a_text_with_nothing_in_common_is_computed_anew(cropped):
    answer(cropped, FIRST)
    assert agrees(cropped, [9, *FIRST]).usage.reused == 0


def test_models_with_caches_of_their_own_do_without(residents):
    resident = residents("recurrent")
    done = answer(resident, FIRST)
    assert agrees(resident, [*told(done), 7]).usage.reused == 0


@pytest.mark.slow
def test_no_cache_outlives_a_change_of_all_position_embeddings(residents):
    """From its 41st token on, this model turns every position differently."""
    resident = residents("stretched")
    answer(resident, FIRST[:20])
    assert agrees(resident, [*FIRST[:20], 9]).usage.reused == 20
    assert agrees(resident, [*FIRST, 7, 8, 9]).usage.reused == 0
    assert agrees(resident, FIRST[:30]).usage.reused == 20


@pytest.mark.slow
@pytest.mark.parametrize("way", ["beams 2", "sample, three answers"])
def test_beams_and_several_answers_neither_use_nor_spoil_the_cache(llama, way):
    answer(llama, FIRST)
    assert agrees(llama, FIRST, way).usage.reused == 0
    assert agrees(llama, FIRST).usage.reused == len(FIRST) - 1


def test_turned_off_nothing_is_kept(llama):
    answer(llama, FIRST)
    assert answer(llama, FIRST, reuse=False).usage.reused == 0
    assert answer(llama, FIRST).usage.reused == 0


@pytest.mark.parametrize(
    "extra", [{"cache_implementation": "static"}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}], ids=str
)
def test_settings_that_want_another_cache_do_without(llama, extra):
    answer(llama, FIRST)
    settings = replace(chosen(), extra=tuple(extra.items()))
    done = generation.engine.generate_reply(llama, Request(settings, ids=tuple(FIRST)), Recorder())
    assert (done.usage.reused, done.token_ids) == (0, anew(llama, FIRST).token_ids)


def test_prefill_speed_counts_what_was_computed(llama):
    answer(llama, FIRST)
    done = answer(llama, FIRST)
    assert done.timing.prefill_tps == pytest.approx(1 / done.timing.ttft_s)


# broken off


def test_a_cancelled_reply_leaves_what_it_has_read(cropped):
    done = answer(cropped, FIRST, halt=16)
    assert done.finish == "cancelled"
    assert 0 < len(done.token_ids) < 6
    assert agrees(cropped, [*told(done), 7]).usage.reused in (len(told(done)) - 1, len(told(done)))


def test_a_prefill_cancelled_between_two_layers_leaves_what_was_there_before(cropped):
    done = answer(cropped, FIRST)
    longer = [*told(done), *range(100, 120)]
    assert answer(cropped, longer, halt=2).finish == "cancelled"
    assert agrees(cropped, longer).usage.reused == len(told(done)) - 1


def test_a_prefill_cancelled_between_two_layers_spoils_recurrent_states(extended):
    """Nobody can tell any more what the layers before the cut have read."""
    done = answer(extended, FIRST)
    longer = [*told(done), *range(100, 120)]
    assert answer(extended, longer, halt=2).finish == "cancelled"
    assert agrees(extended, longer).usage.reused == 0


@pytest.mark.parametrize("kind", CROPPED)
@pytest.mark.parametrize("part", ["keys", "values"])
def test_an_interrupt_between_key_and_value_is_noticed(residents, kind, part):
    """What is kept then is right, however little it is."""
    import torch

    resident = residents(kind)
    model, ids = resident.model, torch.tensor([FIRST])
    config = model.generation_config
    with resident.runtime.kv_cache.lend(model, config, ids, lambda: FIRST) as (past, _), torch.no_grad():
        model(ids, **past)
    layer = past[library.cache_name()].layers[1]
    setattr(layer, part, torch.cat([getattr(layer, part)] * 2, -2))
    length = decode.kv_cache.valid_length(past[library.cache_name()], broken_off=True)
    assert length in (0, len(FIRST))
    if length:
        assert decode.kv_cache.crop(past[library.cache_name()], length)
        assert layer.keys.shape == layer.values.shape
        assert layer.get_seq_length() == len(FIRST)


@pytest.fixture
def seen(llama) -> Iterator[list[weakref.ref[Any]]]:
    """References to the caches that a model is called with."""
    found: list[weakref.ref[Any]] = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, __, named: found.append(weakref.ref(named[library.cache_name()])), with_kwargs=True
    )
    yield found
    hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize(("raised", "told_as"), [("out of memory", NoMemory), ("a bug", Failed)])
def test_an_error_gives_the_cache_back_before_it_is_told(llama, seen, raised, told_as):
    def fail(*_: object) -> None:
        raise RuntimeError(raised)

    answer(llama, FIRST)
    hook = llama.model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(told_as):
        answer(llama, FIRST)
    hook.remove()
    gc.collect()
    assert not any(cache() for cache in seen)
    assert agrees(llama, FIRST).usage.reused == 0


@pytest.mark.slow
def test_the_cache_goes_with_the_model(llama_folder):
    resident = load(llama_folder)
    caches: list[weakref.ref[Any]] = []
    hook = resident.model.register_forward_pre_hook(
        lambda _, __, named: caches.append(weakref.ref(named[library.cache_name()])), with_kwargs=True
    )
    answer(resident, FIRST)
    hook.remove()
    gc.collect()
    assert caches[-1]() is not None
    del resident
    gc.collect()
    assert caches[-1]() is None


def test_layers_that_begin_anew_with_every_prompt_are_found_out(residents):
    """The probe tells a model that forgets its recurrent state from one that carries it on."""
    import torch

    resident = residents("delta")
    prompt = torch.tensor([FIRST])
    assert decode.kv_cache.carries_on(resident.model, prompt, lambda: decode.kv_cache.new_cache(resident.model))
    forgetting = [layer for layer in resident.model.modules() if hasattr(layer, "conv1d")]
    assert forgetting
    hooks = [layer.register_forward_pre_hook(without_state, with_kwargs=True) for layer in forgetting]
    assert not decode.kv_cache.carries_on(resident.model, prompt, lambda: decode.kv_cache.new_cache(resident.model))
    for hook in hooks:
        hook.remove()


def without_state(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Take a layer's cache away, as if it had none."""
    return given, {name: None if "cache" in name or "past" in name else value for name, value in named.items()}


# the whole way


@pytest.mark.slow
def test_a_chat_with_the_builtin_model_says_the_same_with_and_without(builtin_folder):
    """Three turns through the template; each reply is encoded again with the next message."""
    lines = ["Name a colour.", "Another one, please.", "Which of the two is warmer?"]
    with opened(builtin_folder, max_new_tokens=12, do_sample="off") as session:
        kept = [ask(session, line) for line in lines]
        run(session, "/clear", "/reuse off")
        fresh = [ask(session, line) for line in lines]
    assert [done.token_ids for done in kept] == [done.token_ids for done in fresh]
    assert [done.usage.reused for done in fresh] == [0, 0, 0]
    assert [done.decode["reuse"] for done in (*kept, *fresh)] == [True] * 3 + [False] * 3
    for before, done in pairwise(kept):
        assert done.usage.reused >= len(before.prompt_ids)
