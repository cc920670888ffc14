"""Around a forward pass: cancel it between layers, refuse NaN logits, measure tokens (logprob, entropy, rank).

Tokens are measured in the model's own distribution, before any processor changes it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch

from repl.core import library
from repl.core.errors import Failed, NoMemory, is_memory, library_errors, sentence
from repl.core.jobs import JobContext, strip_traceback
from repl.core.library_types import Module, PreTrainedModel, PreTrainedTokenizerBase, Tensor
from repl.core.reply import TokenLogprobs, round_figures
from repl.generation.decode.detokenizer import token_text
from repl.generation.interface import Model
from repl.generation.measure.token_text import TOP_K_STORED, Scored
from repl.models import model_config
from repl.models.imports import release_memory
from repl.models.memory.out_of_memory import dead
from repl.models.store import ModelInfo

BLOCK_LOGITS = 2**18  # logits that are measured at once: they stay in the processor's cache
BLOCKS: WeakKeyDictionary[PreTrainedModel, list[Module]] = WeakKeyDictionary()
"""Where each loaded model can be stopped."""

Figures: TypeAlias = tuple[tuple[float, float, int], tuple[int, ...], tuple[float, ...]]
"""Of a token logprob and entropy in nats and the rank from 1, then ids and logprobs of the likeliest."""


@contextmanager
def model_errors(resident: Model, emit: JobContext, what: str, no_memory: Callable[[str], NoMemory]) -> Iterator[None]:
    """Turn what a library raises as a model works into one `ReplError`; memory that ran out is given back first.

    `no_memory` makes the error for that from the library's words.
    """
    try:
        with library_errors(what):
            yield
        return
    except Failed as error:
        emit.begin_cleanup()
        if lost := dead(str(error.__cause__)):
            raise lost from error
        if error.__cause__ is None or not is_memory(error.__cause__):
            raise
        words = sentence(strip_traceback(error.__cause__))
    resident.runtime.kv_cache.drop()
    release_memory()
    raise no_memory(words)


@contextmanager
def cancellable_forward(model: PreTrainedModel, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each layer; it may raise to stop the pass: a long prompt must not delay a cancel."""
    if model not in BLOCKS:
        BLOCKS[model] = decoder_blocks(model)
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in BLOCKS[model]]
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
    text = None if config is None else model_config.text_config(config)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    kinds = {getattr(each, "model_type", "") for each in (config, text)} - {""}
    lists = [*_lists(decoder, kinds)] or [*_lists(model, set())]
    count = 0 if text is None else model_config.get_count(text, "num_hidden_layers")
    said = [found for found in lists if len(found) == count]
    longest: Any = max(lists, key=len, default=[])
    return list(said[0] if said else longest)


def _lists(module: Module, kinds: set[str]) -> Iterator[Sequence[Module]]:
    """Yield the lists of modules in a module, leaving out parts whose config is of no such kind: towers, encoders."""
    if isinstance(module, torch.nn.ModuleList):
        yield module
    for child in module.children():
        kind = getattr(getattr(child, "config", None), "model_type", "")
        if not (kinds and kind) or kind in kinds:
            yield from _lists(child, kinds)


def input_device(model: PreTrainedModel) -> Any:
    """Return the device that ids go in at; weights on disk stand on `meta`, their hooks move the ids on."""
    device = model.device
    return "cpu" if device.type == "meta" else device


def input_ids(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the ids of one text as a model takes them, shape (1, tokens)."""
    return torch.tensor([list(ids)], device=input_device(model))


def nan_guard(facts: ModelInfo, prompt: int, masked: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that refuses NaN and infinite logits: greedy decoding would silently take token 0.

    `prompt` is the length of the prompt in tokens; `masked` tells that settings take tokens away. Raises `Failed`.
    """

    def guard(ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.isfinite(most := scores.max()):
            if masked and most == -torch.inf:
                said = f"the form and the other settings leave no token at place {ids.shape[1] - prompt + 1}"
                raise Failed(said, "/format off", "/ban off", "/reset")
            raise not_finite(facts, ids.shape[1] - prompt + 1)
        return scores

    return guard


def not_finite(facts: ModelInfo, place: int) -> Failed:
    """Return the error for logits that are NaN or infinite."""
    said = f"the model's logits are NaN or infinite at token {place}"
    if facts.dtype == "float32":
        return Failed(f"{said}: its weights may be damaged", "/reload", "/model ID")
    return Failed(f"{said}: {facts.dtype} may not have the range for it", "/dtype float32")


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
    logs = logits.float().log_softmax(-1)
    values, ids = logs.topk(min(count, logs.shape[-1]))
    own = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])
    ranks = (logs > own).sum(-1, keepdim=True, dtype=torch.int32).add(1)
    entropies = logs.exp().mul_(logs).nansum(-1, keepdim=True).neg()
    # one transfer for all: each would wait for the device; numbers are exact in float32 up to 2**24
    for logprob, entropy, rank, *rest in torch.cat([own, entropies, ranks, values, ids], -1).tolist():
        half = len(rest) // 2
        yield (logprob, entropy, int(rank)), tuple(map(int, rest[half:])), tuple(rest[:half])


