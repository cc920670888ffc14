"""Memory ran out in the middle of a reply: what was needed, what is free, and what would help, with its effect."""

import re
from collections.abc import Iterator
from typing import Any

from repl.core.errors import Failed, NoMemory
from repl.core.format import amount
from repl.core.library_types import PreTrainedConfig
from repl.models import quantization
from repl.models.loader import LoadedModel
from repl.models.memory import available, estimate
from repl.models.memory.available import ADDRESSES, Room
from repl.models.memory.estimate import LOGITS, PACKED, WIDTHS, Sizes

DEAD = ("device-side assert", "illegal memory access", "unspecified launch failure")
"""Errors after which CUDA refuses everything else in this process."""
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|KB|MB|GB)")
"""What torch says on the CPU and on MPS, and on CUDA."""
BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 2**10, "MB": 2**20, "GB": 2**30}
LEAST = 200  # part of all that is needed which a remedy has to save


class Want:
    """What one reply takes beside the weights, in bytes; a beam search keeps a cache and logits for each beam."""

    def __init__(self, resident: LoadedModel[object], config: PreTrainedConfig, prompt: int) -> None:
        self.resident, self.prompt = resident, prompt
        self.beams = config.num_beams or 1
        context = resident.facts.context or estimate.GLANCE
        self.made = config.max_new_tokens or max(0, context - prompt)
        self.width = WIDTHS.get(resident.facts.dtype, 4)
        self.shape = resident.model.config

    def cache(self, made: int, beams: int, width: int) -> int:
        """Return the KV cache of a reply of so many tokens."""
        return estimate.cache(self.shape, self.prompt + made, width) * beams

    @property
    def logits(self) -> int:
        """Return what choosing a token takes."""
        return LOGITS * 4 * Sizes(self.shape).vocabulary * self.beams

    @property
    def activations(self) -> int:
        """Return what a forward pass over the prompt takes."""
        eager = self.resident.facts.attention == "eager"
        bare = estimate.working(self.shape, 0, self.width)
        return estimate.working(self.shape, self.prompt, self.width, eager) - bare

    @property
    def whole(self) -> int:
        """Return the KV cache as the reply would have it at its longest."""
        return self.cache(self.made, self.beams, self.width)


def out_of_memory(resident: LoadedModel[Any], config: PreTrainedConfig, prompt: int, words: str) -> NoMemory:
    """Make the error for a reply that memory did not suffice for; `prompt` is its length in tokens."""
    want = Want(resident, config, prompt)
    parts = {
        "weights": resident.facts.bytes,
        f"KV cache of {prompt + want.made} tokens": want.whole,
        "activations": want.activations,
        "logits": want.logits,
    }
    taken = ", ".join(f"{name} {amount(size)}" for name, size in parts.items())
    rooms = available.measure()
    free = ", ".join(f"{each.device} has {amount(each.free)} free" for each in rooms)
    remedies = sorted(savings(want, _beside(resident, rooms)), key=lambda found: -found[2])
    choices = tuple((line, effect) for line, effect, saved in remedies if saved * LEAST > sum(parts.values()))
    hints = [f"{line} ({effect})" for line, effect in choices]
    return NoMemory(f"memory ran out: {asked(words)}; needed: {taken}; {free}", *hints, choices=choices)


def asked(words: str) -> str:
    """Say how much more was asked for, where a library says so among much else; else what it says."""
    found = ASKED.search(words)
    if found is None:
        return words
    number, unit = float(found[1]), found[2]
    return f"{amount(int(number * BYTES.get(unit, 1)))} more were asked for"


def _beside(resident: LoadedModel[object], rooms: list[Room]) -> float:
    """Return the bytes that a model may take beside the file that it is read from, which takes addresses meanwhile."""
    bound = [
        each.free for each in rooms if each.limit == ADDRESSES and each.device in resident.facts.device_map.values()
    ]
    return min(bound, default=float("inf"))


def savings(want: Want, beside: float = float("inf")) -> Iterator[tuple[str, str, int]]:
    """Yield what could be changed: the line that does it, its effect in words, and the bytes it saves.

    What has to be loaded again for it is left out where it has no room `beside` its file.
    """
    facts, load = want.resident.facts, want.resident.load
    other = want.whole + want.activations + want.logits
    if want.width == 4 and load.quantize == "none" and (facts.bytes + other) // 2 <= beside:
        saved = facts.bytes // 2 + want.whole // 2
        yield "/dtype bfloat16", f"weights {amount(facts.bytes)} to {amount(facts.bytes // 2)}, KV cache halved", saved
    if load.quantize == "none" and (form := quantization.best_form(4, load)):
        small = int(facts.parameters * PACKED[form] / 8)
        less = f"weights {amount(facts.bytes)} to about {amount(small)}"
        aside = "" if form == "4bit" else "; with bitsandbytes /quantize 4bit"
        if small + other <= beside:
            yield f"/quantize {form}", less + aside, facts.bytes - small
    if want.beams > 1:
        one = want.cache(want.made, 1, want.width)
        yield "/beams 1", f"KV cache {amount(want.whole)} to {amount(one)}", want.whole - one
    if load.attention == "eager":
        yield "/attention auto", "no matrix of tokens by tokens for each head", want.activations // 2
    half = max(1, want.made // 2)
    short = want.cache(half, want.beams, want.width)
    yield f"/max_new_tokens {half}", f"KV cache {amount(want.whole)} to {amount(short)}", want.whole - short
    if "cpu" not in facts.device_map.values():
        yield "/device cpu", "slower, in the machine's own memory", facts.bytes


def dead(words: str) -> Failed | None:
    """Make the error for an accelerator that answers nothing more in this process; None for any other failure."""
    if not any(sign in words for sign in DEAD):
        return None
    said = "the GPU stopped at an error after which it does nothing more for this process; the session is saved"
    return Failed(said, "/quit", "hub-repl --resume")
