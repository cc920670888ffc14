"""Loads folders one after the other in a process that watches itself: `intruder.py GOOD SECRET FOLDER ...`.

Prints a line of JSON for each folder: its name, how it ended (refused, answered, crashed), the sentence, the seconds,
and what the audit hook saw: files opened outside the folder, code compiled from it, processes, connections.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import driving
import psutil
import torch

from repl.core.errors import ReplError
from repl.models import imports

SEEN: list[str] = []
OWN = ("open", "compile", "subprocess.Popen", "os.system", "os.exec", "socket.connect")


class Watch:
    """Remembers what touches the ground on which the folders lie, apart from the folder at hand."""

    def __init__(self, ground: Path, good: Path) -> None:
        self.ground, self.good = str(ground), str(good)
        self.folder = self.good

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OWN:
            return
        if event == "open" and self._foreign(arguments[0]):
            SEEN.append(f"open {arguments[0]}")
        elif event == "compile" and str(arguments[1]).startswith(self.ground):
            SEEN.append(f"compile {arguments[1]}")
        elif event not in ("open", "compile"):
            SEEN.append(f"{event} {arguments}")

    def _foreign(self, path: Any) -> bool:
        name = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        return name.startswith(self.ground) and not name.startswith((self.folder, self.good))


def attempt(session: Any, folder: Path, allow: str) -> tuple[str, str]:
    """Load a folder and say something to it."""
    try:
        driving.run(session, f"/model {folder}{allow}", "/info")
        driving.ask(session, "Hello there")
    except ReplError as error:
        return "refused", error.message
    except BaseException as error:
        return "crashed", repr(error)
    return "answered", ""


def main(good: str, ground: str, *folders: str) -> None:
    """Try every folder, and after each whether the good model answers as before."""
    torch.set_num_threads(1)
    watch = Watch(Path(ground), Path(good))
    with driving.opened(good, max_new_tokens=2, markdown="off") as session:
        before = driving.ask(session, "Hello").token_ids
        driving.run(session, "/clear")
        sys.addaudithook(watch)
        for folder in map(Path, folders):
            SEEN.clear()
            watch.folder = str(folder)
            began = time.monotonic()
            allow = " allow_pickle=on" if "pickle" in folder.name else ""
            end, said = attempt(session, folder, allow)
            seconds = time.monotonic() - began
            if end == "answered" or session.facts().id != good:
                driving.run(session, f"/model {good}", "/info")
            driving.run(session, "/clear")
            same = driving.ask(session, "Hello").token_ids == before
            driving.run(session, "/clear")
            imports.release_memory()
            found = {"folder": folder.name, "end": end, "said": said, "seconds": seconds, "same": same}
            found |= {"seen": list(SEEN), "rss": psutil.Process().memory_info().rss}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
