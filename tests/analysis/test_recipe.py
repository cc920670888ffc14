"""Recipes: a recorded reply as a script for transformers alone, run by itself."""

import ast
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
from driving import ask, ask_until, bare, opened, run
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from repl.analysis import recipe
from repl.analysis.recipe import ModelSource, PromptForm, literal, write_script
from repl.commands.recipe import Recipe, find_source
from repl.core.conversation import Conversation, Turn
from repl.core.errors import UsageError
from repl.core.events import Token
from repl.core.reply import ModelRecord, Reply, Timing, Usage
from repl.core.settings import Load
from repl.hub import locate
from repl.session.session import Session
from repl.terminal.screen import THEME, render, reply_figures

STORY = "Once upon a time"
HUNG = 120  # seconds
BATCH = """
import contextlib, io, json, pathlib, runpy, sys

found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        names = runpy.run_path(str(path))
    found[path.stem] = names["output"].tolist(), said.getvalue()
print(json.dumps(found))
"""


@dataclass
class Case:
    """A turn to be made again: what was typed before it, the message, and whether it talks through the template."""

    lines: list[str]
    message: str = STORY


PLAIN = {
    "greedy": Case(["/greedy", "/max_length 50"]),
    "beams": Case(["/beams 4 length_penalty=0.5 early_stopping=on", "/max 12"], "def count("),
    "one of several beams": Case(["/beams 3", "/max 9"]),
    "sampled": Case(["/sample temperature=0.9 top_k=20", "/seed 7", "/max 20"]),
    "a form": Case(["/format name: ab|cd, ok bool", "/max 60"]),
    "a form, sampled": Case(["/format /[0-9]{3}-[ab]/", "/sample temperature=2", "/seed 7", "/max 20"]),
    "a form, beams": Case(["/format kind: ab|cd", "/beams 3", "/max 60"]),
    "min_p": Case(["/sample min_p=0.05 top_k=0", "/seed 11", "/max 20"], "Grüße aus"),
    "several samples": Case(["/sample", "/seed 3", "/num_return_sequences 3", "/max 10"]),
    "sampled beams": Case(["/beams 3", "/do_sample on", "/seed 5", "/max 8"]),
    "n-grams": Case(["/greedy", "/no_repeat_ngram_size 2", "/min_new_tokens 10", "/max 30"]),
    "penalty": Case(["/repetition_penalty 1.4", "/typical_p 0.9", "/greedy", "/max 25"], "The quick \"brown\" 'fox'"),
    "stop strings": Case(["/greedy", '/stop "e" "qu"', "/max 30"], "def count(numbers):\n    for"),
    "fields by name": Case(["/greedy", "/set suppress_tokens [5, 6, 7]", "/set sequence_bias [[[9], 2.5]]", "/max 9"]),
    "out of time": Case(["/greedy", "/max 400", "/set max_time 0.05"]),
    "raw again": Case(["/max 6"], "//not a command"),
}
CHAT = {
    "chat": Case(["/greedy", "/max 16"], "What is the capital of France?"),
    "second turn": Case([], "And of Italy?"),
    "system": Case(
        ["/clear", "/system Be brief.\nSay no more than you have to.\n\nNever.", "/sample", "/seed 2"], "Hi"
    ),
    "prefill": Case(["/prefill The answer is ", "/greedy"], "How many?"),
    "control tokens": Case(["/clear"], "What does <|im_end|> do, and \\n, and \x1b[31m?"),
    "prefill and control tokens": Case(["/prefill <|im_start|>"], "Again"),
    "thought": Case(["/prefill <think>", "/clear", "/system none"], "Why?"),
    "beams in a chat": Case(["/beams 3", "/max 8"], "Name a river"),
    "text in a chat model": Case(["/greedy", "/mode complete"], STORY),
}
SENTENCES = {
    "pieces": Case(["/sample", "/seed 4", "/max 15"]),
    "pieces and a stop string": Case(["/greedy", "/stop a", "/max 20"], "def f():\n   return 1\n"),
}


