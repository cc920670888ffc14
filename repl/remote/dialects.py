"""The kinds of server: the settings each one supports and their names, its features, how it is recognised.

In come a server's model list and address, out comes one `Dialect`. An entry lists what the server's own
definition of a request names, in the source files beside it; other versions may differ. Only `transformers serve` runs
in the tests. Fields that are not listed are not sent, except to a server of an unknown kind: it is asked
for everything, and fields that it refuses are left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from repl.core.reply_format import Format

BASIC = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
WIDE = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
IN_CONFIG = ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
OPENAI_FIELDS = frozenset({"logit_bias", "reasoning_effort", "response_format", "service_tier", "user", "verbosity"})
SCHEMAS = frozenset({"logit_bias", "reasoning_effort", "response_format", "ignore_eos"})
BODY = "$"
"""Stands for the schema, expression or grammar in the fields that constrain a reply."""
Forms = Mapping[str, Mapping[str, object]]
SCHEMA_FORM: Forms = {
    "json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": BODY, "strict": True}}
    }
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server."""

    name: str
    heeds: Mapping[str, str]
    """The settings that it supports, each with its field in a request."""
    completes: Mapping[str, str] | None = None
    """The same for text completion, where that differs."""
    own: frozenset[str] = frozenset()
    """Further fields that `/set` passes on."""
    continues: Mapping[str, bool] | None = None
    """Fields that make it continue a last assistant message; None: it begins a new reply after it."""
    packed: tuple[str, ...] = ()
    """Settings that travel inside its field `generation_config`, as JSON."""
    alternatives: int = 20
    """Maximum number of alternatives for each token; 0: it returns no log-probabilities."""
    ids: tuple[str, ...] = ()
    """Where it streams token ids for `return_token_ids`: chat, text."""
    takes_ids: bool = False
    """Whether a prompt may be given as token ids, and `/detokenize` decodes ids."""
    facts: str = ""
    """A path beside `/v1` with the context length, where the model list lacks it."""
    forms: Forms = field(default_factory=dict)
    """The kinds of format that it supports in a chat, each with its fields."""
    text_forms: Forms = field(default_factory=dict)
    """The same for text completion."""
    template: bool = False
    """Whether it passes variables to the chat template."""

    def fields(self, chats: bool) -> Mapping[str, str]:
        """Return the supported settings with their fields."""
        return self.heeds if chats or self.completes is None else self.completes

    def form_fields(self, form: Format, chats: bool) -> dict[str, object] | None:
        """Return the fields that ask for a format; None where the server does not support it."""
        fields = (self.forms if chats else self.text_forms).get(form.kind)
        return None if fields is None else fill(fields, form.schema if form.kind == "json_schema" else form.body)


def fill(fields: Mapping[str, object], body: object) -> dict[str, object]:
    """Return fields with `BODY` replaced by a schema, expression or grammar."""
    return {
        name: body if value == BODY else fill(value, body) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }


