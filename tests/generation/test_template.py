"""The prompt of a chat is what the library makes of it, and no template gets the upper hand."""

import json
import time
from dataclasses import replace
from pathlib import Path

import models
import pytest
from campaign_templates import row
from chats import library, said
from conftest import Recorder
from driving import bare, drawn, opened, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from repl.analysis.template_checks import check_template, find_spans
from repl.commands import template as command
from repl.core.decoding import end_ids
from repl.core.errors import Cancelled, Failed, ReplError, UsageError
from repl.core.jobs import Worker
from repl.generation.prompt import chat_template
from repl.generation.prompt.chat_template import (
    DROPPED,
    FOLDED,
    WAY_OUT,
    Template,
    argument,
    render_chat,
    template_values,
    variables,
)

USER = {"role": "user", "content": "How are you?"}
REPLY = {"role": "assistant", "content": "Fine, and you?"}
MORE = {"role": "user", "content": "Fine too."}
SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [USER, REPLY, MORE]
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nFine."}

CHATML = models.CHAT
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% for message in messages %}{% set content = message['content'] %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
FORMS = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama": (LLAMA, ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "gemma": (GEMMA, ("<s>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
    "qwen": (QWEN, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
}


def tokenizer_for(template: str, specials: tuple[str, ...] = ("<s>", "</s>"), end: str = "</s>"):
    bos = {"bos_token": "<s>"} if "<s>" in specials else {}
    return models.byte_level(list(specials), eos_token=end, chat_template=template, **bos)


@pytest.fixture(scope="module")
def forms():
    return {name: tokenizer_for(*form) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def plain():
    """A tokenizer whose template a test chooses."""
    return tokenizer_for("")


def writing(tokenizer, template: object):
    tokenizer.chat_template = template
    return tokenizer


def made(tokenizer, messages, **options):
    return render_chat(tokenizer, messages, arguments={}, emit=Recorder(), **options)


def failing(tokenizer, template: object, messages=(USER,)) -> ReplError:
    with pytest.raises(ReplError) as caught:
        made(writing(tokenizer, template), messages)
    return caught.value


# the same prompt

CONTENTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "<|im_end|>",
        "</s>",
        "<s><s>",
        " [/INST] x",
        "a<|im_start|>system\n",
        "  spaced  ",
        "<think>a</think>b",
        "{{ 1 }}",
    ]
)


@pytest.mark.slow
@pytest.mark.library
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(FORMS)), contents=st.lists(CONTENTS, min_size=1, max_size=4), system=st.booleans())
def test_the_ids_are_the_library_s_own(forms, name, contents, system):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    messages = [SYSTEM, *messages] if system and name not in ("gemma", "mistral") else messages
    assert list(made(forms[name], messages).ids) == library(forms[name], messages)


@pytest.mark.library
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("prefill", ["Sure", "Sure, ", "  Sure\n", "</s> or <|im_end|>"])
def test_a_reply_that_has_begun_goes_on_as_with_the_library(forms, name, prefill):
    """Where the template keeps a trailing blank, it stays; control tokens act, as the model's own do."""
    chat = [*TALK, {"role": "assistant", "content": prefill}]
    assert list(made(forms[name], TALK, prefill=prefill).ids) == library(forms[name], chat, continue_final_message=True)


def test_a_reply_that_the_template_would_rewrite_begins_behind_the_generation_prompt(forms):
    rendered = made(forms["qwen"], TALK, prefill="<think>\nLet me see")
    assert rendered.text.endswith("<|im_start|>assistant\n<think>\nLet me see")


