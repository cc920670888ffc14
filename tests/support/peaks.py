"""Measures what models take in memory, in a process of its own: `peaks.py WARM FOLDER DTYPE TOKENS [TOKENS ...]`.

Prints a line of JSON for each length: the estimate, and the highest resident size above that of a process which has
loaded and used another model before, while loading and while replying. Linux only.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest
import torch

from repl import generation, models
from repl.core.settings import Load, Settings
from repl.generation.interface import Request, Runtime
from repl.hub.validate import examine
from repl.models import imports
from repl.models.memory import estimate

MADE = 4  # tokens of each reply


def resident(field: str) -> int:
    """Return a line of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(lines[field].split()[0]) * 1024


def forget() -> None:
    """Let the highest resident size begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def reply(found: Any, tokens: int) -> None:
    """Answer a prompt that touches all of the vocabulary."""
    most = found.facts.vocabulary - 10
    settings = Settings(load=found.load).put("max_new_tokens", MADE, "you").put("min_new_tokens", MADE, "you")
    ids = tuple(7919 * place % most + 5 for place in range(tokens))
    generation.engine.generate_reply(found, Request(settings, ids=ids), conftest.Recorder())


def main(warm: str, folder: str, dtype: str, *lengths: str) -> None:
    """Use a small model first, then measure the other."""
    torch.set_num_threads(1)
    small = models.loader.load_model(Load(warm, dtype="float32"), conftest.Recorder(), True, lambda *_: None, Runtime)
    reply(small, 20)
    del small
    for length in map(int, lengths):
        measure(Load(folder, dtype=dtype), length)


def measure(load: Load, length: int) -> None:
    """Load, reply, and say what both took."""
    imports.release_memory()
    forget()
    before = resident("VmRSS")
    model = models.loader.load_model(load, conftest.Recorder(), True, lambda *_: None, Runtime)
    forget()
    reply(model, length)
    replied = resident("VmHWM") - before
    needs = estimate.estimate_needs(examine(Path(load.model)), model.model.config, load, length + MADE)
    found = {**asdict(needs), "replying": replied, "total": needs.total}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
