"""The cache of models: download one, delete one."""

import time
from dataclasses import dataclass
from typing import Annotated

from rich.console import RenderableType

from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.format import amount, join_facts
from repl.core.jobs import Job, JobContext
from repl.core.values import AnyText
from repl.hub import builtin, catalog, locate
from repl.hub.catalog import Freed
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.screen import render


@command("models", "/download gpt2", "/download Qwen/Qwen3-0.6B", see="plan models model")
def download(session: Session, id: Annotated[str, AnyText("a model", catalog.names, Session.model_names)]) -> Task[str]:
    """Download a model into the cache without loading it."""
    want, began = catalog.parse_request(id), time.monotonic()

    def fetch(emit: JobContext) -> str:
        found = locate.locate(want, emit, session.store.offline)
        size = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
        seconds = time.monotonic() - began
        return join_facts(f"{id} is in the cache, {amount(size)}", f"{seconds:.1f} s", f"/model {id} loads it")

    return session.run_io(fetch, lambda job: Message(job.result()))


@dataclass(frozen=True, slots=True)
class Erasable:
    """What would be deleted; a 1 at the next prompt does it."""

    freed: Freed

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Return the line behind the number, with its effect."""
        return [(f"/delete {self.freed.id} --yes", "deletes it")]


@command("models", "/delete gpt2", "/delete gpt2 --yes", see="models unload")
def delete(
    session: Session,
    id: Annotated[str, AnyText("a model in the cache", suggest=catalog.names.here)],
    *,
    yes: bool = False,
) -> Task[Freed]:
    """Delete a model from the cache; without --yes, show what that frees."""
    if id == builtin.ID:
        raise UsageError("the built-in model is not in the cache and cannot be deleted")
    if any(resident.facts.id == id for resident in session.store.residents()):
        raise UsageError(f"{id} is in memory and uses its files", f"/unload {id}")

    def settle(job: Job[Freed]) -> Message | Erasable:
        freed = job.result()
        if yes:
            return Message(f"{id} deleted, {amount(freed.bytes)} free again")
        return Erasable(freed)

    return session.run_io(lambda emit: catalog.erase(id, emit, yes), settle)


@render.register
def _(result: Erasable) -> RenderableType:
    freed = result.freed
    several = f", {freed.revisions} revisions" if freed.revisions > 1 else ""
    said = f"{freed.id} takes {amount(freed.bytes)}{several} in {freed.folder}"
    return render(Message(said, tuple(result.choices)))