class Book:
    """Collects the scripts of replies, with what each has to make and to print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: dict[str, list[int]] = {}
        self.texts: dict[str, str] = {}
        self.rows: dict[str, int] = {}

    def add(self, session: Session, name: str) -> None:
        turn = session.last
        assert turn is not None
        assert turn.record is not None
        record = turn.record
        made = run(session, f"/recipe {turn.exchange}")
        (self.folder / f"{name}.py").write_text(made.script, "utf-8")
        before, new = recipe.last_call(record)
        self.ids[name], self.rows[name] = [*before, *new], recipe.sequence_place(record)
        tokenizer = session.store.current().tokenizer
        whole = tokenizer.decode([*before, *new], skip_special_tokens=True)
        self.texts[name] = whole if turn.role == "completion" else turn.text


def taken(session: Session, book: Book, cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        run(session, "/reset", "/max 12", *case.lines)
        ask(session, case.message)
        book.add(session, name)


@pytest.fixture(scope="module")
def book(tmp_path_factory, gpt2_folder, llama_folder, metaspace_folder) -> Book:
    """Every case, and those that are no plain message."""
    book = Book(tmp_path_factory.mktemp("book"))
    with opened(gpt2_folder, device="auto") as session:
        taken(session, book, PLAIN)
        run(session, "/beams 4", STORY, "/pick 3")
        book.add(session, "picked")
        run(session, "/reset", "/max 5", STORY, "/continue")
        book.add(session, "continued text")
        ask_until(session, "/retry max_new_tokens=60", lambda event: isinstance(event, Token) and event.id is not None)
        book.add(session, "stopped")
    with opened(llama_folder, attention="eager") as session:
        taken(session, book, CHAT)
        run(session, "/mode chat", "/clear", "/prefill Well,", "/max 5", "Go on", "/continue")
        book.add(session, "continued")
        run(
            session, "/clear", '/prefill {"k', "/format kind: ab|cd, ok bool", "/max 5", "Go on", "/max 60", "/continue"
        )
        book.add(session, "continued form")
        run(session, "/reset", "/max 5")
        run(session, "/overflow drop_oldest", "/max 12", f"A {'long ' * 60}tale", f"Another {'long ' * 90}one", "End")
        run(session, f"Another {'very long ' * 60}one", "End")
        assert session.last.record.dropped
        book.add(session, "dropped")
    with opened(metaspace_folder) as session:
        taken(session, book, SENTENCES)
    return book


def child(*words: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, capture_output=True, check=True, timeout=HUNG, env=environment).stdout.decode()


@pytest.fixture(scope="module")
def made(book) -> dict[str, tuple[list[list[int]], str]]:
    """What the scripts make and print, run one after another in one child, each with names of its own."""
    return json.loads(child("-c", BATCH, book.folder))


OTHERS = ["picked", "continued text", "stopped", "continued", "continued form", "dropped"]
NAMES = [*PLAIN, *CHAT, *SENTENCES, *OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_script_makes_the_recorded_ids_and_prints_the_reply(book, made, name):
    rows, said = made[name]
    ids = book.ids[name]
    assert rows[book.rows[name]][: len(ids)] == ids
    assert len(set(rows[book.rows[name]][len(ids) :])) <= 1  # nothing but padding behind it
    assert said == book.texts[name] + "\n"


@pytest.mark.slow
def test_a_script_runs_by_itself(book):
    assert child(book.folder / "prefill.py") == book.texts["prefill"] + "\n"


def test_a_script_prints_the_tags_that_the_reply_has(tmp_path, capsys):
    """They are special tokens here: leaving out all of those would run a thought into its answer."""
    folder = models.scripted(tmp_path / "thinker", b"<think>Hm.</think>Yes.", marks=["<think>", "</think>"])
    file = tmp_path / "reply.py"
    with opened(folder, max_new_tokens=60) as session:
        done = ask(session, "Hi")
        run(session, f"/recipe {file}")
    runpy.run_path(str(file))
    assert capsys.readouterr().out.endswith(f"{done.raw}\n")
    assert done.raw == "<think>Hm.</think>Yes."


CHANNELS = (
    "{% for m in messages %}{% if '<|channel|>' in m.content %}{{ raise_exception('channels') }}{% endif %}"
    "<{{ m.role }}>{{ m.thinking }}:{{ m.content }}{% endfor %}<assistant>"
)


def test_a_reply_in_channels_stands_as_the_template_reads_it(gpt2_folder, emit):
    """Its prompt is messages, not ids, and the script writes thought and answer apart."""
    _, tokenizer = bare(gpt2_folder)
    tokenizer.chat_template = CHANNELS
    raw, talk = "<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>Fine.", Conversation()
    first = replace(RECORD, raw=raw, text="Fine.", thinking="Hm.")
    asked = talk.add("user", "Hi", None)
    reply = talk.close(talk.add("assistant", "", asked.id), raw, "complete", first)
    again = talk.add("user", "More", reply.id)
    ids = tuple(tokenizer("<user>:Hi<assistant>Hm.:Fine.<user>:More<assistant>").input_ids)
    record = replace(RECORD, prompt_ids=ids, usage=Usage(len(ids), 0, 1))
    last = talk.close(talk.add("assistant", "", again.id), " there", "complete", record)
    form = recipe.find_form(recipe.prompt_forms(talk, last, record), record, tokenizer, emit)
    assert form.messages[1] == {"role": "assistant", "content": "Fine.", "thinking": "Hm."}
    assert '{"role": "assistant", "content": "Fine.", "thinking": "Hm."}' in write_script(last, GPT2, form, None)


@pytest.mark.parametrize("tidies", [False, True])
@pytest.mark.parametrize("role", ["assistant", "completion"])
def test_a_script_prints_the_spaces_that_the_reply_has(gpt2_folder, role: str, tidies: bool):
    """A tokenizer that takes them away in front of punctuation is told not to."""
    _, tokenizer = bare(gpt2_folder)
    tokenizer.clean_up_tokenization_spaces = tidies
    turn = replace(REPLY, role=role)
    script = write_script(turn, GPT2, START, tokenizer)
    assert ("clean_up_tokenization_spaces=False))" in script) == tidies


# the text of a script

RECORD = Reply(
    text=" there",
    prompt_ids=(7, 8),
    token_ids=(9,),
    finish="length",
    model=ModelRecord("gpt2", dtype="float32"),
    load={"model": "gpt2", "dtype": "float32", "device": "auto", "quantize": "none", "attention": "auto"},
    decode={"max_length": 50, "num_beams": 1, "do_sample": False, "stop": (), "seed": None, "reuse": True},
    seed=None,
    usage=Usage(2, 0, 1),
    timing=Timing(0.1, 20.0, 30.0, 0.2),
    versions={"transformers": "5.23.0", "torch": "2.13.0"},
    given={"num_beams": 1, "do_sample": False, "max_length": 50},
)
TEXT = Turn(2, 1, "completion", " there", record=RECORD, exchange=1)
GPT2, START = ModelSource("gpt2"), PromptForm(text=STORY)
REPLY = Turn(2, 1, "assistant", " there", record=RECORD, exchange=1)


def scripted(turn: Turn = TEXT, source: ModelSource = GPT2, form: PromptForm = START, **changes) -> str:
    """The script of a made-up record with some of it changed, which is a Python program."""
    text = write_script(replace(turn, record=replace(RECORD, **changes)), source, form, None)
    ast.parse(text)
    return text


def test_the_first_example_of_every_tutorial_reads_as_an_expert_writes_it():
    assert (
        scripted()
        == """\