VLLM_FORMS: Forms = {
    **SCHEMA_FORM,
    "regex": {"structured_outputs": {"regex": BODY}},
    **{kind: {"structured_outputs": {"grammar": BODY}} for kind in ("gbnf", "lark")},
}
VLLM = Dialect(  # vllm/entrypoints/openai/{chat_completion,completion}/protocol.py
    "vLLM",
    {**BASIC, **WIDE},
    own=SCHEMAS
    | {"stop_token_ids", "bad_words", "allowed_token_ids", "skip_special_tokens", "include_reasoning"}
    | {"thinking_token_budget", "truncate_prompt_tokens", "structured_outputs", "priority", "vllm_xargs"},
    continues={"continue_final_message": True, "add_generation_prompt": False},
    forms=VLLM_FORMS,
    text_forms=VLLM_FORMS,
    ids=("chat", "text"),
    takes_ids=True,
    template=True,
)
SGLANG_FORMS: Forms = {**SCHEMA_FORM, "regex": {"regex": BODY}, "gbnf": {"ebnf": BODY}}
SGLANG = Dialect(  # sglang/srt/entrypoints/openai/{protocol,serving_chat,serving_completions}.py
    "SGLang",
    {**BASIC, **WIDE},
    own=SCHEMAS
    | {"stop_token_ids", "stop_regex", "regex", "ebnf", "no_stop_trim", "skip_special_tokens", "separate_reasoning"}
    | {"custom_logit_processor", "custom_params", "lora_path"},
    continues={"continue_final_message": True},
    forms=SGLANG_FORMS,
    text_forms=SGLANG_FORMS,
    ids=("text",),  # its chat refuses return_token_ids together with stream
    takes_ids=True,
    template=True,
)
LLAMA = {"repetition_penalty": "repeat_penalty"}
LLAMA_FORMS: Forms = {"json_schema": {"json_schema": BODY}, "gbnf": {"grammar": BODY}}
LLAMA_CPP = Dialect(  # llama.cpp/tools/server/server-{schema,common,context,task}.cpp
    "llama.cpp",
    {**BASIC, "top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p", **LLAMA},
    own=SCHEMAS
    | {"grammar", "json_schema", "samplers", "n_keep", "min_keep", "repeat_last_n", "cache_prompt", "id_slot", "lora"}
    | {"mirostat", "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent", "top_n_sigma"}
    | {"xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"}
    | {"dry_sequence_breakers", "reasoning_format", "reasoning_budget_tokens", "t_max_predict_ms"},
    continues={"continue_final_message": True, "add_generation_prompt": False},  # older builds always continue
    forms=LLAMA_FORMS,
    text_forms=LLAMA_FORMS,
    alternatives=100,
    takes_ids=True,  # it returns ids with the log-probabilities
    facts="/props",
    template=True,
)
LLAMA_PYTHON = Dialect(  # llama_cpp/server/types.py; ignores names it does not know
    "llama-cpp-python",
    {**BASIC, "top_k": "top_k", "min_p": "min_p", "min_new_tokens": "min_tokens", **LLAMA},
    own=frozenset({"logit_bias", "response_format", "grammar", "mirostat_mode", "mirostat_tau", "mirostat_eta"}),
    forms={"json_schema": {"response_format": {"type": "json_object", "schema": BODY}}, "gbnf": {"grammar": BODY}},
    text_forms={"gbnf": {"grammar": BODY}},
)
OLLAMA = Dialect(  # ollama/openai/openai.go; whether it continues depends on each model's template
    "Ollama",
    BASIC,
    own=frozenset({"reasoning_effort", "response_format"}),
    facts="/api/ps",
    forms=SCHEMA_FORM,
)
# TGI gives presence_penalty another meaning
TGI_CHAT = {ours: theirs for ours, theirs in BASIC.items() if ours != "presence_penalty"}
TGI = Dialect(  # text-generation-inference/router/src/{lib,validation,infer/chat_template}.rs
    "TGI",
    TGI_CHAT,
    completes={**TGI_CHAT, "repetition_penalty": "repetition_penalty"},
    own=frozenset({"response_format"}),
    continues={},
    forms={
        "json_schema": {"response_format": {"type": "json_object", "value": BODY}},
        "regex": {"response_format": {"type": "regex", "value": BODY}},
    },
    alternatives=5,
    facts="/info",
)
TRANSFORMERS = Dialect(  # transformers/cli/serving/{utils,chat_completion,completion}.py
    "transformers serve",
    {"max_new_tokens": "max_tokens", "stop": "stop", "seed": "seed", "temperature": "temperature"}
    | {name: name for name in IN_CONFIG},
    own=frozenset({"logit_bias"}),
    packed=IN_CONFIG,
    alternatives=0,
    template=True,
)
OPENAI = Dialect(
    "OpenAI",
    BASIC,
    own=OPENAI_FIELDS | {"store", "metadata", "prompt_cache_key", "safety_identifier"},
    forms=SCHEMA_FORM,
)
# platform.openai.com/docs/guides/reasoning: these models refuse temperature, top_p, penalties and logprobs
OPENAI_REASONING = Dialect(
    "OpenAI's reasoning models",
    {"max_new_tokens": "max_completion_tokens", "stop": "stop", "seed": "seed"},
    own=OPENAI.own - {"logit_bias"},
    forms=SCHEMA_FORM,
    alternatives=0,
)
UNKNOWN = Dialect(
    "unknown",
    {**BASIC, **WIDE, "typical_p": "typical_p", "no_repeat_ngram_size": "no_repeat_ngram_size"},
    own=OPENAI_FIELDS,
    forms=SCHEMA_FORM,
    template=True,
)
DIALECTS = (VLLM, SGLANG, LLAMA_CPP, LLAMA_PYTHON, OLLAMA, TGI, TRANSFORMERS, OPENAI, UNKNOWN)
OWNERS = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "llamacpp": LLAMA_CPP,
    "me": LLAMA_PYTHON,
    "library": OLLAMA,  # the namespace of the models that Ollama itself publishes
    "openai": OPENAI,
    "openai-internal": OPENAI,
    "system": OPENAI,
}
OLLAMA_PORT = 11434
THINKERS = re.compile(r"(o\d|gpt-5|codex)(?!.*chat)")
CONTEXT_FIELDS = (
    ("max_model_len",),  # vLLM, SGLang
    ("meta", "n_ctx"),  # llama.cpp: of one slot
    ("context_length",),  # OpenRouter, Together
    ("context_window",),  # Groq
    ("max_context_length",),  # Mistral
    ("top_provider", "context_length"),
)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a server lists, and its context length in tokens, 0 where it is not told."""

    id: str
    context: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """The models of a server, and its kind."""

    offers: tuple[Offer, ...] = ()
    kind: Dialect = field(default=UNKNOWN)


def read_list(answer: object, url: str) -> Listing:
    """Read a model list; the kind of server follows from the owner of its models, or from its address."""
    found = answer.get("data") if isinstance(answer, Mapping) else answer
    entries = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    entries = [entry for entry in entries if str(entry.get("id") or "\n").isprintable()]
    offers = tuple(Offer(str(one["id"]), read_context(one)) for one in entries)
    return Listing(offers, recognise(entries, url))


def recognise(entries: Sequence[Mapping[str, object]], url: str) -> Dialect:
    """Return the kind of server from its model list and URL; TGI is a guess for `confirm` to check."""
    parts, first = urlsplit(url), entries[0] if entries else {}
    if (parts.hostname or "").endswith(("api.openai.com", ".openai.azure.com")):
        return OPENAI
    if kind := OWNERS.get(str(first.get("owned_by") or "")):
        return kind
    if isinstance(first.get("status"), Mapping):  # whether it is loaded: transformers serve
        return TRANSFORMERS
    if parts.port == OLLAMA_PORT:
        return OLLAMA
    return TGI if first and first.get("owned_by") == first.get("id") else UNKNOWN


def confirm(listing: Listing, facts: object) -> Listing:
    """Return a listing with the context lengths in the answer of `Dialect.facts`; without one TGI becomes unknown."""
    kind, known = listing.kind, facts if isinstance(facts, Mapping) else {}
    if kind is TGI:
        total = positive_int(known.get("max_total_tokens"))
        return Listing(_filled(listing.offers, {}, total), TGI if total else UNKNOWN)
    if kind is OLLAMA:
        running = known.get("models")
        models = [one for one in running if isinstance(one, Mapping)] if isinstance(running, list) else []
        return Listing(_filled(listing.offers, {str(one.get("name")): read_context(one) for one in models}, 0), kind)
    settings = known.get("default_generation_settings")
    every = positive_int(settings.get("n_ctx")) if isinstance(settings, Mapping) else 0
    return Listing(_filled(listing.offers, {}, every), kind)


def _filled(offers: Sequence[Offer], contexts: Mapping[str, int], every: int) -> tuple[Offer, ...]:
    return tuple(Offer(one.id, one.context or contexts.get(one.id, 0) or every) for one in offers)


def read_context(entry: Mapping[str, object]) -> int:
    """Return the context length in an entry of a model list, 0 where it has none."""
    for path in CONTEXT_FIELDS:
        value: object = entry
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if found := positive_int(value):
            return found
    return 0


def positive_int(value: object) -> int:
    """Return a value that is a positive int, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def dialect_of(kind: Dialect, model: str) -> Dialect:
    """Return the dialect for a model of a server: OpenAI's reasoning models have one of their own."""
    return OPENAI_REASONING if kind is OPENAI and THINKERS.match(model.rpartition("/")[2]) else kind
