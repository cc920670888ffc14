"""Free memory: on each accelerator, and in main memory within the limits of this process's control groups."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SPREAD = ("auto", "balanced", "sequential")  # device maps that the library makes itself, within `max_memory`
UNLIMITED = 1 << 60  # bytes: control groups without a limit write a number near 2**63


CONTROL_GROUPS = {  # version: (limit, use, the part of the use that is file cache, which the system takes back)
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device, in bytes; `limit` names what caps it below the installed memory, '' for nothing."""

    device: str
    total: int
    free: int
    """Memory that can still be allocated, including the allocator's unused cache and the file cache."""
    limit: str = ""
    own: int = 0
    """Memory held by this process."""
    back: int = 0
    """The part of `own` that also counts as free: mapped files, and the allocator's unused cache."""

    @property
    def others(self) -> int:
        """Memory held by other programs."""
        return max(0, self.total - self.free - (self.own - self.back))


def measure_rooms() -> list[Room]:
    """Return the memory of every device now: accelerators first, main memory last. For the model thread."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver may be too old for its cards
    cards = [_card(torch.cuda, number) for number in range(count)]
    if not cards and torch.backends.mps.is_available():
        cards = [_mps(torch.mps)]
    return [*cards, machine()]


def machine(root: Path = Path("/")) -> Room:
    """Return main memory, as far as control groups let this process use it."""
    memory, used = psutil.virtual_memory(), psutil.Process().memory_info()
    total, free, limit = memory.total, memory.available, ""
    for most, left in _groups(root):
        total = min(total, most)
        if left < free:
            free, limit = left, "control group"
    return Room("cpu", total, free, limit, used.rss, getattr(used, "shared", 0))


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit and the remaining bytes of each control group around this process, version 2 and 1."""
    for folder, version in _folders(root):
        most, used, cache = CONTROL_GROUPS[version]
        with suppress(OSError, ValueError):  # no such file, or the word `max`
            limit = int((folder / most).read_text("utf-8"))
            taken = int((folder / used).read_text("utf-8")) - _reclaimable(folder / "memory.stat", cache)
            if limit < UNLIMITED:
                yield limit, max(0, limit - taken)


def _folders(root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the control groups, innermost first; in a container only the topmost exists."""
    with suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
            if not kinds or "memory" in kinds.split(","):
                top = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
                inner = top / path.strip("/")
                yield from ((each, 1 if kinds else 2) for each in (inner, *inner.parents) if each.is_relative_to(top))


def _reclaimable(stat: Path, names: tuple[str, ...]) -> int:
    """Return the bytes of file cache that the system drops before it refuses memory."""
    with suppress(OSError, ValueError):
        pairs = [line.split() for line in stat.read_text("utf-8").splitlines()]
        return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names)
    return 0


def _card(cuda: Any, number: int) -> Room:
    free, total = cuda.mem_get_info(number)
    held = cuda.memory_reserved(number)
    idle = held - cuda.memory_allocated(number)
    return Room(f"cuda:{number}", total, free + idle, "", held, idle)


def _mps(mps: Any) -> Room:
    total, held = mps.recommended_max_memory(), mps.driver_allocated_memory()
    used = mps.current_allocated_memory()
    free = min(psutil.virtual_memory().available, total - used)  # it shares the processor's memory
    return Room("mps", total, max(0, free), "", held, held - used)


def targets(device: str, rooms: Sequence[Room]) -> list[Room]:
    """Return the devices that should hold the whole model: the named one, or all accelerators together.

    Empty where the named device does not exist.
    """
    if device in SPREAD:
        return [room for room in rooms if room.device != "cpu"] or list(rooms)
    return [room for room in rooms if room.device in (device, f"{device}:0")]


def capped(rooms: Iterable[Room], allowed: str) -> list[Room]:
    """Return the devices limited by `max_memory` (`0=20GiB,cpu=48GiB`); those it does not name have nothing free."""
    if not allowed:
        return list(rooms)
    most = {f"cuda:{name}" if isinstance(name, int) else name: size(most) for name, most in max_memory(allowed).items()}
    return [replace(room, free=min(room.free, most.get(room.device, 0)), limit="max_memory") for room in rooms]


def max_memory(words: str) -> dict[int | str, str]:
    """Return `0=20GiB,cpu=48GiB` as the dictionary that accelerate takes."""
    pairs = dict(pair.split("=") for pair in words.split(","))
    return {int(device) if device.isdigit() else device: size for device, size in pairs.items()}


def size(words: str) -> int:
    """Return the bytes that `1.5GiB` or `500MB` stands for."""
    digits = words.rstrip("KMGTiB")
    return int(float(digits) * UNITS[words[len(digits) :]])
