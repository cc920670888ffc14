"""A file of prompts: each reply is the one that a message of its own would get, and no line is lost or made twice."""

import json
import random
from pathlib import Path

import models
import pytest
from driving import ask, opened, refused, run

from repl.analysis.prompt_file import PromptFile, Results
from repl.commands import registry
from repl.core.errors import Cancelled, Failed, ReplError, UsageError
from repl.core.events import Progress

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "box", "France"]


def written(path: Path, *lines: object) -> Path:
    """Write lines of JSON, or bytes as they stand."""
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def read(path: Path) -> list:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts(count: int, seed: int = 0, **settings: object) -> list[dict]:
    """Make prompts of many lengths."""
    draw = random.Random(seed)
    return [
        {"id": f"p{number}", "prompt": " ".join(draw.choices(WORDS, k=draw.randint(1, 30))), **settings}
        for number in range(count)
    ]


def sliding(folder):
    """Qwen2 with a window of 8 tokens in its upper layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = models.byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    with models.seeded(0):
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        more = {"num_key_value_heads": 2, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
        made = Qwen2ForCausalLM(Qwen2Config(**models.sizes(tokenizer), **shape, **more, initializer_range=0.3))
    return models.save(made, tokenizer, folder)


def alibi(folder):
    """Bloom, whose positions are slopes made from the attention mask."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = models.byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    with models.seeded(0):
        shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
        made = BloomForCausalLM(BloomConfig(**models.sizes(tokenizer), **shape))
    return models.save(made, tokenizer, folder)


MAKERS = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "metaspace": models.metaspace,
    "recurrent": models.recurrent,
    "sliding": sliding,
    "alibi": alibi,
}
WAYS = (
    {},
    {"seed": 3, "temperature": 1.1},
    {"seed": 4, "top_p": 0.8, "repetition_penalty": 1.3},
    {"stop": ["al", "e"]},
    {"max_new_tokens": 3},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 10},
    {"num_beams": 3},
)


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", MAKERS)
def test_each_reply_is_that_of_a_message_of_its_own(kind, tmp_path):
    """Greedy and seeded, with stop strings, penalties and lengths of their own, in one file."""
    folder = MAKERS[kind](tmp_path / "model")
    lines = [{**line, **WAYS[number % len(WAYS)]} for number, line in enumerate(prompts(28))]
    file, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    with opened(folder, max_new_tokens=16) as session:
        found = run(session, f"/batch {file} {out}")
        assert (found.lines, found.made, found.failed) == (28, 28, 0)
        made = {record["line"]: record for record in read(out)}
        assert sorted(made) == [*range(1, 29)]
        for number, line in enumerate(lines, 1):
            own = {name: value for name, value in line.items() if name not in ("id", "prompt")}
            [alone] = read(one_by_one(session, {**own, "prompt": line["prompt"]}, tmp_path / f"{number}.jsonl"))
            record = made[number]
            assert record["id"] == line["id"]
            for name in ("token_ids", "prompt_ids", "text", "raw", "finish", "seed"):
                assert record[name] == alone[name], (number, name)
            ask(session, line["prompt"])
            words = " ".join(f"{name}={json.dumps(value) if name != 'stop' else value[0]}" for name, value in own.items())
            if "stop" not in own:
                assert list(run(session, f"/retry {words}").token_ids) == record["token_ids"]
            run(session, "/clear")


def one_by_one(session, line, path):
    out = path.with_suffix(".out")
    run(session, f"/batch {written(path, line)} {out}")
    return out
