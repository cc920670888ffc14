"""Chat templates are programs of strangers: they run in a process of their own, bounded in time, memory and output."""

import atexit
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, cast

from repl.errors import Failed
from repl.jinja import MEMORY, SECONDS
from repl.worker import Emit, aside

START = 30.0  # seconds a process may take to be ready
WAY_OUT = ("/mode complete", "/raw TEXT")  # plain rendering needs no template
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What every template is given: names that are nobody's to set."""


@dataclass(frozen=True, slots=True)
class Chat:
    """One rendering to make."""

    messages: Sequence[Mapping[str, Any]]
    generation_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one rendering: its text, or a sentence on why there is none; `refused` is the author's own."""

    text: str = ""
    error: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a template says about itself: the variables it reads, and the literal text in it."""

    variables: frozenset[str]
    literals: str


def read(template: str, emit: Emit) -> Reading:
    """Parse a template without running it; raises `Failed` where it is none."""
    answer = _ask({"template": template}, emit)
    return Reading(frozenset(answer["variables"]) - GIVEN, answer["literals"])


def render(template: str, chats: Sequence[Chat], variables: Mapping[str, Any], emit: Emit) -> list[Outcome]:
    """Render several chats, an outcome for each; raises `Failed` when the bounds are passed."""
    listed = [{"messages": list(chat.messages), "add_generation_prompt": chat.generation_prompt} for chat in chats]
    answer = _ask({"template": template, "chats": listed, "variables": dict(variables)}, emit)
    return [Outcome(**outcome) for outcome in answer["outcomes"]]


# the process, from outside


@dataclass(slots=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    ready: bool = False
    pipes: tuple[Any, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.pipes = (self.process.stdin, self.process.stdout)

    def line(self) -> bytes:
        return cast(bytes, self.pipes[1].readline())

    def send(self, line: bytes) -> None:
        self.pipes[0].write(line)
        self.pipes[0].flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in self.pipes:
            with suppress(OSError):  # what was not sent yet cannot be
                pipe.close()


class _Watch:
    """The job's `check`, with an eye on the memory of the process: where the system itself keeps no limit."""

    def __init__(self, emit: Emit, child: _Child) -> None:
        import psutil

        self._emit = emit
        with suppress(psutil.Error):
            self._process = psutil.Process(child.process.pid)

    def check(self) -> None:
        import psutil

        self._emit.check()
        with suppress(psutil.Error, AttributeError):
            if self._process.memory_info().rss > MEMORY:
                raise _too_much("memory")


_idle: SimpleQueue[_Child] = SimpleQueue()


def prepare() -> None:
    """Start a process ahead of its first use, which then does not wait for it."""
    if _idle.empty():
        _idle.put(_started())


@atexit.register
def close() -> None:
    """End the processes that wait for work; they end by themselves when this one does."""
    with suppress(Empty):
        while True:
            _idle.get_nowait().end()


def _started() -> _Child:
    paths = [path for path in sys.path if path]
    code = "import sys; sys.path[:] = sys.argv[1:]; from repl.jinja import serve; serve()"
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is not meant for it
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise Failed(f"no process for the chat template can be started: {error.strerror}", *WAY_OUT) from error
    return _Child(process)


def _taken(emit: Emit) -> _Child:
    """Return a process that is alive and listens."""
    child = None
    with suppress(Empty):
        child = _idle.get_nowait()
    if child is None or child.process.poll() is not None:
        child = _started()
    with _ended_on_failure(child):
        if not child.ready:
            child.ready = aside(child.line, emit, START) == b"ready\n"
        if not child.ready:
            raise Failed("the process for the chat template does not start", *WAY_OUT)
    return child


@contextmanager
def _ended_on_failure(child: _Child) -> Iterator[None]:
    try:
        yield
    except BaseException:  # a cancel too: what it would answer is nobody's any more
        child.end()
        raise


def _ask(request: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    child = _taken(emit)
    line = json.dumps(request).encode() + b"\n"
    with _ended_on_failure(child):
        try:
            answer = aside(lambda: _exchanged(child, line), cast(Emit, _Watch(emit, child)), SECONDS)
        except TimeoutError:
            raise Failed(f"the chat template is not done after {SECONDS:g} s", *WAY_OUT) from None
        except OSError:
            answer = b""
        if not answer:
            raise _too_much("memory or recursion")
    _idle.put(child)
    found: dict[str, Any] = json.loads(answer)
    if "error" in found:
        raise Failed(found["error"], *WAY_OUT)
    return found


def _exchanged(child: _Child, line: bytes) -> bytes:
    child.send(line)
    return child.line()


def _too_much(what: str) -> Failed:
    return Failed(f"the chat template needs too much {what}", *WAY_OUT)
