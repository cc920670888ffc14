"""What a reply must be: a line that a user types becomes a JSON Schema, a regular expression or a grammar.

In comes a list of fields, `json`, a JSON Schema, `/regex/`, a Lark or GBNF grammar, or a file with one of them; out
comes one `Format`. Its text is the value of the setting `format`: whole, so that a record outlives the file.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from repl.core.errors import NotFound, UsageError
from repl.core.values import Kind

OFF = ""
ANY_JSON = {"type": ["object", "array"]}
TYPES = {
    **dict.fromkeys(("string", "str", "text"), "string"),
    **dict.fromkeys(("int", "integer"), "integer"),
    **dict.fromkeys(("number", "float"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
}
KEYWORDS = {
    *("$schema", "$id", "$ref", "$defs", "definitions", "$anchor", "$dynamicRef", "$dynamicAnchor", "title"),
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "format", "pattern"),
    *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("items", "prefixItems", "additionalItems", "contains", "minContains", "maxContains", "minItems", "maxItems"),
    *("uniqueItems", "unevaluatedItems", "properties", "patternProperties", "additionalProperties", "required"),
    *("propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "dependentSchemas"),
    *("dependentRequired", "dependencies", "contentMediaType", "contentEncoding", "contentSchema"),
}
"""Of JSON Schema: an object with none of them allows everything, and is an example rather than a schema."""
GRAMMAR_FILES = (".lark", ".gbnf", ".ebnf")
MAX_FORM_BYTES = 2**20
MAX_DEPTH = 50  # of lists and objects in one another
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""One way to write JSON, that of Python: with free space small models put in lines without end."""
FORMAT_EXAMPLES = ("/format name, age int, tags [string]", "/format schema.json", "/format /[0-9]{4}/", "/format json")
FIELD = re.compile(r"\s*(?P<name>[\w-]+|\"[^\"]+\")\s*")
TYPE_NAME = re.compile(r"\s*([A-Za-z]+)\s*")
ANSWERS = re.compile(r"\s*:\s*([^,{}\[\]]+)")


@dataclass(frozen=True, slots=True)
class Format:
    """What a reply must be: `body` is a text of its `kind`, as llguidance's `grammar_from` takes them."""

    kind: str
    """json_schema, regex, lark or gbnf."""
    body: str
    title: str
    """It in a few words."""

    @property
    def schema(self) -> object:
        """Return the JSON Schema."""
        return json.loads(self.body)


@lru_cache(maxsize=64)
def parse_format(text: str) -> Format:
    """Read the value of the setting; raises `UsageError`."""
    if text.lower() == "json":
        return Format("json_schema", json.dumps(ANY_JSON), "JSON")
    if text.startswith("/") and text.endswith("/") and len(text) > 2:
        return Format("regex", text[1:-1], f"text that matches {text}")
    if text.startswith("{"):
        return _of_schema(text)
    if "::=" in text:
        return Format("gbnf", text, "text of a GBNF grammar")
    if re.search(r"^\s*[?!]?start\b[^\n]*:", text, re.MULTILINE):
        return Format("lark", text, "text of a Lark grammar")
    return _of_schema(json.dumps(_Fields(text).read()))


