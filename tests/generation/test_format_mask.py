"""Replies that are held to a form: they are of it, the price is what it is, and given tokens change nothing."""

import json
import math
import re
import sys
from typing import Any

import jsonschema
import models
import pytest
from driving import ask, bare, drawn, opened, refused, run

from repl.analysis.why import Why
from repl.core.errors import Failed, MissingExtra, UsageError
from repl.core.reply import Reply
from repl.core.reply_format import JSON_OPTIONS, parse_format
from repl.generation.decode import format_mask
from repl.generation.decode.drafters import Drafting
from repl.session.session import Session

pytestmark = pytest.mark.library

SHORT = {"type": "string", "maxLength": 8}
SCHEMAS: dict[str, Any] = {
    "choices": {
        **{"type": "object", "required": ["kind"], "additionalProperties": False},
        "properties": {"kind": {"enum": ["a", "bb", "ccc"]}},
    },
    "flags": {
        **{"type": "object", "required": ["ok", "name", "again"], "additionalProperties": False},
        "properties": {"ok": {"type": "boolean"}, "name": SHORT, "again": {"const": "yes"}},
    },
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 3},
    "either": {"anyOf": [{"type": "null"}, SHORT]},
    "pattern": {"type": "string", "pattern": "^[ab]{3}$"},
    "depth": {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "n": {"const": 1}}}},
        **{"type": "array", "items": {"enum": [[1], {"a": None}]}, "maxItems": 2},
    },
}
WAYS = {
    "greedy": [],
    "sampled": ["/sample", "/seed 3"],
    "beams": ["/beams 3"],
    "hot": ["/sample temperature=2", "/seed 5"],
}
KINDS = ("llama", "gpt2", "metaspace", "recurrent")


@pytest.fixture(
    scope="module", params=["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "llama")]
)
def session(request):
    with opened(request.getfixturevalue(f"{request.param}_folder")) as found:
        yield found


def replied(session: Session, form: str, *lines: str, most: int = 120) -> Reply:
    run(session, "/clear", "/reset", f"/max {most}", *lines, f"/format {form}")
    return ask(session, "Tell me about Ada.")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_reply_is_of_its_schema(session: Session, name: str, way: str) -> None:
    done = replied(session, json.dumps(SCHEMAS[name]), *WAYS[way])
    assert done.format is not None
    assert done.format.finished
    assert done.finish == "stop"
    jsonschema.validate(json.loads(done.text), SCHEMAS[name])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("/[0-9]{4}-(a|b)/", r"[0-9]{4}-(a|b)"),
        ('start: "yes" | "no" " way"', "yes|no way"),
        ('root ::= "yes" | [0-9] "!"', "yes|[0-9]!"),
        ("/größe [0-9]你好/", "größe [0-9]你好"),
    ],
)
def test_a_reply_is_of_its_pattern_or_grammar(session: Session, form: str, pattern: str, way: str) -> None:
    done = replied(session, form, *WAYS[way])
    assert re.fullmatch(pattern, done.text)


