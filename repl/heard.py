"""One reply of a server: what is asked, what comes, and the record of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repl import context, decoding, thinking
from repl.decoding import PENALTIES, Base
from repl.errors import Failed
from repl.events import Done, Echo, Notice, Opening, Timing, Token, Usage
from repl.protocol import DIALECTS, EXTRAS, parameters, plain, scored, wanted, whole
from repl.request import Request
from repl.settings import named
from repl.tally import Tally
from repl.wire import END
from repl.worker import Emit

BASE = Base({}, {"do_sample": True}, frozenset(PENALTIES))
"""What a server brings to decoding: what is not set is its own to choose, and servers sample."""
AT_ONCE = 0.001  # seconds within which pieces that came in one go are taken: they say nothing about a speed
SLACK = 4  # a server that sends this many times the pieces it was allowed tokens does not stop by itself


@dataclass(frozen=True, slots=True)
class Peer:
    """The server as its replies see it: the parameters that it refused, and what was said of it already."""

    host: str
    model: str
    context: int
    refused: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    owner: str = ""


class Heard:
    """One reply on its way: what is asked, what has come so far, and the record of it."""

    def __init__(self, peer: Peer, request: Request, emit: Emit, began: float) -> None:
        self.peer, self.request, self.emit, self.began = peer, request, emit, began
        self.path = "/chat/completions" if request.chats else "/completions"
        self.messages = [*request.messages]
        self.turns = [*request.turns]
        self.dropped: list[int] = []
        self.waits = 0
        self.limit = int(decoding.effective(request.settings, BASE)["max_new_tokens"].value or 0)
        self.finish = ""
        self._model = ""
        self._pieces: list[str] = []
        self._count = 0  # tokens as far as they came one by one
        self._usage: Mapping[str, Any] = {}
        self._first = self._last = 0.0
        self._thinks = self._opened = False
        self._asked = wanted(request.settings)
        self._tally = Tally(self._asked)
        self._half = ""  # the first half of a character beyond U+FFFF

    # ask

    def body(self) -> dict[str, Any]:
        """Return the request as it is sent, without what the server refused before."""
        given = {**self._what(), **parameters(self.request.settings, BASE, self.request.chats)}
        model = {"model": self.peer.model} if self.peer.model else {}
        given = {self._theirs(name): value for name, value in given.items()}
        whole = {**model, **given, "stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in whole.items() if name not in self.peer.refused}

    def _theirs(self, name: str) -> str:
        return DIALECTS.get(self.peer.owner, {}).get(name, name)

    def _what(self) -> dict[str, Any]:
        if not self.request.chats:
            return {"prompt": self.request.text}
        said = [plain(message) for message in self.messages]
        if not self.request.prefill:
            return {"messages": said}
        begun = {"role": "assistant", "content": self.request.prefill}
        return {"messages": [*said, begun], "continue_final_message": True, "add_generation_prompt": False}

    def shorten(self) -> bool:
        """Leave out the oldest exchange, where that is allowed and there is one."""
        gone = context.oldest(self.messages) if self.request.settings.decode.overflow == "drop_oldest" else []
        if gone:
            self.dropped += [self.turns[place] for place in gone]
            self.emit(Notice(f"turns {self.turns[gone[0]]} to {self.turns[gone[-1]]} left out: the context is full"))
            self.messages = [one for place, one in enumerate(self.messages) if place not in gone]
            self.turns = [turn for place, turn in enumerate(self.turns) if place not in gone]
        return bool(gone)

    # hear

    @property
    def endless(self) -> bool:
        """Tell whether the server does not stop by itself."""
        return self._count > SLACK * self.limit + 64

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of the stream; raises `Failed` for one that is not of the protocol, and `Cancelled`."""
        if event is END and self._pieces:
            self.finish = self.finish or "stop"
        self._model = str(event.get("model") or self._model)
        self._usage = event["usage"] if isinstance(event.get("usage"), Mapping) else self._usage
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, Mapping):
                raise Failed(f"{self.peer.host} sent an event that is not of the protocol", "/retry")
            self._choice(choice)

    def _choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if not isinstance(delta, Mapping):
            raise Failed(f"{self.peer.host} sent an event that is not of the protocol", "/retry")
        self._open()
        thought, answer = (delta.get("reasoning_content") or delta.get("reasoning")), delta.get("content")
        given = choice.get("logprobs") if self._asked else None
        if isinstance(thought, str) and thought:
            self._say(scored(thought, None if answer else given), thinks=True)
        # figures without a text: a token that does not end a character, or ends the reply
        if isinstance(answer, str) and (answer or (given and not thought)):
            self._say(scored(answer, given), thinks=self._thinks and not answer)
        if choice.get("finish_reason"):
            self.finish = "length" if choice["finish_reason"] == "length" else "stop"

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        if self.request.chats:
            self.emit(Opening(thinking.Marks()))
        if begun := self.request.prefill or self.request.text:
            self.emit(Echo(begun))

    def _say(self, tokens: list[tuple[Token, str]], thinks: bool) -> None:
        """Pass text on, with the tags by which thinking is told apart everywhere else around what was thought."""
        mark = ("<think>\n" if thinks else "\n</think>\n\n") if thinks != self._thinks else ""
        self._thinks = thinks
        if self._asked and tokens and not thinks:
            self._tell_measures(tokens[0][0])
        for token, name in tokens:
            own = self._paired(token.text)
            text = mark + own
            # before the first token with figures a mark is part of what stands in front of them
            self._tally.take(token, name, len(text if self._tally.begun else own))
            mark = ""
            self._last = time.monotonic()
            self._first = self._first or self._last
            self.emit(Token(text, None, token.logprob, token.entropy, token.top))
            self._pieces.append(text)
            self._count += 1

    def _paired(self, text: str) -> str:
        """Put the halves of a character together that two events bring."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

    def end(self) -> None:
        """Take note of the end of the stream; raises `Failed` where it broke off, though in order."""
        if not (self.finish or self._usage or self._pieces):
            raise Failed(f"{self.peer.host} answered with nothing", "/retry")
        if not self.finish:
            if not self.endless:
                raise Failed(f"{self.peer.host} closed before the reply had ended", "/retry")
            self.finish = "length"

    def _tell_measures(self, first: Token) -> None:
        """Say what the server does not give, before the first text of the answer: a line of its own."""
        if first.logprob is None and not self._tally.begun:
            self._tell_once("log-probabilities", f"{self.peer.host} gives no log-probabilities")
        elif self.request.settings.view.probs == "entropy":
            self._tell_once("entropy", f"{self.peer.host} gives no entropy: the colours go by probability")

    def _tell_once(self, about: str, words: str) -> None:
        if about not in self.peer.told:
            self.peer.told.add(about)
            self.emit(Notice(words))

    # tell

    def done(self, finish: str) -> Done:
        """Return the reply with its record."""
        made = whole(self._usage.get("completion_tokens")) or self._count
        asked = whole(self._usage.get("prompt_tokens"))
        details = self._usage.get("prompt_tokens_details")
        kept = whole(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
        span = self._last - self._first
        self._tally.rest(len(self._half))
        return Done(
            text="".join(self._pieces) + self._half,
            prompt_ids=(),
            token_ids=(),
            finish=finish,
            model=self._described(),
            load={},
            decode=self._decode(),
            seed=self.body().get("seed"),
            usage=Usage(asked, kept, made),
            timing=Timing(
                ttft_s=self._first - self.began if self._first else None,
                prefill_tps=None,
                decode_tps=(made - 1) / span if made > 1 and span > AT_ONCE else None,
                total_s=time.monotonic() - self.began,
            ),
            dropped=tuple(self.dropped),
            measures=self._tally.measures(),
        )

    def _described(self) -> dict[str, Any]:
        sent = {name: value for name, value in self.body().items() if name not in ("messages", "prompt", "model")}
        served = self.peer.model or self._model or self.peer.host
        unknown = {"revision": "", "commit": "", "dtype": "", "device_map": {}, "quantization": "", "parameters": 0}
        return {
            "id": named(served),
            **unknown,
            "context": self.peer.context,
            "bytes": 0,
            "server": self.peer.host,
            "served": served,
            "sent": sent,
            "counted": "by the server" if self._usage else "by pieces",
            "logprobs": f"of the {self._tally.limit} likeliest" if self._tally.begun else "",
        }

    def _decode(self) -> dict[str, Any]:
        table = decoding.effective(self.request.settings, BASE)
        unset = (None, ())
        refused = self.peer.refused
        gone = {name for name, theirs in EXTRAS.items() if self._theirs(theirs) in refused} | refused
        return {name: item.value for name, item in table.items() if item.value not in unset and name not in gone}
