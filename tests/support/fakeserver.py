"""A server on the loopback that answers as it was told, byte for byte and fault for fault."""

import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

HOLD = "hold"  # wait until the client closes
CUT = "cut"  # close in the middle of the answer
DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """What comes back: pieces of the body, each an HTTP chunk; a number is a pause in seconds, or HOLD, or CUT."""

    pieces: Sequence[bytes | float | str] = ()
    status: int = 200
    kind: str = SSE
    headers: dict[str, str] = field(default_factory=dict)
    silent: float = 0.0  # seconds before the first byte; below 0: for ever


def event(value: Any) -> bytes:
    """Return one event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, **delta: Any) -> bytes:
    """Return a piece of a chat reply."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": {**content, **delta}, "finish_reason": finish}
    return event({"id": "1", "object": "chat.completion.chunk", "model": "served", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    """Return the last event of a server that counts."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event({"id": "1", "model": "served", "choices": [], "usage": counts})


def chat(*texts: str, finish: str = "stop") -> Answer:
    """Return a whole reply in good order."""
    pieces = [chunk(role="assistant"), *(chunk(text) for text in texts), chunk(finish=finish)]
    return Answer([*pieces, usage(7, len(texts)), DONE])


def completion(*texts: str, finish: str = "stop") -> Answer:
    """Return a whole continuation in good order."""
    ends = [None] * len(texts) + [finish]
    choices = [{"index": 0, "text": text, "finish_reason": end} for text, end in zip([*texts, ""], ends, strict=True)]
    return Answer([*(event({"model": "served", "choices": [one]}) for one in choices), DONE])


def refusal(status: int, words: str, **headers: str) -> Answer:
    """Return an error as most servers give it."""
    return as_json({"error": {"message": words, "type": "error"}}, status, **headers)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """Return an answer that is no stream."""
    return Answer([json.dumps(value).encode()], status, "application/json", headers)


def models(*names: str, **facts: Any) -> Answer:
    """Return the list of models."""
    return as_json({"object": "list", "data": [{"id": name, "object": "model", **facts} for name in names]})


class FakeServer:
    """A running server: `answers` are taken one after another, the last one again and again; `asked` is what came."""

    def __init__(self, *answers: Answer, listed: Answer | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers) or [chat("Hello", " there.")]
        self.listed = listed or models("served", owned_by="vllm", max_model_len=4096)
        self.asked: list[Asked] = []
        self.left = Event()  # the client closed a connection that was held
        self._tls = tls
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http{'s' if tls else ''}://{self.host}/v1"

    def __enter__(self) -> "FakeServer":
        Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [self._listener, *self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    @property
    def sent(self) -> list[Any]:
        """Return the bodies of the requests for text."""
        return [asked.body for asked in self.asked if asked.method == "POST"]

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), self._wrapped(connection) as connection, connection.makefile("rb") as stream:
            if (asked := read(stream)) is None:
                return
            self.asked.append(asked)
            try:
                self._answer(connection, self._next(asked))
            except OSError:  # it went away while something was sent
                self.left.set()

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(connection, server_side=True) if self._tls else connection

    def _next(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return self.listed
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _answer(self, connection: socket.socket, answer: Answer) -> None:
        if answer.silent and self._wait(connection, answer.silent):
            return
        names = {"Content-Type": answer.kind, "Transfer-Encoding": "chunked", "Connection": "close", **answer.headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in names.items())
        connection.sendall(f"HTTP/1.1 {answer.status} said\r\n{head}\r\n".encode())
        for piece in answer.pieces:
            if piece == CUT:
                return
            if isinstance(piece, bytes):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            elif self._wait(connection, -1 if isinstance(piece, str) else piece):
                return
        connection.sendall(b"0\r\n\r\n")

    def _wait(self, connection: socket.socket, seconds: float) -> bool:
        """Wait, for ever if `seconds` is below 0; True if the client went away meanwhile."""
        connection.settimeout(seconds if seconds > 0 else 60)
        try:
            gone = connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            gone = True
        finally:
            with suppress(OSError):
                connection.settimeout(None)
        if gone:
            self.left.set()
        return gone


def read(stream: Any) -> Asked | None:
    """Read one request; None if the client goes away before its end."""
    first = stream.readline().decode().split()
    if len(first) < 2:
        return None
    headers = dict(rows(stream))
    length = int(headers.get("content-length", 0))
    body = stream.read(length)
    if len(body) < length:
        return None
    return Asked(first[0], first[1], headers, json.loads(body) if body else None)


def rows(stream: Any) -> Iterator[tuple[str, str]]:
    """Read the headers, names in lower case."""
    while (row := stream.readline().decode().strip()) != "":
        name, _, value = row.partition(":")
        yield name.lower(), value.strip()
