"""Every field of the library's generation config, with a good, an empty, a `none` and a wrong value.

The laws: a value is refused at once with a line to type, or the reply is what `generate` makes of it as an argument;
`none` is what None as an argument is.
"""

import json
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from driving import ask, bare, opened, run

from repl.core import fields, settings
from repl.core.decoding import OURS
from repl.core.errors import UsageError
from repl.core.reply import Reply

PROMPT = "Once upon a time"
WAYS = {"greedy": "/greedy", "sample": "/sample", "beams": "/beams 3"}

GOOD: dict[str, list[str]] = {
    "max_length": ["40"],
    "max_new_tokens": ["7"],
    "min_length": ["9"],
    "min_new_tokens": ["5"],
    "early_stopping": ["on", "never"],
    "max_time": ["60"],
    "stop_strings": ["e"],
    "do_sample": ["on"],
    "num_beams": ["2"],
    "num_return_sequences": ["1"],
    "use_cache": ["off"],
    "cache_implementation": ["dynamic", "static"],
    "cache_config": ['{"nbits": 4}'],
    "max_cache_len": ["64"],
    "prefill_chunk_size": ["3"],
    "temperature": ["0.7"],
    "top_k": ["5"],
    "top_p": ["0.8"],
    "min_p": ["0.1"],
    "top_h": ["0.4"],
    "typical_p": ["0.6"],
    "epsilon_cutoff": ["0.003"],
    "eta_cutoff": ["0.01"],
    "repetition_penalty": ["1.4"],
    "encoder_repetition_penalty": ["1.4"],
    "length_penalty": ["2"],
    "no_repeat_ngram_size": ["1"],
    "encoder_no_repeat_ngram_size": ["1"],
    "bad_words_ids": ["[[199], [257, 228]]"],
    "renormalize_logits": ["on"],
    "forced_bos_token_id": ["5"],
    "forced_eos_token_id": ["2", "[2, 7]"],
    "remove_invalid_values": ["on"],
    "exponential_decay_length_penalty": ["[2, 1.5]"],
    "suppress_tokens": ["[5, 7, 199]"],
    "begin_suppress_tokens": ["[199, 257]"],
    "sequence_bias": ["[[[5], 2.5], [[7, 9], -1.0]]"],
    "token_healing": ["on"],
    "guidance_scale": ["1.5"],
    "watermarking_config": ['{"bias": 4.0}'],
    "eos_token_id": ["7", "[2, 7, 199]"],
    "compile_config": ['{"mode": "default"}'],
    "disable_compile": ["on"],
}
"""Values that are taken; all other fields are refused whatever the value."""
WRONG = {
    "stop_strings": '""',
    "bad_words_ids": "[5]",
    "sequence_bias": "5",
    "suppress_tokens": "[5, 100000]",
    "begin_suppress_tokens": "[-1]",
    "eos_token_id": "[]",
    "forced_eos_token_id": "2.5",
    "exponential_decay_length_penalty": "1.5",
    "watermarking_config": '{"bias": "much"}',
    "compile_config": '{"fast": true}',
    "cache_config": '{"bits": 4}',
    "cache_implementation": "paged",
    "guidance_scale": "-1",
    "prefill_chunk_size": "0",
    "epsilon_cutoff": "1",
    "top_h": "0",
}
IDLE = ("cache_config", "max_cache_len", "forced_bos_token_id", "compile_config", "disable_compile")
"""Fields whose good value above changes nothing as things stand, which is said."""


@cache
def known() -> list[str]:
    """List the fields of the installed library."""
    from transformers import GenerationConfig

    return [name for name in vars(GenerationConfig()) if not name.startswith("_")]


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for what the sessions of this module keep: they live longer than a test's own home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUB_REPL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def tiny(at_home: None, llama_folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    """A session and, loaded apart from it, the same model and tokenizer."""
    with opened(llama_folder, max_new_tokens=8) as session:
        yield session, *bare(llama_folder)


