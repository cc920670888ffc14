"""The process that renders chat templates: requests as JSON lines in, outcomes out; nothing heavy is imported here."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

SECONDS = 2.0  # for all renderings of one request
CHARACTERS = 4_000_000  # of one rendering, beyond the messages themselves
MEMORY = 1 << 30  # bytes


def serve() -> None:
    """Answer requests from standard input, a JSON line each, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        _confine()
        out.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        out.flush()


def _confine() -> None:
    """Let the system end what the parent can no longer end; Windows has no such limits."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        used, most = sum(os.times()[:2]), resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + SECONDS) + 3, most))


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        template, variables, literals = _compiled(request["template"])
    except Exception as error:
        return {"error": _sentence(error)}
    outcomes = [_outcome(template, chat, request["variables"]) for chat in request.get("chats", ())]
    return {"variables": variables, "literals": literals, "outcomes": outcomes}


@lru_cache(8)
def _compiled(source: str) -> tuple[Any, list[str], str]:
    from jinja2 import meta, nodes

    environment = _environment()
    tree = environment.parse(source)
    variables = sorted(meta.find_undeclared_variables(tree) - set(environment.globals))
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return environment.from_string(source), variables, "\0".join(texts)


def _outcome(template: Any, chat: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    most = CHARACTERS + len(json.dumps(chat))
    given = {"tools": None, "documents": None, **variables, **chat}
    try:
        return {"text": _limited(template.generate(**given), most)}
    except Exception as error:
        return {"error": _sentence(error), "refused": type(error).__name__ == "_Refused"}


def _limited(pieces: Iterable[str], most: int) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise _TooLong
        kept.append(piece)
    return "".join(kept)


class _TooLong(Exception):
    pass


def _sentence(error: Exception) -> str:
    """Say what is wrong with a template, in the words of its author or of Jinja."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    starts = {
        "_Refused": "the chat template refuses this chat",
        "TemplateSyntaxError": f"the chat template does not parse, line {getattr(error, 'lineno', 0)}",
        "SecurityError": "the chat template does what none may do",
        "UndefinedError": "the chat template reads what is not there",
    }
    whole = {
        "_TooLong": f"the chat template writes more than {CHARACTERS // 10**6} MB",
        "MemoryError": "the chat template needs too much memory",
        "RecursionError": "the chat template calls itself without end",
    }
    for kind in kinds:
        if kind in whole:
            return whole[kind]
        if kind in starts:
            return f"{starts[kind]}: {_short(error)}"
    return f"the chat template fails: {_short(error)}"


def _short(error: Exception) -> str:
    words = " ".join(str(error)[:1000].split()) or type(error).__name__
    return (words if len(words) <= 200 else words[:199] + "…").rstrip(".")


def _environment() -> Any:
    """Make the environment in which the library renders chat templates, with the same names in it."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(_names())
    return environment


def _generation() -> Any:
    """Make `{% generation %}`, which marks what the assistant says, a block that changes nothing."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _names() -> dict[str, Any]:
    from datetime import datetime

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    return {"raise_exception": _refuse, "strftime_now": now, "dict": _Dict(), "namespace": _namespace()}


def _refuse(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise type("_Refused", (TemplateError,), {})(message)


class _Dict:
    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


def _namespace() -> Any:
    """Make the namespace that takes no names with an underscore in front."""
    from jinja2.utils import Namespace

    class Names(Namespace):
        def __init__(*given: Any, **named: Any) -> None:  # no `self`, which a template may use as a name
            attributes = dict(*given[1:], **named)
            _public(attributes)
            Namespace.__init__(given[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _public((name,))
            Namespace.__setitem__(self, name, value)

    return Names


def _public(names: Iterable[Any]) -> None:
    from jinja2.exceptions import SecurityError

    hidden = [name for name in names if isinstance(name, str) and name.startswith("_")]
    if hidden:
        raise SecurityError(f"{hidden[0]!r} on a namespace begins with an underscore")
