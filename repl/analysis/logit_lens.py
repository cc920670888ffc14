"""What every layer of a model would say: its hidden state read by whatever the model reads its last one with."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from repl.core.errors import Failed, UsageError
from repl.core.events import Progress
from repl.core.jobs import JobContext
from repl.core.library_types import ModelOutput, Module, PreTrainedModel, Tensor
from repl.generation.interface import Model
from repl.generation.measure import scoring
from repl.generation.measure.forward import cancellable_forward, decoder_blocks, input_ids
from repl.models import reference
from repl.models.store import ModelInfo

MAX_RELATIVE_GAP = 1e-4  # of the largest logit: how far two ways to the same number may lie apart in float32


def layer_logits(resident: Model, ids: Sequence[int], emit: JobContext) -> Tensor:
    """Read every layer's hidden state behind the last of `ids` as the model reads that of its last layer.

    Returns float32 logits of shape (layers + 1, vocab), those of the embedding first; the last row is the model's own.
    Nothing about the model is assumed: its own code runs from the last layer on, with the hidden states of all layers
    in place of that layer's (norm, projection, head, scales and soft caps are what they are). That this is right is
    seen from the last layer, which must come to the model's own logits. Raises `UsageError`, `Failed` or `NoMemory`.
    """
    facts = resident.facts
    if facts.context and len(ids) > facts.context:
        raise UsageError(f"the text has {len(ids)} tokens; {facts.id}'s context is {facts.context}")
    with scoring.reading_errors(resident, emit, "the layers cannot be read"):
        return _read(resident.model, facts, list(ids), emit)


def _read(model: PreTrainedModel, facts: ModelInfo, ids: list[int], emit: JobContext) -> Tensor:
    blocks = decoder_blocks(model)
    if not blocks:
        raise Failed(f"{facts.architecture} has no list of decoder layers")
    given = input_ids(model, ids)
    with torch.no_grad(), cancellable_forward(model, emit.raise_if_cancelled):
        fits = scoring.reading_way(model, given) != "none"
        with _seen(blocks, emit) as seen:
            own = _own(model, given, facts)
        states = _states(seen, len(blocks), len(ids), facts)
        if not (fits or reference.same_logits(own, reference.reference_logits(model, given), model.dtype)):
            raise _unsupported(facts, "the logits of a whole text differ from those of a reply")
        with _instead(blocks[-1], states):
            logits = _last(model, given[:, -1:].repeat(len(states), 1), len(ids) - 1)
    if not reference.same_logits(logits[-1], own, model.dtype, MAX_RELATIVE_GAP):
        raise _unsupported(
            facts, "its last layer's hidden state, read like the others, does not give the model's logits"
        )
    logits[-1] = own
    return logits


def _unsupported(facts: ModelInfo, why: str) -> Failed:
    return Failed(f"the logit lens does not support {facts.architecture}: {why}")


def _own(model: PreTrainedModel, ids: Tensor, facts: ModelInfo) -> Tensor:
    try:
        return _last(model, ids)[0]
    except (TypeError, ValueError) as error:  # kosmos-2
        raise _unsupported(facts, "it reads text in generate() only") from error


def _last(model: PreTrainedModel, ids: Tensor, start: int = 0) -> Tensor:
    """Return the float32 logits behind the last token of each row; the cache is left out."""
    known = inspect.signature(model.forward).parameters
    less = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    given = {"attention_mask": ids.new_ones(ids.shape), "use_cache": False, **scoring.place_ids(model, start, ids[:1])}
    return model(input_ids=ids, **given, **less).logits[:, -1].float()


@contextmanager
def _seen(blocks: list[Module], emit: JobContext) -> Iterator[list[Tensor]]:
    """Collect what goes into the first block, and then what comes out of each."""
    seen: list[Tensor] = []

    def first(_: Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else named.get("hidden_states"))

    def then(_: Module, __: object, output: ModelOutput) -> None:
        seen.append(_hidden(output))
        emit(Progress("reading layer by layer", len(seen) - 1, len(blocks), "layers"))

    with ExitStack() as hooks:
        _hook(hooks, blocks[0].register_forward_pre_hook(first, with_kwargs=True))
        for block in blocks:
            _hook(hooks, block.register_forward_hook(then))
        yield seen


def _hook(hooks: ExitStack, handle: Any) -> None:
    hooks.callback(handle.remove)


def _hidden(output: ModelOutput) -> Tensor | None:
    """Return the hidden states among what a block gives: it, or the first of it; None of several streams (reformer)."""
    if isinstance(output, tuple) and type(output) is not tuple:  # a named one
        return None
    return output[0] if isinstance(output, tuple | list) else output


def _states(seen: list[Tensor], blocks: int, tokens: int, facts: ModelInfo) -> Tensor:
    """Return the hidden states of the last token, shape (layers + 1, 1, width); raises `Failed` for another build."""
    shapes = {tuple(state.shape[:-1]) if isinstance(state, torch.Tensor) else None for state in seen}
    if len(seen) != blocks + 1:
        raise _unsupported(facts, f"not every one of its {blocks} layers runs once per token")
    if shapes != {(1, tokens)}:
        raise _unsupported(facts, "its layers do not pass on one vector for each token")
    last = seen[-1]
    return torch.stack([state[0, -1:].to(last) for state in seen])


@contextmanager
def _instead(block: Module, states: Tensor) -> Iterator[None]:
    """Let a block give other hidden states than its own."""

    def change(_: object, __: object, output: ModelOutput) -> ModelOutput:
        other = states.to(_hidden(output))
        return type(output)((other, *output[1:])) if isinstance(output, tuple | list) else other

    hook = block.register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()
