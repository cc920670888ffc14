"""/trust: the remote code of a model, and consent to run it."""

from dataclasses import dataclass, replace
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.format import join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.core.values import Choice
from repl.hub import consent
from repl.models.memory.survey import survey
from repl.session.results import Message
from repl.session.session import CONSENT, Session
from repl.terminal.screen import render


@dataclass(frozen=True, slots=True)
class Trust:
    """The remote code of a model: its files with their sizes in bytes, their commit, and the page to read them."""

    model: str
    commit: str
    files: dict[str, int]
    where: str
    allowed: bool


@command("models", "/trust", "/trust yes", see="trust_remote_code allow_pickle")
def trust_(session: Session, answer: Annotated[str, Choice(("show", "yes", "always", "no"))] = "show") -> object:
    """Show a model's remote code, and allow it to run.

    It is about the model that was refused last, else the loaded one. `/trust yes` allows the code of this commit in
    this session, `/trust always` in later sessions too, `/trust no` withdraws the consent. A new commit needs a new
    consent.
    """
    wanted, found = session.untrusted or (session.pending(), None)
    model, consents = wanted.load.model, session.store.consents
    if answer == "no":
        session.forget_refusal()
        taken = consents.withdraw(model)
        there = any(each.load.model == model and each.load.trust_remote_code for each in session.store.residents())
        stays = f"it stays loaded: /unload {model} frees it" if there else ""
        return Message(join_facts(f"{model}: remote code disabled", stays if taken else "it was not allowed before"))
    if answer == "show":
        allowed = consents.allows(model) and found is None

        def list_code(emit: JobContext) -> Trust:
            code = survey(replace(wanted.load, trust_remote_code=True), emit, session.store.offline).code
            page = f"https://huggingface.co/{model}/tree/{code.commit}" if code and code.commit else model
            return Trust(model, code.commit if code else "", code.files if code else {}, page, allowed)

        return session.run_on_model(list_code)
    if found is None:
        raise UsageError("no model needs your consent", "/model ID")
    consents.give(model, consent.mark(found), lasting=answer == "always")
    session.forget_refusal()
    return session.reload(wanted.put("trust_remote_code", True, CONSENT))


@render.register
def _(result: Trust) -> RenderableType:
    name = clean_line(result.model)
    if not result.files:
        return Text(f"{name} has no remote code", "quiet")
    width = max(map(len, result.files))
    files = "\n".join(f"  {clean_line(file):{width}}  {size:>9,} bytes" for file, size in result.files.items())
    at = f" at commit {result.commit}" if result.commit else ""
    if result.allowed:
        return Text(f"{name}{at} runs this code, as you allowed:\n{files}", "quiet")
    return Text.assemble(
        (name, "accent"),
        f"{at} would run this code, with your rights here:\n{files}\nread it at {clean_line(result.where)}\n",
        ("/trust yes", "accent"),
        (" allows this commit in this session · ", "quiet"),
        ("/trust always", "accent"),
        (" in later ones too", "quiet"),
    )