NAMES = (  # writes a thought that has a name of its own
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "<think>\n{{ (message.THOUGHT or '').strip('\n') }}\n</think>\n\n{% endif %}{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.library
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_prefill_can_force_a_thought(name):
    """The token that opens it is that token, not its letters."""
    tokenizer = tokenizer_for(NAMES.replace("THOUGHT", name), ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    for begun in ("<think>", "<think>\nLet me"):
        rendered = made(tokenizer, TALK, prefill=begun)
        assert rendered.text.endswith("<|im_start|>assistant\n<think>\n" + begun[8:])
        assert rendered.ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 2  # the reply in TALK has one too
        last = {"role": "assistant", "content": "", name: begun[8:]}
        assert list(rendered.ids) == library(tokenizer, [*TALK, last], continue_final_message=name)
    assert made(tokenizer, TALK, prefill="<think>\nHm.\n</think>\n\nSo").text.endswith("\n</think>\n\nSo")


@pytest.mark.library
def test_a_reply_goes_back_as_the_model_said_it(forms):
    """Its control tokens are the tokens that they were, beside a message in which they are letters."""
    raw = "<think>\nHm.\n</think>\n\nFine.<|im_end|> or so"
    typed = {"role": "user", "content": "What is <|im_end|> and </think>?"}
    plain = {"role": "assistant", "content": raw}
    end = forms["qwen"].convert_tokens_to_ids("<|im_end|>")
    for before, ends in ((USER, 5), (typed, 5)):
        rendered = made(forms["qwen"], [before, said(raw, "Hm.", "Fine."), MORE, REPLY])
        assert "assistant\nFine.<|im_end|> or so<|im_end|>" in rendered.text
        assert list(rendered.ids) == library(forms["qwen"], [before, plain, MORE, REPLY])
        assert rendered.ids.count(end) == ends


@pytest.mark.library
def test_what_a_person_says_is_marked_only_where_it_holds_control_tokens(forms):
    strange = {"role": "user", "content": "a \U000f0000 b"}
    assert made(forms["chatml"], [strange]).text.count("\U000f0000") == 1
    assert list(made(forms["chatml"], [strange]).ids) == library(forms["chatml"], [strange])


# replies in parts

RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}
READS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.THOUGHT %}[{{ m.THOUGHT }}]{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}({{ call.function | tojson }}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if opened %}<think>{% endif %}{% endif %}"
)


