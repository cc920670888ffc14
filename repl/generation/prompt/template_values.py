"""What a user sets for a chat template: the variables that it reads, and which one of several is taken."""

import json
from collections.abc import Mapping

from repl.core.decoding import PREFIX
from repl.core.errors import UsageError
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.values import nearest
from repl.generation.prompt.chat_template import NAMED, read, source, taken


def variables(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, object] | None = None) -> list[str]:
    """Return the names that a template reads and a user may set."""
    several = isinstance(tokenizer.chat_template, Mapping)
    try:
        found = read(source(tokenizer, values or {})).variables - taken(tokenizer)
    except UsageError:
        if not several:
            raise
        found = frozenset()  # no template is chosen yet
    names = {name for name in found if not name.endswith(("_token", "_tokens"))}
    return sorted(names | {NAMED} if several else names)


def argument(
    tokenizer: PreTrainedTokenizerBase, name: str, word: str, values: Mapping[str, object] | None = None
) -> tuple[str, object]:
    """Read `template.NAME VALUE`: the full name, and the value as JSON or text, None for `default`.

    `values` are what is set already. Raises `UsageError` with the nearest name where the template reads no such
    variable, and where a model has no template of the name that `template.chat_template` chooses.
    """
    short, known = name.removeprefix(PREFIX).replace("-", "_"), variables(tokenizer, values)
    if short not in known:
        close = nearest(short, known)
        reads = f"it reads {', '.join(known)}" if known else "it reads none"
        hints = [f"/set {PREFIX}{close} {word}"] if close else []
        raise UsageError(f"the chat template has no variable {short!r}, {reads}", *hints)
    value = _value(word)
    if short == NAMED and value is not None:
        source(tokenizer, {NAMED: word})
        value = word
    return PREFIX + short, value


def _value(word: str) -> object:
    words = {"default": None, "none": None, "on": True, "off": False, "True": True, "False": False}
    if word in words:
        return words[word]
    try:
        return json.loads(word)
    except ValueError:
        return word
