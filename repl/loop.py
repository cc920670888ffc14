"""A decode loop of our own inside the library's `generate`: the same ids, with less done between two tokens."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from repl import decoding, library
from repl.threads import Threads

MODES = ("greedy_search", "sample")
"""What the loop does; beams, and drafts that are checked, stay with the library."""
KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "token_healing")
"""Fields of a generation config that keep more than ids, or need the tokenizer: only the library's loop is given it."""
TAKEN = {
    *("input_ids", "attention_mask", "generation_config"),
    *("logits_processor", "stopping_criteria", "tokenizer", "streamer"),
}
"""Arguments of `generate` that the loop is known to heed."""
PLAIN = frozenset({"attention_mask", "position_ids", "use_cache", "logits_to_keep"})
"""Arguments of a forward pass that are known to change from step to step in one way only, or not at all."""

Step = Callable[[Any, Any], Any]
Lend = Callable[[Any], AbstractContextManager[Step]]
"""Lends a step that goes on from a cache, which gets back what is made meanwhile."""


def generate(
    model: Any, threads: Threads | None = None, own: bool = True, lend: Lend | None = None, **given: Any
) -> Any:
    """Call the library's `generate` with our loop, or as it is where that does not fit or `own` is off.

    `given` are the arguments of `generate`, among them `generation_config`; `threads` are minded by our loop only.
    `lend` is what may lend it faster steps.
    """
    import torch

    config = given["generation_config"]
    named = {name for name, value in given.items() if value is not None}  # None only switches a field off
    if not (own and named <= TAKEN | {library.cache_name()} and fits(model, config)):
        with torch.inference_mode():
            return model.generate(**given)
    loop = Loop(given.get("streamer"), threads, lend)
    if config.stop_strings:
        config, off, criteria = decoding.as_criteria(model, config, given["tokenizer"])
        given["stopping_criteria"] = [*given.get("stopping_criteria", ()), *criteria]
        given |= {"generation_config": config, **off}
    with torch.inference_mode():
        return model.generate(**given, custom_generate=loop)


def fits(model: Any, config: Any) -> bool:
    """Tell whether our loop does for this model and generation config what the library's `_sample` would do."""
    from transformers import GenerationMixin

    kind = type(model)
    if "generate" in vars(model) or any(
        getattr(kind, name, None) is not getattr(GenerationMixin, name)
        for name in ("generate", "_sample", "_prefill", "_get_logits_processor", "_get_stopping_criteria")
    ):
        return False
    if model.config.is_encoder_decoder or any(getattr(config, name, None) for name in KEPT):
        return False
    device = model.device.type  # elsewhere the library stops a step late, or compiles for a static cache
    if device not in ("cpu", "cuda", "meta") or (device != "cpu" and config.cache_implementation):
        return False
    return str(config.get_generation_mode().value) in MODES


class Loop:
    """What `generate(custom_generate=...)` calls in place of `_sample`: one prefill, then step after step."""

    def __init__(self, streamer: Any = None, threads: Threads | None = None, lend: Lend | None = None) -> None:
        self._streamer, self._lend = streamer, lend
        self._threads = threads or Threads()

    def __call__(
        self,
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **given: Any,
    ) -> Any:
        """Return what `_sample` returns: the ids, shape (rows, tokens), or those with the cache."""
        from transformers.generation import GenerateDecoderOnlyOutput
        from transformers.generation.utils import ALL_CACHE_NAMES

        with self._threads.minded(model):
            output = model._prefill(input_ids, generation_config, given, is_first_iteration=True)
            with model._optimize_model_for_decode(), chosen(model, output, given, self._lend) as step:
                ids = self._decode(input_ids, output, step, logits_processor, stopping_criteria, generation_config)
        if self._streamer is not None:
            self._streamer.end()
        if not generation_config.return_dict_in_generate:
            return ids
        past = next((given[name] for name in ALL_CACHE_NAMES if name in given), None)
        return GenerateDecoderOnlyOutput(sequences=ids, **{library.cache_name(): past})

    def _decode(self, ids: Any, output: Any, step: Step, processors: Any, criteria: Any, config: Any) -> Any:
        import torch

        draw = drawn if config.do_sample else likeliest
        pad = config._pad_token_tensor if any(hasattr(one, "eos_token_id") for one in criteria) else None
        going = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        while True:
            # a copy: what else the logits of a long prompt hold is let go
            logits = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=ids.device)
            del output
            tokens = draw(processors(ids, logits))
            if pad is not None:
                tokens = tokens * going + pad.to(ids.device) * (1 - going)
            ids = torch.cat([ids, tokens[:, None]], dim=-1)
            going = going & ~criteria(ids, None)
            if self._streamer is not None:
                self._streamer.put(tokens.cpu())
            if not going.any():
                return ids
            with self._threads.step():
                output = step(ids, tokens)


