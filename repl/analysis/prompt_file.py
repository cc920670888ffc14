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
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias

from filelock import FileLock, Timeout

from repl.analysis.variants import implied_words, setting_words
from repl.core import paths, settings, texts
from repl.core.decoding import ModelDefaults
from repl.core.errors import ReplError, UsageError
from repl.core.settings import Settings
from repl.core.values import did_you_mean, show_value
from repl.generation.decode.detokenizer import AnyMessage
from repl.generation.interface import Request
from repl.session.change_settings import changed, unshortened
from repl.session.position import Question

STDIN = STDOUT = "-"
TABLES = {".csv": ",", ".tsv": "\t"}
PLAIN_ENDINGS = (".txt", ".text")
OWN_FIELDS = ("prompt", "messages", "id", "answers", "right")
"""What a line may have that is no setting; the last two are for /choose."""
UNEVEN_ROW = "the row has other columns than the first"
ANOTHER_FILE = "/batch PROMPTS ANOTHER_FILE"
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
NOTHING_ASKED = Question("")
Fields: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterator[tuple[int, Fields | ReplError]]
"""Lines with their numbers, from 1: what each has, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the file: what is asked, and how; or the `problem` that keeps it from being asked.

    `needs_chat` tells that the line has messages, which only a chat template can write.
    """

    line: int
    settings: Settings
    id: Any = None
    asked: Question = NOTHING_ASKED
    needs_chat: bool = False
    answers: tuple[str, ...] = ()
    right: int | None = None
    problem: ReplError | None = None

    def request(self, chats: bool) -> Request:
        """Return what a model is asked that chats or only completes; raises its problem, or `UsageError`."""
        if self.problem is not None:
            raise self.problem
        made = self.asked.request(self.settings, chats)
        if self.needs_chat and not made.chats:
            raise UsageError("messages need a chat template; this model completes a prompt", "/mode chat")
        return made


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of prompts: `chosen` are the current settings, `base` is what the model brings.

    `template` is a text with {name} in the places of values from each line; {{name}} stands for itself. `system` is
    the system text of a line without messages.
    """

    path: str
    chosen: Settings
    base: ModelDefaults
    template: str = ""
    system: str = ""

    def __iter__(self) -> Iterator[Prompt]:
        for line, fields in self._rows():
            if isinstance(fields, ReplError):
                yield Prompt(line, self.chosen, problem=fields)
                continue
            try:
                yield self._prompt(line, fields)
            except ReplError as error:
                asked = Question(str(fields.get("prompt") or ""))
                yield Prompt(line, self.chosen, fields.get("id"), asked, problem=error)

    def count(self) -> int:
        """Return how many lines there are to answer."""
        return sum(1 for _ in self._rows())

    def _rows(self) -> Rows:
        ending = Path(self.path).suffix.lower()
        with _open_prompts(self.path) as file:
            if ending in TABLES:
                yield from _table(file, TABLES[ending], self.path)
            else:
                yield from _lines(file, plain=ending in PLAIN_ENDINGS)

    def _prompt(self, line: int, fields: Fields) -> Prompt:
        chosen, (answers, right) = self._settings(fields), _read_answers(fields)
        needs_chat = bool(fields.get("messages"))
        asked = self._talk(fields) if needs_chat else self._message(fields)
        return Prompt(line, chosen, fields.get("id"), asked, needs_chat, answers, right)

    def _settings(self, fields: Fields) -> Settings:
        """Return the settings of one line over those that stand; raises `UsageError`."""
        words: list[tuple[str, str]] = []
        used = {*OWN_FIELDS, *(match[2] for match in PLACEHOLDER.finditer(self.template))}
        for typed, value in fields.items():
            name, word = unshortened(typed), "default" if value is None else show_value(value)
            if typed in used:
                continue
            if name in settings.places() or name in self.base.known:
                words += setting_words(name, word) if word else []  # an empty cell of a table says nothing
            elif not self.template:  # whose table may hold more than it takes
                close = did_you_mean(typed, [*settings.places(), *OWN_FIELDS])
                raise UsageError(f"no setting {typed!r}{close}", "/settings")
        return changed(self.chosen, implied_words(words) + words, ("decode", "view"), self.base)

    def _message(self, fields: Fields) -> Question:
        text = _fill_template(self.template, fields) if self.template else fields.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise UsageError("there is no prompt: a line has prompt or messages", '{"prompt": "Hello"}')
        told = ({"role": "system", "content": self.system},) if self.system else ()
        return _question(text, (*told, {"role": "user", "content": text}))

    def _talk(self, fields: Fields) -> Question:
        if self.template:
            raise UsageError("a template makes the prompt, so a line cannot have messages")
        if fields.get("prompt"):
            raise UsageError("prompt and messages cannot be combined: give one")
        said = _messages(fields["messages"])
        asked = [message["content"] for message in said if message["role"] == "user"]
        begun = said[-1]["content"] if said[-1]["role"] == "assistant" else ""
        kept = said[:-1] if begun else said
        return _question(asked[-1] if asked else kept[-1]["content"], kept, begun)


def _question(text: str, said: tuple[AnyMessage, ...], begun: str = "") -> Question:
    return Question(text, said, tuple(range(len(said))), begun)


def _open_prompts(path: str) -> BinaryIO:
    """Open a file of prompts; standard input is copied, to be read more than once. Raises `ReplError`."""
    if path != STDIN:
        return texts.open_file(path)
    held = _held_input()
    held.seek(0)
    return os.fdopen(os.dup(held.fileno()), "rb")


@cache
def _held_input() -> IO[bytes]:
    """Return a copy of standard input, which comes once; it lasts as long as the program."""
    held = tempfile.TemporaryFile()  # noqa: SIM115 nobody closes it
    if sys.stdin is not None:
        shutil.copyfileobj(sys.stdin.buffer, held)
    held.flush()
    return held


def _lines(file: BinaryIO, plain: bool) -> Rows:
    """Yield the lines that hold something; of one that is too long only that it is."""
    number, most = 0, texts.MAX_TEXT_BYTES
    while piece := file.readline(most + 1):
        number, size = number + 1, len(piece)
        while size > most and not piece.endswith(b"\n") and (piece := file.readline(most)):
            size += len(piece)
        if size > most:
            yield number, UsageError(f"the line has {size:,} bytes, at most {most:,} are read")
        elif piece.strip():
            yield number, _fields(piece.removeprefix(b"\xef\xbb\xbf") if number == 1 else piece, plain)


def _fields(piece: bytes, plain: bool) -> Fields | ReplError:
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
    return found if isinstance(found, dict) else UsageError("the line is not a JSON object with prompt or messages")


def _table(file: BinaryIO, separator: str, path: str) -> Rows:
    """Yield the rows of a table with the line that each begins in; raises `UsageError` for one without names."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader, names = csv.reader(text, delimiter=separator, strict=True), list[str]()
        with suppress(csv.Error, UnicodeDecodeError):
            names = next(reader, [])
        if not names or not all(names):
            raise UsageError(f"the first row of {path!r} does not name every column", "prompt,temperature")
        while True:
            line = reader.line_num + 1
            try:
                if (row := next(reader, None)) is None:
                    return
            except csv.Error as error:
                yield line, UsageError(f"the row is not CSV: {error}")
            except UnicodeDecodeError:
                yield line, UsageError("the rest of the table is not UTF-8 text")
                return
            else:
                if row:
                    same = len(row) == len(names)
                    yield line, dict(zip(names, row, strict=True)) if same else UsageError(UNEVEN_ROW)


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


