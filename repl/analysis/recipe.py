"""A recorded reply as a short script for transformers alone, which makes the same token ids."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repl.core.conversation import Conversation, Turn, message
from repl.core.decoding import APART, BEAMS, LENGTH_LIMITS, OURS, WARPERS
from repl.core.errors import UsageError
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.parts import Parts
from repl.core.reply import WARPS_NOTHING, Reply, named_warpers
from repl.core.reply_format import JSON_OPTIONS, parse_format
from repl.core.sanitize import clean_line
from repl.generation.prompt.chat_template import Template, fold_system_text
from repl.generation.prompt.reply_parser import AnyMessage, marking_tokens
from repl.models.adapters import Adapter
from repl.models.memory.available import max_memory

LINE_WIDTH, IDS_PER_ROW = 92, 16
LEADING_NAMES = (*LENGTH_LIMITS, "num_beams", "do_sample")  # the order in which people write them
FORM = ("return_dict_in_generate", "output_")  # beginnings of fields that only change the form of what comes back
OBJECTS = {"compile_config": "CompileConfig", "watermarking_config": "WatermarkingConfig"}
"""Fields of the generation config that hold an object, with its class."""
FORM_CODE = '''
class Form(LogitsProcessor):
    """Lets only tokens through that a grammar allows."""

    def __init__(self, grammar, start, begun=()):
        ends = model.generation_config.eos_token_id
        wrapped = hf.from_tokenizer(tokenizer, eos_token=[ends] if isinstance(ends, int) else ends)
        self.matcher, self.start = llguidance.LLMatcher(wrapped, grammar), start
        for ids in begun:  # what the reply begins with, where that fits the form
            if self.matcher.try_consume_tokens(ids) == len(ids):
                break
            self.matcher = llguidance.LLMatcher(wrapped, grammar)

    def __call__(self, ids, scores):
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for row, made in enumerate(ids[:, self.start :].tolist()):
            matcher = self.matcher.deep_copy()
            matcher.consume_tokens(made)
            mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
            bits = (mask[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: scores.shape[1]]
            allowed[row, : len(bits)] = bits.bool().to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)
'''.strip().splitlines()
"""What holds a reply to its form."""
QUANTIZATION_CODE = {
    "8bit": "BitsAndBytesConfig(load_in_8bit=True)",
    "4bit": 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")',
}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a script loads the model from: a folder, or a repository with its commit."""

    name: str
    commit: str = ""
    gguf_file: str = ""
    kind: str = "AutoModelForCausalLM"
    """The library's class that loads it."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """One way to write a prompt: messages through the chat template, a text, or the very ids.

    `options` are arguments of the call that encodes, `behind` is written behind what the template makes.
    """

    messages: tuple[AnyMessage, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    behind: str = ""
    text: str = ""
    ids: tuple[int, ...] = ()
    why: str = "no plain call of the tokenizer is known to make them"
    """Why the ids stand there."""


def recorded_reply(talk: Conversation, last: Turn | None, number: int) -> tuple[Turn, Reply]:
    """Return the reply that a number means, 0 the last one, with its record; raises `UsageError`."""
    turn = talk.exchange(number) if number else last
    if turn is None:
        raise UsageError("no replies yet")
    if turn.record is None:
        raise UsageError(f"exchange {turn.exchange} has no record of how a reply was made", "/tree")
    if (server := turn.record.server) and not turn.record.token_ids:
        raise UsageError(f"exchange {turn.exchange} was made by {server}, which does not return token ids")
    if not server and not last_call(turn.record)[1]:
        raise UsageError(f"exchange {turn.exchange} was broken off before its first token", "/retry")
    return turn, turn.record


def last_call(record: Reply) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the last call was given and those that it made: a continued reply was made in several."""
    ids = record.prompt_ids + record.token_ids
    return ids[: record.usage.prompt], ids[record.usage.prompt :]


def sequence_place(record: Reply) -> int:
    """Return which of the sequences the reply is."""
    made = last_call(record)[1]
    return next((place for place, one in enumerate(record.sequences) if one.token_ids == made), 0)


def recorded_values(record: Reply) -> dict[str, Any]:
    """Return what a reply was made with, in the library's names; None switched off what the model's config sets."""
    older = {OURS.get(name, name): value for name, value in record.decode.items() if name not in APART}
    return dict(record.given) or {name: value for name, value in older.items() if value not in (None, (), [])}


