"""Rows made together: those of a sweep, and the prompts of a file, against one after the other."""

import json
import random
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from driving import bare, generated, opened, run
from figures import Ground, Row, against

WORDS = "tell me a story about the quick brown fox that jumps over lazy dogs while seven wizards box in Paris at night"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, (30, 60), 32

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


def prompts(ground: Ground) -> list[Row]:
    """A file of prompts, against each of them as a message of its own, in turn; every line must have those ids."""
    with opened(ground.model, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, mode="complete") as session:
        texts = drawn_texts(session.store.current().tokenizer)
        file, out = ground.scratch / "prompts.jsonl", ground.scratch / "results.jsonl"
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), "utf-8")
        ours, theirs = [], []
        for turn in range(1 + min(3, ground.rounds)):
            out.unlink(missing_ok=True)
            began = time.monotonic()
            run(session, f"/batch {file} {out}")
            middle = time.monotonic()
            apart = [run(session, f"/raw {text}").token_ids for text in texts]
            ended = time.monotonic()
            made = {
                one["line"]: tuple(one["token_ids"]) for one in map(json.loads, out.read_text("utf-8").splitlines())
            }
            assert [made[line] for line in range(1, PROMPTS + 1)] == apart, "a line is not the reply to its prompt"
            if turn:
                ours.append(middle - began)
                theirs.append(ended - middle)
    return [against("64 prompts of a file : messages, one after another", ours, theirs, 1 / 3)]


def drawn_texts(tokenizer: Any) -> list[str]:
    """Draw texts of 30 to 60 tokens."""
    draw, found = random.Random(0), list[str]()
    while len(found) < PROMPTS:
        text = " ".join(draw.choices(WORDS.split(), k=draw.randint(20, 60)))
        if PROMPT_TOKENS[0] <= len(tokenizer(text)["input_ids"]) <= PROMPT_TOKENS[1]:
            found.append(text)
    return found