@pytest.mark.library
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_reply_is_read_by_the_tokenizer_s_response_template(name):
    """Each part goes back under the name that the template reads, as the library's parser makes it."""
    tokenizer = tokenizer_for(READS.replace("THOUGHT", name), ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.response_template = RESPONSE
    raw = '<think>\nHm.\n</think>\n\nFine. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    rendered = made(tokenizer, [USER, said(raw), MORE])
    assert '[Hm.]Fine.({"name": "f", "arguments": {"x": 1}})<|im_end|>' in rendered.text
    prefix = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    parsed = tokenizer.parse_response(raw, prefix=prefix)
    parsed |= {name: parsed["reasoning_content"]}
    assert list(rendered.ids) == library(tokenizer, [USER, parsed, MORE])
    rendered = render_chat(
        tokenizer, [USER, said("Hm.</think>Fine."), MORE], arguments={"opened": True}, emit=Recorder()
    )
    assert "assistant\n[Hm.]Fine.<|im_end|>" in rendered.text  # the prompt has opened that thought


@pytest.mark.library
def test_a_call_has_arguments_of_the_types_that_its_tool_takes():
    inline = {"content": "xml-inline", "content_args": {"tag_pattern": r"<(?P<key>\w+)>(?P<value>.*?)</\w+>"}}
    calls = {"open_pattern": r"<call:(?P<name>\w+)>", "close": "</call>", **inline}
    calls["transform"] = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
    tokenizer = tokenizer_for(READS, ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.response_template = {
        **RESPONSE,
        "fields": {**RESPONSE["fields"], "tool_calls": {**calls, "repeats": True}},
    }
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    chat = [USER, said("<call:f><x>7</x></call>"), MORE]
    assert '"x": 7}' in render_chat(tokenizer, chat, arguments={"tools": [tool]}, emit=Recorder()).text
    assert '"x": "7"}' in render_chat(tokenizer, chat, arguments={}, emit=Recorder()).text


def test_a_reply_that_cannot_be_read_goes_back_as_it_stands():
    tokenizer = tokenizer_for(READS, ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.response_template = RESPONSE
    assert "<tool_call>{broken" in made(tokenizer, [USER, said("Well <tool_call>{broken"), MORE]).text


CHANNELS = (
    "{% for m in messages %}{% if '<|channel|>' in m.content %}{{ raise_exception('channels') }}{% endif %}"
    "<|start|>{{ m.role }}{% if m.thinking and loop.last %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "<|start|>assistant{% endif %}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MARKUP = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")


@pytest.mark.library
def test_channels_go_back_as_parts():
    tokenizer = tokenizer_for(CHANNELS, MARKUP, "<|return|>")
    raw = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Fine."
    rendered = made(tokenizer, [USER, said(raw, "Hm.", "Fine."), MORE])
    plain = {"role": "assistant", "thinking": "Hm.", "content": "Fine."}
    assert list(rendered.ids) == library(tokenizer, [USER, plain, MORE])
    called = made(tokenizer, [USER, said(raw, "Hm.", "Fine.", {"function": {"name": "look", "arguments": {}}}), MORE])
    assert "<|message|>look<|end|>" in called.text
    assert made(tokenizer, [USER], prefill=raw).text.endswith("<|start|>assistant" + raw)


TRICKS = [
    "{{ strftime_now('%Y') }}",
    "{{ messages | tojson(indent=2) }}{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "a\n  {% generation %}\n{{ messages[0].content }}\n  {% endgeneration %}\nb",
    "{{ dict(a=1).items() | list }}{{ dict.fromkeys(['x']) }}{{ namespace(self=1).self }}",
    "{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ missing is defined }}",
    "{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(messages[0]['role']) }}",
]


@pytest.mark.parametrize("template", TRICKS)
def test_everything_that_templates_use_is_there_as_in_the_library(plain, template):
    shown = writing(plain, template).apply_chat_template(TALK, tokenize=False)
    assert made(plain, TALK, generation_prompt=False).text == shown


def test_reasoning_has_every_name_that_the_library_gives_it(plain):
    writing(plain, "{{ messages[0].thinking }}|{{ messages[0].reasoning_content }}|{{ messages[0].none is defined }}")
    message = {"role": "assistant", "content": "a", "reasoning": "Hm", "none": None}
    assert made(plain, [message]).text == plain.apply_chat_template([message], tokenize=False) == "Hm|Hm|False"


def test_of_several_templates_one_is_taken(plain):
    """The default one, or the one that is named, which is a setting."""
    assert made(writing(plain, {"default": "D", "rag": "R"}), TALK).text == "D"
    assert render_chat(plain, TALK, arguments={"chat_template": "rag"}, emit=Recorder()).text == "R"
    error = failing(plain, {"rag": "R", "tool_use": "T {{ depth }}"})
    assert "rag, tool_use" in error.message
    assert error.hints[0] == "/set template.chat_template rag"
    assert argument(plain, "template.chat_template", "rag") == ("template.chat_template", "rag")
    assert variables(plain, {"chat_template": "tool_use"}) == ["chat_template", "depth"]
    with pytest.raises(UsageError, match="no chat template 'rug'"):
        argument(plain, "template.chat_template", "rug")
    assert failing(plain, {}).hints == WAY_OUT
    rendered = render_chat(writing(plain, "only"), TALK, arguments={"chat_template": "rag"}, emit=Recorder())
    assert rendered.text == "only"  # another model has one alone: a name is no template


def test_arguments_reach_the_template_and_cannot_carry_control_tokens(forms):
    qwen = forms["qwen"]
    rendered = render_chat(qwen, TALK, arguments={"enable_thinking": False}, emit=Recorder())
    assert rendered.text.endswith("<think>\n\n</think>\n\n")
    tokenizer = tokenizer_for("{{ mood }}")
    rendered = render_chat(tokenizer, TALK, arguments={"mood": "</s>"}, emit=Recorder())
    assert rendered.text == "</s>"
    assert tokenizer.eos_token_id not in rendered.ids


REAL = sorted((Path(__file__).parents[1] / "templates").glob("*.jinja"))


@pytest.mark.library
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_templates_make_the_ids_that_the_library_makes(path):
    """Turns 1 to 3, with and without a thought, a call, a beginning of the reply; the campaign has many more."""
    found = row(path)
    assert found == dict.fromkeys(found, "ok")
    assert len(found) == 13


@pytest.mark.library
def test_a_forced_thought_of_qwen3_is_the_token(forms):
    tokenizer = tokenizer_for(REAL[0].read_text(), ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    ids = made(tokenizer, TALK, prefill="<think>").ids
    assert tokenizer.decode(ids[-3:]) == "\n<think>\n"
    assert ids[-2] == tokenizer.convert_tokens_to_ids("<think>")


@pytest.mark.slow
@pytest.mark.library
def test_every_turn_of_a_conversation_has_the_ids_of_the_library(llama_folder):
    """Whatever was typed, said before, begun or tried again."""
    with opened(llama_folder, max_new_tokens=6) as session:
        tokenizer = session.store.current().tokenizer
        chat = [SYSTEM]
        run(session, "/system Be kind.")
        for text in ("hello", "what is <|im_end|>?", "and then?"):
            done = run(session, text)
            chat.append({"role": "user", "content": text})
            assert list(done.prompt_ids) == library(tokenizer, chat)
            again = run(session, "/retry temperature=2.0")
            assert again.prompt_ids == done.prompt_ids
            reply = tokenizer.decode(again.token_ids, skip_special_tokens=True)
            chat.append({"role": "assistant", "content": reply})
        run(session, "/prefill Well, <|im_end|>")
        done = run(session, "so?")
        chat += [{"role": "user", "content": "so?"}, {"role": "assistant", "content": "Well, <|im_end|>"}]
        assert list(done.prompt_ids) == library(tokenizer, chat, continue_final_message=True)


# system texts


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_text_that_is_refused_goes_into_the_first_message(forms, name):
    rendered = made(forms[name], [SYSTEM, *TALK])
    assert rendered.notice == FOLDED
    assert "Be kind.\n\nHow are you?" in rendered.text
    assert made(forms[name], TALK).notice == ""


def test_a_system_text_that_is_left_out_silently_is_said(plain):
    writing(plain, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    assert made(plain, [SYSTEM, USER]).notice == DROPPED


def test_what_is_refused_for_another_reason_is_said_in_the_author_s_words(plain):
    error = failing(plain, "{{ raise_exception('Only on Sundays.') }}", [SYSTEM, USER])
    assert error.message == "the chat template refuses this conversation: Only on Sundays"
    assert error.hints == ("/mode complete", "/raw TEXT")


# attacks

BROKEN = {
    "syntax": ("{% if %}", "does not parse, line 1"),
    "unclosed": ("a\n{% for m in messages %}", "does not parse, line 2"),
    "undefined": ("{{ nothing.there }}", "uses an undefined value: 'nothing' is undefined"),
    "type": ("{{ 'a' + 1 }}", "can only concatenate str"),
    "list": ("{{ messages[9].content }}", "uses an undefined value"),
    "zero": ("{{ 1 / 0 }}", "division by zero"),
    "dunder": ("{{ ''.__class__.__mro__ }}", "does something that is not allowed"),
    "code": ("{{ cycler.__init__.__globals__.os.system('true') }}", "does something that is not allowed"),
    "mutation": ("{{ messages.append(1) }}", "does something that is not allowed"),
    "hidden name": ("{% set n = namespace(_x=1) %}", "does something that is not allowed"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses without end"),
    "brackets": ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "recurses without end"),
    "output": ("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 4 MB"),
    "much": ("{{ 'x' * 4000001 }}", "writes more than 4 MB"),
    "nothing": ("{% if false %}x{% endif %}", "returns nothing for this conversation"),
}
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_sentence_and_plain_text_is_offered(plain, name):
    template, reason = BROKEN[name]
    error = failing(plain, template)
    assert isinstance(error, Failed)
    assert reason in error.message
    assert error.message.startswith("the chat template ")
    assert "\n" not in error.message
    assert not error.message.endswith(".")
    assert error.hints == WAY_OUT


def test_a_template_without_end_is_stopped(plain, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_TEMPLATE_S", 0.2)
    assert "is not done after 0.2 s" in failing(plain, ENDLESS).message
    assert made(writing(plain, "ok"), [USER]).text == "ok"


def test_a_template_that_is_cancelled_ends_at_once(plain):
    """Also where no one but its own thread could end it."""
    worker = Worker()
    writing(plain, ENDLESS)
    job = worker.start(lambda emit: render_chat(plain, [USER], arguments={}, emit=emit))
    time.sleep(0.1)
    began = time.monotonic()
    job.cancel()
    assert job.wait(5.0)
    assert time.monotonic() - began < 1.0
    with pytest.raises(Cancelled):
        job.result()
    job = worker.start(lambda emit: made(writing(plain, "ok"), [USER]))
    assert job.wait(5.0)
    assert job.result().text == "ok"
    assert worker.close(5.0)


def test_a_model_without_a_template_completes(plain):
    error = failing(plain, None)
    assert error.message == "the model has no chat template"
    assert isinstance(error, UsageError)


# variables


def test_a_template_s_variables_can_be_set_and_no_others(forms):
    qwen = forms["qwen"]
    assert variables(qwen) == ["enable_thinking"]
    assert argument(qwen, "template.enable_thinking", "false") == ("template.enable_thinking", False)
    assert argument(qwen, "template.enable-thinking", "off") == ("template.enable_thinking", False)
    assert argument(qwen, "template.enable_thinking", "default") == ("template.enable_thinking", None)
    assert argument(qwen, "enable_thinking", "low") == ("template.enable_thinking", "low")
    with pytest.raises(UsageError) as caught:
        argument(qwen, "template.enable_thinkin", "false")
    assert caught.value.hints == ("/set template.enable_thinking false",)
    with pytest.raises(UsageError, match="it uses none"):
        argument(forms["llama"], "template.add_generation_prompt", "false")


SETS = [
    ("{% for m in messages %}{% if m.x %}{% set content = m.x %}{% endif %}{{ content }}{% endfor %}", []),
    ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", ["thinking"]),
    ("{% set budget = budget | default(3) %}{{ budget }}", ["budget"]),
    ("{% set budget = 3 %}{{ budget }}", []),
    ("{% macro m(tools) %}{{ tools }}{{ date }}{% endmacro %}{{ m(tools) }}", ["date", "tools"]),
    ("{% for tool in tools %}{{ tool }}{{ loop.index }}{% endfor %}", ["tools"]),
    ("{% generation %}{{ strftime_now('%Y') }}{{ tokenize }}{{ raise_exception }}{% endgeneration %}", []),
    ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% break %}{% endfor %}{{ ns.n }}{{ eos_token }}", []),
]


@pytest.mark.parametrize(("template", "names"), SETS)
def test_what_a_template_sets_itself_is_no_variable_of_the_user_s(plain, template, names):
    assert variables(writing(plain, template)) == names


def test_tools_can_be_given(plain):
    tool = {"type": "function", "function": {"name": "look"}}
    writing(plain, "{{ tools | tojson }}{{ messages[0].content }}")
    name, value = argument(plain, "template.tools", json.dumps([tool]))
    shown = render_chat(plain, [USER], arguments={"tools": value}, emit=Recorder())
    assert list(shown.ids) == plain.apply_chat_template([USER], tools=[tool])["input_ids"]
    with pytest.raises(Failed, match="the chat template fails: Tools should either be"):
        render_chat(plain, [USER], arguments=template_values([(name, "look")]), emit=Recorder())


def test_arguments_are_picked_from_what_was_set_by_name():
    assert template_values((("template.a", 1), ("top_h", 0.5))) == {"a": 1}


# /template check


def verdicts(tokenizer, ends: tuple[str, ...]) -> dict[str, str]:
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    return {found.name: found.verdict for found in check_template(Template(tokenizer, {}, Recorder()), ids)}


GOOD = dict.fromkeys(
    (
        *("renders", "BOS", "system message", "generation prompt", "end of turn"),
        *("earlier turns", "thinking in history", "control tokens typed by you"),
    ),
    "good",
)
EXPECTED = {
    "chatml": {},
    "llama": {},
    "gemma": {"system message": "note"},
    "mistral": {"system message": "note"},
    "qwen": {},
}


@pytest.mark.parametrize("name", FORMS)
def test_real_forms_get_their_verdicts(forms, name):
    assert verdicts(forms[name], (FORMS[name][2],)) == GOOD | EXPECTED[name]


TURNS = "{% for m in messages %}"
RIGHT = {  # forms of real templates: a control token for each thing that they write, and what ends a reply
    "channels": (
        TURNS + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        "{{ m.content }}"
        + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"],
        "<|return|>",
        {},
    ),
    "an empty thought is asked for": (
        TURNS + "<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn>assistant\n<|channel>thought\n<channel|>{% endif %}",
        ["<|turn>", "<turn|>", "<|channel>", "<channel|>"],
        "<turn|>",
        {"earlier turns": "note", "thinking in history": "note"},
    ),
    "the next role ends a reply": (
        "[gMASK]<sop>" + TURNS + "{{ '<|' + m.role + '|>' }}\n{% if m.role == 'assistant' %}<think></think>\n"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"],
        "<|user|>",
        {},
    ),
    "two tokens end a reply": (
        TURNS + "<|START|>{{ m.role }}{% if m.role == 'assistant' %}<|RESPONSE|>{{ m.content }}<|/RESPONSE|>"
        "{% else %}{{ m.content }}{% endif %}<|END|>{% endfor %}<|START|>assistant",
        ["<|START|>", "<|END|>", "<|RESPONSE|>", "<|/RESPONSE|>"],
        "<|END|>",
        {},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_called_wrong(name):
    template, specials, end, rest = RIGHT[name]
    assert verdicts(tokenizer_for(template, tuple(specials), end), (end,)) == GOOD | rest


def test_a_quote_begins_where_a_token_begins():
    """And not in the middle of one that differs in its end alone."""
    counted = LLAMA.replace("{{ bos_token }}", "{{ bos_token }}{{ 'quickly' if messages | length > 1 else 'quick' }} ")
    tokenizer = tokenizer_for(counted, *FORMS["llama"][1:])
    tokenizer.add_tokens(["quickly", "quick"])
    reasons = {one.name: one.reason for one in check_template(Template(tokenizer, {}, Recorder()), [])}
    assert "from 'quick " in reasons["earlier turns"]


def test_a_quote_of_white_space_shows_it():
    """Nemotron 3 writes `<think></think>` in history, and opens a thought with a line break behind it."""
    turns = TURNS + "<|turn>{{ m.role }}{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<turn|>"
    asked = turns + "{% endfor %}{% if add_generation_prompt %}<|turn>assistant<think>\n{% endif %}"
    tokenizer = tokenizer_for(asked, ("<|turn>", "<turn|>", "<think>", "</think>"), "<turn|>")
    reasons = {one.name: one.reason for one in check_template(Template(tokenizer, {}, Recorder()), [])}
    assert "but '\\n' is dropped" in reasons["earlier turns"]


FORGING = (  # cuts a message where the library has marked the token that was typed
    "{% set text = message['content'].split('<|eot') %}"
    "{% if text[1:] %}{{ text[0][:4] }}<|eot{{ text[-1] }}{% else %}{{ text[0] }}{% endif %}"
)
FAULTS = [
    ("BOS", "bad", "{{ bos_token }}" + LLAMA),
    ("system message", "bad", LLAMA.replace("messages %}", "messages if message.role != 'system' %}")),
    ("generation prompt", "bad", LLAMA.partition("{% if add_")[0]),
    ("end of turn", "bad", LLAMA.replace("<|eot_id|>", "<|end_header_id|>")),
    ("end of turn", "bad", LLAMA.replace("<|eot_id|>", "\n")),
    ("earlier turns", "bad", LLAMA.replace("{{ bos_token }}", "{{ bos_token }}{{ messages | length }} messages")),
    ("thinking in history", "note", LLAMA + "{# #}{% if '</think>' in messages[0].content %}x{% endif %}"),
    ("control tokens typed by you", "bad", LLAMA.replace("{{ message['content'] | trim }}", FORGING)),
    ("control tokens typed by you", "note", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
    ("renders", "bad", "{{ nothing.there }}"),
]


@pytest.mark.parametrize(("name", "verdict", "template"), FAULTS)
def test_each_fault_is_found(name, verdict, template):
    tokenizer = tokenizer_for(template, *FORMS["llama"][1:])
    found = verdicts(tokenizer, ("<|eot_id|>",))
    assert found[name] == verdict
    assert verdicts(tokenizer_for(*FORMS["llama"]), ("<|eot_id|>",))[name] == "good"


def test_a_bos_that_only_plain_text_gets_is_noted():
    tokenizer = tokenizer_for(LLAMA.replace("{{ bos_token }}", ""), *FORMS["llama"][1:])
    first = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[first])
    found = verdicts(tokenizer, ("<|eot_id|>",))
    assert found == GOOD | {"BOS": "note"}
    assert (
        list(made(tokenizer, TALK).ids) == tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    )


# who says what


def parts(tokenizer, messages, **options) -> list[tuple[str, str]]:
    text = made(tokenizer, messages, **options).text
    found = find_spans(Template(tokenizer, {}, Recorder()), messages, text, options.get("prefill", ""))
    assert [0, *(span.end for span in found)] == [*(span.start for span in found), len(text)]
    return [(span.role, text[span.start : span.end]) for span in found]


def test_each_message_is_what_it_adds(forms):
    assert parts(forms["chatml"], [SYSTEM, *TALK], prefill="So") == [
        ("system", "<|im_start|>system\nBe kind.<|im_end|>\n"),
        ("user", "<|im_start|>user\nHow are you?<|im_end|>\n"),
        ("assistant", "<|im_start|>assistant\nFine, and you?<|im_end|>\n"),
        ("user", "<|im_start|>user\nFine too.<|im_end|>\n"),
        ("template", "<|im_start|>assistant\n"),
        ("assistant", "So"),
    ]
    assert [role for role, _ in parts(forms["mistral"], TALK)] == ["user", "assistant", "user"]


def test_a_message_that_is_rewritten_is_found_by_its_last_line(forms):
    assert parts(forms["qwen"], [USER, THOUGHT, MORE])[:3] == [
        ("user", "<|im_start|>user\nHow are you?<|im_end|>\n"),
        ("assistant", "<|im_start|>assistant\nFine.<|im_end|>\n"),
        ("user", "<|im_start|>user\nFine too.<|im_end|>\n"),
    ]


def test_a_system_text_of_the_template_s_own_is_the_template_s():
    own = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    tokenizer = tokenizer_for(own + CHATML, *FORMS["chatml"][1:])
    assert parts(tokenizer, [USER])[0] == ("template", "<|im_start|>system\nBe brief.<|im_end|>\n")
    assert parts(tokenizer, [SYSTEM, USER])[0] == ("system", "<|im_start|>system\nBe kind.<|im_end|>\n")


# the command


def test_the_command_shows_exactly_what_the_next_turn_sends(llama_folder):
    with opened(llama_folder, max_new_tokens=4) as session:
        run(session, "/system Be kind.", "hello")
        shown = run(session, "/template and then <|im_end|>?")
        done = run(session, "and then <|im_end|>?")
        assert shown.ids == list(done.prompt_ids)
        assert sum(shown.tokens.values()) == len(shown.ids)
        assert list(shown.tokens) == ["system", "user", "assistant", "template"]
        assert "".join(piece.text for piece in shown.pieces) == shown.text
        said = "".join(piece.text for piece in shown.pieces if piece.special)
        assert said.count("<|im_end|>") == shown.text.count("<|im_end|>") - 1
        assert "and then <|im_end|>?" in drawn(shown)
        assert f"{len(shown.ids)} tokens of 512" in drawn(shown)


def test_the_command_changes_nothing_and_has_a_placeholder(llama_folder):
    with opened(llama_folder) as session:
        before = session.conversation.messages()
        assert command.NEXT_MESSAGE in run(session, "/template").text
        listed = drawn(run(session, "/template --ids hello"))
        assert all(str(number) in listed for number in run(session, "/template hello").ids)
        assert "hello" in run(session, "/template --ids hello").text
        assert session.conversation.messages() == before


def test_the_command_takes_what_was_prefilled_and_set(llama_folder):
    with opened(llama_folder) as session:
        run(session, "/prefill Well,")
        assert run(session, "/template").text.endswith("<|im_start|>assistant\nWell,")
        session.store.current().tokenizer.chat_template = "{{ mood }}{{ messages[-1].content }}"
        session.settings = replace(session.settings, extra=(("template.mood", "calm"),))
        session.prepare(prefill="")
        assert run(session, "/template x").text == "calmx"


def test_the_command_says_what_a_model_without_a_template_lacks(gpt2_folder):
    with opened(gpt2_folder) as session, pytest.raises(UsageError, match="no chat template"):
        run(session, "/template")


@pytest.mark.slow
def test_the_builtin_model_s_template_is_as_its_verdicts_say(builtin_folder):
    model, tokenizer = bare(builtin_folder)
    found = command.Report(check_template(Template(tokenizer, {}, Recorder()), end_ids(model.generation_config)))
    assert {one.name: one.verdict for one in found.checks} == GOOD
    assert all(one.reason and "\n" not in one.reason for one in found.checks)
    assert all(one.name in drawn(found) for one in found.checks)
    assert end_ids(model.generation_config)
    assert list(made(tokenizer, TALK).ids) == library(tokenizer, TALK)
