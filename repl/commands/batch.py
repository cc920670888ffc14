"""Batch: the prompts of a file answered, each result a line of another file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

from repl.analysis.batch import Batched, LocalBatches, Put, ServedPrompts, run_batch
from repl.analysis.prompt_file import STDIN, Prompt, PromptFile, check_files
from repl.commands.registry import command
from repl.core import texts
from repl.core.errors import Failed
from repl.core.jobs import Job, JobContext
from repl.core.values import AnyText, Integer
from repl.session.session import Session, Task

MAX_PARALLEL = 64  # requests that a server gets at once


@command(
    "compare",
    "/batch prompts.jsonl",
    "/batch prompts.jsonl results.jsonl",
    see="compare sweep choose",
    needs_model=True,
)
def batch(
    session: Session,
    prompts: Annotated[str, AnyText("a file of prompts")],
    results: Annotated[str, AnyText("a file for the results")] = "",
    *,
    template: Annotated[str, AnyText("a file")] = "",
    parallel: Annotated[int, Integer(1, MAX_PARALLEL)] = 8,
    exact: bool = False,
) -> Task[Batched]:
    """Answer every prompt of a file, many at once, into another file.

    A line is an object with prompt or messages, an id that is passed through, and any settings over those that stand:
    {"id": 7, "prompt": "Say hello", "temperature": 0.7}. A .csv or .tsv file has these as columns, each line of a .txt
    file is a prompt. With --template FILE the prompt is the text of that file with {name} replaced by the line's value.
    Each result is a line as soon as it is there; without a file for them they go to prompts.results.jsonl. Ctrl-C keeps
    what is done, and the same line goes on. A line that fails has an error in its result; the next run tries it again.
    --exact answers one prompt after another: together, two tokens that are nearly tied may fall the other way. With a
    server --parallel 8 requests run at once. Nothing of it joins the conversation.
    """
    if session.remote is None:
        session.facts()
    out = results or f"{'prompts' if prompts == STDIN else Path(prompts).with_suffix('')}.results.jsonl"
    check_files(prompts, out)
    filled = texts.read_text(template) if template else ""
    file = PromptFile(prompts, session.settings, session.base(), filled, session.conversation.system)
    remote = session.remote

    def answer(emit: JobContext, pending: Iterator[Prompt], put: Put) -> None:
        if remote is not None:
            ServedPrompts(remote, parallel, emit, put).answer(pending)
        else:
            LocalBatches(session.store.current(), emit, put, rows=int(exact)).answer(pending)

    def settle(job: Job[Batched]) -> Batched:
        found = job.result()
        if found.failed:
            raise Failed(found.text)
        return found

    run = session.run_on_model if remote is None else session.run_network
    return run(lambda emit: run_batch(file, out, partial(answer, emit), emit), settle)
