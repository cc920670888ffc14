"""Drives the program in-process as its shell does, but without a screen: lines in, events and results out."""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from repl import commands
from repl.commands import registry
from repl.core import settings
from repl.core.errors import UsageError
from repl.core.events import Event, ReplyStarted, Token
from repl.core.jobs import Worker
from repl.core.parts import PartsReader
from repl.core.reply import Reply
from repl.core.settings import Settings
from repl.generation.interface import Runtime
from repl.models.store import Store
from repl.session.session import Session, Task
from repl.terminal.screen import THEME, render

assert commands  # importing them registers them
PATIENCE = 120.0  # seconds after which a job hangs


def session_for(folder: Path | str, **words: object) -> Session:
    """Return a session with the model of a folder loaded and settings read from words; `close` it."""
    chosen = Settings()
    for name, word in {"model": folder, "dtype": "float32", **words}.items():
        chosen = chosen.put(name, settings.read_setting(name, str(word)), "command line")
    session = Session(chosen, Store(Runtime, offline=True), Worker())
    finish(session.load(chosen))
    return session


@contextmanager
def opened(folder: Path | str, **words: object) -> Iterator[Session]:
    """`session_for`, closed at the end."""
    session = session_for(folder, **words)
    try:
        yield session
    finally:
        session.close()


def in_parts(*tokens: Token) -> list[Event]:
    """Return tokens as those of a reply in a chat."""
    reader = PartsReader()
    read: list[Event] = [replace(token, pieces=reader.feed(token.text)) for token in tokens]
    return [ReplyStarted(), *read, Token("", pieces=reader.end())]


def finish(task: Task[Any], heard: Callable[[Event], object] = lambda event: None) -> Any:
    """Wait for a task, telling its events, and return its result; raises what the job raised."""
    deadline = time.monotonic() + PATIENCE
    while not task.job.finished():
        assert time.monotonic() < deadline, "the job hangs"
        for event in task.job.poll(0.05):
            heard(event)
    return task.settle()


def run(session: Session, *lines: str, heard: Callable[[Event], object] = lambda event: None) -> Any:
    """Run lines to their end, and return the result of the last one; raises what a line raises."""
    result = None
    for line in lines:
        parsed = registry.parse_line(line)
        if session.loading and parsed.command.needs_model:
            finish(session.loading)
        result = parsed.run(session)
        if isinstance(result, Task):
            result = finish(result, heard)
    return result


def ask(session: Session, text: str, heard: Callable[[Event], object] = lambda event: None) -> Reply:
    """Send a message, whatever it begins with."""
    done = run(session, "/" + text if text.startswith("/") else text, heard=heard)
    assert isinstance(done, Reply)
    return done


def listen(session: Session, text: str) -> tuple[Reply, list[Event]]:
    """Send a message and return the reply with the events before it."""
    events: list[Event] = []
    return ask(session, text, events.append), events


def ask_until(session: Session, text: str, enough: Callable[[Event], bool]) -> Reply:
    """Send a message and cancel the reply at the first event that is `enough`."""
    task = registry.parse_line(text).run(session)
    done = finish(task, lambda event: task.job.cancel() if enough(event) else None)
    assert isinstance(done, Reply)
    return done


def choose(session: Session, values: Mapping[str, object]) -> None:
    """Put every decoding setting back to its default, then type `/name value` for each of some."""
    run(session, "/reset", *(f"/{name} {word(value)}" for name, value in values.items()))


def refused(session: Session, line: str, said: str) -> None:
    """Run a line that is wrong: it is told in one sentence, with what to type instead."""
    with pytest.raises(UsageError, match=said) as caught:
        run(session, line)
    assert caught.value.hints


def drawn(result: object, width: int = 100, encoding: str = "utf-8") -> str:
    """Return what a result looks like in a window of so many columns; characters must fit the encoding."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    Console(width=width, file=file, theme=THEME, highlight=False).print(render(result))
    file.seek(0)
    return file.read()


def word(value: object) -> str:
    """Return what a user types for a value."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value) if isinstance(value, list) else str(value)


def bare(folder: Path | str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load model and tokenizer with nothing but the library."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def generated(model: Any, tokenizer: Any, prompt: list[int], values: Mapping[str, object]) -> tuple[list[Any], Any]:
    """Call the library's `generate` with settings under its own names; returns the new ids of each row, and scores."""
    import torch

    given = {"stop_strings" if name == "stop" else name: value for name, value in values.items() if name != "seed"}
    beams = given.get("num_beams", 1) != 1
    if "seed" in values:
        torch.manual_seed(values["seed"])
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        tokenizer=tokenizer,
        return_dict_in_generate=True,
        output_scores=beams,
        **given,
    )
    rows = output.sequences[:, len(prompt) :].tolist()
    return [trimmed(row, model) for row in rows], output.sequences_scores.tolist() if beams else [None] * len(rows)


def trimmed(row: list[int], model: Any) -> list[int]:
    """Cut what follows the end of a sequence: padding up to the longest of its batch."""
    end = model.generation_config.eos_token_id
    return row[: row.index(end) + 1] if end in row else row
