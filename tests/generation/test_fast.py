"""Replies that are read ahead have the ids of those that are not; what cannot be read ahead is said."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import pytest
from decoding import ways
from driving import ask, ask_until, bare, drawn, generated, opened, run, trimmed
from hypothesis import given
from hypothesis import strategies as st

from repl import generation
from repl.core import library
from repl.core.errors import UsageError
from repl.core.events import Notice, Token
from repl.generation import decode, measure
from repl.session.results import Message
from repl.session.session import Session
from repl.terminal.screen import reply_figures, to_jsonable

TEXT = "The quick brown fox jumps over the lazy dog. The quick brown fox"
CASES = {
    **ways("greedy", "greedy, repetition penalty", "greedy, no repeated pair", "sample, all knobs"),
    "greedy, least length": {"do_sample": False, "min_new_tokens": 40},
    "greedy, a text that ends it": {"do_sample": False, "stop_strings": ["e"]},
}


class Knowing:
    """Proposes what the plain loop made, with some tokens wrong: all of a run, part of it, or none is right."""

    def __init__(self, prompt: list[int], made: list[int], seed: int) -> None:
        self._ids, self._draw = prompt + made, random.Random(seed)

    def __call__(self, ids: Sequence[int], most: int) -> list[int]:
        assert list(ids) == self._ids[: len(ids)]
        length = self._draw.randint(0, most)
        ahead = [*self._ids[len(ids) : len(ids) + length], *range(3, 3 + most)][:length]
        return [(one + 1) % 300 if self._draw.random() < 0.2 else one for one in ahead]


def sliding(folder: Path) -> Path:
    """Write a model whose layers forget what is more than eight tokens ago."""
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = models.byte_level(["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    with models.seeded(0):
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        words = {**models.sizes(tokenizer), **shape, "num_key_value_heads": 2, "sliding_window": 8}
        model = MistralForCausalLM(MistralConfig(**words, initializer_range=models.SPREAD))
    return models.save(model, tokenizer, folder)


@pytest.fixture(scope="module", params=["llama", "gpt2", "sliding"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    if request.param == "sliding":
        return bare(sliding(tmp_path_factory.mktemp("sliding")))
    return bare(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="module")
def session(llama_folder: Path) -> Iterator[Session]:
    with opened(llama_folder, max_new_tokens=24) as session:
        yield session


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "session" in request.fixturenames:
        run(request.getfixturevalue("session"), "/reset", "/max 24", "/clear")


def checked(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    ahead: "decode.drafters.Ahead",
    values: dict[str, Any],
    stream: Any,
    **cache: Any,
) -> list[int]:
    """Generate with proposals; returns the new ids."""
    import torch
    from transformers import GenerationConfig

    given = {name: value for name, value in values.items() if name != "seed"}
    if "seed" in values:
        torch.manual_seed(values["seed"])
    ids = torch.tensor([prompt])
    found = decode.loop.generate(
        model,
        proposals=ahead,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(**given),
        streamer=stream,
        tokenizer=tokenizer,
        **(cache or {library.cache_name(): decode.kv_cache.croppable_cache(model)}),
    )
    return trimmed(found[0, len(prompt) :].tolist(), model)


def ahead_of(model: Any, tokenizer: Any, prompt: list[int], drafter: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    """Generate with proposals that cost no time, so that there is always one; returns ids, events and the figures."""
    told: list[Token] = []
    ahead = decode.drafters.Ahead(drafter, 7, clock=lambda: 0.0)
    return (
        checked(model, tokenizer, prompt, ahead, values, generation.engine.ExactStreamer(tokenizer, told.append)),
        told,
        ahead,
    )


# exactness


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("name", CASES)
def test_checked_proposals_give_the_ids_of_the_plain_loop(tiny, name):
    """Whatever is proposed, right or wrong: processors, draws and stopping criteria see each token as they would."""
    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    values = {"max_new_tokens": 48, **CASES[name]}
    (plain_ids,), _ = generated(model, tokenizer, prompt, values)
    for seed in range(3):
        made, told, ahead = ahead_of(model, tokenizer, prompt, Knowing(prompt, plain_ids, seed), values)
        assert made == plain_ids
        assert [token.id for token in told if token.id is not None] == plain_ids
        if len(plain_ids) > 20:
            assert 0 < ahead.accepted < ahead.proposed
            assert ahead.passes < len(plain_ids) - 1
        assert ahead.passes + ahead.accepted == len(plain_ids) - 1


@pytest.mark.library
def test_a_lookup_copies_and_nothing_else_changes(scripted_folder):
    """A model that says the same line again and again: found in its own text, in far fewer passes."""
    model, tokenizer = bare(scripted_folder(b"abcdefgh" * 12))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": ""}], return_dict=False)
    values = {"max_new_tokens": 96, "do_sample": False}
    (plain_ids,), _ = generated(model, tokenizer, prompt, values)
    made, _, ahead = ahead_of(model, tokenizer, prompt, decode.drafters.Lookup(), values)
    assert made == plain_ids
    assert ahead.passes < 40


@pytest.mark.slow
@pytest.mark.library
def test_the_built_in_model_gives_the_same_ids(builtin_folder):
    with opened(builtin_folder, max_new_tokens=24, do_sample="off") as session:
        asked = "Repeat word for word: The river rises in the hills above the town, and it carries the water of nine."
        one = ask(session, asked)
        run(session, "/fast prompt_lookup", "/clear")
        other = ask(session, asked)
    assert other.token_ids == one.token_ids
    assert other.drafts.accepted > 0
    assert other.drafts.passes + other.drafts.accepted == len(other.token_ids) - 1


# lookup


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9))
def test_a_lookup_proposes_what_followed_the_last_time(ids, most):
    """Found by going through the text from its end, for the longest run of two to four tokens there is."""
    places = [
        (size, place)
        for size in (4, 3, 2)
        for place in range(len(ids) - 1, size - 1, -1)
        if len(ids) > size and ids[place - size : place] == ids[-size:]
    ]
    expected: list[int] = []
    if places:
        place = places[0][1]
        text = list(ids)
        for step in range(min(most, decode.drafters.count_agreeing(ids, place, most))):
            text.append(text[place + step])
        expected = text[len(ids) :]
    assert decode.drafters.Lookup()(ids, most) == expected


def test_a_lookup_that_grows_with_its_text_finds_what_a_new_one_finds():
    draw = random.Random(1)
    ids = [draw.randint(0, 4) for _ in range(200)]
    grown = decode.drafters.Lookup()
    for end in range(2, len(ids)):
        assert grown(ids[:end], 6) == decode.drafters.Lookup()(ids[:end], 6)


# the watch


@given(
    st.floats(0, 0.4), st.floats(0, 0.2), st.floats(0, 0.2), st.lists(st.floats(0, 1), max_size=60), st.integers(1, 15)
)
def test_what_is_lost_stays_a_small_share(fixed, each, finding, luck, most):
    """Whatever proposals cost, and however many are right: three hundredths of the time, and what one attempt costs."""
    balance, total, lost = decode.drafters.Balance(), 0.0, 0.0
    for number in range(600):
        proposed = most if balance.allows else 0
        made = 1 + int((luck[number % len(luck)] if luck else 0.0) * proposed)
        seconds = 1 + (fixed + each * proposed + finding if proposed else 0.0)
        balance.count(seconds, proposed, made)
        total, lost = total + seconds, max(lost + seconds - made, -4)
        assert lost <= decode.drafters.MAX_LOST_SHARE * total + fixed + each * most + finding + 1e-6


def test_proposals_that_are_never_right_rest_but_for_a_try_now_and_then():
    balance, tries = decode.drafters.Balance(), 0
    for _ in range(1000):
        proposed = 4 if balance.allows else 0
        tries += bool(proposed)
        balance.count(1.0 + proposed / 4, proposed, 1)
    assert 5 < tries < 0.05 * 1000 + 3


def test_the_time_of_an_assistant_that_proposes_nothing_counts():
    """It is asked, and is not sure: that costs a pass of its own."""
    balance, asked = decode.drafters.Balance(), 0
    for _ in range(1000):
        tried = balance.allows
        asked += tried
        balance.count(1.0, 0, 1, 0.3 if tried else 0.0)
    assert 0 < asked * 0.3 <= decode.drafters.MAX_LOST_SHARE * 1030 + 1


def test_what_pays_goes_on():
    """Every other proposal wrong, but what is right brings more; a hundredfold pass counts as a few steps."""
    balance = decode.drafters.Balance()
    balance.count(1.0, 0, 1)
    for step in range(200):
        balance.count(1.5, 4, 1 if step % 2 else 5)
        assert balance.allows or step % 2
    balance.count(100.0, 4, 2)
    for _ in range(40):
        balance.count(1.0, 0, 1)
    assert balance.allows


def test_old_gains_pay_for_few_losses():
    balance, tries = decode.drafters.Balance(), 0
    balance.count(1.0, 0, 1)
    for _ in range(1000):
        balance.count(1.5, 9, 10)
    while balance.allows:
        balance.count(2.0, 9, 1)
        tries += 1
    assert tries < 70


# in the session


@pytest.mark.slow
@pytest.mark.library
def test_the_next_turn_equals_a_fresh_one_after_a_cancel(session):
    """What is kept of a reply that was stopped in the middle of proposals is sound."""
    run(session, "/fast prompt_lookup", "/max 60")
    seen: list[object] = []

    def enough(event: object) -> bool:
        seen.append(event)
        return sum(isinstance(each, Token) for each in seen) == 9

    stopped = ask_until(session, TEXT, enough)
    assert stopped.finish == "cancelled"
    assert 0 < len(stopped.token_ids) < 60
    assert stopped.text
    after = ask(session, "And then?")
    assert after.usage.reused > 0
    run(session, "/fast off", "/reuse off", "/undo")
    assert ask(session, "And then?").token_ids == after.token_ids


@pytest.mark.library
@pytest.mark.parametrize(
    "halt", [1, 4, 19, *(pytest.param(halt, marks=pytest.mark.slow) for halt in range(7, 40, 3) if halt != 19)]
)
def test_a_cancel_at_any_moment_leaves_a_sound_cache(tiny, halt):
    """Before a layer, in a checked pass or as a token is told: what is kept goes on as a new text does."""
    from repl.core.errors import Cancelled
    from repl.generation.measure.forward import cancellable_forward

    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    (plain_ids,), _ = generated(model, tokenizer, prompt, {"max_new_tokens": 30, "do_sample": False})
    kept, told, left = decode.kv_cache.PrefixCache(), list[int](), [halt]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled

    def put(token: Token) -> None:
        check()
        told.extend([] if token.id is None else [token.id])

    import torch

    ids = torch.tensor([prompt])
    stream = generation.engine.ExactStreamer(tokenizer, put)
    ahead = decode.drafters.Ahead(Knowing(prompt, plain_ids, 0), 7, clock=lambda: 0.0)
    config, values = model.generation_config, {"max_new_tokens": 30, "do_sample": False}
    stopping = pytest.raises(Cancelled), cancellable_forward(model, check)
    with stopping[0], kept.lend(model, config, ids, lambda: prompt + told) as (past, _), stopping[1]:
        checked(model, tokenizer, prompt, ahead, values, stream, **past)
    assert plain_ids[: len(told)] == told
    more = [*prompt, *told, 7, 8, 9]
    with kept.lend(model, config, torch.tensor([more]), lambda: more) as (past, reused):
        assert reused <= len(prompt) + len(told)
        going_on, _ = generated(model, tokenizer, more, {"max_new_tokens": 9, "do_sample": False, **past})
    assert going_on == generated(model, tokenizer, more, {"max_new_tokens": 9, "do_sample": False})[0]


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("lines", [["/greedy"], ["/sample temperature=1.2", "/seed 3"], ['/stop "e"'], ["/reuse off"]])
def test_turns_are_the_same_with_and_without(session, lines):
    """Two turns each, whatever the watch allows; also what the record says of how they ended."""
    found = []
    for line in ("/fast off", "/fast prompt_lookup"):
        run(session, *lines, line, "/clear")
        found.append([ask(session, text) for text in (TEXT, "Once more: " + TEXT)])
    for one, other in zip(*found, strict=True):
        assert (one.token_ids, one.finish, one.text) == (other.token_ids, other.finish, other.text)
        assert (one.usage.prompt, one.usage.completion, one.given) == (
            other.usage.prompt,
            other.usage.completion,
            other.given,
        )
        assert one.drafts is None
        assert other.drafts.by == "prompt_lookup"


@pytest.mark.library
def test_logprobs_are_those_of_each_token(session):
    """Read ahead or not: every token's event has the figures of its own place."""
    run(session, "/logprobs 2", "/greedy")
    plain_events: list[Any] = []
    ask(session, TEXT, plain_events.append)
    run(session, "/fast prompt_lookup", "/clear")
    events: list[Any] = []
    ask(session, TEXT, events.append)
    run(session, "/logprobs 0")
    plain, fast = ([event for event in all_of if isinstance(event, Token)] for all_of in (plain_events, events))
    measured = [(one, other) for one, other in zip(plain, fast, strict=True) if one.logprob is not None]
    assert len(measured) > 20
    for one, other in measured:
        assert (one.id, [top[0] for top in one.top]) == (other.id, [top[0] for top in other.top])
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_checked_rows_are_measured_in_their_order(tiny):
    """Of several tokens from one pass, each is measured in the distribution that it was chosen from."""
    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    values = {"max_new_tokens": 30, "do_sample": False}
    (plain_ids,), _ = generated(model, tokenizer, prompt, values)
    told: list[Token] = []
    meter = measure.forward.Meter(tokenizer, 1, several=True)
    stream = generation.engine.ExactStreamer(tokenizer, told.append, measure=meter.measure)
    ahead = decode.drafters.Ahead(Knowing(prompt, plain_ids, 1), 7, clock=lambda: 0.0)
    with meter.reading(model):
        checked(model, tokenizer, prompt, ahead, values, stream)
    assert ahead.accepted
    assert [token.top[0][0] for token in told if token.id is not None] == plain_ids


