"""Servers: let one answer instead of the model in this process, and go back."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import RenderableType
from rich.text import Text

from repl.clean import clean_line
from repl.errors import UsageError
from repl.kinds import Text as Words
from repl.registry import command
from repl.remote import Connected, Remote, Served, known, reach
from repl.screen import Said, joined, view
from repl.session import Session
from repl.settings import named
from repl.wire import Address, address

SHOWN = 20  # models listed at once


@dataclass(frozen=True, slots=True)
class Known:
    """The server in use, if one is, and those that the config file names: their URLs."""

    server: Served | None
    engines: Mapping[str, str]


def named_ones() -> dict[str, str]:
    """Return the names that the config file has, each with its URL."""
    return {name: table["url"] for name, table in known.items()}


@command("models")
def connect(
    session: Session,
    url: Annotated[str, Words("a URL, or a name from the config file", suggest=named_ones)] = "",
    *,
    key_env: str = "",
    model: str = "",
    insecure: bool = False,
) -> Any:
    """Let a server that speaks the OpenAI protocol answer: /connect http://127.0.0.1:8000 [--key-env NAME].

    URL may be the name of a table [engines.NAME] of the config file, with url, key_env and model. --key-env names the
    environment variable that holds the key: it is sent to that server and nowhere else, and never kept. --model chooses
    one of several that are served. --insecure allows http to another machine. The local model stays in memory.
    """
    if not url:
        server = session.remote.served() if session.remote else None
        return Known(server, named_ones())
    table = session.engines.get(url, {"url": url})
    where = address(table["url"])
    if where.host not in session.trusted and not (insecure or where.encrypted or where.loopback):
        raise unencrypted(where, url)
    if session.store.offline and not where.loopback:
        raise UsageError("this session is offline, only servers on this machine can be reached", "/connect 127.0.0.1")
    where = Address(where.url, key(where, key_env or table.get("key_env", "")))
    if insecure:
        session.trusted.add(where.host)

    def settle(job: Any) -> Connected:
        remote: Remote = job.result()
        session.connect(remote)
        return remote.connected()

    return session.call(lambda emit: reach(where, model or table.get("model", ""), emit), settle)


def unencrypted(where: Address, typed: str) -> UsageError:
    """Make the question whether a server may be talked to in the open."""
    effect = "everyone on the way can read what you send, a key included"
    line = f"/connect {typed} --insecure"
    return UsageError(
        f"{where.host} is another machine, and http is not encrypted", choices=((line, effect),), again=False
    )


def key(where: Address, name: str) -> str:
    """Return the key for a server: that of the variable, or the Hub's own for the Hub; raises `UsageError`."""
    if not name:
        from huggingface_hub import get_token

        return (get_token() or "") if where.hub else ""
    found = os.environ.get(name, "").strip()
    if not found:
        raise UsageError(f"the variable {name} is not set", f"export {name}=...")
    if not re.fullmatch(r"[!-~]+", found):
        raise UsageError(f"the variable {name} does not hold a key: there are blanks or other characters in it")
    return found


@command("models")
def disconnect(session: Session) -> Any:
    """Let the model in this process answer again."""
    if session.remote is None:
        raise UsageError("no server is connected", "/connect URL")
    host = session.remote.host
    session.connect(None)
    facts = session.store.facts()
    if facts is None and session.loading is None:
        session.notices.append(f"disconnected from {host}")
        return session.load(session.settings)
    name = facts.name if facts else session.pending().load.model
    return Said(joined(f"disconnected from {host}", f"{name} answers"))


@view.register
def _(result: Served) -> RenderableType:
    host = result.url.partition("://")[2].partition("/")[0]
    count = len(result.models)
    offers = f"{count} models · /model NAME chooses one" if count > 1 else ""
    unlisted = "" if not result.model or result.model in result.models or not count else "not among those it lists"
    limit = f"context {result.context}" if result.context else ""
    rest = joined(host if result.model else "", limit, unlisted or offers, "/disconnect goes back")
    return Text.assemble((clean_line(named(result.model) or host), "accent"), (" · " + clean_line(rest), "quiet"))


@view.register
def _(result: Known) -> RenderableType:
    rows: list[Any] = []
    if result.server is not None:
        rows += [view(result.server), "\n"]
        listed = result.server.models[:SHOWN] if len(result.server.models) > 1 else []
        rows += [(f"  {clean_line(name)}\n", "quiet") for name in listed]
        more = len(result.server.models) - SHOWN
        rows += [(f"  and {more} more: /model completes them\n", "quiet")] if more > 0 else []
    rows += [
        part
        for name, url in result.engines.items()
        for part in ((clean_line(name), "accent"), f"  {clean_line(url)}\n")
    ]
    return (
        Text.assemble(*rows)
        if rows
        else Text.assemble(("no server is connected · ", "quiet"), ("/connect URL", "accent"))
    )
