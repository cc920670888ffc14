"""Sweep: one prompt under a grid of settings, all rows together."""

import json
from dataclasses import dataclass
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.analysis import adopt
from repl.analysis.sweep import EXAMPLE, Line, Run, Sweep, plan
from repl.commands.lineup import Drawing, short
from repl.commands.registry import command
from repl.core import settings
from repl.core.atomic_write import write
from repl.core.errors import UsageError
from repl.core.format import joined
from repl.core.jobs import Job
from repl.core.sanitize import clean
from repl.core.values import Integer, RestOfLine
from repl.generation.decode.batch import Made
from repl.session.position import question, split_prompt
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.screen import view

SAVE = "/sweep save FILE.jsonl"
USUAL = ("temperature=0,0.7,1.2", "top_p=0.9,1", "top_k=0,50", "repetition_penalty=1,1.1", "show", "save")


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of a sweep with its whole text."""

    line: Line


@command("compare", name="sweep", waits=True)
def sweep(
    session: Session,
    text: Annotated[str, RestOfLine(suggest=lambda: USUAL)] = "",
    *,
    exact: bool = False,
    force: bool = False,
) -> object:
    """Answer one prompt under a grid of settings.

    As in /sweep temperature=0,0.7,1.2 top_p=0.9,1 n=2 [seed=1] [-- PROMPT].
    Each combination is made n times, with the seeds from seed on; temperature=0 is greedy. Without a prompt the last
    message is answered. All rows are made together, from one reading of the prompt, each with its own processors and
    random numbers; --exact makes them one after another. Ctrl-C keeps what is done. /sweep show 5 shows a row,
    /pick 5 takes it as the answer with its settings, /sweep save FILE.jsonl [--force] keeps all.
    """
    words, prompt = split_prompt(text)
    flags = {word for word in words if word in ("--exact", "--force")}
    words = [word for word in words if word not in flags]
    if words[:1] == ["show"] and not prompt:
        return Shown(_line(_last(session), words[1:]))
    if words[:1] == ["save"] and not prompt:
        return _saved(_last(session), text.partition("save")[2].replace("--force", ""), force or "--force" in flags)
    if not words and not prompt:
        return _last(session)
    return _begin(session, words, prompt, exact or "--exact" in flags)


def _begin(session: Session, words: list[str], prompt: str, exact: bool) -> Task[tuple[Sweep, dict[int, Made]]]:
    session.facts()
    chosen = plan(session.settings, session.base(), words)
    asked = question(session, prompt, f"{EXAMPLE} -- PROMPT")

    def settle(job: Job[tuple[Sweep, dict[int, Made]]]) -> Sweep:
        found, made = job.result()
        if made:
            adopt.offer(session, asked, dict(enumerate(chosen.cells, 1)), made)
        session.keep_sweep(found)
        return found

    return session.run_on_model(
        lambda emit: Run(session.store.current(), chosen, asked.request, emit, exact).sweep(), settle
    )


def _last(session: Session) -> Sweep:
    if not isinstance(session.last_sweep, Sweep):
        raise UsageError("there is no sweep to show", EXAMPLE)
    return session.last_sweep


def _line(found: Sweep, words: list[str]) -> Line:
    number = Integer(1).read(" ".join(words) or "nothing")
    lines = {line.number: line for line in found.lines}
    if number not in lines:
        raise UsageError(f"there is no row {number} in the last sweep, it has {len(lines)}", "/sweep")
    return lines[number]


def _saved(found: Sweep, file: str, force: bool) -> Message:
    file = file.strip().strip("\"'")
    if not file.endswith(".jsonl"):
        raise UsageError(f"{file!r} does not end in .jsonl", SAVE)
    rows = [_record(found, line) for line in found.lines]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = write(file, content.encode("utf-8", "replace"), force, f"/sweep save {file} --force")
    return Message(f"{len(rows)} rows written to {path}")


def _record(found: Sweep, line: Line) -> dict[str, object]:
    own = {name: getattr(line, name) for name in Line.__slots__ if name not in ("text", "token_ids", "logprobs")}
    ids = {"prompt_ids": found.prompt_ids, "token_ids": line.token_ids, "logprobs": line.logprobs}
    return {**own, "text": line.text, **ids}


@view.register
def _(result: Sweep) -> RenderableType:
    return Drawing(result)


@view.register
def _(result: Shown) -> RenderableType:
    line = result.line
    chosen = joined(
        f"row {line.number}",
        *(f"{short(name)} {settings.show(name, value)}" for name, value in line.settings.items()),
        f"seed {line.seed}" if line.seed is not None else "greedy",
        f"{line.length} tokens",
    )
    return Text.assemble((chosen, "quiet"), "\n", clean(line.text))


@view.register
def _(result: adopt.Taken) -> RenderableType:
    return Text.assemble(clean(result.text), (f"\n{result.now} · from the next reply on", "quiet"))
