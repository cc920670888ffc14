"""Matrix multiplication speed of this machine in each dtype, measured in about a second."""

import time
from contextlib import suppress
from dataclasses import dataclass

from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import Tensor

MEASURED_DTYPES = ("float32", "bfloat16", "float16")
WIDTH, ROWS = 1024, 32  # of the matrices that are multiplied: one row is a reply's token, many are a prompt's
TURN_S = 0.12  # seconds for each measurement


@dataclass(frozen=True, slots=True)
class MatmulSpeed:
    """The speed of products with a square matrix, in GFLOP/s."""

    dtype: str
    device: str
    reading: float
    """With many rows at once, as in prefill."""
    replying: float
    """With one row, as in decode."""


def measure_speeds(emit: JobContext) -> list[MatmulSpeed]:
    """Measure each dtype that the device computes in, for about a second altogether."""
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    found: list[MatmulSpeed] = []
    for dtype in MEASURED_DTYPES:
        emit(Progress(f"measuring {dtype}"))
        with suppress(RuntimeError, NotImplementedError):  # this device does not compute in this format
            matrix = torch.ones(WIDTH, WIDTH, dtype=getattr(torch, dtype), device=device)
            found.append(MatmulSpeed(dtype, device, _rate(matrix, ROWS, emit), _rate(matrix, 1, emit)))
    return found


def _rate(matrix: Tensor, rows: int, emit: JobContext) -> float:
    """Return GFLOP/s."""
    some = matrix[:rows]
    (some @ matrix)[0, 0].item()  # the first one sets things up
    quickest, until = float("inf"), time.perf_counter() + TURN_S
    while (began := time.perf_counter()) < until:
        emit.raise_if_cancelled()
        (some @ matrix)[0, 0].item()  # reading a number waits for the device
        quickest = min(quickest, time.perf_counter() - began)  # whatever disturbs makes it slower
    return 2 * rows * WIDTH * WIDTH / max(quickest, 1e-9) / 1e9


def advice(speeds: list[MatmulSpeed]) -> list[str]:
    """Return a hint on the dtype to choose, if the measurement shows a difference."""
    by_name = {speed.dtype: speed for speed in speeds}
    one, half = by_name.get("float32"), by_name.get("bfloat16")
    if one is None or half is None:
        return []
    prompt, reply = half.reading / one.reading, half.replying / one.replying
    if prompt < 0.8 and reply < 0.8:
        return [f"bfloat16 is {1 / prompt:.1f} times slower than float32 here: /dtype float32 if memory allows"]
    if prompt < 0.8:
        return [f"bfloat16 prefill is {1 / prompt:.1f} times slower than float32 here, in half the memory"]
    return [f"bfloat16 computes {prompt:.1f} times as fast as float32 here, in half the memory: /dtype bfloat16"]
