"""How much memory there is: what the system says, and what a container leaves of it."""

from pathlib import Path

import psutil
import pytest

from repl.devices import Place, aimed, host, limits

GIB = 1 << 30
CPU, FIRST, SECOND = (Place(name, GIB, GIB, 0) for name in ("cpu", "cuda:0", "cuda:1"))


def group(folder: Path, most: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(most + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {cache}\ninactive_file 7\n")


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


def test_every_group_around_a_process_counts(tmp_path: Path) -> None:
    """File cache is not counted as used: the kernel takes it back."""
    root = tmp_path / "cgroup"
    group(root / "a" / "b", str(8 * GIB), 3 * GIB, GIB)
    (root / "a" / "memory.max").write_text(str(4 * GIB))
    (root / "a" / "memory.current").write_text(str(GIB))
    (root / "a" / "memory.stat").write_text("anon 1\n")
    found = list(limits(own(tmp_path, "0::/a/b\n"), root))
    assert found == [(8 * GIB, 2 * GIB - 7), (4 * GIB, GIB)]


def test_a_group_without_a_limit_does_not_count(tmp_path: Path) -> None:
    group(tmp_path / "cgroup" / "a", "max", GIB, 0)
    assert list(limits(own(tmp_path, "0::/a\n"), tmp_path / "cgroup")) == []


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    """The path that it is given is one of the machine outside, and leads nowhere."""
    root = tmp_path / "cgroup"
    group(root, str(2 * GIB), GIB, 0)
    assert list(limits(own(tmp_path, "0::/docker/123\n"), root)) == [(2 * GIB, GIB - 7)]


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "memory" / "a"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(3 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(2 * GIB))
    (folder / "memory.stat").write_text(f"total_active_file {GIB}\ntotal_inactive_file 0\ncache 9\n")
    found = list(limits(own(tmp_path, "5:cpu:/x\n4:memory:/a\n0::/\n"), tmp_path / "cgroup"))
    assert found == [(3 * GIB, GIB)]


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert list(limits(tmp_path / "nothing", tmp_path)) == []


def test_the_end_of_the_container_is_the_end_of_the_machine(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, str(100 << 20), 60 << 20, 0)
    place = host(own(tmp_path, "0::/\n"), root)
    assert (place.total, place.free) == (100 << 20, (40 << 20) + 7)
    machine = host(tmp_path / "nothing", root)
    assert machine.total == psutil.virtual_memory().total
    assert 0 < machine.own < machine.total


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CPU, FIRST, SECOND], [FIRST, SECOND]),
        ("balanced", [CPU, FIRST], [FIRST]),
        ("cuda", [CPU, FIRST, SECOND], [FIRST]),
        ("cuda:1", [CPU, FIRST, SECOND], [SECOND]),
        ("cpu", [CPU, FIRST], [CPU]),
        ("mps", [CPU], [CPU]),
    ],
)
def test_a_load_fills_the_devices_that_its_word_names(device: str, there: list[Place], expected: list[Place]) -> None:
    assert aimed(device, there) == expected


def test_what_others_hold_is_the_rest() -> None:
    """Of 10: 4 are free, this program holds 3 of which 1 counts as free all the same."""
    assert Place("cuda:0", 10, 4, 3, 1).others == 4
