"""A file of prompts, and the file of what came of them: a line is one prompt, a result is one whole line.

In come JSON lines, CSV or plain text, with a template where there is one. Out come prompts, each with the settings it
is asked with or with the error that says what is wrong with its line; and results that a later run goes on from.
"""

import csv
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from filelock import FileLock, Timeout

from repl.analysis.variants import GREEDY_WORDS, implied_words
from repl.core import paths, settings, texts
from repl.core.decoding import OURS, ModelDefaults
from repl.core.errors import ReplError, UsageError
from repl.core.settings import Settings
from repl.core.values import closest_match
from repl.generation.interface import Request
from repl.generation.prompt.reply_parser import AnyMessage
from repl.session.change_settings import changed

MAX_LINE_BYTES = texts.MAX_TEXT_BYTES
STDIN = STDOUT = "-"
TABLES = {".csv": ",", ".tsv": "\t"}
PLAIN_ENDINGS = (".txt", ".text")
OWN_FIELDS = ("prompt", "messages", "id", "answers", "right")
"""What a line may have that is no setting; the last two are for /choose."""
ANOTHER_FILE = "/batch PROMPTS ANOTHER_FILE"
FIELD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterator[tuple[int, Row | ReplError]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the file: what is asked, and how; or the `problem` that keeps it from being asked.

    `messages` are those of a chat, without the beginning that its reply is given; of a plain prompt there are none.
    """

    line: int
    settings: Settings
    id: Any = None
    text: str = ""
    messages: tuple[AnyMessage, ...] = ()
    prefill: str = ""
    answers: tuple[str, ...] = ()
    right: int | None = None
    problem: ReplError | None = None

    def request(self, chats: bool, system: str = "") -> Request:
        """Return what a model is asked that chats or only completes; `system` stands in front of a plain prompt.

        Raises `UsageError` for messages where there is no chat template.
        """
        mode = self.settings.view.mode
        templated = chats if mode == "auto" else mode == "chat"
        if not templated:
            if self.messages:
                raise UsageError("messages need a chat template; this model completes a prompt", "/mode chat")
            return Request(self.settings, text=self.text)
        told = ({"role": "system", "content": system},) if system else ()
        said = self.messages or (*told, {"role": "user", "content": self.text})
        return Request(self.settings, messages=said, turns=tuple(range(len(said))), prefill=self.prefill)

    @property
    def key(self) -> str:
        """Return what tells it from other prompts on the same line of another file."""
        return json.dumps([self.id, self.text], sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of prompts: `chosen` are the current settings, `base` is what the model brings.

    `template` is a text with {name} in the places of values from each line; {{name}} stands for itself.
    """

    path: str
    chosen: Settings
    base: ModelDefaults
    template: str = ""

    def __iter__(self) -> Iterator[Prompt]:
        for line, row in self._rows():
            if isinstance(row, ReplError):
                yield Prompt(line, self.chosen, problem=row)
                continue
            try:
                yield self._prompt(line, row)
            except ReplError as error:
                text = row.get("prompt")
                yield Prompt(line, self.chosen, row.get("id"), text if isinstance(text, str) else "", problem=error)

    def count(self) -> int:
        """Return how many lines there are to answer."""
        return sum(1 for _ in self._rows(count=True))

    def _rows(self, count: bool = False) -> Rows:
        """Yield each line that holds something with its number, from 1: its fields, or what is wrong with it."""
        ending = Path(self.path).suffix.lower()
        with open_prompts(self.path) as file:
            if ending in TABLES:
                yield from _table(file, TABLES[ending], self.path)
                return
            for number, piece in read_lines(file):
                if isinstance(piece, ReplError) or count:
                    yield number, piece if isinstance(piece, ReplError) else {}
                else:
                    yield number, _fields(piece, plain=ending in PLAIN_ENDINGS)

    def _prompt(self, line: int, row: Row) -> Prompt:
        used = {match[2] for match in FIELD.finditer(self.template) if match[2]}
        rest = {name: value for name, value in row.items() if name not in (*OWN_FIELDS, *used)}
        if self.template:  # a table may hold more than the template takes
            rest = {name: value for name, value in rest.items() if self._is_setting(name)}
        chosen = self._settings(rest)
        answers, right = read_answers(row)
        made = Prompt(line, chosen, row.get("id"), answers=answers, right=right)
        if self.template and row.get("messages"):
            raise UsageError("a template makes the prompt, so a line cannot have messages")
        if self.template:
            return replace(made, text=fill_template(self.template, row))
        if row.get("messages"):
            return self._talk(made, row)
        if not isinstance(text := row.get("prompt"), str) or not text.strip():
            raise UsageError("there is no prompt: a line has prompt or messages", '{"prompt": "Hello"}')
        return replace(made, text=text)

    @staticmethod
    def _talk(made: Prompt, row: Row) -> Prompt:
        if row.get("prompt"):
            raise UsageError("prompt and messages cannot be combined: give one")
        said = _messages(row["messages"])
        asked = [message["content"] for message in said if message["role"] == "user"]
        begun = said[-1]["content"] if said[-1]["role"] == "assistant" else ""
        kept = said[:-1] if begun else said
        return replace(made, text=asked[-1] if asked else kept[-1]["content"], messages=kept, prefill=begun)

    def _is_setting(self, name: str) -> bool:
        return self._full_name(name) in settings.places() or name in self.base.known

    @staticmethod
    def _full_name(name: str) -> str:
        short = {**settings.SHORT_NAMES, **{theirs: ours for ours, theirs in OURS.items()}}
        return short.get(name, name).replace("-", "_")

    def _settings(self, given: Row) -> Settings:
        """Return the settings of one line over those that stand; raises `UsageError`."""
        words: list[tuple[str, str]] = []
        for name, value in given.items():
            if not self._is_setting(name):
                close = closest_match(name, [*settings.places(), *OWN_FIELDS])
                raise UsageError(f"no setting {name!r}" + (f", did you mean {close}?" if close else ""), "/settings")
            full, word = self._full_name(name), as_word(value)
            greedy = full == "temperature" and word in ("0", "0.0")
            words += GREEDY_WORDS if greedy else [(full, word)] if word else []  # an empty cell of a table says nothing
        return changed(self.chosen, implied_words(words) + words, ("decode", "view"), self.base)


def open_prompts(path: str) -> BinaryIO:
    """Open a file of prompts; standard input is copied, to be read more than once. Raises `ReplError`."""
    if path == STDIN:
        held = _held_input()
        held.seek(0)
        return os.fdopen(os.dup(held.fileno()), "rb")
    try:
        found = Path(path).expanduser()
        if not found.is_file():
            raise OSError(0, "it is not a file" if found.exists() else "no such file")
        return found.open("rb")
    except (OSError, ValueError, RuntimeError) as error:  # in this order: the disk, a NUL, the home of nobody
        raise ReplError(f"cannot read {path!r}: {getattr(error, 'strerror', None) or error}") from error


@cache
def _held_input() -> Any:
    """Return a copy of standard input, which comes once; it lasts as long as the program."""
    held = tempfile.TemporaryFile()  # noqa: SIM115 nobody closes it
    if sys.stdin is not None:
        shutil.copyfileobj(sys.stdin.buffer, held)
    held.flush()
    return held


def read_lines(file: BinaryIO, most: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | UsageError]]:
    """Yield the lines that hold something with their numbers, from 1; of one that is too long only that it is."""
    number = 0
    while piece := file.readline(most + 1):
        number, size = number + 1, len(piece)
        if size <= most:
            if piece.strip():
                yield number, piece.removeprefix(b"\xef\xbb\xbf") if number == 1 else piece
            continue
        while not piece.endswith(b"\n") and (piece := file.readline(most)):
            size += len(piece)
        yield number, UsageError(f"the line has {size:,} bytes, at most {most:,} are read")


