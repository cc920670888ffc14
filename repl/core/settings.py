"""Load, Decode and View: each setting is declared once; options, config keys, commands and help follow from it."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from repl.core.errors import UsageError
from repl.core.reply_format import FormatKind
from repl.core.values import (
    AnyText,
    BiasList,
    Choice,
    Device,
    Flag,
    Integer,
    Kind,
    MaxMemory,
    Number,
    OneOf,
    Options,
    Strings,
    WordList,
    did_you_mean,
)

DTYPE_ALIASES = {
    "fp32": "float32",
    "f32": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}
SHADED = {"probability": "on", "yes": "on", "true": "on", "no": "off", "false": "off"}
ON_OFF_NEVER = OneOf("on, off or never", (Flag(), Choice(("never",))))
SHARE = Number(above=0, most=1)
THINK_OPTIONS = {
    **{"temperature": Number(above=0), "top_k": Integer(0), "top_p": SHARE, "min_p": Number(least=0, most=1)},
    **{"typical_p": SHARE, "max": Integer(1)},
}
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def setting(default: object, kind: Kind, help: str, **off: Any) -> Any:
    """Declare a setting; the keyword `off` is the value that the word `none` stands for, if any."""
    return field(default=default, metadata={"kind": kind, "help": help, **off})


@dataclass(frozen=True, slots=True)
class Load:
    """How a model is loaded; changing one of these loads it again."""

    model: str = setting(
        "builtin",
        AnyText("a Hub id, a folder, a .gguf file or builtin"),
        "Hub id, local folder, .gguf file, or builtin",
    )
    revision: str = setting("main", AnyText("a branch, tag or commit"), "branch, tag or commit on the Hub")
    dtype: str = setting(
        "auto",
        Choice(("auto", "float32", "bfloat16", "float16"), DTYPE_ALIASES),
        "dtype of the weights; auto is the one they are stored in",
    )
    device: str = setting("auto", Device(), "device, or device map, that the weights are loaded to")
    max_memory: str = setting("", MaxMemory(), "memory limit for each device, such as 0=20GiB,cpu=48GiB")
    quantize: str = setting(
        "none",
        Choice(("none", "int8", "int4", "8bit", "4bit")),
        "quantize the weights: int8, int4, or 8bit, 4bit by bitsandbytes",
    )
    adapter: str = setting(
        "none",
        AnyText("an id or a folder, optionally followed by merge; or none", lambda: ["none"]),
        "PEFT adapter (LoRA) to apply; `merge` after it merges the weights",
    )
    attention: str = setting("auto", Choice(ATTENTION), "attention implementation")
    gguf_file: str = setting("", AnyText("a file name"), "GGUF file in the model's repository")
    trust_remote_code: bool = setting(False, Flag(), "run Python code from the repository of this model")
    allow_pickle: bool = setting(False, Flag(), "load pickled weights (tensors only) if there are no safetensors")
    offload_folder: str = setting("", AnyText("a folder"), "folder for weights offloaded to disk")

    def __str__(self) -> str:
        """Return the model as it is asked for, in quotes: with its revision and file."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return repr(self.model + revision + (f":{self.gguf_file}" if self.gguf_file else ""))


