"""Prompts: a request in, its ids out; of the messages of a chat those that `apply_chat_template` of the library makes.

The template is rendered by the library in this process, under bounds (`bounded`). Control tokens in what a person
or a file says are encoded as text; what the model itself said goes back as it said it.
What a user sets for a template is read here too: the variables that it reads, and which one of several is taken.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from types import FrameType
from typing import Any

import psutil

from repl.core.decoding import PREFIX
from repl.core.errors import Failed, ReplError, UsageError
from repl.core.events import Notice
from repl.core.format import counted
from repl.core.jobs import JobContext, run_in_thread
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.parts import TAGS, THINKING, Parts
from repl.core.values import closest_match
from repl.generation import prompt
from repl.generation.decode.detokenizer import PARSE_S, REASONING_FIELDS, AnyMessage
from repl.generation.interface import Model, Request
from repl.generation.prompt.context_window import PromptIds, fit_messages, reply_room

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

WAY_OUT = ("/mode complete", "/raw TEXT")  # plain rendering needs no template
CONTROL_MARKS = re.compile("[\U000f0000\U000f0001]")  # what the library puts around control tokens that a person typed
THOUGHTS = {tag.opens.strip(): tag.closes for tag in TAGS if tag.kind == THINKING}
FOLDED = "the chat template has no system message: it was put before your first message"
DROPPED = "the chat template ignores the system message"
CHANNEL = "<|channel|>"  # how gpt-oss names the parts of a reply
MAX_PARSED = 500  # replies that are remembered as they were read
MAX_TEMPLATE_S = 10.0  # that a template may take, which is done in milliseconds as a rule
MAX_BYTES = 4_000_000  # of a rendered prompt
MAX_PIECE_CHARS = 16 * MAX_BYTES  # characters that a template may put out on its way to a prompt
LOOK_STEPS = 64  # calls and lines between two looks
MAX_MEMORY_BYTES = 2**30  # of address space that a template may take beside what is in use
TEMPLATE = "<template>"  # what Jinja names the file of compiled templates
TEMPLATE_NAME = "chat_template"  # the argument that chooses among several templates


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the model gets it: `text` encodes to `ids`; `notice` is a sentence for the user, or empty."""

    ids: tuple[int, ...]
    text: str
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """The text that a template rendered; empty if there was an error.

    `marked` says that control tokens which a person typed have marks around them.
    """

    marked_text: str = ""
    marked: bool = False
    error: Failed | None = None

    @property
    def text(self) -> str:
        """Return the text as the model reads it."""
        return CONTROL_MARKS.sub("", self.marked_text) if self.marked else self.marked_text


class TemplateRefused(Failed):
    """The template refuses a chat with `raise_exception`; the message is its author's."""


