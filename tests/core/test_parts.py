"""A reply is read the way its model writes it: the same parts however it is cut, and nothing of it lost."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import models
import pytest
from driving import ask, opened, run
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import LOADED, Terminal

from repl.core.events import Token
from repl.core.parts import ANSWER, CHANNELS, TAGS, THINKING, Form, Parts, PartsReader, Piece
from repl.generation.decode.detokenizer import Begun, Detokenizer, Reading, TemplateReader, marking_tokens, reply_form
from repl.generation.prompt.chat_template import render_chat

PLAIN, NAMED = Form(), Form(channels=True)
LOOK = '{"name": "look", "arguments": {"at": "sky"}}'
LOOKED = {"name": "look", "arguments": {"at": "sky"}}
HARMONY = (
    "<|channel|>analysis<|message|>They greet.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
    '{"at": "sky"}<|end|><|start|>assistant<|channel|>final<|message|>Hello.'
)
INVOKED = '<invoke name="look">\n<parameter name="at">sky</parameter>\n</invoke>'
DSML = '<｜DSML｜invoke name="look"><｜DSML｜parameter name="at" string="true">sky</｜DSML｜parameter></｜DSML｜invoke>'
DEEP = '<｜tool▁call▁begin｜>look<｜tool▁sep｜>{"at": "sky"}<｜tool▁call▁end｜>'
DEEP_1 = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{"at": "sky"}\n```<｜tool▁call▁end｜>'
KIMI = '<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{"at": "sky"}<|tool_call_end|>'
HUNYUAN = "<tool_call>look<tool_sep>\n<arg_key>at</arg_key>\n<arg_value>sky</arg_value>\n</tool_call>"


def thought(form: Form, text: str, thinking: str, answer: str, closing: str = "") -> Any:
    return form, closing, text, Parts(thinking, answer)


def called(text: str, answer: str = "", calls: Sequence[dict[str, Any]] = (LOOKED,), form: Form = PLAIN) -> Any:
    return form, "", text, Parts("", answer, tuple(calls))


REPLIES = [
    thought(PLAIN, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    thought(PLAIN, "  \n<think>a</think>b", "a", "b"),
    thought(PLAIN, "<thinking>a </think> b</thinking>c", "a </think> b", "c"),
    thought(PLAIN, "<think></think>b", "", "b"),
    thought(PLAIN, "<think>a</think>\n<think>b</think>c", "a\n\nb", "c"),
    thought(PLAIN, "<think>never closed </thin", "never closed </thin", ""),
    thought(PLAIN, "Write <think>x</think> like this.", "", "Write <think>x</think> like this."),
    thought(PLAIN, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    thought(PLAIN, "<thin", "", "<thin"),
    thought(PLAIN, "<thinker>a", "", "<thinker>a"),
    thought(PLAIN, "\n a < b \n", "", "\n a < b \n"),
    thought(PLAIN, "", "", ""),
    thought(PLAIN, "Hm.</think>Yes.", "Hm.", "Yes.", "</think>"),
    thought(PLAIN, "<think>\nHm.</think>Yes.", "Hm.", "Yes.", "</think>"),
    thought(PLAIN, "never closed", "never closed", "", "</think>"),
    thought(PLAIN, "<|channel>thought\nHm.<channel|>Yes.", "Hm.", "Yes."),
    thought(PLAIN, "<|channel>thought\n<channel|>Yes.", "", "Yes."),
    thought(Form(sure=frozenset({"[THINK]"})), "So.[THINK]Hm.[/THINK]Yes.", "Hm.", "So.\n\nYes."),
    *(thought(PLAIN, f"{tag.opens}Hm.{tag.closes}Yes.", "Hm.", "Yes.") for tag in TAGS if tag.kind == THINKING),
    (NAMED, "", HARMONY, Parts("They greet.", "Hello.", (LOOKED,))),
    thought(NAMED, "<|message|>Hello.<|end|>", "", "Hello."),
    thought(NAMED, "<|channel|>commentary<|message|>I look.<|end|>", "", "I look."),
    thought(NAMED, "Hello.", "", "Hello."),
    called(' to=functions.look<|channel|>commentary json<|message|>{"at": "sky"}', form=NAMED),
    called(f"I look.\n\n<tool_call>\n{LOOK}\n</tool_call>\n", "I look."),
    called(f"<tool_call>{LOOK}</tool_call>\n<tool_call>{LOOK}</tool_call>", calls=(LOOKED, LOOKED)),
    called("<tool_call><function=look>\n<parameter=at>\nsky\n</parameter>\n</function></tool_call>"),
    called("<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>sky</arg_value>\n</tool_call>"),
    called('<|tool_call>call:look{at:<|"|>sky<|"|>}<tool_call|>'),
    called(f"[TOOL_CALLS][{LOOK}]"),
    called('[TOOL_CALLS]look[ARGS]{"at": "sky"}[TOOL_CALLS]look[ARGS]{"at": "sky"}', calls=(LOOKED, LOOKED)),
    called('<|python_tag|>{"name": "look", "parameters": {"at": "sky"}}'),
    called('<|python_tag|>look.call(at="sky")'),
    called('<|tool_call_start|>[look(at="sky")]<|tool_call_end|>'),
    called('<|START_ACTION|>[{"tool_name": "look", "parameters": {"at": "sky"}}]<|END_ACTION|>'),
    called('<|tools_prefix|>[{"look": {"at": "sky"}}]<|tools_suffix|>'),
    called(f"<tool_calls>[{LOOK}]</tool_calls>"),
    called(f"<tool_calls>\n{LOOK}\n{LOOK}\n</tool_calls>", calls=(LOOKED, LOOKED)),
    called(f"<TOOLCALL>[{LOOK}]</TOOLCALL>"),
    called(f"<|function_call|>{LOOK}"),
    called('<function=look>{"at": "sky"}</function>'),
    called("<function=look>\n<parameter=at>\nsky\n</parameter>\n</function>"),
    called('<function name="look"><param name="at">sky</param></function>'),
    called(f"<minimax:tool_call>\n{INVOKED}\n{INVOKED}\n</minimax:tool_call>", calls=(LOOKED, LOOKED)),
    called(f"<｜DSML｜function_calls>\n{DSML}\n</｜DSML｜function_calls>"),
    called(f"<｜DSML｜tool_calls>\n{DSML}\n{DSML}\n</｜DSML｜tool_calls>", calls=(LOOKED, LOOKED)),
    called('~<tool_call>~<invoke name="look">~<at>sky~</at>~</invoke>~</tool_call>'.replace("~", "]<]minimax[>[")),
    called(f"<｜tool▁calls▁begin｜>{DEEP * 2}<｜tool▁calls▁end｜>", calls=(LOOKED, LOOKED)),
    called(f"<｜tool▁calls▁begin｜>{DEEP_1}<｜tool▁calls▁end｜>"),
    called(f"<|tool_calls_section_begin|>{KIMI * 2}<|tool_calls_section_end|>", calls=(LOOKED, LOOKED)),
    called(f"<tool_calls>{HUNYUAN * 2}</tool_calls>".replace(">", ":opensource>"), calls=(LOOKED, LOOKED)),
    called("The tag <tool_call> begins one.", "The tag <tool_call> begins one.", ()),
    called("So:\n<tool_call>{broken\n</tool_call> ends", "So:\n<tool_call>{broken\n</tool_call> ends", ()),
]


def cut(form: Form, closing: str, pieces: Sequence[str]) -> tuple[list[Piece], Parts]:
    """Feed pieces; return what came of them with neighbours of a kind joined, and the parts."""
    reader = PartsReader(form, closing)
    found = [piece for text in pieces for piece in reader.feed(text)]
    joined: list[Piece] = []
    for piece in [*found, *reader.end()]:
        if joined and piece.text and joined[-1].kind == piece.kind:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined, reader.parts()


@pytest.mark.parametrize(("form", "closing", "text", "parts"), REPLIES)
def test_a_reply_has_the_same_parts_wherever_it_is_cut(form, closing, text, parts):
    whole = cut(form, closing, [text])
    assert whole[1] == parts
    assert cut(form, closing, list(text)) == whole
    for place in range(len(text)):
        assert cut(form, closing, [text[:place], text[place:]]) == whole


TAGGED = ["<think>", "</think>", "<thinking>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", LOOK]
BITS = st.sampled_from([*TAGGED, "<", "/", "think", ">", " ", "\n", "ü", "x"])
NAMES = st.sampled_from([*CHANNELS, "final", "analysis", " to=functions.f", "{}", "<|", "x ", "\n"])
FORMS = st.sampled_from([(PLAIN, ""), (PLAIN, "</think>"), (Form(sure=frozenset({"<think>"})), ""), (NAMED, "")])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(FORMS.flatmap(lambda one: st.tuples(st.just(one), st.lists(NAMES if one[0].channels else BITS, max_size=12))))
def test_no_cut_changes_a_reply_and_no_text_is_made_up(case):
    (form, closing), pieces = case
    text = "".join(pieces)
    found, parts = cut(form, closing, pieces)
    assert (found, parts) == cut(form, closing, [text]) == cut(form, closing, list(text))
    rest = iter(text)
    assert all(character in rest for piece in found for character in piece.text)  # in this order
    if not closing and not form.channels and {piece.kind for piece in found} <= {ANSWER}:
        assert parts == Parts(answer=text)


@given(st.lists(BITS, max_size=8), st.lists(BITS, max_size=8))
def test_the_parts_of_a_beginning_and_of_what_followed_are_those_of_the_whole(before, after):
    begun = cut(PLAIN, "", ["".join(before)])[1]
    whole = cut(PLAIN, "", ["".join(before + after)])[1]
    own = whole.since(begun)
    assert own is None or begun + own == whole


# what the tokenizer says


def tokenizer_with(*specials: str, **attributes: object) -> Any:
    made = models.byte_level(["<|end_of_text|>", *specials], eos_token="<|end_of_text|>")
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def read(tokenizer: Any, text: str, prompt: str = "", begun: str = "", said: list[str] | None = None) -> Any:
    """Return the joined token texts of a reply, what came of it as it was made, and its parts."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    reading = Reading(
        tokenizer, tokenizer(prompt + begun)["input_ids"], Begun(begun, begun), ([] if said is None else said).append
    )
    pieces, reader, raw = Detokenizer(tokenizer), reading.begin(), ""
    found: list[Piece] = []
    for token in ids:
        raw += (added := pieces.feed(token))
        found += reading.take(reader, Token(added, token))
    found += reader.end()
    assert reader.parts() == reading.parts(raw, ids)
    return raw, "".join(piece.text for piece in found if piece.kind == THINKING), reader.parts()


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("tag", TAGS, ids=lambda tag: tag.opens)
def test_a_tag_is_found_whether_it_is_a_special_token_or_not(tag, special):
    text = f"{tag.opens}Hm.{tag.closes}{'Yes.' if tag.closes else ''}"
    names = [tag.opens.strip().removesuffix("thought"), tag.closes] if special else []
    tokenizer = tokenizer_with(*filter(None, names))
    raw, _, parts = read(tokenizer, text + "<|end_of_text|>")
    assert raw == text
    if tag.kind == THINKING:
        assert parts == Parts("Hm.", "Yes.")


