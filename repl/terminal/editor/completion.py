"""Completion in the line editor: commands with their values, and paths."""

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from repl.core.sanitize import clean_line


class SlashCompleter(Completer):
    """Completes commands and their values, and paths where a value looks like one."""

    def __init__(self, offered: Callable[[str], list[tuple[str, str]]]) -> None:
        self._offered = offered
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the completions at the cursor."""
        line = document.text_before_cursor
        last = line.rpartition(" ")[2]
        if line.startswith("/") and " " in line and last[:1] in ("/", ".", "~"):
            for found in self._paths.get_completions(Document(last), complete_event):
                yield Completion(found.text, found.start_position, display=clean_line(found.display_text))
            return
        for word, help_text in self._offered(line):
            yield Completion(word, -len(last), display=clean_line(word), display_meta=clean_line(help_text))