def _fields(piece: bytes, plain: bool) -> Row | ReplError:
    """Return the fields of a line of JSON or of plain text, or what is wrong with it."""
    try:
        text = piece.decode().rstrip("\r\n")
        found = {"prompt": text} if plain else json.loads(text)
    except UnicodeDecodeError:
        return UsageError("the line is not UTF-8 text")
    except json.JSONDecodeError as error:
        return UsageError(f"the line is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in too many brackets
        return UsageError(f"the line is not JSON: {error}")
    return found if isinstance(found, dict) else UsageError("the line is not JSON object with prompt or messages")


def _table(file: BinaryIO, separator: str, path: str) -> Rows:
    """Yield the rows of a table with the line that each begins in; raises `UsageError` for one without names."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield from _table_rows(csv.DictReader(text, delimiter=separator, strict=True), path)


def _table_rows(reader: "csv.DictReader[str]", path: str) -> Rows:
    line = 1
    try:
        if not reader.fieldnames or not all(reader.fieldnames):
            raise UsageError(f"the first row of {path!r} does not name every column", "prompt,temperature")
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except csv.Error as error:
                yield line, UsageError(f"the row is not CSV: {error}")
                continue
            more = None in row or None in row.values()  # a restkey, or a restval
            yield line, UsageError("the row has other columns than the first") if more else row
    except StopIteration:
        return
    except UnicodeDecodeError:
        yield line, UsageError("the rest of the table is not UTF-8 text")


def _messages(value: object) -> tuple[AnyMessage, ...]:
    """Return the messages of a line, from JSON text where they stand in a table; raises `UsageError`."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    said = value if isinstance(value, list) else []
    texts_only = all(isinstance(one, dict) and _is_message(one) for one in said)
    if not (said and texts_only) or (len(said) == 1 and said[0]["role"] == "assistant"):
        example = '"messages": [{"role": "user", "content": "Hello"}]'
        raise UsageError("messages is not a list of objects with role and content", example)
    return tuple(said)


def _is_message(one: Row) -> bool:
    return all(isinstance(one.get(name), str) for name in ("role", "content"))


def read_answers(row: Row) -> tuple[tuple[str, ...], int | None]:
    """Return the answers of a line for /choose and the place of the right one, from 0; raises `UsageError`."""
    answers, right = row.get("answers"), row.get("right")
    if answers in (None, "", []):
        return (), None
    if isinstance(answers, str):
        answers = [part.strip() for part in answers.split("|")]
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise UsageError("answers is not a list of texts", '"answers": ["yes", "no"]')
    if right in (None, ""):
        return tuple(answers), None
    if right in answers:
        return tuple(answers), answers.index(right)
    place = int(right) if isinstance(right, int) or (isinstance(right, str) and right.isdecimal()) else -1
    if isinstance(right, bool) or not 0 <= place < len(answers):
        raise UsageError(f"right is {right!r}, neither one of the answers nor its place, from 0")
    return tuple(answers), place


def fill_template(template: str, row: Row) -> str:
    """Put the values of a line into a template; raises `UsageError` for one that the line does not have."""

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "{" + match[1] + "}"
        if row.get(match[2]) is None:
            raise UsageError(f"the template needs {match[2]!r}, which the line does not have")
        value = row[match[2]]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return FIELD.sub(fill, template)


def as_word(value: object) -> str:
    """Return what a user types for a value of JSON."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else "default" if value is None else json.dumps(value)


def check_files(prompts: str, results: str) -> None:
    """Raise `ReplError` unless prompts can be read from one place and results go to another."""
    if prompts == STDIN and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is the terminal: name a file of prompts", "/batch prompts.jsonl")
    open_prompts(prompts).close()
    out = stdout_path() if results == STDOUT else Path(results).expanduser()
    with suppress(OSError, ValueError):
        if prompts != STDIN and out is not None and out.samefile(Path(prompts).expanduser()):
            raise UsageError(f"the results cannot go into {prompts!r} itself", "/batch prompts.jsonl results.jsonl")


# results


class Results:
    """The results of a file of prompts: what is there stays, each new one is added as one whole line.

    Use it as a context; raises `ReplError` for a file that cannot be written, or that holds something else.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = stdout_path() if path == STDOUT else Path(path).expanduser()
        self.known: dict[int, int] = {}  # of each line that has a result: a hash of its prompt
        self.problems: list[tuple[int, str]] = []  # lines that failed, and why
        self._ascii = path == STDOUT and os.isatty(1)
        self._file: Any = None
        self._held = ExitStack()

    def __enter__(self) -> "Results":
        try:
            with ExitStack() as held:
                if self._path is not None:
                    held.enter_context(self._locked(self._path))
                    if self._path.is_file():  # to read a pipe would wait for what is to be written
                        self._take_up(self._path)
                to = os.dup(1) if self._path is None or self.name == STDOUT else self._path
                self._file = held.enter_context(open(to, "wb" if isinstance(to, int) else "ab", buffering=0))
                self._held = held.pop_all()
        except (OSError, ValueError) as error:
            raise ReplError(f"cannot write {self.name!r}: {getattr(error, 'strerror', None) or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _locked(self, path: Path) -> AbstractContextManager[object]:
        """Keep other runs away from the file: two would both make what is missing."""
        folder = paths.cache_folder() / "batch"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            raise ReplError(f"another run writes {self.name!r}", ANOTHER_FILE) from None

    def _take_up(self, path: Path) -> None:
        """Note which lines have their results, and mend a last one that was not written whole."""
        whole = 0
        with path.open("rb") as file:
            for number, piece in enumerate(file, 1):
                record = _record(piece)
                if record is None and not piece.endswith(b"\n") and piece[:2] == b'{"'[: len(piece)]:
                    break
                if record is None:
                    raise UsageError(f"line {number} of {self.name!r} is not a result of a batch", ANOTHER_FILE)
                whole += len(piece)
                if "line" in record:
                    self._note(record)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        elif whole and not piece.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def _note(self, record: Mapping[str, Any]) -> None:
        self.known[record["line"]] = hash(_key(record))
        if isinstance(problem := record.get("error"), dict):
            self.problems.append((record["line"], str(problem.get("message"))))

    def has(self, prompt: Prompt) -> bool:
        """Tell whether a prompt has its result; raises `UsageError` where its line has that of another prompt."""
        if (known := self.known.get(prompt.line)) is None:
            return False
        if known != hash(prompt.key):
            raise UsageError(f"{self.name!r} has the result of another prompt for line {prompt.line}", ANOTHER_FILE)
        return True

    def add(self, record: Mapping[str, object]) -> None:
        """Write a result, whole; raises `ReplError` where the disk does not take it."""
        try:
            data = json.dumps(record, ensure_ascii=self._ascii).encode()
        except UnicodeEncodeError:  # lone surrogates have an escape in JSON, and no place in UTF-8
            data = json.dumps(record).encode()
        rest = memoryview(data + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if self.name == STDOUT:
                raise
            with suppress(OSError):  # part of a line would be glued to the next one
                os.ftruncate(self._file.fileno(), self._file.tell() - len(data) - 1 + len(rest))
            raise ReplError(f"cannot write {self.name!r}: {error.strerror}") from error


def _key(record: Mapping[str, object]) -> str:
    return json.dumps([record.get("id"), record.get("prompt")], sort_keys=True, default=str)


def _record(piece: bytes) -> dict[str, Any] | None:
    """Return a result, or another event of --json; None for anything else."""
    with suppress(ValueError, RecursionError):
        found = json.loads(piece)
        if isinstance(found, dict) and (isinstance(found.get("line"), int) or "event" in found):
            return found
    return None


def stdout_path() -> Path | None:
    """Return the file that standard output goes to, where it is one and the system tells its name."""
    with suppress(OSError, AttributeError, ImportError):
        found = os.fstat(1)
        if sys.platform == "darwin":
            import fcntl

            path = Path(os.fsdecode(fcntl.fcntl(1, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        else:
            path = Path(os.readlink("/proc/self/fd/1"))
        return path if path.is_file() and os.path.samestat(found, path.stat()) else None
    return None
