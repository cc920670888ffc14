"""Kinds of values: each one parses a word, shows a value, describes what it takes, and offers completions."""

import json
import math
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, get_args, get_origin

from repl.core.errors import UsageError


class Kind(ABC):
    """Turns a word into a value and back; by default a value is shown with `str`, and `words` are offered.

    `read` calls `parse`, whose `ValueError` or `LookupError` becomes a `UsageError` with `phrase`.
    """

    __slots__ = ()
    words: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def phrase(self) -> str:
        """The values it takes, to be read after `is not`."""

    def read(self, word: str) -> Any:
        """Return the value of a word; raises `UsageError`."""
        try:
            return self.parse(word)
        except (ValueError, LookupError, RecursionError):
            raise UsageError(f"{word!r} is not {self.phrase}") from None

    @abstractmethod
    def parse(self, word: str) -> Any:
        """Return the value of a word; raises `ValueError` or `LookupError`."""

    def show(self, value: Any) -> str:
        """Return the word that reads back as the value."""
        return str(value)

    def complete(self) -> Collection[str]:
        """Return the words worth offering; a mapping says what each one is."""
        return self.words


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """On or off."""

    phrase: str = "on or off"
    words = ("on", "off")

    def parse(self, word: str) -> bool:
        """Read on/off, true/false, yes/no, 1/0."""
        return ("off", "on", "false", "true", "no", "yes", "0", "1").index(word.lower()) % 2 == 1

    def show(self, value: bool) -> str:
        """Return on or off."""
        return "on" if value else "off"


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number within bounds, both included; `zero` is a word for 0, `of` names what is counted."""

    least: int = 0
    most: int | None = None
    zero: str = ""
    of: str = ""

    @property
    def phrase(self) -> str:
        """Name the bounds."""
        of = f" of {self.of}" if self.of else ""
        bounds = f"a whole number{of} from {self.least} {'up' if self.most is None else f'to {self.most}'}"
        return f"{self.zero} or {bounds}" if self.zero else bounds

    def parse(self, word: str) -> int:
        """Read decimal digits, with `_` between them; a comma is refused, since it is ambiguous."""
        if self.zero and word.lower() == self.zero:
            return 0
        digits = word.strip().replace("_", "")
        value = int(digits) if re.fullmatch(r"[+-]?[0-9]{1,19}", digits) else math.nan
        if not self.least <= value <= (math.inf if self.most is None else self.most):
            raise ValueError
        return int(value)

    def show(self, value: int) -> str:
        """Return the digits."""
        return str(value or self.zero or 0)

    def complete(self) -> list[str]:
        """Offer the word and the first numbers after it; any number may be meant."""
        return [self.zero, *(str(self.least + step) for step in range(4))] if self.zero else []


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A finite number within bounds; `above`/`below` are not included, `least`/`most` are."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    @property
    def phrase(self) -> str:
        """Name the bounds."""
        to = "to" if math.isfinite(self.least) else "up to"
        bounds = (("from", self.least), ("above", self.above), (to, self.most), ("below", self.below))
        return " ".join(["a number", *(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))])

    def parse(self, word: str) -> float:
        """Read what `float` reads, except infinities and NaN."""
        value = float(word)
        if not (self.least <= value <= self.most and self.above < value < self.below):
            raise ValueError
        return value

    def show(self, value: float) -> str:
        """Return the shortest digits that read back."""
        return repr(value).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words; aliases are other spellings of them."""

    options: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def phrase(self) -> str:
        """List them."""
        return "one of " + ", ".join(self.options)

    def parse(self, word: str) -> str:
        """Read an option or an alias, in any case."""
        return self.options[self.options.index(self.aliases.get(word.lower(), word.lower()))]

    def complete(self) -> list[str]:
        """Offer the options."""
        return list(self.options)


@dataclass(frozen=True, slots=True)
class AnyText(Kind):
    """Any text that is not blank; `suggest` returns completions."""

    phrase: str = "a text"
    suggest: Callable[[], Collection[str]] = list
    of_session: Callable[[Any], Collection[str]] | None = None
    """Returns completions that depend on the session."""

    def parse(self, word: str) -> str:
        """Return the text without the space around it."""
        if not word.strip():
            raise ValueError
        return word.strip()

    def complete(self) -> Collection[str]:
        """Offer the suggestions."""
        return self.suggest()


