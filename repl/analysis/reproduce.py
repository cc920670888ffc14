"""A recorded reply generated again: its ids, where they differ from the record, and what has changed since."""

from collections.abc import Sequence
from dataclasses import dataclass

from repl import generation
from repl.analysis import recipe
from repl.core import decoding
from repl.core.errors import library_errors
from repl.core.events import Progress
from repl.core.format import device
from repl.core.jobs import JobContext
from repl.core.library_types import Tensor
from repl.core.reply import Environment, ModelRecord, Reply
from repl.generation import decode, measure
from repl.generation.interface import Model

TOUCHED = "open in /python"  # where it may have been changed


@dataclass(frozen=True, slots=True)
class ForkToken:
    """A token at the first difference, with its logprob there in nats; `id` is None at the end of the reply."""

    id: int | None
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A condition that changed since the reply was recorded."""

    name: str
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class Fork:
    """The first different tokens of two runs, and the distance of their logprobs in nats; None if one run ended."""

    then: ForkToken
    now: ForkToken
    margin: float | None


def generate_again(resident: Model, record: Reply, emit: JobContext) -> list[int]:
    """Call `generate` with the recorded arguments and an empty KV cache; raises `Failed` or `Cancelled`."""
    import torch

    model, (prompt, made) = resident.model, recipe.last_call(record)
    chosen = decode.loop.Arguments.of_values(model, recipe.generate_arguments(record))

    def tell(ids: Tensor, _: object) -> bool:
        emit(Progress("generating it again", ids.shape[1] - len(prompt), len(made), "tokens"))
        return False

    if record.seed is not None:
        torch.manual_seed(record.seed)
    ids = measure.forward.input_ids(model, prompt)
    mask = decode.format_mask.recorded_mask(resident, record, prompt, chosen.config)
    own = [*decode.phrase_ban.recorded_ban(record), *decode.thought.recorded_switch(record, prompt, chosen.config)]
    with library_errors("the second run stopped"), measure.forward.cancellable_forward(model, emit.raise_if_cancelled):
        rows = model.generate(
            input_ids=ids,
            attention_mask=ids.new_ones(ids.shape),
            generation_config=chosen.config,
            logits_processor=[*([] if mask is None else [mask]), *own],
            stopping_criteria=[tell],
            tokenizer=resident.tokenizer,
            **chosen.off,
        )
    new: list[int] = rows[recipe.sequence_place(record), len(prompt) :].tolist()
    ends = [place for place, token in enumerate(new) if token in decoding.end_ids(chosen.config)]
    return new[: ends[0] + 1] if ends else new


def find_fork(resident: Model, before: list[int], then: Sequence[int], now: Sequence[int], emit: JobContext) -> Fork:
    """Compare the first ids of two continuations of the same text in the model's own distribution."""
    logs = measure.scoring.next_logits(resident, before, emit).log_softmax(-1)
    one, other = (
        ForkToken(ids[0], str(resident.tokenizer.decode([ids[0]])), float(logs[ids[0]]))
        if ids
        else ForkToken(None, "", None)
        for ids in (then, now)
    )
    return Fork(one, other, abs(float(logs[then[0]] - logs[now[0]])) if then and now else None)


def list_changes(record: Reply, resident: Model) -> list[Changed]:
    """Return what differs between then and now: library versions, dtype, device, quantization, attention, threads."""
    facts = resident.facts
    then = record.versions | _conditions(record.model, record.environment)
    places, packed = dict(facts.device_map), resident.load.quantize
    model = ModelRecord(dtype=facts.dtype, device_map=places, quantization=packed, touched=facts.touched)
    now = generation.engine.versions() | _conditions(model, generation.engine.describe_environment(facts))
    both = [name for name in then if name in now and (then[name] != now[name] or now[name] == TOUCHED)]
    return [Changed(name, then[name], now[name]) for name in both]


def _conditions(model: ModelRecord, environment: Environment) -> dict[str, str]:
    named = {
        "dtype": model.dtype,
        "device": device(model.device_map or {"": ""}),
        "quantize": model.quantization,
        "attention": environment.attention,
        "threads": environment.threads,
        "the model": TOUCHED if model.touched else "unchanged",
        **{f"device {place}": name for place, name in environment.devices.items()},
    }
    return {name: str(value) for name, value in named.items() if value}