def test_special_tokens_that_mark_no_part_add_no_text():
    tokenizer = tokenizer_with("<think>", "</think>", "<|image|>")
    assert read(tokenizer, "<think>a<|image|></think>b<|end_of_text|>")[0] == "<think>a</think>b"
    assert set(marking_tokens(tokenizer).values()) == {"<think>", "</think>"}


def test_a_model_that_names_its_channels_is_known_by_its_tokens():
    tokenizer = tokenizer_with(*CHANNELS, "<|constrain|>")
    raw, _, parts = read(tokenizer, HARMONY + "<|end_of_text|>", "<|start|>assistant")
    assert (raw, parts) == (HARMONY, Parts("They greet.", "Hello.", (LOOKED,)))
    assert not reply_form(tokenizer_with(*CHANNELS[1:])).channels


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("Hi<|end_of_text|>assistant\n<think>\n", True),
        ("Hi<|end_of_text|>assistant\n<think>\nFirst, ", True),
        ("Hi<|end_of_text|>assistant\n<thinking>", True),
        ("Hi<|end_of_text|>assistant\n<think>\n\n</think>\n\n", False),
        ("What does <think> mean?<|end_of_text|>assistant\n", False),
        ("Hi<|end_of_text|>assistant\n", False),
    ],
)
def test_a_prompt_may_open_the_thinking(prompt, thinks):
    assert read(tokenizer_with(), "Hm.", prompt)[2] == (Parts("Hm.") if thinks else Parts("", "Hm."))


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ("<think>\nFirst", Parts("First, then.", "Yes.")),
        ("Hello", Parts("", "Hello, then.</think>Yes.")),
        ("<think>a</think>So", Parts("a", "So, then.</think>Yes.")),
    ],
)
def test_what_a_reply_begins_with_is_part_of_it(begun, whole):
    assert read(tokenizer_with(), ", then.</think>Yes.", "Hi<|end_of_text|>assistant\n", begun)[2] == whole


