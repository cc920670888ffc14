"""Ways to answer the same message: the words of /compare and /replay, and the settings that each comes to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repl import catalog, registry, settings
from repl.change import changed
from repl.decoding import SAMPLING
from repl.errors import UsageError
from repl.settings import Settings

NOW = "now"
"""The word for the settings as they stand."""
WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|\S)+""")
PROMPT = re.compile(r"(?:^|\s)--(?:\s|$)")
JOINT = re.compile(r"[,+\s]+(?=(?!cpu=|mps=|disk=)[A-Za-z_][A-Za-z_-]*=|(?:greedy|sample)\b)")  # memory is cpu=4GiB
NAMED = re.compile(r"[A-Za-z_][A-Za-z_-]*=.*", re.DOTALL)
PLAIN = [("num_beams", "1"), ("num_return_sequences", "default")]
GREEDY = [("do_sample", "off"), *PLAIN]
SAMPLED = [("do_sample", "on"), *PLAIN]
WORDS = {NOW: [], "greedy": GREEDY, "sample": SAMPLED}
SHORT = {"beams": "num_beams"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer: how it was typed, and the settings that it comes to."""

    title: str
    settings: Settings


def split(line: str) -> tuple[list[str], str | None]:
    """Split `A B -- PROMPT` into the words in front and the prompt, which is None where there is none."""
    mark = PROMPT.search(line)
    front, prompt = (line[: mark.start()], line[mark.end() :].strip("\n")) if mark else (line, None)
    return WORD.findall(front), prompt


def variant(word: str, base: Settings) -> Variant:
    """Read one word: a model, or settings joined by commas or plus signs, or by spaces inside quotes.

    Raises `UsageError`.
    """
    parts = [part for part in JOINT.split(_bare(word)) if part]
    pairs = [pair for part in parts for pair in _pairs(part)]
    title = ",".join(settings.named(part) for part in parts)
    return Variant(title or NOW, changed(base, _implied(pairs) + pairs))


def _bare(word: str) -> str:
    inner = word[1:-1]
    return inner if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" and word[0] not in inner else word


def _pairs(part: str) -> list[tuple[str, str]]:
    """Return the settings that a part of a word names; what is no setting is a model."""
    if part in WORDS:
        return WORDS[part]
    if not NAMED.fullmatch(part) or Path(part).expanduser().exists():
        return settings.address(part)
    typed, _, value = part.partition("=")
    name = settings.find(SHORT.get(typed, registry.ALIASES.get(typed, typed)))
    if settings.places()[name] == "view" and name != "mode":
        raise UsageError(f"{name} is about the screen, not about an answer", f"/{name}")
    if name == "model":
        return settings.address(value)
    return GREEDY if name == "temperature" and value in ("0", "0.0") else [(name, _bare(value))]


def _implied(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what has to be so for a value to have an effect: nobody compares temperatures of a greedy reply."""
    given = dict(pairs)
    if "do_sample" in given:
        return []
    if "num_beams" in given:
        return [("do_sample", "off"), ("num_return_sequences", "default")]
    return SAMPLED if given.keys() & {*SAMPLING, "seed"} else []


def offered() -> Mapping[str, str]:
    """Return the words worth completing: models, and the names of settings."""
    found = catalog.names()
    models = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    own = [name for name, part in settings.places().items() if part != "view" and name != "model"]
    short = {"beams=": "beam search", "greedy": "the likeliest token at every step", NOW: "the settings as they stand"}
    return {**short, **{f"{name}=": settings.help_of(name) for name in own}, **models}