# Exchange 1 of a hub-repl session, recorded with transformers 5.23.0 and torch 2.13.0.
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("gpt2")
model = AutoModelForCausalLM.from_pretrained("gpt2", device_map="auto", dtype=torch.float32)

inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_length=50, num_beams=1, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
    )


def test_a_repository_stands_with_its_commit():
    """Weights, tokenizer and config of the very commit that made the reply."""
    text = scripted(source=ModelSource("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"))
    assert 'name, commit = "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"' in text
    assert "AutoTokenizer.from_pretrained(name, revision=commit)" in text
    assert "AutoModelForCausalLM.from_pretrained(\n    name,\n    revision=commit,\n    device_map=" in text


@pytest.mark.slow
def test_a_model_of_the_hub_is_made_again_from_its_commit(fake_hub, gpt2_folder, tmp_path, capsys, emit, monkeypatch):
    commit = fake_hub.add("acme/tiny", gpt2_folder)
    locate.locate(Load("acme/tiny"), emit)
    with opened("acme/tiny") as session:
        done = run(session, "/greedy", "/max 6", STORY)
        file = tmp_path / "tiny.py"
        run(session, f"/recipe {file}")
    assert f'name, commit = "acme/tiny", "{commit}"' in file.read_text()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the fake Hub lists no folders: the cache has it all
    names = runpy.run_path(str(file))
    assert names["output"].tolist() == [[*done.prompt_ids, *done.token_ids]]
    assert capsys.readouterr().out == f"{STORY}{done.text}\n"


