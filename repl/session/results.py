"""What a command returns beside its own kinds of result: a sentence, a draft, lines to run."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A sentence about what was done; it goes beside the answers, not among them."""

    text: str
    choices: tuple[tuple[str, str], ...] = ()
    """Lines that may be run next, each with what it does; a number does it."""


class NotAView:
    """A result about the talk or a file: after it, the view that was shown before is still the last one."""

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