@pytest.fixture(scope="module")
def laden(at_home: None, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session with a model whose own generation config sets a good value for every field that is heeded."""
    folder = configured(llama_folder, tmp_path_factory.mktemp("laden") / "model", LADEN)
    with opened(folder, max_new_tokens=8) as session:
        yield session, *bare(folder)


LADEN = {
    **{"do_sample": True, "temperature": 0.5, "top_k": 4, "top_p": 0.7, "min_p": 0.2, "top_h": 0.5, "typical_p": 0.5},
    **{"epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
    **{"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 1, "bad_words_ids": [[146], [131]]},
    **{"forced_eos_token_id": 7, "exponential_decay_length_penalty": [1, 2.0], "suppress_tokens": [199, 26]},
    **{"begin_suppress_tokens": [257], "sequence_bias": [[[138], 3.0]], "guidance_scale": 1.5, "min_length": 6},
    **{"watermarking_config": {"bias": 4.0}, "eos_token_id": [2, 339], "stop_strings": ["a"], "max_time": 600.0},
    **{"renormalize_logits": True, "remove_invalid_values": True, "prefill_chunk_size": 2, "min_new_tokens": 2},
}


def configured(folder: Path, copy: Path, values: dict[str, Any]) -> Path:
    """Copy a model's folder and put values into its generation config."""
    shutil.copytree(folder, copy)
    file = copy / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return copy


def value(name: str, word: str) -> Any:
    """Return what `generate` is given for a word."""
    ours = {theirs: own for own, theirs in OURS.items()}.get(name, name)
    if ours in settings.places():
        found = settings.read_setting(ours, word)
        return (list(found) or None) if name == "stop_strings" else found
    return fields.read_field(name, word, {name: None})


def made(model: Any, tokenizer: Any, given: dict[str, Any], seed: int = 3) -> list[int]:
    """Return the ids of prompt and reply of a bare `generate`."""
    import torch

    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    if "max_length" not in given:
        given = {"max_new_tokens": 8, **given}
    torch.manual_seed(seed)
    rows = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), tokenizer=tokenizer, **given)
    end = given.get("eos_token_id", model.generation_config.eos_token_id)
    ends = end if isinstance(end, list) else [end]
    whole: list[int] = rows[0].tolist()
    start = ids.shape[1]
    stop = next((place + 1 for place in range(start, len(whole)) if whole[place] in ends), len(whole))
    return whole[:stop]


def attempt(session: Any, line: str) -> bool:
    """Run a `/set` line: True where it is taken; where it is refused nothing has changed and a line is offered."""
    before = session.settings
    try:
        run(session, line)
    except UsageError as error:
        refusal = error
    else:
        return True
    assert refusal.hints, line
    assert session.settings == before
    assert not any(sign in refusal.message.replace("JSON object", "") for sign in ("Error", "object", "Traceback"))
    return False


def looked_at(session: Any) -> None:
    """Look at a reply in every view that goes by its settings: none of them fails, the reply comes again."""
    run(session, "/settings", f"/next 2 {PROMPT}", "/recipe", "/why 1")
    if session.last.record.finish != "length" or "max_length" not in session.last.record.given:
        run(session, "/next 2")
    assert run(session, "/reproduce").identical


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_makes_what_generate_makes_of_it(tiny, name):
    """In each way of decoding; the views of such a reply in one of them, by turns."""
    session, model, tokenizer = tiny
    starts = {"greedy": {}, "sample": {"do_sample": True}, "beams": {"num_beams": 3, "num_return_sequences": 1}}
    seen = [*WAYS][[*GOOD].index(name) % len(WAYS)]
    if name not in known():
        pytest.skip("a field that this version of the library does not have")
    for way, word in product(WAYS, GOOD[name]):
        run(session, "/reset", "/max 8", WAYS[way], "/num_return_sequences 1", "/seed 3", f"/set {name} {word}")
        found = value(name, word)
        done = run(session, f"/raw {PROMPT}")
        assert isinstance(done, Reply)
        given = {"compile_config": None} if name == "compile_config" else {name: found}
        assert [*done.prompt_ids, *done.token_ids] == made(model, tokenizer, {**starts[way], **given}), (way, word)
        if name != "token_healing":
            assert done.given[name] == found
        if way == seen:
            looked_at(session)