# the library's parser

FIELDS = {
    "reasoning_content": {"open": "<r>", "close": "</r>"},
    "tool_calls": {"open": "<c>", "close": "</c>", "repeats": True, "content": "json"},
    "content": {"close": "<|end_of_text|>"},
}
TEMPLATE = {"start_anchor": "assistant\n", "fields": FIELDS}
OWN = f"<r>\nHm.\n</r>\nYes.<c>{LOOK}</c><|end_of_text|>"


@pytest.mark.parametrize("special", [True, False])
def test_a_response_template_is_read_by_the_library(special):
    tokenizer = tokenizer_with(*(["<r>", "</r>", "<c>", "</c>"] if special else []), response_template=TEMPLATE)
    prompt = "Hi<|end_of_text|>assistant\n"
    raw, thinking, parts = read(tokenizer, OWN, prompt)
    found = tokenizer.parse_response(tokenizer(OWN)["input_ids"], prefix=prompt)
    assert raw == OWN.removesuffix("<|end_of_text|>")
    assert parts == Parts(found["reasoning_content"], found["content"], tuple(found["tool_calls"]))
    assert thinking.strip() == parts.thinking.strip() == "Hm."


def test_a_prompt_may_open_a_field_of_a_response_template():
    tokenizer = tokenizer_with(response_template=TEMPLATE)
    assert read(tokenizer, "Hm.</r>Yes.", "Hi<|end_of_text|>assistant\n<r>")[2] == Parts("Hm.", "Yes.")
    assert read(tokenizer, "m.</r>Yes.", "Hi<|end_of_text|>assistant\n", "<r>H")[2] == Parts("Hm.", "Yes.")