@dataclass(frozen=True, slots=True)
class Device(Kind):
    """A device or a way to spread a model over devices."""

    phrase: str = "one of auto, cpu, cuda, cuda:N, mps, balanced, sequential"
    words = ("auto", "cpu", "cuda", "mps", "balanced", "sequential")

    def parse(self, word: str) -> str:
        """Read the name in any case."""
        name = word.strip().lower()
        if name not in self.words and not re.fullmatch(r"cuda:[0-9]{1,3}", name):
            raise ValueError
        return name


@dataclass(frozen=True, slots=True)
class MaxMemory(Kind):
    """A memory limit for each device, kept as text: `0=20GiB,cpu=48GiB`."""

    phrase: str = "device=size pairs such as 0=20GiB,cpu=48GiB"
    words = ("cpu=16GiB", "0=20GiB,cpu=48GiB")

    def parse(self, word: str) -> str:
        """Check every pair and normalize its spelling."""
        pairs = [pair.strip() for pair in word.split(",")]
        found = [re.fullmatch(r"([0-9]+|cpu|mps|disk)\s*=\s*([0-9.]+)\s*([KMGT]i?B)", pair, re.I) for pair in pairs]
        if not all(found):
            raise ValueError
        return ",".join(f"{m[1].lower()}={float(m[2]):g}{m[3].upper().replace('I', 'i')}" for m in found if m)


@dataclass(frozen=True, slots=True)
class Strings(Kind):
    r"""A few strings: bare text is one string, quotes separate several, `\n` is a line feed."""

    phrase: str = 'a text, or several in quotes: "###" "\\n\\n"'

    def parse(self, word: str) -> tuple[str, ...]:
        """Read a JSON list, quoted strings, or one bare string; empty strings are refused."""
        texts = self._split(word.strip())
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError
        "".join(texts).encode()  # raises for half of a surrogate pair
        return tuple(texts)

    def _split(self, word: str) -> list[str]:
        if word.startswith("["):
            return list(json.loads(word))
        if word[:1] in ("'", '"'):
            lexer = shlex.shlex(word, posix=True)
            lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
            return [_unescape(text) for text in lexer]
        return [_unescape(word)]

    def show(self, value: tuple[str, ...]) -> str:
        """Return the strings in quotes, or `none`."""
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value) or "none"


@dataclass(frozen=True, slots=True)
class WordList(Strings):
    """Words and phrases between commas; what stands in quotes is taken as it is, with the spaces inside."""

    phrase: str = 'words or phrases of up to 200 characters: "delve", "As an AI"; or off'

    def parse(self, word: str) -> tuple[str, ...]:
        """Read the list, or off for none."""
        return () if word.strip().lower() == "off" else _short(Strings.parse(self, word))

    def _split(self, word: str) -> list[str]:
        if word.startswith("["):
            return list(json.loads(word))
        return [text for match in QUOTED.finditer(word) if (text := unquote(match[0]))]

    def show(self, value: tuple[str, ...]) -> str:
        """Return the texts in quotes, or off."""
        return ", ".join(json.dumps(text, ensure_ascii=False) for text in value) or "off"


@dataclass(frozen=True, slots=True)
class BiasList(Kind):
    """Words between commas, each with a number behind it that is added to its logit."""

    phrase: str = 'words with a number behind each: " Paris" +2, London -1.5; or off'

    def parse(self, word: str) -> tuple[tuple[str, float], ...]:
        """Read the pairs, or off for none."""
        if word.strip().lower() == "off":
            return ()
        pairs = [(unquote(text), Number().parse(bias)) for text, bias in BIAS.findall(word)]
        if not BIASES.fullmatch(word) or not all(text for text, _ in pairs):
            raise ValueError
        _short(tuple(text for text, _ in pairs))
        return tuple(pairs)

    def show(self, value: tuple[tuple[str, float], ...]) -> str:
        """Return the words in quotes with their numbers, or off."""
        return ", ".join(f"{json.dumps(text, ensure_ascii=False)} {bias:+g}" for text, bias in value) or "off"


MAX_WORD_CHARS = 200  # a word is decoded from each of its places in the model's tokens


def _short(words: tuple[str, ...]) -> tuple[str, ...]:
    "".join(words).encode()
    if any(len(word) > MAX_WORD_CHARS for word in words):
        raise ValueError
    return words


