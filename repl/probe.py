"""Hooks into a model's forward pass: break it off between two layers, read its logits before anything changes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repl import folder
from repl.errors import Failed
from repl.loading import Facts


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
    """Return the blocks of a model: the list of modules that is as long as its config says, else its longest.

    Not simply the longest: a mixture of experts lists those too.
    """
    import torch

    lists: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    config = getattr(model, "config", None)
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0) if config is not None else 0
    said = [found for found in lists if len(found) == count]
    longest: Any = max(lists, key=len, default=[])
    return list(said[0] if said else longest)


def entry(model: Any) -> Any:
    """Return the device that ids go in at; weights on disk stand on `meta`, their hooks move the ids on."""
    device = model.device
    return "cpu" if device.type == "meta" else device


def finite(facts: Facts, prompt: int) -> Callable[[Any, Any], Any]:
    """Return a logits processor that refuses numbers that are none: greedy decoding would silently take token 0.

    `prompt` is the length of the prompt in tokens. Raises `Failed`.
    """
    import torch

    def guard(ids: Any, scores: Any) -> Any:
        if not torch.isfinite(scores.max()):
            raise not_finite(facts, ids.shape[1] - prompt + 1)
        return scores

    return guard


def not_finite(facts: Facts, place: int) -> Failed:
    """Make the error for logits that are no numbers, naming the tensors that hold the cause where there are any."""
    said = f"the model's numbers are not finite at token {place}"
    broken = folder.nonfinite(Path(facts.folder)) if Path(facts.folder).is_dir() else []
    if broken:
        return Failed(f"{said}: NaN or infinity in {', '.join(broken)}", "/model ID")
    if facts.dtype == "float32":
        return Failed(said, "/reload")
    return Failed(f"{said}: {facts.dtype} may be too narrow for it", "/dtype float32")


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