@contextmanager
def hear_logits(model: PreTrainedModel, take: Callable[[Tensor], object]) -> Iterator[None]:
    """Pass on the logits of every forward pass meanwhile, of shape (rows, places, vocab)."""
    parts = library.speakers(model)
    hooks = [part.register_forward_hook(lambda _, __, output: take(output.logits)) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Meter:
    """Measures one reply; `listed` alternatives go with each token's event, `TOP_K_STORED` or more into the record.

    `several` says that one forward pass may bring more than one token, as assisted decoding does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, listed: int, several: bool = False) -> None:
        self._tokenizer = tokenizer
        self._listed = listed
        self.several = several
        self._rows: Any = None  # logits of the last forward pass, shape (places, vocab)
        self._place = 0  # of the next token in them
        self._figures: list[tuple[float, float, int]] = []  # logprob, entropy, rank of each token
        self._likeliest: list[tuple[tuple[int, ...], tuple[float, ...]]] = []  # ids and logprobs
        self._lengths: list[int] = []
        self._texts: dict[int, str] = {}

    @contextmanager
    def reading(self, model: PreTrainedModel) -> Iterator[None]:
        """Take the logits of every forward pass meanwhile."""
        try:
            with hear_logits(model, lambda logits: self._take(logits[0])):
                yield
        finally:
            self._rows = None

    def _take(self, rows: Tensor) -> None:
        self._rows, self._place = rows if self._figures else rows[-1:], 0  # a prompt brings one token only

    def measure(self, token: int) -> dict[str, Any]:
        """Measure the token that was just made; returns the fields of its event."""
        row = self._rows[min(self._place, len(self._rows) - 1) if self.several else -1]
        self._place += 1
        [figures] = token_figures(row[None], [token], max(TOP_K_STORED, self._listed))
        (logprob, entropy, _), ids, values = figures
        self.add_figures(figures)
        pairs = zip(ids[: self._listed], values, strict=False)
        return {
            "logprob": logprob,
            "entropy": entropy,
            "top": tuple((one, self._text(one), value) for one, value in pairs),
        }

    def add_figures(self, figures: Figures) -> None:
        """Keep the figures of a token, measured here or in a batch."""
        own, ids, values = figures
        self._figures.append(own)
        self._likeliest.append((ids, values))

    def rewind(self, count: int, logits: Tensor) -> None:
        """Go back to the first tokens; `logits`, shape (1, vocab), are those of the next."""
        del self._figures[count:], self._likeliest[count:]
        self._rows, self._place = logits, 0

    def add_text(self, token: int | None, text: str) -> None:
        """Count the characters of a token's text; with `token` None the text belongs to the token before."""
        if token is not None:
            self._lengths.append(len(text))
        elif self._lengths:
            self._lengths[-1] += len(text)

    def measures(self, ids: tuple[int, ...]) -> TokenLogprobs:
        """Return the figures of a reply with these ids; none if some are missing."""
        if not ids or len(self._lengths) != len(ids) or len(self._figures) < len(ids):
            return TokenLogprobs()
        logprobs, entropies, ranks = zip(*self._figures[: len(ids)], strict=True)  # a cancel loses the last one
        likeliest = self._likeliest[: len(ids)]
        named = {*ids, *(one for places, _ in likeliest for one in places)}
        return TokenLogprobs(
            logprobs=round_figures(logprobs),
            entropies=round_figures(entropies),
            ranks=ranks,
            ids=tuple(places for places, _ in likeliest),
            values=tuple(round_figures(values) for _, values in likeliest),
            texts={one: self._text(one) for one in sorted(named)},
            lengths=tuple(self._lengths),
        )

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = token_text(self._tokenizer, token)
        return self._texts[token]
