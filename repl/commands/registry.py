"""Commands from functions: the signature is the grammar, the docstring the help, the annotations read and complete."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from repl.core import settings
from repl.core.errors import UsageError
from repl.core.format import join_facts
from repl.core.values import Assignment, Flag, Integer, Kind, RestOfLine, did_you_mean, kind_of

if TYPE_CHECKING:
    from repl.session.session import Session

MOST_USED = ("help", "model", "settings", "retry", "undo", "next", "probs", "inspect", "compare")
"""The first commands of the menu; settings that the user has changed follow the second."""
MIN_PART = 2  # letters to search for inside of names; one more for help texts
F = TypeVar("F", bound=Callable[..., Any])
FLAG = re.compile(r"(?P<dashes>--)?(?P<name>[\w-]+?)(?:(?P<sign>=)|\s+|$)")
QUOTED_WORD = re.compile(r'"([^"]*)"|\'([^\']*)\'|(\S+)')


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of a command."""

    name: str
    kind: Kind
    default: Any
    many: bool = False
    flag: bool = False  # typed as --name VALUE or name=VALUE

    @property
    def needed(self) -> bool:
        """Tell whether the command needs it."""
        return self.default is Parameter.empty and not self.many

    @property
    def usage(self) -> str:
        """Return its part of a usage line."""
        if isinstance(self.kind, Assignment):
            return "[NAME=VALUE ...]"
        takes = "" if isinstance(self.kind, Flag) else " N" if isinstance(self.kind, Integer) else " VALUE"
        name = self.option + takes if self.flag else self.name.upper()
        name += " ..." if self.many else ""
        return name if self.needed else f"[{name}]"

    @property
    def option(self) -> str:
        """Return its name as a flag: --name."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Command:
    """A command as the user sees it."""

    name: str
    function: Callable[..., Any]
    words: tuple[Argument, ...]
    help: str
    more: str
    family: str
    needs_model: bool
    examples: tuple[str, ...]
    see: tuple[str, ...]

    @property
    def usage(self) -> str:
        """Return the usage line."""
        words = sorted(self.words, key=lambda word: not word.flag) if _ends_in_text(self.words) else self.words
        return " ".join([f"/{self.name}", *(word.usage for word in words)])


COMMANDS: dict[str, Command] = {}
COMMAND_ALIASES: dict[str, str] = dict(settings.ALIASES)
USER_ALIASES: dict[str, str] = {}
"""The user's own aliases: a name for a whole line."""


def command(
    family: str,
    *examples: str,
    see: str = "",
    name: str = "",
    aliases: tuple[str, ...] = (),
    needs_model: bool = False,
) -> Callable[[F], F]:
    """Make a function a command; its docstring is the help.

    `examples` are lines to type and `see` names related commands, both for the help. A line of a command with
    `needs_model` waits for a load in progress.
    """

    def register(function: F) -> F:
        title = name or function.__name__.removesuffix("_")
        first, _, more = (inspect.getdoc(function) or "").partition("\n")
        hints = get_type_hints(function, include_extras=True)
        words = tuple(
            Argument(
                spot.name,
                kind_of(hints[spot.name]),
                spot.default,
                many=spot.kind is Parameter.VAR_POSITIONAL,
                flag=spot.kind is Parameter.KEYWORD_ONLY,
            )
            for spot in [*inspect.signature(function).parameters.values()][1:]  # the first is the session
        )
        texts = first.rstrip("."), more.strip(), family
        COMMANDS[title] = Command(title, function, words, *texts, needs_model, examples, tuple(see.split()))
        COMMAND_ALIASES.update(dict.fromkeys(aliases, title))
        return function

    return register


def find_command(name: str) -> Command:
    """Return the command for a word: its name, an alias, or an unambiguous prefix; raises `UsageError`."""
    wanted = name.replace("-", "_").lower()
    if not wanted:
        raise UsageError("type a command after the slash", "/help")
    if (title := COMMAND_ALIASES.get(wanted, wanted)) in COMMANDS:
        return COMMANDS[title]
    named = {**{title: title for title in COMMANDS}, **COMMAND_ALIASES}
    starts = sorted({title for known, title in named.items() if known.startswith(wanted)})
    if len(starts) == 1:
        return COMMANDS[starts[0]]
    if starts:
        raise UsageError(f"/{name} could be {', '.join('/' + start for start in starts)}")
    raise UsageError(f"no command /{name}{did_you_mean(wanted, [*named], '/')}", "/help")


def alias(lines: Mapping[str, str]) -> list[str]:
    """Add the user's aliases; returns a sentence for each that would hide a command."""
    hidden = [name for name in lines if name in COMMANDS or name in COMMAND_ALIASES]
    USER_ALIASES.update({name: line for name, line in lines.items() if name not in hidden})
    return [f"the alias {name!r} is ignored: /{name} is a command" for name in hidden]


def expand(line: str) -> str:
    """Replace an alias at the beginning of a line by its line."""
    name, rest = split_name(line) if line.startswith("/") else ("", "")
    return f"{USER_ALIASES[name]} {rest}".strip() if name in USER_ALIASES else line


def split_name(line: str) -> tuple[str, str]:
    """Split `/name rest` into name and rest."""
    name, rest = re.split(r"[ \n]", line[1:] + " ", maxsplit=1)
    return name, rest.strip()


