"""Hooks into a model's forward pass: break it off between two layers, read its logits before anything changes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def breakable(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """Let `check` break a forward pass off between two layers: a long prompt must not hold up a cancel."""
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in layers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layers(model: Any) -> list[Any]:
    """Return the blocks of a model: its longest list of modules."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


@contextmanager
def measuring(model: Any, tokenizer: Any, count: int) -> Iterator[Callable[[int], dict[str, Any]] | None]:
    """Yield a function from a token's id to its logprob, entropy (nats) and `count` likeliest tokens; None for 0."""
    if not count:
        yield None
        return
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda _, __, output: seen.__setitem__(slice(None), [output.logits[0, -1]]))
    try:
        yield lambda token: _measured(seen[0], token, tokenizer, count)
    finally:
        hook.remove()


def _measured(logits: Any, token: int, tokenizer: Any, count: int) -> dict[str, Any]:
    logs = logits.float().log_softmax(-1)
    values, ids = logs.topk(min(count, len(logs)))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return {
        "logprob": float(logs[token]),
        "entropy": float(-(logs.exp() * logs).nansum()),
        "top": tuple((one, str(tokenizer.decode([one])), value) for one, value in pairs),
    }
