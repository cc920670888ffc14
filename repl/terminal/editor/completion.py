"""What the line editor offers: completions, and what was typed before."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History

from repl.core.sanitize import clean_line
from repl.terminal.editor import history
from repl.terminal.editor.paste import Folds


class SlashCompleter(Completer):
    """Commands and their values, paths where a value looks like one."""

    def __init__(self, offered: Callable[[str], list[tuple[str, str]]]) -> None:
        self._offered = offered
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what could stand at the cursor."""
        line = document.text_before_cursor
        last = line.rpartition(" ")[2]
        if line.startswith("/") and " " in line and last[:1] in ("/", ".", "~"):
            for found in self._paths.get_completions(Document(last), complete_event):
                yield Completion(found.text, found.start_position, display=clean_line(found.display_text))
            return
        for word, help_text in self._offered(line):
            yield Completion(word, -len(last), display=clean_line(word), display_meta=clean_line(help_text))


class Past(History):
    """The history file as the editor wants it: what other programs add to it is there at the next prompt."""

    def __init__(self, path: Path, keep: bool, folds: Folds) -> None:
        super().__init__()
        self._path = path
        self._keep = keep
        self._entries: list[str] = []  # newest first
        self._folds = folds
        self._reader = history.HistoryReader(path)

    async def load(self) -> AsyncGenerator[str, None]:
        """Yield entries, newest first."""
        self._entries[:0] = self.load_history_strings()
        for entry in self._entries[: history.MAX_ENTRIES]:
            yield entry

    def get_strings(self) -> list[str]:
        """Return all entries, oldest first."""
        return self._entries[::-1]

    def load_history_strings(self) -> Iterable[str]:
        """Return what has come to the file, newest first."""
        return [self._folds.entry(entry) for entry in reversed(self._reader.fresh())]

    def append_string(self, string: str) -> None:
        """Keep an entry: it comes back from the file, or stays in mind if it must not or cannot be kept there."""
        with suppress(OSError):  # a disk that refuses must not stop the talk
            if self._keep:
                self.store_string(self._folds.whole(string))
                return
        self._entries.insert(0, string)

    def store_string(self, string: str) -> None:
        """Add an entry to the file."""
        history.append_entry(self._path, string)
