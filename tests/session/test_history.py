"""Lines typed before: whole after a restart, from several programs, and after a kill."""

import multiprocessing
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_lines import add_line, kept_lines


@given(st.lists(st.text(), max_size=8))
def test_what_was_typed_comes_back_whole(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("history") / "history"
    for text in texts:
        add_line(path, text)
    assert kept_lines(path) == texts


def test_an_entry_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    """A kill in mid-write leaves no end of line."""
    path = tmp_path / "history"
    add_line(path, "first\nline")
    with path.open("ab") as file:
        file.write(b"\n# now\n+torn")
    add_line(path, "second")
    assert kept_lines(path) == ["first\nline", "torn", "second"]


def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert kept_lines(tmp_path / "none") == []


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    add_line(tmp_path / "history", "secret")
    assert stat.S_IMODE(os.stat(tmp_path / "history").st_mode) == 0o600


def _write(path: Path, name: str, count: int) -> None:
    for number in range(count):
        add_line(path, f"{name}{number} " + name * (10 ** (number % 5)))


def test_several_programs_write_at_once_and_every_entry_is_whole(tmp_path: Path) -> None:
    """Entries of 10 bytes to 100 kB from four processes."""
    path = tmp_path / "history"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = [context.Process(target=_write, args=(path, name, 25)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wanted = {f"{name}{number} " + name * (10 ** (number % 5)) for name in "abcd" for number in range(25)}
    assert set(kept_lines(path)) == wanted
