"""Logging: output of the libraries goes to a log file, never to the screen."""

import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar, TextIO

SOURCES = (
    "huggingface_hub",
    "accelerate",
    "torch",
    "peft",
    "bitsandbytes",
    "torchao",
    "httpx2",
    "httpcore2",
    "filelock",
)
log = logging.getLogger("hub-repl")
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")


def hide_tokens(text: str) -> str:
    """Return a text with access tokens masked."""
    own = os.environ.get("HF_TOKEN", "")
    return SECRET.sub("hf_…", text.replace(own, "hf_…") if len(own) > 7 else text)


class Formatter(logging.Formatter):
    """Formats records and tracebacks with access tokens masked."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        return hide_tokens(super().format(record))


class Stdout:
    """Wraps stdout: text printed by a muted thread goes to the log, all other text to the stream."""

    muted: ClassVar[set[int]] = set()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or log it."""
        if get_ident() not in self.muted:
            return self._stream.write(text)
        if text.strip():
            log.warning("printed: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mute_thread() -> None:
    """Log what libraries print on this thread: stdout is for results only."""
    Stdout.muted.add(get_ident())


def install(folder: Path) -> None:
    """Send log records, warnings and prints of the libraries to `hub-repl.log` in a folder."""
    if not isinstance(sys.stdout, Stdout):
        sys.stdout = Stdout(sys.stdout)  # behaves like a stream
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # some bars cannot be replaced, such as those of GGUF files
    root = logging.getLogger()
    root.handlers[:] = [_handler(folder / "hub-repl.log")]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # no tracebacks of the log itself on a full disk


def _handler(path: Path) -> logging.Handler:
    try:
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1, encoding="utf-8")
        path.chmod(0o600)
    except OSError:
        return logging.NullHandler()
    handler.setFormatter(Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    return handler


def silence_transformers() -> None:
    """Remove the libraries' log handlers; call it after their import."""
    from transformers.utils import logging as theirs

    theirs.disable_default_handler()
    theirs.enable_propagation()
    theirs.set_verbosity_warning()
    for name in SOURCES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


class Bar:
    """Replaces tqdm in a library: calls `report` for each step, whose exceptions stop the work."""

    def __init__(self, report: Callable[[str, int, int], None], iterable: Any = None, **options: Any) -> None:
        self._report = report
        self._iterable = iterable
        self._name = options.get("desc") or ""
        self.n = options.get("initial") or 0
        self.total = options.get("total") or (len(iterable) if hasattr(iterable, "__len__") else 0)

    def update(self, count: int = 1) -> None:
        """Count steps."""
        self.n += count or 0
        self._report(self._name, self.n, self.total)

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def follow_bars(report: Callable[[str, int, int], None]) -> Iterator[None]:
    """Send transformers' progress bars within the context to `report(name, done, total)`."""
    from transformers.utils import logging as theirs

    def make(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Bar:
        return Bar(report, *args, **options)

    before = theirs.set_tqdm_hook(make)
    try:
        yield
    finally:
        theirs.set_tqdm_hook(before)
