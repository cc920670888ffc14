"""How much memory each device has and can still give; the limit of a container counts as the end of the machine's."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
FILES = {  # version: (limit, use, the part of the use that is file cache and can be taken back)
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


@dataclass(frozen=True, slots=True)
class Place:
    """The memory of one device, in bytes, as it is now."""

    device: str
    total: int
    free: int
    """What can be taken yet, with what the allocator holds empty and what is only file cache."""
    own: int
    """What this process holds."""
    back: int = 0
    """The part of that which counts as free all the same: mapped files, and what the allocator keeps empty."""

    @property
    def others(self) -> int:
        """What other programs hold."""
        return max(0, self.total - self.free - (self.own - self.back))


def places() -> list[Place]:
    """Return every device, the processor's memory first; call it on the model thread."""
    return [host(), *accelerators()]


def host(own: Path = OWN, root: Path = CGROUPS) -> Place:
    """Return the memory of the processor, as far as this process may use it."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for most, used in limits(own, root):
        total, free = min(total, most), min(free, max(0, most - used))
    used = psutil.Process().memory_info()
    return Place("cpu", total, free, int(used.rss), int(getattr(used, "shared", 0)))


def limits(own: Path = OWN, root: Path = CGROUPS) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of every control group around this process that has a limit."""
    for folder, version in _groups(own, root):
        most, used, cache = FILES[version]
        with suppress(OSError, ValueError):  # no such file, or the word `max`
            yield int((folder / most).read_text()), int((folder / used).read_text()) - _reclaimable(folder, cache)


def _groups(own: Path, root: Path) -> Iterator[tuple[Path, int]]:
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 2 if not controllers else 1
            top = root if version == 2 else root / "memory"
            if version == 2 or "memory" in controllers.split(","):
                inner = top / path.strip("/")
                yield from ((each, version) for each in (inner, *inner.parents) if each.is_relative_to(top))


def _reclaimable(folder: Path, names: tuple[str, ...]) -> int:
    pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names)


def accelerators() -> list[Place]:
    """Return the GPUs, once torch is there."""
    if "torch" not in sys.modules:
        return []
    import torch

    if torch.backends.mps.is_available():
        return [_mps()]
    return [_cuda(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _cuda(number: int) -> Place:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    held, used = torch.cuda.memory_reserved(number), torch.cuda.memory_allocated(number)
    return Place(f"cuda:{number}", int(total), int(free + held - used), int(held), int(held - used))


def _mps() -> Place:
    import torch

    total, held = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
    used = torch.mps.current_allocated_memory()
    free = min(int(psutil.virtual_memory().available), total - used)  # it shares the processor's memory
    return Place("mps", int(total), int(free), int(held), int(held - used))


def aimed(device: str, there: list[Place]) -> list[Place]:
    """Choose the places that a load for this device fills: the word is the one of the setting."""
    gpus = [place for place in there if place.device != "cpu"]
    if device in ("cpu", "mps") or device.startswith("cuda:"):
        found = [place for place in there if place.device == device]
    else:
        found = gpus[:1] if device == "cuda" else gpus
    return found or there[:1]
