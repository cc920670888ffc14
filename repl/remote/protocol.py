"""The OpenAI protocol: settings become fields of a request, streamed chunks become text, tokens and tool calls."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from repl.core import decoding
from repl.core.decoding import APART, BEAMS, SAMPLING
from repl.core.events import Token
from repl.core.reply_format import parse_format
from repl.core.settings import Decode, Settings
from repl.core.tool_calls import Call, call, value
from repl.generation.measure.token_text import TOP_K_STORED
from repl.remote.dialects import Dialect

DROPPABLE = (
    *("top_k", "min_p", "typical_p", "repetition_penalty", "repeat_penalty", "no_repeat_ngram_size", "min_tokens"),
    *("stream_options", "top_logprobs", "logprobs", "seed", "chat_template_kwargs", "return_token_ids"),
    *decoding.PENALTIES,
)
UNSAID = ("num_beams", "num_return_sequences", "max_length", *BEAMS)  # refused earlier, or without effect
SERVE_MAX_TOKENS = 1024  # default of `transformers serve` without a generation_config
ENDS = {"length": "length", "max_tokens": "length", "model_length": "length", "stop_sequence": "stop_string"}
BROKEN = ("error", "abort", "aborted", "network_error", "server_error", "insufficient_system_resource")
MAX_ALTERNATIVES = 101  # alternatives read for one token
MIN_LOGPROB = -9999.0  # servers' value for an impossible token

END: Mapping[str, object] = {"choices": []}
"""Stands for the `[DONE]` of a stream."""
TokenNumber = Callable[[Mapping[str, object]], int]
"""Returns the number of a token: its id, or a number below 0 where the server does not tell the id."""


# requests


def chosen_settings(settings: Settings) -> dict[str, object]:
    """Return the decoding settings that were chosen; in greedy decoding sampling settings do not count."""
    local = {name for name in APART if name != "seed"}
    own = {spot.name: getattr(settings.decode, spot.name) for spot in fields(Decode) if spot.name not in local}
    values = {name: value for name, value in own.items() if value not in (None, ())}
    prefixes = (decoding.PREFIX, decoding.SERVER)
    values |= {name: value for name, value in settings.extra if not name.startswith(prefixes) and value is not None}
    idle = SAMPLING if values.get("do_sample") is False else ()
    return {name: value for name, value in values.items() if name not in idle}


def prefixed_settings(settings: Settings, prefix: str) -> dict[str, object]:
    """Return the values set under names with a prefix, by the names without it."""
    return {name.removeprefix(prefix): value for name, value in settings.extra if name.startswith(prefix)}


def unheeded_settings(settings: Settings, kind: Dialect, chats: bool) -> list[str]:
    """Return the names of chosen settings that a server does not support."""
    values, heeds = chosen_settings(settings), kind.fields(chats)
    found = [name for name in values if name not in (*heeds, *UNSAID, "do_sample")]
    if values.get("do_sample") is False and "temperature" not in heeds:
        found.append("greedy")
    if chats and not kind.template:
        found += [decoding.PREFIX + name for name in prefixed_settings(settings, decoding.PREFIX)]
    return found + [name for name in prefixed_settings(settings, decoding.SERVER) if name not in kind.own]


def request_fields(settings: Settings, kind: Dialect, chats: bool) -> dict[str, object]:
    """Return the chosen settings as fields of a request; all others are left to the server."""
    values, heeds = chosen_settings(settings), kind.fields(chats)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    found = {heeds[name]: value for name, value in plain.items() if name in heeds and name not in kind.packed}
    if values.get("do_sample") is False and "temperature" in heeds:
        found["temperature"] = 0.0
    if kind.packed and (config := generation_config(values, kind)):
        found["generation_config"] = json.dumps(config)
    if count := alternatives_wanted(settings, kind):
        found |= {"logprobs": True, "top_logprobs": count} if chats else {"logprobs": count}
    if chats and kind.template and (variables := prefixed_settings(settings, decoding.PREFIX)):
        found["chat_template_kwargs"] = variables
    if ("chat" if chats else "text") in kind.ids:
        found["return_token_ids"] = True
    if text := settings.decode.format:
        found |= kind.form_fields(parse_format(text), chats) or {}
    return found | {
        name: value for name, value in prefixed_settings(settings, decoding.SERVER).items() if name in kind.own
    }


def generation_config(values: Mapping[str, object], kind: Dialect) -> dict[str, object]:
    """Return the `generation_config` for transformers serve; without do_sample a temperature has no effect."""
    config = {name: values[name] for name in kind.packed if name in values}
    draws = values.get("do_sample")
    if draws is not False and any(name in values for name in SAMPLING):
        draws = True
    if draws or (config and draws is not None):
        config["do_sample"] = draws
    if config and "max_new_tokens" not in values:  # the config would replace its own default by the library's 20
        config["max_new_tokens"] = SERVE_MAX_TOKENS
    return config


def alternatives_wanted(settings: Settings, kind: Dialect) -> int:
    """Return how many alternatives to ask for at each token; 0: no log-probabilities."""
    view = settings.view
    return min(max(view.logprobs, TOP_K_STORED if view.probs != "off" else 0), kind.alternatives)


def message_body(message: Mapping[str, Any]) -> dict[str, str]:
    """Return a message as it is sent: without its thinking."""
    parts = message.get("parts")
    return {"role": message["role"], "content": (parts.answer if parts else "") or message["content"]}


# answers


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A streamed token with its own text and its number, None where only the text is known.

    Where tokens share a character, a token's own text differs from the text it adds to the reply.
    """

    token: Token
    name: str
    number: int | None = None