def generate_arguments(record: Reply) -> dict[str, object]:
    """Return what `generate` has to be called with; a reply that was broken off, or out of time, ends where it did."""
    found = recorded_values(record)
    if _cut(record):
        found = {name: value for name, value in found.items() if name not in LENGTH_LIMITS}
        found["max_new_tokens"] = len(last_call(record)[1])
    found.pop("max_time", None)  # what fitted into it once need not fit again
    idle = (() if record.sampled else WARPERS, () if record.beams > 1 else BEAMS)
    found = {name: value for name, value in found.items() if name not in (*idle[0], *idle[1])}
    order = sorted(found, key=lambda name: LEADING_NAMES.index(name) if name in LEADING_NAMES else len(LEADING_NAMES))
    return {name: found[name] for name in order if name.isidentifier() and not name.startswith(FORM)}


def _cut(record: Reply) -> str:
    """Say what ended a reply at a moment, not at a token; empty where nothing did."""
    if record.finish in ("cancelled", "failed"):
        return "broken off"
    return "out of time" if record.out_of_time else ""


def spellings(talk: Conversation, turn: Turn, record: Reply) -> list[PromptForm]:
    """Return the ways to write the prompt of a reply, the most readable first; the ids themselves are the last."""
    ids = last_call(record)[0]
    asked = talk.turns[turn.parent or 0]
    if ids != record.prompt_ids:
        found = []
    elif asked.role == "prompt":
        found = [PromptForm(text=asked.text), PromptForm(text=asked.text, options={"return_token_type_ids": False})]
    else:
        said = [message(one.role, one.text, one.parts) for one in talk.path(asked.id) if one.id not in record.dropped]
        head = [message("system", record.system, Parts())] if record.system and 0 not in record.dropped else []
        chats: list[list[AnyMessage]] = [[*head, *said], *([fold_system_text([*head, *said])] if head else [])]
        found = [form for messages in chats for form in _chats(messages, record)]
    return [*found, PromptForm(ids=ids)]


def _chats(messages: Sequence[AnyMessage], record: Reply) -> Iterator[PromptForm]:
    """Yield the plain form first, then the one in which control tokens that a user typed are encoded as text."""
    form = PromptForm(tuple(messages), {**record.template, "add_generation_prompt": True})
    if record.prefill:
        begun = {"role": "assistant", "content": record.prefill}
        options = {**record.template, "continue_final_message": True}
        yield PromptForm((*messages, begun), options)
        yield PromptForm((*messages, begun), {**options, "sanitize_control_tokens": True})
        yield replace(form, behind=record.prefill)
        return
    yield form
    yield replace(form, options={**form.options, "sanitize_control_tokens": True})


def find_form(
    forms: Sequence[PromptForm], record: Reply, tokenizer: PreTrainedTokenizerBase, emit: JobContext
) -> PromptForm:
    """Return the first way to write a prompt that encodes to its ids; for the model thread."""
    ids = list(forms[-1].ids)
    for form in forms[:-1]:
        try:
            if form.messages:  # replies in the parts that the template reads
                read = Template(tokenizer, record.template, emit).read_messages(form.messages)
                form = replace(form, messages=tuple(read))
            if _encoded(tokenizer, form) == ids:
                return form
        except Exception:  # a template may raise anything; another form may do
            continue
    return forms[-1]


def _encoded(tokenizer: PreTrainedTokenizerBase, form: PromptForm) -> list[int]:
    """Return the ids of a prompt as the script will make them; none where the library makes more of it."""
    if not form.messages:
        made = tokenizer(form.text, **form.options)
    elif form.behind:
        text = tokenizer.apply_chat_template(list(form.messages), tokenize=False, **form.options)
        made = tokenizer(text + form.behind, add_special_tokens=False)
    else:
        made = tokenizer.apply_chat_template(list(form.messages), return_dict=True, **form.options)
    return list(made["input_ids"]) if set(made) <= {"input_ids", "attention_mask"} else []


