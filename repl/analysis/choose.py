"""A choice among given answers: how probable each is, whether the order of a list decides, and how often it is right.

The figures are those of lm-evaluation-harness for multiple choice: an answer's tokens are what it adds to the prompt.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, permutations
from math import exp, sqrt
from string import ascii_uppercase
from typing import Any

from repl.analysis.prompt_file import Prompt, PromptFile
from repl.core import decoding
from repl.core.errors import Cancelled, Failed, ReplError, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.generation import decode, measure
from repl.generation.interface import Model, Request
from repl.generation.prompt.chat_template import encode_prompt

LETTERED = re.compile(r"^([ \t]*\(?)([A-Z])([.):][ \t]+)(\S.*)$", re.MULTILINE)
"""A line of a lettered list: what stands before the letter, the letter, what follows it, and the text."""
Z_95 = 1.959964  # standard normal quantile of a two-sided interval of 95 %
CHOOSE_EXAMPLE = "/choose yes | no | unclear -- Is a whale a fish?"


@dataclass(frozen=True, slots=True)
class Option:
    """One answer: its tokens with their log-probabilities in nats; `probability` is its share among the answers."""

    answer: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    logprob: float
    by_token: float
    by_byte: float
    probability: float
    turned: float | None = None
    """Its share with the list in the opposite order, where it stands in another place."""


@dataclass(frozen=True, slots=True)
class AnswerOdds:
    """The answers in the order in which they were given, to a prompt.

    `first_place` is what standing first rather than last in a lettered list adds to a probability; None without one.
    """

    prompt: str
    options: tuple[Option, ...]
    first_place: float | None = None
    remark: str = ""

    def best(self, by: str = "logprob") -> int:
        """Return the place of the likeliest answer: by `logprob` in all, `by_token` or `by_byte`."""
        return max(range(len(self.options)), key=lambda place: getattr(self.options[place], by))


def check_options(answers: Sequence[str]) -> tuple[str, ...]:
    """Return answers that can be chosen among; raises `UsageError`."""
    if not all(answers):
        raise UsageError("an answer is empty", CHOOSE_EXAMPLE)
    if len(answers) < 2:
        raise UsageError("a choice needs at least two answers, with | between them", CHOOSE_EXAMPLE)
    if twice := [answer for answer, count in Counter(answers).items() if count > 1]:
        raise UsageError(f"the answer {twice[0]!r} is given twice", CHOOSE_EXAMPLE)
    return tuple(answers)


def choose(
    resident: Model,
    request: Request,
    answers: Sequence[str],
    emit: JobContext,
    letters: bool = False,
    end: bool = False,
) -> AnswerOdds:
    """Measure answers to a request; for the model thread.

    `letters` puts them into the prompt as a lettered list and measures the letters; `end` counts the token that ends
    a reply too. Where the prompt has a lettered list, it is turned round and asked again.
    """
    prompt = _asked(request)
    named = answers
    if letters:
        if len(answers) > len(ascii_uppercase):
            raise UsageError(f"there are letters for {len(ascii_uppercase)} answers, not for {len(answers)}")
        named = ascii_uppercase[: len(answers)]
        listed = "\n".join(f"{letter}. {answer}" for letter, answer in zip(named, answers, strict=True))
        request = _ask(request, f"{prompt}\n{listed}" + ("" if request.chats else "\nAnswer:"))
    measured = measure_answers(resident, request, named, emit, end)
    options = tuple(replace(one, answer=answer) for one, answer in zip(measured, answers, strict=True))
    if (turned := turn_list(_asked(request), named)) is None:
        return AnswerOdds(prompt, options, remark="" if end else _begins_another(answers))
    other = measure_answers(resident, _ask(request, turned), named, emit, end)[::-1]
    gains = options[0].probability - other[0].probability, other[-1].probability - options[-1].probability
    both = tuple(replace(one, turned=again.probability) for one, again in zip(options, other, strict=True))
    return AnswerOdds(prompt, both, sum(gains) / 2)


def _asked(request: Request) -> str:
    return str(request.messages[-1]["content"]) if request.chats else request.text


def _ask(request: Request, text: str) -> Request:
    if not request.chats:
        return replace(request, text=text)
    return replace(request, messages=(*request.messages[:-1], {**request.messages[-1], "content": text}))


def _begins_another(answers: Sequence[str]) -> str:
    for short, long in permutations(answers, 2):
        if long.startswith(short):
            return f"{short!r} begins {long!r}, so it is likelier: /choose --end counts the end of an answer too"
    return ""


def turn_list(text: str, answers: Sequence[str]) -> str | None:
    """Return a text with its lettered list in the opposite order; None where the answers are not its letters."""
    lines = list(LETTERED.finditer(text))
    if [line[2] for line in lines] != list(answers):
        return None
    turned, at = [], 0
    for line, other in zip(lines, reversed(lines), strict=True):
        turned += [text[at : line.start(4)], other[4]]
        at = line.end()
    return "".join([*turned, text[at:]])


def measure_answers(
    resident: Model, request: Request, answers: Sequence[str], emit: JobContext, end: bool = False
) -> list[Option]:
    """Return what a model makes of each answer, in their order; raises `UsageError` for one that has no token."""
    pairs = _encode_answers(resident, request, answers, emit)
    ends = _end_token(resident, request) if end else ()
    rows = [(*ids, *ends) for _, ids in pairs]
    scored: list[tuple[float, ...]] = []
    # mostly one: what a tokenizer joins across the border is part of the answer, and changes what stands before it
    for context, group in groupby(range(len(rows)), key=lambda place: pairs[place][0]):
        scored += measure.continuations.score_continuations(resident, context, [rows[place] for place in group], emit)
    totals = [sum(logprobs) for logprobs in scored]
    shares = _softmax(totals)
    return [
        Option(answer, ids, logprobs, total, total / len(ids), total / len(answer.encode("utf-8", "replace")), share)
        for answer, ids, logprobs, total, share in zip(answers, rows, scored, totals, shares, strict=True)
    ]


def _end_token(resident: Model, request: Request) -> tuple[int, ...]:
    """Return the token that ends a reply; raises `UsageError` for a model without one."""
    found = decoding.end_ids(decode.loop.Arguments.of_settings(resident, request.settings).config)
    own = resident.tokenizer.eos_token_id
    if not found:
        raise UsageError("the model has no token that ends a reply", "/choose A | B -- TEXT")
    return (own if own in found else found[0],)


def _encode_answers(
    resident: Model, request: Request, answers: Sequence[str], emit: JobContext
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return for each answer the ids before it and its own: those that it adds to the prompt's.

    Behind a text a space stands between, as the library's harness has it; behind a chat the answer begins the reply.
    """
    found, text = [], request.text.rstrip()
    space = request.text[len(text) :] or " "
    shorter = request if request.chats else replace(request, text=text)
    before = tuple(encode_prompt(resident, shorter, 1, emit).ids)
    for answer in answers:
        begun, longer = request.prefill + answer, text + space + answer
        asked = replace(request, prefill=begun) if request.chats else replace(request, text=longer)
        whole = tuple(encode_prompt(resident, asked, 1, emit).ids)
        if request.chats and whole[: len(before)] != before:  # the template makes something else of it
            whole = (*before, *map(int, resident.tokenizer(answer, add_special_tokens=False)["input_ids"]))
        if len(whole) <= len(before):
            raise UsageError(f"the answer {answer!r} adds no token to the prompt", CHOOSE_EXAMPLE)
        found.append((whole[: len(before)], whole[len(before) :]))
    return found


