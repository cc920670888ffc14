"""Banned words and phrases: the ids are those of a reference that looks ahead from every token, whatever the pieces."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from driving import bare, opened, run

from repl.core.reply import Reply
from repl.generation.word_forms import read_words

KINDS = ("llama", "gpt2", "metaspace", "recurrent")
PROMPT = "Once upon a time"
LENGTH = 24
LEFT, RIGHT = r"(?:(?<![^\W_])|(?=\W))", r"(?:(?![^\W_])|(?<=\W))"
"""No letter or digit stands beside one of a word."""
Words = tuple[str, ...]


class Reference:
    """Decodes by looking ahead from each token as far as the reply goes; without a KV cache, or anything of ours.

    A token is masked at a place if the reply that goes on from it first comes to hold a phrase that begins with it.
    """

    def __init__(
        self, folder: Path, prompt: list[int], banned: set[int], anywhere: Words, whole: Words, **how: Any
    ) -> None:
        self.model, self.tokenizer = bare(folder, "float32")
        self.prompt, self.banned, self.phrases, self.whole = prompt, banned, anywhere, whole
        self.seed, self.temperature, self.length = how.get("seed"), how.get("temperature", 1.0), how["length"]
        self.before = len(self.text(()))
        self.choice = cache(self._choice)
        self.logits = cache(self._logits)

    def reply(self) -> list[int]:
        ids: tuple[int, ...] = ()
        while len(ids) < self.length and self.model.config.eos_token_id not in ids:
            ids = (*ids, self.choice(ids))
        return list(ids)

    def text(self, ids: tuple[int, ...]) -> str:
        whole = [*self.prompt, *ids]
        return str(self.tokenizer.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _choice(self, ids: tuple[int, ...]) -> int:
        masked = set(self.banned)
        while True:
            token = self.draw(ids, masked)
            if not self.leads_to_a_phrase(ids, token):
                return token
            masked.add(token)

    def leads_to_a_phrase(self, before: tuple[int, ...], token: int) -> bool:
        ids = (*before, token)
        while (place := self.first_token(ids)) is None:
            if len(ids) == self.length or ids[-1] == self.model.config.eos_token_id:
                return False
            ids = (*ids, self.choice(ids))
        return place == len(before)

    def first_token(self, ids: tuple[int, ...]) -> int | None:
        """Return the place of the token that the phrase begins with which begins last; None where there is none."""
        text = self.text(ids)
        starts = [
            found.start()
            for pattern in (*map(re.escape, self.phrases), *(rf"{LEFT}{re.escape(word)}{RIGHT}" for word in self.whole))
            for found in re.finditer(rf"(?=({pattern}))", text)
            if found.start() + len(found[1]) > self.before
        ]
        if not starts:
            return None
        lead = text[: max(starts) + 1]
        return next(place for place in range(len(ids)) if self.text(ids[: place + 1]).startswith(lead))

    def _logits(self, ids: tuple[int, ...]) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([[*self.prompt, *ids]])).logits[0, -1].float()

    def draw(self, ids: tuple[int, ...], masked: set[int]) -> int:
        import torch

        logits = self.logits(ids).clone()
        logits[list(masked)] = -float("inf")
        if self.seed is None:
            return int(logits.argmax())
        torch.manual_seed(self.seed)
        for _ in ids:  # a draw has the numbers of its place
            torch.multinomial(torch.ones_like(logits)[None], 1)
        return int(torch.multinomial((logits / self.temperature).softmax(-1)[None], 1))


def reference(folder: Path, done: Reply, **how: Any) -> list[int]:
    """Return the ids that the reference makes for the prompt of a reply, with what that banned."""
    banned = {ids[0] for ids in done.given.get("bad_words_ids", ())}
    words = read_words(bare(folder)[1], done.decode["ban"])
    anywhere = tuple(text for word in words if not word.whole for text in word.texts)
    whole = tuple(text for word in words if word.whole for text in word.texts)
    return Reference(folder, list(done.prompt_ids), banned, anywhere, whole, length=LENGTH, **how).reply()


def lists(text: str, count: int, each: int) -> list[str]:
    """Return lists of parts of a text, of two to five characters, as they are typed behind /ban."""
    found = [text[start : start + 2 + start % 4] for start in range(1, len(text))]
    kept = [json.dumps(one, ensure_ascii=False) for one in found if len(one.strip()) > 1 and one.isprintable()]
    step = max(1, len(kept) // (count * each))
    parts = kept[::step]
    return [", ".join(parts[place::count][:each]) for place in range(count)]


def check(folder: Path, count: int, each: int) -> int:
    """Compare replies, greedy and drawn, with the reference; returns how many phrases were taken back."""
    taken_back = 0
    drawn = {"seed": 4, "temperature": 1.3}
    ways: list[tuple[list[str], dict[str, Any]]] = [(["/greedy"], {})]
    ways += [(["/sample temperature=1.3 top_k=0", "/seed 4"], drawn)]
    with opened(folder, mode="complete", max_new_tokens=LENGTH) as session:
        for lines, how in ways:
            plain = run(session, *lines, "/ban off", PROMPT)
            for words in lists(plain.raw, count, each):
                done = run(session, f"/ban {words}", PROMPT)
                assert list(done.token_ids) == reference(folder, done, **how), words
                assert done.raw == run(session, PROMPT).raw, "the kept cache is sound"
                taken_back += len(done.taken_back)
    return taken_back


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
def test_ids_are_those_of_a_look_ahead(kind: str, request: pytest.FixtureRequest) -> None:
    """Greedy and drawn with a seed; the text holds none of it."""
    assert check(request.getfixturevalue(f"{kind}_folder"), 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_a_look_ahead_with_many_phrases(kind: str, request: pytest.FixtureRequest) -> None:
    """One phrase, and several that begin and end in each other."""
    folder = request.getfixturevalue(f"{kind}_folder")
    assert check(folder, 6, 1) > 3
    assert check(folder, 4, 3) > 3
