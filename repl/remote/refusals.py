"""Refusals of a server: its error object, the fault it describes, and the error shown to the user."""

import json
import re
from collections.abc import Mapping, Sequence

from repl.core.errors import Failed, NotFound, Overflow, ReplError, UsageError
from repl.core.format import shortened
from repl.core.values import closest_match
from repl.remote.dialects import Offer, positive_int

MAX_ERROR_CHARS = 300  # characters shown of a server's message
OVERFLOW_CODES = {"context_length_exceeded", "exceed_context_size_error"}  # OpenAI, Groq, llama-cpp-python; llama.cpp
OVERFLOW_SIGNS = re.compile(
    r"context.{0,3}(length|size|window)|maximum (context|model length)|reduce the length of the (messages|prompt|input)"
    r"|(prompt|input) is too long|`inputs` (must have less|tokens)",
    re.IGNORECASE,
)
OTHER_LIMITS = ("stop", "stop_sequences", "top_logprobs", "logprobs")  # fields whose limits read like the context's
LIMIT = re.compile(r"(?:max allowed|<=|less than or equal to|at most|maximum(?: value)? (?:of|is)|and)\W{0,4}(\d+)")
CONTEXT_TOKENS = re.compile(
    r"(?:context (?:length|size|window)\D{0,20}|maximum (?:context|model) length\D{0,20}"
    r"|must be <= |have less than )(\d+)",
    re.IGNORECASE,
)
PROMPT_TOKENS = re.compile(
    r"(\d+)\)? (?:in the messages|in your prompt|input tokens|`inputs` tokens|tokens from the input)"
    r"|(?:request|input) \((\d+) tokens\)|(?:resulted in|contains at least) (\d+)|(?:has|have) (\d+) (?:input )?tokens"
    r"|less than \d+ tokens\. Given: (\d+)",
    re.IGNORECASE,
)
LACKED_PATHS = {"/completions": ("continue a text", "/mode chat"), "/chat/completions": ("chat", "/mode complete")}
TAG = re.compile(r"<[^>]*>")
OVERFLOW_CHOICES = (
    ("/overflow drop_oldest", "drop the oldest messages as needed"),
    ("/clear", "start a new conversation with this message"),
)


class Refusal(Exception):
    """An error response, read in any of the forms that servers use; `answer` is text or decoded JSON.

    Holds the status (0: an event of a stream), the error object, the tokens of context and prompt where told, else
    0, and the seconds the server asks to wait.
    """

    def __init__(self, status: int, answer: object, wait: str = "") -> None:
        found = _parsed(answer)
        outer = found if isinstance(found, Mapping) else {}
        inner: Mapping[str, object] = next(
            (outer[name] for name in ("error", "detail") if isinstance(outer.get(name), dict)), {}
        )
        both, said = {**outer, **inner}, find_message(found)
        self.status = status
        self.words = shortened(said, MAX_ERROR_CHARS).rstrip(".")
        self.type = str(both.get("type") or both.get("error_type") or "")
        self.code = str(both.get("code") or both.get("http_status_code") or "")
        self.param = str(both.get("param") or "")
        self.context = positive_int(both.get("n_ctx")) or _number(CONTEXT_TOKENS, said)
        self.prompt = positive_int(both.get("n_prompt_tokens")) or _number(PROMPT_TOKENS, said)
        self.wait_s = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else 0.0
        super().__init__(self.words)

    @property
    def of_the_request(self) -> bool:
        """Tell whether a changed request may succeed."""
        return self.status in (0, 400, 413, 422)

    @property
    def full(self) -> bool:
        """Tell whether the request exceeds the context."""
        if not self.of_the_request or "rate_limit" in f"{self.code} {self.type}":
            return False
        told = bool(OVERFLOW_CODES & {self.type, self.code}) or bool(OVERFLOW_SIGNS.search(self.words))
        return self.status == 413 or (told and self.param not in OTHER_LIMITS)