def _is_message(one: Fields) -> bool:
    return all(isinstance(one.get(name), str) for name in ("role", "content"))


def _read_answers(fields: Fields) -> tuple[tuple[str, ...], int | None]:
    """Return the answers of a line for /choose and the place of the right one, from 0; raises `UsageError`."""
    answers, right = fields.get("answers"), fields.get("right")
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


def _fill_template(template: str, fields: Fields) -> str:
    """Put the values of a line into a template; raises `UsageError` for one that the line does not have."""

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "{" + match[1] + "}"
        if fields.get(match[2]) is None:
            raise UsageError(f"the template needs {match[2]!r}, which the line does not have")
        value = fields[match[2]]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACEHOLDER.sub(fill, template)


def check_files(prompts: str, results: str) -> None:
    """Raise `ReplError` unless prompts can be read from one place and results go to another."""
    if prompts == STDIN and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is the terminal: name a file of prompts", "/batch prompts.jsonl")
    _open_prompts(prompts).close()
    out = _stdout_path() if results == STDOUT else Path(results).expanduser()
    with suppress(OSError, ValueError):
        if prompts != STDIN and out is not None and out.samefile(Path(prompts).expanduser()):
            raise UsageError(f"the results cannot go into {prompts!r} itself", "/batch prompts.jsonl results.jsonl")


