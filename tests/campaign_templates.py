"""Real chat templates, three turns each: are the ids the library's own?

`HUB_REPL_TEMPLATES=FOLDER pytest -s -n 0 -m campaign tests/campaign_templates.py` goes through the `*.jinja` files of a
folder (the source package of llama-cpp-python has 70, under vendor/llama.cpp/models/templates). `HUB_REPL_TOKENIZERS`
names a folder of tokenizers, each a folder called like its family (qwen3, llama3, gemma, gpt-oss, deepseek): a template
takes the one whose family its name holds, else a small tokenizer with its own control tokens. Nothing is fetched.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import models
import pytest
from chats import library, said
from conftest import Recorder

from repl.analysis.template_checks import check_template
from repl.core.errors import ReplError
from repl.generation.decode.detokenizer import REASONING_FIELDS, Begun, Reading
from repl.generation.prompt.chat_template import THOUGHTS, Template, render_chat, variables

show = sys.stdout.write
TOKEN = re.compile(
    r"<[|\uff5c][^<>\s|\uff5c]{1,40}[|\uff5c]?>|<[^<>\s|\uff5c{}='\"/.]{1,30}\|>"
    r"|</?[a-z]+[a-z_:]*>|\[/?[A-Z][A-Z_]+\]|</?s>"
)
FAMILIES = {"qwen": "qwen3", "llama-3": "llama3", "gemma": "gemma", "gpt-oss": "gpt-oss", "deepseek": "deepseek"}
STOPS = {  # what ends a reply, from the generation configs of the models
    "GLM-4": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gpt-oss": ("<|return|>", "<|call|>"),
    "gemma-4": ("<turn|>", "<|tool_response>"),
    "gemma-2": ("<end_of_turn>",),
    "Apertus": ("<|assistant_end|>",),
    "Cohere": ("<|END_OF_TURN_TOKEN|>",),
    "Qwen": ("<|im_end|>",),
    "SmolLM3": ("<|im_end|>",),
    "Llama-3": ("<|eot_id|>", "<|eom_id|>"),
    "granite": ("<|end_of_text|>",),
    "DeepSeek": ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
    "LFM2": ("<|im_end|>",),
    "Kimi": ("<|im_end|>", "<|end_of_msg|>"),
    "Seed-OSS": ("<seed:eos>",),
    "Phi": ("<|end|>",),
    "GigaChat3.1": ("<|message_sep|>",),
    "Nemotron": ("<SPECIAL_12>", "<|im_end|>"),
}
USERS = [{"role": "user", "content": text} for text in ("How are you?", "What is 1 + 1? ", "And what then?")]
TYPED = {"role": "user", "content": "What do <think>, </think>, <|im_end|>, <|eot_id|> and [/INST] mean?"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Paris"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": CITY}}
RESULT = {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": "sunny"}


def folder(name: str) -> list[Path]:
    place = os.environ.get(name)
    return sorted(Path(place).iterdir()) if place else []


TEMPLATES = [path for path in folder("HUB_REPL_TEMPLATES") if path.suffix == ".jinja"]


def thought(source: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return how a family opens a thought, a reply with one as it is kept, and as the library is given it."""
    if "<|channel|>" in source:
        raw = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Two."
        plain = {"role": "assistant", "content": "Two.", "thinking": "Hm."}
        return "<|channel|>analysis<|message|>", said(raw, "Hm.", "Two."), plain
    tag = next((tag for tag, end in THOUGHTS.items() if tag in source or end in source), "<think>")
    raw = f"{tag}\nHm.\n{THOUGHTS[tag]}\n\nTwo."
    return tag, said(raw, "Hm.", "Two."), {"role": "assistant", "content": raw}


