"""Memory: what a model took returns when another takes its place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = 300  # seconds after which the program under test has hung
GROWTH = 1.05  # of the same model: what stays beside it are the libraries' own tables

ALTERNATE = """
import json, sys
sys.path.insert(0, sys.argv[1])
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

HOLES = """
import json, sys
import psutil, torch
from repl import libraries

size = lambda: psutil.Process().memory_info().rss
torch.ones(2**22)  # 16 MiB freed: from now on less than that comes from a heap
with libraries.returnable():
    inside = [torch.ones(2**18) for _ in range(128)]  # of 1 MiB each
full = size()
del inside[::2]
kept = size()
outside = [torch.ones(2**18) for _ in range(128)]
large = size()
del outside[::2]
print(json.dumps([full - kept, large - size()]))
"""


@pytest.mark.skipif("sys.platform != 'linux'")
def test_what_a_load_frees_goes_back_at_once_even_between_what_stays() -> None:
    """64 of 128 tensors are freed, every second one: those of a load leave no holes, others do."""
    ended = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=GUARD, check=False)
    assert ended.returncode == 0, ended.stderr
    inside, outside = json.loads(ended.stdout)
    assert 60 * 2**20 < inside < 68 * 2**20
    assert outside < 4 * 2**20, "the test would not see holes"


def test_memory_returns_over_six_alternating_loads(builtin_folder: Path, home: Path) -> None:
    """After the sixth load of two models in turn the process is as large as after the second."""
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", ALTERNATE, here, str(builtin_folder)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=GUARD, check=False)
    assert ended.returncode == 0, ended.stderr
    sizes = json.loads(ended.stdout.splitlines()[-1])
    assert sizes[5] < sizes[1] * GROWTH, [f"{size / 1e6:.0f} MB" for size in sizes]
    assert sizes[3] < sizes[2], "the smaller of the two models takes less, or nothing of the larger returned"
