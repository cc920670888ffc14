"""Speculative decoding: proposals from the text itself (prompt lookup), or from an assistant, a smaller model.

The decode loop verifies them, so the ids are those of a plain reply. Proposals that cost more than they save stop.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from statistics import median
from typing import Any

from repl.core import decoding, library, settings
from repl.core.errors import ReplError, UsageError
from repl.core.jobs import JobContext
from repl.core.library_types import Cache, GenerationConfig, PreTrainedModel, Tensor
from repl.core.reply import SpeculationStats
from repl.core.settings import Load, Settings
from repl.generation.decode import kv_cache, loop
from repl.generation.decode.detokenizer import common_length
from repl.generation.decode.format_mask import FormatMask, GivenFirst
from repl.generation.interface import Model
from repl.generation.measure.forward import cancellable_forward, input_device, input_ids

Get = Callable[[Load, JobContext], Model]
Propose = Callable[[list[int], int], list[int]]
"""Returns at most so many ids that may follow a text."""
ASSISTANT_TOKENS = 8  # that an assistant proposes at once
MIN_PROBABILITY = 0.4  # below which an assistant's next token is not worth proposing
RUN_TOKENS = (4, 3, 2)  # of the runs of tokens that are looked up, the longest first
MAX_LOST_SHARE = 0.03  # of a reply's time that proposals may cost
MAX_GAIN_STEPS = 4  # plain steps that were won before and may be lost again


class Lookup:
    """Proposes what followed when the last few tokens stood in the text before, the latest time.

    The more tokens agree, the more are proposed: on a CPU each costs. The library's `PromptLookupCandidateGenerator`
    also goes by single tokens and always proposes as many as it may: prose then takes 3 % longer, here nothing.
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # a run of tokens, and the place of what came after it
        self._read = 0

    def __call__(self, ids: list[int], most: int) -> list[int]:
        """Return up to `most` ids from an earlier place; a copy that reaches its own beginning goes on in it."""
        for end in range(self._read, len(ids)):
            self._after.update({tuple(ids[end - size : end]): end for size in RUN_TOKENS if end >= size})
        self._read = len(ids)
        places = (self._after.get(tuple(ids[-size:])) for size in RUN_TOKENS)
        place = next((found for found in places if found is not None), None)
        if place is None:
            return []
        most = count_agreeing(ids, place, most)
        run = ids[place : place + most]
        return (run * (most // len(run) + 1))[:most]


def count_agreeing(ids: Sequence[int], place: int, most: int) -> int:
    """Return how many ids before a place, up to `most`, are also the last ones of the text."""
    count = 0
    while count < min(most, place) and ids[place - 1 - count] == ids[-1 - count]:
        count += 1
    return count


class Assistant:
    """Proposes what a smaller model holds likeliest of the first `vocabulary` tokens; its cache holds the ids `fed`."""

    def __init__(self, model: PreTrainedModel, cache: Cache, fed: list[int], vocabulary: int) -> None:
        self._model, self._cache, self._vocabulary = model, cache, vocabulary
        self.fed = fed
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}

    def __call__(self, ids: list[int], most: int) -> list[int]:
        """Return up to `most` ids, as far as the assistant is sure of them."""
        draft: list[int] = []
        while len(draft) < most:
            chance, token = self.read([*ids, *draft]).float().softmax(-1)[: self._vocabulary].max(-1)
            if chance < MIN_PROBABILITY:
                break
            draft.append(int(token))
        return draft

    def read(self, ids: list[int]) -> Tensor:
        """Bring the cache to these ids; returns the logits of what follows, shape (vocab,)."""
        same = min(common_length(self.fed, ids), len(ids) - 1)
        kv_cache.crop(self._cache, same)
        del self.fed[same:]
        fresh = input_ids(self._model, ids[same:])
        output = self._model(fresh, **{library.cache_name(): self._cache}, use_cache=True, **self._last)
        self.fed += ids[same:]
        return output.logits[0, -1]


class Balance:
    """Counts the seconds that proposals cost and save; past `MAX_LOST_SHARE` of a reply's time none are tried."""

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=9)  # the last steps without proposals: their median is what one takes
        self._total = self._lost = 0.0

    @property
    def allows(self) -> bool:
        """Tell whether to try proposals now; not before a plain step was timed."""
        return bool(self._plain) and self._lost <= MAX_LOST_SHARE * self._total

    def count(self, seconds: float, proposed: int, made: int, aside: float = 0.0) -> None:
        """Count one pass that checked `proposed` tokens and brought `made`; `aside` went into finding proposals."""
        self._total += seconds + aside
        if not proposed:
            self._plain.append(seconds)
        step = median(self._plain)
        lost = aside + (seconds - made * step if proposed else 0.0)
        # one pass of a busy machine is no reason to give up, and what was won long ago pays for no losses now
        self._lost = max(self._lost + min(lost, (proposed + 1) * step), -MAX_GAIN_STEPS * step)


