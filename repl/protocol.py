"""The OpenAI protocol: settings become its parameters, what a server says becomes tokens and errors of ours."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

from repl import decoding, thinking
from repl.decoding import PENALTIES, Base
from repl.errors import Failed, NotFound, Overflow, ReplError, UsageError
from repl.events import Token
from repl.kinds import nearest
from repl.meter import KEPT
from repl.settings import Settings

SAMPLING = ("temperature", "top_p", *PENALTIES)  # what every server takes
EXTRAS = {  # what some servers take beyond the protocol: our name, theirs
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "min_new_tokens": "min_tokens",
}
LLAMA = {"repetition_penalty": "repeat_penalty"}
DIALECTS: Mapping[str, Mapping[str, str]] = {"llamacpp": LLAMA, "me": LLAMA}
"""By who serves a model, as servers list it: llama.cpp and its Python package ignore names they do not know."""
MOST = 20  # alternatives for each token that servers give at most
BEYOND = (*EXTRAS.values(), *LLAMA.values())
DROPPABLE = (*BEYOND, "stream_options", "top_logprobs", "logprobs", "seed", "chat_template_kwargs", *PENALTIES)
WORDS = 300  # characters shown of what a server says
FULL = ("context length", "context_length", "maximum context", "too long", "context window")


class Refused(Exception):
    """An answer that is no success: its status, what it says, and how long it asks to wait."""

    def __init__(self, status: int, words: str, wait: str) -> None:
        super().__init__(words)
        self.status, self.words, self.wait = status, words, wait


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a server lists: whose software serves it, and its context in tokens, 0 where that is not said."""

    id: str
    owner: str = ""
    context: int = 0


def listed(answer: Any) -> tuple[Offer, ...]:
    """Read the list of models."""
    found = answer.get("data") if isinstance(answer, Mapping) else answer
    entries = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    return tuple(
        Offer(str(entry["id"]), str(entry.get("owned_by") or ""), whole(entry.get("max_model_len")))
        for entry in entries
        if str(entry.get("id") or "\n").isprintable()
    )


def parameters(settings: Settings, base: Base, chats: bool) -> dict[str, Any]:
    """Return the decoding settings under the names of the protocol; what is not set is left to the server."""
    values = {name: item.value for name, item in decoding.effective(settings, base).items()}
    found: dict[str, Any] = {"max_tokens": values.get("max_new_tokens")}
    if values.get("do_sample"):
        found |= {name: values.get(name) for name in SAMPLING}
        found |= {theirs: values.get(name) for name, theirs in EXTRAS.items()}
    else:
        found |= {"temperature": 0.0} | {name: values.get(name) for name in PENALTIES}
        kept = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
        found |= {EXTRAS[name]: values.get(name) for name in kept}
    found |= {"stop": list(values.get("stop") or ()) or None, "seed": values.get("seed")}
    if count := wanted(settings):
        found |= {"logprobs": True, "top_logprobs": count} if chats else {"logprobs": count}
    length = len(decoding.PREFIX)
    variables = {name[length:]: value for name, value in settings.extra if name.startswith(decoding.PREFIX)}
    found["chat_template_kwargs"] = variables if chats and variables else None
    return {name: value for name, value in found.items() if value is not None}


def wanted(settings: Settings) -> int:
    """Return how many alternatives a server is asked for at each token; 0: for no log-probabilities at all."""
    return min(max(settings.view.logprobs, KEPT if settings.view.probs != "off" else 0), MOST)


def plain(message: Mapping[str, Any]) -> dict[str, str]:
    """Return a message as it is sent: what was thought before an answer is not part of the talk."""
    content = message["content"]
    if message["role"] == "assistant":
        content = thinking.split(thinking.Marks(), [(content, None)])[1].lstrip("\n") or content
    return {"role": message["role"], "content": content}


def scored(text: str, given: Any) -> list[tuple[Token, str]]:
    """Return a piece of text as tokens with their log-probabilities, as far as the server gives them.

    With each comes its text by itself: it is not what the token adds where tokens share a character.
    """
    try:
        entries = list(measures(given)) if isinstance(given, Mapping) else []
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):  # of another form
        entries = []
    if not entries:
        return [(Token(text), text)] if text else []
    if "".join(word for word, _, _ in entries) == text:
        return [(Token(word, None, logprob, None, top), word) for word, logprob, top in entries]
    *before, last = entries  # their texts are not the very text: characters that tokens share, special tokens
    blank = [(Token("", None, logprob, None, top), word) for word, logprob, top in before]
    return [*blank, (Token(text, None, last[1], None, last[2]), last[0])]


Top = tuple[tuple[int, str, float], ...]
LEAST = -9999.0  # what servers give for a token that cannot come
UNKNOWN = -1  # the id of a token that is known by its text alone


