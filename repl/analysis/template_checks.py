"""Checks of a chat template for common faults, each with a verdict; and the parts of a prompt by role."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from repl.core.errors import ReplError
from repl.core.parts import Parts
from repl.generation.decode.detokenizer import AnyMessage, common_length
from repl.generation.prompt.chat_template import CHANNEL, THOUGHTS, Template, TemplateRefused

SYSTEM = {"role": "system", "content": "Speak in plain words."}
GREETING = {"role": "user", "content": "How are you today?"}
RESPONSE = {"role": "assistant", "content": "Fine, thank you."}
SECOND = {"role": "user", "content": "What comes next?"}
LATER = {"role": "assistant", "content": "Nothing much."}
THOUGHT = "A secret consideration."
TALK = (GREETING, RESPONSE, SECOND)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `verdict` is good, note or bad."""

    name: str
    verdict: str
    reason: str


def check_template(template: Template, stops: Sequence[int]) -> list[Check]:
    """Check a template; `stops` are the ids that end a reply. Raises `Failed` if the template exceeds its limits."""
    error = template.attempt([GREETING]).error or template.attempt(TALK).error
    if error:
        return [Check("renders", "bad", error.message)]
    verdicts = {
        "renders": ("good", "user messages and a reply"),
        "BOS": _bos(template),
        "system message": _system(template),
        "generation prompt": _generation_prompt(template),
        "end of turn": _end(template, stops),
        "earlier turns": _earlier(template),
        "thinking in history": _thinking(template),
        "control tokens typed by you": _typed(template),
    }
    return [Check(name, *verdict) for name, verdict in verdicts.items()]


Verdict = tuple[str, str]


def _bos(template: Template) -> Verdict:
    tokenizer = template.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        return "good", "the tokenizer has none"
    ids = template.encode(template.write([GREETING]))
    if ids[:2] == (bos, bos):
        return "bad", f"{tokenizer.bos_token} appears twice at the start"
    if ids[:1] == (bos,):
        return "good", f"{tokenizer.bos_token} once"
    if tokenizer("a")["input_ids"][:1] == [bos]:
        return "note", f"plain text gets {tokenizer.bos_token} in front, a chat does not"
    return "good", "none, as with plain text"


def _system(template: Template) -> Verdict:
    outcome = template.attempt([SYSTEM, GREETING])
    if isinstance(outcome.error, TemplateRefused):
        return "note", "not supported: it is put before your first message"
    if outcome.error:
        return "bad", outcome.error.message
    if SYSTEM["content"] not in outcome.text:
        return "bad", "ignored silently"
    return "good", "written"


def _generation_prompt(template: Template) -> Verdict:
    """Compare the generation prompt with the text before a reply in history, after the end of the user's message."""
    asked = _atoms(template, template.write([GREETING], True).text.partition(GREETING["content"])[2])
    stands = _atoms(template, _between(template, GREETING, RESPONSE))
    alone = template.attempt([GREETING], generation_prompt=False).text.partition(GREETING["content"])[2]
    twice = template.attempt([GREETING, SECOND], generation_prompt=False).text.partition(GREETING["content"])[2]
    size = common_length(
        _atoms(template, twice.partition(SECOND["content"])[0] or alone), stands
    )  # the end of your turn
    header = "".join(stands[size:])
    if common_length(asked, stands) > size or ("".join(asked[size:]).strip() and not header.strip()):
        return "good", repr("".join(asked[common_length(_atoms(template, alone), asked) :]) or "".join(asked))
    if not header.strip():
        return "good", "none needed: the reply follows your turn directly"
    if added := "".join(asked[size:]).strip():
        return "bad", f"{added!r} starts a reply, but in history one starts with {header!r}"
    return "bad", f"none: {header!r} should follow; the model may continue your turn"


def _between(template: Template, first: Mapping[str, str], second: Mapping[str, str]) -> str:
    """Return the text that a template writes between two consecutive messages of a chat."""
    after = template.write(TALK, True).text.partition(first["content"])[2]
    return after.partition(second["content"])[0]


def _atoms(template: Template, text: str) -> list[str]:
    """Cut a text into control tokens, words and single characters."""
    controls = map(re.escape, sorted(template.controls, key=len, reverse=True))
    return re.findall("|".join([*controls, r"\w+", "."]), text, re.DOTALL)


def _end(template: Template, stops: Sequence[int]) -> Verdict:
    """Look for an id that stops generation among the control tokens after a reply, at the end and inside of a chat."""
    behind = template.attempt([GREETING, RESPONSE], generation_prompt=False).text.partition(RESPONSE["content"])[2]
    between = _between(template, RESPONSE, SECOND)
    found = [one for one in (*_atoms(template, behind), *_atoms(template, between)) if one in template.controls]
    if not found:
        return "bad", "no token ends a reply: answers will run on"
    for one in found:
        if template.tokenizer.convert_tokens_to_ids(one) in stops:
            return "good", f"{one} ends a reply, and stops generation"
    names = ", ".join(map(str, template.tokenizer.convert_ids_to_tokens(list(stops)))) or "nothing"
    return "bad", f"{found[0]} ends a reply, but {names} stops generation: answers will run on"