def test_without_thoughts_and_calls_a_response_template_changes_no_character():
    tokenizer = tokenizer_with(response_template=TEMPLATE)
    assert read(tokenizer, " Yes. \n<|end_of_text|>", "assistant\n")[2] == Parts("", " Yes. \n")


UNREADABLE = {"tool_calls": {"open": "<think>", "close": "</think>", "content": "json"}}
BROKEN: list[Any] = [
    {"fields": 1},
    {"start_anchor": "assistant\n", "fields": {"content": {"open_pattern": "("}}},
    {"start_anchor": "assistant\n", "fields": UNREADABLE},
]


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_response_template_gives_way_to_the_tags(template):
    said: list[str] = []
    tokenizer = tokenizer_with(response_template=template)
    assert read(tokenizer, "<think>Hm.</think>Yes.", "assistant\n", said=said)[2] == Parts("Hm.", "Yes.")
    assert said


def test_a_pattern_that_runs_without_end_is_given_up(monkeypatch):
    """The patterns of a response template are a stranger's."""
    monkeypatch.setattr("repl.generation.decode.detokenizer.PARSE_S", 0.2)
    said: list[str] = []
    fields = {"thinking": {"open_pattern": "(a|a|aa)+b", "close": "x"}, "content": {}}
    tokenizer = tokenizer_with(response_template={"start_anchor": "assistant\n", "fields": fields})
    reader = TemplateReader(tokenizer, "assistant\n", PartsReader(), said.append)
    reader.feed("a" * 60 + "c")
    reader.feed("<think>")
    assert said
    assert reader.parts().answer.startswith("aaa")


# in a session

TALK = b"<think>\nShe greets.\n</think>\n\nHello!"