def _of_schema(text: str) -> Format:
    try:
        schema = json.loads(text)
    except RecursionError:
        raise UsageError("the JSON Schema is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"this is not JSON: {error}", *FORMAT_EXAMPLES[:2]) from None
    if not isinstance(schema, dict):
        raise UsageError("a JSON Schema is an object", FORMAT_EXAMPLES[1])
    if schema and not KEYWORDS & schema.keys():
        raise UsageError("this JSON has no keyword of JSON Schema: it would allow everything", FORMAT_EXAMPLES[0])
    fields = schema.get("properties")
    named = ", ".join(fields) if isinstance(fields, dict) else ""
    kind = "" if named else {"array": " list", "object": " object"}.get(str(schema.get("type")), "")
    return Format("json_schema", text, f"JSON with {named}" if named else f"JSON{kind}")


class FormatKind(Kind):
    """What a reply must be, kept as one text; `off` for anything."""

    __slots__ = ()
    phrase = "off, a list of fields, json, a JSON Schema, /regex/, a grammar, or a file with one"
    words = ("off", "json", "name, age int, tags [string]")

    def parse(self, word: str) -> str:
        """Return the text itself, that of a file in its place; raises `UsageError` for what is none of these."""
        text = word.strip()
        if text.lower() in ("", "off"):
            return OFF
        text = _read_file(text) or text
        parse_format(text)
        return text

    def show(self, value: str) -> str:
        """Return the text."""
        return value or "off"


def _read_file(text: str) -> str:
    """Return what stands in the file that is named, a JSON Schema on one line; empty where none is meant."""
    if "\n" in text or text.startswith("{") or len(text) > 4096:
        return ""
    try:
        path = Path(text).expanduser()
        if not path.is_file():
            if path.suffix in (".json", *GRAMMAR_FILES) and "," not in text:
                raise NotFound(f"there is no file {text}", FORMAT_EXAMPLES[0])
            return ""
        if path.stat().st_size > MAX_FORM_BYTES:
            raise UsageError(f"{text} is larger than 1 MiB")
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last one: the home of nobody
        raise UsageError(f"{text} cannot be read: {error}") from None
    if path.suffix in GRAMMAR_FILES or "::=" in found or not found.lstrip().startswith("{"):
        if "::=" not in found and path.suffix != ".lark":
            raise UsageError(f"{text} holds neither a JSON Schema nor a grammar", *FORMAT_EXAMPLES[:2])
        return found.strip()
    return json.dumps(_of_schema(found).schema, ensure_ascii=False)


class _Fields:
    """Reads `name, age int, kind: a|b, tags [string], home {street, city}` into a JSON Schema."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def read(self) -> dict[str, object]:
        """Return the schema of the whole text; raises `UsageError`."""
        found = self._fields(0)
        if self._at < len(self._text):
            raise self._wrong("a comma")
        return found

    def _fields(self, depth: int) -> dict[str, object]:
        fields: dict[str, object] = {}
        while True:
            name = self._match(FIELD, "the name of a field")["name"].strip('"')
            if name in fields:
                raise UsageError(f"the field {name} is given twice", FORMAT_EXAMPLES[0])
            fields[name] = self._type(depth)
            if not self._take(","):
                return {
                    "type": "object",
                    "properties": fields,
                    "required": list(fields),
                    "additionalProperties": False,
                }

    def _type(self, depth: int) -> dict[str, object]:
        """Return the schema of what follows a name; nothing is a string."""
        if depth > MAX_DEPTH:
            raise UsageError("the fields are nested too deeply")
        if found := ANSWERS.match(self._text, self._at):
            self._at = found.end()
            return self._answers(found[1])
        if self._take("{"):
            inner = self._fields(depth + 1)
            self._require("}")
            return inner
        if self._take("["):
            inner = self._type(depth + 1)
            self._require("]")
            return {"type": "array", "items": inner}
        if not TYPE_NAME.match(self._text, self._at):
            return {"type": "string"}
        word = self._match(TYPE_NAME, "a type")[1]
        if word.lower() not in TYPES:
            raise UsageError(
                f"{word!r} is not a type: use string, int, number, bool, [TYPE], {{...}}", FORMAT_EXAMPLES[0]
            )
        return {"type": TYPES[word.lower()]}

    def _answers(self, text: str) -> dict[str, object]:
        """Return the schema of a choice; a single word behind the colon is a type where there is one."""
        answers = [word.strip().strip('"') for word in text.split("|")]
        if len(answers) == 1 and answers[0].lower() in TYPES:
            return {"type": TYPES[answers[0].lower()]}
        if not all(answers):
            raise UsageError(f"there is an empty answer in {text.strip()!r}", "/format kind: a|b|c")
        return {"enum": answers}

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if not found:
            raise self._wrong(what)
        self._at = found.end()
        return found

    def _take(self, sign: str) -> bool:
        found = re.compile(r"\s*" + re.escape(sign) + r"\s*").match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found is not None

    def _require(self, sign: str) -> None:
        if not self._take(sign):
            raise self._wrong(sign)

    def _wrong(self, what: str) -> UsageError:
        rest = self._text[self._at :].strip()
        return UsageError(f"{what} is missing " + (f"before {rest[:20]!r}" if rest else "at the end"), *FORMAT_EXAMPLES)
