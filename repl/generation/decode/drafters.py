"""Where the proposals of a reply come from: the text itself, or an assistant, a smaller model beside the first.

The decode loop checks them: the ids are those of a plain reply. What they cost is watched, and kept small.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from inspect import signature
from statistics import median
from typing import Any, Protocol

from repl.core import library, settings
from repl.core.errors import ReplError, UsageError
from repl.core.events import Notice
from repl.core.jobs import JobContext
from repl.core.library_types import Cache, GenerationConfig, PreTrainedModel, Tensor
from repl.core.reply import SpeculationStats
from repl.core.settings import Load, Settings
from repl.generation.decode import kv_cache, loop
from repl.generation.measure.forward import cancellable_forward, input_device
from repl.generation.runtime import Model
from repl.models.loader import ModelInfo

Get = Callable[[Load, JobContext], Model]
MOST = 8  # tokens that an assistant proposes at once
TOKENS = 15  # looked up at once where nothing else is said: on a CPU the last ones cost next to nothing
SURE = 0.4  # probability below which an assistant's next token is not worth proposing
SIZES = (4, 3, 2)  # of the runs of tokens that are looked up, the longest first
SHARE = 0.03  # of a reply's time that proposals may cost
CREDIT = 0.5  # plain steps that they may cost besides, and that the first attempt is taken to cost
STEPS = 9  # plain steps whose median is what a step takes
ATTEMPTS = 5  # attempts whose medians are what an attempt costs
WORST = 4  # times what is usual that one attempt counts for at most: a busy machine is no reason to give up


class Drafter(Protocol):
    """Where proposals come from."""

    def read(self, ids: Sequence[int]) -> None:
        """Take note of the text so far, prompt included."""

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` ids that may follow these."""