def parse_arguments(found: Command, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments in the text after a command's name; raises `UsageError`."""
    words, texts = [word for word in found.words if not word.flag], []
    named: dict[str, Any] = {}
    whole = _ends_in_text(words)  # flags stand in front of a text, which is taken as it is
    while text:
        if flag := _leading_flag(found, text, bare=not whole):
            name, named[name], text = flag
        elif whole:
            texts, text = (text.split(maxsplit=len(words) - 1) if len(words) > 1 else [text]), ""
        elif match := QUOTED_WORD.match(text):
            texts.append(match[match.lastindex or 0])
            text = text[match.end() :].lstrip()
    arguments: list[Any] = []
    for word in words:
        taken, texts = (texts, []) if word.many else (texts[:1], texts[1:])
        if not taken and word.needed:
            raise UsageError(f"/{found.name} needs {word.name}: {found.usage}", f"/help {found.name}")
        arguments += [_read(found, word, text) for text in taken] or ([] if word.many else [word.default])
    if texts:
        raise UsageError(f"/{found.name} does not take {texts[0]!r}: {found.usage}", f"/help {found.name}")
    return arguments, named


def _ends_in_text(words: Iterable[Argument]) -> bool:
    return any(isinstance(word.kind, RestOfLine) and not word.flag for word in words)


def _leading_flag(found: Command, text: str, bare: bool) -> tuple[str, Any, str] | None:
    """Read a `--flag value` in front of a text, `bare` also a `flag=value`: its name, its value, and the rest."""
    match, flags = FLAG.match(text), {word.name: word for word in found.words if word.flag}
    word = flags.get(match["name"].replace("-", "_")) if match else None
    if match is None or word is None or not (match["dashes"] or (bare and match["sign"])):
        return None
    text = text[match.end() :]
    if isinstance(word.kind, Flag) and not match["sign"]:
        return word.name, True, text
    value = QUOTED_WORD.match(text)
    return (
        word.name,
        _read(found, word, value[value.lastindex or 0] if value else ""),
        text[value.end() if value else 0 :].lstrip(),
    )


def _read(found: Command, word: Argument, text: str) -> Any:
    try:
        return word.kind.read(text)
    except UsageError as error:
        raise UsageError(f"/{found.name} {word.name}: {error.message}", *error.hints, f"/help {found.name}") from None


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """A parsed line: the command that it runs, `say` for a message, with its arguments."""

    text: str
    command: Command
    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def run(self, session: "Session") -> Any:
        """Return a result, a `Task`, or None."""
        return self.command.function(session, *self.arguments, **self.named)


def parse_line(text: str) -> ParsedLine:
    """Parse one line; raises `UsageError` before anything is done."""
    if not text.startswith("/") or text.startswith("//"):
        return ParsedLine(text, COMMANDS["say"], (text.removeprefix("/"),))
    name, rest = split_name(expand(text))
    found = find_command(name)
    if rest in ("--help", "-h"):
        return ParsedLine(text, COMMANDS["help"], (f"/{found.name}",))
    arguments, named = parse_arguments(found, rest)
    return ParsedLine(text, found, tuple(arguments), named)


def complete_line(line: str, session: "Session | None" = None) -> list[tuple[str, str]]:
    """Return the completions of a line as (word, help): command names, values, setting names.

    A kind with a method `offer(session, word)` completes from the session.
    """
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return []
    name, space, rest = line[1:].partition(" ")
    if not space:
        return _menu(name.replace("-", "_").lower(), session)
    try:
        found = find_command(name)
    except UsageError:
        return []
    return _values(found, rest, session)


def _menu(typed: str, session: "Session | None") -> list[tuple[str, str]]:
    """Return the commands whose name begins with `typed`, then those with it in their name, then in their help.

    In each part the most used commands come first, with the settings that the user has changed, then the others by
    name.
    """
    changed, values = session.settings.origins if session is not None else {}, dict[str, str]()
    if session is not None:
        decode = {name: found.value for name, found in session.decoding().items()}
        values = {
            name: settings.show_setting(name, decode[name] if name in decode else session.settings.get(name))
            for name in settings.places()
        }
    first = [*MOST_USED[:2], *changed, *MOST_USED[2:]]
    helps = {name: found.help for name, found in COMMANDS.items() if name != "say"} | USER_ALIASES
    fits = {
        "begins": [name for name in helps if name.startswith(typed)],
        "in the name": [name for name in helps if len(typed) >= MIN_PART and typed in name],
        "in the help": [name for name, text in helps.items() if len(typed) > MIN_PART and typed in text.lower()],
    }
    places = {name: place for place, name in enumerate(first)}
    ordered = [name for part in fits.values() for name in sorted(part, key=lambda one: (places.get(one, 99), one))]
    return [(f"/{name}", join_facts(values.get(name, ""), helps[name])) for name in dict.fromkeys(ordered)]


def _values(found: Command, rest: str, session: "Session | None") -> list[tuple[str, str]]:
    before, last = rest.split()[:-1] if rest and not rest.endswith(" ") else rest.split(), rest.rpartition(" ")[2]
    place = len(before)
    words = [word for word in found.words if not word.flag]
    if last.startswith("-"):
        return [(word.option, "") for word in found.words if word.flag and word.option.startswith(last)]
    if not words or (place >= len(words) and not words[-1].many):
        return []
    word = words[min(place, len(words) - 1)]
    if isinstance(word.kind, Assignment):
        return [(f"{name}=", settings.help_of(name)) for name in settings.places() if name.startswith(last)]
    if session is not None and (offer := getattr(word.kind, "offer", None)):
        return [(value, "") for value in offer(session, last)]
    ask = getattr(word.kind, "of_session", None)
    offered = ask(session) if ask and session is not None else word.kind.complete()
    helps = offered if isinstance(offered, Mapping) else {}
    begins = re.compile(f"(?:^|.*/){re.escape(last)}", re.IGNORECASE)  # the owner of a model may be left out
    return [(value, helps.get(value, "")) for value in offered if begins.match(value)]
