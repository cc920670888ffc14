"""A reply as a script that generates the same ids with transformers alone."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from rich.text import Text

from repl import models
from repl.analysis import recipe
from repl.analysis.recipe import ModelSource, PromptForm
from repl.commands.registry import command
from repl.core.atomic_write import write
from repl.core.conversation import Turn
from repl.core.errors import ReplError, UsageError
from repl.core.jobs import Job, JobContext
from repl.core.library_types import PreTrainedTokenizerBase
from repl.core.reply import Reply
from repl.core.sanitize import clean, clean_line
from repl.core.settings import Load
from repl.core.values import AnyText
from repl.generation.interface import Models
from repl.hub import builtin
from repl.models.imports import import_libraries
from repl.session.position import ExchangeKind
from repl.session.session import Session, Task
from repl.terminal.highlight import Highlighter
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Recipe:
    """The script of a reply, and the file it was written to, if any."""

    exchange: int
    script: str
    file: str = ""


def write_recipe(store: Models, turn: Turn, forms: list[PromptForm], emit: JobContext) -> Recipe:
    """Write the script of a reply, from its record alone if the tokenizer cannot be read; for the model thread."""
    record = turn.record
    assert record is not None
    tokenizer, folder = None, None
    try:
        tokenizer, folder = open_tokenizer(store, record, emit)
        form = recipe.find_form(forms, record, tokenizer, emit)
    except ReplError as error:
        form = replace(forms[-1], why=f"the tokenizer could not be read ({error.message})")
    return Recipe(turn.exchange, recipe.write_script(turn, find_source(record, folder), form, tokenizer))


def open_tokenizer(store: Models, record: Reply, emit: JobContext) -> tuple[PreTrainedTokenizerBase, Path]:
    """Return the tokenizer of a reply's model and its folder, from memory or from disk."""
    facts = store.facts()
    if facts and (facts.id, facts.commit) == (record.model.id, record.model.commit):
        return store.current().tokenizer, Path(facts.folder)
    known = {spot.name for spot in fields(Load)}
    load = Load(**{name: value for name, value in record.load.items() if name in known})
    import_libraries(emit)
    load = replace(load, revision=record.model.commit or load.revision)
    return models.loader.load_tokenizer_alone(load, emit, store.consents)


def find_source(record: Reply, folder: Path | None) -> ModelSource:
    """Return the source of the model: a local one by its full path, else the repository with its commit."""
    name, file = record.model.id, str(record.load.get("gguf_file") or "")
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return ModelSource(str(path.resolve().parent), "", path.name)
    kind = "AutoModelForCausalLM" if file or folder is None else models.from_files.auto_name(folder)
    if folder is not None and (name == builtin.ID or path.is_dir()):
        return ModelSource(str(folder.resolve()), "", file, kind)
    return ModelSource(name, record.model.commit, file, kind)


@command("reproduce", "/recipe", "/recipe 2 story.py", see="reproduce export")
def recipe_(
    session: Session,
    exchange: Annotated[str, AnyText("the number of an exchange", of_session=ExchangeKind.of_session)] = "",
    file: Annotated[str, AnyText("a file that ends in .py")] = "",
    *,
    force: bool = False,
) -> Task[Recipe]:
    """Show a reply as a transformers script that generates the same ids.

    With a file name, the script is written there: /recipe story.py or /recipe 4 story.py. --force replaces an
    existing file.
    """
    if exchange and not exchange.isdecimal():
        exchange, file = "", exchange
    if file and not file.endswith(".py"):
        raise UsageError(f"{file!r} does not end in .py", "/recipe reply.py")
    asked, record = recipe.recorded_reply(session, int(exchange or 0))
    if server := record.server:
        raise UsageError(f"exchange {asked.exchange} was made by {server}: a script makes replies of a local model")

    def settle(job: Job[Recipe]) -> Recipe:
        made = job.result()
        if not file:
            return made
        path = write(
            file, made.script.encode("utf-8", "backslashreplace"), force, f"/recipe {asked.exchange} {file} --force"
        )
        return replace(made, file=str(path))

    forms = recipe.spellings(session.conversation, asked, record)
    return session.run_on_model(lambda emit: write_recipe(session.store, asked, forms, emit), settle)


@render.register
def _(result: Recipe) -> Text:
    lines = result.script.splitlines()
    if result.file:
        name = clean_line(result.file)
        return Text.assemble((name, "accent"), (f" · exchange {result.exchange} in {len(lines)} lines", "quiet"))
    colours = Highlighter("python")
    drawn = [Text.assemble(*((clean(part.text), part.style or "") for part in colours.line(line))) for line in lines]
    return Text("\n").join(drawn)
