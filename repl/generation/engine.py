"""From a request to a reply: check the settings, encode the prompt, call `generate`, stream, make the record."""

import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib.metadata import version
from typing import Any

import torch
from transformers import TextIteratorStreamer

from repl.core import decoding
from repl.core.errors import Cancelled, ReplError, UsageError, library_errors
from repl.core.events import Notice, Progress, PromptEcho, Token
from repl.core.jobs import JobContext, T
from repl.core.library_types import BaseStreamer, Cache, ModelOutput, PreTrainedTokenizerBase, Tensor
from repl.core.parts import Parts
from repl.core.reply import (
    BeamSearch,
    Environment,
    ModelRecord,
    Reply,
    Sequence,
    Timing,
    TokenLogprobs,
    Usage,
)
from repl.core.settings import Settings
from repl.generation.decode import loop
from repl.generation.decode.beams import Watch, token_logprobs
from repl.generation.decode.detokenizer import Begun, Detokenizer, Reading, spell_tokens
from repl.generation.decode.drafters import Drafting, Get
from repl.generation.decode.format_mask import make_mask
from repl.generation.decode.kv_cache import croppable_cache
from repl.generation.decode.loop import Arguments
from repl.generation.decode.phrase_ban import PhraseBan, TextSoFar
from repl.generation.decode.thought import make_switch
from repl.generation.interface import Model, Request
from repl.generation.measure.forward import Meter, cancellable_forward, hear_logits, input_ids, model_errors, nan_guard
from repl.generation.prompt import chat_template
from repl.generation.prompt.chat_template import encode_prompt
from repl.generation.prompt.context_window import PromptIds
from repl.generation.word_forms import Phrases
from repl.models.memory.out_of_memory import out_of_memory
from repl.models.store import ModelInfo


def generate_reply(resident: Model, request: Request, emit: JobContext, get: Get | None = None) -> Reply:
    """Answer a request with `Token` or `Beams` events; a cancelled reply is returned with what there is of it.

    `get` brings another model beside it, the assistant. Raises `UsageError` before anything is made, `NoMemory` or
    `Failed` when the model gives up.
    """
    began = time.monotonic()
    decoding.check_values(request.settings, resident.facts.base)
    chosen = Arguments.of_settings(resident, request.settings)
    with library_errors("the prompt cannot be encoded"):
        prompt = encode_prompt(resident, request, chosen.config.max_new_tokens or resident.facts.context, emit)
        if chosen.config.token_healing:
            prompt, chosen = heal_prompt(resident, request, chosen, prompt)
    if cut := decoding.fit_context(chosen.config, len(prompt.ids), resident.facts.context, resident.facts.id):
        emit(Notice(cut))
    if chosen.loosely:
        said = f"banned phrases are kept out as their usual tokens alone: {chosen.loosely}"
        resident.runtime.mention(said, emit)
    run = ReplyRun(resident, request, prompt, chosen, emit, began, get)
    try:
        return run.make_reply(*run.generate())
    except Cancelled:
        emit.begin_cleanup()
        with library_errors("the reply cannot be decoded"):
            return run.make_reply(run.emit_best(run.read_partial()), "cancelled")
    except ReplError as error:
        emit.begin_cleanup()
        with suppress(ReplError), library_errors("the reply cannot be decoded"):
            error.partial = run.make_reply(run.read_partial(), "failed")
        raise


def heal_prompt(resident: Model, request: Request, chosen: Arguments, prompt: PromptIds) -> tuple[PromptIds, Arguments]:
    """Let the library replace the prompt's last token, before the reply: the record then has the ids that count."""
    if request.chats:
        said = "token_healing would remove control tokens from a chat prompt: it is for plain text"
        raise UsageError(said, "/set token_healing none", "/raw TEXT")
    ids = input_ids(resident.model, prompt.ids)
    found = resident.model.heal_tokens(ids, resident.tokenizer)[0].tolist()
    chosen.config.token_healing = False
    return replace(prompt, ids=found), replace(chosen, given={**chosen.given, "token_healing": False})