def read_tokens(text: str, given: object, number: TokenNumber) -> list[StreamedToken]:
    """Return a piece of text as tokens, with log-probabilities where the server returns them."""
    try:
        found = list(read_logprobs(given, number)) if isinstance(given, Mapping) else []
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):  # an unknown form
        found = []
    if not found:
        return [StreamedToken(Token(text), text)] if text else []
    whole = "".join(one.name for one in found) == text
    # token texts may differ from the text: shared characters, special tokens
    texts = [one.name for one in found] if whole else [""] * (len(found) - 1) + [text]
    return [replace(one, token=replace(one.token, text=piece)) for piece, one in zip(texts, found, strict=True)]


def read_logprobs(given: Mapping[str, Any], number: TokenNumber) -> Iterator[StreamedToken]:
    """Yield the tokens in the `logprobs` of a chat or a completion, without their text, with their alternatives."""
    content = given.get("content")
    if isinstance(content, list):
        for one in content:
            yield _measured(one, one["logprob"], [(it, it["logprob"]) for it in one.get("top_logprobs") or ()], number)
        return
    words, logprobs = given.get("tokens") or (), given.get("token_logprobs") or ()
    tops = given.get("top_logprobs") or [{}] * len(words)
    for word, logprob, likeliest in zip(words, logprobs, tops, strict=False):
        pairs = [({"token": text}, value) for text, value in (likeliest or {}).items()]
        yield _measured({"token": word}, logprob or 0.0, pairs, number)


def _measured(
    one: Mapping[str, object], logprob: float, beside: Sequence[tuple[Mapping[str, object], float]], number: TokenNumber
) -> StreamedToken:
    """Return a token with the alternatives at its place, most likely first; numbers below 0 are not token ids."""
    found = [(number(it), str(it["token"]), read_nats(value)) for it, value in beside[:MAX_ALTERNATIVES]]
    top = tuple(sorted(found, key=lambda entry: -entry[2]))
    own = number(one)
    return StreamedToken(Token("", own if own >= 0 else None, read_nats(logprob), None, top), str(one["token"]), own)


def read_nats(value: float) -> float:
    """Return a server's log-probability, at most 0; raises `ValueError`."""
    found = float(value)
    if math.isnan(found):
        raise ValueError("not a number")
    return min(max(found, MIN_LOGPROB), 0.0)


def read_ids(value: object) -> list[int]:
    """Return a server's list of token ids; empty for anything else."""
    found = value if isinstance(value, list) else []
    return [*found] if all(isinstance(one, int) and not isinstance(one, bool) for one in found) else []


def read_texts(delta: Mapping[str, object]) -> tuple[str, str, str]:
    """Return thinking, answer and refusal of a message or a delta; content may be a list of parts."""
    thoughts = [_text(delta.get("reasoning_content") or delta.get("reasoning"))]
    answers: list[str] = []
    refusals: list[str] = []
    content = delta.get("content")
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        if isinstance(part, Mapping):
            kind = str(part.get("type") or "text")
            place = thoughts if kind in ("thinking", "reasoning") else refusals if kind == "refusal" else answers
            place.append(_text(part.get(kind) if kind in part else part.get("text")))
    refusals.append(_text(delta.get("refusal")))
    return "".join(thoughts), "".join(answers), "".join(refusals)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "".join(_text(one.get("text")) for one in value if isinstance(one, Mapping))
    return value if isinstance(value, str) else ""


class Calls:
    """The tool calls of a reply, put together from the deltas in which they are streamed."""

    def __init__(self) -> None:
        self._found: dict[int, dict[str, str]] = {}

    def take(self, delta: Mapping[str, object]) -> bool:
        """Add the tool calls of a delta; tells whether it has any."""
        given = delta.get("tool_calls")
        for place, piece in enumerate(given if isinstance(given, list) else []):
            if isinstance(piece, Mapping):
                self._add(piece.get("index", place), piece.get("function"))
        self._add(0, delta.get("function_call"))
        return bool(given or delta.get("function_call"))

    def _add(self, index: object, function: object) -> None:
        if isinstance(function, Mapping):
            entry = self._found.setdefault(index if isinstance(index, int) else 0, {"name": "", "arguments": ""})
            for name in entry:
                entry[name] += _text(function.get(name))

    def all(self) -> tuple[Call, ...]:
        """Return the calls in their order."""
        return tuple(call(entry["name"], value(entry["arguments"])) for _, entry in sorted(self._found.items()))
