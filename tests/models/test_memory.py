"""Memory: what a model took returns when another takes its place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = 300  # seconds after which the program under test has hung
GROWTH = 1.25  # of the same model: holes in the heap, where a model that stays would be a half more for each load

ALTERNATE = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/support"]
import driving, psutil, torch

torch.set_num_threads(1)
sizes = []
with driving.opened(sys.argv[2], max_new_tokens=2, keep_models=1) as session:
    for turn in range(6):
        if turn:
            driving.run(session, "/dtype " + ("bfloat16" if turn % 2 else "float32"))
            driving.run(session, "/clear")
        driving.ask(session, "Hello")
        sizes.append(psutil.Process().memory_info().rss)
print(json.dumps(sizes))
"""

FIRST = """
import gc, sys, weakref
sys.path.insert(0, sys.argv[1])
import conftest
from repl.core.settings import Load
from repl.generation.interface import Runtime
from repl.models.store import Store

store = Store(Runtime, offline=True)
store.load(Load(sys.argv[2]), conftest.Recorder())
seen = weakref.ref(store.current().model)
store.drop()
gc.collect()
print(seen())
"""


def alone(lines: str, *words: str) -> str:
    """Run lines in an interpreter of their own; returns what they print."""
    line = [sys.executable, "-c", lines, str(Path(__file__).parents[1]), *words]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=GUARD, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.slow
def test_the_first_model_is_freed_as_any_other(llama_folder: Path) -> None:
    """The imports before it leave nothing behind that holds what the load came to hold."""
    assert alone(FIRST, str(llama_folder)) == "None"


@pytest.mark.slow
def test_memory_returns_over_six_alternating_loads(builtin_folder: Path, home: Path) -> None:
    """After the sixth load of two models in turn the process is hardly larger than after the second."""
    sizes = json.loads(alone(ALTERNATE, str(builtin_folder)).splitlines()[-1])
    assert sizes[5] < sizes[1] * GROWTH, [f"{size / 1e6:.0f} MB" for size in sizes]
    assert sizes[3] < sizes[2], "the smaller of the two models takes less, or nothing of the larger returned"
