"""Banned words and phrases: the ids are those of a reference that looks ahead from every token, whatever the pieces."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Recorder
from driving import bare, opened, run

from repl.core.errors import Failed
from repl.core.events import Notice, Token
from repl.core.reply import Reply, TakenBack
from repl.generation.engine import generate_reply
from repl.generation.interface import Request
from repl.generation.measure.token_text import quote
from repl.generation.measure.token_trace import measure_again
from repl.generation.word_forms import read_words
from repl.session.session import Session

KINDS = ["llama", "recurrent", *(pytest.param(kind, marks=pytest.mark.campaign) for kind in ("gpt2", "metaspace"))]
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


@pytest.mark.parametrize("kind", ["llama", pytest.param("metaspace", marks=pytest.mark.slow)])
def test_ids_are_those_of_a_look_ahead(kind: str, request: pytest.FixtureRequest) -> None:
    """Greedy and drawn with a seed; the text holds none of it."""
    assert check(request.getfixturevalue(f"{kind}_folder"), 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("single", "several"), [(2, 2), pytest.param(6, 4, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_a_look_ahead_with_many_phrases(
    kind: str, single: int, several: int, request: pytest.FixtureRequest
) -> None:
    """One phrase, and several that begin and end in each other."""
    folder = request.getfixturevalue(f"{kind}_folder")
    assert check(folder, single, 1) + check(folder, several, 3) > 3


def told(session: Session, line: str) -> tuple[Reply, str, list[TakenBack]]:
    """Run a line; returns its reply, the text of its tokens as they came, and what was taken back meanwhile."""
    events: list[Any] = []
    done = run(session, line, heard=events.append)
    text = "".join(event.text for event in events if isinstance(event, Token))
    return done, text, [event for event in events if isinstance(event, TakenBack)]


def test_speeds_are_those_of_the_tokens_chosen_not_given_out(llama_folder: Path) -> None:
    """Here all are held to the end, since the reply is the beginning of a phrase."""
    with opened(llama_folder, mode="complete", max_new_tokens=LENGTH) as session:
        plain = run(session, PROMPT)
        done = run(session, f"/ban {json.dumps(plain.raw + 'never', ensure_ascii=False)}", PROMPT)
    assert done.token_ids == plain.token_ids
    read = (done.usage.prompt - done.usage.reused) / done.timing.prefill_tps
    written = (done.usage.completion - 1) / done.timing.decode_tps
    assert read < done.timing.ttft_s <= read + written + 1e-6


def test_what_was_told_is_never_taken_back(llama_folder: Path) -> None:
    """The stream is the exact text of the reply; the figures are those of the tokens that stayed."""
    with opened(llama_folder, mode="complete", max_new_tokens=LENGTH) as session:
        plain = run(session, PROMPT)
        run(session, f"/ban {lists(plain.raw, 1, 4)[0]}")
        done, text, gone = told(session, PROMPT)
        again = measure_again(session.store.current(), session.last, Recorder())
    assert text == done.raw
    assert done.taken_back
    assert set(done.taken_back) <= set(gone)
    seen = [(token.id, len(token.text), token.rank, round(token.logprob, 3)) for token in again.tokens]
    kept = done.measures
    assert seen == [
        (one, size, rank, round(value, 3))
        for one, size, rank, value in zip(done.token_ids, kept.lengths, kept.ranks, kept.logprobs, strict=True)
    ]


@pytest.mark.slow
def test_every_way_to_the_next_token_keeps_phrases_out(llama_folder: Path) -> None:
    """In chats, behind beginnings, where a reply is continued or made again, and in rows; across their borders too."""
    words = ["es", "in", "qu"]
    with opened(llama_folder, max_new_tokens=16) as session:
        run(session, "/ban " + ", ".join(map(json.dumps, words)))
        texts = [run(session, line).raw for line in ("Hello there", "/continue", "/retry")]
        run(session, "/sample")
        texts += [run(session, line).raw for line in ("/retry", "/continue", "/raw The q", "/continue")]
        run(session, "/prefill The world")
        texts.append("The world" + run(session, "Tell me").raw)
        rows = run(session, "/sweep n=2 temperature=1,1.2 -- Tell me").lines
        found = run(session, '/compare now ban="es, qu" -- Tell me')
    assert not any(word in text for word in words for text in [*texts, *(row.text for row in rows)])
    assert not any(word in found.columns[1].text for word in ("es", "qu"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["/greedy", "/sample temperature=1.2"])
def test_a_record_makes_the_same_ids_again(llama_folder: Path, how: str) -> None:
    """By /reproduce and by its script; /why has what was taken back as a column and in words."""
    with opened(llama_folder, max_new_tokens=LENGTH, seed=3) as session:
        plain = run(session, how, "Tell me")
        run(session, f"/ban {lists(plain.raw, 1, 3)[0]}")
        done = run(session, "/retry")
        gone = done.taken_back[0]
        assert run(session, "/reproduce").identical
        why = run(session, f"/why {gone.place}")
        script = run(session, "/recipe").script
    assert "ban" in [step.name for step in why.steps]
    assert gone.token_ids[0] in [one.id for one in why.candidates if one.removed_by == "ban"]
    assert any(quote(gone.text) in note for note in why.notes)
    scope: dict[str, Any] = {"print": lambda text: None}
    exec(script, scope)
    assert scope["output"][0].tolist() == [*done.prompt_ids, *done.token_ids]


def test_a_phrase_that_is_all_the_model_wants_ends_with_a_sentence(scripted_folder: Any) -> None:
    """What was made before is kept; a model that goes on otherwise goes on."""
    with opened(scripted_folder(b"So it is. Paris it is."), max_new_tokens=30) as session:
        done = run(session, '/ban "Paris"', "Where?")
        assert done.raw.startswith("So it is. ")
        assert "Paris" not in done.raw
        kept = [*b"abc"]  # all that may come, and none of them before another
        run(session, "/set suppress_tokens " + json.dumps([one for one in range(257) if one not in kept]))
        run(session, "/ban " + ", ".join(f"{one}{other}" for one in "abc" for other in "abc"))
        with pytest.raises(Failed, match="banned"):
            run(session, "Where?")
        run(session, "/ban a, b, c")
        with pytest.raises(Failed, match="leave no token"):
            run(session, "Where?")


def test_stop_strings_and_ends_are_those_of_the_text(scripted_folder: Any) -> None:
    """Of a phrase and a stop string that are complete at once, the phrase is taken back, and the reply goes on."""
    with opened(scripted_folder(b"One STOP two"), max_new_tokens=40) as session:
        done = run(session, '/stop "P"', "Go")
        assert (done.raw, done.finish) == ("One STOP", "stop_string")
        done = run(session, '/ban "STOP"', "/retry")
        assert (done.raw[:4], done.raw[5:], done.finish) == ("One ", "TOP", "stop_string")
        done = run(session, '/ban " two"', "/stop none", "/retry")
        assert (done.raw[:8], done.raw[9:], done.finish) == ("One STOP", "two", "stop")


@pytest.mark.slow
def test_what_works_beside_a_ban_and_what_does_not(llama_folder: Path) -> None:
    """Nothing is proposed ahead, which is said and changes no id; beams ban the usual tokens alone, which is said."""
    notices: list[str] = []

    def hear(event: Any) -> None:
        notices.extend([event.text] if isinstance(event, Notice) else [])

    with opened(llama_folder, mode="complete", max_new_tokens=LENGTH) as session:
        words = lists(run(session, PROMPT).raw, 1, 3)[0]
        done = run(session, f"/ban {words}", PROMPT)
        ahead = run(session, "/prompt_lookup 10", PROMPT, heard=hear)
        assert (ahead.token_ids, ahead.taken_back) == (done.token_ids, done.taken_back)
        assert any("prompt_lookup is off" in text for text in notices)
        found = run(session, "/prompt_lookup off", "/beams 3", PROMPT, heard=hear)
        assert any("usual tokens alone" in text for text in notices)
        sequences = [ids for ids in found.given["bad_words_ids"] if len(ids) > 1]
        assert sequences
        assert not any(ids == list(found.token_ids[at : at + len(ids)]) for ids in sequences for at in range(LENGTH))


def test_what_completes_a_phrase_does_not_come_next(llama_folder: Path) -> None:
    """The odds are those of the next token, in a text and where a reply is continued."""
    with opened(llama_folder) as session:
        run(session, "/max 1", "/greedy")
        for after, reply in (("the hello", "/raw the hello"), ("", "/continue")):
            seen = run(session, f"/next 40 {after}").candidates
            best = next(one for one in seen if one.text.strip().isalpha())
            run(session, f"/ban {json.dumps((after or session.last.text)[-3:] + best.text)}")
            found = run(session, f"/next 40 {after}")
            assert found.processors[-1] == "ban"
            assert best.id in [one.id for one in found.candidates if not one.drawn]
            likeliest = max(found.candidates, key=lambda one: one.drawn)
            assert run(session, reply).token_ids[-1] == likeliest.id
            run(session, "/ban off")


def test_a_boost_is_the_sequence_bias_of_its_forms(llama_folder: Path) -> None:
    """Beside what was set by name; the reply is that of the library with the same bias."""
    with opened(llama_folder, mode="complete", max_new_tokens=LENGTH) as session:
        run(session, "/set sequence_bias [[[300], -1.0]]", '/boost " quick" +9')
        done = run(session, PROMPT)
        tokenizer = session.store.current().tokenizer
        expected = [[[300], -1.0], [tokenizer(" quick")["input_ids"], 9.0]]
        assert done.given["sequence_bias"] == expected
        assert "quick" in done.raw
        assert run(session, "/reproduce").identical
        listed = run(session, "/boost")
        assert (listed.biases, listed.words[0].forms[0].ids) == ((9.0,), tuple(expected[1][0]))
        assert run(session, "/boost off", PROMPT).given["sequence_bias"] == [[[300], -1.0]]


def test_a_cancel_while_tokens_are_held_keeps_what_was_given_out(llama_folder: Path) -> None:
    """The kept cache is sound afterwards: the whole reply is what it was before."""
    with opened(llama_folder, mode="complete", max_new_tokens=LENGTH) as session:
        words = lists(run(session, PROMPT).raw, 1, 4)[0]
        whole = run(session, f"/ban {words}", PROMPT)
        for _ in range(2):
            emit = Recorder()
            emit.until = lambda event: isinstance(event, TakenBack)
            done = generate_reply(session.store.current(), Request(session.settings, text=PROMPT), emit)
            assert done.finish == "cancelled"
            assert done.raw == "".join(event.text for event in emit.of(Token))
            assert whole.token_ids[: len(done.token_ids)] == done.token_ids
            assert run(session, PROMPT).token_ids == whole.token_ids