@pytest.mark.library
def test_the_other_fields_are_refused_in_each_way(tiny):
    session = tiny[0]
    for way in WAYS.values():
        run(session, "/reset", way)
        assert [name for name in known() if name not in GOOD and attempt(session, f"/set {name} 1")] == []


@pytest.mark.library
def test_an_empty_or_wrong_value_is_refused_at_once_with_a_line_to_type(tiny):
    session = tiny[0]
    run(session, "/reset")
    lines = [
        f"/set {name} {word}"
        for name in known()
        for word in (WRONG.get(name, "wrong"), "[]", "{}", '""', "null", "nan")
        if not (name == "stop_strings" and word in ("{}", "null", "nan"))  # texts like any other
    ]
    assert [line for line in lines if attempt(session, line)] == []


@pytest.mark.parametrize("name", ["watermarking_config", "compile_config"])
def test_options_that_the_library_does_not_have_are_refused(tiny, name):
    session = tiny[0]
    run(session, "/reset")
    with pytest.raises(UsageError, match="is not a JSON object with some of") as caught:
        run(session, f'/set {name} {{"hello": 1}}')
    assert any(hint.startswith(f"/set {name} {{") for hint in caught.value.hints)
    assert not session.settings.extra


@pytest.mark.parametrize("name", IDLE)
def test_a_field_without_effect_as_things_stand_says_so(tiny, name):
    session = tiny[0]
    run(session, "/reset")
    assert "effect" in run(session, f"/set {name} {GOOD[name][0]}").text
    run(session, "/reset")


def test_what_a_chat_is_refused_with_is_said_when_it_is_set(tiny):
    """And the message says it again; a text that is continued takes it."""
    session = tiny[0]
    assert run(session, "/set token_healing on").choices == (("/mode complete", "continues plain text"),)
    with pytest.raises(UsageError, match="plain text"):
        ask(session, "Hello")
    run(session, "/mode complete")
    assert not run(session, "/set token_healing on").choices
    run(session, "/mode default")
    run(session, "/reset token_healing")


@pytest.mark.library
def test_a_models_own_values_are_heeded_as_generate_heeds_them(laden):
    session, model, tokenizer = laden
    run(session, "/reset", "/max 8", "/seed 3")
    as_it_is = run(session, f"/raw {PROMPT}")
    assert [*as_it_is.prompt_ids, *as_it_is.token_ids] == made(model, tokenizer, {})


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.filterwarnings("ignore:Unfeasible length")  # of the model's min_length where one token is looked at
@pytest.mark.parametrize("name", [*LADEN])
def test_none_is_none_as_an_argument_of_generate(laden, name):
    session, model, tokenizer = laden
    run(session, "/reset", "/max 8", "/seed 3")
    off = [name, "exponential_decay_length_penalty"] if name == "eos_token_id" else [name]  # that one needs an end
    run(session, *(f"/set {each} none" for each in off))
    done = run(session, f"/raw {PROMPT}")
    assert [*done.prompt_ids, *done.token_ids] == made(model, tokenizer, dict.fromkeys(off))
    assert not done.given[name] or done.given[name] == value(name, "none")
    if name != "guidance_scale":  # of a token that it shaped the steps are not kept
        with pytest.raises(Exception, match="guidance_scale"):
            run(session, "/why 2")
    run(session, "/settings", "/next 2", "/recipe")
    assert run(session, "/reproduce").identical


