"""kill -9 while turns are written: `pytest -m campaign tests/campaign_archive.py`."""

import random
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
from archive_writer import text_of

from repl.session.archive import Archive

Saved = tuple[str, int, str]
WRITER = Path(__file__).parent / "support" / "archive_writer.py"


def writer(path: Path, *words: object) -> "subprocess.Popen[bytes]":
    """Start a program that writes into an archive."""
    line = [sys.executable, str(WRITER), str(path), *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, cwd=WRITER.parent.parent)


def killed(path: Path, chance: random.Random, most: int) -> list[Saved]:
    """Start a writer, kill it after some saves and a moment, and return what it had told as saved."""
    with writer(path, 100_000) as program:
        assert program.stdout is not None
        told = [program.stdout.readline() for _ in range(chance.randrange(most))]
        with suppress(subprocess.TimeoutExpired):
            program.wait(chance.random() * 0.03)
        program.kill()
        told += program.stdout.readlines()
    assert program.returncode == -9
    return saved([line.decode() for line in told if line.endswith(b"\n")])


def saved(lines: list[str]) -> list[Saved]:
    """Return the turns that a writer told as saved: (session, number, state)."""
    return [(name, int(number), state) for name, number, state in map(str.split, lines)]


def missing(path: Path, told: list[Saved]) -> list[Saved]:
    """Return what was told as saved and is not there, or not as it was."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    archive, sentence = Archive.open(path)
    assert not sentence
    lost = []
    for name in sorted({name for name, _, _ in told}):
        turns = archive.load(name).turns
        for entry in (entry for entry in told if entry[0] == name):
            _, number, state = entry
            there = turns.get(number)
            if there is None or (state == "complete" and there.text != text_of(number)):
                lost.append(entry)
    archive.close()
    return lost


@pytest.mark.campaign
def test_two_hundred_kills_lose_no_turn_that_was_saved(tmp_path: Path) -> None:
    path, chance, told = tmp_path / "archive.db", random.Random(20), []
    for _ in range(200):
        told += killed(path, chance, 60)
        assert missing(path, told[-60:]) == []
    assert missing(path, told) == []
    sys.stderr.write(f"\n200 kills, {len(told)} saves acknowledged, 0 lost\n")
