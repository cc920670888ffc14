"""Models: load, reload and unload one, and describe one."""

from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import RenderableType

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import amount, count, device, format_map, join_facts
from repl.core.jobs import Job
from repl.core.values import AnyText, NameValue
from repl.hub import catalog
from repl.hub.catalog import ModelCard
from repl.hub.weight_headers import STORED
from repl.models.store import ModelInfo
from repl.session.change_settings import changed, load
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import facts as facts_table

MAX_FILES_SHOWN = 10  # of a model on the Hub


def known_models(session: Session) -> list[str]:
    """Return the models to complete: those of the connected server, else those that can be loaded."""
    remote = session.remote
    return [offer.id for offer in remote.listing.offers] if remote else session.model_names()


def models_in_memory(session: Session) -> list[str]:
    """Return the models in memory."""
    return [each.facts.id for each in session.store.residents()]


@command("models", "/model gpt2", "/model builtin dtype=bfloat16", see="models plan info")
def model(
    session: Session,
    id: Annotated[str, AnyText("a model", suggest=catalog.names, of_session=known_models)] = "",
    *changes: NameValue,
) -> object:
    """Load a model (Hub id, folder, builtin), or choose a model of the server.

    An id may have a revision or a file: ID@REVISION, ID:FILE.gguf. Load settings may follow it. Without an id, describe
    the loaded model.
    """
    if session.remote is not None:
        return session.remote.choose(id) if id else session.remote.served()
    return load(session, [*settings.address(id), *changes]) if id else info(session)


@command("models", "/model! gpt2", "/model! gpt2 dtype=float32", see="model plan memory", name="model!")
def model_all_the_same(
    session: Session,
    id: Annotated[str, AnyText("a model", catalog.names, Session.model_names)],
    *changes: NameValue,
) -> object:
    """Load a model even if it does not seem to fit in memory."""
    given = [*settings.address(id), *changes]
    session.store.allowed.add(changed(session.pending(), given).load)
    return load(session, given)


@command("models", "/reload", "/model builtin", see="model unload")
def reload(session: Session) -> Task[ModelInfo]:
    """Load the current model again from its files."""
    return session.reload()


@command("models", "/unload", "/unload gpt2", see="reload delete memory", needs_model=True)
def unload(
    session: Session, id: Annotated[str, AnyText("a model in memory", of_session=models_in_memory)] = ""
) -> Task[list[ModelInfo]]:
    """Free the memory of a model; the conversation is kept."""
    store = session.store

    def settle(job: Job[list[ModelInfo]]) -> Message:
        gone = job.result()
        names, size = ", ".join(dict.fromkeys(facts.name for facts in gone)), amount(sum(facts.bytes for facts in gone))
        others = [f"/model {each.facts.id} is still in memory" for each in store.residents()[:1]]
        ways = "" if store.facts() else join_facts(*others, "/model ID loads another, /reload the same")
        return Message(join_facts(f"{names} unloaded, {size}", ways))

    return session.run_on_model(lambda emit: store.drop(id), settle)


@dataclass(frozen=True, slots=True)
class Info:
    """The loaded model, with the load settings that were asked for."""

    facts: ModelInfo
    asked: dict[str, Any]


@command("models", "/info", "/info gpt2", see="arch plan memory", needs_model=True)
def info(session: Session, id: Annotated[str, AnyText("a model", catalog.names, Session.model_names)] = "") -> object:
    """Describe the loaded model, or show the model card of another one."""
    if session.remote is not None and not id:
        return session.remote.served()
    loaded = next((each for each in session.store.residents() if id in (each.facts.id, each.facts.name)), None)
    if id and loaded is None:
        return session.run_io(lambda emit: catalog.card(catalog.parse_request(id), emit, session.store.offline))
    facts, chosen = (loaded.facts, loaded.load) if loaded else (session.facts(), session.settings.load)
    return Info(facts, {name: getattr(chosen, name) for name in chosen.__slots__})


@render.register
def _(result: Info) -> RenderableType:
    facts, asked = result.facts, result.asked
    model = settings.full_name(facts.id)
    stored = ", ".join(f"{count(number)} {STORED.get(name, name)}" for name, number in facts.stored.items())
    left = f", {facts.left} not quantized" if facts.left else ""
    names, others = ", ".join(facts.unexpected[:3]), len(facts.unexpected) - 3
    more = f" and {others} more" if others > 0 else ""
    rows = {
        "model": model + (f" at {facts.commit[:12]}" if facts.commit else ""),
        "folder": facts.folder,
        "architecture": f"{facts.architecture}, {facts.layers} layers, vocabulary {facts.vocabulary:,}",
        "parameters": f"{facts.parameters:,} ({count(facts.parameters)}), stored as {stored}",
        "dtype": f"{facts.dtype} (asked for {asked['dtype']})",
        "quantization": facts.quantization
        + (f" ({facts.packed} linear layers quantized{left})" if facts.packed else ""),
        "adapter": facts.adapter,
        "memory": amount(facts.bytes),
        "device": f"{device(facts.device_map)} (asked for {asked['device']})",
        **({"device map": ", ".join(format_map(facts.device_map))} if len(facts.device_map) > 1 else {}),
        "attention": f"{facts.attention or 'none'} (asked for {asked['attention']})",
        "context": f"{facts.context:,} tokens" if facts.context else "no fixed limit",
        "chat template": "yes" if facts.chats else "none",
        "python": "was open in /python, where it may have been changed · /reload loads it again"
        if facts.touched
        else "",
        "unused tensors": f"{names}{more} are in the files but not in the model" if names else "",
        "generation config": ", ".join(f"{key} {value}" for key, value in facts.base.model.items()) or "nothing set",
    }
    return facts_table((name, value) for name, value in rows.items() if value)


@render.register
def _(result: ModelCard) -> RenderableType:
    size = sum(size for _, size in result.files)
    largest = sorted(result.files, key=lambda file: (-file[1], file[0]))[:MAX_FILES_SHOWN]
    there = "in the cache" if result.cached else "to be downloaded"
    rows = {
        "model": join_facts(f"{result.id} at {result.commit[:12]}", there),
        "architecture": result.architecture,
        "parameters": join_facts(count(result.parameters) if result.parameters else "", result.dtype),
        "task": result.task,
        "licence": result.licence,
        "gated": "yes: accept its terms on its page, then hf auth login" if result.gated else "",
        "downloads": f"{result.downloads:,} in the last month" if result.downloads else "",
        "languages": ", ".join(result.languages),
        "base model": ", ".join(result.base_models),
        "files": f"{len(result.files)}, {amount(size)} in total",
        "": "\n".join(f"{amount(size):>9}  {name}" for name, size in largest),
        "source": "the cache; the Hub did not answer" if result.source == "cache" else "",
    }
    return facts_table((name, value) for name, value in rows.items() if value)
