"""The prompt of a chat is what the library makes of it, and no template gets the upper hand."""

from dataclasses import replace
from types import SimpleNamespace

import models
import pytest
from conftest import Recorder
from driving import bare, opened, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers.processors import TemplateProcessing

from repl import sandbox
from repl.checks import check
from repl.commands import template as command
from repl.decoding import stops
from repl.errors import Cancelled, Failed, ReplError, UsageError
from repl.jinja import CHARACTERS
from repl.sandbox import Chat
from repl.screen import THEME, view
from repl.template import DROPPED, FOLDED, Template, argument, arguments, render, spans, variables

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
    return render(tokenizer, messages, arguments={}, emit=Recorder(), **options)


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(FORMS)), contents=st.lists(CONTENTS, min_size=1, max_size=4), system=st.booleans())
def test_the_ids_are_the_library_s_own(forms, name, contents, system):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    messages = [SYSTEM, *messages] if system and name not in ("gemma", "mistral") else messages
    shown = forms[name].apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)
    assert list(made(forms[name], messages).ids) == shown["input_ids"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("prefill", ["Sure", "Sure, ", "  Sure\n", "</s> or <|im_end|>"])
def test_a_reply_that_has_begun_goes_on_as_with_the_library(forms, name, prefill):
    """Where the template keeps a trailing blank, it stays."""
    chat = [*TALK, {"role": "assistant", "content": prefill}]
    shown = forms[name].apply_chat_template(chat, continue_final_message=True, sanitize_control_tokens=True)
    assert list(made(forms[name], TALK, prefill=prefill).ids) == shown["input_ids"]


def test_a_reply_that_the_template_would_rewrite_begins_behind_the_generation_prompt(forms):
    rendered = made(forms["qwen"], TALK, prefill="<think>\nLet me see")
    assert rendered.text.endswith("<|im_start|>assistant\n<think>\nLet me see")


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


def test_of_several_templates_the_default_one_is_taken(plain):
    assert made(writing(plain, {"default": "D", "rag": "R"}), TALK).text == "D"
    assert "rag, tool_use" in failing(plain, {"rag": "R", "tool_use": "T"}).message
    assert failing(plain, {}).hints == sandbox.WAY_OUT


def test_arguments_reach_the_template_and_cannot_carry_control_tokens(forms):
    qwen = forms["qwen"]
    rendered = render(qwen, TALK, arguments={"enable_thinking": False}, emit=Recorder())
    assert rendered.text.endswith("<think>\n\n</think>\n\n")
    tokenizer = tokenizer_for("{{ mood }}")
    rendered = render(tokenizer, TALK, arguments={"mood": "</s>"}, emit=Recorder())
    assert rendered.text == "</s>"
    assert tokenizer.eos_token_id not in rendered.ids


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
    assert error.message == "the chat template refuses this chat: Only on Sundays"
    assert error.hints == ("/mode complete", "/raw TEXT")


# attacks

BROKEN = {
    "syntax": ("{% if %}", "does not parse, line 1"),
    "unclosed": ("a\n{% for m in messages %}", "does not parse, line 2"),
    "undefined": ("{{ nothing.there }}", "reads what is not there: 'nothing' is undefined"),
    "type": ("{{ 'a' + 1 }}", "can only concatenate str"),
    "list": ("{{ messages[9].content }}", "reads what is not there"),
    "zero": ("{{ 1 / 0 }}", "division by zero"),
    "dunder": ("{{ ''.__class__.__mro__ }}", "does what none may do"),
    "code": ("{{ cycler.__init__.__globals__.os.system('true') }}", "does what none may do"),
    "mutation": ("{{ messages.append(1) }}", "does what none may do"),
    "hidden name": ("{% set n = namespace(_x=1) %}", "does what none may do"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
    "brackets": ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "calls itself without end"),
    "output": ("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 4 MB"),
    "one string": ("{% set n = 10 %}{{ 'x' * n ** 10 }}", "needs too much memory"),
    "constant": ("{{ 'x' * 10 ** 10 }}", "needs too much memory"),
    "padding": ("{{ 'x' | center(10 ** 10) }}", "needs too much memory"),
    "format": ("{{ '%99999999999d' % 1 }}", "needs too much memory"),
}
ENDLESS = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "one number": "{% set n = 10 %}{{ n ** (n ** 8) % 7 }}",  # in C, with the interpreter locked
    "a tree of lists": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_sentence_and_plain_text_is_offered(plain, name):
    template, reason = BROKEN[name]
    error = failing(plain, template)
    assert isinstance(error, Failed)
    assert reason in error.message
    assert error.message.startswith("the chat template ")
    assert "\n" not in error.message
    assert not error.message.endswith(".")
    assert error.hints == sandbox.WAY_OUT


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(plain, name):
    """Also where a single step would take for ever."""
    error = failing(plain, ENDLESS[name])
    assert "is not done after 2 s" in error.message or "too much memory" in error.message
    assert made(writing(plain, "ok"), [USER]).text == "ok"


def test_a_template_that_is_cancelled_ends_at_once(plain):
    """The process that renders it is ended too: none is left running."""
    emit = Recorder()
    before = sandbox._idle.qsize()

    class Stopping(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 4:
                raise Cancelled

    with pytest.raises(Cancelled):
        render(writing(plain, ENDLESS["loops"]), [USER], arguments={}, emit=Stopping())
    assert sandbox._idle.qsize() <= before
    assert render(writing(plain, "ok"), [USER], arguments={}, emit=emit).text == "ok"


def test_a_process_that_has_died_is_replaced(plain):
    made(writing(plain, "ok"), [USER])
    child = sandbox._idle.get_nowait()
    child.process.kill()
    child.process.wait()
    sandbox._idle.put(child)
    assert made(plain, [USER]).text == "ok"
    child.end()


def test_processes_are_kept_for_the_next_chat_and_ended_at_the_end(plain):
    sandbox.close()
    sandbox.prepare()
    sandbox.prepare()
    assert sandbox._idle.qsize() == 1
    made(writing(plain, "ok"), [USER])
    child = sandbox._idle.get_nowait()
    sandbox._idle.put(child)
    sandbox.close()
    assert child.process.poll() is not None
    assert sandbox._idle.empty()


def test_a_long_message_is_not_a_long_template(plain):
    text = "x" * (CHARACTERS + 1000)
    (outcome,) = sandbox.render(
        "{{ messages[0].content }}", [Chat([{"role": "user", "content": text}])], {}, Recorder()
    )
    assert outcome.text == text


def test_the_memory_of_the_process_is_watched_where_the_system_keeps_no_limit(plain, monkeypatch):
    monkeypatch.setattr(sandbox, "MEMORY", 1)
    assert failing(plain, "ok").message == "the chat template needs too much memory"


def test_a_model_without_a_template_completes(plain):
    error = failing(plain, None)
    assert error.message == "the model has no chat template"
    assert isinstance(error, UsageError)


# variables


def test_a_template_s_variables_can_be_set_and_no_others(forms):
    qwen, emit = forms["qwen"], Recorder()
    assert variables(qwen, emit) == ["enable_thinking"]
    assert argument(qwen, "template.enable_thinking", "false", emit) == ("template.enable_thinking", False)
    assert argument(qwen, "template.enable-thinking", "off", emit) == ("template.enable_thinking", False)
    assert argument(qwen, "template.enable_thinking", "default", emit) == ("template.enable_thinking", None)
    assert argument(qwen, "enable_thinking", "low", emit) == ("template.enable_thinking", "low")
    with pytest.raises(UsageError) as caught:
        argument(qwen, "template.enable_thinkin", "false", emit)
    assert caught.value.hints == ("/set template.enable_thinking false",)
    with pytest.raises(UsageError, match="it reads none"):
        argument(forms["llama"], "template.add_generation_prompt", "false", emit)


def test_arguments_are_picked_from_what_was_set_by_name():
    assert arguments((("template.a", 1), ("top_h", 0.5))) == {"a": 1}


# /template check


def verdicts(tokenizer, ends: tuple[str, ...]) -> dict[str, str]:
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    return {found.name: found.verdict for found in check(Template(tokenizer, {}, Recorder()), ids)}


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
    "qwen": {"earlier turns": "bad"},
}


@pytest.mark.parametrize("name", FORMS)
def test_real_forms_get_their_verdicts(forms, name):
    assert verdicts(forms[name], (FORMS[name][2],)) == GOOD | EXPECTED[name]


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
    found = spans(Template(tokenizer, {}, Recorder()), messages, text, options.get("prefill", ""))
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


def drawn(result) -> str:
    console = Console(width=100, theme=THEME)
    with console.capture() as captured:
        console.print(view(result))
    return captured.get()


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
        assert command.NEXT in run(session, "/template").text
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
        session.prefill = ""
        assert run(session, "/template x").text == "calmx"


def test_the_command_says_what_a_model_without_a_template_lacks(gpt2_folder):
    with opened(gpt2_folder) as session, pytest.raises(UsageError, match="no chat template"):
        run(session, "/template")


def test_the_builtin_model_s_template_is_as_its_verdicts_say(builtin_folder):
    model, tokenizer = bare(builtin_folder)
    resident = SimpleNamespace(tokenizer=tokenizer, model=model)
    found = command.report(resident, {}, Recorder())
    assert {one.name: one.verdict for one in found.checks} == GOOD
    assert all(one.reason and "\n" not in one.reason for one in found.checks)
    assert all(one.name in drawn(found) for one in found.checks)
    assert stops(model.generation_config)
    shown = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, sanitize_control_tokens=True)
    assert list(made(tokenizer, TALK).ids) == shown["input_ids"]
