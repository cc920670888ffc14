"""A program to be killed: writes turns into an archive and tells what is saved, and after `!` what it heard.

`python archive_writer.py FILE TURNS [LARGEST]`: no file may grow over LARGEST bytes. TURNS 0: what a user without
rights to the file can do.
"""

import os
import random
import sys
from pathlib import Path

from repl.core.conversation import Conversation
from repl.session.archive import Archive


def text_of(number: int) -> str:
    """Return what turn `number` says: from nothing to 60 kB, so that some saves span many pages."""
    return f"{number} " + "wörd " * random.Random(number).choice((0, 3, 30, 300, 12_000))


def main(path: Path, count: int) -> None:
    archive, sentence = Archive.open(path)
    archive.warn = lambda said: _say(f"! {said}")
    if sentence:
        archive.warn(sentence)
    talk = Conversation(keep=archive.save)
    while len(talk.turns) < count:
        asked = talk.add("user", text_of(len(talk.turns) + 1), talk.head)
        _say(f"{archive.id} {asked.id} complete")
        reply = talk.add("assistant", "", asked.id, "open")
        _say(f"{archive.id} {reply.id} open")
        talk.head = talk.close(reply, text_of(reply.id), "complete").id
        _say(f"{archive.id} {reply.id} complete")
        archive.mark(talk.head, "")
    archive.close()


def visit(path: Path) -> None:
    """Do what a user without rights meets: a sentence at the start, reading, and no word after it."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    archive, sentence = Archive.open(path)
    archive.warn = lambda said: _say(f"again: {said}")
    found = [summary.title for summary in archive.sessions("hello")]
    talk = archive.load() if found else Conversation(keep=archive.save)
    talk.add("user", "more", None)
    archive.mark(None, "x")
    _say(f"! {sentence}|{found}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    if sys.argv[2] == "0":
        visit(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
