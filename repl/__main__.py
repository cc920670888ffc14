"""`hub-repl` and `python -m repl`: Ctrl-C ends the program quietly from here on, while it is still being imported."""

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the program and end with its exit code."""
    signal.signal(signal.SIGINT, _interrupted)
    from repl.cli import main as program

    program.main()


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(130)  # an exception could be lost in an import


if __name__ == "__main__":
    main()
