"""Several replies made together: one prefill, then each step of the model serves all rows that still run.

Every row has its own logits processors, stopping criteria and random numbers, as `generate` would prepare them for it.
Rows of one prompt share its reading; those of several prompts are padded on the left where the model reads past that.
"""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from repl.core import decoding
from repl.core.errors import Cancelled, library_errors
from repl.core.events import Progress
from repl.core.jobs import JobContext, Muted
from repl.core.library_types import Cache, PreTrainedModel, Tensor
from repl.core.reply import Reply
from repl.generation import engine
from repl.generation.decode import loop
from repl.generation.decode.kv_cache import cache_traits, can_reuse, is_plain_kv, narrow_window
from repl.generation.interface import Model, Request
from repl.generation.measure import scoring
from repl.generation.measure.forward import (
    cancellable_forward,
    input_device,
    input_ids,
    nan_guard,
    token_figures,
)
from repl.generation.measure.token_text import TOP_K_STORED
from repl.generation.prompt.chat_template import encode_prompt
from repl.generation.prompt.context_window import PromptIds
from repl.models import model_config, reference

PAD_TRIAL_TOKENS, TRIAL_PADS = 8, 3  # of a prompt that is tried with padding before it
PADDING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
"""Whether a loaded model reads a padded prompt as it reads the prompt alone."""


def can_pad(model: PreTrainedModel, prompt: Sequence[int]) -> bool:
    """Tell whether rows of several lengths give what each gives alone, with padding before the shorter ones.

    The first tokens of `prompt` are tried, once for a model: what it makes of them, and of what it goes on with.
    """
    if model not in PADDING:
        PADDING[model] = is_plain_kv(model) and _reads_past_padding(model, prompt[:PAD_TRIAL_TOKENS])
    return PADDING[model]


def _reads_past_padding(model: PreTrainedModel, tried: Sequence[int]) -> bool:
    ids = input_ids(model, tried)
    padded, mask = pad_left(model, [tried], len(tried) + TRIAL_PADS, tried[-1])
    try:
        with narrow_window(model_config.text_config(model.config)):
            alone = reference.generate_plainly(model, ids, tokens=TRIAL_PADS).logits
            beside = reference.generate_plainly(model, padded, tokens=TRIAL_PADS, mask=mask).logits
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):  # it cannot be asked so
        return False
    pairs = zip(beside, alone, strict=True)
    return all(reference.same_logits(one[0].float(), other[0].float(), model.dtype) for one, other in pairs)


