"""Memory of the whole program over six loads of two models in turn."""

import sys

import psutil
from child import Child
from figures import Ground, Row

DTYPES = ("bfloat16", "float32")


def alternating(ground: Ground) -> list[Row]:
    """Load the model in float32 and bfloat16 in turn, with a short reply after each; RSS in MB."""
    sizes = []
    words = ("--dtype", "float32", "--max-new-tokens", "8", "--keep-models", "1")
    with Child(sys.executable, "-m", "repl", *words, home=ground.home) as child:
        child.load()
        for turn in range(6):
            if turn:
                child.ask(f"/dtype {DTYPES[(turn + 1) % 2]}")
            child.ask("Hello")  # waits for the load
            sizes.append(psutil.Process(child.pid).memory_info().rss / 1e6)
    growth = sizes[5] / sizes[1]
    ends, each = (f"{sizes[5]:.0f} MB", f"{sizes[1]:.0f} MB"), " ".join(f"{size:.0f}" for size in sizes)
    return [Row("RSS after the sixth load : after the second", *ends, f"{growth:.3f}", "≤ 1.05", each, growth <= 1.05)]
