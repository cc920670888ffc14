"""Words that are banned or boosted, and the length of thoughts, on a server: as token ids with a bias, or as it can.

In come the settings and what cuts a text into the server's tokens; out come fields of a request. A server bans tokens,
never a text whichever tokens spell it: a phrase is refused.
"""

from collections.abc import Callable, Iterator

from repl.core.errors import NeedsLocal, UsageError
from repl.core.settings import Decode
from repl.generation.word_forms import word_forms
from repl.remote.dialects import Dialect

BAN_BIAS = -100.0  # the least that the protocol allows: it keeps a token out
MAX_BIAS = 100.0
THOUGHT_FIELDS = ("thinking_token_budget", "reasoning_budget_tokens")
"""How servers call the most tokens of a thought."""


def word_fields(decode: Decode, kind: Dialect, host: str, cut: Callable[[str], list[int]]) -> dict[str, object]:
    """Return the fields that ban and boost words and limit thoughts; raises `UsageError` for what cannot be done."""
    found = _thought_fields(decode, kind)
    banned = decode.ban or ()
    if banned and "bad_words" in kind.own:
        found["bad_words"] = [form for word in banned for form in word_forms(word)]
        banned = ()
    pairs = [*((word, BAN_BIAS, "/ban off") for word in banned), *((*one, "/boost off") for one in decode.boost or ())]
    if not pairs:
        return found
    if not ("logit_bias" in kind.own and kind.takes_ids):
        raise UsageError(f"{host} gives no token ids, so words cannot be banned or boosted there", pairs[0][2])
    bias: dict[str, float] = {}
    for word, value, hint in pairs:
        ids = {str(one): max(-MAX_BIAS, min(MAX_BIAS, value)) for one in _single_ids(word, cut)}
        if not ids:
            said = f"{word!r} has several tokens: {host} bans and boosts single tokens only"
            raise UsageError(said, hint)
        bias |= ids
    return {**found, "logit_bias": bias}


def _thought_fields(decode: Decode, kind: Dialect) -> dict[str, object]:
    options, names = dict(decode.think or ()), [name for name in THOUGHT_FIELDS if name in kind.own]
    if not options:
        return {}
    if not (names and options.keys() == {"max"}):
        raise NeedsLocal("a thought with settings of its own", "/think off")
    return {names[0]: options["max"]}


def _single_ids(word: str, cut: Callable[[str], list[int]]) -> Iterator[int]:
    for form in word_forms(word):
        ids = cut(form)
        if len(ids) == 1:
            yield ids[0]