# what does not go


def test_it_rests_with_beams_and_says_so_once(session):
    heard: list[Any] = []
    run(session, "/fast prompt_lookup", "/beams 2")
    done = ask(session, TEXT, heard.append)
    ask(session, TEXT, heard.append)
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert said == ["prompt_lookup is off: it works with one sequence at a time"]
    assert done.drafts is None
    assert len(done.sequences) == 2


def test_a_model_without_such_a_cache_is_answered_plainly(recurrent_folder):
    with opened(recurrent_folder, max_new_tokens=4, prompt_lookup=5) as session:
        heard: list[Any] = []
        done = ask(session, TEXT, heard.append)
    (said,) = [event.text for event in heard if isinstance(event, Notice)]
    assert said.startswith("prompt_lookup is off: this model's KV cache")
    assert done.drafts is None


@pytest.mark.slow
def test_what_stretches_its_positions_is_read_ahead_only_before_it_does(tiny):
    """Beyond the limit there are no proposals."""
    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    (plain_ids,), _ = generated(model, tokenizer, prompt, {"max_new_tokens": 40, "do_sample": False})
    longest: list[int] = []

    class Told(Knowing):
        def __call__(self, ids: Sequence[int], most: int) -> list[int]:
            longest.append(len(ids) + most)
            return super().__call__(ids, most)

    stream = generation.engine.ExactStreamer(tokenizer, lambda token: None)
    ahead = decode.drafters.Ahead(Told(prompt, plain_ids, 0), 7, len(prompt) + 20, clock=lambda: 0.0)
    made = checked(model, tokenizer, prompt, ahead, {"max_new_tokens": 40, "do_sample": False}, stream)
    assert made == plain_ids
    assert max(longest) < len(prompt) + 20


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
)
def test_every_config_that_cannot_be_read_ahead_is_known(tiny, values):
    from transformers import GenerationConfig

    assert decode.drafters.refusal(tiny[0], GenerationConfig(**values), 5)
    assert not decode.drafters.refusal(tiny[0], GenerationConfig(), 5)