# results


class Results:
    """The results of a file of prompts: what is there stays, each new one is added as one whole line.

    The last result of a line counts: one that failed is made again.
    """

    def __init__(self, name: str, path: Path | None, held: ExitStack) -> None:
        self.name = name
        self.known: dict[int, int] = {}  # of each line that has an answer: a hash of its prompt
        self._failed: dict[int, object] = {}  # lines that have an error instead
        self._ascii = name == STDOUT and os.isatty(1)
        if path is not None:
            held.enter_context(_locked(name, path))
            if path.is_file():  # to read a pipe would wait for what is to be written
                self._take_up(path)
        to = os.dup(1) if name == STDOUT or path is None else path
        self._file: Any = held.enter_context(
            open(to, "wb" if isinstance(to, int) else "ab", buffering=0)  # noqa: SIM115 it is one of `held`
        )

    def _take_up(self, path: Path) -> None:
        """Note which lines have their results, and mend a last one that was not written whole."""
        whole = 0
        with path.open("rb") as file:
            for number, piece in enumerate(file, 1):
                record = _record(piece)
                if record is None and not piece.endswith(b"\n") and b'{"'.startswith(piece[:2]):
                    break
                if record is None:
                    raise UsageError(f"line {number} of {self.name!r} is not a result of a batch", ANOTHER_FILE)
                whole += len(piece)
                self._note(record)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        elif whole and not piece.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def _note(self, record: Mapping[str, Any]) -> None:
        line = record.get("line")
        if isinstance(line, int) and "error" in record:
            self._failed[line] = record["error"]
        elif isinstance(line, int):
            self.known[line] = _prompt_hash(record.get("id"), record.get("prompt"))

    def has(self, prompt: Prompt) -> bool:
        """Tell whether a prompt has its answer; raises `UsageError` where its line has that of another prompt."""
        if (known := self.known.get(prompt.line)) is None:
            return False
        if known != _prompt_hash(prompt.id, prompt.asked.text):
            raise UsageError(f"{self.name!r} has the result of another prompt for line {prompt.line}", ANOTHER_FILE)
        return True

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a result, whole, unless it is the error that is there; raises `ReplError` where the disk is full."""
        if "error" in record and self._failed.get(record["line"]) == record["error"]:
            return
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


@contextmanager
def open_results(name: str) -> Iterator[Results]:
    """Go on with a file of results; raises `ReplError` for one that cannot be written, or that holds something else."""
    with ExitStack() as held:
        try:
            path = _stdout_path() if name == STDOUT else Path(name).expanduser()
            results = Results(name, path, held)
        except (OSError, ValueError) as error:
            raise ReplError(f"cannot write {name!r}: {getattr(error, 'strerror', None) or error}") from error
        yield results


def _locked(name: str, path: Path) -> AbstractContextManager[object]:
    """Keep other runs away from the file: two would both make what is missing."""
    folder = paths.cache_folder() / "batch"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise ReplError(f"another run writes {name!r}", ANOTHER_FILE) from None


def _prompt_hash(id: object, text: object) -> int:
    """Return what tells a prompt from others on the same line of another file."""
    return hash(json.dumps([id, text], sort_keys=True, default=str))


def _record(piece: bytes) -> dict[str, Any] | None:
    """Return a result, or another event of --json; None for anything else."""
    with suppress(ValueError, RecursionError):
        found = json.loads(piece)
        if isinstance(found, dict) and (isinstance(found.get("line"), int) or "event" in found):
            return found
    return None


def _stdout_path() -> Path | None:
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