class Ahead:
    """The proposals of one reply, up to `most` at once, and the figures of what they brought.

    `limit` is the length of text up to which there are any (0: no such limit).
    """

    def __init__(
        self, propose: Propose, most: int, limit: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._propose, self._most, self._limit, self._clock = propose, most, limit, clock
        self._balance = Balance()
        self._ids: list[int] = []
        self._draft: list[int] = []
        self._began = self._ready = 0.0
        self.passes = self.proposed = self.accepted = 0

    def offer(self, ids: Tensor, room: int) -> list[int]:
        """Return up to `room` ids that may follow `ids`, shape (1, tokens)."""
        self._ids += ids[0, len(self._ids) :].tolist()
        self._began = self._clock()
        room = min(room, self._most, self._limit - len(self._ids) - 1 if self._limit else room)
        self._draft = self._propose(self._ids, room) if room > 0 and self._balance.allows else []
        self._ready = self._clock()
        return self._draft

    def settle(self, made: int) -> None:
        """Count what the pass brought and cost that checked the last offer."""
        proposed = len(self._draft)
        self._balance.count(self._clock() - self._ready, proposed, made, self._ready - self._began)
        self.passes += 1
        if proposed:
            self.proposed += proposed
            self.accepted += made - 1  # the last one is the model's own


@dataclass
class Drafting:
    """The speculative decoding of one reply; `get` loads the assistant."""

    resident: Model
    chosen: Settings
    emit: JobContext
    get: Get | None = None
    mask: FormatMask | None = None
    """The constraint of the reply's form, which can propose the tokens that it forces."""
    blocked: str = ""
    """Why nothing is to be proposed; empty where it may."""
    ahead: Ahead | None = None
    """None where nothing is proposed."""
    helper: Model | None = None

    @contextmanager
    def proposals(
        self, config: GenerationConfig, ids: Tensor, past: dict[str, object]
    ) -> Iterator[tuple[Ahead | GivenFirst | None, dict[str, Any]]]:
        """Yield the source of proposals, None for none, and the cache argument of `generate`: one that can be cropped.

        `ids` is the prompt, shape (1, tokens), `past` the cache that was lent. Where nothing can be proposed, that is
        said once for each model. The tokens that a form gives come first.
        """
        by, model = decoding.draft_source(self.chosen), self.resident.model
        off = self._why_not(config, ids)
        reason = off or (self._find_assistant() if by == "assistant" else "")
        if by and reason:
            self.resident.runtime.mention(f"{by} is off: {reason}", self.emit)
        if off or (reason and not self.mask):
            yield None, past
            return
        limits = [kv_cache.cache_traits(model).scaling_start, self.helper.facts.context if self.helper else 0]
        limit = min(filter(None, limits), default=0)
        with ExitStack() as stack:
            if self.helper is not None:
                assistant = stack.enter_context(self._assistant(self.helper, ids))
                self.ahead = Ahead(assistant, ASSISTANT_TOKENS, limit)
            elif by == "prompt_lookup":
                self.ahead = Ahead(Lookup(), self.chosen.decode.prompt_lookup, limit)
            proposals = GivenFirst(self.mask, self.ahead, limits[0]) if self.mask else self.ahead
            yield proposals, past or {library.cache_name(): kv_cache.croppable_cache(model)}

    def _why_not(self, config: GenerationConfig, ids: Tensor) -> str:
        model, some = self.resident.model, ids.repeat(1, kv_cache.TRIAL_TOKENS)
        if reason := self.blocked or refusal(model, config, ids.shape[-1]):
            return reason
        if not kv_cache.may_go_on(model, kv_cache.croppable_cache(model), some):
            return "this model's logits differ between several tokens at once and one by one"
        return ""

    def _find_assistant(self) -> str:
        """Load the assistant; return why it cannot be used, empty if it can."""
        if self.get is None:
            return "there is none for this kind of reply"
        try:
            self.helper = load_assistant(self.resident, self.chosen, self.emit, self.get)
        except ReplError as error:
            return error.message
        return ""

    @contextmanager
    def _assistant(self, helper: Model, ids: Tensor) -> Iterator[Assistant]:
        """Yield an assistant that has read the prompt, unless that is longer than its context."""
        model, fed = helper.model, list[int]()
        words = self.resident.model.get_output_embeddings().weight.shape[0]
        prompt = ids.to(input_device(model))
        with helper.runtime.kv_cache.lend(model, model.generation_config, prompt, lambda: fed) as (past, reused):
            fed += prompt[0, :reused].tolist()
            with cancellable_forward(model, self.emit.raise_if_cancelled):
                cache = past[library.cache_name()] if past else kv_cache.croppable_cache(model)
                assistant = Assistant(model, cache, fed, words)
                if not helper.facts.context or ids.shape[-1] <= helper.facts.context:
                    assistant.read(ids[0].tolist())
                yield assistant

    def stats(self) -> SpeculationStats | None:
        """Return the figures of the reply; None if nothing was proposed."""
        if (ahead := self.ahead) is None:
            return None
        facts = self.helper.facts if self.helper else None
        named = {"id": facts.id, "commit": facts.commit, "dtype": facts.dtype} if facts else {}
        return SpeculationStats(decoding.draft_source(self.chosen), ahead.passes, ahead.proposed, ahead.accepted, named)


def refusal(model: PreTrainedModel, config: GenerationConfig, prompt: int) -> str:
    """Return why speculative decoding is off for a model and generation config; empty if it is possible."""
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        return "it works with one sequence at a time"
    if reason := loop.why_not(model, config):
        return reason
    if not kv_cache.can_reuse(model, config, prompt) or kv_cache.croppable_cache(model) is None:
        return "this model's KV cache cannot be cropped"
    return ""


def load_assistant(resident: Model, chosen: Settings, emit: JobContext, get: Get) -> Model:
    """Load the assistant; raises `UsageError` where it cannot help this model."""
    helper = get(assistant_load(chosen), emit)
    name, reason = helper.facts.name, ""
    if helper.model is resident.model:
        reason = f"{name} is the model itself"
    elif resident.tokenizer.get_vocab() != helper.tokenizer.get_vocab():
        reason = f"{name} has a different tokenizer from {resident.facts.name}"
    elif refusal(helper.model, helper.model.generation_config, 1):
        reason = f"the KV cache of {name} cannot be cropped"
    if reason:
        raise UsageError(reason, "/fast prompt_lookup")
    return helper


def assistant_load(chosen: Settings) -> Load:
    """Return how the assistant is loaded: in the format and on the devices of the model, without its extras."""
    own = {name: word for name, word in settings.address(chosen.decode.assistant) if word != "default"}
    extras = ("revision", "gguf_file", "trust_remote_code", "quantize", "adapter")
    plain = {name: getattr(Load(), name) for name in extras}
    return replace(chosen.load, **{**plain, **{name: settings.read_setting(name, word) for name, word in own.items()}})