@pytest.mark.parametrize("way", ["greedy", "sampled", "hot"])
@pytest.mark.parametrize("name", ["choices", "flags"])
def test_given_tokens_change_no_id(session: Session, name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = replied(session, json.dumps(SCHEMAS[name]), *WAYS[way])
    monkeypatch.setattr(Drafting, "_why_not", lambda *_: "not now")
    without = replied(session, json.dumps(SCHEMAS[name]), *WAYS[way])
    assert with_them.token_ids == without.token_ids
    assert with_them.format is not None
    assert without.format is not None
    assert with_them.format.given == without.format.given
    assert with_them.format.nats == pytest.approx(without.format.nats, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [[], ["/sample", "/seed 3"], ["/repetition_penalty 1.3"], ["/beams 3"], ["/beams 3", "/repetition_penalty 1.3"]],
    ids=["greedy", "drawn", "penalty", "beams", "beams and penalty"],
)
def test_the_price_is_what_the_whole_vocabulary_says(llama_folder, lines: list[str]) -> None:
    """The mass that is left, over all tokens one by one: may the form go on after this one?"""
    import llguidance
    import torch
    from llguidance import hf

    schema = SCHEMAS["flags"]
    with opened(llama_folder) as session:
        done = replied(session, json.dumps(schema), *lines)
    assert done.format is not None
    model, tokenizer = bare(llama_folder)
    wrapped = hf.from_tokenizer(tokenizer, eos_token=model.generation_config.eos_token_id)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
    matcher, ids = llguidance.LLMatcher(wrapped, grammar), [*done.prompt_ids]
    for place, token in enumerate(done.token_ids, 1):
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        forced = matcher.compute_ff_tokens()[:1]
        end = [tokenizer.eos_token_id] if matcher.is_accepting() else []
        able = [one for one in range(len(logs)) if matcher.validate_tokens([one])] + end
        left = forced or able
        nats = -float(logs[left].logsumexp(-1))
        assert done.format.nats[place - 1] == pytest.approx(nats, abs=1e-4)
        assert (place in done.format.given) == (len(left) == 1)
        assert (place in done.format.overruled) == (int(logs.argmax()) not in left)
        assert matcher.consume_token(token)
        ids.append(token)


def test_what_is_cut_is_continued_to_the_end_of_the_form(session: Session) -> None:
    schema = SCHEMAS["flags"]
    whole = replied(session, json.dumps(schema))
    done, pieces = replied(session, json.dumps(schema), most=3), 1
    while done.format is not None and not done.format.finished:
        assert done.finish == "length"
        done, pieces = run(session, "/continue"), pieces + 1
        assert pieces < 60
    assert session.last is not None
    record, tokenizer = session.last.record, session.store.current().tokenizer
    assert record is not None
    assert record.format is not None
    jsonschema.validate(json.loads(tokenizer.decode(record.token_ids, skip_special_tokens=True)), schema)
    count = len(record.token_ids)  # an end token may be missing: the form was whole before it
    assert record.token_ids == whole.token_ids[:count]
    assert whole.format is not None
    assert record.format.given == tuple(place for place in whole.format.given if place <= count)
    assert record.format.nats == pytest.approx(whole.format.nats[:count], abs=1e-3)


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ('{"kind": "b', True),
        ('{"kind": "bb"', True),
        ("Here you are:", False),
        ("{", True),
        ('<think>\nHm.\n</think>\n\n{"kind": "b', True),
    ],
)
def test_a_prefill_that_fits_is_the_beginning_of_the_form(llama_folder, begun: str, whole: bool) -> None:
    with opened(llama_folder) as session:
        run(session, "/max 60", f"/format {json.dumps(SCHEMAS['choices'])}", f"/prefill {begun}")
        done = ask(session, "hi")
        assert session.last is not None
        text = session.last.text.rpartition("</think>")[2] if whole else done.text
        jsonschema.validate(json.loads(text), SCHEMAS["choices"])
        if not whole:
            assert session.last.text == begun + done.text


@pytest.mark.slow
def test_the_form_is_the_first_column_of_why(llama_folder) -> None:
    with opened(llama_folder) as session:
        done = replied(session, json.dumps(SCHEMAS["flags"]), "/sample top_k=20", "/repetition_penalty 1.2")
        assert done.format is not None
        found = run(session, "/why")
        assert isinstance(found, Why)
        assert found.number == done.format.worst
        assert [step.name for step in found.steps][:2] == ["format", "repetition_penalty"]
        for place in done.format.given:
            assert run(session, f"/why {place}").probability == pytest.approx(1)
        first = run(session, "/why 1").steps[0]
        assert first.mass == pytest.approx(1 - 2.718281828 ** -done.format.nats[0], abs=1e-4)
        run(session, "/format /[0-9]+/")
        after = run(session, "/next 5 hello")
        assert after.processors[0] == "format"
        assert all(one.drawn == 0 for one in after.candidates if not one.text.isdecimal())


