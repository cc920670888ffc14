"""What chat templates classically get wrong: each failure tried on the template, with a verdict and a reason."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from repl.errors import ReplError
from repl.sandbox import Chat
from repl.template import MARKS, Template

SYSTEM = {"role": "system", "content": "Speak in plain words."}
FIRST = {"role": "user", "content": "How are you today?"}
ANSWER = {"role": "assistant", "content": "Fine, thank you."}
SECOND = {"role": "user", "content": "What comes next?"}
LATER = {"role": "assistant", "content": "Nothing much."}
THOUGHT = "A secret consideration."
THINKING = {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER['content']}"}
EMPTY_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?$")
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that may be wrong; `verdict` is good, note or bad."""

    name: str
    verdict: str
    reason: str


def check(template: Template, stops: Sequence[int]) -> list[Check]:
    """Try a template; `stops` are the ids that end a reply. Raises `Failed` where it passes its bounds."""
    alone, whole = template.outcomes(Chat([FIRST]), Chat([FIRST, ANSWER], False))
    error = alone.error or whole.error
    if error:
        return [Check("renders", "bad", error)]
    return [Check("renders", "good", "a user message and a reply"), *_tried(template, stops)]


def _tried(template: Template, stops: Sequence[int]) -> Iterator[Check]:
    yield Check("BOS", *_bos(template))
    yield Check("system message", *_system(template))
    yield Check("generation prompt", *_generation_prompt(template))
    yield Check("end of turn", *_end(template, stops))
    yield Check("earlier turns", *_earlier(template))
    yield Check("thinking in history", *_thinking(template))
    yield Check("control tokens typed by you", *_typed(template))


Verdict = tuple[str, str]


def _text(template: Template, *messages: Any, prompt: bool = False) -> str:
    return MARKS.sub("", template.text(messages, prompt))


def _bos(template: Template) -> Verdict:
    tokenizer = template.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        return "good", "the tokenizer has none"
    ids = template.encode(template.text([FIRST]))
    if ids[:2] == (bos, bos):
        return "bad", f"{tokenizer.bos_token} stands twice at the beginning"
    if ids[:1] == (bos,):
        return "good", f"{tokenizer.bos_token} once"
    if tokenizer("a")["input_ids"][:1] == [bos]:
        return "note", f"plain text gets {tokenizer.bos_token} in front, a chat does not"
    return "good", "none, as with plain text"


def _system(template: Template) -> Verdict:
    (outcome,) = template.outcomes(Chat([SYSTEM, FIRST]))
    if outcome.refused:
        return "note", "refused: it is put in front of your first message"
    if outcome.error:
        return "bad", outcome.error
    if SYSTEM["content"] not in outcome.text:
        return "bad", "left out silently"
    return "good", "written"


def _generation_prompt(template: Template) -> Verdict:
    prompt = EMPTY_THOUGHT.sub("", _text(template, FIRST, prompt=True))
    before, found, _ = _text(template, FIRST, ANSWER).partition(ANSWER["content"])
    if not found or not before.startswith(prompt.rstrip()):
        return "bad", "a reply in history does not stand where the next one is asked for"
    missing = THOUGHTS.sub("", before[len(prompt.rstrip()) :]).strip()
    if missing:
        return "bad", f"none: {missing!r} should follow, the model may go on with your turn"
    added = prompt.removeprefix(_text(template, FIRST))
    return "good", repr(added) if added else "none needed: the reply follows your turn directly"


def _end(template: Template, stops: Sequence[int]) -> Verdict:
    after = _text(template, FIRST, ANSWER).partition(ANSWER["content"])[2]
    found = re.search("|".join(map(re.escape, sorted(template.controls, key=len, reverse=True))) or "(?!)", after)
    if not found:
        return "bad", "nothing marks the end of a reply: answers run on"
    if template.tokenizer.convert_tokens_to_ids(found[0]) in stops:
        return "good", f"{found[0]} ends a reply, and stops generation"
    names = ", ".join(map(str, template.tokenizer.convert_ids_to_tokens(list(stops)))) or "nothing"
    return "bad", f"{found[0]} ends a reply, but {names} stops generation: answers run on"


def _earlier(template: Template) -> Verdict:
    steps = [
        (_text(template, FIRST, prompt=True), _text(template, FIRST, ANSWER, SECOND, prompt=True)),
        (_text(template, FIRST, ANSWER), _text(template, FIRST, ANSWER, SECOND, LATER)),
    ]
    for before, after in steps:
        if not after.startswith(before):
            same = next(n for n in range(len(before)) if before[: n + 1] != after[: n + 1])
            return "bad", f"written anew once a turn follows, from {_near(before[same:])} on: less of the cache is kept"
    return "good", "stay as they are: the cache can be kept"


def _near(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return repr(line if len(line) <= 24 else line[:23] + "…")


def _thinking(template: Template) -> Verdict:
    (outcome,) = template.outcomes(Chat([FIRST, THINKING, SECOND]))
    if outcome.error:
        return "bad", outcome.error
    if THOUGHT not in outcome.text:
        return "good", "cut out of earlier replies"
    if "think" in template.reading.literals:
        return "note", "left in earlier replies: it takes up context"
    return "good", "left as it was said: the template knows of none"


def _typed(template: Template) -> Verdict:
    hostile = {**FIRST, "content": FIRST["content"] + " ".join(template.controls)}
    try:
        plain, tried = (_controls_in(template, message) for message in (FIRST, hostile))
    except ReplError as error:
        return "note", f"such a message is refused: {error.message}"
    if forged := sorted((tried - plain).keys()):
        return "bad", f"{', '.join(forged)} acts when you type it"
    if not plain.keys() - {template.tokenizer.bos_token}:
        return "note", "are plain text, but turns are marked by plain text too: a message can look like several"
    return "good", "are plain text"


def _controls_in(template: Template, message: dict[str, str]) -> Counter[str]:
    ids = template.encode(template.text([message]))
    by_id = {template.tokenizer.convert_tokens_to_ids(name): name for name in template.controls}
    return Counter(by_id[token] for token in ids if token in by_id)
