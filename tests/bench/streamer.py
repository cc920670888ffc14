"""Cost per token at the end of one long line: our streamer against the library's `TextIteratorStreamer`."""

import sys
from statistics import median
from time import perf_counter
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from repl.generation.engine import ExactStreamer

SENTENCE = "the quick brown fox jumps over the lazy dog and 3 naïve cats, then it sleeps; "
AT, ROUNDS, STEPS = (10, 200, 1000, 4000), 7, 20


def main() -> int:
    """Print the table; exit code 1 when the ratio at 4000 tokens is above 0.1."""
    tokenizer = byte_level()
    ids = (tokenizer.encode(SENTENCE) * 4000)[: max(AT) + ROUNDS * STEPS]
    print(f"{'tokens':>7} {'ours us':>9} {'theirs us':>10} {'ratio':>7}")
    ratio = 0.0
    for count in AT:
        ours, theirs = side_by_side(tokenizer, ids, count)
        ratio = ours / theirs
        print(f"{count:>7} {ours * 1e6:>9.1f} {theirs * 1e6:>10.1f} {ratio:>7.3f}")
    return int(ratio > 0.1)


def side_by_side(tokenizer: Any, ids: list[int], count: int) -> tuple[float, float]:
    """Return seconds per token after `count` tokens, medians of interleaved rounds."""
    streams = ExactStreamer(tokenizer), TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    steps = [torch.tensor([token_id]) for token_id in ids]
    streams[0].put(torch.tensor([ids[:1]]))
    streams[1].put(torch.tensor([ids[:1]]))
    for step in steps[:count]:
        streams[0].put(step)
    streams[1].token_cache.extend(ids[:count])  # their state after `count` tokens, without the time to get there
    seconds: tuple[list[float], list[float]] = ([], [])
    for place in range(ROUNDS):
        batch = steps[count + place * STEPS : count + (place + 1) * STEPS]
        for stream, found in zip(streams, seconds, strict=True):
            found.append(timed(stream, batch))
    return median(seconds[0]), median(seconds[1])


def timed(stream: Any, batch: list[Any]) -> float:
    """Return seconds per token of one batch of steps."""
    start = perf_counter()
    for step in batch:
        stream.put(step)
    return (perf_counter() - start) / len(batch)


def byte_level() -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer on the sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    sys.exit(main())
