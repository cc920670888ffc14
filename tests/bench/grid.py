"""Twelve rows of a sweep, made together, against a script that calls `generate` for one after the other."""

import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from driving import bare, generated, opened, run
from figures import Ground, Row, against

PROMPT = "Tell me a long story about a lighthouse keeper and a whale."
TOKENS = 48
TEMPERATURES, TOPS, SEEDS = (0.7, 1.2), (0.9, 1.0), (1, 2, 3)


def rows(ground: Ground) -> list[Row]:
    """Run both in turn, at most three rounds after one to warm up; every row must have the ids of its own call.

    Ours makes the greedy row besides, and reads its prompt anew as the script does.
    """
    model, tokenizer = bare(ground.model)
    with opened(ground.model, max_new_tokens=TOKENS, reuse="off") as session:
        ours, theirs = [], []
        for turn in range(1 + min(3, ground.rounds)):
            began = time.monotonic()
            found = run(session, f"/sweep temperature=0.7,1.2 top_p=0.9,1 n=3 -- {PROMPT}")
            middle = time.monotonic()
            apart = one_by_one(model, tokenizer, list(found.prompt_ids))
            ended = time.monotonic()
            assert apart == [list(line.token_ids) for line in found.lines], "a row is not that of its own call"
            session.store.current().runtime.kv_cache.drop()
            if turn:
                ours.append(middle - began)
                theirs.append(ended - middle)
    return [against("12 rows of a sweep : generate, one after another", ours, theirs, 1 / 3)]


def one_by_one(model: Any, tokenizer: Any, prompt: list[int]) -> list[list[int]]:
    """Make the rows with the library alone."""
    made = []
    for temperature, top, seed in product(TEMPERATURES, TOPS, SEEDS):
        values = {"temperature": temperature, "top_p": top, "seed": seed, "do_sample": True, "max_new_tokens": TOKENS}
        made.append(generated(model, tokenizer, prompt, values)[0][0])
    return made
