"""HTTP with an OpenAI-compatible server: requests out, streamed events in, every fault as one sentence.

Not `huggingface_hub.InferenceClient` but the HTTP library below it: that client follows redirects, sends the stored Hub
token to any address, refuses all addresses while the Hub is offline, cuts events at every separator that `splitlines`
knows (so that a raw U+2028 inside a text breaks the JSON), does not say whether a stream ended or broke off, cannot be
stopped before the first byte, and has no `/v1/completions`.
"""

import json
import re
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import httpx2

from repl.core.errors import Failed, ReplError, Unreachable, sentence
from repl.core.format import shortened
from repl.core.jobs import JobContext, stream_from_thread
from repl.remote.address import Address
from repl.remote.protocol import END
from repl.remote.refusals import Refusal, read_event_error

CONNECT_TIMEOUT_S = 10.0  # seconds to connect
ANSWER_TIMEOUT_S = 20.0  # seconds for an answer that is not a stream
MAX_ANSWER_BYTES = 16 << 20  # bytes of an event, or of an answer that is not a stream
MAX_ERROR_BYTES = 1 << 16  # bytes read of an error response
STREAM = "text/event-stream"
TIMES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
KEEPALIVE = (  # socket options that detect a vanished peer
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in TIMES.items() if hasattr(socket, name)),
)


class ServerConnection:
    """HTTP client for one server; requests may be made on any thread, each has its own connection."""

    def __init__(self, where: Address) -> None:
        self.where = where
        headers = {"User-Agent": "hub-repl", "Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._client = httpx2.Client(
            headers=headers | ({"Authorization": f"Bearer {where.key}"} if where.key else {}),
            follow_redirects=False,
            # no proxy for this machine
            mounts=dict.fromkeys(("http://", "https://", "all://")) if where.loopback else None,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def ask(
        self, path: str, emit: JobContext, body: Mapping[str, object] | None = None, beside: bool = False
    ) -> object:
        """GET a path, or POST a body to it, and return the JSON of the answer; raises `Refusal` and `ReplError`.

        `beside` means a path beside the base URL, not below it.
        """
        base = self.where.url.removesuffix("/v1") if beside else self.where.url
        with self._request("GET" if body is None else "POST", base + path, body, emit, ANSWER_TIMEOUT_S) as (_, pieces):
            try:
                return json.loads(read_bounded(pieces))
            except (ValueError, RecursionError) as error:
                raise self._stranger("something that is not JSON") from error

    def stream(self, path: str, body: Mapping[str, object], emit: JobContext) -> Iterator[Mapping[str, object]]:
        """POST a request and yield the events of its answer; an answer that is not a stream is one event.

        Ends at `[DONE]`, which yields `END`, or when the server closes the stream. Raises `Refusal` for an error in
        place of an answer or an event, `Failed` for a broken connection or an invalid event, `Cancelled`.
        """
        with self._request("POST", self.where.url + path, body, emit) as (said, pieces):
            kind = said.partition(";")[0].strip().lower()
            if kind not in (STREAM, "application/json"):
                raise self._stranger(shortened(kind, 40) or "no content type")
            for name, data in read_events(pieces) if kind == STREAM else [("", read_bounded(pieces))]:
                if data.strip() == "[DONE]":
                    yield END
                    return
                yield self._event(name, data)

    def _event(self, kind: str, data: str) -> Mapping[str, object]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            if data.startswith('{"error": "'):  # `transformers serve` writes it without escapes
                raise Refusal(0, self._clean(data[11:].removesuffix('"}'))) from error
            shown = shortened(self._clean(data), 60)
            raise Failed(f"{self.where.host} sent an event that is not JSON: {shown!r}", "/retry") from error
        if not isinstance(found, dict):
            raise Failed(f"{self.where.host} sent an event that is not a JSON object", "/retry")
        if found.get("error") or found.get("object") == "error" or kind == "error":
            raise read_event_error(json.loads(self._clean(data)))
        return found

    @contextmanager
    def _request(
        self, method: str, url: str, body: Mapping[str, object] | None, emit: JobContext, seconds: float = 0.0
    ) -> Iterator[tuple[str, Generator[bytes]]]:
        """Make a request; the context is the answer's content type and bytes. HTTP errors become `ReplError`s."""
        line = CancellableSocket()

        def work(put: Callable[[Any], None]) -> None:
            content = None if body is None else json.dumps(body).encode()
            with self._client.stream(method, url, content=content, extensions={"trace": line.watch}) as answer:
                put(answer)
                for piece in answer.iter_bytes():
                    put(piece)

        pieces: Generator[Any] = stream_from_thread(work, emit, line.cut, seconds)
        begun = False
        try:
            head = next(pieces)
            self._accept(head, pieces)
            begun = True
            yield head.headers.get("content-type", ""), pieces
        except TimeoutError as error:
            raise Unreachable(f"{self.where.host} does not answer", "/connect URL") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._broken(error, begun) from error
        finally:
            pieces.close()

    def _accept(self, head: httpx2.Response, pieces: Iterator[bytes]) -> None:
        if 300 <= head.status_code < 400:
            goes = shortened(self._clean(head.headers.get("location", "")), 80)
            to = f" to {goes}" if goes else ""
            raise Failed(f"{self.where.host} redirects{to}; redirects are not followed", "/connect URL")
        if head.status_code >= 400:
            body = self._clean(read_bounded(pieces, MAX_ERROR_BYTES))
            raise Refusal(head.status_code, body, head.headers.get("retry-after", ""))

    def _stranger(self, what: str) -> ReplError:
        return Failed(f"{self.where.host} does not speak the OpenAI protocol: it returned {what}", "/connect URL")

    def _broken(self, error: Exception, begun: bool) -> ReplError:
        host, words = self.where.host, re.sub(r"^\[Errno -?\d+\] |\(_ssl.*", "", self._clean(sentence(error))).strip()
        if begun:
            return Failed(f"{host} closed the connection in the middle of its answer", "/retry")
        if "CERTIFICATE" in words:
            return Unreachable(f"the certificate of {host} is not trusted: {words}")
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError | OSError):
            return Unreachable(f"no server answers at {host}: {words}", "/connect URL")
        return Failed(f"{host} closed the connection before it answered: {words}", "/retry")

    def _clean(self, text: str) -> str:
        """Remove the key from a server's text: some servers repeat it."""
        return text.replace(self.where.key, "(key)") if self.where.key else text


