"""How much memory there is: what the system says, and what a container leaves of it."""

from pathlib import Path

import psutil
import pytest

from repl.models.memory import available
from repl.models.memory.available import Room, targets

MB, GB = 10**6, 10**9
CPU = Room("cpu", 64 * GB, 32 * GB)
CARD, OTHER = Room("cuda:0", 24 * GB, 20 * GB), Room("cuda:1", 24 * GB, 20 * GB)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2 = "sys/fs/cgroup/job"
V1 = "sys/fs/cgroup/memory/job"


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/job\n", f"{V2}/memory.max": "900", f"{V2}/memory.current": "500"}
        | {f"{V2}/memory.stat": "anon 1\nactive_file 60\ninactive_file 40\n"},
        {"proc/self/cgroup": "3:cpu:/\n0::/job/inner\n", f"{V2}/memory.max": "900", f"{V2}/memory.current": "400"}
        | {f"{V2}/inner/memory.max": "max"},
        {"proc/self/cgroup": "4:memory:/job\n", f"{V1}/memory.limit_in_bytes": "900"}
        | {f"{V1}/memory.usage_in_bytes": "500", f"{V1}/memory.stat": "total_inactive_file 100\n"},
        {"proc/self/cgroup": "4:memory:/elsewhere/job\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "900"}
        | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "400"},
    ],
    ids=["version 2", "a group around it", "version 1", "inside a container"],
)
def test_a_control_group_limits_what_is_free(files: dict[str, str], tmp_path: Path) -> None:
    """The limit less what is used, files that would be dropped not counted."""
    found = available.machine(tree(tmp_path, files))
    assert (found.device, found.total, found.free, found.limit) == ("cpu", 900, 500, "control group")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "nonsense\n0::/job\n", f"{V2}/memory.max": "max"},
        {"proc/self/cgroup": "4:memory:/job\n", f"{V1}/memory.limit_in_bytes": str(2**63 - 4096)},
        {"proc/self/cgroup": "0::/../../..\n"},
    ],
)
def test_without_a_limit_the_machine_counts(files: dict[str, str], tmp_path: Path) -> None:
    found = available.machine(tree(tmp_path, files))
    assert found.limit == ""
    assert 0 < found.free < found.total


def test_max_memory_caps_what_is_free() -> None:
    """A device that it leaves out is not used."""
    capped = available.capped([CARD, OTHER, CPU], "0=10GiB,cpu=500MB")
    assert [each.free for each in capped] == [10 * 2**30, 0, 500 * MB]
    assert available.capped([CARD, CPU], "") == [CARD, CPU]


def test_the_tightest_of_several_groups_counts(tmp_path: Path) -> None:
    """Whoever is outside may allow less than the group itself."""
    inner = {"memory.max": "900", "memory.current": "100"}
    outer = {"memory.max": "700", "memory.current": "600", "memory.stat": "active_file 5"}
    files = {f"{V2}/inner/{name}": text for name, text in inner.items()} | {
        f"{V2}/{name}": text for name, text in outer.items()
    }
    found = available.machine(tree(tmp_path, {"proc/self/cgroup": "0::/job/inner\n", **files}))
    assert (found.total, found.free) == (700, 105)


def test_the_machine_says_what_this_program_holds() -> None:
    found = available.machine()
    assert 0 < found.own < psutil.virtual_memory().total
    assert found.back <= found.own


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CARD, OTHER, CPU], [CARD, OTHER]),
        ("balanced", [CARD, CPU], [CARD]),
        ("cuda", [CARD, OTHER, CPU], [CARD]),
        ("cuda:1", [CARD, OTHER, CPU], [OTHER]),
        ("cpu", [CARD, CPU], [CPU]),
        ("mps", [CPU], []),
    ],
)
def test_a_load_fills_the_devices_that_its_word_names(device: str, there: list[Room], expected: list[Room]) -> None:
    assert targets(device, there) == expected


def test_what_others_hold_is_the_rest() -> None:
    """Of 10: 4 are free, this program holds 3 of which 1 counts as free all the same."""
    assert Room("cuda:0", 10, 4, own=3, back=1).others == 4