@dataclass(frozen=True, slots=True)
class Decode:
    """How text is generated; None leaves a value to the model's generation config. Changes apply to the next reply."""

    max_new_tokens: int | None = setting(None, Integer(1, of="tokens"), "maximum length of a reply")
    max_length: int | None = setting(None, Integer(1, of="tokens"), "maximum length of prompt and reply together")
    min_new_tokens: int | None = setting(None, Integer(0, of="tokens"), "minimum length of a reply", off=0)
    do_sample: bool | None = setting(
        None, Flag(), "sample from the distribution instead of taking the most likely token", off=False
    )
    num_beams: int | None = setting(
        None, Integer(1, 1000, of="beams"), "number of beams in beam search; 1 turns it off", off=1
    )
    num_return_sequences: int | None = setting(
        None, Integer(1, 1000, of="sequences"), "number of replies generated for each prompt", off=1
    )
    length_penalty: float | None = setting(
        None, Number(), "above 0 beam search favours longer replies, below 0 shorter", off=0.0
    )
    early_stopping: bool | str | None = setting(
        None, ON_OFF_NEVER, "on: end beam search once num_beams hypotheses are finished", off=False
    )
    temperature: float | None = setting(
        None, Number(above=0), "below 1 sharpens the distribution, above 1 flattens it", off=1.0
    )
    top_k: int | None = setting(
        None, Integer(0, of="tokens"), "sample from the K most likely tokens only; 0 turns it off", off=0
    )
    top_p: float | None = setting(None, SHARE, "sample from the most likely tokens up to this probability", off=1.0)
    min_p: float | None = setting(
        None, Number(least=0, most=1), "drop tokens below this fraction of the top probability; 0 turns it off", off=0.0
    )
    typical_p: float | None = setting(
        None, SHARE, "locally typical sampling with this total probability; 1 turns it off", off=1.0
    )
    repetition_penalty: float | None = setting(
        None, Number(above=0), "above 1 makes tokens that occurred before less likely", off=1.0
    )
    no_repeat_ngram_size: int | None = setting(
        None, Integer(0, of="tokens"), "no n-gram of this length occurs twice; 0 turns it off", off=0
    )
    stop: tuple[str, ...] | None = setting(None, Strings(), "strings that end a reply", off=())
    format: str = setting("", FormatKind(), "what a reply must be: fields, a JSON Schema, /regex/ or a grammar", off="")
    ban: tuple[str, ...] | None = setting(None, WordList(), "words and phrases that no reply may contain", off=())
    boost: tuple[tuple[str, float], ...] | None = setting(
        None, BiasList(), "words made more or less likely: a number is added to their logits", off=()
    )
    think: tuple[tuple[str, Any], ...] | None = setting(
        None, Options(kinds=THINK_OPTIONS), "sampling inside a thought, and how many tokens it may have", off=()
    )
    seed: int | None = setting(
        None, Integer(0, 2**63 - 1), "random seed of sampling; without it every reply has a new one", off=None
    )
    overflow: str = setting(
        "ask", Choice(("ask", "stop", "drop_oldest")), "what happens when the conversation exceeds the context"
    )
    reuse: bool = setting(True, Flag(), "keep the KV cache between turns, so that only new tokens are computed")
    prompt_lookup: int = setting(
        0,
        Integer(0, 100, zero="off", of="tokens"),
        "speculative decoding: tokens to propose from the text so far",
        off=0,
    )
    assistant: str = setting(
        "none",
        AnyText("an id or a folder, or none", lambda: ["none"]),
        "speculative decoding: a smaller model that proposes tokens",
    )


@dataclass(frozen=True, slots=True)
class View:
    """How replies are shown and how the program behaves."""

    mode: str = setting(
        "auto",
        Choice(("auto", "chat", "complete")),
        "use the chat template, or complete text; auto depends on the model",
    )
    markdown: bool = setting(True, Flag(), "render replies as Markdown")
    thinking: str = setting(
        "fold", Choice(("show", "fold", "hide")), "reasoning before an answer: shown dim, folded to one line, or hidden"
    )
    probs: str = setting(
        "off", Choice(("off", "on", "entropy"), SHADED), "colour tokens by probability (on) or by entropy"
    )
    stats: bool = setting(True, Flag(), "statistics after each reply: tokens, time, speed")
    theme: str = setting("dark", Choice(("dark", "light", "mono")), "colours for a dark or a light terminal, or none")
    accessible: bool = setting(False, Flag(), "for screen readers: plain lines, no redrawing, tables as lines")
    editing_mode: str = setting("emacs", Choice(("emacs", "vi")), "key bindings of the line editor")
    logprobs: int = setting(
        0, Integer(0, 100, of="tokens"), "record log-probabilities and this many alternatives for each token"
    )
    keep_models: int = setting(
        0, Integer(1, zero="auto", of="models"), "how many models stay in memory; auto: as many as fit"
    )


BUILT_IN_NAME = "SmolLM2-135M-Instruct"
SPECS: dict[str, Any] = {"load": Load, "decode": Decode, "view": View}
Extra = tuple[tuple[str, Any], ...]


