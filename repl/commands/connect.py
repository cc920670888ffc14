"""Servers: connect one that answers instead of the local model, and disconnect it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.format import join_facts
from repl.core.jobs import Job
from repl.core.sanitize import clean_line
from repl.core.settings import short_id
from repl.core.values import AnyText
from repl.models.store import ModelInfo
from repl.remote.dialects import UNKNOWN
from repl.remote.engine import Connected, Remote, Served, reach
from repl.session import servers
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.screen import render

MAX_MODELS = 20  # models listed at once


@dataclass(frozen=True, slots=True)
class Known:
    """The connected server, if there is one, and the URLs of those in the config file, by name."""

    server: Served | None
    engines: Mapping[str, str]


def server_urls(session: Session) -> dict[str, str]:
    """Return the URLs of the servers in the config file, by name."""
    return {name: table["url"] for name, table in session.engines.items()}


@command(
    "models",
    "/connect http://127.0.0.1:8000",
    "/connect https://router.huggingface.co/v1 --model Qwen/Qwen3-8B",
    see="disconnect models",
)
def connect(
    session: Session,
    url: Annotated[str, AnyText("a URL, or a name from the config file", of_session=server_urls)] = "",
    *,
    key_env: str = "",
    model: str = "",
    insecure: bool = False,
) -> Known | Task[Remote]:
    """Use a model on a server that speaks the OpenAI protocol.

    /connect http://127.0.0.1:8000 is enough for a server on this machine. URL may be the name of a table
    [engines.NAME] in the config file, with url, key_env and model. --key-env names the environment variable with
    the key, which is sent to that server only and never stored. --model chooses one of several served models.
    --insecure allows http to another machine. The local model stays in memory.
    """
    if not url:
        server = session.remote.served() if session.remote else None
        return Known(server, server_urls(session))
    where = servers.server_address(session, url, key_env, insecure)
    chosen = model or session.engines.get(url, {}).get("model", "")
    if insecure:
        session.trust_host(where.host)

    def settle(job: Job[Remote]) -> Served:
        remote = job.result()
        session.connect(remote)
        return remote.served(Connected)

    return session.run_network(lambda emit: reach(where, chosen, emit), settle)


@command("models", "/disconnect", "/connect http://127.0.0.1:8000", see="connect")
def disconnect(session: Session) -> Message | Task[ModelInfo]:
    """Return to the local model."""
    if session.remote is None:
        raise UsageError("no server is connected", "/connect URL")
    host = session.remote.host
    session.connect(None)
    facts = session.store.facts()
    if facts is None and session.loading is None:
        session.notify(f"disconnected from {host}")
        return session.load(session.settings)
    name = facts.name if facts else session.pending().load.model
    return Message(join_facts(f"disconnected from {host}", f"{name} answers"))


@render.register
def _(result: Served) -> RenderableType:
    host = result.url.partition("://")[2].partition("/")[0]
    count = len(result.models)
    offers = f"{count} models · /model NAME chooses {'another' if result.model else 'one'}" if count > 1 else ""
    unlisted = "" if not result.model or result.model in result.models or not count else "not among those it lists"
    limit = f"context {result.context}" if result.context else ""
    kind = result.kind if result.kind != UNKNOWN.name else ""
    rest = join_facts(
        host if result.model else "", kind, limit, unlisted or offers, "/disconnect returns to the local model"
    )
    return Text.assemble((clean_line(short_id(result.model) or host), "accent"), (" · " + clean_line(rest), "quiet"))


@render.register
def _(result: Known) -> RenderableType:
    parts: list[RenderableType] = []
    if result.server is not None:
        names = result.server.models if len(result.server.models) > 1 else []
        parts += [render(result.server), *(Text(f"  {clean_line(name)}", "quiet") for name in names[:MAX_MODELS])]
        if len(names) > MAX_MODELS:
            parts.append(Text(f"  and {len(names) - MAX_MODELS} more: /model completes them", "quiet"))
    for name, url in result.engines.items():
        parts.append(Text.assemble((clean_line(name), "accent"), f"  {clean_line(url)}"))
    return Group(*parts) if parts else Text.assemble(("no server is connected · ", "quiet"), ("/connect URL", "accent"))
