"""The remote engine: a request becomes a call of an OpenAI-compatible server, its stream becomes events."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from repl import decoding
from repl.decoding import PENALTIES, Base
from repl.errors import Cancelled, Failed, NeedsLocal, Overflow, ReplError, UsageError
from repl.events import Done, Event, Notice, Progress, Token
from repl.heard import BASE, Heard, Peer
from repl.kinds import Number
from repl.protocol import (
    DROPPABLE,
    MOST,
    Offer,
    Refused,
    asked_to_wait,
    fault,
    listed,
)
from repl.request import Request
from repl.settings import Decode, named
from repl.wire import Address, Wire
from repl.worker import Emit, Relay

ONWARD = ("vllm", "sglang")  # servers that let a reply begin with a given text
WAITS, PATIENCE = 5, 600.0  # how often, and seconds for how long at most, a server may ask to wait
offered: list[str] = []
"""The model ids of the server in use, for completion: a completer knows no session."""
known: dict[str, Mapping[str, str]] = {}
"""The servers that the config file names."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers: the model in use (none: its own), the context in tokens, and all that it lists."""

    url: str
    model: str
    context: int
    models: list[str]


@dataclass(frozen=True, slots=True)
class Connected(Served):
    """The same, when it begins to answer: outside of a prompt that goes without saying."""


def reach(where: Address, model: str, emit: Emit) -> "Remote":
    """Ask a server what it offers; returns an engine that is nobody's yet. Raises `ReplError`."""
    emit(Progress(f"ask {where.host}"))
    wire = Wire(where)
    try:
        offers = listed(wire.ask("/models", emit))
    except Refused as refused:
        if refused.status in (401, 403, 503):
            raise fault(refused, where.host, model, ()) from refused
        offers = ()  # it need not list them: a server with one model takes any request as one for that
    return Remote(wire, model or (offers[0].id if len(offers) == 1 else ""), offers)