@pytest.mark.slow
def test_the_colours_mark_what_was_given_and_overruled(llama_folder) -> None:
    with opened(llama_folder) as session:
        done = replied(session, json.dumps(SCHEMAS["flags"]))
        assert done.format is not None
        found = run(session, "/probs")
        overruled = set(done.format.overruled)
        marks = [one.form for one in found.tokens]
        assert {place for place, mark in enumerate(marks, 1) if mark == "overruled"} == overruled
        assert {place for place, mark in enumerate(marks, 1) if mark == "given"} == {*done.format.given} - overruled
        assert "overruled" in drawn(found)
        assert "overruled" in drawn(run(session, "/inspect"))
        run(session, "/format off")
        ask(session, "hi")
        assert "overruled" not in drawn(run(session, "/probs"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_the_built_in_model_keeps_to_the_form(builtin_folder, way: str) -> None:
    """Its reply is valid, and the price is that of another pass over the reply, to 1e-4 for each token."""
    with opened(builtin_folder) as session:
        done = replied(session, "name, age int, kind: person|place", *WAYS[way], most=80)
        assert done.format is not None
        if done.finish == "stop":
            jsonschema.validate(json.loads(done.text), parse_format("name, age int, kind: person|place").schema)
        for place in (1, 2, 4, done.format.worst):
            taken = run(session, f"/why {place}").steps[0]
            assert math.exp(-done.format.nats[place - 1]) == pytest.approx(1 - taken.mass, abs=1e-4)


@pytest.mark.slow
def test_ways_to_answer_are_compared_by_their_form(llama_folder) -> None:
    with opened(llama_folder) as session:
        run(session, "/max 30", "/greedy", "hi")
        found = run(session, '/compare format=/[0-9]{2}/ "format=kind: ab|cd" format=off')
        texts = [one.done.text for one in found.columns]
        assert re.fullmatch("[0-9]{2}", texts[0])
        assert json.loads(texts[1])["kind"] in ("ab", "cd")
        done = run(session, "/retry format=/[a-c]{3}/")
        assert re.fullmatch("[a-c]{3}", done.text)
        assert session.settings.decode.format == ""


def test_prompts_of_a_file_are_of_the_form(llama_folder, tmp_path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "one"}\n{"prompt": "two words", "format": "/[a-c]{3}/"}\n{"prompt": "three"}\n')
    with opened(llama_folder) as session:
        run(session, "/max 30", "/format /[0-9]{2}/", f"/batch {file} {out}")
    texts = sorted(json.loads(line)["text"] for line in out.read_text().splitlines())  # in the order they ended
    forms = ["[0-9]{2}", "[0-9]{2}", "[a-c]{3}"]
    assert all(re.fullmatch(form, text) for form, text in zip(forms, texts, strict=True))


def test_rows_of_a_sweep_are_of_the_form(llama_folder) -> None:
    with opened(llama_folder) as session:
        replied(session, "/[0-9]{3}/")
        found = run(session, "/sweep temperature=0.5,2 n=3")
        assert all(re.fullmatch("[0-9]{3}", row.text) for row in found.lines)
        assert found.together == 7
        picked = run(session, "/pick 2")
        assert picked is not None
        assert session.last is not None
        assert session.last.record is not None
        assert session.last.record.format is not None


@pytest.mark.slow
def test_a_reply_with_a_form_is_made_again(llama_folder) -> None:
    with opened(llama_folder) as session:
        for way in WAYS.values():
            replied(session, json.dumps(SCHEMAS["flags"]), *way)
            assert run(session, "/reproduce").same


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ('{"not": {}}', "not supported: the schema uses not"),
        ('{"type": "array", "uniqueItems": true, "contains": {}}', "uniqueItems"),
        ('{"type": "string", "minLength": 5, "maxLength": 2}', "minLength"),
        ('{"enum": []}', "empty"),
        ('{"$ref": "#/$defs/none"}', "none"),
        ('{"$ref": "http://example.com/a"}', "example.com"),
        ('{"type": "string", "pattern": "(?=a)"}', "look-around"),
        ('{"oneOf": [{"type": "string"}, {"type": "string"}]}', "oneOf"),
        ("/(/", "unclosed group"),
        ('start: "a" | other', "other"),
        ("root ::= ( ", "GBNF"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_the_reply(llama_folder, form: str, said: str) -> None:
    with opened(llama_folder) as session:
        refused(session, f"/format {form}", said)
        assert session.settings.decode.format == ""


def test_what_allows_nothing_is_refused(llama_folder) -> None:
    with opened(llama_folder) as session:
        run(session, r"/format /[^\s\S]/")
        refused(session, "hi", "allows no text")
        run(session, "/format /x/", "/min_new_tokens 5")
        with pytest.raises(Failed, match="leave no token at place 2"):
            run(session, "hi")
        run(session, "/reset min_new_tokens", "/set eos_token_id none")
        refused(session, "hi", "end token")
        run(session, "/set eos_token_id default", "/sample", "/num_beams 2")
        refused(session, "hi", "beam sampling")


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        r"/(a{1,1000}){1,1000}/",
        r"/(x|y)*(a.{200}|b.{300})/",
        r"/(.*a){20}.{40}/",
        json.dumps({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "type": "array"}}, "$ref": "#/$defs/a"}),
        json.dumps({"type": "array", "items": {"$ref": "#"}}),
        json.dumps({"type": "array", "minItems": 100_000}),
        json.dumps({"enum": [f"word {number}" for number in range(20_000)]}),
        json.dumps({"type": "string", "minLength": 1_000_000}),
        'start: start start | "a"',
    ],
)
@pytest.mark.timeout(60)
def test_what_explodes_ends_in_a_reply_or_a_sentence(llama_folder, form: str) -> None:
    with opened(llama_folder) as session:
        try:
            found = replied(session, form, most=40).finish
        except (UsageError, Failed) as error:
            found = error.message
        assert found in ("stop", "length") or ("\n" not in found and found)


