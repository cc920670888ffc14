"""Several replies to one prompt made together: one prefill, then each step of the model serves all rows that still run.

Every row has its own logits processors, stopping criteria and random numbers, as `generate` would prepare them for it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from repl.core import decoding
from repl.core.errors import Cancelled
from repl.core.events import Event, Notice, Progress, Token
from repl.core.explain import library_errors
from repl.core.jobs import ForwardingContext, JobContext
from repl.core.library_types import Tensor
from repl.core.reply import Reply
from repl.generation import arguments, engine
from repl.generation.decode import loop
from repl.generation.decode.kv_cache import can_reuse, is_plain_kv
from repl.generation.interface import Model, Request
from repl.generation.measure import scoring
from repl.generation.measure.forward import cancellable_forward, input_ids, nan_guard
from repl.generation.prompt.context_window import PromptIds, encode_prompt


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
        chosen = arguments.of_settings(resident, request.settings)
        decoding.fit_context(chosen.config, len(prompt.ids), facts.context, facts.id)
        self.request = request
        self.run = engine.ReplyRun(resident, request, prompt, chosen, emit, began)
        self.logprobs: list[float] = []
        self.made: BatchReply | None = None
        self.processors: Any = None
        self._criteria: Any = None
        self._random: Any = None
        self._resident = resident

    @property
    def length(self) -> int:
        """Return how many tokens there are."""
        return len(self.made.done.token_ids) if self.made else len(self.run.ids)

    def prepare(self, ids: Tensor) -> None:
        """Let the library make what `generate` would choose tokens with; the model is not run."""
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
        scores = self.processors(ids, logits)
        if self._random is None:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), num_samples=1, generator=self._random))

    def take(self, token: int, logprob: float) -> None:
        """Add a token."""
        now = time.monotonic()
        self.run.first_at, self.run.last_at = self.run.first_at or now, now
        self.run.ids.append(token)
        self.logprobs.append(logprob)

    def over(self, ids: Tensor) -> bool:
        """Tell whether the reply has ended, and close it then."""
        if not bool(self._criteria(ids, None).all()):
            return False
        self.close(self.run.ended(tuple(self.run.ids)))
        return True

    def close(self, finish: str) -> None:
        """Make the record of what is there."""
        found = self.run.sequence(self.run.ids)
        self.made = BatchReply(self.run.done([found], finish), tuple(self.logprobs[: len(found.token_ids)]))


class Batch:
    """The replies to make; `made` has one for each request, as far as it came."""

    def __init__(self, resident: Model, requests: Sequence[Request], emit: JobContext, exact: bool = False) -> None:
        began = time.monotonic()
        self._resident, self._emit = resident, emit
        first = arguments.of_settings(resident, requests[0].settings).config
        with library_errors("the prompt cannot be encoded"):
            prompt = encode_prompt(resident, requests[0], first.max_new_tokens or resident.facts.context, emit)
        self.prompt = prompt.ids
        self.rows = [BatchRow(resident, request, prompt, emit, began) for request in requests]
        self.alone = (
            "as asked" if exact else "" if is_plain_kv(resident.model) else "its cache cannot be copied for each row"
        )
        self._batch = [row for row in self.rows if not self.alone and self._shares(row)]
        self._live = list(self._batch)  # those that still run
        self._alone = [row for row in self.rows if row not in self._batch]
        self.together = len(self._batch)
        if self._alone and not self.alone:
            self.alone = "beams, or a setting that needs a cache of its own"

    def _shares(self, row: BatchRow) -> bool:
        model, config = self._resident.model, row.run.config
        return not loop.why_not(model, config) and can_reuse(model, config, len(self.prompt))

    @property
    def made(self) -> list[BatchReply | None]:
        """Return the replies, None for one that was not begun."""
        return [row.made for row in self.rows]

    def run(self) -> bool:
        """Make the replies; False where the user stopped it: what there is of each is kept."""
        try:
            if self._batch:
                self._batch[0].run.guard("the rows stopped", self._share)
            for row in self._alone:
                self._follow(row)
                if row.made and row.made.done.finish == "cancelled":
                    return False
            return True
        except Cancelled:
            self._emit.begin_cleanup()
            for row in self._batch:
                if row.made is None and row.run.ids:
                    row.close("cancelled")
            return False

    def _tell(self) -> None:
        done = sum(row.made is not None for row in self.rows)
        made = sum(row.length for row in self.rows)
        self._emit(Progress(f"sweep: {done} of {len(self.rows)} rows", made, 0, "tokens"))

    # one after another

    def _follow(self, row: BatchRow) -> None:
        """Make a reply by itself, as a message would."""
        self._tell()
        done = engine.generate_reply(self._resident, row.request, Muted(self._emit))
        row.made = BatchReply(done, done.measures.logprobs or self._scored(done))

    def _scored(self, done: Reply) -> tuple[float, ...]:
        ids = [*done.prompt_ids, *done.token_ids]
        scored = scoring.score(self._resident, ids, self._emit, len(done.prompt_ids), shared=True)
        return tuple(one.logprob for one in scored)

    # all at once

    def _share(self) -> None:
        model, kept, first = self._resident.model, self._resident.runtime.kv_cache, self._batch[0].run
        ids = input_ids(model, self.prompt)
        with cancellable_forward(model, self._emit.raise_if_cancelled):
            for row in self._batch:
                row.prepare(ids)
            with kept.lend(model, first.config, ids, lambda: self.prompt) as (past, reused):
                for row in self._batch:
                    row.run.reused = reused
                loop.generate(
                    model,
                    choice=self,
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=first.config,
                    tokenizer=self._resident.tokenizer,
                    **{**first.arguments.off, **past},
                )

    @property
    def copies(self) -> int:
        """Return how many rows come of the one prompt."""
        return len(self._live)

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Choose each row's next token in its own way; called by the decode loop."""
        logs = logits.log_softmax(-1)
        tokens = [row.choose(ids[at : at + 1], logits[at : at + 1]) for at, row in enumerate(self._live)]
        found = torch.tensor(tokens, device=ids.device)
        for row, token, logprob in zip(self._live, tokens, logs.gather(-1, found[:, None])[:, 0].tolist(), strict=True):
            row.take(token, logprob)
        return found

    def left(self, ids: Tensor) -> list[int]:
        """Return the places of the rows that go on, and close the others; called by the decode loop."""
        keep = [place for place, row in enumerate(self._live) if not row.over(ids[place : place + 1])]
        self._live = [self._live[place] for place in keep]
        self._tell()
        return keep


@dataclass(eq=False)
class Muted(ForwardingContext):
    """A job that hears nothing of a reply's text: `tell` is called for each token."""

    emit: JobContext
    tell: Callable[[], object] = lambda: None

    def __call__(self, event: Event) -> None:
        """Pass on progress and notices; raises `Cancelled`."""
        if isinstance(event, Token):
            self.tell()
        elif isinstance(event, Progress | Notice):
            self.emit(event)
        self.raise_if_cancelled()
