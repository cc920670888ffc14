"""Read ahead: tokens are proposed, the model checks them in one pass, and the ids are those of the plain loop."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any, Protocol

from repl import library, loop, reuse
from repl.events import Drafts
from repl.threads import Threads

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
    """A decode loop for `generate(custom_generate=...)` that checks proposals; it serves one reply.

    Each token is chosen as the plain loop would choose it, processors, random draws and stopping criteria included:
    a proposal only saves the pass of its own where it is what was chosen. `limit` is the length of text up to which
    there are proposals (0: no such limit); `criteria` end the reply besides those of the config.
    """

    def __init__(
        self,
        drafter: Drafter,
        most: int,
        limit: int,
        streamer: Any,
        criteria: Sequence[Any] = (),
        threads: Threads | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter, self._most, self._limit, self._clock = drafter, most, limit, clock
        self.streamer, self._criteria, self._threads = streamer, criteria, threads or Threads()
        self._balance = Balance()
        self.passes = self.tried = self.proposed = self.accepted = 0

    def __call__(
        self,
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Generate one sequence, `input_ids` of shape (1, tokens); returns what the library's own loop returns."""
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        stopping_criteria.extend(self._criteria)
        text = Text(model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
        most = min(generation_config.max_length, self._limit or generation_config.max_length)
        with self._threads.minded(model):
            output = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
            ended = bool(text.take(output, [], self.streamer.put)[1])
            text.quicken(output)
            del output
            self._drafter.read(text.ids)
            with getattr(model, "_optimize_model_for_decode", nullcontext)():
                while not ended:
                    ended = self._step(text, most)
        self.streamer.end()
        if not generation_config.return_dict_in_generate:
            return text.tensor
        return GenerateDecoderOnlyOutput(sequences=text.tensor, **{library.cache_name(): text.cache})

    def _step(self, text: "Text", most: int) -> bool:
        """Make one pass and take what it brings; True where the reply has ended."""
        began = self._clock()
        room = min(self._most, most - len(text.ids) - 1)
        room = self._balance.affords(room) if room > 0 else 0
        draft = self._drafter.propose(text.ids, room) if room else []
        ready = self._clock()
        with nullcontext() if draft else self._threads.step():
            output = text.forward(draft)
        made, ended = text.take(output, draft, self.streamer.put)
        self._balance.took(self._clock() - ready, len(draft), made, ready - began)
        self._count(len(draft), made)
        return ended

    def _count(self, proposed: int, made: int) -> None:
        self.passes += 1
        if not proposed:
            return
        self.tried += 1
        self.proposed += proposed
        self.accepted += made - 1  # the last one is the model's own

    def drafts(self, by: str, model: dict[str, Any]) -> Drafts:
        """Return the figures of the reply."""
        return Drafts(by, self.passes, self.tried, self.proposed, self.accepted, model)


class Text:
    """The text of a reply on its way: its ids, the cache, and how the next token is chosen."""

    def __init__(
        self, model: Any, tensor: Any, processors: Any, criteria: Any, config: Any, words: dict[str, Any]
    ) -> None:
        self._model, self._processors, self._criteria, self._config = model, processors, criteria, config
        self._words = words  # what goes into each forward pass
        self._quick = False  # whether passes for one token need not be prepared by the model
        self.tensor = tensor  # shape (1, tokens)
        self.ids: list[int] = tensor[0].tolist()

    @property
    def cache(self) -> Any:
        """Return the cache that the passes fill."""
        return self._words[library.cache_name()]

    def quicken(self, output: Any) -> None:
        """Let steps of one token go the way of the plain loop, if this model allows it; `output` is the prefill's."""
        if loop.plain(self._model, output, self._words):
            self._quick = True

    def _single(self) -> dict[str, Any]:
        """Return the arguments of a pass for the last token."""
        names = (library.cache_name(), "use_cache", "logits_to_keep")
        places = self._words.get("position_ids")
        last = {} if places is None else {"position_ids": places[:, -1:]}
        return {"input_ids": self.tensor[:, -1:], **last, **{n: self._words[n] for n in names if n in self._words}}

    def forward(self, draft: list[int]) -> Any:
        """Feed the last token and a draft behind it."""
        ids, words = self.tensor, self._words
        if not draft and self._quick and words.get("attention_mask") is None:
            return self._model(**self._single(), return_dict=True)
        if draft:
            ids = self._longer(draft)
            words = self._model._update_model_kwargs_for_generation({}, dict(words), num_new_tokens=len(draft))
        if "logits_to_keep" in words:
            words = {**words, "logits_to_keep": len(draft) + 1}
        inputs = self._model.prepare_inputs_for_generation(ids, next_sequence_length=len(draft) + 1, **words)
        return self._model(**inputs, return_dict=True)

    def take(self, output: Any, draft: list[int], put: Callable[[Any], None]) -> tuple[int, bool]:
        """Choose tokens for as long as the draft has them; returns how many, and whether the reply has ended."""
        rows = output.logits[:, -len(draft) - 1 :]
        made, ended = 0, False
        for row, proposed in enumerate([*draft, None]):
            token = self._choose(rows[:, row])
            chosen = int(token)
            if chosen != proposed and row < len(draft):
                reuse.cropped(self.cache, len(self.ids))  # before anybody hears of it: a cancel may come any time
            self.ids.append(chosen)
            self.tensor = self._longer([chosen])
            made += 1
            ended = bool(self._criteria(self.tensor, None).all())
            put(token.cpu())
            if ended or chosen != proposed:
                break
        self._words = self._model._update_model_kwargs_for_generation(output, self._words, num_new_tokens=made)
        return made, ended

    def _choose(self, logits: Any) -> Any:
        """Return the next token, shape (1,), from logits of shape (1, vocab), as the library's own loop does."""
        import torch

        scores = self._processors(self.tensor, logits.to(copy=True, dtype=torch.float32, device=self.tensor.device))
        if self._config.do_sample:
            return torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        return scores.argmax(-1)

    def _longer(self, ids: list[int]) -> Any:
        import torch

        return torch.cat([self.tensor, self.tensor.new_tensor([ids])], -1)


def refusal(model: Any, config: Any, prompt: int) -> str:
    """Say why nothing can be read ahead with this model and generation config; empty where it can."""
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        return "it works with one sequence at a time"
    from transformers import GenerationMixin

    parts = ("generate", "_sample", "_prefill", "_update_model_kwargs_for_generation")
    if any(getattr(type(model), name, None) is not getattr(GenerationMixin, name, 0) for name in parts):
        return "this model makes its tokens in a way of its own"
    if not reuse.fits(model, config, prompt) or reuse.remembering(model) is None:
        return "what this model keeps of a text, as things stand, cannot be taken back token by token"
    return ""
