"""Speculative decoding: by prompt lookup or with an assistant model, and the measured speed-up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core import decoding
from repl.core.errors import UsageError
from repl.core.format import amount, join_facts
from repl.core.jobs import Job
from repl.core.reply import Reply
from repl.core.sanitize import clean_line
from repl.core.values import Choice, RestOfLine
from repl.generation import decode, fast_paths
from repl.generation.fast_paths import FastPath
from repl.hub import catalog
from repl.models.store import ModelInfo
from repl.session.change_settings import apply, change, changed
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import grid


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode of speculative decoding, with figures of the replies that the model in use generated with it.

    `tokens_per_pass` counts forward passes of the model itself, without prefill.
    """

    name: str
    replies: int
    proposed: int
    accepted: int
    tokens_per_pass: float | None
    decode_tps: float | None


@dataclass(frozen=True, slots=True)
class Fast:
    """The fast paths, the figures of each mode, and the speed of replies without one in tokens/s."""

    paths: tuple[FastPath, ...]
    modes: list[Mode]
    plain_tps: float | None


@command("speed", "/fast", "/fast prompt_lookup", see="bench assistant quantize", needs_model=True)
def fast(session: Session, *modes: Annotated[str, Choice(("prompt_lookup", "off"))]) -> object:
    """Make replies faster; without an argument, show the measured speed-up.

    prompt_lookup proposes the tokens that followed the same tokens earlier in the text, and the model checks them
    in one forward pass. It is much faster if a reply repeats its prompt, and pauses while it does not help.
    /assistant ID lets a smaller model propose. /fast off turns both off.
    """
    session.require_local()
    if not modes:
        return _measured(session, session.facts())
    if len(modes) > 1 and "off" in modes:
        raise UsageError("off cannot be combined with a mode", "/fast off")
    if modes[0] == "off":
        apply(session, [(name, "default") for name in decoding.AHEAD])
        return Message("speculative decoding is off · from the next reply on")
    apply(session, [("assistant", "none")])
    return apply(session, [("prompt_lookup", str(decoding.LOOKUP_TOKENS))])


@command(
    "speed",
    "/assistant HuggingFaceTB/SmolLM2-135M",
    "/assistant none",
    see="fast prompt_lookup bench",
    needs_model=True,
)
def assistant(
    session: Session, id: Annotated[str, RestOfLine("a model", catalog.names, Session.model_names)] = ""
) -> object:
    """Let a smaller model propose tokens that the model checks in one pass.

    Both models need the same tokenizer. /assistant none turns it off.
    """
    if id in ("", "none", "default"):
        return change(session, "assistant", id)
    session.facts()
    words = [("assistant", id), ("prompt_lookup", "off")]
    chosen = changed(session.settings, words, parts=("decode",))

    def settle(job: Job[ModelInfo]) -> Message:
        facts = job.result()
        aside = "prompt_lookup unset" if session.settings.decode.prompt_lookup else ""
        apply(session, words)
        size = f"{facts.dtype}, {amount(facts.bytes)}"
        return Message(join_facts(f"assistant {facts.name} ({size})", aside, "from the next reply on"))

    return session.run_on_model(
        lambda emit: decode.drafters.load_assistant(session.store.current(), chosen, emit, session.store.get).facts,
        settle,
    )


def _measured(session: Session, facts: ModelInfo) -> Task[Fast]:
    """Compare the speed of replies of the model in use, with each mode and without."""
    named = {"id": facts.id, "commit": facts.commit, "dtype": facts.dtype, "quantization": facts.quantization}
    turns, chosen = session.conversation.turns.values(), session.settings
    records = {turn.record.timing: turn.record for turn in turns if turn.record and not turn.record.sequences}
    own = [one for one in records.values() if all(getattr(one.model, name) == named[name] for name in named)]
    modes = [_mode(name, [one for one in own if one.drafts and one.drafts.by == name]) for name in decoding.AHEAD]
    plain = _speed([one for one in own if not one.drafts])
    return session.run_on_model(lambda emit: Fast(fast_paths.list_paths(session.store.current(), chosen), modes, plain))


def _mode(name: str, records: Sequence[Reply]) -> Mode:
    found = [one.drafts for one in records if one.drafts]
    passes, made = sum(one.passes for one in found), sum(max(0, one.usage.completion - 1) for one in records)
    return Mode(
        name,
        len(found),
        sum(one.proposed for one in found),
        sum(one.accepted for one in found),
        made / passes if passes else None,
        _speed(records),
    )


def _speed(records: Iterable[Reply]) -> float | None:
    speeds = [one.timing.decode_tps for one in records if one.timing.decode_tps]
    return median(speeds) if speeds else None


@render.register
def _(result: Fast) -> RenderableType:
    brought = {mode.name: _brought(mode, result.plain_tps) for mode in result.modes}
    said = ((path, clean_line(join_facts(path.why, brought.get(path.name, "")))) for path in result.paths)
    return grid(
        "lll", ([Text(path.name, "accent"), "on" if path.on else "off", Text(why, "quiet")] for path, why in said)
    )


def _brought(mode: Mode, plain: float | None) -> str:
    if not mode.replies:
        return ""
    return join_facts(
        f"{mode.tokens_per_pass:.1f} tokens per pass" if mode.tokens_per_pass else "",
        f"{mode.accepted} of {mode.proposed} proposed tokens accepted" if mode.proposed else "",
        f"{mode.decode_tps:.1f} tokens/s" if mode.decode_tps else "",
        f"{plain:.1f} without" if plain else "",
    )