@cache
def places() -> dict[str, str]:
    """Return which part (load, decode, view) each setting belongs to."""
    return {spot.name: part for part, spec in SPECS.items() for spot in fields(spec)}


def setting_kind(name: str) -> Kind:
    """Return the kind of a setting's value."""
    kind: Kind = declared_field(name).metadata["kind"]
    return kind


def declared_field(name: str) -> Field[object]:
    """Return the field that declares a setting."""
    spot: Field[object] = SPECS[places()[name]].__dataclass_fields__[name]
    return spot


def help_of(name: str) -> str:
    """Return the help of a setting: one line."""
    return str(declared_field(name).metadata["help"])


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, immutable, with the origin of each value that is not a default."""

    load: Load = Load()
    decode: Decode = Decode()
    view: View = View()
    extra: Extra = ()  # other fields of GenerationConfig, set by name
    origins: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """Return the value of a setting; None where a decoding value is left to the model."""
        return getattr(getattr(self, places()[name]), name)

    def put(self, name: str, value: object, origin: str) -> "Settings":
        """Return a copy with one value; `max_new_tokens` and `max_length` reset each other."""
        part = places()[name]
        other = {"max_new_tokens": "max_length", "max_length": "max_new_tokens"}.get(name, "")
        cleared = {other: None} if other and value is not None else {}
        spec = replace(getattr(self, part), **{name: value}, **cleared)
        origins = {key: word for key, word in self.origins.items() if key not in (name, *cleared)}
        return replace(self, **{part: spec}, origins={**origins, name: origin})

    def reset(self, name: str) -> "Settings":
        """Return a copy with one setting at its default."""
        bare = self.put(name, declared_field(name).default, "default")
        kept = {key: word for key, word in bare.origins.items() if key != name}
        return replace(bare, origins=kept)

    def __iter__(self) -> Iterator[str]:
        yield from places()


def read_setting(name: str, word: str) -> Any:
    """Read the value of a setting from a word, `none` for off; raises `UsageError`."""
    if word.strip().lower() == "none":
        if "off" in declared_field(name).metadata:
            return declared_field(name).metadata["off"]
        if name in ("max_new_tokens", "max_length"):
            raise UsageError(f"{name} cannot be none: every reply needs a limit on its length", f"/{name} 2048")
    try:
        return setting_kind(name).read(word)
    except UsageError as error:
        colon = "" if error.message.startswith("'") else ":"  # most begin with the word that is wrong
        hints = error.hints[:1] or (f"/{name} {examples(name)[0]}",)
        raise UsageError(f"{name}{colon} {error.message}", *hints, f"/help {name}") from None


def examples(name: str) -> tuple[str, ...]:
    """Return two example values of a setting, preferably other than its default."""
    usual = show_setting(name, declared_field(name).default)
    return EXAMPLES.get(name) or tuple(sorted(setting_kind(name).complete(), key=lambda word: word == usual)[:2])


def related(name: str) -> list[str]:
    """Return the other settings of the same group."""
    return next([other for other in group if other != name] for group in GROUPS.values() if name in group)


def in_shell(line: str, model: str = "") -> str:
    """Return the shell command for a line at the prompt; `model` is the one named on the command line."""
    command, _, rest = line.partition(" ")
    name = command.removeprefix("/")
    if not line.startswith("/"):
        return line
    if name == "help":
        return "hub-repl --help"
    if name == "guide":
        return f"hub-repl guide {rest}".strip()
    if name == "model" and rest:
        words = [f"--{word.replace('_', '-').replace('=', ' ', 1)}" if "=" in word else word for word in rest.split()]
        return " ".join(["hub-repl", *words])
    if (full := SHORT_NAMES.get(name, name)) in places() and rest:
        return f"--{full.replace('_', '-')} {rest}"
    return " ".join(["hub-repl", *([shlex.quote(model)] if model else []), "-c", shlex.quote(line)])


def address(text: str) -> list[tuple[str, str]]:
    """Split `id@revision` and `id:file.gguf` into settings; settings that belong to the previous model are reset."""
    name, _, file = text.rpartition(":") if text.lower().endswith(".gguf") else (text, "", "")
    if len(name) < 2:  # no colon, or the one of a Windows drive
        name, file = text, ""
    name, _, revision = name.partition("@")
    parts = {"revision": revision, "gguf_file": file, "trust_remote_code": ""}
    return [("model", name), *((key, value or "default") for key, value in parts.items())]


def full_name(id: str) -> str:
    """Return an id as it is shown where it stands alone: the built-in model by its real name."""
    return f"{BUILT_IN_NAME} (built in)" if id == "builtin" else id


def short_id(model: str) -> str:
    """Return a model's name for the screen: the built-in model's real name, the last part of a path, else the id."""
    if model == "builtin":
        return BUILT_IN_NAME
    return Path(model).name if Path(model).is_absolute() else model


def show_setting(name: str, value: object) -> str:
    """Return a setting's value as text; '' where it is unset."""
    return "" if value is None or value == "" else setting_kind(name).show(value)