def _softmax(values: Sequence[float]) -> list[float]:
    """Return probabilities that add up to 1."""
    most = max(values)
    weights = [exp(value - most) for value in values]
    return [weight / sum(weights) for weight in weights]


# many


@dataclass(frozen=True, slots=True)
class HitRate:
    """How many items were right, with the share and its 95 % interval (Wilson)."""

    right: int
    items: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class WrongItem:
    """An item that was answered wrongly: by how many nats the answer lies before the right one."""

    line: int
    id: Any
    prompt: str
    right: str
    given: str
    margin: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the likeliest answer of a file's items is the right one: by its log-probability in all, or normalised.

    `answers` counts the items of each right answer where all items have the same answers. `failed` are the lines that
    could not be answered. `whole` is False where it was stopped before the end.
    """

    file: str
    total: HitRate
    by_token: HitRate
    by_byte: HitRate
    answers: dict[str, HitRate]
    wrong: tuple[WrongItem, ...]
    failed: tuple[tuple[int, str], ...]
    whole: bool = True


def wilson(right: int, items: int) -> HitRate:
    """Return a share with its 95 % interval (Wilson 1927), which stays between 0 and 1."""
    if not items:
        return HitRate(0, 0, 0.0, 0.0, 1.0)
    share, spread = right / items, Z_95**2 / items
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return HitRate(right, items, share, max(0.0, centre - half), min(1.0, centre + half))


def choose_all(resident: Model, file: PromptFile, emit: JobContext, end: bool = False) -> Accuracy:
    """Answer every item of a file; a cancel ends it with what there is. For the model thread."""
    total, failed, made, whole = file.count(), list[tuple[int, str]](), list[tuple[Prompt, AnswerOdds]](), True
    try:
        for number, item in enumerate(file):
            emit(Progress("scoring answers", number, total, "items"))
            try:
                made.append((item, _choose_item(resident, item, emit, end)))
            except ReplError as error:
                failed.append((item.line, error.message))
    except Cancelled:
        emit.begin_cleanup()
        if not made:
            raise
        whole = False
    if failed and not made:
        raise Failed(f"no item could be answered · line {failed[0][0]}: {failed[0][1]}")
    return _accuracy(file.path, made, failed, whole)


def _choose_item(resident: Model, item: Prompt, emit: JobContext, end: bool) -> AnswerOdds:
    request = item.request(resident.facts.chats)
    if not item.answers or item.right is None:
        raise UsageError("the line lacks answers, or which is right", '"answers": ["yes", "no"], "right": "no"')
    check_options(item.answers)
    options = measure_answers(resident, request, item.answers, emit, end)
    return AnswerOdds(item.asked.text, tuple(options))


def _accuracy(
    file: str, made: Sequence[tuple[Prompt, AnswerOdds]], failed: Iterable[tuple[int, str]], whole: bool
) -> Accuracy:

    def score(by: str, keep: Callable[[Prompt], bool] = lambda item: True) -> HitRate:
        hits = [choice.best(by) == item.right for item, choice in made if keep(item)]
        return wilson(sum(hits), len(hits))

    alike = {frozenset(item.answers) for item, _ in made}
    answers = made[0][0].answers if len(alike) == 1 else ()
    return Accuracy(
        file,
        total=score("logprob"),
        by_token=score("by_token"),
        by_byte=score("by_byte"),
        answers={name: score("logprob", lambda item: item.answers[item.right or 0] == name) for name in answers},  # noqa: B023
        wrong=tuple(_wrong(item, choice) for item, choice in made if choice.best() != item.right),
        failed=tuple(failed),
        whole=whole,
    )


def _wrong(item: Prompt, choice: AnswerOdds) -> WrongItem:
    given, right = choice.options[choice.best()], choice.options[item.right or 0]
    return WrongItem(item.line, item.id, item.asked.text, right.answer, given.answer, given.logprob - right.logprob)
