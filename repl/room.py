"""How much memory is free: on each accelerator, and in the machine within the limits that this process runs under."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
UNLIMITED = 1 << 60  # bytes: control groups without a limit write a number near 2**63


@dataclass(frozen=True, slots=True)
class Room:
    """A device with its memory in bytes; `limit` says what keeps it below what is installed, '' where nothing does."""

    device: str
    total: int
    free: int
    limit: str = ""


def measure(root: Path = Path("/")) -> list[Room]:
    """Return the devices with what is free on each now: accelerators first, the machine's own memory last."""
    return [*_cuda(), *_mps(), machine(root)]


def machine(root: Path = Path("/")) -> Room:
    """Return the machine's memory: what is available, or what a control group or a process limit leaves of it."""
    memory = psutil.virtual_memory()
    found = Room("cpu", memory.total, memory.available)
    for bound in (*_groups(root), *_process()):
        if bound.free < found.free:
            found = bound
    return found


def _groups(root: Path) -> Iterator[Room]:
    """Read the limits of the control groups around this process, of version 2 and 1."""
    with suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
            if not kinds:
                yield from _limits(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _limits(root / "sys/fs/cgroup/memory", path, *names)


def _limits(top: Path, path: str, most: str, used: str, spare: str) -> Iterator[Room]:
    """Read one group and those around it; inside a container its path may not be there, its files are at the top."""
    folder = top / path.strip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(top):
            return
        with suppress(OSError, ValueError):
            limit = int((place / most).read_text("utf-8"))
            if limit < UNLIMITED:
                taken = int((place / used).read_text("utf-8")) - _spare(place / "memory.stat", spare)
                yield Room("cpu", limit, max(0, limit - taken), "control group")


def _spare(stat: Path, name: str) -> int:
    """Return the bytes of files that the system would drop before it refuses memory."""
    with suppress(OSError, ValueError):
        return next(int(line.split()[1]) for line in stat.read_text("utf-8").splitlines() if line.startswith(name))
    return 0


def _process() -> Iterator[Room]:
    """Read the limit on the address space, as `ulimit -v` sets it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit not in (resource.RLIM_INFINITY, -1):
        yield Room("cpu", limit, max(0, limit - psutil.Process().memory_info().vms), "ulimit")


def _cuda() -> list[Room]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [_card(torch, number) for number in range(torch.cuda.device_count())]


def _card(torch: Any, number: int) -> Room:
    free, total = torch.cuda.mem_get_info(number)
    idle = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    return Room(f"cuda:{number}", total, free + idle)


def _mps() -> list[Room]:
    import torch

    if not torch.backends.mps.is_available():
        return []
    most, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
    return [Room("mps", most, max(0, most - used))]


def capped(rooms: Iterable[Room], max_memory: str) -> list[Room]:
    """Return the devices with no more free than `0=20GiB,cpu=48GiB` allows; those it leaves out hold nothing."""
    if not max_memory:
        return list(rooms)
    pairs = dict(pair.split("=") for pair in max_memory.split(","))
    most = {f"cuda:{name}" if name.isdigit() else name: size(words) for name, words in pairs.items()}
    return [replace(room, free=min(room.free, most.get(room.device, 0)), limit="max_memory") for room in rooms]


def size(words: str) -> int:
    """Return the bytes that `1.5GiB` or `500MB` stands for."""
    digits = words.rstrip("KMGTiB")
    return int(float(digits) * UNITS[words[len(digits) :]])


def amount(size: int) -> str:
    """Return a size in MiB, or GiB with two places."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def with_back(rooms: Iterable[Room], given: dict[str, int]) -> list[Room]:
    """Return the devices as they would be with these bytes given back."""
    return [replace(room, free=room.free + given.get(room.device, 0)) for room in rooms]
