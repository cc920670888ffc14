"""Every type of model that the library has: `pytest -s -m campaign tests/campaign_architectures.py`.

Each is made tiny, saved, and loaded and asked in a process of its own. The results lie in the folder that
`HUB_REPL_CAMPAIGN` names, one file a type; what is there is not done again. `ARCHITECTURES` names some types alone.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import architectures
import pytest
from driving import opened
from examine import VIEWS, examine

LIMIT = 240  # seconds for one type
WARM = ("llama", "qwen3_vl", "mamba", "bert")  # imported once, for all processes


def folder() -> Path:
    return Path(os.environ.get("HUB_REPL_CAMPAIGN") or Path(tempfile.gettempdir()) / "hub-repl-architectures")


def one(kind: str, results: Path) -> None:
    """Make a model and look at it; for a process of its own."""
    place = results / "models" / kind
    os.environ["HUB_REPL_HOME"] = str(place / "home")
    with open(results / f"{kind}.log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        found: dict[str, str] = {}
        try:
            if not (place / "config.json").exists():
                architectures.make(kind, place)
            examine(place, found)
        except BaseException as error:
            traceback.print_exc()
            found["stopped"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    (results / f"{kind}.json").write_text(json.dumps(found, indent=1))


def told(kinds: list[str], results: Path) -> str:
    """Write the table: for each type what differs, and how many are right in each view."""
    rows = {kind: json.loads((results / f"{kind}.json").read_text()) for kind in kinds}
    right = Counter(view for row in rows.values() for view in VIEWS if row.get(view, "").startswith("ok"))
    lines = [f"{view}: {right[view]} of {len(rows)}" for view in VIEWS]
    for kind, row in rows.items():
        wrong = {view: word for view, word in row.items() if not word.startswith("ok")}
        lines += [f"{kind}: " + "; ".join(f"{view} = {word}" for view, word in wrong.items())] if wrong else []
    return "\n".join(lines)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")  # what the libraries warn of in models this small
def test_every_architecture_answers_as_generate_does_or_says_why_not():
    faulthandler.cancel_dump_traceback_later()  # this takes as long as it takes
    results = folder()
    results.mkdir(parents=True, exist_ok=True)
    kinds = os.environ.get("ARCHITECTURES", "").split() or architectures.kinds()
    with tempfile.TemporaryDirectory() as warm:
        for kind in WARM:
            architectures.make(kind, Path(warm) / kind)
        with opened(Path(warm) / "llama"):
            pass
    context: Any = multiprocessing.get_context("fork")
    for kind in kinds:
        if (results / f"{kind}.json").exists() and "ARCHITECTURES" not in os.environ:
            continue
        process = context.Process(target=one, args=(kind, results))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
        if not (results / f"{kind}.json").exists() or process.exitcode:
            (results / f"{kind}.json").write_text(json.dumps({"stopped": f"exit code {process.exitcode}"}))
    sys.stdout.write(told(kinds, results) + "\n")