def _earlier(template: Template) -> Verdict:
    """Compare the prompts of three turns: each should begin with the one before."""
    chats = [[GREETING], TALK, [*TALK, LATER, SECOND]]
    prompts = [template.write(chat) for chat in chats]
    opening = ""
    for chat, before, after in zip(chats, prompts, prompts[1:], strict=False):
        if after.text.startswith(before.text):
            continue
        old, new = template.encode(before), template.encode(after)
        place = common_length(old, new)
        quote = _near(str(template.tokenizer.decode(list(old[place:]))))
        said = before.text.rindex(chat[-1]["content"]) + len(chat[-1]["content"])
        if before.text[:said] != after.text[:said]:
            return (
                "bad",
                f"rendered differently once another turn follows, from {quote} on: less of the KV cache is reused",
            )
        opening = quote
    if opening:
        return "note", f"unchanged, but {opening} is dropped before a reply: what follows it is computed again"
    return "good", "unchanged: the KV cache can be reused"


def _near(text: str) -> str:
    line = text.strip().partition("\n")[0] or text
    return repr(line if len(line) <= 24 else line[:23] + "…")


def _thinking(template: Template) -> Verdict:
    literals, answer = template.reads.literals, RESPONSE["content"]
    tag = next((tag for tag, end in THOUGHTS.items() if tag in literals or end in literals), "")
    raw = f"{tag or '<think>'}\n{THOUGHT}\n{THOUGHTS[tag or '<think>']}\n\n{answer}"
    if CHANNEL in literals:
        tag, raw = CHANNEL, f"{CHANNEL}analysis<|message|>{THOUGHT}<|end|>{CHANNEL}final<|message|>{answer}"
    reply = {**RESPONSE, "content": raw, "parts": Parts(THOUGHT, answer)}
    outcome = template.attempt([GREETING, reply, SECOND])
    if outcome.error:
        return "bad", outcome.error.message
    if THOUGHT not in outcome.text:
        return "good", "removed from earlier replies, by design"
    if tag:
        return "note", "kept in earlier replies: it uses context"
    return "good", "kept as generated: the template has no thinking"


def _typed(template: Template) -> Verdict:
    hostile = {**GREETING, "content": GREETING["content"] + " ".join(template.controls)}
    by_id = {template.tokenizer.convert_tokens_to_ids(name): name for name in template.controls}
    try:
        prompts = [template.encode(template.write([message])) for message in (GREETING, hostile)]
    except ReplError as error:
        return "note", f"such a message is refused: {error.message}"
    plain, tried = (Counter(by_id[token] for token in ids if token in by_id) for ids in prompts)
    if forged := sorted((tried - plain).keys()):
        return "bad", f"{', '.join(forged)} acts when you type it"
    if not plain.keys() - {template.tokenizer.bos_token}:
        return "note", "are plain text, but turns are marked by plain text too: a message can look like several"
    return "good", "are plain text"


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a prompt that renders one message, in characters; the role `template` marks text of the template."""

    role: str
    start: int
    end: int


def find_spans(template: Template, messages: Sequence[AnyMessage], text: str, prefill: str = "") -> list[Span]:
    """Return the part of a rendered prompt that each message takes: the text it adds to the messages before it.

    If the template renders a message differently once others follow, the message's last line is searched instead. The
    generation prompt belongs to the template, the `prefill` behind it to the assistant.
    """
    found: list[Span] = []
    place = 0
    for count, message in enumerate(messages, 1):
        outcome = template.attempt(messages[:count], generation_prompt=False)
        alone = outcome.text
        exact = not outcome.error and text.startswith(alone) and len(alone) >= place
        end = len(alone) if exact else _searched(template, str(message["content"]), text, place)
        found.append(Span(str(message["role"]), place, end))
        place = end
    begun = max(place, len(text) - len(prefill)) if text.endswith(prefill) else len(text)
    rest = [Span("template", place, begun), Span("assistant", begun, len(text))]
    headed = [span for one in found for span in _headed(template, messages, one, text)]
    return headed + [span for span in rest if span.start < span.end]


def _searched(template: Template, content: str, text: str, place: int) -> int:
    line = (content.strip().splitlines() or [""])[-1]
    found = text.find(line, place)
    if not line or found < 0:
        return place
    ends = "|".join(map(re.escape, template.controls)) or "(?!)"
    tail = re.compile(rf"\s*(?:{ends})?\n*").match(text, found + len(line))
    return tail.end() if tail else found + len(line)


def _headed(template: Template, messages: Sequence[AnyMessage], span: Span, text: str) -> list[Span]:
    """Split off the template's own system text before the first message."""
    content = str(messages[0]["content"]).strip()
    said = text.rfind(content, span.start, span.end)
    if span.start or said < 0 or not content:
        return [span]
    ends = [one for one in template.controls if text[said + len(content) : span.end].lstrip().startswith(one)]
    cut = max((text.rfind(one, 0, said) + len(one) for one in ends if text.rfind(one, 0, said) >= 0), default=0)
    cut += len(text[cut:said]) - len(text[cut:said].lstrip("\n")) if cut else 0
    return [Span("template", 0, cut), replace(span, start=cut)] if cut else [span]