def test_without_the_library_it_is_one_sentence(llama_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    format_mask.build_grammar.cache_clear()
    with opened(llama_folder) as session, pytest.raises(MissingExtra) as caught:
        run(session, "/format json")
    assert caught.value.hints == ("pip install 'hub-repl[format]'",)


def test_a_slow_tokenizer_is_said(llama_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from llguidance import hf

    def slow(tokenizer: object, **_: object) -> None:
        raise ValueError("Only fast tokenizers are supported")

    monkeypatch.setattr(hf, "from_tokenizer", slow)
    with opened(llama_folder) as session:
        session.store.current().runtime.format_tokenizers.clear()
        run(session, "/format json")
        with pytest.raises(UsageError, match="tokenizer"):
            run(session, "hi")


def test_the_form_begins_behind_an_open_thought(tmp_path) -> None:
    folder = models.scripted(tmp_path, b"<think>so</think>", marks=("<think>", "</think>"))
    with opened(folder) as session:
        run(session, "/max 30", "/format /[0-9]{2}/", "/prefill <think>")
        done = ask(session, "hi")
        assert done.thinking == "so"
        assert re.fullmatch("[0-9]{2}", done.text.strip())


def test_what_is_typed_is_said(llama_folder) -> None:
    with opened(llama_folder) as session:
        assert "JSON with name, age" in run(session, "/format name, age int").text
        assert "JSON with name, age" in run(session, "/format").text
        assert "off" in run(session, "/format off").text
        assert parse_format("json").title in run(session, "/format json").text
        run(session, "/format default")
        assert session.settings.decode.format == ""


def test_beams_are_charged_in_the_models_own_distribution(llama_folder) -> None:
    """Also where a processor runs the model once more; another sequence than the first has no figures."""
    with opened(llama_folder, max_new_tokens=6) as session:
        run(session, "/format /[a-z ]{3,20}/", "/beams 2", "/set num_return_sequences 2")
        plain = ask(session, "Tell me").format
        guided = run(session, "/set guidance_scale 3", "/retry").format
        assert guided.nats[0] == pytest.approx(plain.nats[0], abs=1e-4)
        run(session, "/pick 2")
        assert session.last.record.format is None