def write_script(turn: Turn, source: ModelSource, form: PromptForm, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the program text for a reply; it prints what the reply says. For the model thread."""
    record = turn.record
    assert record is not None
    quantized = QUANTIZATION_CODE.get(str(record.load.get("quantize")), "")
    names = [source.kind, "AutoTokenizer"]
    names += ["BitsAndBytesConfig"] if quantized else ["GgufConfig"] if source.gguf_file else []
    names += [kind for name, kind in OBJECTS.items() if record.given.get(name)]
    names += ["LogitsProcessor"] if record.format else []
    adapted = ["import llguidance", "from llguidance import hf"] if record.format else []
    if (thought := record.thought) is not None and thought.differs:
        kinds = [kind for values in (thought.inside, thought.outside) for kind, _ in named_warpers(values)]
        names += dict.fromkeys([*kinds, *(["TopKLogitsWarper"] if thought.outside.get("do_sample") is False else [])])
    adapted += ["from peft import PeftModel"] if record.load.get("adapter", "none") != "none" else []
    imports = ["import torch", *adapted, f"from transformers import {', '.join(sorted(names))}"]
    blocks = [
        [*_remarks(turn, record, form), *imports],
        _loading(record, source, quantized),
        *([["", *FORM_CODE, ""]] if record.format else []),
        [*_inputs(form), *_form(record), *_generating(record), *_printing(turn, record, tokenizer)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _remarks(turn: Turn, record: Reply, form: PromptForm) -> list[str]:
    known = [(name, clean_line(record.versions[name])) for name in ("transformers", "torch") if name in record.versions]
    libraries = " and ".join(f"{name} {version}" for name, version in known)
    said = [f"exchange {turn.exchange} of a hub-repl session" + (f", recorded with {libraries}" if libraries else "")]
    if form.ids and last_call(record)[0] != record.prompt_ids:
        said.append("it goes on from the ids of the reply before, which are part of its prompt here")
    elif form.ids:
        said.append(f"the prompt stands here as its ids: {clean_line(form.why)}")
    if record.model.touched:
        said.append("the model was open in /python before, where it may have been changed: this loads it unchanged")
    if record.dropped:
        said.append(f"left out because the context was full: {counted(len(record.dropped), 'message')}")
    if cut := _cut(record):
        said.append(f"it was {cut} after {counted(len(last_call(record)[1]), 'token')}, so this ends there too")
    if record.usage.reused and record.model.dtype != "float32":
        reused = counted(record.usage.reused, "token")
        said.append(f"{reused} came from the cache of the reply before: near ties may fall otherwise")
    if (packed := str(record.load.get("quantize", "none"))) not in ("none", *QUANTIZATION_CODE):
        said.append(
            f"the weights were packed as {literal(packed)}, which this script does not do: other tokens may come"
        )
    return [f"# {one[0].upper()}{one[1:]}." for one in said]


def _loading(record: Reply, source: ModelSource, quantized: str) -> list[str]:
    load = record.load
    both = {"gguf_file": literal(source.gguf_file)} if source.gguf_file else {}
    both |= {"trust_remote_code": "True"} if load.get("trust_remote_code") else {}
    dtype = record.model.dtype
    exact = not quantized or load.get("dtype") != "auto"
    model = {
        "device_map": literal(load.get("device", "auto")),
        "dtype": f"torch.{dtype}" if exact and dtype.isidentifier() else '"auto"',
        "max_memory": literal(max_memory(load["max_memory"])) if load.get("max_memory") else "",
        "offload_folder": literal(load.get("offload_folder") or "") if load.get("offload_folder") else "",
        "attn_implementation": literal(load["attention"]) if load.get("attention", "auto") != "auto" else "",
        "quantization_config": "GgufConfig(dequantize=True)" if source.gguf_file else quantized,
    }
    name, named = literal(source.name), []
    if source.commit:
        named = [f"name, commit = {name}, {literal(source.commit)}"]
        name, both = "name", {"revision": "commit", **both}
    elif len(name) > 40:
        named, name = [f"folder = {name}"], "folder"
    words = {key: word for key, word in {**both, **model}.items() if word}
    return [
        *named,
        _call("tokenizer = AutoTokenizer.from_pretrained", name, **both),
        _call(f"model = {source.kind}.from_pretrained", name, **words),
        *_adapting(str(load.get("adapter", "none"))),
    ]


def _adapting(words: str) -> list[str]:
    """Return the lines that put an adapter on."""
    asked = Adapter.of(words)
    if not asked.name:
        return []
    path = Path(asked.name).expanduser()
    name, _, revision = (str(path.resolve()), "", "") if path.is_dir() else asked.name.partition("@")
    options = {"revision": literal(revision)} if revision else {}
    line = _call("model = PeftModel.from_pretrained", "model", literal(name), **options, autocast_adapter_dtype="False")
    return [line, *(["model = model.merge_and_unload(safe_merge=True)"] if asked.merge else [])]


def _inputs(form: PromptForm) -> list[str]:
    options = {name: literal(value) for name, value in form.options.items()}
    if form.ids:
        rows = [", ".join(map(str, form.ids[at : at + IDS_PER_ROW])) for at in range(0, len(form.ids), IDS_PER_ROW)]
        return [
            f"ids = torch.tensor([{_block('', rows, '[', ']')}], device=model.device)",
            'inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}',
        ]
    if not form.messages:
        encode = _call("inputs = tokenizer", literal(form.text), **options, return_tensors='"pt"')
        return [f"{encode}.to(model.device)"]
    messages = _block("messages = ", [_message(one) for one in form.messages], "[", "]")
    if form.behind:
        text = _call("text = tokenizer.apply_chat_template", "messages", **options, tokenize="False")
        encode = _call("inputs = tokenizer", "text", add_special_tokens="False", return_tensors='"pt"')
        return [messages, f"{text} + {literal(form.behind)}", f"{encode}.to(model.device)"]
    rest = {"return_dict": "True", "return_tensors": '"pt"'}
    encode = _call("inputs = tokenizer.apply_chat_template", "messages", **options, **rest)
    return [messages, f"{encode}.to(model.device)"]


def _message(said: AnyMessage) -> str:
    content = str(said["content"])
    lines = content.splitlines(keepends=True)
    if len(said) > 2 or len(lines) < 2 or len(content) < LINE_WIDTH // 2:
        return literal(dict(said))
    told = "".join(f"\n            {literal(line)}" for line in lines)
    return f'{{\n        "role": {literal(said["role"])},\n        "content": ({told}\n        ),\n    }}'


def _form(record: Reply) -> list[str]:
    """Return the lines that make what holds the reply to its form."""
    if record.format is None:
        return []
    form, made = parse_format(record.decode["format"]), last_call(record)[0][len(record.prompt_ids) :]
    if form.kind == "json_schema":
        call = "grammar = llguidance.LLMatcher.grammar_from_json_schema"
        grammar = _call(call, literal(form.body), overrides=literal(JSON_OPTIONS))
    else:
        grammar = f"grammar = llguidance.grammar_from({literal(form.kind)}, {literal(form.body)})"
    words = ["grammar", 'inputs["input_ids"].shape[1]']
    if record.prefill or made:
        encode = _call("tokenizer.encode", literal(record.prefill), add_special_tokens="False")
        return [
            grammar,
            f"begun, made = {encode}, {literal(list(made))}",
            _call("form = Form", *words, "[begun + made, made]"),
        ]
    return [grammar, _call("form = Form", *words)]


def _generating(record: Reply) -> list[str]:
    values = {name: literal(value) for name, value in generate_arguments(record).items()}
    for name in OBJECTS.keys() & values.keys():
        values[name] = f"{OBJECTS[name]}(**{values[name]})"
    if values.keys() & {"stop_strings", "token_healing"}:  # the library looks at text then
        values["tokenizer"] = "tokenizer"
    ran = {"form": record.format, "ban": record.taken_back, "think": record.thought}
    if names := [name for name, there in ran.items() if there]:
        values["logits_processor"] = f"[{', '.join(names)}]"
    if record.thought and record.thought.differs:  # the warpers are called by `think`
        values |= {name: literal(value) for name, value in WARPS_NOTHING.items()}
    seed = [] if record.seed is None else [f"torch.manual_seed({record.seed})"]
    return [*_banning(record), *_thinking(record), *seed, _call("output = model.generate", "**inputs", **values)]


def _banning(record: Reply) -> list[str]:
    """Return the lines that keep out what was taken back."""
    if not record.taken_back:
        return []
    return [
        "# Tokens that led to a banned phrase, by the number of ids before them.",
        f"banned = {literal(record.masked)}",
        "\n\ndef ban(ids, scores):",
        '    scores[:, banned.get(ids.shape[1], [])] = -float("inf")',
        "    return scores\n\n",
    ]


def _thinking(record: Reply) -> list[str]:
    """Return the lines that decode a thought with settings of its own, and close it where it was too long."""
    if (found := record.thought) is None:
        return []
    start = record.usage.prompt
    lengths = sorted(start + place - 1 for place in found.places)
    whole = bool(lengths) and lengths == [*range(lengths[0], lengths[-1] + 1)]
    inside = f"range({lengths[0]}, {lengths[-1] + 1})" if whole else literal(set(lengths) or [])
    warpers = [_warpers(values) if found.differs else "[]" for values in (found.inside, found.outside)]
    return [
        "# Inside of the thought, by the number of ids before a token, other settings hold than after it.",
        f"thought, closing = {inside}, {literal({start + place: token for place, token in found.forced})}",
        f"within, after = {', '.join(warpers)}",
        "\n\ndef think(ids, scores):",
        "    if ids.shape[1] in closing:",
        "        return torch.full_like(scores, -torch.inf).index_fill(",
        "            1, torch.tensor([closing[ids.shape[1]]], device=scores.device), 0.0",
        "        )",
        "    for warp in within if ids.shape[1] in thought else after:",
        "        scores = warp(ids, scores)",
        "    return scores\n\n",
    ]


def _warpers(values: Mapping[str, Any]) -> str:
    calls = [f"{kind}({literal(value)})" for kind, value in named_warpers(values)]
    return f"[{', '.join(calls)}]" if values.get("do_sample") is not False else "[TopKLogitsWarper(1)]"


def _printing(turn: Turn, record: Reply, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return the lines that print the text of a reply: with the spaces that it has, and the tags around its parts."""
    place, first = sequence_place(record), len(record.prompt_ids)
    tidies = getattr(tokenizer, "clean_up_tokenization_spaces", False)  # a reply here keeps spaces before punctuation
    kept = {"clean_up_tokenization_spaces": False} if tidies else {}
    words = "".join(f", {name}={value}" for name, value in kept.items())
    if turn.role == "completion":  # the whole text, prompt and all
        return [f"print(tokenizer.decode(output[{place}], skip_special_tokens=True{words}))"]
    length = len(record.token_ids) - (record.finish == "stop")  # the token that ended it adds no text
    marks, lead = False, record.prefill
    if tokenizer is not None:
        marks = not marking_tokens(tokenizer).keys().isdisjoint(record.token_ids)
        made = tokenizer.decode(record.token_ids[:length], skip_special_tokens=not marks, **kept)
        lead = turn.text.removesuffix(made) if turn.text.endswith(made) else lead
    lead = f"{literal(lead)} + " if lead else ""
    if marks:
        return [
            "# Special tokens stand around the parts of the reply.",
            f"reply = output[{place}, {first} : {first + length}]",
            f"print({lead}tokenizer.decode(reply{words}))",
        ]
    start = 'inputs["input_ids"].shape[1]' if last_call(record)[0] == record.prompt_ids else str(first)
    return [
        f"reply = output[{place}, {start}:]",
        f"print({lead}tokenizer.decode(reply, skip_special_tokens=True{words}))",
    ]


def _call(function: str, *plain: str, **named: str) -> str:
    return _block(function, [*plain, *(f"{name}={word}" for name, word in named.items())])


def _block(head: str, items: Sequence[str], begin: str = "(", end: str = ")") -> str:
    """Write items behind a head, in one line where they fit, else each in a line of its own."""
    line = f"{head}{begin}{', '.join(items)}{end}"
    return line if len(line) <= LINE_WIDTH else head + begin + "\n" + "".join(f"    {one},\n" for one in items) + end


def literal(value: object) -> str:
    """Return a value as Python writes it, texts in double quotes; what is not printable is escaped."""
    match value:
        case str():
            word = repr(value)
            return f'"{word[1:-1]}"' if word[0] == "'" and '"' not in word and "\\'" not in word else word
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case dict():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(literal, value)) + "]"
        case _:
            return repr(value)
