"""Hooks into a model's forward pass, and what its logits say: break it off, refuse numbers that are none, measure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from repl.core.errors import Cancelled, Failed, ReplError
from repl.core.explain import sentence
from repl.core.library_types import Module, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Tensor
from repl.models import model_config
from repl.models.loader import ModelInfo

REMEDIES = {"beam search with a cache": ("/set use_cache false", "/beams 1")}
"""What to type where a library says this."""
BLOCK_LOGITS = 2**18  # logits that are measured at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Scored:
    """One token of a text and what the model gave it: logprob and entropy in nats, rank 1 for the likeliest."""

    id: int
    logprob: float
    entropy: float
    rank: int
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens there: (id, text, logprob in nats)."""


Figures: TypeAlias = tuple[tuple[float, float, int], tuple[int, ...], tuple[float, ...]]
"""Of a token logprob and entropy in nats and the rank from 1, then ids and logprobs of the likeliest."""


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises into one `Failed`; errors of ours and a cancel pass."""
    try:
        yield
    except (Cancelled, ReplError, GeneratorExit):
        raise
    except BaseException as error:  # the tokenizer's Rust side panics with a BaseException
        words = sentence(error)
        hints = next((lines for sign, lines in REMEDIES.items() if sign in words), ())
        raise Failed(f"{what}: {words}", *hints) from error


@contextmanager
def cancellable_forward(model: PreTrainedModel, check: Callable[[], None]) -> Iterator[None]:
    """Let `check` break a forward pass off between two layers: a long prompt must not hold up a cancel."""
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in decoder_blocks(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def decoder_blocks(model: PreTrainedModel) -> list[Module]:
    """Return the blocks of the part that writes text: the list that is as long as its config says, else the longest.

    Not simply the longest: a mixture of experts lists those too. A vision tower has blocks as well, as many even.
    """
    config = getattr(model, "config", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = list(_lists(decoder, decoder, config)) or list(_lists(model, model, None))
    count = model_config.get_count(model_config.text_config(config), "num_hidden_layers") if config is not None else 0
    said = [found for found in lists if len(found) == count]
    longest: Any = max(lists, key=len, default=[])
    return list(said[0] if said else longest)


def _lists(module: Module, whole: Module, config: PreTrainedConfig) -> Iterator[Sequence[Module]]:
    """Yield the lists of modules in a module, leaving out parts with a config of another kind: towers, encoders."""
    import torch

    own = {getattr(each, "model_type", "") for each in (config, model_config.text_config(config)) if config is not None}
    if isinstance(module, torch.nn.ModuleList):
        yield module
    kind = getattr(getattr(module, "config", None), "model_type", "")
    if module is not whole and own and kind and kind not in own:
        return
    for child in module.children():
        yield from _lists(child, whole, config)


def input_device(model: PreTrainedModel) -> Any:
    """Return the device that ids go in at; weights on disk stand on `meta`, their hooks move the ids on."""
    device = model.device
    return "cpu" if device.type == "meta" else device


def nan_guard(facts: ModelInfo, prompt: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that refuses numbers that are none: greedy decoding would silently take token 0.

    `prompt` is the length of the prompt in tokens. Raises `Failed`.
    """
    import torch

    def guard(ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.isfinite(scores.max()):
            raise not_finite(facts, ids.shape[1] - prompt + 1)
        return scores

    return guard


def not_finite(facts: ModelInfo, place: int) -> Failed:
    """Make the error for logits that are no numbers."""
    said = f"the model's numbers are not finite at token {place}"
    if facts.dtype == "float32":
        return Failed(f"{said}: its weights may be damaged", "/reload", "/model ID")
    return Failed(f"{said}: {facts.dtype} may be too narrow for it", "/dtype float32")


def evaluate(logits: Tensor, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, count: int = 0) -> list[Scored]:
    """Measure tokens in their distributions, each with the `count` likeliest there.

    `logits`, of shape (tokens, vocab), are what the model gave; row j is the one that token j was drawn from.
    """
    size = max(1, BLOCK_LOGITS // logits.shape[-1])
    parts = zip(logits.split(size), range(0, len(tokens), size), strict=True)
    rows = (row for part, place in parts for row in token_figures(part, tokens[place : place + size], count))
    return [
        Scored(token, *own, tuple((one, str(tokenizer.decode([one])), value) for one, value in zip(*top, strict=True)))
        for token, (own, *top) in zip(tokens, rows, strict=True)
    ]


def token_figures(logits: Tensor, tokens: Sequence[int], count: int) -> Iterator[Figures]:
    """Yield the figures of each token, and the `count` likeliest ids in its row with their logprobs."""
    import torch

    logs = logits.float().log_softmax(-1)
    values, ids = logs.topk(min(count, logs.shape[-1]))
    own = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])
    ranks = (logs > own).sum(-1, keepdim=True, dtype=torch.int32).add(1)
    entropies = logs.exp().mul_(logs).nansum(-1, keepdim=True).neg()
    # one transfer for all: each would wait for the device; numbers are exact in float32 up to 2**24
    for logprob, entropy, rank, *rest in torch.cat([own, entropies, ranks, values, ids], -1).tolist():
        half = len(rest) // 2
        yield (logprob, entropy, int(rank)), tuple(map(int, rest[half:])), tuple(rest[:half])
