"""Files and streams from outside: only what is a file is read, never more than fits, and every end has its code."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import driving
import pytest
from fakeserver import FakeServer
from test_first_example import HUNG, ROOT, environment

from repl.commands.files import config_, preset, read, script
from repl.commands.score import _content
from repl.core import atomic_write, paths, texts
from repl.core.errors import ReplError, UsageError
from repl.core.jobs import Worker
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session import config_file
from repl.session.session import Session

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="pipes with names and devices are POSIX")
MARKS = {"utf-8-sig": "a byte order mark", "utf-16": "what an older PowerShell writes", "utf-8": "none"}


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Settings(), Store(Runtime), Worker())
    yield made
    made.close()


# texts


@POSIX
@pytest.mark.parametrize(
    ("name", "kind"), [("pipe", "a pipe"), ("/dev/zero", "a device"), ("/dev/tty", ""), ("folder", "a folder")]
)
def test_what_is_no_file_is_refused_at_once(name: str, kind: str, session: Session, tmp_path: Path) -> None:
    """A pipe that nobody writes to would hang, a device would not end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    for reads in (read, script):
        with pytest.raises(ReplError, match=f"cannot read .*{kind}"):
            reads(session, str(path))
    with pytest.raises(ReplError, match=f"cannot read .*{kind}"):
        _content(str(path))
    assert kind in config_file.read_config_file(path).wrong[0]
    assert session.next_message.files == ()


@POSIX
def test_the_config_file_may_be_a_pipe_without_a_hang(session: Session) -> None:
    place = paths.config_folder() / "config.toml"
    os.mkfifo(place)
    session.settings = session.settings.put("top_k", 7, "you")
    with pytest.raises(ReplError, match="is not a file"):
        preset(session, "save", "mine")
    with pytest.raises(ReplError, match="is a pipe"):
        config_(session)
    with pytest.raises(UsageError, match="exists"):
        config_(session, "init")


def test_a_size_is_looked_at_before_anything_is_read(session: Session, tmp_path: Path) -> None:
    """A file of any size is refused, and so is one that has no size and grows as it is read."""
    with (tmp_path / "vast").open("wb") as file:
        file.truncate(2**40)
    for reads in (read, script):
        with pytest.raises(ReplError, match="larger than 4 MB"):
            reads(session, str(tmp_path / "vast"))
    with pytest.raises(ReplError, match="larger than 67 MB"):
        _content(str(tmp_path / "vast"))
    assert "larger than 4 MB" in config_file.read_config_file(tmp_path / "vast").wrong[0]