def reading(resident: Model, request: Request, prompt: list[int], emit: JobContext) -> Reading | None:
    """Return the reader of a chat reply's text, thought and tool calls; None for a text that is completed."""
    begun = request.begun or (Begun(request.prefill, request.prefill) if request.chats else None)
    tell = partial(resident.runtime.mention, emit=emit)
    return Reading(resident.tokenizer, prompt, begun, tell) if begun else None


class ExactStreamer(TextIteratorStreamer):  # type: ignore[misc]  # mypy does not follow the library
    """One reply of `generate` as `Token` events: a `TextIteratorStreamer` whose text is exact and comes at once.

    `seed` are the prompt's ids where prompt and reply are one text, `eos` the ids that end the row; `measure` gives
    the fields `logprob`, `entropy`, `top` of a token's event.

    `put` gets the prompt first (skipped), then a step: shape `(batch,)`, of which row 0 is streamed, or `(1, k)`.
    Pieces go to `emit`, which may raise, or to whoever iterates. One streamer serves one reply.
    """

    next_tokens_are_prompt: bool

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        emit: Callable[[Token], None] | None = None,
        seed: list[int] | tuple[int, ...] = (),
        eos: Collection[int] = (),
        measure: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._detokenizer = Detokenizer(tokenizer, seed)
        self._emit = emit or self.text_queue.put
        self._eos = frozenset(eos)
        self._measure = measure
        self._complete = False  # the row has ended: what follows is padding

    def put(self, value: Tensor) -> None:
        """Stream the ids of one step, a tensor of shape `(batch,)` or `(1, k)`; passes on what `emit` raises."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        row = value.tolist()[0]
        for token_id in row if isinstance(row, list) else [row]:
            if not self._complete:
                self._say(token_id)

    def _say(self, token_id: int) -> None:
        fields = self._measure(token_id) if self._measure else {}
        text = self._detokenizer.feed(token_id)
        self._complete = token_id in self._eos
        self._emit(Token(text, token_id, **fields))

    def end(self) -> None:
        """Send the rest of the text, where there is one, and end the stream."""
        try:
            if rest := self._detokenizer.flush():
                self._emit(Token(rest))
        finally:
            self.text_queue.put(None)


class ReplyRun:
    """One call of `generate`: its inputs, the tokens and text so far, and the record at the end."""

    def __init__(
        self,
        resident: Model,
        request: Request,
        prompt: PromptIds,
        chosen: Arguments,
        emit: JobContext,
        began: float,
        get: Get | None = None,
    ) -> None:
        self.resident, self.request, self.arguments, self.emit = resident, request, chosen, emit
        self.config = config = chosen.config
        self.prompt, self.dropped = prompt.ids, prompt.dropped
        self.began = began
        self.blocks_read = 0  # of the model, in the pass over the prompt
        self.reused = 0  # tokens of the prompt that the kept cache holds
        self.ids: list[int] = []  # made so far
        self.pieces: list[str] = []  # their text, as it was told
        self.reader: Any = None  # cuts what is shown into its parts
        self.first_at = self.last_at = 0.0
        think = dict(request.settings.decode.think or ())
        self.switch = make_switch(think, resident.tokenizer, self.reading, len(prompt.ids), config) if think else None
        given = request.settings.decode.seed
        self.seed = (secrets.randbits(31) if given is None else given) if config.do_sample else None
        drafts, beams = decoding.draft_source(request.settings), (config.num_beams or 1) > 1
        formed = bool(request.settings.decode.format)
        self.mask = make_mask(resident, request, prompt.ids, config) if formed else None
        alone = "tokens may be taken back where phrases are banned" if chosen.phrases else ""
        reads_ahead = drafts or self.mask
        self.drafting = Drafting(resident, request.settings, emit, get, self.mask, alone) if reads_ahead else None
        ends = decoding.end_ids(config)
        self.watch = Watch(resident.tokenizer, emit, not config.do_sample, ends) if beams else None
        self.token_logprobs: tuple[tuple[float, ...], ...] = ()  # of each sequence that a beam search returned
        several = bool(getattr(config, "prompt_lookup_num_tokens", None))
        self.meter = Meter(resident.tokenizer, request.settings.view.logprobs, several)
        self.ban = self._phrase_ban(chosen.phrases) if chosen.phrases else None

    def _phrase_ban(self, phrases: Phrases) -> PhraseBan:
        """Return the filter that takes back tokens which complete a banned phrase."""
        begun = TextSoFar.behind(self.resident.tokenizer, self.before, phrases)
        return PhraseBan(phrases, begun, self.meter, self.emit, bool(self.config.do_sample))

    @property
    def before(self) -> list[int]:
        """Return the ids that are one text with the reply: the prompt where it is continued, none in a chat."""
        return self.prompt if self.request.seeded else []

    @cached_property
    def reading(self) -> Reading | None:
        """The reader of the reply's parts; None for a text that is completed."""
        return reading(self.resident, self.request, self.prompt, self.emit)

    def _spell(self, ids: list[int] | tuple[int, ...]) -> Iterator[Token]:
        return spell_tokens(self.resident.tokenizer, self.before, ids)

    # generate

    def generate(self) -> tuple[list[Sequence], str]:
        """Run the library's `generate`; raises `Cancelled`, or one `ReplError` for whatever the library raises."""
        return self.guard("the reply stopped", self._generate)

    def guard(self, what: str, work: Callable[[], T]) -> T:
        """Work with the model; whatever a library raises is one `ReplError`, and memory that ran out is given back."""
        said = partial(out_of_memory, self.resident, self.config, len(self.prompt))
        with model_errors(self.resident, self.emit, what, said):
            return work()

    def _generate(self) -> tuple[list[Sequence], str]:
        with ExitStack() as hooks:
            if self.reading:
                self.reading.open(self.emit)
                self.reader = self.reading.begin()
            elif self.request.text:
                text = self.resident.tokenizer.decode(self.prompt, skip_special_tokens=True)
                self.emit(PromptEcho(text))
            hooks.enter_context(cancellable_forward(self.resident.model, self._check_cancel))
            if not self.watch:
                hooks.enter_context(self.meter.reading(self.resident.model))
            elif self.mask and not self.config.prefill_chunk_size:  # then several passes read the prompt
                hooks.enter_context(hear_logits(self.resident.model, self.mask.hear))
            sequences = self._sequences(self._call())
        finish = "cancelled" if self.emit.stopped() else self.find_finish(sequences[0].token_ids)
        return self.emit_best(sequences), finish

    def _call(self) -> ModelOutput:
        if self.seed is not None:
            torch.manual_seed(self.seed)
        model = self.resident.model
        ids = input_ids(model, self.prompt)
        self.config.return_dict_in_generate = True
        self.config.output_scores = self.watch is not None  # the library computes sequence scores only then
        streamer = None if self.watch else self._streamer()
        with ExitStack() as stack:
            cache, self.reused = stack.enter_context(self._lend_cache(ids))
            proposals = None
            if self.drafting:
                proposals, cache = stack.enter_context(self.drafting.proposals(self.config, ids, cache))
            self.meter.several |= proposals is not None
            return loop.generate(
                model,
                proposals,
                mask=self.mask,
                ban=self.ban,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self.config,
                logits_processor=[
                    *([self.watch] if self.watch else []),
                    nan_guard(self.resident.facts, len(self.prompt), bool(self.mask or self.config.bad_words_ids)),
                    *([self.ban] if self.ban else []),
                    *([self.switch] if self.switch else []),
                ],
                stopping_criteria=[self._stop_beams],
                tokenizer=self.resident.tokenizer,
                streamer=streamer,
                **{**self.arguments.off, **cache},
            )

    def _streamer(self) -> BaseStreamer:
        measure = self.ban.next_figures if self.ban else self.meter.measure
        ends = decoding.end_ids(self.config)
        streamer = ExactStreamer(self.resident.tokenizer, self._emit_token, self.before, ends, measure)
        return self.ban.stream(streamer) if self.ban else streamer

    def _lend_cache(self, ids: Tensor) -> AbstractContextManager[tuple[dict[str, Cache], int]]:
        kept = self.resident.runtime.kv_cache
        stays = self.ban is None or croppable_cache(self.resident.model) is not None
        if self.request.settings.decode.reuse and stays:
            return kept.lend(self.resident.model, self.config, ids, lambda: [*self.prompt, *self.ids])
        kept.drop()
        return nullcontext(({}, 0))

    def _emit_token(self, token: Token) -> None:
        """Pass a token on; raises `Cancelled`. What was shown is kept, whenever the reply is broken off."""
        with self.emit.uninterruptible():
            self.emit(self._add_pieces(token))
            self.last_at = time.monotonic()
            self.first_at = self.first_at or self.last_at
            self.pieces.append(token.text)
            self.meter.add_text(token.id, token.text)
            if token.id is not None:
                self.ids.append(token.id)

    def _add_pieces(self, token: Token) -> Token:
        pieces = self.reading.take(self.reader, token) if self.reading else ()
        return replace(token, pieces=pieces) if pieces else token

    def _stop_beams(self, ids: Tensor, _: object) -> Tensor:
        """End a beam search that was cancelled, keeping the best so far."""
        return torch.full((ids.shape[0],), bool(self.watch) and self.emit.stopped(), device=ids.device)

    def _check_cancel(self) -> None:
        """Raise `Cancelled` before a layer, and emit how much of the prompt is read: a share for each layer.

        A beam search past its prompt is not stopped here: it ends by `_stop_beams` and keeps its best.
        """
        if self.watch and self.watch.steps:
            return
        self.emit.raise_if_cancelled()
        if not self.ids:
            count, blocks = len(self.prompt) - self.reused, max(1, self.resident.facts.layers)
            self.blocks_read = min(blocks, self.blocks_read + 1)
            self.emit(Progress("reading", count * (self.blocks_read - 1) // blocks, count, "tokens"))

    # tell

    def _sequences(self, output: ModelOutput) -> list[Sequence]:
        rows = output.sequences[:, len(self.prompt) :].tolist()
        scores = getattr(output, "sequences_scores", None)
        listed = [None] * len(rows) if scores is None else scores.tolist()
        if self.watch and self.watch.scored:
            self.token_logprobs = token_logprobs(output, len(self.prompt))
        return [self.make_sequence(row, score) for row, score in zip(rows, listed, strict=True)]

    def make_sequence(self, row: list[int], score: float | None = None) -> Sequence:
        """Return ids that were made, without what follows their end, and the text that they add."""
        ends = [place for place, token in enumerate(row) if token in decoding.end_ids(self.config)]
        kept = row[: ends[0] + 1] if ends else row  # what follows the end is padding
        return self._split_parts("".join(token.text for token in self._spell(kept)), kept, score)

    def add_texts(self, ids: tuple[int, ...]) -> None:
        """Tell the meter the text of tokens that nobody was shown one by one."""
        for token in self._spell(ids):
            self.meter.add_text(token.id, token.text)

    def _split_parts(self, raw: str, ids: list[int], score: float | None = None) -> Sequence:
        """Return text that was made with its parts, without those of what the reply was made to begin with."""
        parts = self._own(self.reading.parts(raw, ids)) if self.reading else Parts(answer=raw)
        return Sequence(parts.answer, tuple(ids), score, raw, parts.thinking, parts.tool_calls)

    def _own(self, whole: Parts) -> Parts:
        assert self.reading is not None
        own = whole.since(self.reading.begun)
        if own is None:  # what came later made something else of the beginning
            self.reading.begun, own = Parts(), whole
        return own

    def emit_best(self, sequences: list[Sequence]) -> list[Sequence]:
        """Emit the winner of a beam search as tokens: the search itself has none to stream."""
        if self.watch:
            self.emit.begin_cleanup()
            for token in self._spell(sequences[0].token_ids):
                self.emit(self._add_pieces(token))
        return sequences

    def read_partial(self) -> list[Sequence]:
        """Return the unfinished sequences of a reply that was stopped, after emitting the text that was held back."""
        if self.watch:
            return [self.make_sequence(self.watch.best())]
        with suppress(ReplError), library_errors("the tokenizer cannot decode the end of the reply"):
            # from the ids alone: the streamer may have read a token that was not passed on
            whole = "".join(token.text for token in self._spell(self.ids))
            told = "".join(self.pieces)
            if whole.startswith(told) and whole != told:
                self._emit_token(Token(whole[len(told) :]))
        return [self._split_parts("".join(self.pieces), self.ids)]

    def find_finish(self, ids: tuple[int, ...]) -> str:
        """Tell why a reply of these ids has ended: stop, length or stop_string."""
        if ids and ids[-1] in decoding.end_ids(self.config):
            return "stop"
        full = self.config.max_new_tokens or (self.config.max_length or 0) - len(self.prompt)
        strings = self.config.stop_strings or ()
        if strings and self.config.max_time is not None:  # either of them may have been it
            text = "".join(token.text for token in self._spell(ids))
            strings = [each for each in strings if each in text]
        limited = len(ids) >= full or (self.config.max_time is not None and not strings)
        return "length" if limited else "stop_string" if strings else "stop"

    def make_reply(self, sequences: list[Sequence], finish: str) -> Reply:
        """Return the reply with its record."""
        facts, settings = self.resident.facts, self.request.settings
        best = sequences[0]
        if rest := self.reader.end() if self.reader else ():
            self.emit(Token("", pieces=rest))
        return Reply(
            text=best.text,
            raw=best.raw,
            thinking=best.thinking,
            tool_calls=best.tool_calls,
            begun=self.reading.begun if self.reading else Parts(),
            prompt_ids=tuple(self.prompt),
            token_ids=best.token_ids,
            finish=finish,
            model=describe_model(facts, settings),
            load={name: getattr(settings.load, name) for name in settings.load.__slots__},
            decode=self._decode(),
            seed=self.seed,
            usage=Usage(len(self.prompt), self.reused, len(best.token_ids)),
            timing=self._timing(len(best.token_ids)),
            sequences=tuple(sequences) if len(sequences) > 1 or self.watch else (),
            dropped=self.dropped,
            versions=versions(),
            given=self.arguments.recorded(),
            system=self.request.system,
            prefill=self.request.prefill,
            template=chat_template.template_values(settings.extra) if self.request.chats else {},
            environment=describe_environment(facts),
            search=self._search(sequences),
            measures=TokenLogprobs() if self.watch else self.meter.measures(best.token_ids),
            drafts=self.drafting.stats() if self.drafting else None,
            format=self.mask.cost(best.token_ids) if self.mask else None,
            thought=self.switch.record(len(best.token_ids)) if self.switch else None,
            taken_back=self.ban.taken_back(len(best.token_ids)) if self.ban else (),
        )

    def _search(self, sequences: list[Sequence]) -> BeamSearch | None:
        if self.watch is None:
            return None
        return self.watch.search(self.before, [found.token_ids for found in sequences], self.token_logprobs)

    def _decode(self) -> dict[str, Any]:
        table = decoding.effective_values(self.request.settings, self.resident.facts.base)
        values = {name: item.value for name, item in table.items() if name != "seed"}
        values = {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}  # as JSON
        return {**values, **{name: getattr(self.config, name) for name in decoding.LENGTH_LIMITS if name in values}}

    def _timing(self, made: int) -> Timing:
        now = time.monotonic()
        shown, last = (self.watch.first_at, now) if self.watch else (self.first_at, self.last_at)
        first = self.ban.first_at if self.ban else shown
        steps = self.watch.steps if self.watch else made
        return Timing(
            ttft_s=shown - self.began if shown else None,
            prefill_tps=(len(self.prompt) - self.reused) / (first - self.began) if first else None,
            decode_tps=(steps - 1) / (last - first) if steps > 1 and last > first else None,
            total_s=now - self.began,
        )


# where a reply comes from


def describe_model(facts: ModelInfo, settings: Settings) -> ModelRecord:
    """Return the model of a record: of what is known of a loaded one, what has a field there."""
    known = {name: getattr(facts, name) for name in ModelRecord.__slots__ if hasattr(facts, name)}
    return ModelRecord(revision=settings.load.revision, **known)


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a reply is."""
    return {name: version(name) for name in ("transformers", "torch", "tokenizers")}


def describe_environment(facts: ModelInfo) -> Environment:
    """Return attention kernel, threads and devices: they may decide between two tokens that are nearly as likely."""
    places = sorted(set(facts.device_map.values()))
    names = {place: torch.cuda.get_device_name(place) for place in places if place.startswith("cuda")}
    devices = {"cpu": torch.backends.cpu.get_cpu_capability(), **names}
    return Environment(facts.attention, torch.get_num_threads(), devices)