class CancellableSocket:
    """The socket of one request, which another thread can shut down in every phase."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._over = False

    def watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of a new connection (httpx2's `trace` extension)."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            for option in KEEPALIVE if name.endswith("connect_tcp.complete") else ():
                self._socket.setsockopt(*option)
            if self._over:
                self.cut()

    def cut(self) -> None:
        """Shut the connection down; a thread that waits for it wakes up."""
        self._over = True
        if self._socket is not None:
            with suppress(OSError):  # closed already
                # not the method of the TLS socket, which would change it under the reading thread
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def read_events(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield kind and data of server-sent events, wherever the bytes are cut.

    Raises `Failed` for an event larger than `MAX_ANSWER_BYTES`.
    """
    answer = httpx2.Response(
        200,
        headers={"Content-Type": STREAM},
        content=chain(pieces, [b"\n\n"]),  # some servers end without the blank line
        request=httpx2.Request("POST", "http://server"),
        default_encoding="utf-8-sig",  # drop a byte order mark
    )
    try:
        yield from ((event.event, event.data) for event in httpx2.EventSource(answer, MAX_ANSWER_BYTES) if event.data)
    except httpx2.SSEError as error:
        raise Failed(f"an event is larger than {MAX_ANSWER_BYTES >> 20} MiB", "/retry") from error


def read_bounded(pieces: Iterable[bytes], most: int = MAX_ANSWER_BYTES) -> str:
    """Return the text of an answer, cut after `most` bytes."""
    found = b""
    for piece in pieces:
        found += piece
        if len(found) > most:
            break
    return found.decode("utf-8-sig", "replace")