def likeliest(scores: Any) -> Any:
    """Return the likeliest token of each row; `scores` has the shape (rows, vocab)."""
    return scores.argmax(dim=-1)


def drawn(scores: Any) -> Any:
    """Draw a token for each row, with the very calls of the library: they decide what a seed gives."""
    import torch

    return torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1).squeeze(1)


# steps


def chosen(model: Any, output: Any, given: dict[str, Any], lend: Lend | None) -> AbstractContextManager[Step]:
    """Return how to go on from the prefill's output; `given` are the arguments of its forward pass, kept up to date."""
    if not plain(model, output, given):
        return nullcontext(Careful(model, output, given).step)
    if lend is not None and alone(output, given):
        cache = given[library.cache_name()] = library.cache_of(output)
        return lend(cache)
    return nullcontext(Plain(model, output, given).step)


def alone(output: Any, given: dict[str, Any]) -> bool:
    """Tell whether there is one text, every token of it counts, and the next one stands right behind it."""
    from transformers.cache_utils import DynamicLayer

    positions, mask = given.get("position_ids"), given.get("attention_mask")
    cache = library.cache_of(output)
    length = cache.get_seq_length()
    return (
        output.logits.shape[0] == 1
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and (mask is None or bool(mask.all()))
        and (positions is None or int(positions[0, -1]) == length - 1)
    )


def plain(model: Any, output: Any, given: dict[str, Any]) -> bool:
    """Tell whether a step's inputs are just the new token and its place: nothing of the model's own prepares them."""
    from transformers import Cache

    if own_steps(type(model)):
        return False
    cache, positions = library.cache_of(output), given.get("position_ids")
    return (
        set(given) <= PLAIN | {library.cache_name()}
        and bool(given.get("use_cache"))
        and isinstance(cache, Cache)
        and not cache.is_compileable
        and (positions is None or positions.dim() == 2)
        and output.logits.device == model.device
        and not (model.is_remote_code() and "cache_position" in inspect.signature(model.forward).parameters)
    )


def own_steps(kind: Any) -> bool:
    """Tell whether a class of models prepares its steps in a way of its own."""
    from transformers import GenerationMixin

    names = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    return any(getattr(kind, name, None) is not getattr(GenerationMixin, name) for name in names)


class Plain:
    """The new token, its position and the cache go in; a mask, where rows are padded, grows by one."""

    def __init__(self, model: Any, output: Any, given: dict[str, Any]) -> None:
        given[library.cache_name()] = library.cache_of(output)
        self._positions, self._mask = given.get("position_ids"), given.get("attention_mask")
        if self._positions is not None:
            self._positions = self._positions[:, -1:]
        passed = (library.cache_name(), "use_cache", "logits_to_keep")
        self._rest = {name: given[name] for name in passed if name in given}
        self._model = model

    def step(self, _: Any, tokens: Any) -> Any:
        """Run the model on the tokens just made, shape (rows,)."""
        import torch

        inputs = {"input_ids": tokens[:, None], **self._rest}
        if self._positions is not None:
            inputs["position_ids"] = self._positions = self._positions + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
            inputs["attention_mask"] = self._mask
        return self._model(**inputs, return_dict=True)


class Careful:
    """The model itself prepares every step, as in the library's loop."""

    def __init__(self, model: Any, output: Any, given: dict[str, Any]) -> None:
        self._model, self._given = model, given
        self._update(output)

    def _update(self, output: Any) -> None:
        # in place: the caller returns the cache from it
        self._given.update(self._model._update_model_kwargs_for_generation(output, self._given))

    def step(self, ids: Any, _: Any) -> Any:
        """Run the model on all ids so far, shape (rows, tokens), or on the last ones where it keeps a cache."""
        last = 1 if self._given["use_cache"] else None
        inputs = self._model.prepare_inputs_for_generation(ids, next_sequence_length=last, **self._given)
        output = self._model(**inputs, return_dict=True)
        self._update(output)
        return output
