"""The prompt history, in prompt_toolkit's file format; several processes may add to it at once."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from prompt_toolkit.history import FileHistory

from repl.terminal.editor.paste import Folds

MAX_ENTRIES = 2000  # entries offered at the prompt
LOCK_WAIT_S = 2.0  # seconds to wait for another program that adds an entry


class Past(FileHistory):
    """History entries for the editor, long ones folded; entries of other processes appear at the next prompt."""

    def __init__(self, path: Path, folds: Folds, keep: bool = True) -> None:
        super().__init__(path)
        self._path = path
        self._folds = folds
        self._keep = keep
        self._unsaved: list[str] = []  # newest first
        self._entries: list[str] = []  # newest first

    async def load(self) -> AsyncGenerator[str, None]:
        """Read the file again and yield its entries, newest first."""
        self._entries = [*self._unsaved, *map(self._folds.entry, self.load_history_strings())]
        for entry in self._entries:
            yield entry

    def get_strings(self) -> list[str]:
        """Return all entries, oldest first."""
        return self._entries[::-1]

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries of the file, newest first."""
        with suppress(OSError):
            return list(islice(super().load_history_strings(), MAX_ENTRIES))
        return []

    def append_string(self, string: str) -> None:
        """Add an entry to the file, or keep it in memory where it may not or cannot be saved."""
        with suppress(OSError):  # a full disk must not stop the conversation
            if self._keep:
                self._path.touch(mode=0o600)
                from filelock import FileLock  # its import is a tenth of the time to the prompt, which does not need it

                with FileLock(f"{self._path}.lock", timeout=LOCK_WAIT_S):
                    self.store_string(self._folds.whole(string))
                return
        self._unsaved.insert(0, string)
