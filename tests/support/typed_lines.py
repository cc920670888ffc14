"""What the program keeps of the lines that were typed."""

from pathlib import Path

from repl.terminal.editor.history import Past
from repl.terminal.editor.paste import Folds


def add_line(path: Path, text: str) -> None:
    """Keep a line as the prompt does."""
    Past(path, Folds()).append_string(text)


def kept_lines(path: Path) -> list[str]:
    """Return the lines in a file, oldest first."""
    return [*Past(path, Folds()).load_history_strings()][::-1]