class Template:
    """The chat template of a tokenizer with values for the variables that it reads; for the model thread.

    Raises `UsageError` where the tokenizer has none, `Failed` where it is broken.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, object], emit: JobContext) -> None:
        self.tokenizer, self._emit = tokenizer, emit
        self.values = _accept_values(tokenizer, arguments)
        self.source = chosen_template(tokenizer, self.values)
        self.reads = parse_template(self.source)
        self.controls = _list_controls(tokenizer, self.reads.literals)
        self._control = re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))) or "(?!)")

    def write(self, messages: Sequence[AnyMessage], generation_prompt: bool = True) -> Written:
        """Render the messages of a conversation; raises `Failed`."""
        return self._write(self.read_messages(messages), add_generation_prompt=generation_prompt)

    def attempt(self, messages: Sequence[AnyMessage], generation_prompt: bool = True) -> Written:
        """Render messages; an error is returned, not raised."""
        try:
            return self.write(messages, generation_prompt)
        except Failed as error:
            return Written(error=error)

    def _write(self, messages: Sequence[AnyMessage], **options: Any) -> Written:
        """Render messages as the template reads them, control tokens in what a person wrote marked."""
        values, chat = self.values, list(messages)
        persons = [message for message in chat if message["role"] != "assistant"]
        marked = self._holds_control([values, persons])
        if marked:
            values = self._mark(values)
            chat = [message if message["role"] == "assistant" else self._mark(message) for message in chat]
        try:
            with bounded(self._emit):
                text = self.tokenizer.apply_chat_template(chat, tokenize=False, **values, **options)
        except Exception as error:
            raise _translate(error) from error
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise Failed(f"the chat template writes more than {MAX_BYTES // 10**6} MB", *WAY_OUT)
        return Written(text, marked)

    def _holds_control(self, value: object) -> bool:
        if isinstance(value, str):
            return bool(self._control.search(value))
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return any(map(self._holds_control, inner))

    def _mark(self, value: object) -> Any:
        from transformers.utils.chat_template_utils import mark_control_tokens

        return mark_control_tokens(value, self._control)

    def encode(self, written: Written) -> tuple[int, ...]:
        """Return the ids of a rendered text; raises `Failed` where a person's text cannot be kept from acting."""
        sanitize = {"sanitize_control_tokens": True} if written.marked else {}
        try:
            found = self.tokenizer(written.marked_text, add_special_tokens=False, **sanitize)["input_ids"]
        except ValueError as error:
            raise Failed(f"the prompt cannot be encoded: {error}", *WAY_OUT) from error
        return tuple(int(token) for token in found)

    # replies that go back into a prompt

    def read_messages(self, messages: Sequence[AnyMessage]) -> list[dict[str, object]]:
        """Return the messages of a conversation as the template reads them; replies have `parts` beside their text.

        A reply goes back as the library itself reads it: in parts where the tokenizer has a response template or the
        reply names its channels, else as the decoded text, which the template cuts as it sees fit. A thought has a name
        of its own (the one that the template reads) only where the library says what it is, never by a guess of ours.
        """
        made: list[dict[str, Any]] = []
        for message in messages:
            plain = {name: value for name, value in message.items() if name != "parts"}
            parts = message.get("parts")
            reply = self._reply(str(message["content"]), parts, made) if isinstance(parts, Parts) else {}
            made.append({**plain, **reply})
        return made

    def _reply(self, raw: str, parts: Parts, before: Sequence[AnyMessage]) -> dict[str, object]:
        if getattr(self.tokenizer, "response_template", None) is not None:
            found = self._read_parsed(raw, before) or {"content": raw}
        elif CHANNEL in raw:
            found = _channel_fields(parts)
        else:
            return {"content": raw}
        names = self.reads.attributes
        thought = next((found[name] for name in REASONING_FIELDS if found.get(name)), None)
        if thought is not None and "reasoning" in names and not {*REASONING_FIELDS[:2]} & names:
            found["reasoning"] = thought  # the library gives it the other names
        return found

    def _read_parsed(self, raw: str, before: Sequence[AnyMessage]) -> dict[str, object]:
        """Read a reply with the library's parser, behind the prompt that it answers; nothing where that fails."""
        key = hash((repr(self.values), self.source, repr(self.tokenizer.response_template), raw, repr(before)))
        if key not in _PARSED:
            if len(_PARSED) >= MAX_PARSED:
                _PARSED.clear()
            _PARSED[key] = self._parse(raw, before)
        return dict(_PARSED[key])

    def _parse(self, raw: str, before: Sequence[AnyMessage]) -> dict[str, object]:
        prefix, tools = "", self.values.get("tools")
        with suppress(Failed):  # the template may not write what stands before by itself
            prefix = self._write(before, add_generation_prompt=True).text if before else ""
        work = partial(self.tokenizer.parse_response, raw, prefix=prefix, **({"tools": tools} if tools else {}))
        try:
            return {"content": "", **run_in_thread(work, self._emit, PARSE_S)}
        except Exception:  # a stranger's pattern, on a reply that may have been cut anywhere
            return {}

    # a reply that has begun

    def begin(self, messages: Sequence[AnyMessage], prefill: str) -> Written:
        """Render a chat whose last reply begins with `prefill` and is not ended, as the library continues a message.

        Where the library or the template does not take such a beginning, it stands behind the generation prompt.
        """
        said = self.read_messages(messages)
        for field, last in self._beginnings(prefill):
            try:
                written = self._write([*said, {"role": "assistant", **last}], continue_final_message=field)
            except Failed:  # the template makes something else of it
                continue
            if _ends_with_prefill(written.text, prefill):
                return written
        behind = self._write(said, add_generation_prompt=True)
        return Written(behind.marked_text + prefill, behind.marked)

    def _beginnings(self, prefill: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the messages that may continue a beginning, each with the field that goes on."""
        tag = next((tag for tag in THOUGHTS if prefill.lstrip().startswith(tag)), "")
        names = [name for name in REASONING_FIELDS if name in self.reads.attributes][:1]
        if tag and THOUGHTS[tag] not in prefill:
            thought = prefill.lstrip().removeprefix(tag).lstrip("\n")
            return [*((name, {"content": "", name: thought}) for name in names), ("content", {"content": prefill})]
        return [("content", {"content": prefill})]


_PARSED: dict[int, dict[str, Any]] = {}  # a prompt reads all replies before it again


def _channel_fields(parts: Parts) -> dict[str, object]:
    """Return parts under the names of gpt-oss, whose template takes no answer beside a thought and a call."""
    found: dict[str, Any] = {"content": "" if parts.tool_calls and parts.thinking else parts.answer}
    found |= {"thinking": parts.thinking} if parts.thinking else {}
    return found | ({"tool_calls": list(parts.tool_calls)} if parts.tool_calls else {})


def _ends_with_prefill(text: str, prefill: str) -> bool:
    """Tell whether a prompt ends with the beginning of a reply, and no thought was ended in front of one."""
    end, begun = "".join(text.split()), "".join(prefill.split())
    before = end.removesuffix(begun)
    opens = begun.startswith(tuple(THOUGHTS))
    return end.endswith(begun) and not (opens and before.endswith(tuple(THOUGHTS.values())))


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[AnyMessage],
    *,
    arguments: Mapping[str, object],
    prefill: str = "",
    generation_prompt: bool = True,
    emit: JobContext,
) -> Rendered:
    """Make the prompt of a chat, whose reply begins with `prefill` where there is one.

    The ids are those of `apply_chat_template`; control tokens in what a person or a file says (everything but the
    model's own replies and `prefill`) are encoded as plain text. A system text that the template refuses is put in
    front of the first user message. Raises `UsageError` without a template, `Failed` where it fails, `Cancelled`.
    """
    template = Template(tokenizer, arguments, emit)

    def write(chat: Sequence[AnyMessage]) -> Written:
        return template.begin(chat, prefill) if prefill else template.write(chat, generation_prompt)

    written, notice = _with_system(write, messages)
    ids = template.encode(written)
    if not ids:
        raise Failed("the chat template returns nothing for this conversation", *WAY_OUT)
    return Rendered(ids, written.text, notice)


def encode_prompt(resident: Model, request: Request, wanted: int, emit: JobContext) -> PromptIds:
    """Return the ids of the prompt; of a chat that is too long, those that the overflow setting allows.

    `wanted` is how many tokens the reply may have. Raises `UsageError`, among them `Overflow`, and `Failed` where
    the template fails.
    """
    if request.ids:
        return PromptIds(list(request.ids))
    if not request.chats:
        ids = [int(token) for token in resident.tokenizer(request.text)["input_ids"]]
        if not ids:
            raise UsageError("the prompt is empty: the model needs at least one token to continue")
        return PromptIds(ids)

    def count(messages: Sequence[AnyMessage]) -> list[int]:
        values = template_values(request.settings.extra)
        made = render_chat(resident.tokenizer, messages, arguments=values, prefill=request.prefill, emit=emit)
        resident.runtime.mention(made.notice, emit)
        return list(made.ids)

    ids, context, policy = count(request.messages), resident.facts.context, request.settings.decode.overflow
    if not context or len(ids) < context - (reply_room(context, wanted) if policy == "drop_oldest" else 0):
        return PromptIds(ids)
    fitted = fit_messages(request.messages, ids, count, context, wanted, policy)
    if fitted.dropped:
        left = counted(len(fitted.dropped), "message")
        emit(Notice(f"the oldest {left} dropped: the context of {context} tokens is full"))
    return PromptIds(fitted.ids, tuple(request.turns[place] for place in fitted.dropped))


def _with_system(
    write: Callable[[Sequence[AnyMessage]], Written], messages: Sequence[AnyMessage]
) -> tuple[Written, str]:
    if not messages or messages[0]["role"] != "system":
        return write(messages), ""
    try:
        written = write(messages)
    except TemplateRefused as refused:
        try:
            return write(fold_system_text(messages)), FOLDED
        except Failed:  # then the system text was not the reason
            raise refused from None
    said = str(messages[0]["content"]).strip()
    return written, "" if said in written.text else DROPPED


def fold_system_text(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """Put the system text in front of the first message behind it."""
    system, *rest = messages
    if not rest:
        return [{**system, "role": "user"}]
    first, *rest = rest
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


# the source


def chosen_template(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, object]) -> str:
    """Return the chat template that is used, of several the one that was chosen; raises `UsageError`."""
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        raise UsageError("the model has no chat template", *WAY_OUT)
    name = values.get(TEMPLATE_NAME)
    if isinstance(found, Mapping) and (name or "default") not in found:
        names = ", ".join(sorted(map(str, found)))
        hints = [f"/set {PREFIX}{TEMPLATE_NAME} {each}" for each in sorted(map(str, found))]
        said = (
            f"the model has no chat template {name!r}" if name else "none of the model's chat templates is the default"
        )
        raise UsageError(f"{said}: it has {names}", *hints[:3])
    return str(tokenizer.get_chat_template(chat_template=name, tools=values.get("tools")))


def parse_template(text: str) -> "prompt.template_source.TemplateSource":
    """Parse a template; raises `Failed` where it is none."""
    try:
        with limited_memory():  # Jinja computes what is constant as it reads
            return prompt.template_source.parse(text)
    except Exception as error:
        raise _translate(error) from error


def _accept_values(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the values that can be passed to the library; the name of a template only if there are several."""
    several = isinstance(getattr(tokenizer, "chat_template", None), Mapping)
    refused = reserved_names(tokenizer) - ({TEMPLATE_NAME} if several else set())
    return {name: value for name, value in arguments.items() if name not in refused}


def reserved_names(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the names that `apply_chat_template` has for itself, which no template can be given."""
    return frozenset(signature(tokenizer.apply_chat_template).parameters) - {"tools", "documents"} | {"messages"}


def variables(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, object] | None = None) -> list[str]:
    """Return the names that a template reads and a user may set."""
    several = isinstance(tokenizer.chat_template, Mapping)
    try:
        found = parse_template(chosen_template(tokenizer, values or {})).variables - reserved_names(tokenizer)
    except UsageError:
        if not several:
            raise
        found = frozenset()  # no template is chosen yet
    names = {name for name in found if not name.endswith(("_token", "_tokens"))}
    return sorted(names | {TEMPLATE_NAME} if several else names)


def argument(
    tokenizer: PreTrainedTokenizerBase, name: str, word: str, values: Mapping[str, object] | None = None
) -> tuple[str, object]:
    """Read `template.NAME VALUE`: the full name, and the value as JSON or text, None for `default`.

    `values` are what is set already. Raises `UsageError` with the nearest name where the template reads no such
    variable, and where a model has no template of the name that `template.chat_template` chooses.
    """
    short, known = name.removeprefix(PREFIX).replace("-", "_"), variables(tokenizer, values)
    if short not in known:
        close = closest_match(short, known)
        reads = f"it uses {', '.join(known)}" if known else "it uses none"
        hints = [f"/set {PREFIX}{close} {word}"] if close else []
        raise UsageError(f"the chat template has no variable {short!r}, {reads}", *hints)
    value = _read_value(word)
    if short == TEMPLATE_NAME and value is not None:
        chosen_template(tokenizer, {TEMPLATE_NAME: word})
        value = word
    return PREFIX + short, value


def _read_value(word: str) -> object:
    words = {"default": None, "none": None, "on": True, "off": False, "True": True, "False": False}
    if word in words:
        return words[word]
    try:
        return json.loads(word)
    except ValueError:
        return word


def _list_controls(tokenizer: PreTrainedTokenizerBase, literals: str) -> tuple[str, ...]:
    """Return the tokens that steer, as the library tells them: special ones, and those that the template writes."""
    added = tokenizer.added_tokens_decoder.values()
    named = getattr(tokenizer, "chat_control_tokens", None)
    if named is not None:
        return tuple(str(token) for token in added if token.special or str(token) in named)
    return tuple(
        str(token) for token in added if token.special or (str(token) in literals and not str(token).isspace())
    )


def _translate(error: Exception) -> ReplError:
    """Return the error of a template in the words of its author or of Jinja."""
    if isinstance(error, ReplError):
        return Failed(error.message, *WAY_OUT)
    starts = {
        "TemplateSyntaxError": f"the chat template does not parse, line {getattr(error, 'lineno', 0)}: ",
        "SecurityError": "the chat template does something that is not allowed: ",
        "UndefinedError": "the chat template uses an undefined value: ",
        "MemoryError": "the chat template needs too much memory",
        "RecursionError": "the chat template recurses without end",
    }
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if kinds[0] == "TemplateError":  # what `raise_exception` raises
        return TemplateRefused(f"the chat template refuses this conversation: {_short(error)}", *WAY_OUT)
    start = next((starts[kind] for kind in kinds if kind in starts), "the chat template fails: ")
    return Failed(start + (_short(error) if start.endswith(": ") else ""), *WAY_OUT)


def _short(error: Exception) -> str:
    words = " ".join(str(error)[:1000].split()) or type(error).__name__
    return (words if len(words) <= 200 else words[:199] + "…").rstrip(".")


def template_values(extra: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Pick the template's variables from settings that were made by name."""
    return {name.removeprefix(PREFIX): value for name, value in extra if name.startswith(PREFIX)}


# templates are code of strangers: ended by a cancel, a time limit, a size limit


class _Ended(BaseException):
    """Not an `Exception`: neither Jinja nor a template catches it."""


@contextmanager
def bounded(emit: JobContext, seconds: float | None = None) -> Iterator[None]:
    """Run a template on this thread until it ends, the user cancels, or a bound is passed; raises `Failed`.

    The tracer of the thread looks at the cancel flag and the clock: at each call, and at each line of a template.
    """
    seconds = MAX_TEMPLATE_S if seconds is None else seconds
    deadline = time.monotonic() + seconds
    steps = written = 0

    def look(frame: FrameType, event: str, value: object) -> Any:
        nonlocal steps, written
        steps += 1
        if steps % LOOK_STEPS == 0:
            emit.raise_if_cancelled()
            if time.monotonic() > deadline:
                raise _Ended(f"the chat template is not done after {seconds:g} s")
        if frame.f_code.co_filename != TEMPLATE:
            return None
        written += len(value) if event == "return" and isinstance(value, str) else 0
        if written > MAX_PIECE_CHARS:
            raise _Ended(f"the chat template writes more than {MAX_BYTES // 10**6} MB")
        return look

    before = sys.gettrace()
    with limited_memory():
        sys.settrace(look)
        try:
            yield
        except _Ended as ended:
            raise Failed(str(ended)) from None
        finally:
            sys.settrace(before)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let one huge allocation fail: no tracer sees it. Only where the system has such a limit: not on Windows."""
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + MAX_MEMORY_BYTES
    bounds = [bound for bound in (soft, hard, wanted) if bound != resource.RLIM_INFINITY]
    with suppress(ValueError, OSError):  # macOS refuses some
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
