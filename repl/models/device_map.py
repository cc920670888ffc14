"""Device placement: arguments of `from_pretrained`, the device map of a loaded model, notices about slow placement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repl.core.errors import BadModel, UsageError
from repl.core.format import tally_layers
from repl.core.library_types import PreTrainedModel
from repl.core.settings import Load
from repl.models.memory.available import SPREAD, max_memory


def placement_options(load: Load) -> dict[str, object]:
    """Return the placement arguments of `from_pretrained`; raises `BadModel` for a device that does not exist."""
    found: dict[str, Any] = {"device_map": device_map(load.device)}
    if load.max_memory and load.device in SPREAD:
        found["max_memory"] = max_memory(load.max_memory)
        for name in found["max_memory"]:
            if isinstance(name, int):
                require_gpu(name)
    if load.offload_folder:
        found["offload_folder"] = offload_folder(load.offload_folder)
    if load.device in SPREAD and len(found) == 1 and not torch.accelerator.is_available():
        found["device_map"] = {"": "cpu"}  # the same result, without computing the size of every module
    return found


def device_map(device: str) -> object:
    """Return `from_pretrained`'s `device_map` for a device; raises `BadModel` for one that does not exist."""
    name, _, number = device.partition(":")
    if name == "cuda":
        require_gpu(int(number or 0))
        return {"": int(number or 0)}
    if name == "mps" and not torch.backends.mps.is_available():
        raise BadModel("no MPS device: this machine or this build of torch has none", "/device auto", "/device cpu")
    return {"": name} if name in ("cpu", "mps") else name


def require_gpu(number: int) -> None:
    """Raise `BadModel` unless there is a CUDA device of this number."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        here = f"this machine has {count}" if count else "this machine or this build of torch has none"
        raise BadModel(f"no CUDA device {number}: {here}", "/device auto", "/device cpu")


def offload_folder(words: str) -> str:
    """Return the folder for weights offloaded to disk, created if missing; raises `UsageError`."""
    folder = Path(words).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot write weights to {str(folder)!r}: {why}", "/offload_folder default") from error
    return str(folder)


def read_device_map(model: PreTrainedModel) -> dict[str, str]:
    """Return the device map of a loaded model: a device for each module that was placed as a unit."""
    places = getattr(model, "hf_device_map", None) or {"": model.device}
    return {part: f"cuda:{place}" if isinstance(place, int) else str(place) for part, place in places.items()}


def placement_remarks(load: Load, places: Mapping[str, str]) -> list[str]:
    """Return notices about placement that is slow, and about settings that had no effect."""
    said = []
    if load.max_memory and load.device not in SPREAD:
        said.append(f"max_memory has no effect with device {load.device} · /device auto uses it")
    tally = tally_layers(places)
    whole, slow = sum(tally.values()), {place: tally[place] for place in ("cpu", "disk") if place in tally}
    alone = set(places.values()) == {"cpu"}
    if slow and not alone:
        named = (("the CPU" if place == "cpu" else place, number) for place, number in slow.items())
        words = [f"{number} of {whole} layers on {place}" for place, number in named]
        said.append(f"{' and '.join(words)}: slow")
    elif "disk" in places.values():
        said.append("some weights stay on disk and are read again for every token: slow")
    if alone and (gpu := _free()):
        said.append(f"on the CPU although {gpu} · /device auto")
    return said


def _free() -> str:
    """Name a GPU that is available and has more than 1 GiB free."""
    if torch.cuda.is_available():
        rooms = [(torch.cuda.mem_get_info(number)[0], number) for number in range(torch.cuda.device_count())]
        room, number = max(rooms)
        return f"cuda:{number} has {room / 2**30:.0f} GiB free" if room > 2**30 else ""
    return "mps is available" if torch.backends.mps.is_available() else ""
