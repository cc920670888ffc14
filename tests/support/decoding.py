"""Ways of decoding that several modules try: arguments of the library's `generate`, and `seed`, which is ours.

Goes in: names, and what a module adds to each, such as a length. Comes out: keyword arguments, or lines to type.
"""

from itertools import cycle
from typing import Any

Values = dict[str, Any]
SEEDED = {"do_sample": True, "seed": 7}
WAYS: dict[str, Values] = {
    "greedy": {"do_sample": False},
    "greedy, repetition penalty": {"do_sample": False, "repetition_penalty": 1.4},
    "greedy, no repeated pair": {"do_sample": False, "no_repeat_ngram_size": 2},
    "greedy, fewest tokens": {"do_sample": False, "min_new_tokens": 6},
    "beams 2": {"do_sample": False, "num_beams": 2},
    "beams 4": {"do_sample": False, "num_beams": 4},
    "beams 4, all of them": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
    "beams 4, long ones": {"do_sample": False, "num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 2},
    "beams 4, short ones": {"do_sample": False, "num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    "beams 3, repetition penalty": {"do_sample": False, "num_beams": 3, "repetition_penalty": 1.2},
    "beams 3, no repeated pair": {"do_sample": False, "num_beams": 3, "no_repeat_ngram_size": 2},
    "beams 3, drawn": {**SEEDED, "num_beams": 3, "temperature": 1.5},
    "sample": SEEDED,
    "sample, another seed": {"do_sample": True, "seed": 123456789},
    "sample, temperature": {**SEEDED, "temperature": 0.7},
    "sample, hot": {**SEEDED, "temperature": 2.0},
    "sample, top-k": {**SEEDED, "top_k": 5},
    "sample, all tokens": {**SEEDED, "top_k": 0},
    "sample, top-p": {**SEEDED, "top_p": 0.8},
    "sample, min-p": {**SEEDED, "min_p": 0.1},
    "sample, typical-p": {**SEEDED, "typical_p": 0.6},
    "sample, all knobs": {
        **SEEDED,
        **{"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
        **{"repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    },
    "sample, three answers": {**SEEDED, "num_return_sequences": 3, "temperature": 1.2},
}


def ways(*names: str, **more: Any) -> dict[str, Values]:
    """Return the named ways, all where none is named, each with more arguments."""
    return {name: WAYS[name] | more for name in names or WAYS}


def in_turn(kinds: tuple[str, ...], cases: dict[str, Values]) -> list[tuple[tuple[str, str], str]]:
    """Return pairs of (kind, dtype) and case: each kind with each case in float32, and each case once in bfloat16."""
    turns = [((kind, "float32"), name) for name in cases for kind in kinds]
    return turns + [((kind, "bfloat16"), name) for name, kind in zip(cases, cycle(kinds), strict=False)]