LOADS = {
    "quantize 4bit": ({"quantize": "4bit"}, "quantization_config=BitsAndBytesConfig(load_in_4bit=True"),
    "quantize 8bit": ({"quantize": "8bit"}, "import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig"),
    "a device": ({"device": "cuda:1"}, 'device_map="cuda:1"'),
    "memory": ({"max_memory": "0=20GiB,cpu=48GiB"}, 'max_memory={0: "20GiB", "cpu": "48GiB"}'),
    "attention": ({"attention": "eager"}, 'attn_implementation="eager"'),
    "code": ({"trust_remote_code": True}, 'from_pretrained("gpt2", trust_remote_code=True)'),
    "disk": ({"offload_folder": "/tmp/x"}, 'offload_folder="/tmp/x"'),
    "an adapter": (
        {"adapter": "acme/tuned@v2"},
        'from_pretrained(\n    model,\n    "acme/tuned",\n    revision="v2",\n    autocast_adapter_dtype=False',
    ),
    "a merged adapter": ({"adapter": "acme/tuned merge"}, "model = model.merge_and_unload(safe_merge=True)"),
    "packing of ours": ({"quantize": "int4"}, '# The weights were quantized to "int4", which this script does not do'),
}


@pytest.mark.parametrize("name", LOADS)
def test_what_was_asked_for_while_loading_is_in_the_script_or_said(name):
    changes, words = LOADS[name]
    assert words in scripted(load={**RECORD.load, **changes})


def test_what_had_no_effect_is_left_out():
    """Sampling values while greedy, beam values without beams."""
    idle = {"temperature": 0.5, "top_k": 5, "length_penalty": 2.0}
    assert "generate(**inputs, max_length=50, num_beams=1, do_sample=False)" in scripted(given={**RECORD.given, **idle})
    drawn = scripted(given=idle, decode={"do_sample": True, "num_beams": 2}, seed=3)
    assert "torch.manual_seed(3)\noutput = model.generate(**inputs, temperature=0.5, top_k=5, length_penalty" in drawn


@pytest.mark.parametrize(
    ("finish", "limits", "cut"),
    [
        ("length", {"max_new_tokens": 9}, True),
        ("length", {"max_length": 50}, True),
        ("length", {"max_new_tokens": 1}, False),
        ("length", {"max_length": 3}, False),
        ("stop", {"max_new_tokens": 9}, False),
    ],
)
def test_a_limit_of_time_is_left_out_and_where_it_cut_is_told(finish, limits, cut):
    """What one machine made within it another may not; a reply that reached its length first is as long as asked."""
    values = {**limits, "max_time": 0.5}
    text = scripted(given=values, decode=values, finish=finish)
    assert "max_time" not in text
    assert ("# It was out of time after 1 token, so this ends there too." in text) == cut
    ((name, value),) = ({"max_new_tokens": 1} if cut else limits).items()
    assert f"{name}={value}" in text


@pytest.mark.parametrize(("context", "out"), [(3, False), (4, True)])
def test_a_full_context_is_no_lack_of_time(context, out):
    values = {"max_new_tokens": 9, "max_time": 0.5}
    record = replace(RECORD, decode=values, model=replace(RECORD.model, context=context))
    assert record.out_of_time == out
    assert ("cut after 0.5 s, /set max_time 1 allows more" in reply_figures(record)) == out
    assert (f"the context of {context} tokens is full" in reply_figures(record)) != out


def test_a_gguf_file_is_loaded_as_such():
    text = scripted(source=ModelSource("/models", gguf_file="tiny.gguf"))
    assert 'AutoTokenizer.from_pretrained("/models", gguf_file="tiny.gguf")' in text
    assert "quantization_config=GgufConfig(dequantize=True)" in text


def test_a_reused_cache_is_said_where_it_can_matter():
    """In float32 it makes no difference; a narrower format may decide a near tie otherwise."""
    narrow = replace(RECORD.model, dtype="bfloat16")
    assert "# 1 token came from the KV cache" not in scripted(usage=Usage(2, 1, 1))
    assert "# 1 token came from the KV cache" in scripted(usage=Usage(2, 1, 1), model=narrow)
    assert "dtype=torch.bfloat16" in scripted(model=narrow)


def test_an_older_record_is_written_out_in_full():
    """What was not recorded then is taken from the values in effect; nothing stands twice."""
    text = scripted(
        given={}, decode={"max_new_tokens": 9, "stop": ("a",), "top_k": 50, "overflow": "ask", "seed": None}
    )
    assert 'generate(**inputs, max_new_tokens=9, stop_strings=["a"], tokenizer=tokenizer)' in text