@pytest.fixture(scope="module", params=[True, False], ids=["special", "ordinary"])
def thinker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that thinks between tags, which are special tokens or not."""
    folder = tmp_path_factory.mktemp("thinker")
    return models.scripted(folder, TALK, b"Fine.", marks=["<think>", "</think>"], special=request.param)


def test_a_turn_has_all_of_its_text_and_its_parts(thinker):
    with opened(thinker, max_new_tokens=60) as session:
        done = ask(session, "Hi")
        assert (done.raw, done.thinking, done.text) == (TALK.decode(), "She greets.", "Hello!")
        (_, reply) = session.conversation.path()
        assert (reply.text, reply.parts) == (TALK.decode(), Parts("She greets.", "Hello!"))
        assert session.conversation.messages()[1] == {"role": "assistant", "content": reply.text, "parts": reply.parts}
        assert ask(session, "How are you?").text == "Fine."


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 12, 14, 20])
def test_a_reply_that_goes_on_is_read_as_one(thinker, length):
    """Wherever it was cut: in its thought, in a tag, in the answer."""
    with opened(thinker, max_new_tokens=length) as session:
        ask(session, "Hi")
        events: list[Any] = []
        run(session, "/max_new_tokens 60", "/continue", heard=events.append)
        assert session.last is not None
        assert (session.last.text, session.last.parts) == (TALK.decode(), Parts("She greets.", "Hello!"))
        found = [piece for event in events if isinstance(event, Token) for piece in event.pieces]
        begun = session.conversation.turns[2].parts
        said = "".join(piece.text for piece in found if piece.kind == ANSWER)
        assert (begun.answer + said).strip() == "Hello!"


@pytest.mark.slow
def test_another_token_in_a_thought_is_thought(thinker):
    with opened(thinker, max_new_tokens=60) as session:
        place = ask(session, "Hi").token_ids.index(ord("S")) + 1
        run(session, f"/take {place} {ord('s')}")
        assert session.last is not None
        assert session.last.parts == Parts("she greets.", "Hello!")


def test_a_thought_may_be_begun_for_the_model(thinker):
    with opened(thinker, max_new_tokens=60) as session:
        run(session, "/prefill <think>\nSo.")
        done = ask(session, "Hi")
        assert session.last is not None
        assert session.last.parts.thinking.startswith("So.")
        assert done.raw == session.last.text.removeprefix("<think>\nSo.")


# channels, from the keyboard to the next prompt

ROUND = (
    "<|channel|>analysis<|message|>They greet.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello **there**.<|return|>"
)
NEXT = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    "{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
)


@pytest.fixture(scope="module")
def channeller(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that writes its parts in channels, as gpt-oss does."""
    folder = tmp_path_factory.mktemp("channeller")
    said = ROUND.removesuffix("<|return|>").encode()
    return models.scripted(folder, said, said, marks=[*CHANNELS, "<|constrain|>"])


def test_channels_are_stored_exported_and_sent_back_in_parts(channeller, tmp_path, emit):
    with opened(channeller, max_new_tokens=200) as session:
        done = ask(session, "Hi")
        assert (done.raw, done.finish) == (ROUND.removesuffix("<|return|>"), "stop")
        assert session.last is not None
        assert session.last.parts == Parts("They greet.", "Hello **there**.")
        run(session, f"/export {tmp_path / 'talk.md'}", f"/export {tmp_path / 'talk.json'}")
        page = (tmp_path / "talk.md").read_text()
        told = json.loads((tmp_path / "talk.json").read_text())["turns"][1]
        assert "> They greet.\n\nHello **there**." in page
        assert {"answer": "Hello **there**.", "thinking": "They greet."}.items() <= told.items()
        tokenizer = tokenizer_with(*CHANNELS, chat_template=NEXT)
        sent = render_chat(
            tokenizer,
            session.conversation.messages(),
            arguments={},
            generation_prompt=False,
            emit=emit,
        )
        assert sent.text == f"<|start|>user<|message|>Hi<|end|><|start|>assistant{ROUND[:-10]}<|end|>"


@pytest.mark.slow
def test_channels_on_a_terminal_follow_the_setting(channeller, tmp_path):
    with Terminal(str(channeller), "--max-new-tokens", "200", "--thinking", "show", home=tmp_path) as terminal:
        terminal.see(LOADED)
        for shown, thought in (("show", ["They greet."]), ("fold", ["thought for"]), ("hide", [])):
            terminal.ask(f"/thinking {shown}")
            for line in ("Hi", "/compare now greedy -- Hi"):
                rows = "\n".join(terminal.ask(line))
                assert "Hello" in rows
                assert "<|" not in rows
                found = [one for one in ("They greet.", "thought for", "2 words of thinking") if one in rows]
                assert found == (thought if line == "Hi" or shown != "fold" else ["2 words of thinking"])
            terminal.ask("/clear")


@pytest.mark.slow
def test_channels_in_a_pipe_are_all_of_the_text_or_the_answer(channeller, tmp_path):
    lines = ["Hi", "/clear", "/thinking fold", "Hi", "/clear", "/thinking hide", "Hi"]
    words = [str(channeller), "--max-new-tokens", "200", "--thinking", "show", "--script", "-"]
    run = subprocess.run(
        [sys.executable, "-m", "repl", *words],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HUB_REPL_HOME": str(tmp_path)},
        check=True,
    )
    said = [row for row in run.stdout.splitlines() if "Hello" in row]
    assert said == [ROUND[:-10], "Hello **there**.", "Hello **there**."]
