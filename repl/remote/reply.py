"""One reply of a server: the request, the streamed answer, and the record."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from repl.core import decoding
from repl.core.decoding import AHEAD, PENALTIES, ModelDefaults
from repl.core.errors import Failed
from repl.core.events import Notice, PromptEcho, ReplyStarted, Token
from repl.core.format import counted
from repl.core.jobs import JobContext
from repl.core.parts import Parts, PartsReader
from repl.core.reply import Reply, ServedModel, Timing, TokenLogprobs, Usage, round_figures
from repl.core.settings import short_id
from repl.core.tool_calls import describe
from repl.generation.interface import Request
from repl.generation.prompt import context_window
from repl.remote.dialects import UNKNOWN, Dialect, positive_int
from repl.remote.protocol import (
    BROKEN,
    END,
    ENDS,
    Calls,
    StreamedToken,
    alternatives_wanted,
    message_body,
    read_ids,
    read_texts,
    read_tokens,
    request_fields,
    unheeded_settings,
)
from repl.remote.refusals import read_event_error

SERVER_DEFAULTS = ModelDefaults({}, {"do_sample": True}, frozenset(PENALTIES))
"""Decoding defaults of a server: it chooses what is not set, and it samples."""
LOCAL = ("reuse", *AHEAD)  # settings of local models only, which no notice mentions
MAX_PIECES_PER_TOKEN = 4  # pieces per allowed token after which the server does not stop by itself
MIN_SPAN_S = 0.001  # seconds: pieces within this span arrived at once, which says nothing about speed


@dataclass(frozen=True, slots=True)
class ServerState:
    """State of a server across replies: fields it refused, notices shown, limits, renamed fields."""

    host: str
    model: str
    context: int
    kind: Dialect = UNKNOWN
    refused: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)
    """The maximum of fields, as the server told it."""
    renamed: dict[str, str] = field(default_factory=dict)


class LogprobCollector:
    """The log-probabilities of one reply; a token with unknown id gets a number below 0."""

    def __init__(self, asked: int) -> None:
        self._asked = asked  # number of alternatives asked for
        self._numbers: dict[object, int] = {}
        self._texts: dict[int, str] = {}
        self._ids: dict[int, int] = {}  # ids learned for numbers below 0
        self._rows: list[tuple[int, int, int, Token]] = []  # number, rank, length in the reply's text, token
        self._broken = False  # a text without log-probabilities came among others

    def number(self, entry: Mapping[str, object]) -> int:
        """Return the number of a token: its id, else one for its bytes, since halves of characters share a text."""
        given, data, text = entry.get("id"), entry.get("bytes"), str(entry["token"])
        if isinstance(given, int) and given >= 0:
            found = given
        else:
            key = tuple(map(str, data)) if isinstance(data, list) and data else text
            found = self._numbers.setdefault(key, -1 - len(self._numbers))
        self._texts.setdefault(found, text)
        return found

    def learn(self, number: int | None, token: int) -> None:
        """Record the id of a token that had a number below 0."""
        if number is not None and number < 0:
            self._ids.setdefault(number, token)

    def take(self, piece: StreamedToken, length: int) -> None:
        """Add a token; `length` is how many characters it adds to the reply."""
        if piece.number is None or piece.token.logprob is None:
            self._broken = self._broken or bool(self._rows and length)
            return
        # some servers append the sampled token to the alternatives, beyond the number asked for
        top = piece.token.top[: self._asked]
        found = any(number == piece.number for number, _, _ in top)
        rank = 1 + sum(value > piece.token.logprob for _, _, value in top) if found else 0
        self._rows.append((piece.number, rank, length, replace(piece.token, top=top)))

    @property
    def begun(self) -> bool:
        """Tell whether a token with a log-probability came."""
        return bool(self._rows)

    @property
    def limit(self) -> int:
        """Return how many alternatives the server returned."""
        return max((len(token.top) for *_, token in self._rows), default=0)

    def measures(self) -> TokenLogprobs:
        """Return the log-probabilities; empty where some tokens lack them."""
        if not self._rows or self._broken:
            return TokenLogprobs()
        numbers, ranks, lengths, tokens = zip(*self._rows, strict=True)
        made = tuple(map(self._known, numbers))
        ids = tuple(tuple(self._known(one) for one, _, _ in token.top) for token in tokens)
        texts = {self._known(number): text for number, text in self._texts.items()}
        return TokenLogprobs(
            logprobs=round_figures(tuple(token.logprob for token in tokens)),
            ranks=ranks,
            ids=ids,
            values=tuple(round_figures(tuple(value for _, _, value in token.top)) for token in tokens),
            texts={number: texts[number] for number in sorted({*made, *(one for places in ids for one in places)})},
            lengths=lengths,
            made=made,
            limit=self.limit,
        )

    def _known(self, number: int) -> int:
        return self._ids.get(number, number)


class StreamedReply:
    """A reply while it is streamed: the request, the text so far, and the record."""

    def __init__(
        self,
        peer: ServerState,
        request: Request,
        emit: JobContext,
        began: float,
        given: Mapping[str, object] | None = None,
    ) -> None:
        self.peer, self.request, self.emit, self.began = peer, request, emit, began
        self._given = given  # sent in place of the settings
        self.path = "/chat/completions" if request.chats else "/completions"
        self.messages = [*request.messages]
        self.turns = [*request.turns]
        self.dropped: list[int] = []
        self.waits = 0
        self.room = 0  # tokens left for the reply in the context, where fewer than asked for
        self.finish = ""
        self._ended = ""  # the finish reason in the server's word
        self._model = self._fingerprint = ""
        self._texts: list[str] = []
        self._calls = Calls()
        self._count = 0  # tokens received one by one
        self._prompt: list[int] = []
        self._ids: list[int] = []
        self._usage: Mapping[str, object] = {}
        self._first = self._last = 0.0
        self._half = ""  # first half of a surrogate pair split between events
        self._thinks = self._opened = False
        asked = positive_int((given or {}).get("top_logprobs"))
        self._asked = asked or alternatives_wanted(request.settings, peer.kind)
        self._tally = LogprobCollector(self._asked)
        self._reader = PartsReader()
        self._lead = self._reader.feed(request.prefill)
        self._begun = self._reader.parts()

    # the request

    def body(self) -> dict[str, object]:
        """Return the request as it is sent, without fields the server is known to refuse."""
        given = {**self.what(), **self.sent()}
        model = {"model": self.peer.model} if self.peer.model else {}
        return {**model, **given}

    def what(self) -> dict[str, object]:
        """Return the prompt fields: a conversation, a text or token ids."""
        request = self.request
        if request.ids:
            return {"prompt": list(request.ids)}
        if not request.chats:
            return {"prompt": request.text}
        messages = [message_body(message) for message in self.messages]
        if not request.prefill:
            return {"messages": messages}
        begun = {"role": "assistant", "content": request.prefill}
        return {"messages": [*messages, begun], **(self.peer.kind.continues or {})}

    def sent(self) -> dict[str, object]:
        """Return the other fields, apart from prompt and model."""
        if self._given is not None:
            return dict(self._given)
        given = request_fields(self.request.settings, self.peer.kind, self.request.chats)
        given |= {"stream": True, "stream_options": {"include_usage": True}}
        given = {self.peer.renamed.get(name, name): value for name, value in given.items()}
        limits = {**self.peer.limits, **(dict.fromkeys(("max_tokens", "max_completion_tokens"), self.room or 1 << 62))}
        capped = {name: min(it, limits[name]) for name, it in given.items() if name in limits and isinstance(it, int)}
        return {name: value for name, value in {**given, **capped}.items() if name not in self.peer.refused}

    def shorten(self) -> bool:
        """Drop the oldest exchange if `overflow` allows it and there is one; tells whether it did."""
        gone = context_window.oldest(self.messages) if self.request.settings.decode.overflow == "drop_oldest" else []
        if gone:
            self.dropped += [self.turns[place] for place in gone]
            self.emit(Notice(f"the oldest {counted(len(gone), 'message')} dropped: the context is full"))
            self.messages = [one for place, one in enumerate(self.messages) if place not in gone]
            self.turns = [turn for place, turn in enumerate(self.turns) if place not in gone]
        return bool(gone)

    def tell_unheeded(self) -> None:
        """Emit a notice for each setting without effect on the server, once per setting."""
        view = self.request.settings.view
        if not self.peer.kind.alternatives and (view.logprobs or view.probs != "off"):
            self._tell_once("log-probabilities", f"{self.peer.host} returns no log-probabilities")
        for name in unheeded_settings(self.request.settings, self.peer.kind, self.request.chats):
            self._tell_once(name, f"{name} has no effect with {self.peer.kind.name}")

    # the stream

    @property
    def begun(self) -> bool:
        """Tell whether any text was received."""
        return any(self._texts)

    @property
    def endless(self) -> bool:
        """Tell whether the server exceeds the limit of tokens by far."""
        limit = self.request.settings.decode.max_new_tokens or self.peer.context
        return bool(limit) and self._count > MAX_PIECES_PER_TOKEN * limit + 64

    def afresh(self) -> None:
        """Reset for another attempt; no text was received yet."""
        self.finish = self._ended = ""
        self._count, self._prompt = 0, []
        self._ids, self._texts = [], []

    def take(self, event: Mapping[str, object]) -> None:
        """Process an event of the stream; raises `Failed` for an invalid one, `Refusal`, `Cancelled`."""
        if event is END and self._texts:
            self.finish = self.finish or "stop"
        self._model = str(event.get("model") or self._model)
        self._fingerprint = str(event.get("system_fingerprint") or self._fingerprint)
        if isinstance(usage := event.get("usage"), Mapping):
            self._usage = usage
        self._prompt = read_ids(event.get("prompt_token_ids")) or self._prompt
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, Mapping):
                raise self._strange()
            self._choice(choice)

    def _choice(self, choice: Mapping[str, object]) -> None:
        if choice.get("error"):
            raise read_event_error(choice)
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if not isinstance(delta, Mapping):
            raise self._strange()
        self._open()
        given = choice.get("logprobs") if self._asked else None
        thought, answer, refusal = (self._whole(text) for text in read_texts(delta))
        if self._calls.take(delta):
            self._tick()
        ids = read_ids(choice.get("token_ids"))
        self._prompt = read_ids(choice.get("prompt_token_ids")) or self._prompt
        if refusal:
            self._ended = "refusal"
            answer += refusal
        if thought:
            alone = not answer
            self._say(self._pieces(thought, given if alone else None, ids if alone else []), thinks=True)
        # log-probabilities or ids without text: part of a character, or an end token
        if answer or ((given or ids) and not thought):
            self._say(self._pieces(answer, given, ids), thinks=self._thinks and not answer)
        if word := str(choice.get("finish_reason") or ""):
            self._ended = self._ended or word
            stopped = word == "stop" and isinstance(choice.get("stop_reason"), str)
            self.finish = "stop_string" if stopped else ENDS.get(word, "stop")

    def _whole(self, text: str) -> str:
        """Return a text with surrogate pairs joined; a first half at its end waits for the next event."""
        whole = (self._half + text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") if text else ""
        self._half = (whole[-1:] if "\ud800" <= whole[-1:] <= "\udbff" else "") if text else self._half
        return whole.removesuffix(self._half)

    def _pieces(self, text: str, given: object, ids: list[int]) -> list[StreamedToken]:
        """Return a text as tokens, with their ids where the server returns them."""
        pieces = read_tokens(text, given, self._tally.number)
        if not ids:
            return pieces
        if len(ids) != len(pieces):  # log-probabilities for none or only some of them
            pieces = [*(StreamedToken(Token(""), "") for _ in ids[1:]), StreamedToken(Token(text), text)]
        for piece, one in zip(pieces, ids, strict=True):
            self._tally.learn(piece.number, one)
        return [replace(piece, token=replace(piece.token, id=one)) for piece, one in zip(pieces, ids, strict=True)]

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        if self.request.chats:
            self.emit(ReplyStarted())
        if begun := self.request.prefill or self.request.text:
            self.emit(PromptEcho(begun, self._lead))

    def _say(self, pieces: list[StreamedToken], thinks: bool) -> None:
        """Emit text, with `<think>` tags around the thinking, as local models write it."""
        mark = ("<think>\n" if thinks else "\n</think>\n\n") if thinks != self._thinks else ""
        self._thinks = thinks
        if self._asked and pieces and pieces[-1].name and not thinks:
            if pieces[0].token.logprob is None and not self._tally.begun:
                self._tell_once("log-probabilities", f"{self.peer.host} returns no log-probabilities")
            elif self.request.settings.view.probs == "entropy":
                self._tell_once("entropy", f"{self.peer.host} returns no entropy: colours show probability")
        for piece in pieces:
            token = piece.token
            text = mark + token.text
            # before the first token with a log-probability a mark belongs to the text before it
            self._tally.take(piece, len(text if self._tally.begun else token.text))
            mark = ""
            self._ids += [] if token.id is None else [token.id]
            read = self._reader.feed(text) if self.request.chats else ()
            self.emit(replace(token, text=text, pieces=read))
            self._texts.append(text)
            self._tick()

    def _tick(self) -> None:
        """Count a token, or a piece of a tool call, and note the time."""
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._count += 1

    def end(self) -> None:
        """Finish after the end of the stream, with notices about refusals, filters and tool calls.

        Raises `Failed` where the server reports an error or ended the stream early.
        """
        host = self.peer.host
        if self._half:
            self._say([StreamedToken(Token(self._half), self._half)], self._thinks)
        if self._ended in BROKEN:
            raise Failed(f"{host} failed in the middle of its answer ({self._ended})", "/retry")
        if not (self.finish or self._usage or self._texts):
            raise Failed(f"{host} returned an empty answer", "/retry")
        if not self.finish:
            raise Failed(f"{host} closed the connection before the reply ended", "/retry")
        told = {
            "refusal": f"the model at {host} refuses to answer this",
            "content_filter": f"the content filter of {host} ended the reply",
        }
        if said := told.get(self._ended):
            self.emit(Notice(said))
        for call in self._calls.all():
            self.emit(Notice(f"the model calls a tool: {describe(call)}"))

    def _strange(self) -> Failed:
        return Failed(f"{self.peer.host} sent an event that is not part of the protocol", "/retry")

    def _tell_once(self, about: str, words: str) -> None:
        if about not in self.peer.told:
            self.peer.told.add(about)
            self.emit(Notice(words))

    # the record

    def done(self, finish: str) -> Reply:
        """Return the reply's record."""
        made = positive_int(self._usage.get("completion_tokens")) or self._count
        asked = positive_int(self._usage.get("prompt_tokens")) or len(self._prompt)
        details = self._usage.get("prompt_tokens_details")
        kept = positive_int(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
        span, seed = self._last - self._first, self.sent().get("seed")
        raw = "".join(self._texts)
        begun, own = self._parts(raw)
        request = self.request
        return Reply(
            text=own.answer,
            raw=raw,
            thinking=own.thinking,
            tool_calls=(*own.tool_calls, *self._calls.all()),
            prompt_ids=tuple(self._prompt),
            token_ids=tuple(self._ids) if len(self._ids) in (made, made - 1) else (),  # some omit the end token
            finish=finish,
            model=self._described(),
            load={},
            decode=self._decode(),
            seed=seed if isinstance(seed, int) else None,
            usage=Usage(asked, kept, made),
            timing=Timing(
                ttft_s=self._first - self.began if self._first else None,
                prefill_tps=None,
                decode_tps=(made - 1) / span if made > 1 and span > MIN_SPAN_S else None,
                total_s=time.monotonic() - self.began,
            ),
            dropped=tuple(self.dropped),
            system=request.system,
            prefill=request.prefill,
            begun=begun,
            measures=self._tally.measures(),
        )

    def _parts(self, raw: str) -> tuple[Parts, Parts]:
        """Return the parts of the prefill, and of the generated text."""
        if not self.request.chats:
            return Parts(), Parts(answer=raw)
        if rest := self._reader.end():
            self.emit(Token("", pieces=rest))
        whole = self._reader.parts()
        own = whole.since(self._begun)
        return (Parts(), whole) if own is None else (self._begun, own)

    def _described(self) -> ServedModel:
        served = self._model or self.peer.model or self.peer.host
        return ServedModel(
            id=short_id(served),
            context=self.peer.context,
            server=self.peer.host,
            kind=self.peer.kind.name,
            served=served,
            asked=self.peer.model,
            fingerprint=self._fingerprint,
            sent=self.sent(),
            ended=self._ended,
            counted="by the server" if self._usage else "by pieces",
            logprobs=f"of the {self._tally.limit} likeliest" if self._tally.begun else "",
        )

    def _decode(self) -> dict[str, object]:
        """Return the decoding values in effect at the server; its own defaults are not known."""
        kind, settings, chats = self.peer.kind, self.request.settings, self.request.chats
        table, fields = decoding.effective_values(settings, SERVER_DEFAULTS), kind.fields(chats)
        gone = {*unheeded_settings(settings, kind, chats), *self.peer.refused, *LOCAL}
        gone |= {name for name, theirs in fields.items() if self.peer.renamed.get(theirs, theirs) in self.peer.refused}
        if settings.decode.max_new_tokens is None:
            gone.add("max_new_tokens")
        found = {
            name: item.value for name, item in table.items() if item.value not in (None, (), "") and name not in gone
        }
        return found | ({"max_new_tokens": self.room} if self.room and "max_new_tokens" in found else {})
