"""Other settings inside of a thought than after it: the ids are those of a plain loop that goes by place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
from driving import bare, opened, run

from repl.core.errors import UsageError
from repl.core.reply import ModelRecord, Reply, TakenBack, ThoughtRecord, Timing, Usage, decode_record, encode_record

MARKS = ["<think>", "</think>"]
LENGTH = 40


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template opens a thought."""
    folder = tmp_path_factory.mktemp("thinker")
    chat = models.CHAT.replace("assistant\n'", "assistant\n<think>\n'")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS]
    tokenizer = models.byte_level(specials, chat_template=chat, eos_token="<|im_end|>", bos_token="<|im_start|>")
    return models.save(models.tiny_llama(tokenizer, 0), tokenizer, folder)


def reference(folder: Path, done: Reply, most: int, inside: Any, outside: Any) -> list[int]:
    """Decode without a KV cache: each draw has the numbers that follow the seed, in turn."""
    import torch

    model, tokenizer = bare(folder)
    closing, ids = tokenizer.convert_tokens_to_ids("</think>"), list[int]()
    torch.manual_seed(done.seed or 0)
    while len(ids) < LENGTH and tokenizer.eos_token_id not in ids:
        with torch.inference_mode():
            logits = model(torch.tensor([[*done.prompt_ids, *ids]])).logits[0, -1]
        thinks = closing not in ids
        scores = (inside if thinks else outside)(logits.float().clone())
        if thinks and len(ids) == most:
            scores = torch.full_like(scores, -torch.inf).index_fill(0, torch.tensor([closing]), 0.0)
        ids.append(int(torch.multinomial(scores.softmax(-1)[None], 1)))
    return ids


def warp(temperature: float, top_k: int) -> Any:
    def apply(scores: Any) -> Any:
        scores = scores / temperature
        return scores.masked_fill(scores < scores.topk(top_k).values[-1], -float("inf"))

    return apply


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "outside"),
    [(["/sample temperature=0.5 top_k=3"], warp(0.5, 3)), (["/greedy"], warp(1.0, 1))],
    ids=["sampled after it", "greedy after it"],
)
def test_a_thought_has_settings_of_its_own_and_an_end(thinker: Path, lines: list[str], outside: Any) -> None:
    """Its record makes the same ids again, by /reproduce, by its script, and beside a ban."""
    with opened(thinker, max_new_tokens=LENGTH, seed=5) as session:
        done = run(session, *lines, "/think temperature=1.5 top_k=20 max=12", "Tell me")
        assert list(done.token_ids) == reference(thinker, done, 12, warp(1.5, 20), outside)
        assert done.thought.places == (*range(1, 14),)
        assert [place for place, _ in done.thought.forced] == [12]
        assert run(session, "/reproduce").identical
        assert "think" in [step.name for step in run(session, "/why 3").steps]
        check_script(run(session, "/recipe").script, done)
        words = [done.text[at : at + 2] for at in range(len(done.text) - 2, 0, -1)]
        word = next(one for one in words if one.isprintable() and not set(one) & set('</think>"\ufffd '))
        done = run(session, f'/ban "{word}"', "/retry")
        assert word not in done.raw
        assert run(session, "/reproduce").identical
        check_script(run(session, "/recipe").script, done)


def check_script(script: str, done: Reply) -> None:
    scope: dict[str, Any] = {"print": lambda text: None}
    exec(script, scope)
    assert scope["output"][0].tolist() == [*done.prompt_ids, *done.token_ids]


def test_a_thought_that_the_model_opens_itself_is_closed_where_it_is_too_long(tmp_path: Path) -> None:
    """Its closing tag is given; `off` lets it go on."""
    folder = models.scripted(tmp_path, b"<think>abcdefgh</think>Yes.", marks=MARKS)
    with opened(folder, max_new_tokens=30) as session:
        done = run(session, "/think max=3", "Well?")
        assert (done.thinking, done.raw[:18]) == ("abc", "<think>abc</think>")
        done = run(session, "/think off", "/retry")
        assert (done.thinking, done.text, done.thought) == ("abcdefgh", "Yes.", None)


def test_a_model_without_thoughts_refuses_it_in_a_sentence(llama_folder: Path, thinker: Path) -> None:
    with opened(llama_folder) as session, pytest.raises(UsageError, match="no thoughts"):
        run(session, "/think temperature=1.0", "Hello")
    with opened(thinker) as session, pytest.raises(UsageError, match="one sequence"):
        run(session, "/think max=3", "/beams 2", "Hello")
    with opened(thinker) as session, pytest.raises(UsageError, match="temperature"):
        run(session, "/think warm")


def test_a_record_keeps_what_was_taken_back_and_how_thoughts_were_decoded() -> None:
    done = Reply("", (), (), "stop", ModelRecord(), {}, {}, None, Usage(0, 0, 0), Timing(None, None, None, 0.0))
    thought = ThoughtRecord((1, 2), ((2, 7),), {"temperature": 1.5}, {"do_sample": False})
    done = replace(done, taken_back=(TakenBack(3, (5, 6), "So"),), thought=thought)
    assert decode_record(Reply, encode_record(done)) == done
