"""Words, values and settings: what reads, what is refused, and that nothing else changes."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core import decoding, settings, values
from repl.core.decoding import ModelDefaults
from repl.core.errors import ReplError, UsageError
from repl.core.settings import Settings

BASE = ModelDefaults(
    {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2},
    {"do_sample": False, "temperature": 1.0, "top_k": 50, "num_beams": 1, "num_return_sequences": 1},
    frozenset({"epsilon_cutoff", "min_length", "stop_strings"}),
)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("dtype", "bf16", "bfloat16"),
        ("dtype", "HALF", "float16"),
        ("dtype", "fp32", "float32"),
        ("device", "CUDA:1", "cuda:1"),
        ("max_memory", "0=20GiB, cpu=48gib", "0=20GiB,cpu=48GiB"),
        ("max_new_tokens", "1_000", 1000),
        ("do_sample", "yes", True),
        ("early_stopping", "never", "never"),
        ("early_stopping", "on", True),
        ("temperature", "0.7", 0.7),
        ("top_p", "1", 1.0),
        ("length_penalty", "-1", -1.0),
        ("stop", "END", ("END",)),
        ("stop", "two words", ("two words",)),
        ("stop", '"###" "\\n\\n"', ("###", "\n\n")),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "\\n", ("\n",)),
        ("seed", "0", 0),
        ("mode", "chat", "chat"),
    ],
)
def test_words_are_read(name: str, word: str, value: object) -> None:
    assert settings.read_setting(name, word) == value


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("dtype", "bf17"),
        ("dtype", "int8"),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("max_memory", "20GiB"),
        ("max_memory", "0=lots"),
        ("num_beams", "0"),
        ("max_new_tokens", "32,256"),
        ("num_beams", "-3"),
        ("num_beams", "2.5"),
        ("num_beams", "many"),
        ("num_beams", "1001"),
        ("num_beams", "9" * 5000),
        ("temperature", "0"),
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "warm"),
        ("temperature", ""),
        ("top_p", "1.5"),
        ("top_p", "0"),
        ("min_p", "-0.1"),
        ("typical_p", "2"),
        ("top_k", "-1"),
        ("max_new_tokens", "0"),
        ("max_new_tokens", "8,16"),
        ("max_new_tokens", "1,"),
        ("max_length", "ten"),
        ("repetition_penalty", "0"),
        ("early_stopping", "maybe"),
        ("do_sample", "perhaps"),
        ("stop", '""'),
        ("stop", '"open'),
        ("stop", "[1]"),
        ("stop", "   "),
        ("ban", "[" * 100_000),
        ("ban", "\ud800"),
        ("ban", "x" * 201),
        ("boost", "\ud800 +2"),
        ("stop", "\ud800"),
        ("seed", "-1"),
        ("quantize", "3bit"),
    ],
)
def test_a_bad_word_is_refused_in_one_line_naming_the_setting_and_what_it_takes(name: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.read_setting(name, word)
    said = caught.value.message
    assert said.startswith(name)
    assert settings.setting_kind(name).phrase in said
    assert "\n" not in said


@pytest.mark.parametrize("name", list(settings.places()))
def test_every_default_of_its_own_shows_and_reads_back(name: str) -> None:
    default = settings.declared_field(name).default
    shown = settings.show_setting(name, default)
    assert not shown or settings.read_setting(name, shown) == default


@given(st.sampled_from(["temperature", "top_p", "length_penalty"]), st.floats(0.001, 1.0))
def test_numbers_read_back_as_they_are_shown(name: str, value: float) -> None:
    assert settings.read_setting(name, settings.show_setting(name, value)) == value


@given(st.lists(st.text(min_size=1).filter(lambda text: "\0" not in text), min_size=1, max_size=3))
def test_stop_strings_given_as_json_read_back_exactly(texts: list[str]) -> None:
    import json

    assert settings.read_setting("stop", json.dumps(texts)) == tuple(texts)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_but_never_breaks(text: str) -> None:
    for name in settings.places():
        try:
            value = settings.read_setting(name, text)
        except ReplError:
            continue
        assert not (isinstance(value, float) and not math.isfinite(value))


def test_a_change_touches_one_setting_and_keeps_its_origin() -> None:
    before = Settings()
    after = before.put("temperature", 0.7, "you")
    assert dataclasses.replace(after, decode=before.decode, origins={}) == before
    assert (after.get("temperature"), after.origins) == (0.7, {"temperature": "you"})
    assert before.get("temperature") is None


def test_reset_is_as_if_nothing_had_been_set() -> None:
    assert Settings().put("temperature", 0.7, "you").reset("temperature") == Settings()


def test_the_two_limits_on_length_push_each_other_out() -> None:
    both = Settings().put("max_length", 50, "you").put("max_new_tokens", 9, "you")
    assert (both.get("max_length"), both.get("max_new_tokens")) == (None, 9)
    assert "max_length" not in both.origins


def test_load_is_a_key() -> None:
    """Equal loading settings are the same resident model."""
    assert {Settings().load: 1}[Settings().put("temperature", 0.5, "you").load] == 1
    assert hash(Settings().put("dtype", "bfloat16", "you").load) != hash(Settings().load)


@pytest.mark.parametrize(
    ("word", "name"), [("temp", "temperature"), ("max-new-tokens", "max_new_tokens"), ("dt", "dtype")]
)
def test_names_may_be_typed_in_part_or_with_hyphens(word: str, name: str) -> None:
    assert settings.find_setting(word) == name


@pytest.mark.parametrize(
    ("word", "told"), [("temperatur_", "temperature"), ("top", "top_k, top_p"), ("xyzzy", "no setting")]
)
def test_names_that_are_none_are_told_the_nearest(word: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        settings.find_setting(word)


def test_yours_comes_before_the_models_before_the_librarys() -> None:
    chosen = Settings().put("top_p", 0.5, "you")
    table = decoding.effective_values(chosen, BASE)
    assert (table["top_p"].value, table["top_p"].origin) == (0.5, "you")
    assert (table["temperature"].value, table["temperature"].origin) == (0.6, "model")
    assert (table["top_k"].value, table["top_k"].origin) == (50, "default")
    assert (table["eos_token_id"].value, table["eos_token_id"].origin) == (2, "model")
    assert table["max_new_tokens"] == decoding.Value(decoding.NEW_TOKENS, "default")


def test_only_what_you_set_goes_into_the_config_and_one_limit() -> None:
    chosen = Settings().put("max_length", 50, "you").put("stop", ("a",), "you").put("seed", 3, "you")
    given = decoding.overrides(chosen, BASE)
    assert given == {"max_length": 50, "stop_strings": ["a"]}


def test_the_models_own_limit_stands_where_you_set_none() -> None:
    theirs = ModelDefaults({"max_length": 77}, {})
    assert decoding.overrides(Settings(), theirs) == {"max_length": 77}


def test_your_limit_puts_the_models_aside() -> None:
    chosen = Settings().put("max_length", 50, "you")
    assert decoding.overrides(chosen, ModelDefaults({"max_new_tokens": 5}, {})) == {
        "max_length": 50,
        "max_new_tokens": None,
    }


@pytest.mark.parametrize(
    ("theirs", "said", "line"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature 0", "/greedy"),
        ({"do_sample": True, "top_k": -1}, "top_k of the model's", "/top_k none"),
        ({"repetition_penalty": 0.0}, "repetition_penalty of the model's", "/repetition_penalty none"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search", "/set penalty_alpha none"),
        ({"dola_layers": "low"}, "DoLa", "/set dola_layers none"),
        ({"num_beams": 4, "num_beam_groups": 2}, "group beam search", "/set num_beam_groups none"),
        ({"force_words_ids": [[5]]}, "constrained", "/set force_words_ids none"),
        ({"prefill_chunk_size": 8, "use_cache": False}, "KV cache", "/set use_cache default"),
    ],
)
def test_what_the_model_asks_for_and_the_library_refuses_is_said_with_what_turns_it_off(theirs, said, line) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        decoding.check_values(Settings(), ModelDefaults(theirs, BASE.library))
    assert line in caught.value.hints
    decoding.check_values(
        Settings(), ModelDefaults({**theirs, "temperature": 0.7} if "temperature" in theirs else {}, BASE.library)
    )


@pytest.mark.parametrize("other", [{"do_sample": True}, {"num_beams": 2}, {"top_k": 1}])
def test_a_penalty_asks_for_contrastive_search_only_where_greedy_search_would_run(other) -> None:
    theirs = {"penalty_alpha": 0.6, "top_k": 4, **other}
    decoding.check_values(Settings(), ModelDefaults(theirs, BASE.library))


@pytest.mark.parametrize(
    "name", [spot for spot in settings.places() if "off" in settings.declared_field(spot).metadata]
)
def test_none_switches_a_setting_off(name: str) -> None:
    assert settings.read_setting(name, "none") == settings.declared_field(name).metadata["off"]


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ({}, "greedy"),
        ({"num_beams": 4}, "beams 4"),
        ({"do_sample": True, "top_p": 0.95}, "sample T=0.6 k=50 p=0.95"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}, "sample"),
        ({"do_sample": True, "num_beams": 2, "top_k": 0}, "beams 2 sample T=0.6 p=0.9"),
    ],
)
def test_decoding_is_said_in_one_phrase(words: dict[str, object], phrase: str) -> None:
    chosen = Settings()
    for name, value in words.items():
        chosen = chosen.put(name, value, "you")
    assert decoding.phrase(decoding.effective_values(chosen, BASE)) == phrase


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", 0.7, "/sample"),
        ("top_p", 0.7, "/sample"),
        ("seed", 7, "/sample"),
        ("length_penalty", 2.0, "/beams 4"),
        ("max_new_tokens", 7, ""),
    ],
)
def test_what_has_no_effect_is_said_with_the_line_that_changes_it(name: str, value: object, said: str) -> None:
    idle = decoding.find_idle(name, Settings().put(name, value, "you"), BASE)
    assert (idle.line if idle else "") == said
    sampling = Settings().put(name, value, "you").put("do_sample", True, "you").put("num_beams", 2, "you")
    assert decoding.find_idle(name, sampling, BASE) is None


@pytest.mark.parametrize(
    ("beams", "wanted", "sampled", "good"),
    [(1, 2, False, False), (2, 3, False, False), (3, 3, False, True), (1, 9, True, True), (2, 3, True, False)],
)
def test_more_sequences_than_the_search_has_are_refused(beams: int, wanted: int, sampled: bool, good: bool) -> None:
    chosen = Settings().put("num_beams", beams, "you").put("num_return_sequences", wanted, "you")
    chosen = chosen.put("do_sample", sampled, "you")
    if good:
        decoding.check_values(chosen, BASE)
    else:
        with pytest.raises(UsageError, match="num_return_sequences"):
            decoding.check_values(chosen, BASE)


def test_other_fields_of_the_library_are_known_by_name() -> None:
    assert decoding.find_other("epsilon_cutoff", BASE) == "epsilon_cutoff"
    with pytest.raises(UsageError, match="did you mean epsilon_cutoff"):
        decoding.find_other("epsilon_cutof", BASE)


def test_kinds_follow_from_annotations() -> None:
    assert values.kind_of(int | None) == values.Integer()
    assert values.kind_of(bool) == values.Flag()