class Lookup:
    """Proposes what followed when the last few tokens stood in the text before, the latest time.

    The more tokens agree, the more are proposed: on a CPU each costs.
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # a run of tokens, and the place of what came after it
        self._read = 0

    def read(self, ids: Sequence[int]) -> None:
        """Take note of every run that something follows."""
        for place in range(self._read, len(ids)):
            for size in SIZES:
                if place >= size:
                    self._after[tuple(ids[place - size : place])] = place
        self._read = len(ids)

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` ids from an earlier place; a copy that reaches its own beginning goes on in it."""
        self.read(ids)
        places = (self._after.get(tuple(ids[-size:])) for size in SIZES)
        place = next((found for found in places if found is not None), None)
        if place is None:
            return []
        most = min(most, agreeing(ids, place, most))
        run = list(ids[place : place + most])
        return (run * (most // len(run) + 1))[:most]


def agreeing(ids: Sequence[int], place: int, most: int) -> int:
    """Return how many ids before a place, up to `most`, are also the last ones of the text."""
    count = 0
    while count < min(most, place) and ids[place - 1 - count] == ids[-1 - count]:
        count += 1
    return count


class Balance:
    """Counts what proposals cost and save, in seconds; no more may be lost than a small share of a reply's time.

    An attempt is made where that still holds should all of it be wrong, judged by what the last ones cost.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=STEPS)
        self._extra: deque[tuple[int, float]] = deque(maxlen=ATTEMPTS)  # proposals, and what checking them took longer
        self._total = self._lost = 0.0

    def affords(self, most: int) -> int:
        """Return how many proposals, up to `most`, are worth trying now; none before a plain step was timed."""
        if not self._plain:
            return 0
        step = median(self._plain)
        room = SHARE * self._total + CREDIT * step - self._lost
        if not self._extra:
            return most if room >= CREDIT * step else 0
        size, extra = (median(values) for values in zip(*self._extra, strict=True))
        if extra > room:
            return 0
        return min(most, int(size * room / extra)) if extra > 0 else most

    def took(self, seconds: float, proposed: int, made: int, aside: float = 0.0) -> None:
        """Count one pass that checked `proposed` tokens and brought `made`; `aside` went into finding proposals."""
        self._total += seconds + aside
        if not proposed:
            self._plain.append(seconds)
            self._lost += min(aside, WORST * median(self._plain))
            return
        step = median(self._plain)
        usual = step + (max(0.0, median(extra for _, extra in self._extra)) if self._extra else 0.0)
        taken = min(seconds + aside, WORST * usual)
        self._extra.append((proposed, taken - step))
        # what was won long ago pays for no losses now
        self._lost = max(self._lost + taken - made * step, -WORST * step)


class Ahead:
    """The proposals of one reply, up to `most` at once, and the figures of what they brought.

    `limit` is the length of text up to which there are any (0: no such limit).
    """

    def __init__(
        self, drafter: Drafter, most: int, limit: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._drafter, self._most, self._limit, self._clock = drafter, most, limit, clock
        self._balance = Balance()
        self._ids: list[int] = []
        self._draft: list[int] = []
        self._began = self._ready = 0.0
        self.passes = self.tried = self.proposed = self.accepted = 0

    def offer(self, ids: Tensor, room: int) -> list[int]:
        """Return up to `room` ids that may follow `ids`, shape (1, tokens)."""
        self._ids += ids[0, len(self._ids) :].tolist()
        if not self.passes:
            self._drafter.read(self._ids)
        self._began = self._clock()
        if self._limit:
            room = min(room, self._limit - len(self._ids) - 1)
        room = min(room, self._most)
        room = self._balance.affords(room) if room > 0 else 0
        self._draft = self._drafter.propose(self._ids, room) if room else []
        self._ready = self._clock()
        return self._draft

    def settle(self, made: int) -> None:
        """Count what the pass brought and cost that checked the last offer."""
        proposed = len(self._draft)
        self._balance.took(self._clock() - self._ready, proposed, made, self._ready - self._began)
        self.passes += 1
        if proposed:
            self.tried += 1
            self.proposed += proposed
            self.accepted += made - 1  # the last one is the model's own

    def drafts(self, by: str, model: dict[str, Any]) -> SpeculationStats:
        """Return the figures of the reply."""
        return SpeculationStats(by, self.passes, self.tried, self.proposed, self.accepted, model)


def refusal(model: PreTrainedModel, config: GenerationConfig, prompt: int) -> str:
    """Say why nothing can be read ahead with this model and generation config; empty where it can."""
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        return "it works with one sequence at a time"
    if reason := loop.why_not(model, config):
        return reason
    if not kv_cache.fits(model, config, prompt) or kv_cache.croppable_cache(model) is None:
        return "this model's KV cache cannot be cropped"
    return ""


class Assistant:
    """Proposes what a smaller model holds likeliest. `fed` are the ids that its cache holds.

    `vocabulary` is how many tokens the larger one knows, `context` how long a text this one may read (0: any).
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, fed: list[int], vocabulary: int, context: int = 0) -> None:
        self._model, self._cache, self._vocabulary, self._context = model, cache, vocabulary, context
        self.fed = fed
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}

    def read(self, ids: Sequence[int]) -> None:
        """Read the text so far."""
        if self._within(len(ids)):
            self._feed(ids)

    def _within(self, length: int) -> bool:
        return not self._context or length <= self._context

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` ids, as far as the assistant is sure of them."""
        draft: list[int] = []
        if not self._within(len(ids) + most):
            return draft
        logits = self._feed(ids)
        while len(draft) < most:
            chance, token = logits.float().softmax(-1).max(-1)
            if chance < SURE or token >= self._vocabulary:
                break
            draft.append(int(token))
            if len(draft) < most:
                logits = self._feed([*ids, *draft])
        return draft

    def _feed(self, ids: Sequence[int]) -> Tensor:
        """Bring the cache to these ids; returns the logits of what follows, shape (vocab,)."""
        import torch

        same = min(kv_cache.common(self.fed, ids), len(ids) - 1)
        kv_cache.cropped(self._cache, same)
        del self.fed[same:]
        fresh = torch.tensor([ids[same:]], device=input_device(self._model))
        output = self._model(fresh, **{library.cache_name(): self._cache}, use_cache=True, **self._last)
        self.fed += ids[same:]
        return output.logits[0, -1]


class Drafting:
    """How one reply is read ahead, if at all."""

    def __init__(self, resident: Model, chosen: Settings, emit: JobContext) -> None:
        self._resident, self._chosen, self._emit = resident, chosen, emit
        self.get: Get | None = None
        """Brings the assistant."""
        self._by = wanted(chosen)
        self._ahead: Ahead | None = None
        self._helper: Model | None = None

    @contextmanager
    def proposals(
        self, config: GenerationConfig, ids: Tensor, past: dict[str, object]
    ) -> Iterator[tuple[Ahead | None, dict[str, Any]]]:
        """Yield what proposes tokens, None for nothing, and the cache to call `generate` with: one that can be cropped.

        `ids` is the prompt, shape (1, tokens), `past` the cache that was lent. Where nothing can be proposed, that is
        said once for each model.
        """
        if not self._by or not self._may(config, ids):
            yield None, past
            return
        model, helper = self._resident.model, self._helper
        with ExitStack() as stack:
            drafter = Lookup() if helper is None else stack.enter_context(self._assistant(helper, ids))
            most = self._chosen.decode.prompt_lookup if helper is None else MOST
            self._ahead = Ahead(drafter, most, kv_cache.rope_scaling_start(model))
            yield self._ahead, past or {library.cache_name(): kv_cache.croppable_cache(model)}

    def _may(self, config: GenerationConfig, ids: Tensor) -> bool:
        reason = refusal(self._resident.model, config, ids.shape[-1]) or self._untrue(ids)
        if self._by == "assistant" and not reason:
            reason = self._bring()
        said = f"{self._by} is off: {reason}"
        if reason and said not in self._resident.runtime.notices_shown:
            self._resident.runtime.notices_shown.add(said)
            self._emit(Notice(said))
        return not reason

    def _untrue(self, ids: Tensor) -> str:
        """Say so where a pass over several tokens is no substitute for passes over each: tried once for each model."""
        model, some = self._resident.model, ids.repeat(1, kv_cache.FEW)
        if self._resident.runtime.kv_cache.may_go_on(model, kv_cache.croppable_cache(model), some):
            return ""
        return "this model reads several tokens at once in another way than one by one"

    def _bring(self) -> str:
        """Bring the assistant; returns what keeps it from helping."""
        if self.get is None:
            return "there is none for this kind of reply"
        try:
            helper = self.get(load(self._chosen), self._emit)
        except ReplError as error:
            return error.message
        reason = unfit(self._resident, helper)
        self._helper = None if reason else helper
        return reason

    @contextmanager
    def _assistant(self, helper: Model, ids: Tensor) -> Iterator[Assistant]:
        model, fed = helper.model, list[int]()
        words = self._resident.model.get_output_embeddings().weight.shape[0]
        prompt = ids.to(input_device(model))
        with helper.runtime.kv_cache.lent(model, model.generation_config, prompt, lambda: fed) as (past, reused):
            fed += prompt[0, :reused].tolist()
            with cancellable_forward(model, self._emit.raise_if_cancelled):
                cache = past[library.cache_name()] if past else kv_cache.croppable_cache(model)
                yield Assistant(model, cache, fed, words, helper.facts.context)

    @property
    def works(self) -> bool:
        """Tell whether this reply is read ahead."""
        return self._ahead is not None

    def drafts(self) -> SpeculationStats | None:
        """Return the figures of the reply; None where it was not read ahead."""
        if self._ahead is None:
            return None
        facts = self._helper.facts if self._helper else None
        named = {"id": facts.id, "commit": facts.commit, "dtype": facts.dtype} if facts else {}
        return self._ahead.drafts(self._by, named)


def wanted(chosen: Settings) -> str:
    """Return the setting that replies are to be read ahead by, empty where there is none."""
    if chosen.decode.assistant != "none":
        return "assistant"
    return "prompt_lookup" if chosen.decode.prompt_lookup else ""


def load(chosen: Settings) -> Load:
    """Return how the assistant is loaded: in the format and on the devices of the model, without its extras."""
    own = dict(settings.address(chosen.decode.assistant))
    words = {name: settings.read(name, own[name]) for name in ("model", "revision") if own[name] != "default"}
    neutral = {"revision": "main", "gguf_file": "", "trust_remote_code": False, "quantize": "none", "adapter": "none"}
    if own["gguf_file"] != "default":
        neutral["gguf_file"] = own["gguf_file"]
    return replace(chosen.load, **{**neutral, **words})


def unfit(resident: Model, helper: Model) -> str:
    """Say why one model cannot assist another; empty where it can."""
    name, other = helper.facts.name, resident.facts.name
    if helper.model is resident.model:
        return f"{name} is the model itself"
    if resident.tokenizer.get_vocab() != helper.tokenizer.get_vocab():
        return f"{name} has another tokenizer than {other}"
    if refusal(helper.model, helper.model.generation_config, 1):
        return f"the KV cache of {name} cannot be cropped"
    return ""


def admit(resident: Model, chosen: Settings, emit: JobContext, get: Get) -> ModelInfo:
    """Load the assistant and tell what it is; raises `UsageError` where it cannot help this model."""
    helper = get(load(chosen), emit)
    if reason := unfit(resident, helper):
        raise UsageError(f"no assistant: {reason}", "/fast prompt_lookup")
    return helper.facts
