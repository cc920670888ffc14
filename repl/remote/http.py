"""Talk to an OpenAI-compatible server: requests out, streamed events in, every fault as one sentence.

Not `huggingface_hub.InferenceClient` but the HTTP library below it: that client follows redirects, sends the stored Hub
token to any address, refuses all addresses while the Hub is offline, cuts events at every separator that `splitlines`
knows (so that a raw U+2028 inside a text breaks the JSON), does not say whether a stream ended or broke off, cannot be
stopped before the first byte, and has no `/v1/completions`.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from repl.core.errors import Failed, ReplError, Unreachable, UsageError
from repl.core.explain import sentence
from repl.core.jobs import JobContext, stream_from_thread
from repl.remote.refusals import Refusal, one_line, read_error, read_event_error

if TYPE_CHECKING:
    from httpx2 import Client

CONNECT_TIMEOUT_S = 10.0  # seconds for a connection to come about
ANSWER_TIMEOUT_S = 20.0  # seconds for an answer that is no stream
MAX_ANSWER_BYTES = 16 << 20  # bytes of one event, or of one answer that is no stream
MAX_ERROR_BYTES = 1 << 16  # bytes read of an answer that refuses
HUB_HOSTS = ("huggingface.co", "hf.co")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is; the key is in no text about it."""

    url: str
    """The base, as `http://127.0.0.1:8000/v1`."""
    key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """Return host and port."""
        return urlsplit(self.url).netloc

    @property
    def loopback(self) -> bool:
        """Tell whether it is this machine."""
        name = urlsplit(self.url).hostname or ""
        with suppress(ValueError):
            return ipaddress.ip_address(name).is_loopback
        return name == "localhost"

    @property
    def encrypted(self) -> bool:
        """Tell whether nobody between can read along."""
        return self.url.startswith("https://")

    @property
    def hub(self) -> bool:
        """Tell whether the Hub's own token may go there."""
        name = urlsplit(self.url).hostname or ""
        return self.encrypted and any(name == known or name.endswith("." + known) for known in HUB_HOSTS)