def test_a_record_from_elsewhere_adds_no_statement():
    """Names and versions come from a file, and a file may say anything."""
    evil = "float32\nimport os"
    text = scripted(
        model=replace(RECORD.model, dtype=evil),
        versions={"transformers": evil, "torch": "2"},
        load={**RECORD.load, evil: evil, "device": evil, "attention": evil, "quantize": evil},
        given={evil: 1, "max_new_tokens": 2},
        prefill=evil,
        system=evil,
    )
    assert [line for line in text.splitlines() if line.startswith("import")] == ["import torch"]


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text()))
def test_no_text_gets_out_of_its_quotes(message, lead, values):
    """Whatever was said, the script has the statements that it has for a plain word, and nothing unprintable."""

    def made(message: str, lead: str, values: dict) -> str:
        form = PromptForm(({"role": "user", "content": message},), {"add_generation_prompt": True})
        record = replace(RECORD, given={"max_new_tokens": 3, "sequence_bias": values}, prefill=lead + ".")
        return write_script(replace(REPLY, record=record), ModelSource("x"), form, None)

    def statements(text: str) -> list[str]:
        return [type(one).__name__ for one in ast.parse(text).body]

    text = made(message, lead, values)
    assert statements(text) == statements(made("a", "b", {}))
    assert all(character == "\n" or character.isprintable() for character in text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one), max_leaves=9))
def test_a_literal_reads_back(value):
    assert ast.literal_eval(literal(value)) == value


def test_long_prompts_keep_their_lines():
    """Several lines stand one below the other, and ids sixteen to a row."""
    form = PromptForm(
        ({"role": "user", "content": "first line of the message\n\n    third line, with space in front"},)
    )
    text = scripted(REPLY, form=form)
    assert '            "first line of the message\\n"\n            "\\n"\n            "    third line, ' in text
    told = ast.parse(scripted(form=PromptForm(ids=tuple(range(40))))).body[4]
    assert ast.literal_eval(told.value.args[0]) == [list(range(40))]


# the command


def test_a_question_without_an_answer_is_refused():
    talk = Conversation()
    asked, session = talk.add("user", "Hi", None), SimpleNamespace(conversation=talk, last=None)
    with pytest.raises(UsageError, match="no replies yet"):
        recipe.recorded_reply(session, 0)
    with pytest.raises(UsageError, match="exchange 1 has no record"):
        recipe.recorded_reply(session, 1)
    reply = talk.close(talk.add("assistant", "", asked.id), "Hello", "complete", RECORD)
    assert recipe.recorded_reply(session, 1) == (reply, RECORD)


def test_a_script_goes_into_a_file_and_replaces_none_unasked(gpt2_folder, tmp_path):
    with opened(gpt2_folder) as session:
        run(session, "/max 2", STORY)
        file = tmp_path / "story.py"
        written = run(session, f"/recipe {file}")
        assert file.read_text() == written.script == run(session, "/recipe").script
        with pytest.raises(UsageError, match="exists") as refused:
            run(session, f"/recipe {file}")
        file.write_text("")
        run(session, *refused.value.hints)
        assert file.read_text() == written.script
        with pytest.raises(UsageError, match=r"does not end in \.py"):
            run(session, "/recipe 2 story.txt")


def test_colours_change_no_letter():
    """Not even of strings that a lexer may trip over."""
    hard = '\'"""\' \\ {f"x"} # \x1b[31m /* '
    text = scripted(form=PromptForm(text=hard), given={"stop_strings": ['"""', "'"]})
    console = Console(width=300, file=io.StringIO(), theme=THEME, highlight=False)
    console.print(render(Recipe(2, text)))
    assert console.file.getvalue() == text


def test_the_model_of_a_reply_need_not_be_loaded(gpt2_folder, recurrent_folder, tmp_path):
    """Another model is in memory; where the files of the first are gone, its ids are enough."""
    folder = tmp_path / "moved"
    shutil.copytree(gpt2_folder, folder)
    with opened(folder) as session:
        done = run(session, "/max 2", STORY)
        here = run(session, "/recipe").script
        run(session, f"/model {recurrent_folder}")
        run(session, "/info")
        assert run(session, "/recipe").script == here
        shutil.rmtree(folder)
        script = run(session, "/recipe").script
        assert "# The prompt stands here as its ids: the tokenizer could not be read (" in script
        assert f"ids = torch.tensor([{[*done.prompt_ids]}], device=model.device)" in script
        assert f'folder = "{folder}"' in script


def test_the_built_in_model_stands_by_its_folder(tmp_path):
    record = replace(RECORD, model=ModelRecord("builtin", dtype="float32"))
    assert find_source(record, tmp_path) == ModelSource(str(tmp_path))
    record = replace(RECORD, model=ModelRecord("acme/tiny", commit="abc", dtype="float32"))
    assert find_source(record, tmp_path) == ModelSource("acme/tiny", "abc")
