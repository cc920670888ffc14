"""The remote engine: a request goes to an OpenAI-compatible server, its stream becomes events."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from repl.core import decoding, parts
from repl.core.conversation import Conversation, Turn, message
from repl.core.decoding import PENALTIES, ModelDefaults
from repl.core.errors import Cancelled, Failed, NeedsLocal, ReplError, UsageError
from repl.core.events import Notice, Progress, PromptEcho
from repl.core.jobs import JobContext, Muted
from repl.core.parts import Parts
from repl.core.reply import Reply, TokenLogprobs, Usage
from repl.core.reply_format import parse_format
from repl.core.settings import Decode, Settings, short_id
from repl.core.values import Number
from repl.generation.interface import Request
from repl.generation.measure.token_trace import record_fields, require_record
from repl.generation.prompt import context_window
from repl.remote.address import Address
from repl.remote.dialects import Dialect, Listing, confirm, dialect_of, read_list
from repl.remote.protocol import DROPPABLE, prefixed_settings, read_ids
from repl.remote.refusals import Refusal, lower_alternatives, to_error
from repl.remote.reply import SERVER_DEFAULTS, ServerState, StreamedReply
from repl.remote.word_biases import word_fields

MAX_WAITS, MAX_WAIT_S = 5, 600.0  # how often a server may ask to wait, and the longest wait in seconds
MAX_MENDS = 8  # requests repeated for other reasons
MIN_CONTEXT_SHARE = 8  # at least 1/8 of the context should be free for a reply


@dataclass(frozen=True, slots=True)
class Served:
    """A connected server: the model in use ('': the server's own), its context in tokens, all models, the kind."""

    url: str
    model: str
    context: int
    models: list[str]
    kind: str


class Connected(Served):
    """The same, right after connecting: without a prompt it is not shown."""

    __slots__ = ()


def reach(where: Address, model: str, emit: JobContext) -> "Remote":
    """Ask a server for its models and return an engine for it; raises `ReplError`."""
    emit(Progress(f"asking {where.host}"))
    remote = Remote(where)
    try:
        remote.list_models(emit)
    except Refusal as refused:  # a model list is optional: a server with one model ignores the name
        if refused.status in (401, 403, 503):
            raise to_error(refused, where.host, model, ()) from refused
    offers = remote.listing.offers
    remote.choose(model or (offers[0].id if len(offers) == 1 else ""))
    return remote


class Remote:
    """A model behind a server."""

    chats = True

    def __init__(self, where: Address, model: str = "", listing: Listing | None = None) -> None:
        from repl.remote.http import ServerConnection  # imported only when needed: it is large

        self.where, self.wire, self.listing = where, ServerConnection(where), listing or Listing()
        self.choose(model)

    def list_models(self, emit: JobContext) -> None:
        """Ask for the model list, and for context lengths that it lacks; raises `Refusal` and `ReplError`."""
        self.listing = listing = read_list(self.wire.ask("/models", emit), self.where.url)
        if listing.kind.facts and listing.offers and not all(offer.context for offer in listing.offers):
            facts = None
            with suppress(Refusal, ReplError):
                facts = self.wire.ask(listing.kind.facts, emit, beside=True)
            self.listing = confirm(listing, facts)

    @property
    def kind(self) -> Dialect:
        """Return the dialect for the model in use."""
        return dialect_of(self.listing.kind, self.model)

    @property
    def host(self) -> str:
        """Return host and port."""
        return self.where.host

    @property
    def name(self) -> str:
        """Return the model's id, or the host where none was chosen."""
        return short_id(self.model) or self.host

    @property
    def traits(self) -> tuple[str, ...]:
        """Return facts to show beside the name."""
        return (self.host,) if self.model else ()

    @property
    def context(self) -> int:
        """Return the context length in tokens, 0 where it is not known."""
        return next((offer.context for offer in self.listing.offers if offer.id == self.model), 0)

    @property
    def base(self) -> ModelDefaults:
        """Return the decoding defaults of a server."""
        return SERVER_DEFAULTS

    def made(self, record: Reply) -> bool:
        """Tell whether a reply can be continued from its token ids: never, a server takes text."""
        return False

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()

    def choose(self, model: str) -> Served:
        """Use another model of the server from now on."""
        self.model = model
        self._state = ServerState(self.host, model, self.context, self.kind)
        return self.served(Connected)

    def served(self, form: type[Served] = Served) -> Served:
        """Return facts about the server, as `Served` or `Connected`."""
        names = [offer.id for offer in self.listing.offers]
        return form(self.where.url, self.model, self.context, names, self.kind.name)

    def parameter(self, name: str, word: str) -> tuple[str, object] | None:
        """Read a value of `/set` for this server; None for a name that it does not know.

        Names are penalties, variables of its chat template, and its own fields such as `reasoning_effort`.
        """
        full = name.removeprefix(decoding.SERVER).replace("-", "_")
        if full in PENALTIES:
            return full, None if word == "default" else Number(least=-2, most=2).read(word)
        if full in self.kind.own:
            name = decoding.SERVER + full
        elif not name.startswith(decoding.PREFIX):
            return None
        value: object = word
        with suppress(ValueError):
            value = json.loads(word)
        if full == "logit_bias" and word != "default" and not isinstance(value, dict):
            raise UsageError(f"logit_bias takes token ids with a bias, not {word!r}", '/set logit_bias {"42": -100}')
        return name, value

    # a reply

    def reply(self, request: Request, emit: JobContext, given: Mapping[str, object] | None = None) -> Reply:
        """Generate a reply with `Token` events; a cancelled one is returned as far as it came.

        `given` is sent unchanged in place of the settings.
        Raises `UsageError` before anything is sent, `Failed` and its subclasses when the server fails.
        """
        began = time.monotonic()
        self.check(request)
        request = self._with_words(request, emit) if given is None else request
        heard = StreamedReply(self._state, request, emit, began, given)
        try:
            heard.tell_unheeded()
            self._hear(heard, emit)
        except Cancelled:
            emit.begin_cleanup()
            return heard.done("cancelled")
        except ReplError as error:
            emit.begin_cleanup()
            error.partial = heard.done("failed")
            raise
        return heard.done(heard.finish)

    def _with_words(self, request: Request, emit: JobContext) -> Request:
        """Return the request with the fields that ban and boost words; fields set by the user take precedence."""

        def cut(text: str) -> list[int]:
            plain = {"add_special": False, "add_special_tokens": False}
            return read_ids(self._ask("/tokenize", {"content": text, "prompt": text, **plain}, emit).get("tokens"))

        settings = request.settings
        own = prefixed_settings(settings, decoding.SERVER)
        for name, value in word_fields(settings.decode, self.kind, self.host, cut).items():
            there = own.get(name)
            whole = {**value, **there} if isinstance(value, dict) and isinstance(there, dict) else there or value
            others = tuple(pair for pair in settings.extra if pair[0] != decoding.SERVER + name)
            settings = replace(settings, extra=(*others, (decoding.SERVER + name, whole)))
        if settings.decode.ban and settings is not request.settings and "ban" not in self._state.told:
            self._state.told.add("ban")
            emit(Notice(f"{self.host} bans tokens: other tokens may still spell the words"))
        return replace(request, settings=settings)

    def reply_from(self, request: Request, record: Reply, place: int, token: int, emit: JobContext) -> Reply:
        """Replace the token at a place of a reply (from 1) and continue from there; returns the record of the whole."""
        prompt = record.prompt_ids or self._prompt(request, emit)
        ids = (*record.token_ids[: place - 1], token)
        lead = self._text("/detokenize", {"tokens": list(ids), "skip_special_tokens": False}, emit)
        emit(PromptEcho(lead))
        done = self.reply(Request(request.settings, ids=(*prompt, *ids)), emit)
        found = parts.read_parts(lead + done.raw)
        return replace(
            done,
            **{**record_fields(lead + done.raw, found), "begun": record.begun},
            prompt_ids=prompt,
            token_ids=(*ids, *done.token_ids) if done.token_ids else (),
            usage=Usage(len(prompt), done.usage.reused, len(ids) + done.usage.completion),
            measures=TokenLogprobs(),
            system=record.system,
            prefill=record.prefill,
        )

    def _prompt(self, request: Request, emit: JobContext) -> tuple[int, ...]:
        """Return the prompt's ids from a server that does not return them with a reply (llama.cpp)."""
        text = request.text
        if request.chats:
            text = self._text("/apply-template", StreamedReply(self._state, request, emit, 0.0).what(), emit)
        found = self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True}, emit)
        return tuple(read_ids(found.get("tokens")))

    def _text(self, path: str, body: dict[str, object], emit: JobContext) -> str:
        found = self._ask(path, body, emit)
        return str(next((found[name] for name in ("prompt", "content", "text") if name in found), ""))

    def _ask(self, path: str, body: dict[str, object], emit: JobContext) -> dict[str, object]:
        model = {"model": self.model} if self.model else {}
        try:
            found = self.wire.ask(path, emit, {**model, **body}, beside=True)
        except Refusal as refused:
            raise to_error(refused, self.host, self.model, self.listing.offers, path) from refused
        return found if isinstance(found, dict) else {}

    def next(self, request: Request, count: int, emit: JobContext) -> tuple[tuple[str, float], ...]:
        """Return the most likely next tokens with their log-probabilities, as many as the server returns.

        It is asked for one token. Raises `UsageError` for a server without log-probabilities, and what `reply` raises.
        """
        if request.chats and request.prefill and self.kind.continues is None:
            raise NeedsLocal("the next token of a reply", "/next TEXT")
        if not self.kind.alternatives:
            raise UsageError(f"{self.host} returns no log-probabilities")
        tops: list[tuple[tuple[int, str, float], ...]] = []
        view = replace(request.settings.view, logprobs=min(count, self.kind.alternatives), probs="off")
        plain = replace(request.settings, decode=Decode(max_new_tokens=1), view=view)
        done = self.reply(replace(request, settings=plain), Muted(emit, lambda token: tops.append(token.top)))
        if done.finish == "cancelled":
            raise Cancelled
        if not (found := next(filter(None, tops), ())):
            raise UsageError(f"{self.host} returns no log-probabilities")
        return tuple((text, value) for _, text, value in found[:count])

    def check(self, request: Request) -> None:
        """Raise `UsageError` for a request that this server cannot serve."""
        decode, offers = request.settings.decode, self.listing.offers
        if (decode.num_beams or 1) > 1 or (decode.num_return_sequences or 1) > 1:
            raise NeedsLocal("a beam search", "/beams 1")
        if decode.max_length:
            raise UsageError(
                "max_length includes the prompt, whose tokens only the server counts", "/max_length default", "/max 50"
            )
        if request.ids and not self.kind.takes_ids:
            raise NeedsLocal("continuing from token ids")
        if request.chats and request.prefill and self.kind.continues is None:
            raise NeedsLocal("a reply with a prefill", *([] if request.begun else ["/prefill removes it"]))
        if decode.format:
            self.check_form(decode.format, request.chats)
        if decode.format and (request.prefill or request.ids):
            raise NeedsLocal("a format together with a prefill", "/format off")
        if not self.model and len(offers) > 1:
            some = [f"/model {offer.id}" for offer in offers[:3]]
            raise UsageError(f"{self.host} offers {len(offers)} models: choose one", *some)

    def check_form(self, text: str, chats: bool) -> None:
        """Raise `UsageError` for a format that the server does not support: it is never dropped silently."""
        form = parse_format(text)
        if self.kind.form_fields(form, chats) is None:
            where = "in a chat" if chats else "in text completion"
            said = f"{self.host} ({self.kind.name}) does not support {form.title} {where}"
            raise UsageError(said, "/format off")

    def _hear(self, heard: StreamedReply, emit: JobContext) -> None:
        """Send the request until the server answers: without refused fields, after a wait, or shortened."""
        for _ in range(MAX_WAITS + MAX_MENDS + len(DROPPABLE) + len(heard.messages)):
            emit(Progress(f"waiting for {self.host}"))
            heard.afresh()
            try:
                for event in self.wire.stream(heard.path, heard.body(), emit):
                    heard.take(event)
                    if heard.endless:
                        heard.finish = "length"
                        emit(Notice(f"{self.host} exceeded max_new_tokens and was stopped"))
                        break
                return heard.end()
            except Refusal as refused:
                if heard.begun:
                    raise Failed(f"{self.host}: {refused.words}", "/retry") from refused
                self._mend(refused, heard, emit)
        raise Failed(f"{self.host} keeps rejecting the request", "/retry")

    def _mend(self, refused: Refusal, heard: StreamedReply, emit: JobContext) -> None:
        """Adapt the request to a refusal, so that it can be sent again; raises the error where that is not possible."""
        mended = (
            self._lower(refused, heard, emit)
            or self._drop(refused, heard, emit)
            or self._wait(refused, heard, emit)
            or (refused.full and self._fit(refused, heard, emit))
        )
        if not mended:
            alone = not context_window.oldest(heard.messages)
            raise to_error(refused, self.host, self.model, self.listing.offers, heard.path, alone) from refused

    def _lower(self, refused: Refusal, heard: StreamedReply, emit: JobContext) -> bool:
        """Ask for no more alternatives than the server allows."""
        if (found := lower_alternatives(refused, heard.body())) is None:
            return False
        name, most = found
        self._state.limits[name] = most
        emit(Notice(f"{self.host} returns at most {most} alternatives: {name} is {most}"))
        return True

    def _drop(self, refused: Refusal, heard: StreamedReply, emit: JobContext) -> bool:
        """Leave out fields that the server refuses, or rename them."""
        if not refused.of_the_request:
            return False
        body, told = heard.body(), f"{refused.param} {refused.words}"
        if "max_tokens" in body and re.search(r"[Uu]se .?max_completion_", refused.words):
            self._state.renamed["max_tokens"] = "max_completion_tokens"
            return True
        names = [name for name in DROPPABLE if name in body and re.search(rf"\b{name}\b", told)]
        if refused.code in ("unsupported_parameter", "unsupported_value") and refused.param in body:
            names = [refused.param]
        names += ["top_logprobs"] if "logprobs" in names and "top_logprobs" in body else []
        if names:
            self._state.refused.update(names)
            emit(Notice(f"{self.host} does not support {', '.join(names)}: left out"))
        return bool(names)

    def _wait(self, refused: Refusal, heard: StreamedReply, emit: JobContext) -> bool:
        """Wait as long as the server asks, with progress."""
        seconds, began = refused.wait_s, time.monotonic()
        if refused.status not in (429, 503) or not 0 < seconds <= MAX_WAIT_S or heard.waits >= MAX_WAITS:
            return False
        heard.waits += 1
        while (gone := time.monotonic() - began) < seconds:
            emit(Progress(f"{self.host} asks to wait", int(gone), round(seconds), "s"))
            time.sleep(min(0.1, seconds - gone))
        return True

    def _fit(self, refused: Refusal, heard: StreamedReply, emit: JobContext) -> bool:
        """Make prompt and reply fit into the context: limit the reply, else drop the oldest messages."""
        asked, limit = heard.request.settings.decode.max_new_tokens, refused.context
        room = limit - refused.prompt if refused.prompt else 0
        scarce = room < min(asked or 0, limit // MIN_CONTEXT_SHARE)
        if scarce and heard.shorten():
            return True
        if not (asked and 0 < room < (heard.room or asked)):
            return heard.shorten()
        heard.room = room
        emit(Notice(f"max_new_tokens is {room} for this reply: the context is {limit} tokens"))
        return True


def require_server(remote: Remote | None, turn: Turn) -> Remote:
    """Return the server that generated a reply; raises `UsageError` unless it is connected."""
    host = require_record(turn).server
    if remote is None or remote.host != host:
        raise UsageError(
            f"exchange {turn.exchange} was generated by {host}, which is not connected", f"/connect {host}"
        )
    return remote


def rebuild_request(talk: Conversation, turn: Turn, settings: Settings) -> Request:
    """Return the request of a recorded reply: its system message, without the messages dropped from it."""
    record, asked = require_record(turn), talk.asked(turn)
    if asked.role == "prompt":
        return Request(settings, text=asked.text + turn.text.removesuffix(record.raw))
    path = [one for one in talk.path(asked.id) if one.id not in record.dropped]
    system = [message("system", record.system, Parts())] if record.system else []
    turns = (*([0] if system else []), *(one.id for one in path))
    said = [message(one.role, one.text, one.parts) for one in path]
    return Request(settings, messages=(*system, *said), turns=turns, prefill=record.prefill)