def read_address(words: str) -> Address:
    """Read a URL: the scheme may be left out, and `/v1` where there is no path; raises `UsageError`."""
    text = words.strip()
    try:
        whole = text if "://" in text else f"http://{text}"
        parts = urlsplit(whole)
        host, _ = parts.hostname, parts.port  # raises for a port that is none
    except ValueError as error:
        raise UsageError(f"{text!r} is not a URL: {error}", "/connect http://127.0.0.1:8000") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("a key does not belong into the URL", "/connect URL --key-env NAME")
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() for letter in whole):
        raise UsageError(f"{text!r} is not the URL of a server", "/connect http://127.0.0.1:8000")
    found = Address(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}")
    if "://" not in text and not found.loopback:
        return Address("https" + found.url.removeprefix("http"))
    return found


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The beginning of an answer."""

    status: int
    kind: str
    wait: str
    goes: str


class ServerConnection:
    """One server; requests may be made on any thread, each is one connection."""

    def __init__(self, where: Address) -> None:
        self.where = where
        self._client: Client | None = None

    def close(self) -> None:
        """Let go of what is open."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def ask(
        self, path: str, emit: JobContext, body: Mapping[str, object] | None = None, beside: bool = False
    ) -> object:
        """Return the JSON that a path holds, or answers a body with; raises `Refused` and `ReplError`.

        `beside` means a path of the server that is not below the base.
        """
        base = self.where.url.removesuffix("/v1") if beside else self.where.url
        pieces = self._pieces("GET" if body is None else "POST", base + path, body, emit, ANSWER_TIMEOUT_S)
        if body is not None:
            next(pieces)
        try:
            return json.loads(read_bounded(pieces, MAX_ANSWER_BYTES).decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError) as error:
            raise self._stranger("something that is not JSON") from error

    def stream(self, path: str, body: Mapping[str, object], emit: JobContext) -> Iterator[Mapping[str, object]]:
        """Send a request and yield the events of its answer; one that does not stream is one event.

        Ends where the server says `[DONE]`, which is `END`, or closes in order; raises `Refused` for an error in place
        of an answer or of an event, `Failed` for what breaks off or is no event, `Cancelled`.
        """
        pieces = self._pieces("POST", self.where.url + path, body, emit, 0.0)
        try:
            streams = next(pieces) == STREAM.encode()
            whole = () if streams else [("", read_bounded(pieces, MAX_ANSWER_BYTES).decode("utf-8-sig", "replace"))]
            for kind, data in read_events(pieces) if streams else whole:
                if data.strip() == "[DONE]":
                    yield END
                    return
                yield self._event(kind, data)
        finally:
            pieces.close()

    def _event(self, kind: str, data: str) -> Mapping[str, object]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            if data.startswith('{"error": "'):  # `transformers serve` writes it without escapes
                raise Refusal(0, read_error(self._clean(data[11:].removesuffix('"}')))) from error
            shown = one_line(self._clean(data), 60)
            raise Failed(f"{self.where.host} sent an event that is not JSON: {shown!r}", "/retry") from error
        if not isinstance(found, dict):
            raise Failed(f"{self.where.host} sent an event that is no object", "/retry")
        if found.get("error") or found.get("object") == "error" or kind == "error":
            raise read_event_error(json.loads(self._clean(data)))
        return found

    def _pieces(
        self, method: str, url: str, body: Mapping[str, object] | None, emit: JobContext, seconds: float
    ) -> Generator[bytes]:
        """Yield what kind of answer comes (for a POST), then its bytes."""
        line = CancellableSocket()

        def work(put: Callable[[Any], None]) -> None:
            content = None if body is None else json.dumps(body).encode()
            with self._opened().stream(method, url, content=content, extensions={"trace": line.watch}) as answer:
                names = ("content-type", "retry-after", "location")
                put(ResponseHead(answer.status_code, *(answer.headers.get(name, "") for name in names)))
                for piece in answer.iter_bytes():
                    put(piece)

        pieces = stream_from_thread(work, emit, line.cut, seconds)
        begun = False
        try:
            head = next(pieces)
            self._accept(head, pieces)
            if method == "POST":
                yield self._kind(head)
            begun = True
            yield from pieces
        except TimeoutError as error:
            raise Unreachable(f"{self.where.host} does not answer", "/connect URL") from error
        except (self._faults(), OSError) as error:
            raise self._broken(error, begun) from error
        finally:
            pieces.close()

    def _opened(self) -> "Client":
        if self._client is None:
            import httpx2

            headers = {"User-Agent": "hub-repl", "Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self.where.key:
                headers["Authorization"] = f"Bearer {self.where.key}"
            self._client = httpx2.Client(
                headers=headers,
                follow_redirects=False,
                # what stays on this machine goes through no proxy
                mounts=dict.fromkeys(("http://", "https://", "all://")) if self.where.loopback else None,
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                limits=httpx2.Limits(max_keepalive_connections=0),
            )
        return self._client

    def _faults(self) -> type[Exception]:
        import httpx2

        kind: type[Exception] = httpx2.HTTPError
        return kind

    def _accept(self, head: ResponseHead, pieces: Iterator[bytes]) -> None:
        if 300 <= head.status < 400:
            goes = f" to {one_line(self._clean(head.goes), 80)}" if head.goes else ""
            raise Failed(f"{self.where.host} redirects{goes}; redirects are not followed", "/connect URL")
        if head.status >= 400:
            body = self._clean(read_bounded(pieces, MAX_ERROR_BYTES).decode("utf-8", "replace"))
            raise Refusal(head.status, read_error(body), head.wait)

    def _kind(self, head: ResponseHead) -> bytes:
        kind = head.kind.partition(";")[0].strip().lower()
        if kind not in (STREAM, "application/json"):
            raise self._stranger(one_line(kind, 40) or "no content type")
        return kind.encode()

    def _stranger(self, what: str) -> ReplError:
        return Failed(f"{self.where.host} does not speak the OpenAI protocol: it answers {what}", "/connect URL")

    def _broken(self, error: Exception, begun: bool) -> ReplError:
        import httpx2

        host, words = self.where.host, re.sub(r"^\[Errno -?\d+\] |\(_ssl.*", "", self._clean(sentence(error))).strip()
        if begun:
            return Failed(f"{host} broke off in the middle of its answer", "/retry")
        if "CERTIFICATE" in words:
            return Unreachable(f"the certificate of {host} cannot be trusted: {words}")
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError | OSError):
            return Unreachable(f"no server answers at {host}: {words}", "/connect URL")
        return Failed(f"{host} broke off before it answered: {words}", "/retry")

    def _clean(self, text: str) -> str:
        """Take the key out of what a server says: some repeat it."""
        return text.replace(self.where.key, "(key)") if self.where.key else text


STREAM = "text/event-stream"
TIMES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
KEEPALIVE = (  # the socket options by which a peer that vanished is noticed
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in TIMES.items() if hasattr(socket, name)),
)
END: Mapping[str, object] = {"choices": []}


class CancellableSocket:
    """The connection of one request: it can be cut from another thread, in every phase."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._over = False

    def watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of a connection that comes about."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            for option in KEEPALIVE if name.endswith("connect_tcp.complete") else ():
                self._socket.setsockopt(*option)
            if self._over:
                self.cut()

    def cut(self) -> None:
        """End the connection; a thread that waits for it wakes up."""
        self._over = True
        if self._socket is not None:
            with suppress(OSError):  # closed already
                # not the method of an encrypted socket: that one would change it under the thread that reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def read_events(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield kind and data of server-sent events, however the bytes are cut.

    Raises `Failed` for one that does not end.
    """
    import httpx2

    answer = httpx2.Response(
        200,
        headers={"Content-Type": STREAM},
        content=chain(pieces, [b"\n\n"]),  # some servers end without the blank line
        request=httpx2.Request("POST", "http://server"),
        default_encoding="utf-8-sig",  # a byte order mark is none of the first event
    )
    try:
        yield from ((event.event, event.data) for event in httpx2.EventSource(answer, MAX_ANSWER_BYTES) if event.data)
    except httpx2.SSEError as error:
        raise Failed(f"an event is larger than {MAX_ANSWER_BYTES >> 20} MiB", "/retry") from error


def read_bounded(pieces: Iterator[bytes], most: int) -> bytes:
    """Return an answer, or as much of it as is worth having."""
    found: list[bytes] = []
    size = 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > most:
            break
    return b"".join(found)