def talks(source: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return chats by name: as a conversation keeps them, and as the library is given them."""
    _, kept, plain = thought(source)
    answer, spoken = {"role": "assistant", "content": " Fine, \n"}, said(" Fine, \n", "", " Fine, \n")
    written = '<tool_call>\n{"name": "look", "arguments": {"city": "Paris"}}\n</tool_call>'
    call = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "abcdefghi"}]}
    one, two, three = USERS
    system = {"role": "system", "content": "Be kind."}
    return {
        "turn 1": ([one], [one]),
        "turn 2": ([one, spoken, two], [one, answer, two]),
        "turn 3": ([one, spoken, two, spoken, three], [one, answer, two, answer, three]),
        "system": ([system, one, spoken, two], [system, one, answer, two]),
        "thought 2": ([one, kept, two], [one, plain, two]),
        "thought 3": ([one, kept, two, kept, three], [one, plain, two, plain, three]),
        "typed": ([TYPED, kept, two], [TYPED, plain, two]),
        "call": ([one, call, RESULT], [one, call, RESULT]),
        "call 3": ([one, call, RESULT, spoken, two], [one, call, RESULT, answer, two]),
        "call as text": (
            [one, said(written), two],
            [one, {"role": "assistant", "content": written}, two],
        ),
    }


@lru_cache(8)
def real(family: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(next(path for path in folder("HUB_REPL_TOKENIZERS") if path.name == family))


def tokenizer_for(path: Path) -> Any:
    source = path.read_text("utf-8")
    named = next((name for start, name in FAMILIES.items() if start in path.name.lower()), "")
    if named in {one.name for one in folder("HUB_REPL_TOKENIZERS")}:
        tokenizer = real(named)
    else:
        found = sorted(set(TOKEN.findall(source)))
        plain = [one for one in found if "think" in one or "tool" in one]
        special = ["<s>", "</s>", *(one for one in found if one not in (*plain, "<s>", "</s>"))]
        tokenizer = models.byte_level(special, bos_token="<s>", eos_token="</s>")
        tokenizer.add_tokens(plain)
    tokenizer.chat_template = source
    return tokenizer


def attempt(work: Callable[[], Any]) -> list[int] | str:
    try:
        return list(work())
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"


def verdict(ours: list[int] | str, theirs: list[int] | str) -> str:
    if isinstance(theirs, str):
        return "refused" if isinstance(ours, str) else "folded"
    return "ok" if ours == theirs else f"DIFFERS {ours if isinstance(ours, str) else ''}"


def row(path: Path) -> Mapping[str, str]:
    """Try one template."""
    tokenizer = tokenizer_for(path)
    source = str(tokenizer.chat_template)

    def made(messages: Any, **options: Any) -> list[int]:
        values = {"tools": [TOOL]} if any("tool_calls" in one for one in messages) else {}
        return list(render_chat(tokenizer, messages, arguments=values, emit=Recorder(), **options).ids)

    found = {}
    for name, (kept, plain) in talks(source).items():
        tools = {"tools": [TOOL]} if any("tool_calls" in one for one in plain) else {}
        ours, theirs = attempt(lambda: made(kept)), attempt(lambda: library(tokenizer, plain, **tools))  # noqa: B023
        found[name] = verdict(ours, theirs)
    for turn in ("turn 1", "turn 3"):
        kept, plain = talks(source)[turn]
        chat = [*plain, {"role": "assistant", "content": "Sure, "}]
        theirs = attempt(lambda: library(tokenizer, chat, continue_final_message=True))  # noqa: B023
        found[f"prefill {turn[-1]}"] = verdict(attempt(lambda: made(kept, prefill="Sure, ")), theirs)  # noqa: B023
    tag = thought(source)[0]
    found["forced"] = forced(tokenizer, tag, attempt(lambda: made([USERS[0]], prefill=tag)))
    return found


def forced(tokenizer: Any, tag: str, ids: list[int] | str) -> str:
    """Tell whether a prompt ends in a thought that was opened by its own tokens."""
    if isinstance(ids, str):
        return "refused"
    wanted = tokenizer(tag, add_special_tokens=False)["input_ids"]
    tail = tokenizer.decode(ids[-len(wanted) - 1 :])
    whole = [ids[place : place + len(wanted)] for place in range(len(ids))]
    whole_tag = len(wanted) > 1 or wanted in whole[-len(wanted) - 1 :]  # by its id, where it has one
    return "ok" if tail.strip().endswith(tag) and whole_tag else f"DIFFERS {tail!r}"


@pytest.mark.campaign
@pytest.mark.skipif(not TEMPLATES, reason="HUB_REPL_TEMPLATES names no folder of templates")
def test_the_ids_are_the_library_s_for_every_template() -> None:
    wrong = []
    for path in TEMPLATES:
        found = row(path)
        counts = {kind: [name for name, one in found.items() if one == kind] for kind in ("ok", "folded", "refused")}
        bad = {name: one for name, one in found.items() if one.startswith("DIFFERS")}
        rest = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in counts.items() if names and kind != "ok")
        show(f"{path.stem[:42]:42} {len(counts['ok']):>2} of {len(found)} equal  {rest}  {bad or ''}\n")
        wrong += [path.stem] if bad else []
    assert not wrong


@pytest.mark.campaign
@pytest.mark.skipif(not TEMPLATES, reason="HUB_REPL_TEMPLATES names no folder of templates")
def test_what_is_found_out_about_every_template() -> None:
    """To be read by eye: variables and verdicts."""
    for path in TEMPLATES:
        tokenizer = tokenizer_for(path)
        show(f"\n{path.stem}: {', '.join(variables(tokenizer))}\n")
        try:
            template = Template(tokenizer, {}, Recorder())
            ends = next((ends for name, ends in STOPS.items() if name in path.stem), ("</s>",))
            for one in check_template(
                template, [one for one in map(tokenizer.convert_tokens_to_ids, ends) if one is not None]
            ):
                show(f"    {one.verdict:5} {one.name}: {one.reason}\n")
        except ReplError as error:
            show(f"    {error.message}\n")


# replies as templates write them, read back

THOUGHT, ANSWER = "Zebra ponders.", "Violet answer."
SHAPES = ({}, {"enable_thinking": True, "thinking": True, "think_render_option": "all", "preserve_thinking": True})
FIELDS = (REASONING_FIELDS, REASONING_FIELDS[:1])  # some templates refuse several names for a thought
BEHIND = ([], [RESULT], [USERS[1]])  # some leave the thought out of the last reply, some out of earlier ones
SIGN = re.compile(r"[<\[][^<>\[\]\s]*\Z")


def replies(tokenizer: Any, thinks: bool, calls: bool) -> Iterator[tuple[str, str]]:
    """Yield prompts, each with what the template writes behind it for a reply that thinks, calls a tool, or both."""
    for values, fields, behind, text in product(SHAPES, FIELDS, BEHIND, (False, True)):
        told: dict[str, Any] = dict.fromkeys(fields, THOUGHT) if thinks else {}
        arguments = json.dumps(CALL["function"]["arguments"]) if text else CALL["function"]["arguments"]
        called = {**CALL, "id": "abcdefghi", "function": {"name": "look", "arguments": arguments}}
        told |= {"tool_calls": [called]} if calls else {}
        reply = {"role": "assistant", "content": "" if calls else ANSWER, **told}
        options = {**values, "tools": [TOOL], "tokenize": False}
        try:
            prompt = tokenizer.apply_chat_template(USERS[:1], add_generation_prompt=True, **options)
            whole = tokenizer.apply_chat_template([USERS[0], reply, *behind], **options)
        except Exception:  # it does not take this shape
            continue
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
        shared = "".join(character for character, _ in same)
        shared = SIGN.sub("", shared) if shared != prompt else shared
        raw = whole[len(shared) :]
        if (not thinks or THOUGHT in raw) and (not calls or ("look" in raw and "Paris" in raw)):
            yield shared, raw


def read_back(path: Path, thinks: bool, calls: bool) -> str:
    """Tell whether a reply as the template writes it is read in its parts: ok, MISSED, or none where it writes none."""
    tokenizer = tokenizer_for(path)
    ends = next((ends for name, ends in STOPS.items() if name in path.stem), ())
    found = "none"
    for prompt, raw in replies(tokenizer, thinks, calls):
        for end in (*ends, str(tokenizer.eos_token)):
            raw = raw.partition(end)[0]
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        parts = Reading(tokenizer, ids, Begun("", ""), show).parts(raw, ())
        thought = parts.thinking == (THOUGHT if thinks else "")
        call = parts.tool_calls == (({"name": "look", "arguments": {"city": "Paris"}},) if calls else ())
        if thought and call and (calls or ANSWER in parts.answer):
            return "ok"
        found = "MISSED"
    return found


@pytest.mark.campaign
@pytest.mark.skipif(not TEMPLATES, reason="HUB_REPL_TEMPLATES names no folder of templates")
def test_what_templates_write_for_a_reply_is_read_back() -> None:
    """To be read by eye: some families write calls that nothing tells apart from an answer."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in TEMPLATES:
        for name, asked in {"thought": (True, False), "call": (False, True), "both": (True, True)}.items():
            found.setdefault((name, read_back(path, *asked)), []).append(path.stem)
    for (name, kind), stems in sorted(found.items()):
        show(f"{name:8} {kind:7} {len(stems):>3}  {', '.join(stems) if kind == 'MISSED' else ''}\n")
    assert len(found["thought", "ok"]) > len(found.get(("thought", "MISSED"), []))
