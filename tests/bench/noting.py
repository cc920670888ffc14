"""The program, noting when each key was taken from the terminal: `noting.py FILE [words of hub-repl]`."""

import sys
import time
from typing import Any

from prompt_toolkit.input import Input

from repl.cli.main import main
from repl.terminal.editor import prompt


def watched(source: Input, path: str) -> Input:
    """Write `SECONDS KEY` to a file for every key that is read."""
    read, notes = source.read_keys, open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115

    def read_keys() -> list[Any]:
        keys = read()
        for key in keys:
            notes.write(f"{time.monotonic()} {key.data!r}\n")
        return keys

    source.read_keys = read_keys  # type: ignore[method-assign]
    return source


if __name__ == "__main__":
    make, path = prompt.terminal_input, sys.argv.pop(1)
    prompt.terminal_input = lambda stdin: watched(make(stdin), path)
    main()
