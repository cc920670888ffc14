"""Replies of a server from their token ids: made once more as they were asked for, or from another token on."""

from dataclasses import replace

from repl.core import parts
from repl.core.conversation import Conversation, Turn
from repl.core.errors import UsageError
from repl.core.events import PromptEcho
from repl.core.jobs import JobContext
from repl.core.reply import Reply, ServedModel, TokenLogprobs, Usage
from repl.core.settings import Settings
from repl.generation.measure.token_trace import answered
from repl.generation.request import Request
from repl.remote.engine import Remote
from repl.remote.protocol import read_ids
from repl.remote.refusals import Refused, to_error


def require_server(remote: Remote | None, turn: Turn) -> Remote:
    """Return the server that made a reply; raises `UsageError` unless it is connected."""
    host = answered(turn).server
    if remote is None or remote.host != host:
        raise UsageError(f"turn {turn.id} was made by {host}, which is not connected", f"/connect {host}")
    return remote


def rebuild_request(talk: Conversation, turn: Turn, settings: Settings) -> Request:
    """Return the request that a reply answers, as it was: its system text, without what was left out of it."""
    record, asked = answered(turn), talk.turns[turn.parent or 0]
    if asked.role == "prompt":
        return Request(settings, text=asked.text + turn.text.removesuffix(record.raw))
    path = [one for one in talk.path(asked.id) if one.id not in record.dropped]
    said = [message for message in talk.messages(asked.id) if message["role"] != "system"]
    kept = [message for message, one in zip(said, talk.path(asked.id), strict=True) if one in path]
    system = [{"role": "system", "content": record.system}] if record.system else []
    turns = (*([0] if system else []), *(one.id for one in path))
    return Request(settings, messages=(*system, *kept), turns=turns, prefill=record.prefill)


def ask_again(remote: Remote, request: Request, record: Reply, emit: JobContext) -> Reply:
    """Ask once more for what a reply of a server answers, with what was sent then."""
    made = record.model
    assert isinstance(made, ServedModel)
    return remote.reply(request, emit, made.sent)


def substitute_token(
    remote: Remote, request: Request, record: Reply, place: int, token: int, emit: JobContext
) -> Reply:
    """Go on from a reply up to a place (from 1), with another token there; returns the record of the whole."""
    prompt = record.prompt_ids or _prompt(remote, request, emit)
    ids = (*record.token_ids[: place - 1], token)
    lead = _text(remote, "/detokenize", {"tokens": list(ids), "skip_special_tokens": False}, emit)
    emit(PromptEcho(lead))
    done = remote.reply(Request(request.settings, ids=(*prompt, *ids)), emit)
    return _whole(done, record, lead, prompt, ids)


def _whole(done: Reply, record: Reply, lead: str, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Reply:
    raw = lead + done.raw
    found = parts.read(raw)
    return replace(
        done,
        raw=raw,
        text=found.answer,
        thinking=found.thinking,
        tool_calls=found.tool_calls,
        prompt_ids=prompt,
        token_ids=(*ids, *done.token_ids) if done.token_ids else (),
        usage=Usage(len(prompt), done.usage.reused, len(ids) + done.usage.completion),
        measures=TokenLogprobs(),
        system=record.system,
        prefill=record.prefill,
        begun=record.begun,
    )


def _prompt(remote: Remote, request: Request, emit: JobContext) -> tuple[int, ...]:
    """Return the ids of a prompt that a server does not send along (llama.cpp): its template, then its tokenizer."""
    text = request.text
    if request.chats:
        text = _text(remote, "/apply-template", remote.asked(request, emit), emit)
    found = _ask(remote, "/tokenize", {"content": text, "add_special": True, "parse_special": True}, emit)
    return tuple(read_ids(found.get("tokens")))


def _text(remote: Remote, path: str, body: dict[str, object], emit: JobContext) -> str:
    found = _ask(remote, path, body, emit)
    return str(next((found[name] for name in ("prompt", "content", "text") if name in found), ""))


def _ask(remote: Remote, path: str, body: dict[str, object], emit: JobContext) -> dict[str, object]:
    model = {"model": remote.model} if remote.model else {}
    try:
        found = remote.wire.ask(path, emit, {**model, **body}, beside=True)
    except Refused as refused:
        raise to_error(refused, remote.host, remote.model, remote.listing.offers, path) from refused
    return found if isinstance(found, dict) else {}