def pad_left(model: PreTrainedModel, prompts: Sequence[Sequence[int]], width: int, pad: int) -> tuple[Tensor, Tensor]:
    """Return prompts as rows of one width and their attention mask, both of shape (prompts, width)."""
    gaps = [width - len(prompt) for prompt in prompts]
    rows = [[*[pad] * gap, *prompt] for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    device = input_device(model)
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


@dataclass(frozen=True, slots=True)
class BatchReply:
    """A reply, and the log-probability of each of its tokens in the model's own distribution, in nats."""

    done: Reply
    logprobs: tuple[float, ...]


class BatchRow:
    """One of several replies: how its tokens are chosen, and those that are there."""

    def __init__(self, resident: Model, request: Request, prompt: PromptIds, emit: JobContext, began: float) -> None:
        facts = resident.facts
        decoding.check_values(request.settings, facts.base)
        chosen = loop.Arguments.of_settings(resident, request.settings)
        decoding.fit_context(chosen.config, len(prompt.ids), facts.context, facts.id)
        self.request = request
        self.run = engine.ReplyRun(resident, request, prompt, chosen, emit, began)
        self.logprobs: list[float] = []
        self.pads = 0  # tokens of padding before the prompt
        self.made: BatchReply | None = None
        self.processors: Any = None
        self._criteria: Any = None
        self._random: Any = None
        self._resident = resident

    @property
    def listed(self) -> int:
        """Return how many alternatives are asked for at each token, 0 where they are not measured."""
        return self.request.settings.view.logprobs

    @property
    def room(self) -> int:
        """Return how many tokens there may be."""
        return int(self.run.config.max_new_tokens or self.run.config.max_length - len(self.run.prompt))

    @property
    def length(self) -> int:
        """Return how many tokens there are."""
        return len(self.made.done.token_ids) if self.made else len(self.run.ids)

    def prepare(self, width: int) -> None:
        """Let the library make what `generate` would choose tokens with; the model is not run."""
        self.pads = width - len(self.run.prompt)
        ids = input_ids(self._resident.model, self.run.prompt)
        self.processors, self._criteria = loop.capture_processors(
            self._resident.model,
            self.run.mask,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self.run.config,
            logits_processor=[nan_guard(self._resident.facts, ids.shape[-1], self.run.mask is not None)],
            tokenizer=self._resident.tokenizer,
            **self.run.arguments.off,
        )
        if self.run.seed is not None:  # the numbers that follow `torch.manual_seed`, apart from those of other rows
            self._random = torch.Generator(ids.device).manual_seed(self.run.seed)

    def choose(self, ids: Tensor, logits: Tensor) -> int:
        """Choose the next token; `ids` have shape (1, tokens), `logits` (1, vocab), which may be changed."""
        scores = self.processors(ids[:, self.pads :], logits)
        if self._random is None:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), num_samples=1, generator=self._random))

    def take(self, token: int, logprob: float) -> None:
        """Add a token."""
        now = time.monotonic()
        self.run.first_at, self.run.last_at = self.run.first_at or now, now
        self.run.ids.append(token)
        self.logprobs.append(logprob)

    def close_if_ended(self, ids: Tensor) -> bool:
        """Tell whether the reply has ended, and close it then."""
        if not bool(self._criteria(ids[:, self.pads :], None).all()):
            return False
        self.close(self.run.find_finish(tuple(self.run.ids)))
        return True

    def close(self, finish: str) -> None:
        """Make the record of what is there."""
        found = self.run.make_sequence(self.run.ids)
        self.run.add_texts(found.token_ids)
        self.made = BatchReply(self.run.make_reply([found], finish), tuple(self.logprobs[: len(found.token_ids)]))