@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_is_no_text(encoding: str, session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("top_k = 5\r\n# ä\n".encode(encoding))
    path = str(tmp_path / "a.txt")
    read(session, path)
    assert session.next_message.files == (("a.txt", "top_k = 5\n# ä\n"),)
    assert script(session, path).lines[0] == "top_k = 5"
    assert _content(path)[1] == "top_k = 5\n# ä\n"
    found = config_file.read_config_file(Path(path))
    assert (found.wrong, found.settings.decode.top_k) == ((), 5)


@pytest.mark.parametrize("name", ["~nobody/x", "a\0b", "gone", "x" * 5000])
def test_a_name_that_leads_nowhere_is_one_sentence(name: str, session: Session) -> None:
    for reads in (read, script):
        with pytest.raises(ReplError, match="cannot read"):
            reads(session, name)


@POSIX
def test_nothing_at_all_is_an_empty_text(session: Session) -> None:
    assert texts.read_text(os.devnull) == ""


def test_what_is_added_goes_through_a_link_of_the_user(tmp_path: Path) -> None:
    """A config file is often kept elsewhere; what it held stays as it was."""
    (tmp_path / "real").write_text("a\n")
    (tmp_path / "link").symlink_to("real")
    atomic_write.append(tmp_path / "link", "b\n")
    assert (tmp_path / "real").read_text() == "a\nb\n"


# the program: what it reads and where it writes


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers: a program that is connected to it needs no model, and a fifth of the time."""
    with FakeServer() as server:
        yield server


def run(line: str, **more: str) -> tuple[int, str, str]:
    """Run a shell line in which $HUB is the program; returns its code, what it printed and what it said."""
    variables = environment() | {"HUB": f"{sys.executable} -m repl", **more}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, cwd=ROOT, env=variables, timeout=HUNG, check=False, text=True
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$HUB $SERVER -c /version >&-", 1, "hub-repl: standard output is closed\n"),
        ("$HUB --help >&-", 1, "hub-repl: standard output is closed\n"),
        ("$HUB $SERVER -c /version >&- 2>&-", 1, ""),
        ("$HUB $SERVER -c /version >/dev/full", 1, "hub-repl: cannot write standard output: No space left on device\n"),
        ("$HUB $SERVER --json -c /version >/dev/full", 1, "cannot write standard output"),
        ("$HUB --help >/dev/full", 1, "cannot write standard output"),
        ("$HUB --version >/dev/full", 1, "cannot write standard output"),
        ("$HUB $SERVER --json -c /settings | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("$HUB --help | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("$HUB $SERVER -c /version </dev/null 2>/dev/full", 0, ""),
        ("$HUB $SERVER -c /nonsense </dev/null 2>/dev/full", 1, ""),
        ("$HUB $SERVER -c /version 2>&-", 0, ""),
        ("$HUB $SERVER -c /version <&-", 0, ""),
        ("$HUB $SERVER --script - <&-", 0, ""),
        ("$HUB $SERVER -c /version </dev/zero", 2, "hub-repl: standard input is larger than 4 MB"),
        ("$HUB $SERVER --script /dev/zero", 2, "it is a device, not a file"),
        ("printf '\\xff\\xfe\\xff' | $HUB $SERVER -c /version", 2, "hub-repl: standard input is not UTF-8 text"),
        (
            "HUB_REPL_HOME=/dev/null/x $HUB $SERVER -c /version",
            2,
            "hub-repl: cannot make the folder /dev/null/x/config",
        ),
        ("HUB_REPL_HOME=/proc/x $HUB hello", 2, "HUB_REPL_HOME=FOLDER hub-repl"),
    ],
)
def test_every_end_is_a_sentence_and_a_code(line: str, code: int, said: str, server: FakeServer) -> None:
    found = run(line, SERVER=f"--connect {server.host}")
    assert found[0] == code, found
    assert said in found[2]
    assert found[2].count("\n") <= 1


@pytest.mark.slow
@POSIX
def test_a_script_may_be_a_pipe_and_begin_with_a_mark(server: FakeServer) -> None:
    marked = "'\\xef\\xbb\\xbf/version\\n'"
    for line in (f"$HUB $SERVER --script <(printf {marked})", f"printf {marked} | $HUB $SERVER --script -"):
        code, printed, said = run(line, SERVER=f"--connect {server.host}")
        assert (code, said) == (0, "")
        assert "hub-repl" in printed


@pytest.mark.slow
@POSIX
def test_an_answer_that_cannot_be_written_fails(server: FakeServer, gpt2_folder: Path) -> None:
    assert run(f"$HUB {gpt2_folder} hello --max-new-tokens 4 --no-save > /dev/full")[0] == 1
    line = f"$HUB --connect {server.host} --no-save hello"
    assert run(f"{line} > /dev/full")[0] == 1
    code, printed, _ = run(f"{line} 2> /dev/full")
    assert (code, printed) == (0, "Hello there.\n")


STARTED = """
import signal, sys, repl.__main__ as program
signal.signal(signal.SIGINT, program._interrupted)  # the handler that a start sets
sys.stdout.write("x")
sys.stdout.flush()
program.main()
"""


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("after", [0, 0.05, 0.2, 0.4, 0.8, 1.6, 3.2])
def test_ctrl_c_while_the_program_starts_is_quiet(after: float, gpt2_folder: Path) -> None:
    """From the first line of ours on; 130 however far the imports are."""
    words = [sys.executable, "-c", STARTED, str(gpt2_folder), "hello", "--max-new-tokens", "100000"]
    pipe = subprocess.PIPE
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment())
    assert child.stdout is not None
    child.stdout.read(1)
    time.sleep(after)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=HUNG)
    assert child.returncode == 130
    assert b"Traceback" not in said
    assert b"ignored" not in said


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="then it loads")
@pytest.mark.parametrize("content", [b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", b"IQ== 0\n"])
def test_a_tokenizer_of_pieces_alone_names_its_package(
    content: bytes, session: Session, llama_folder: Path, tmp_path: Path
) -> None:
    """The library blames another package; a tiktoken file of the same name is left to it."""
    folder = shutil.copytree(llama_folder, tmp_path / "pieces")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(ReplError) as caught:
        driving.run(session, f"/model {folder}", "/info")
    assert ("sentencepiece" in caught.value.message) == content.startswith(b"\n")
    assert content.startswith(b"\n") == (caught.value.hints == ("pip install sentencepiece protobuf",))
