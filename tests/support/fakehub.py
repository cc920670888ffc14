"""A Hub on the loopback: enough of its HTTP interface for the libraries to find models, and to fail at it."""

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlparse

CHUNK = 65536


@dataclass(frozen=True)
class Request:
    """One request as it came in; `token` tells whether it carried one."""

    method: str
    path: str
    token: bool


@dataclass(frozen=True)
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches `on`."""

    on: str = ""
    status: int = 0  # answer with this status
    silent: bool = False  # accept, and never answer
    drop_at: int | None = None  # send the file as far as this byte, then cut the connection
    delay: float = 0.0  # seconds before each chunk
    missing: int = 0  # bytes that the length promises less than the file has

    def touches(self, request: Request) -> bool:
        return re.search(self.on, f"{request.method} {request.path}") is not None


@dataclass
class Repo:
    """A repository: folders by revision, and who may read it."""

    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    claims: dict[str, int] = field(default_factory=dict)  # sizes that the description gives, true or not
    facts: dict[str, Any] = field(default_factory=dict)  # what the Hub knows besides: downloads, tags, cardData, ...

    def files(self, commit: str) -> dict[str, Path]:
        folder = next(path for name, path in self.revisions.items() if commit in (name, sha(path)))
        return {str(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, revision: str) -> str:
        """Return the commit of a branch or of itself, '' where there is none."""
        commits = {name: sha(path) for name, path in self.revisions.items()}
        return commits.get(revision) or (revision if revision in commits.values() else "")


class FakeHub:
    """A running fake Hub: `add` models, set `fault`, read `requests`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.sent = 0  # bytes of files, over all requests
        self.fault = Fault(on="^$")
        self.connections: list[socket.socket] = []
        self.closing = Event()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, model: str, folder: Path, revision: str = "main", **options: Any) -> str:
        """Serve a folder as a revision of a model; returns its commit."""
        repo = self.repos.setdefault(model, Repo(**options))
        repo.revisions[revision] = folder
        return sha(folder)

    def asked(self, method: str = "", part: str = "") -> list[str]:
        """List the paths of the requests so far."""
        return [each.path for each in self.requests if method in each.method and part in each.path]

    def environment(self) -> dict[str, str]:
        """Variables that point a child process here."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def attach(self, monkeypatch: Any) -> None:
        """Point the libraries of this process here; they read the environment only once, at import."""
        from huggingface_hub import constants, hf_api, utils

        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_HOME", self.url + "/")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)  # what the library's module-level functions use
        utils.close_session()  # a client made before may hold other proxies

    def __enter__(self) -> "FakeHub":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


def sha(folder: Path) -> str:
    """Name the state of a folder as a commit."""
    total = hashlib.sha1()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder)} {digest(path)}\n".encode())
    return total.hexdigest()


def digest(path: Path) -> str:
    return _digest(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(maxsize=1000)
def _digest(path: Path, *_: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Refusal(Exception):
    """An answer that is an error: status, the Hub's code for it, words."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        request = Request(self.command, unquote(self.path), self.headers.get("Authorization") is not None)
        self.hub.requests.append(request)
        fault = self.hub.fault if self.hub.fault.touches(request) else Fault()
        with suppress(ConnectionError, BrokenPipeError):
            if fault.silent:
                self.hub.closing.wait(60)
                self.close_connection = True
            elif fault.status:
                self.refuse(fault.status, "", "so it was told")
            else:
                self.answer(urlparse(self.path), fault)

    def answer(self, url: Any, fault: Fault) -> None:
        try:
            if found := re.fullmatch(r"/api/models/(.+?)(?:/(revision|refs)(?:/(.+))?)?", url.path):
                self.describe(*map(unquote, found.groups("")), sized="blobs" in parse_qs(url.query))
            elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", url.path):
                self.send_file(*self.lookup(*map(unquote, found.groups())), fault)
            elif url.path == "/api/models":
                self.send_json(self.listing(parse_qs(url.query)))
            else:
                raise Refusal(404, "", "nothing here")
        except Refusal as refusal:
            self.refuse(*refusal.args)

    def listing(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """List models as the Hub does: of those whose name holds the word the most downloaded first."""
        word, task = (query.get(name, [""])[0] for name in ("search", "pipeline_tag"))
        found = [
            {"id": name, "modelId": name, "gated": "manual" if repo.gated else False, **repo.facts}
            for name, repo in self.hub.repos.items()
            if word.lower() in name.lower() and task in ("", repo.facts.get("pipeline_tag", task)) and not repo.private
        ]
        found.sort(key=lambda each: -each.get("downloads", 0))
        asked = {"id", "modelId", *query["expand"]} if "expand" in query else None
        most = int(query.get("limit", ["1000"])[0])
        return [{key: value for key, value in each.items() if not asked or key in asked} for each in found[:most]]

    def repo(self, model: str) -> Repo:
        repo = self.hub.repos.get(model)
        if repo is None or repo.private:
            raise Refusal(401, "RepoNotFound", "Repository not found")
        return repo

    def commit(self, repo: Repo, revision: str) -> str:
        commit = repo.commit(revision)
        if not commit:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def describe(self, model: str, kind: str, revision: str, sized: bool) -> None:
        repo = self.repo(model)
        if kind == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha(path)}
                for name, path in repo.revisions.items()
            ]
            self.send_json({"branches": branches, "converts": [], "tags": []})
            return
        commit = self.commit(repo, revision or "main")
        files = [(name, repo.claims.get(name, path.stat().st_size)) for name, path in repo.files(commit).items()]
        siblings = [{"rfilename": name, **({"size": size, "blobId": "0"} if sized else {})} for name, size in files]
        gated = "manual" if repo.gated else False
        self.send_json({"id": model, "sha": commit, "gated": gated, "siblings": siblings, **repo.facts})

    def lookup(self, model: str, revision: str, name: str) -> tuple[str, Path]:
        """Return the commit and the file that a download asks for."""
        repo = self.repo(model)
        if repo.gated:
            raise Refusal(403, "GatedRepo", f"Access to model {model} is restricted")
        commit = self.commit(repo, revision)
        path = repo.files(commit).get(name)
        if path is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        return commit, path

    def send_file(self, commit: str, path: Path, fault: Fault) -> None:
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        end = size - (fault.missing if self.command == "GET" else 0)
        end = min(end, int(wanted[2]) + 1) if wanted and wanted[2] else end
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in {"X-Repo-Commit": commit, "ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.send_body(path.read_bytes()[start : end if fault.drop_at is None else fault.drop_at], fault)

    def send_body(self, body: bytes, fault: Fault) -> None:
        for chunk in pieces(body, CHUNK):
            if fault.delay and self.hub.closing.wait(fault.delay):
                break
            self.wfile.write(chunk)
            self.hub.sent += len(chunk)
        if fault.drop_at is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def refuse(self, status: int, code: str, words: str) -> None:
        self.send_json({"error": words}, status, {"X-Error-Code": code, "X-Error-Message": words} if code else {})

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, word in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, word)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))
