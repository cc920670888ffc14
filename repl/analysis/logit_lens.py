"""The logit lens: the hidden state after every layer, read through the final norm and the output head."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

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

MAX_RELATIVE_GAP = 1e-4  # of the largest logit: the difference allowed between two computations in float32


def layer_logits(resident: Model, ids: Sequence[int], emit: JobContext) -> Tensor:
    """Return the logits after every layer for the last of `ids`: float32, shape (layers + 1, vocab).

    The first row is that of the embedding, the last one the model's own. Nothing about the model is assumed: its own
    code runs from the last layer on, with the hidden states of all layers in place of that layer's, so norm,
    projection, scales and soft caps apply. The last layer, read in this way, must give the model's own logits. Raises
    `UsageError`, `Failed` or `NoMemory`.
    """
    model, facts = resident.model, resident.facts
    if facts.context and len(ids) > facts.context:
        raise UsageError(f"the text has {len(ids)} tokens; {facts.id}'s context is {facts.context}")
    if not (blocks := decoder_blocks(model)):
        raise Failed(f"{facts.architecture} has no list of decoder layers")
    given = input_ids(model, list(ids))
    with (
        scoring.reading_errors(resident, emit, "the layers cannot be read"),
        torch.no_grad(),
        cancellable_forward(model, emit.raise_if_cancelled),
    ):
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
    """Return the float32 logits after the last token of each row, shape (rows, vocab), without a KV cache."""
    known = inspect.signature(model.forward).parameters
    less = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    given = {"attention_mask": ids.new_ones(ids.shape), "use_cache": False, **scoring.place_ids(model, start, ids[:1])}
    return model(input_ids=ids, **given, **less).logits[:, -1].float()


@contextmanager
def _seen(blocks: list[Module], emit: JobContext) -> Iterator[list[Tensor]]:
    """Collect the input of the first block and the output of each."""
    seen: list[Tensor] = []

    def first(_: Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else named.get("hidden_states"))

    def then(_: Module, __: object, output: ModelOutput) -> None:
        seen.append(_hidden(output))
        emit(Progress("reading layer by layer", len(seen) - 1, len(blocks), "layers"))

    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(then).remove)
        yield seen


def _hidden(output: ModelOutput) -> Tensor | None:
    """Return the hidden states in the output of a block; None for several streams (reformer)."""
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
    """Replace the hidden states in the output of a block."""

    def change(_: object, __: object, output: ModelOutput) -> ModelOutput:
        other = states.to(_hidden(output))
        return type(output)((other, *output[1:])) if isinstance(output, tuple | list) else other

    hook = block.register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()
