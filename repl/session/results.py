"""Results that many commands share: a sentence, a draft, lines to run."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A sentence about what was done, written to standard error in scripts."""

    text: str
    choices: tuple[tuple[str, str], ...] = ()
    """Lines to run next, each with its effect; typing its number runs one."""


class NotAView:
    """A result about the conversation or a file: the view that was shown before it is still the last one."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A text to put into the line editor, with a sentence about it; any result with a `draft` does that."""

    draft: str
    said: str


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """Lines to run one after another."""

    lines: list[str]
