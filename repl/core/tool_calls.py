"""Read tool calls in a model's text, in the formats that models are trained on."""

import ast
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

Call = dict[str, Any]
NAMES, ARGUMENTS = ("name", "tool_name"), ("arguments", "parameters")
UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
QUOTE = '<|"|>'  # Gemma's
_NAMED = re.compile(r"\s*(?:call:)?([\w.-]+)\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)
_KEY = re.compile(r"([{,]\s*)([A-Za-z_]\w*)\s*:")
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_PAIR = re.compile(r"<arg_key(?::\w+)?>(.*?)</arg_key(?::\w+)?>\s*<arg_value(?::\w+)?>(.*?)</arg_value", re.DOTALL)
_ENDS = re.compile(r"</tool_call(?::\w+)?>")
_INVOKED = re.compile(r'<(?:invoke|function) name="([^"]+)">(.*?)</(?:invoke|function)>', re.DOTALL)
_GIVEN = re.compile(r'<param(?:eter)? name="([^"]+)"(?: string="(\w+)")?>(.*?)</param(?:eter)?>', re.DOTALL)
_CHILD = re.compile(r"<([\w.-]+)>()([^<]*)</\1>")
_PREFIXES = re.compile(r"｜DSML｜|\]<\]minimax\[>\[")  # of every tag in a call
_SEPARATED = re.compile(
    r"(?:function<｜tool▁sep｜>|functions\.)?([\w.-]+)(?::\d+)?\s*"
    r"(?:<｜tool▁sep｜>|<\|tool_call_argument_begin\|>|```json)\s*(\{.*\})\s*(?:```)?\s*",
    re.DOTALL,
)  # DeepSeek, Kimi
_BETWEEN = re.compile(r"<[|｜]tool[_▁]call[_▁](?:begin|end)[|｜]>")


def call(name: str, arguments: object) -> Call:
    """Return a tool call; its arguments are a mapping, or the raw text where they cannot be read."""
    return {"name": name, "arguments": arguments}


def describe(one: Call) -> str:
    """Return a call on one line: its name, and its arguments as JSON."""
    return f"{one['name']}({json.dumps(one['arguments'], ensure_ascii=False)})"


def read_calls(text: str, opening: str = "") -> tuple[Call, ...]:
    """Return the calls in a part of a reply; empty where it contains anything else.

    `opening` stands before each of several calls.
    """
    found: list[Call] = []
    for part in text.split(opening) if opening else [text]:
        if part.strip():
            calls = next((calls for way in WAYS if (calls := _read(way, part))), None)
            if calls is None:
                return ()
            found += calls
    return tuple(found)


def value(text: str) -> object:
    """Return an argument: decoded JSON, else the text."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return text


def _read(way: Callable[[str], Iterable[Call]], text: str) -> list[Call]:
    try:
        return list(way(text))
    except UNREADABLE:
        return []


def _in_json(text: str) -> Iterable[Call]:
    made = json.loads(text)
    for one in made if isinstance(made, list) else [made]:
        if name := next((one[key] for key in NAMES if key in one), ""):
            arguments: Any = next((one[key] for key in ARGUMENTS if key in one), {})
            yield call(str(name), value(arguments) if isinstance(arguments, str) else arguments)
        else:  # Apertus: the name is the key
            ((name, arguments),) = one.items()
            yield call(name, dict(arguments))


def _named(text: str) -> Iterable[Call]:
    if found := _NAMED.fullmatch(text):
        yield call(found[1], dict(json.loads(_strict(found[2]))))


def _strict(text: str) -> str:
    """Write Gemma's arguments as JSON: keys without quotes, texts in quotes of their own."""
    if QUOTE not in text and '"' in text:
        return text
    parts = text.split(QUOTE)
    return "".join(json.dumps(part) if place % 2 else _KEY.sub(r'\1"\2":', part) for place, part in enumerate(parts))


def _in_lines(text: str) -> Iterable[Call]:
    for line in text.strip().split("\n"):
        yield from _in_json(line)


def _tagged(text: str) -> Iterable[Call]:
    for name, body in _FUNCTION.findall(text):
        given = {key.strip(): value(word) for key, word in _PARAMETER.findall(body)}
        yield call(name.strip(), dict(json.loads(body)) if body.lstrip().startswith("{") else given)
    for part in _ENDS.split(text):  # GLM, Hy3
        if pairs := _PAIR.findall(part):
            name = re.sub(r"<[^>]*>", "", part.split("<arg_key")[0])
            yield call(name.strip(), {key.strip(): value(word) for key, word in pairs})


def _invoked(text: str) -> Iterable[Call]:
    for name, body in _INVOKED.findall(_PREFIXES.sub("", text)):
        given = _GIVEN.findall(body) or _CHILD.findall(body)
        yield call(name, {key: word if as_text == "true" else value(word) for key, as_text, word in given})


def _separated(text: str) -> Iterable[Call]:
    for part in filter(str.strip, _BETWEEN.split(text)):
        if (found := _SEPARATED.fullmatch(part)) is None:
            raise ValueError("no call")
        yield call(found[1], dict(json.loads(found[2])))


def _in_python(text: str) -> Iterable[Call]:
    made = ast.parse(text.strip(), mode="eval").body
    for one in made.elts if isinstance(made, ast.List) else [made]:
        if not isinstance(one, ast.Call) or one.args:
            raise ValueError("not a call with names for its arguments")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in one.keywords}
        yield call(ast.unparse(one.func).removesuffix(".call"), arguments)


WAYS = (_in_json, _in_lines, _named, _tagged, _invoked, _separated, _in_python)