class Batch:
    """The replies to make; `made` has one for each request, as far as it came.

    `prompts` are those of the requests where each has its own, of one length unless the model `can_pad`; without them
    all requests have the prompt of the first. `heard` is told the place of each reply as soon as it has ended.
    """

    def __init__(
        self,
        resident: Model,
        requests: Sequence[Request],
        emit: JobContext,
        exact: bool = False,
        prompts: Sequence[PromptIds] = (),
        heard: Callable[[int, BatchReply], object] = lambda place, made: None,
    ) -> None:
        began = time.monotonic()
        self._resident, self._emit, self._heard = resident, emit, heard
        self._one = not prompts  # all rows come of one prompt
        prompts = prompts or [self._encode(requests[0])] * len(requests)
        self.prompt = prompts[0].ids
        self.rows = [
            BatchRow(resident, request, prompt, emit, began) for request, prompt in zip(requests, prompts, strict=True)
        ]
        self.alone = (
            "as asked" if exact else "" if is_plain_kv(resident.model) else "its cache cannot be copied for each row"
        )
        self._batch = [row for row in self.rows if not self.alone and self._can_share(row)]
        self._live = list(self._batch)  # those that still run
        self._alone = [row for row in self.rows if row not in self._batch]
        self.together = len(self._batch)
        if self._alone and not self.alone:
            self.alone = "beams, or a setting that needs its own cache"

    def _encode(self, request: Request) -> PromptIds:
        config = loop.Arguments.of_settings(self._resident, request.settings).config
        with library_errors("the prompt cannot be encoded"):
            wanted = config.max_new_tokens or self._resident.facts.context
            return encode_prompt(self._resident, request, wanted, self._emit)

    def _can_share(self, row: BatchRow) -> bool:
        model, config, prompt = self._resident.model, row.run.config, len(row.run.prompt)
        limit = 0 if self._one else cache_traits(model).scaling_start  # behind it all rows would be read in another way
        fits = not limit or prompt + row.room <= limit
        own = row.run.ban or row.run.switch  # what takes tokens back, or goes by the places of one text
        return fits and not own and not loop.why_not(model, config) and can_reuse(model, config, prompt)

    @property
    def made(self) -> list[BatchReply | None]:
        """Return the replies, None for one that was not begun."""
        return [row.made for row in self.rows]

    def run(self) -> bool:
        """Make the replies; False where the user stopped it: what there is of each is kept."""
        try:
            if self._batch:
                self._batch[0].run.guard("the batch stopped", self._share)
            for row in self._alone:
                self._follow(row)
                if row.made and row.made.done.finish == "cancelled":
                    return False
            return True
        except Cancelled:
            self._emit.begin_cleanup()
            for row in self._batch if self._one else ():
                if row.made is None and row.run.ids:
                    row.close("cancelled")
            return False

    def _emit_progress(self) -> None:
        done = sum(row.made is not None for row in self.rows)
        made = sum(row.length for row in self.rows)
        self._emit(Progress(f"sweep: {done} of {len(self.rows)} rows", made, 0, "tokens"))

    # one after another

    def _follow(self, row: BatchRow) -> None:
        """Make a reply by itself, as a message would."""
        self._emit_progress()
        done = engine.generate_reply(self._resident, row.request, Muted(self._emit))
        row.made = BatchReply(done, done.measures.logprobs or self._score(done))
        self._report_end(row)

    def _score(self, done: Reply) -> tuple[float, ...]:
        ids = [*done.prompt_ids, *done.token_ids]
        scored = scoring.score(self._resident, ids, self._emit, len(done.prompt_ids), shared=True)
        return tuple(one.logprob for one in scored)

    # all at once

    def _share(self) -> None:
        model, first = self._resident.model, self._batch[0].run
        prompts = [self.prompt] if self._one else [row.run.prompt for row in self._batch]
        width = max(map(len, prompts))
        ids, mask = pad_left(model, prompts, width, self.prompt[-1])
        with cancellable_forward(model, self._emit.raise_if_cancelled):
            for row in self._batch:
                row.prepare(width)
            with self._lend_cache(ids) as (past, reused):
                for row in self._batch:
                    row.run.reused = reused
                loop.generate(
                    model,
                    choice=self,
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=self._config(width),
                    tokenizer=self._resident.tokenizer,
                    **{**first.arguments.off, **past},
                )

    def _lend_cache(self, ids: Tensor) -> AbstractContextManager[tuple[dict[str, Cache], int]]:
        """Return the kept cache of the one prompt; prompts of their own are read from their beginnings."""
        kept, config = self._resident.runtime.kv_cache, self._batch[0].run.config
        return kept.lend(self._resident.model, config, ids, lambda: self.prompt) if self._one else nullcontext(({}, 0))

    def _config(self, width: int) -> Any:
        """Return the generation config of the call: each row has its own limit on length, and ends by that."""
        config = copy.copy(self._batch[0].run.config)
        if not self._one:
            config.max_length, config.max_new_tokens = None, max(row.room for row in self._batch)
        return config

    @property
    def copies(self) -> int:
        """Return how many rows come of each prompt."""
        return len(self._live) if self._one else 1

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Choose each row's next token in its own way; called by the decode loop."""
        logs = logits.log_softmax(-1)
        tokens = [row.choose(ids[at : at + 1], logits[at : at + 1]) for at, row in enumerate(self._live)]
        found = torch.tensor(tokens, device=ids.device)
        for row, token, logprob in zip(self._live, tokens, logs.gather(-1, found[:, None])[:, 0].tolist(), strict=True):
            row.take(token, logprob)
        if most := max(row.listed for row in self._live):
            figures = token_figures(logs, tokens, max(most, TOP_K_STORED))
            for row, one in zip(self._live, figures, strict=True):
                row.run.meter.add_figures(one)
        return found

    def left(self, ids: Tensor) -> list[int]:
        """Return the places of the rows that go on, and close the others; called by the decode loop."""
        ended = {place for place, row in enumerate(self._live) if row.close_if_ended(ids[place : place + 1])}
        for place in sorted(ended):
            self._report_end(self._live[place])
        keep = [place for place in range(len(self._live)) if place not in ended]
        self._live = [self._live[place] for place in keep]
        self._emit_progress()
        return keep

    def _report_end(self, row: BatchRow) -> None:
        assert row.made is not None
        if row.made.done.finish != "cancelled":
            self._heard(self.rows.index(row), row.made)
