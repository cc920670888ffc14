"""Programs of strangers that run in this process, such as chat templates: ended by a cancel, by a clock, by size."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil

from repl.core.errors import Failed
from repl.core.jobs import JobContext

MAX_TEMPLATE_S = 10.0  # that a template may take, which is done in milliseconds as a rule
MAX_BYTES = 4_000_000  # of a rendered prompt
MAX_PIECE_CHARS = 16 * MAX_BYTES  # characters that a template may put out on its way to a prompt
LOOK_STEPS = 64  # calls and lines between two looks
MAX_MEMORY_BYTES = 2**30  # of address space that a template may take beside what is in use
TEMPLATE = "<template>"  # what Jinja names the file of compiled templates


class _Ended(BaseException):
    """Not an `Exception`: neither Jinja nor a template catches it."""


@contextmanager
def bounded(emit: JobContext, seconds: float | None = None) -> Iterator[None]:
    """Run a template on this thread until it ends, the user cancels, or a bound is passed; raises `Failed`.

    The tracer of the thread looks at the cancel flag and the clock: at each call, and at each line of a template.
    """
    seconds = MAX_TEMPLATE_S if seconds is None else seconds
    deadline = time.monotonic() + seconds
    steps = written = 0

    def look(frame: FrameType, event: str, value: object) -> Any:
        nonlocal steps, written
        steps += 1
        if steps % LOOK_STEPS == 0:
            emit.raise_if_cancelled()
            if time.monotonic() > deadline:
                raise _Ended(f"the chat template is not done after {seconds:g} s")
        if frame.f_code.co_filename != TEMPLATE:
            return None
        written += len(value) if event == "return" and isinstance(value, str) else 0
        if written > MAX_PIECE_CHARS:
            raise _Ended(f"the chat template writes more than {MAX_BYTES // 10**6} MB")
        return look

    before = sys.gettrace()
    with limited_memory():
        sys.settrace(look)
        try:
            yield
        except _Ended as ended:
            raise Failed(str(ended)) from None
        finally:
            sys.settrace(before)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let one huge allocation fail: no tracer sees it. Only where the system has such a limit: not on Windows."""
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + MAX_MEMORY_BYTES
    bounds = [bound for bound in (soft, hard, wanted) if bound != resource.RLIM_INFINITY]
    with suppress(ValueError, OSError):  # macOS refuses some
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