def read_event_error(found: Mapping[str, object]) -> Refusal:
    """Return the refusal in an event of a stream; its code may be an HTTP status."""
    refused = Refusal(0, found)
    refused.status = int(refused.code) if refused.code.isdecimal() and len(refused.code) == 3 else 0
    return refused


def _parsed(answer: object) -> object:
    if isinstance(answer, str):
        try:
            found = json.loads(answer.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            return answer
        return found if isinstance(found, dict | list) else answer
    return answer


def _number(pattern: re.Pattern[str], words: str) -> int:
    found = pattern.search(words)
    return int(next(group for group in found.groups() if group)) if found else 0


def find_message(answer: object) -> str:
    """Return the message of an error response: servers put it into `error`, `detail` or `message`."""
    found = _parsed(answer)
    if isinstance(found, list):
        return "; ".join(find_message(one) for one in found[:3])
    if isinstance(found, Mapping):
        inner = next((found[name] for name in ("error", "detail", "message", "msg") if found.get(name)), None)
        place = ".".join(str(part) for part in found.get("loc") or ())
        return f"{place} {find_message(inner)}".strip() if inner is not None else json.dumps(found)
    return TAG.sub(" ", str(found)) if str(found).lstrip().startswith("<") else str(found)  # the HTML page of a proxy


def lower_alternatives(refused: Refusal, body: Mapping[str, object]) -> tuple[str, int] | None:
    """Return the field for alternatives and the server's limit, where it refuses the number asked for; else None."""
    name = "top_logprobs" if "top_logprobs" in body else "logprobs"
    about = re.search(r"logprobs|top_n_tokens", f"{refused.param} {refused.words}")
    asked = positive_int(body.get(name))
    if not (about and refused.of_the_request and asked):
        return None
    fits = [int(one) for one in LIMIT.findall(refused.words) if int(one) < asked]
    return (name, max(fits)) if fits else None


def to_error(
    refused: Refusal, host: str, model: str, offers: Sequence[Offer], path: str = "/models", alone: bool = True
) -> ReplError:
    """Return the error for a refused request; `alone` means that there are no older messages to drop."""
    words, status = refused.words, refused.status
    if lacks_model(refused, model):
        return model_not_found(host, model, offers)
    if status in (404, 405):
        what, hint = LACKED_PATHS.get(path, ("list models", "/connect URL"))
        return UsageError(f"{host} cannot {what}: it has no {path} ({words})", hint)
    if refused.full:
        figures = f"the prompt has {refused.prompt} tokens, but the context of {host} is {refused.context}"
        plain = f"the conversation is too long for {host}: {words}"
        said = figures if 0 < refused.context <= refused.prompt else plain
        return Overflow(said, choices=() if alone else OVERFLOW_CHOICES)
    if status in (401, 403):
        return ReplError(f"{host} rejected the key, or needs one: {words}", "/connect URL --key-env NAME")
    what = {429: "has too many requests", 503: "is not ready"}.get(status, f"failed ({status})")
    if status >= 500 or status in (424, 429):
        return Failed(f"{host} {what}: {words}", "/retry")
    if not status:
        return Failed(f"{host}: {words}", "/retry")
    return UsageError(f"{host} rejected the request ({status}): {words}")


def lacks_model(refused: Refusal, model: str) -> bool:
    """Tell whether a server lacks the model."""
    words = refused.words.lower()
    named = bool(model) and model.lower() in words
    says = any(sign in words for sign in ("not exist", "not found", "no such model", "unknown model"))
    of_model = refused.code == "model_not_found" or (named and "model" in words)
    return of_model and (refused.status == 404 or (refused.status == 400 and says))


def model_not_found(host: str, model: str, offers: Sequence[Offer]) -> NotFound:
    """Return the error for a model that a server lacks, with the nearest one it has."""
    known = [offer.id for offer in offers if offer.id != model]
    close = closest_match(model, known) or next(iter(known), "")
    more = f", the nearest is {close}" if close else ""
    return NotFound(f"{host} has no model {model!r}{more}", *([f"/model {close}"] if close else []), "/model")