EXAMPLES = {
    **{"model": ("gpt2", "builtin"), "revision": ("main", "v1.0"), "adapter": ("./lora", "./lora merge")},
    **{"gguf_file": ("model-Q4_K_M.gguf", "model-Q8_0.gguf"), "offload_folder": ("./offload", "~/offload")},
    **{"max_new_tokens": ("256", "50"), "max_length": ("2048", "50"), "min_new_tokens": ("16", "none")},
    **{"temperature": ("0.7", "1.2"), "top_k": ("50", "none"), "top_p": ("0.9", "0.95"), "min_p": ("0.05", "0.1")},
    **{"typical_p": ("0.95", "0.2"), "seed": ("1", "none"), "stop": ("###", '"\\n\\n" "User:"')},
    **{"num_beams": ("4", "1"), "num_return_sequences": ("2", "4"), "length_penalty": ("1.0", "2.0")},
    **{"repetition_penalty": ("1.1", "1.3"), "no_repeat_ngram_size": ("3", "none")},
    "format": ("name, age int", "off"),
    **{"ban": ('"delve", "As an AI"', "off"), "boost": ('" Paris" +2', "off")},
    "think": ("temperature=1.0 max=400", "off"),
    **{"prompt_lookup": ("10", "off"), "logprobs": ("5", "0"), "keep_models": ("2", "auto")},
}
"""Two example values for each setting whose kind offers no good ones."""
GROUPS = {
    "loading": ("model", "revision", "gguf_file", "dtype", "quantize", "attention", "adapter"),
    "devices": ("device", "max_memory", "offload_folder"),
    "trust": ("trust_remote_code", "allow_pickle"),
    "length": ("max_new_tokens", "max_length", "min_new_tokens", "stop", "overflow"),
    "sampling": ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "think"),
    "repetition": ("repetition_penalty", "no_repeat_ngram_size"),
    "constraints": ("format", "ban", "boost"),
    "beam search": ("num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
    "faster decoding": ("reuse", "prompt_lookup", "assistant"),
    "replies": ("mode", "thinking", "markdown", "probs", "stats", "logprobs"),
    "program": ("theme", "accessible", "editing_mode", "keep_models"),
}
"""All settings by topic, in the order in which they are shown."""
ALIASES = {"temp": "temperature", "max": "max_new_tokens", "penalty": "repetition_penalty"}
"""Short names of settings."""
SHORT_NAMES = {**ALIASES, "beams": "num_beams"}
"""Short names in options and `name=value` words; at the prompt `/beams` is a command."""


def find_setting(name: str) -> str:
    """Return the full name of a setting typed with hyphens or in part; raises `UsageError` with the nearest name."""
    wanted = name.replace("-", "_").lower()
    wanted = ALIASES.get(wanted, wanted)
    names = list(places())
    if wanted in names:
        return wanted
    starts = [candidate for candidate in names if candidate.startswith(wanted)]
    if wanted and len(starts) == 1:
        return starts[0]
    if starts:
        raise UsageError(f"{name!r} could be {', '.join(starts)}")
    raise UsageError(f"no setting {name!r}{did_you_mean(wanted, names)}", "/settings")
