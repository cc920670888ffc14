"""Has steps compiled: begins it in a process aside, keeps what comes of it, and tells how things stand."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import psutil

from repl import paths
from repl.compiled import Loan, deviation, key, opened, signature, unfit
from repl.errors import Cancelled
from repl.mishaps import is_memory, sentence
from repl.native import Native
from repl.settings import Load

PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from repl.compiling import main; main()"
REFUSED = "refused"
"""A file in the place of a step that cannot be compiled: the reason."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
NEVER = 3
"""Exit code of a process for which this step is too much, today and tomorrow."""
SPARE = 2**30  # bytes that a compiler takes besides the model
MOST = 24
"""So many steps are kept, of a few megabytes each."""
PART = "part-"
"""Begins the names of folders in which something is being made."""

Say = Callable[[str], None]


class Steps:
    """What became of compiling the steps of one model; lives as long as its model, on the model thread.

    `state` may be read on every thread.
    """

    def __init__(self) -> None:
        self._child: Popen[bytes] | None = None
        self._native: Native | None = None
        self._part: Path | None = None  # where it writes
        self._place = Path()  # where that is kept
        self._refused = ""
        self.apart: float | None = None
        """How far the logits of a compiled step were from the plain ones."""

    @property
    def state(self) -> tuple[str, str]:
        """How things stand, in a word, with the reason why there is nothing."""
        if self._refused:
            return "rests", self._refused
        child = self._child  # the model thread may take it away
        under_way = child is not None and self._native is None and child.poll() is None
        done = self._native or (child and child.returncode == 0)
        return "compiling" if under_way else "compiled" if done else "", ""

    def loan(self, model: Any, load: Load, say: Say) -> "Loan | None":
        """Return what lends compiled steps if there are any by now, else begin to make them; what happens is said."""
        if self._native is None and not self._refused:
            self._refused = unfit(model) or self._go_on(model, load, say)
            if self._refused:
                say(f"compile rests: {self._refused}")
        return Loan(self._native, model) if self._native else None

    def _go_on(self, model: Any, load: Load, say: Say) -> str:
        """Take the next step towards a compiled one; returns why there will be none."""
        root = paths.cache() / "compiled"
        place = self._place = root / key(model)
        if (place / REFUSED).is_file():
            return (place / REFUSED).read_text("utf-8")
        if self._child is None and not place.is_dir():
            if reason := self._begin(root, model, load):
                return reason
            say("compiling beside the replies, for a minute or two; kept for the next time")
        if self._child is not None:
            if (code := self._child.poll()) is None:
                return ""
            if code:
                return self._failed(code)
            self._settle()
        return self._open(place, model, say)

    def _begin(self, root: Path, model: Any, load: Load) -> str:
        """Start the process; returns what is in the way."""
        if (free := psutil.virtual_memory().available) < (needed := SPARE + crowd(model, load)):
            return f"compiling takes about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        try:
            self._start(root, model, load)
        except OSError as error:
            return f"it could not be compiled ({error.strerror or error})"
        return ""

    def _start(self, root: Path, model: Any, load: Load) -> None:
        root.mkdir(mode=0o700, exist_ok=True)
        sweep(root)
        self._part = part = Path(tempfile.mkdtemp(prefix=PART, dir=root))
        order = {"load": asdict(load), "part": str(part), "signature": signature(model)}
        with (part / "err").open("wb") as said:
            self._child = Popen(
                [sys.executable, "-I", "-c", PROGRAM, *filter(None, sys.path)],
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=said,
                env=surroundings(),
                start_new_session=True,  # Ctrl-C at the terminal is not meant for it
            )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")  # stays open: when it closes the child ends
        self._child.stdin.flush()

    def _failed(self, code: int) -> str:
        """Return why a process ended without a result; what will never go is not tried again."""
        reason = f"it could not be compiled ({self._last_words(code)})"
        if code == NEVER:
            with suppress(OSError):
                self._place.mkdir(mode=0o700, exist_ok=True)
                (self._place / REFUSED).write_text(reason, "utf-8")
        return reason

    def _settle(self) -> None:
        """Put what was made in its place, where another program may have been quicker."""
        if self._part is not None:
            with suppress(OSError):
                self._part.rename(self._place)
        self._tidy()

    def _last_words(self, code: int) -> str:
        lines: list[str] = []
        with suppress(OSError):
            assert self._part is not None
            lines = (self._part / "err").read_text("utf-8", "replace").splitlines()
        self._tidy()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), f"exit code {code}")

    def _tidy(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._child = None
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part = None

    def _open(self, place: Path, model: Any, say: Say) -> str:
        try:
            native = opened(place, model)
            apart, share, allowed = deviation(native, model)
        except Cancelled:
            raise
        except Exception as error:
            if not is_memory(error):
                shutil.rmtree(place, ignore_errors=True)
            return f"what was compiled cannot be used ({sentence(error)})"
        if not share <= allowed:
            shutil.rmtree(place, ignore_errors=True)
            return f"its logits were up to {apart:.2g} from the plain ones"
        self._native, self.apart = native, apart
        say(f"steps are compiled: logits within {apart:.1g} of the plain ones")
        return ""

    def close(self) -> None:
        """End the process that compiles; what it has begun is lost, what it has done is kept."""
        if self._child is None:
            return
        if self._child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)  # with the compilers it started
            self._child.wait()
        if self._child.returncode == 0:
            self._settle()
        self._tidy()


def surroundings() -> dict[str, str]:
    """Return the environment of the process that compiles: all it needs is on this machine, on the processor."""
    return {name: word for name, word in os.environ.items() if name not in SECRETS} | {"CUDA_VISIBLE_DEVICES": ""}


def crowd(model: Any, load: Load) -> int:
    """Return the bytes that a second copy of the model takes; what is packed is read unpacked first."""
    return int(model.get_memory_footprint()) * (8 if load.quantize == "int4" else 4 if load.quantize != "none" else 1)


def sweep(root: Path) -> None:
    """Remove the steps that were used longest ago, and what programs that were killed left behind."""
    ages: dict[Path, float] = {}
    for each in root.iterdir():
        with suppress(OSError):  # another program may have been quicker
            ages[each] = time.time() - each.stat().st_mtime
    kept = sorted((each for each in ages if not each.name.startswith(PART)), key=lambda each: ages[each])
    stale = [each for each in ages if each.name.startswith(PART) and ages[each] > 86400]
    for each in stale + kept[MOST:]:
        shutil.rmtree(each, ignore_errors=True)