def test_a_model_with_stop_strings_ends_there_and_says_so(laden):
    """Its own loop, the library's and rows of a sweep alike."""
    session, model, tokenizer = laden
    run(session, "/reset", "/max 30", *(f"/set {name} none" for name in LADEN if name != "stop_strings"))
    done = run(session, f"/raw {PROMPT}")
    off = {name: value(name, "none") for name in LADEN if name != "stop_strings"}
    assert [*done.prompt_ids, *done.token_ids] == made(model, tokenizer, {**off, "max_new_tokens": 30})
    assert (done.finish, "a" in done.text) == ("stop_string", True)
    swept = run(session, f"/sweep num_beams=1 repetition_penalty=1,1.2 -- {PROMPT}")
    assert all("a" in line.text for line in swept.lines if line.finish == "stop_string")
    assert "stop_string" in {line.finish for line in swept.lines}
    run(session, "/prompt_lookup 4")
    assert ask(session, "once more").finish in ("stop_string", "length")
    run(session, "/prompt_lookup off", "/stop none")
    assert run(session, f"/raw {PROMPT}").finish == "length"


@pytest.mark.parametrize(
    ("theirs", "line", "made_of"), [("max_new_tokens", "/max_length", 12), ("max_length", "/max", 9)]
)
def test_your_limit_on_length_puts_the_models_aside(llama_folder, tmp_path, theirs, line, made_of):
    folder = configured(llama_folder, tmp_path / "model", {theirs: 6})
    with opened(folder) as session:
        run(session, "/greedy", f"{line} {made_of}")
        done = run(session, f"/raw {PROMPT}")
        count = made_of - len(done.prompt_ids) if line == "/max_length" else made_of
        assert (len(done.token_ids), done.finish) == (count, "length")
        assert run(session, "/reproduce").identical


# what a model's own generation config asks for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "said", "line"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature 0", "/greedy"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search", "/set penalty_alpha none"),
        ({"penalty_alpha": 1.0, "top_k": 4}, "contrastive search", "/set penalty_alpha none"),
        ({"dola_layers": "high"}, "DoLa", "/set dola_layers none"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam", "/set num_beam_groups none"),
        ({"force_words_ids": [[5]], "num_beams": 2}, "constrained", "/set force_words_ids none"),
    ],
)
def test_what_it_asks_for_in_vain_is_said_at_load_and_the_line_offered_puts_it_right(
    llama_folder, tmp_path, theirs, said, line
):
    with opened(configured(llama_folder, tmp_path / "model", theirs), max_new_tokens=6) as session:
        assert [said in one and line in one for one in session.facts().remarks] == [True]
        for asked in (f"/raw {PROMPT}", f"/next {PROMPT}"):
            with pytest.raises(UsageError, match=said) as caught:
                run(session, asked)
            assert line in caught.value.hints
        run(session, line)
        assert len(run(session, f"/raw {PROMPT}").token_ids) == 6
        run(session, "/next", "/why 1", "/recipe")
        assert run(session, "/reproduce").identical


@pytest.mark.slow
def test_what_changes_no_text_is_left_out_of_a_reply(llama_folder, tmp_path):
    """An assistant's stopping rule, outputs that sdpa cannot give, and fewer layers, which a failure would leave."""
    theirs = {"is_assistant": True, "output_attentions": True, "output_hidden_states": True, "output_logits": True}
    folder = configured(llama_folder, tmp_path / "model", {**theirs, "assistant_early_exit": 1})
    model, tokenizer = bare(llama_folder)
    with opened(folder, max_new_tokens=8) as session:
        for ask_for in ("/greedy", "/beams 3", "/sample"):
            run(session, ask_for, "/seed 3")
            done = run(session, f"/raw {PROMPT}")
            given = {"/greedy": {}, "/beams 3": {"num_beams": 3}, "/sample": {"do_sample": True}}[ask_for]
            assert [*done.prompt_ids, *done.token_ids] == made(model, tokenizer, given)
        assert session.store.current().model.config.num_hidden_layers == model.config.num_hidden_layers


