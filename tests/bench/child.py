"""A program in a pseudo-terminal: keys go in, and what comes out is kept with the moment it came."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pexpect
import pyte

MARK = "❯"
PATIENCE = 180.0  # seconds after which a program has hung
SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[^\[]|\s")


class Child:
    """A program at work; use it as a context. Moments are those of `time.monotonic`, the same in every process."""

    def __init__(self, *command: str, home: Path, size: tuple[int, int] = (40, 200)) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.raw = b""
        self.screen = pyte.Screen(size[1], size[0])
        self.screen.write_process_input = self.keys  # where the cursor is, when asked
        self._feed = pyte.ByteStream(self.screen)
        environment = {**os.environ, "HUB_REPL_HOME": str(home), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self.born = time.monotonic()
        self._process = pexpect.spawn(command[0], [*command[1:]], dimensions=size, env=environment, timeout=None)
        self._process.delaybeforesend = None
        self.pid: int = self._process.pid

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close(force=True)

    def keys(self, text: str) -> float:
        """Press keys, and return the moment."""
        moment = time.monotonic()
        self._process.send(text.encode())
        return moment

    def line(self, text: str) -> float:
        """Type a line and send it; returns the moment of the Enter key."""
        self.keys(text)
        self.wait(lambda: self.drafted() > 0)
        return self.keys("\r")

    def ask(self, text: str) -> float:
        """Send a line and wait for the next prompt; returns the moment of the Enter key."""
        sent = self.line(text)
        self.wait(self.ready)
        return sent

    def read(self, seconds: float) -> None:
        """Take what arrives within `seconds`."""
        try:
            piece = self._process.read_nonblocking(65536, timeout=max(0.0, seconds))
        except pexpect.TIMEOUT:
            return
        except (pexpect.EOF, OSError) as error:
            raise AssertionError("the program ended\n" + self.picture()) from error
        self.pieces.append((time.monotonic(), piece))
        self.raw += piece
        self._feed.feed(piece)

    def drafted(self) -> int:
        """Return how many columns of the prompt row are filled, -1 where the cursor is not in it."""
        cursor = self.screen.cursor
        return cursor.x - 2 if self.screen.buffer[cursor.y][0].data == MARK else -1

    def ready(self) -> bool:
        """Tell whether an empty prompt waits."""
        return self.drafted() == 0

    def wait(self, condition: Callable[[], bool]) -> float:
        """Read until the condition holds; returns the moment of the last piece."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.read(0.05)
            if time.monotonic() > deadline:
                raise AssertionError("the program hangs\n" + self.picture())
        return self.pieces[-1][0]

    def watch(self, seconds: float) -> None:
        """Read for some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)

    def load(self) -> None:
        """Wait until the first model is loaded and the prompt is there again."""
        self.wait(lambda: self.loaded() and self.ready())

    def loaded(self) -> bool:
        """Tell whether a line has said that the model is ready."""
        return b"ready in" in self.raw

    def arrivals(self, since: float, text: str) -> tuple[float, float]:
        """Return the moments at which the first word and the last letters of a text came, after a moment."""
        text, seen, first = SEQUENCE.sub("", text), "", 0.0
        begins, ends = text[:12], text[-12:]
        for moment, piece in self.pieces:
            if moment < since:
                continue
            seen += SEQUENCE.sub("", piece.decode("utf-8", "replace"))
            if not first and any(seen.endswith(begins[:size]) for size in range(2, 13)):
                first = moment
            if first and ends in seen:
                return first, moment
        raise AssertionError("the program said something else:\n" + seen)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the program while something else is measured."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def picture(self) -> str:
        """Return the screen."""
        return "\n".join(row.rstrip() for row in self.screen.display)