def measures(given: Mapping[str, Any]) -> Iterator[tuple[str, float, Top]]:
    """Yield text, log-probability and likeliest tokens, from the form of a chat or from that of a completion."""
    content = given.get("content")
    if isinstance(content, list):
        for one in content:
            likeliest = [(it["token"], it["logprob"]) for it in one.get("top_logprobs") or ()]
            yield str(one["token"]), nats(one["logprob"]), top(likeliest)
        return
    words, logprobs = given.get("tokens") or (), given.get("token_logprobs") or ()
    tops = given.get("top_logprobs") or [{}] * len(words)
    for word, logprob, likeliest in zip(words, logprobs, tops, strict=False):
        yield str(word), nats(logprob or 0.0), top((likeliest or {}).items())


def top(pairs: Iterable[tuple[Any, Any]]) -> Top:
    """Return the likeliest tokens at a place, the likeliest first, and no more than a server has to give."""
    found = [(UNKNOWN, str(text), nats(value)) for text, value in islice(pairs, MOST + 1)]
    return tuple(sorted(found, key=lambda entry: -entry[2]))


def nats(value: Any) -> float:
    """Return a log-probability that a server gives; raises `ValueError` for what is none."""
    found = float(value)
    if math.isnan(found):
        raise ValueError("not a number")
    return min(max(found, LEAST), 0.0)


def whole(value: Any) -> int:
    """Return a number that a server gives, 0 where it gives none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def asked_to_wait(refused: Refused) -> float:
    """Return the seconds after which a server wants to be asked again, 0 where it does not say."""
    try:
        return max(0.0, float(refused.wait))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(refused.wait).timestamp() - time.time())
    except ValueError:
        return 0.0


def fault(refused: Refused, host: str, model: str, offers: Sequence[Offer], path: str = "/models") -> ReplError:
    """Return the error for a request that a server refuses."""
    words, status = refused.words, refused.status
    if not_there(refused, model):
        return no_model(host, model, offers)
    if status in (404, 405):
        return missing(host, path, words)
    if status == 413 or (status in (400, 422) and any(sign in words.lower() for sign in FULL)):
        return Overflow(f"the conversation is too long for {host}: {words}", choices=ROOM)
    if status in (401, 403):
        return ReplError(f"{host} refuses the key, or wants one: {words}", "/connect URL --key-env NAME")
    what = {429: "has too many requests", 503: "is not ready"}.get(status, f"failed ({status})")
    if status >= 500 or status == 429:
        return Failed(f"{host} {what}: {words}", "/retry")
    return UsageError(f"{host} refuses this ({status}): {words}")


ROOM = (
    ("/overflow drop_oldest", "leave out the oldest messages as needed"),
    ("/clear", "begin a new conversation with this message"),
)


def not_there(refused: Refused, model: str) -> bool:
    """Tell whether a server refuses because it does not have the model."""
    words = refused.words.lower()
    named = bool(model) and model.lower() in words
    says = any(sign in words for sign in ("not exist", "not found", "no such model", "unknown model"))
    return named and "model" in words and (refused.status == 404 or (refused.status == 400 and says))


def no_model(host: str, model: str, offers: Sequence[Offer]) -> NotFound:
    """Make the error for a model that a server does not have, with the nearest that it has."""
    known = [offer.id for offer in offers if offer.id != model]
    close = nearest(model, known) or next(iter(known), "")
    more = f", the nearest is {close}" if close else ""
    return NotFound(f"{host} has no model {model!r}{more}", *([f"/model {close}"] if close else []), "/model")


def missing(host: str, path: str, words: str) -> ReplError:
    """Make the error for a path that a server does not have."""
    way = {"/completions": ("continue a text", "/mode chat"), "/chat/completions": ("chat", "/mode complete")}
    what, hint = way.get(path, ("list models", "/connect URL"))
    return UsageError(f"{host} cannot {what}: it has no {path} ({words})", hint)


def said(answer: Any) -> str:
    """Find the sentence in an answer that refuses: servers put it into `error`, `detail` or `message`."""
    if isinstance(answer, str):
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return answer
        return said(found) if isinstance(found, dict | list) else answer
    if isinstance(answer, list):
        return "; ".join(said(one) for one in answer[:3])
    if isinstance(answer, dict):
        inner = next((answer[name] for name in ("error", "detail", "message", "msg") if answer.get(name)), None)
        place = ".".join(str(part) for part in answer.get("loc") or ())
        return f"{place} {said(inner)}".strip() if inner is not None else json.dumps(answer)
    return str(answer)


def shortened(text: str, most: int) -> str:
    """Return a text on one line, without a full stop, cut to a length."""
    line = " ".join(text.split())
    return (line if len(line) <= most else line[: most - 1] + "…").rstrip(".")