def test_lookup_and_assistant_exclude_each_other(session):
    session.settings = session.settings.put("prompt_lookup", 5, "config").put("assistant", "builtin", "config")
    with pytest.raises(UsageError, match="cannot be combined") as refused:
        ask(session, "Hi")
    assert refused.value.hints == ("/assistant none", "/prompt_lookup off")


def test_a_lookup_that_can_do_nothing_says_so_when_it_is_set(session):
    run(session, "/beams 3")
    assert "no effect while several sequences" in run(session, "/fast prompt_lookup").text
    with pytest.raises(UsageError, match="off cannot be combined with a mode"):
        run(session, "/fast off prompt_lookup")


# the assistant


@pytest.fixture(scope="module")
def helper_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that nearly agrees with the tiny Llama: its weights, a little off."""
    import torch

    model, tokenizer = bare(llama_folder)
    with models.seeded(3):
        for weight in model.parameters():
            weight += torch.randn_like(weight) * 0.02 * weight.std()
    return models.save(model, tokenizer, tmp_path_factory.mktemp("helper"))


@pytest.mark.slow
@pytest.mark.library
def test_an_assistant_changes_speed_and_nothing_else(session, helper_folder):
    """Two turns, greedy and sampled; its id and commit stand in the record."""
    for lines in (["/greedy"], ["/sample temperature=1.1", "/seed 4"]):
        run(session, *lines, "/assistant none", "/clear")
        plain_turns = [ask(session, text) for text in (TEXT, "And then?")]
        said = run(session, f"/assistant {helper_folder}")
        assert isinstance(said, Message)
        run(session, "/clear")
        turns = [ask(session, text) for text in (TEXT, "And then?")]
        assert [turn.token_ids for turn in turns] == [turn.token_ids for turn in plain_turns]
        assert {turn.drafts.by for turn in turns} == {"assistant"}
        assert turns[0].drafts.model["id"] == str(helper_folder)
        assert turns[0].decode["assistant"] == str(helper_folder)


@pytest.mark.library
def test_an_assistant_proposes_what_it_would_say_itself(tiny, emit):
    """The model as its own assistant is always right; its cache holds what it was fed."""
    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    values = {"max_new_tokens": 30, "do_sample": False}
    (plain_ids,), _ = generated(model, tokenizer, prompt, values)
    drafter = decode.drafters.Assistant(model, decode.kv_cache.croppable_cache(model), [], model.config.vocab_size)
    made, _, ahead = ahead_of(model, tokenizer, prompt, drafter, values)
    assert made == plain_ids
    assert ahead.accepted == ahead.proposed > 0
    assert drafter.fed[: len(prompt)] == prompt


@pytest.mark.slow
def test_an_assistant_with_a_shorter_context_stops_proposing(tiny):
    """It reads nothing that is longer than it was made for."""
    model, tokenizer = tiny
    prompt = tokenizer(TEXT)["input_ids"]
    values = {"max_new_tokens": 40, "do_sample": False}
    (plain_ids,), _ = generated(model, tokenizer, prompt, values)
    drafter = decode.drafters.Assistant(model, decode.kv_cache.croppable_cache(model), [], model.config.vocab_size)
    stream = generation.engine.ExactStreamer(tokenizer, lambda token: None)
    ahead = decode.drafters.Ahead(drafter, 7, len(prompt) + 12, clock=lambda: 0.0)
    assert checked(model, tokenizer, prompt, ahead, values, stream) == plain_ids
    assert ahead.accepted <= 12
    assert len(drafter.fed) <= len(prompt) + 12


def test_a_model_that_generates_its_own_way_is_left_to_it(tiny):
    model, _ = tiny

    class Own(type(model)):
        def _sample(self, *words: Any, **named: Any) -> Any:
            return super()._sample(*words, **named)

    assert "overrides" in decode.drafters.refusal(Own(model.config), model.generation_config, 5)


def test_only_a_model_that_heeds_the_mask_gets_padded_rows(llama_folder):
    """A trial decides."""
    model, tokenizer = bare(llama_folder)
    prompt = tokenizer(TEXT)["input_ids"]

    class Deaf(type(model)):
        def forward(self, *words: Any, **named: Any) -> Any:
            return super().forward(*words, **{**named, "attention_mask": None})

    deaf = Deaf(model.config)
    deaf.load_state_dict(model.state_dict())
    assert decode.batch.can_pad(model, prompt)
    assert not decode.batch.can_pad(deaf.eval(), prompt)


def test_another_tokenizer_is_refused_and_nothing_changes(session, gpt2_folder, recurrent_folder):
    with pytest.raises(UsageError, match="has a different tokenizer"):
        run(session, f"/assistant {gpt2_folder}")
    assert session.settings.decode.assistant == "none"
    with pytest.raises(UsageError, match="is the model itself"):
        run(session, f"/assistant {session.facts().id}")


def test_an_assistant_that_no_longer_fits_rests(session, gpt2_folder):
    """Named in the config, or left over from another model: the reply comes all the same."""
    session.settings = session.settings.put("assistant", str(gpt2_folder), "config")
    heard: list[Any] = []
    done = ask(session, TEXT, heard.append)
    assert done.token_ids
    assert done.drafts is None
    (said,) = [event.text for event in heard if isinstance(event, Notice)]
    assert re.match("assistant is off: .* has a different tokenizer", said)


@pytest.mark.slow
def test_a_cancel_leaves_model_and_assistant_sound(session, helper_folder):
    run(session, "/greedy", f"/assistant {helper_folder}", "/max 60")
    count: list[object] = []

    def enough(event: object) -> bool:
        count.extend([event] if isinstance(event, Token) else [])
        return len(count) == 7

    assert ask_until(session, TEXT, enough).finish == "cancelled"
    after = ask(session, "And then?")
    assert after.usage.reused > 0
    run(session, "/assistant none", "/reuse off", "/undo")
    assert ask(session, "And then?").token_ids == after.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("way", ["/greedy", "/assistant {}", "/prompt_lookup 4", "/set stop never-said"])
def test_a_limit_of_time_ends_every_kind_of_reply(session, helper_folder, way):
    """What there is by then is the beginning of the whole reply, and the next one comes as it would have."""
    run(session, "/greedy", "/max 400")
    whole = ask(session, TEXT)
    run(session, "/clear", way.format(helper_folder), "/set max_time 0.05")
    short = ask(session, TEXT)
    assert 0 < len(short.token_ids) < len(whole.token_ids)
    assert short.token_ids == whole.token_ids[: len(short.token_ids)]
    assert short.finish == "length"
    assert "cut after 0.05 s, /set max_time 0.1 allows more" in reply_figures(short)
    run(session, "/set max_time default", "/set stop default", "/max 8")
    after = ask(session, "And then?")
    run(session, "/assistant none", "/prompt_lookup off", "/reuse off", "/undo")
    assert ask(session, "And then?").token_ids == after.token_ids


# what it says


def test_fast_alone_says_what_is_on_and_what_it_brought(llama_folder):
    with opened(llama_folder, max_new_tokens=24) as session:
        ask(session, TEXT)
        run(session, "/fast prompt_lookup")
        done = ask(session, TEXT)
        found = run(session, "/fast")
        run(session, "/fast off")
        assert not any(path.on for path in run(session, "/fast").paths if path.name == "prompt_lookup")
    lookup, assistant = found.modes
    assert (lookup.name, lookup.replies) == ("prompt_lookup", 1)
    assert (lookup.proposed, lookup.accepted) == (done.drafts.proposed, done.drafts.accepted)
    assert lookup.tokens_per_pass == pytest.approx((len(done.token_ids) - 1) / done.drafts.passes)
    assert lookup.decode_tps == pytest.approx(done.timing.decode_tps)
    assert found.plain_tps > 0
    assert assistant.replies == 0
    assert to_jsonable(found)["modes"][0]["name"] == "prompt_lookup"


def test_the_view_has_words_for_it():
    """Figures where there are some, what to type where nothing is on."""
    from repl.commands.fast import Fast, Mode
    from repl.generation.fast_paths import FastPath

    used, idle = Mode("prompt_lookup", 3, 65, 43, 2.34, 38.4), Mode("assistant", 0, 0, 0, None, None)
    paths = FastPath("prompt_lookup", True, ""), FastPath("assistant", False, "/assistant ID turns it on")
    text = drawn(Fast(paths, [used, idle], 16.5), 120)
    assert "prompt_lookup" in text
    assert "2.3 tokens per pass · 43 of 65 proposed tokens accepted · 38.4 tokens/s · 16.5 without" in text
    assert "/assistant ID" in text


def test_a_model_that_also_looks_ahead_is_not_read_ahead(tmp_path):
    """It takes and fills a cache, but several tokens of one pass see each other: proposals would change its ids."""
    import architectures

    architectures.make("bert", tmp_path / "bert")
    with opened(tmp_path / "bert", max_new_tokens=4, prompt_lookup=5) as session:
        heard: list[Any] = []
        done = ask(session, TEXT, heard.append)
    assert any("and one by one" in event.text for event in heard if isinstance(event, Notice))
    assert done.drafts is None
