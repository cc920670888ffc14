"""Child processes (editor, clipboard tools, pip): their environment has no secrets that they do not need."""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

HUB_TOKEN = re.compile(r"HF_TOKEN|HUGGING_?FACE_?HUB_TOKEN|HF_OIDC_.*", re.IGNORECASE)
ANY_SECRET = re.compile(r".*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY).*", re.IGNORECASE)
EDITORS = ("/usr/bin/editor", "/usr/bin/nano", "/usr/bin/pico", "/usr/bin/vi", "/usr/bin/emacs", "notepad.exe")


def environment(without: re.Pattern[str] = ANY_SECRET) -> Mapping[str, str]:
    """Return this environment without the variables that match: all secrets, or `HUB_TOKEN` only."""
    return {name: word for name, word in os.environ.items() if not without.fullmatch(name)}


def edit_text(text: str) -> str | None:
    """Let the user edit a text in `$VISUAL`, `$EDITOR` or a known editor; None if it fails or there is none."""
    with tempfile.TemporaryDirectory(prefix="hub-repl-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, "utf-8", newline="\n")
        for line in filter(None, (os.environ.get("VISUAL"), os.environ.get("EDITOR"), *EDITORS)):
            try:  # its plugins may need keys of their own
                failed = subprocess.call([*shlex.split(line), str(path)], env=environment(HUB_TOKEN))
            except (OSError, ValueError):  # not there, or a quote that is not closed
                continue
            return None if failed else path.read_text("utf-8-sig", "replace").removesuffix("\n")
    return None