_QUOTES = r""""(?:[^"\\]|\\.)*"|'[^']*'"""
QUOTED = re.compile(rf"{_QUOTES}|[^,\"'\s][^,\"]*")
BIAS = re.compile(rf"({_QUOTES}|[^,\"'\s][^,\"]*?)\s*[ :=]\s*([+-]?\d+(?:\.\d+)?)\s*(?:,|$)")
BIASES = re.compile(rf"(?:\s*{BIAS.pattern})+")


def unquote(text: str) -> str:
    """Return the text inside quotes, or a bare text without surrounding space."""
    if text[:1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return _unescape(text[1:-1])
    return _unescape(text[1:-1]) if text[:1] == "'" else text.strip()


def _unescape(text: str) -> str:
    plain = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
    return re.sub(r"\\[ntr\\]", lambda match: plain[match[0]], text)


@dataclass(frozen=True, slots=True)
class OneOf(Kind):
    """A value of the first kind that reads the word."""

    phrase: str = ""
    kinds: tuple[Kind, ...] = ()

    def parse(self, word: str) -> object:
        """Try one after another."""
        for kind in self.kinds:
            with suppress(ValueError, LookupError):
                return kind.parse(word)
        raise ValueError

    def show(self, value: Any) -> str:
        """Return the word, or JSON."""
        return show_value(value)

    def complete(self) -> list[str]:
        """Offer what each offers."""
        return [word for kind in self.kinds for word in kind.complete()]


def show_value(value: object) -> str:
    """Return a value of any kind as it is typed."""
    if isinstance(value, bool):
        return Flag().show(value)
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True, slots=True)
class Assignment(Kind):
    """A `name=value` word, kept as the pair."""

    phrase: str = "name=value, such as temperature=0.8"

    def parse(self, word: str) -> tuple[str, str]:
        """Split at the first equals sign."""
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ValueError
        return name, value


@dataclass(frozen=True, slots=True)
class Options(Kind):
    """Some `name=value` words, each name with a kind of its own; or off."""

    kinds: Mapping[str, Kind] = field(default_factory=dict, hash=False)

    @property
    def phrase(self) -> str:
        """List the names."""
        return f"name=value words with some of {', '.join(self.kinds)}; or off"

    def parse(self, word: str) -> tuple[tuple[str, object], ...]:
        """Read the words, or off for none."""
        if word.strip().lower() == "off":
            return ()
        pairs = [part.partition("=")[::2] for part in word.split()]
        if not pairs or not all(name in self.kinds and value for name, value in pairs):
            raise ValueError
        return tuple({name: self.kinds[name].read(value) for name, value in pairs}.items())

    def show(self, value: tuple[tuple[str, object], ...]) -> str:
        """Return the words, or off."""
        return " ".join(f"{name}={self.kinds[name].show(one)}" for name, one in value) or "off"

    def complete(self) -> list[str]:
        """Offer the names."""
        return [f"{name}=" for name in self.kinds]


@dataclass(frozen=True, slots=True)
class RestOfLine(AnyText):
    """The rest of the line as it was typed."""

    def parse(self, word: str) -> str:
        """Return it unchanged."""
        return word


RestText = Annotated[str, RestOfLine()]
NameValue = Annotated[tuple[str, str], Assignment()]
KIND_OF_TYPE: dict[Any, Kind] = {bool: Flag(), int: Integer(), float: Number(), str: AnyText()}


def kind_of(annotation: Any) -> Kind:
    """Return the kind an annotation names: `Annotated[T, kind]`, or a plain type, with or without `| None`."""
    if get_origin(annotation) is Annotated:
        kind: Kind = get_args(annotation)[1]
        return kind
    found = [KIND_OF_TYPE[part] for part in (annotation, *get_args(annotation)) if part in KIND_OF_TYPE]
    return found[0]


def did_you_mean(word: str, names: Collection[str], mark: str = "") -> str:
    """Return `, did you mean NAME?` for a mistyped word; '' where no name is close."""
    close = closest_match(word, list(names))
    return f", did you mean {mark}{close}?" if close else ""


def closest_match(word: str, names: list[str]) -> str:
    """Return the name closest to a mistyped word, or ''."""
    swapped = [name for name in names if sorted(name) == sorted(word)]
    return next(iter(swapped or get_close_matches(word, names, n=1, cutoff=0.6)), "")