class First(Relay):
    """Listens to a reply in place of the screen: keeps what could have stood first, passes on how far things are."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.top: tuple[tuple[str, float], ...] = ()

    def __call__(self, event: Event) -> None:
        """Take an event; raises `Cancelled` once the user stopped the job."""
        if isinstance(event, Token):
            self.top = self.top or tuple((text, value) for _, text, value in event.top)
        elif isinstance(event, Progress):
            self.emit(event)
        self.check()


def wait(host: str, seconds: float, emit: Emit) -> None:
    """Let a server have the time it asks for, so that one sees it; raises `Cancelled`."""
    began = time.monotonic()
    while (gone := time.monotonic() - began) < seconds:
        emit(Progress(f"{host} asks to wait", int(gone), round(seconds), "s"))
        time.sleep(min(0.1, seconds - gone))


class Remote:
    """A model behind a server."""

    def __init__(self, wire: Wire, model: str = "", offers: tuple[Offer, ...] = ()) -> None:
        self.wire, self.model, self.offers = wire, model, offers
        self.refused: set[str] = set()  # parameters that the server does not take
        self.told: set[str] = set()
        self.chats = True

    @property
    def host(self) -> str:
        """Return where it runs."""
        return self.wire.where.host

    @property
    def name(self) -> str:
        """Return the model's id, or the host where only the server knows it."""
        return named(self.model) or self.host

    @property
    def traits(self) -> tuple[str, ...]:
        """Return what to say of it beside its name."""
        return (self.host,) if self.model else ()

    @property
    def context(self) -> int:
        """Return the context in tokens, 0 where it is not known."""
        return next((offer.context for offer in self.offers if offer.id == self.model), 0)

    @property
    def base(self) -> Base:
        """Return what it brings to decoding."""
        return BASE

    def made(self, record: Done) -> bool:
        """Tell whether a reply can go on from its very ids: never, a server takes text."""
        return False

    def close(self) -> None:
        """Let go of the connection."""
        self.wire.close()

    def choose(self, model: str) -> Connected:
        """Take another model of the server from now on."""
        self.model = model
        self.refused.clear()
        return self.connected()

    def connected(self) -> Connected:
        """Return what is known of the server, as news."""
        return Connected(self.wire.where.url, self.model, self.context, [offer.id for offer in self.offers])

    def served(self) -> Served:
        """Return what is known of the server."""
        return Served(self.wire.where.url, self.model, self.context, [offer.id for offer in self.offers])

    def parameter(self, name: str, word: str) -> tuple[str, Any] | None:
        """Read what `/set` takes for a server: a penalty, or a variable of its chat template; else None."""
        if name.replace("-", "_") in PENALTIES:
            return name.replace("-", "_"), None if word == "default" else Number(least=-2, most=2).read(word)
        if name.startswith(decoding.PREFIX):
            with suppress(ValueError):
                return name, json.loads(word)
            return name, word
        return None

    # a reply

    def reply(self, request: Request, emit: Emit) -> Done:
        """Answer a request with `Token` events; a cancelled reply is returned with what there is of it.

        Raises `UsageError` before anything is made, `Failed` and its kin when the server gives up.
        """
        began = time.monotonic()
        self._check(request)
        peer = Peer(self.host, self.model, self.context, self.refused, self.told, self._owner())
        heard = Heard(peer, request, emit, began)
        try:
            self._hear(heard, emit)
        except Cancelled:
            emit.settle()
            return heard.done("cancelled")
        except ReplError as error:
            emit.settle()
            error.partial = heard.done("failed")
            raise
        return heard.done(heard.finish)

    def next(self, request: Request, count: int, emit: Emit) -> tuple[tuple[str, float], ...]:
        """Return the likeliest next tokens with their log-probabilities, as many as the server gives.

        It is asked for one token. Raises `UsageError` for a server that gives none, and what `reply` raises.
        """
        if request.chats and request.prefill and self._owner() not in ONWARD:
            raise NeedsLocal("looking on behind a reply", "/next TEXT")
        seen = First(emit)
        view = replace(request.settings.view, logprobs=min(count, MOST), probs="off")
        plain = replace(request.settings, decode=Decode(max_new_tokens=1), view=view)
        done = self.reply(replace(request, settings=plain), seen)
        if done.finish == "cancelled":
            raise Cancelled
        if not seen.top:
            raise UsageError(f"{self.host} gives no log-probabilities")
        return seen.top[:count]

    def _check(self, request: Request) -> None:
        values = {name: item.value for name, item in decoding.effective(request.settings, self.base).items()}
        if (values.get("num_beams") or 1) > 1 or (values.get("num_return_sequences") or 1) > 1:
            raise NeedsLocal("a beam search", "/beams 1")
        if values.get("max_length"):
            raise UsageError("max_length counts the prompt, which the server does", "/max_length default", "/max 50")
        if request.ids:
            raise NeedsLocal("going on from token ids")
        if request.chats and request.prefill and self._owner() not in ONWARD:
            raise NeedsLocal("a reply with a given beginning")
        if not self.model and len(self.offers) > 1:
            some = [f"/model {offer.id}" for offer in self.offers[:3]]
            raise UsageError(f"{self.host} offers {len(self.offers)} models: choose one", *some)

    def _owner(self) -> str:
        found = next((offer for offer in self.offers if offer.id == self.model), None)
        return found.owner if found else self.offers[0].owner if self.offers else ""

    def _hear(self, heard: Heard, emit: Emit) -> None:
        """Ask until the server answers: without what it refuses, later where it says so, shorter where allowed."""
        for _ in range(WAITS + len(DROPPABLE) + len(heard.messages)):
            emit(Progress(f"wait for {self.host}"))
            try:
                for event in self.wire.stream(heard.path, heard.body(), emit):
                    heard.take(event)
                    if heard.endless:
                        emit(Notice(f"{self.host} went on past max_new_tokens and was stopped"))
                        break
                return heard.end()
            except Refused as refused:
                self._mend(refused, heard, emit)
        raise Failed(f"{self.host} keeps refusing", "/retry")

    def _mend(self, refused: Refused, heard: Heard, emit: Emit) -> None:
        """Do about a refusal what can be done, so that the request is worth sending again; raises what is left."""
        sent = heard.body()
        named = [name for name in DROPPABLE if name in sent and re.search(rf"\b{name}\b", refused.words)]
        if refused.status in (400, 422) and named:
            self.refused.update(named)
            emit(Notice(f"{self.host} does not take {', '.join(named)}: left out"))
            return
        seconds = asked_to_wait(refused)
        if refused.status in (429, 503) and 0 < seconds <= PATIENCE and heard.waits < WAITS:
            heard.waits += 1
            wait(self.host, seconds, emit)
            return
        error = fault(refused, self.host, self.model, self.offers, heard.path)
        if not (isinstance(error, Overflow) and heard.shorten()):
            raise error from refused