def test_a_tokenizer_larger_than_the_embedding_is_told_at_load(llama_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    tokenizer = bare(folder)[1]
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with opened(folder) as session:
        (remark,) = session.facts().remarks
        assert f"the tokenizer has {len(tokenizer)} tokens, the embedding {len(tokenizer) - 1}" in remark


# many at once


@pytest.mark.library
@pytest.mark.parametrize(
    "name",
    ["suppress_tokens", "sequence_bias", "guidance_scale", "eos_token_id", "epsilon_cutoff", "watermarking_config"],
)
def test_the_rows_of_a_sweep_heed_a_field_as_generate_does(tiny, name):
    session, model, tokenizer = tiny
    word = GOOD[name][0]
    run(session, "/reset", "/max 8", "/mode complete", f"/set {name} {word}")
    swept = run(session, f"/sweep temperature=0,0.7,1.5 seed=3 -- {PROMPT}")
    for line, given in zip(swept.lines, ({}, {"temperature": 0.7}, {"temperature": 1.5}), strict=True):
        values = {**({"do_sample": True} if given else {}), **given, name: value(name, word)}
        assert [*swept.prompt_ids, *line.token_ids] == made(model, tokenizer, values, line.seed or 0)
    run(session, "/mode auto")


# what is said


@pytest.mark.slow
def test_retry_with_a_temperature_samples_while_greedy(tiny):
    session = tiny[0]
    run(session, "/reset", "/greedy", "/clear", "hello")
    drawn = run(session, "/retry temperature=1.5 seed=4")
    assert (drawn.decode["do_sample"], drawn.decode["temperature"], drawn.seed) == (True, 1.5, 4)
    run(session, "/beams 3")
    assert run(session, "/retry temp=1.5").decode["num_beams"] == 1
    assert run(session, "/retry length_penalty=2").decode["num_beams"] == 3


def test_beams_with_a_temperature_says_that_beams_are_set_and_the_temperature_idle(tiny):
    session = tiny[0]
    run(session, "/reset", "/greedy")
    said = run(session, "/beams 4 temperature=0.5").text
    assert said.startswith("beams 4 · ")
    assert "temperature 0.5 · beam search does not sample, so it is not used yet" in said
    assert "greedy" not in said
    assert not run(session, f"/next 2 {PROMPT}").greedy


def test_a_text_that_stands_at_max_length_is_told(tiny):
    session = tiny[0]
    run(session, "/reset", "/greedy", "/max_length 12")
    run(session, f"/raw {PROMPT}")
    with pytest.raises(UsageError, match="12 tokens, but max_length is 12") as caught:
        run(session, "/next")
    assert "/max 50" in caught.value.hints


def test_the_lens_looks_where_next_looks_and_where_why_does_behind_a_completion(tiny):
    """After a text as /next does; without one at the token of the last reply that /why explains."""
    session = tiny[0]
    run(session, "/reset", "/max 5", "/greedy", "/clear", "hello", f"/raw {PROMPT}")
    seen, offered = run(session, f"/lens {PROMPT}"), run(session, f"/next 1 {PROMPT}")
    assert seen.answer.id == offered.candidates[0].id
    assert run(session, "/lens").tokens == len(session.last.record.prompt_ids) + run(session, "/why").number - 1


def test_why_says_that_a_token_was_put_in(tiny):
    session = tiny[0]
    run(session, "/reset", "/max 6", "/greedy", "/clear", "hello", "/take 2 70")
    assert session.last.record.taken == (2,)
    assert run(session, "/why 2").how == "taken"
    assert run(session, "/why 1").how == run(session, "/why 3").how == "greedy"
    run(session, "/take 4 71", "/continue")
    assert session.last.record.taken == (2, 4)
    run(session, "/take 3 72")
    assert session.last.record.taken == (2, 3)
    run(session, "/retry")
    assert session.last.record.taken == ()
