"""Several models: switching, loading again, what stays in memory, and a Hub that says nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import psutil
from child import Child
from figures import Ground, Row, against, within

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import models
from fakehub import FakeHub, Fault

BARE = Path(__file__).with_name("bare.py")
READY = re.compile(rb"ready in")
SWITCHES = 30
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
LARGE |= {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048}


def until_ready(child: Child, line: str) -> float:
    """Send a line that ends with a ready model; returns the seconds from the Enter key to an empty prompt after it."""
    before = len(READY.findall(child.raw))
    sent = child.line(line)
    return child.wait(lambda: len(READY.findall(child.raw)) > before and child.ready()) - sent


def switch(ground: Ground) -> list[Row]:
    """Back and forth between two number formats of the built-in model, both in memory."""
    with Child(sys.executable, "-m", "repl", "--dtype", "float32", home=ground.home) as child:
        child.load()
        until_ready(child, "/dtype bfloat16")
        spent = [until_ready(child, f"/dtype {('float32', 'bfloat16')[turn % 2]}") * 1000 for turn in range(10)]
    return [within("switch to a resident model, Enter to prompt", median(spent), 50, "ms", spent)]


def again(ground: Ground) -> list[Row]:
    """The built-in model read anew, in the program and by a script, in turn; both warm."""
    ours, theirs = [], []
    bare = subprocess.Popen(
        [sys.executable, str(BARE), "loads", str(ground.model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bare.stdin is not None
    assert bare.stdout is not None
    with Child(sys.executable, "-m", "repl", "--dtype", "float32", "--no-save", home=ground.home) as child, bare:
        child.load()
        for _ in range(max(3, ground.rounds) + 1):
            with child.paused():
                theirs.append(timed(bare))
            ours.append(until_ready(child, "/reload"))
            child.watch(1.0)  # what was freed is tidied up
        bare.kill()
    more = [one - other for one, other in zip(ours[1:], theirs[1:], strict=True)]
    return [
        within("load again : more than from_pretrained + tokenizer", median(more), 0.15, "s", more),
        against("  load again, Enter to prompt", ours[1:], theirs[1:], None),
    ]


def script(folder: Path) -> Any:
    """Start the script that loads a model by hand whenever it is told to."""
    words = [sys.executable, str(BARE), "loads", str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def timed(bare: Any) -> float:
    """Return the seconds that the script takes now."""
    bare.stdin.write("\n")
    bare.stdin.flush()
    return float(bare.stdout.readline())


def steady(ground: Ground) -> list[Row]:
    """RSS over switches among four models of which two may stay, with a short reply after each.

    Each is asked in an empty conversation: what a longer one takes is its keys and values, not the switch.
    """
    made = [make(ground.scratch / make.__name__) for make in (models.llama, models.gpt2, models.metaspace)]
    lines = [*(f"/model {folder}" for folder in made), "/model builtin"]
    sizes, words = [], ("--dtype", "float32", "--max-new-tokens", "4", "--keep-models", "2")
    with Child(sys.executable, "-m", "repl", *words, home=ground.home) as child:
        child.load()
        child.ask("Hello")
        child.watch(1.0)  # what the load left behind is tidied up
        one = psutil.Process(child.pid).memory_info().rss
        for turn in range(SWITCHES + len(lines)):
            until_ready(child, lines[turn % len(lines)])
            child.ask("/clear")
            child.ask("Hello")
            sizes.append(psutil.Process(child.pid).memory_info().rss / 1e6)
    kept = sizes[len(lines) :]
    rounds = [kept[turn] for turn in range(0, len(kept), len(lines))]  # the same models each time
    slope = linear_regression(range(len(rounds)), rounds).slope / len(lines)
    weights = (ground.model / "model.safetensors").stat().st_size
    return [
        within(f"RSS a switch over {SWITCHES} among four models", slope, 1, "MB", rounds),
        within("RSS with the built-in model in float32", one / 1e6, (1.1 * weights + 300e6) / 1e6, "MB", []),
    ]


def silent(ground: Ground) -> list[Row]:
    """A Hub that accepts and never answers: time to the error, and to the copy in the cache."""
    with FakeHub() as hub:
        folder = models.llama(ground.scratch / "tiny")
        hub.add("acme/tiny", folder)
        surroundings = hub.environment() | {"HF_HOME": str(ground.scratch / "hf")}
        os.environ |= surroundings
        try:
            with Child(sys.executable, "-m", "repl", "acme/tiny", home=ground.home) as child:
                child.load()
            hub.fault = Fault(silent=True)
            with Child(sys.executable, "-m", "repl", "--keep-models", "1", home=ground.home) as child:
                child.load()
                cached = until_ready(child, "/model acme/tiny")
                sent = child.line("/model acme/none")
                error = child.wait(lambda: b"not cached" in child.raw and child.ready()) - sent
        finally:
            for name in surroundings:
                os.environ.pop(name)
    return [
        within("silent Hub: to the error", error, 5, "s", []),
        within("silent Hub: to the cached copy", cached, 1, "s", []),
    ]


def large(ground: Ground) -> list[Row]:
    """A model of 1.1B parameters in bfloat16, whose files are in the page cache, in the program and by a script.

    Ours counts from the Enter key to the line that says "ready", and beside it to the prompt after that.
    """
    folder = giant(ground.scratch / "large")
    ours, prompts, theirs = [], [], []
    bare = script(folder)
    with Child(sys.executable, "-m", "repl", "--keep-models", "1", home=ground.home) as child, bare:
        child.load()
        for _ in range(max(3, ground.rounds) + 1):
            with child.paused():
                theirs.append(timed(bare))
            before = len(READY.findall(child.raw))
            sent = child.line(f"/model {folder}")
            ours.append(child.wait(lambda: len(READY.findall(child.raw)) > before) - sent)  # noqa: B023
            prompts.append(child.wait(child.ready) - sent)
            until_ready(child, "/model builtin")
            child.watch(1.0)  # what was freed is tidied up
        bare.kill()
    shutil.rmtree(folder)
    return [
        against("/model of 1.1B bfloat16 : from_pretrained + tokenizer", ours[1:], theirs[1:], 1.1),
        against("  Enter to the prompt", prompts[1:], theirs[1:], None),
    ]


def giant(folder: Path) -> Path:
    """Write a Llama of 1.1B parameters that are all alike, in bfloat16."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    models.llama(folder)
    config = LlamaConfig(**LARGE, tie_word_embeddings=False, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: part.shape for name, part in LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tensors = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
