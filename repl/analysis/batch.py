"""Many prompts answered: rows of like length run together in this process, several requests at once with a server.

In come prompts, one after another; out goes each answer as soon as it is there, or what kept it from being made.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from threading import Lock  # noqa: TID251 it starts none
from typing import TYPE_CHECKING, Any, TypeAlias

from repl.analysis.prompt_file import STDOUT, Prompt, PromptFile, Results, open_results
from repl.core import decoding
from repl.core.errors import Cancelled, Failed, NoMemory, ReplError, Unreachable
from repl.core.events import Event, Notice, Progress
from repl.core.format import counted, join_facts, rate
from repl.core.jobs import Aside, JobContext, beside
from repl.core.reply import Reply
from repl.generation import decode
from repl.generation.interface import Model, Request
from repl.generation.prompt.chat_template import encode_prompt
from repl.generation.prompt.context_window import PromptIds
from repl.models.memory import available, estimate
from repl.remote.engine import Remote
from repl.session.results import Message

if TYPE_CHECKING:
    from repl.generation.decode.batch import BatchReply

WINDOW_PROMPTS = 512  # read ahead, to be put together by length
MAX_ROWS = 64  # that run together
MAX_BATCH_TOKENS = 2**16  # prompts and replies of all rows together, where memory allows so many
MEMORY_SHARE = 3  # of the memory that is free, a third may hold keys and values
Put: TypeAlias = Callable[["Answered"], object]


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with its reply and the log-probabilities of its tokens in nats, or with what kept it from being made."""

    prompt: Prompt
    done: Reply | None = None
    logprobs: tuple[float, ...] = ()
    problem: ReplError | None = None

    def record(self) -> dict[str, Any]:
        """Return the result as it is written: with the names that `done` has in --json."""
        prompt, done, error = self.prompt, self.done, self.problem
        asked = {"line": prompt.line, "id": prompt.id, "prompt": prompt.asked.text}
        if done is None:
            assert error is not None
            return {**asked, "error": {"kind": error.kind, "message": error.message, "hints": list(error.hints)}}
        names = ("text", "thinking", "tool_calls", "raw", "prompt_ids", "token_ids", "finish", "seed")
        told = {**{name: getattr(done, name) for name in names}, "model": done.model.id}
        told |= {"usage": asdict(done.usage), "timing": asdict(done.timing)}
        told |= {"sequences": [asdict(one) for one in done.sequences]} if done.sequences else {}
        listed = prompt.settings.view.logprobs
        return {**asked, **told, **({"logprobs": done.logprobs(listed)} if listed else {})}


@dataclass(eq=False)
class Quiet(JobContext):
    """A job that hears of single replies what the user should read, once, and nothing else."""

    emit: JobContext
    said: set[str] = field(default_factory=set)

    def __call__(self, event: Event) -> None:
        """Pass on a notice; raises `Cancelled`."""
        self.raise_if_cancelled()
        if isinstance(event, Notice) and event.text not in self.said:
            self.said.add(event.text)
            self.emit(event)


class AsideQuiet(Aside, Quiet):
    """The same on a thread of its own."""


# in this process


@dataclass(frozen=True, slots=True)
class Ready:
    """A prompt that is encoded: `longest` is how many tokens it has with its reply, at most."""

    prompt: Prompt
    request: Request
    ids: PromptIds
    longest: int


class LocalBatches:
    """Answers prompts with a model in this process, as many together as memory allows, or so many `rows`."""

    def __init__(self, resident: Model, emit: JobContext, put: Put, rows: int = 0) -> None:
        self._resident, self._emit, self._put = resident, Quiet(emit), put
        self._rows = rows or MAX_ROWS
        self._tokens = most_tokens(resident)
        self._lost: OSError | None = None  # what standard output did not take

    def answer(self, prompts: Iterable[Prompt]) -> None:
        """Answer prompts, those of like length together; raises `Cancelled`."""
        source = iter(prompts)
        while window := list(islice(source, WINDOW_PROMPTS)):
            waiting = sorted(self._encoded(window), key=lambda one: len(one.ids.ids), reverse=True)
            while waiting:
                count = self._fitting(waiting)
                self._answer_together(waiting[:count])
                waiting = waiting[count:]

    def _encoded(self, window: Sequence[Prompt]) -> Iterator[Ready]:
        for prompt in window:
            self._emit.raise_if_cancelled()
            try:
                yield self._encode(prompt)
            except ReplError as error:
                self._put(Answered(prompt, problem=error))

    def _encode(self, prompt: Prompt) -> Ready:
        resident, facts = self._resident, self._resident.facts
        request = prompt.request(facts.chats)
        decoding.check_values(request.settings, facts.base)
        config = decode.loop.Arguments.of_settings(resident, request.settings).config
        ids = encode_prompt(resident, request, config.max_new_tokens or facts.context, self._emit)
        decoding.fit_context(config, len(ids.ids), facts.context, facts.id)
        longest = config.max_length if config.max_new_tokens is None else len(ids.ids) + config.max_new_tokens
        return Ready(prompt, request, ids, longest or 0)

    def _fitting(self, waiting: Sequence[Ready]) -> int:
        """Return how many of the first run together: of one length, unless the model reads past padding."""
        longest, count, first = 0, 0, len(waiting[0].ids.ids)
        pads = decode.batch.can_pad(self._resident.model, waiting[0].ids.ids)
        for count, one in enumerate(waiting[: self._rows]):
            longest = max(longest, one.longest)
            if count and (longest * (count + 1) > self._tokens or not (pads or len(one.ids.ids) == first)):
                return count
        return count + 1

    def _answer_together(self, group: Sequence[Ready]) -> None:
        """Answer some prompts; where memory runs out, half of them at a time; where one fails, each by itself."""
        answered: set[int] = set()

        def heard(place: int, made: "BatchReply") -> None:
            answered.add(place)
            try:
                self._put(Answered(group[place].prompt, made.done, made.logprobs))
            except OSError as error:  # the decode loop would take it for a failure of the model
                self._lost = error
                raise Cancelled from error

        try:
            requests, prompts = [one.request for one in group], [one.ids for one in group]
            if not decode.batch.Batch(self._resident, requests, self._emit, prompts=prompts, heard=heard).run():
                raise self._lost or Cancelled
        except (NoMemory, Failed) as error:
            if "/quit" in error.hints:  # the device does nothing more in this process
                raise
            left = [one for place, one in enumerate(group) if place not in answered]
            if len(left) == len(group) == 1:
                self._put(Answered(group[0].prompt, problem=error))
                return
            size = (len(left) + 1) // 2 if isinstance(error, NoMemory) else 1
            self._rows = max(1, len(group) // 2) if isinstance(error, NoMemory) else self._rows
            for start in range(0, len(left), size):
                self._answer_together(left[start : start + size])


def most_tokens(resident: Model) -> int:
    """Return how many tokens the keys and values of all rows may have: a share of the memory that is free now."""
    places = set(resident.facts.device_map.values())
    free = min((room.free for room in available.measure_rooms() if room.device in places), default=available.UNLIMITED)
    width = estimate.DTYPE_BYTES.get(resident.facts.dtype, 4)
    each = max(1, estimate.cache_bytes(resident.model.config, 1024, width) // 1024)
    return max(1, min(MAX_BATCH_TOKENS, free // MEMORY_SHARE // each))


# with a server


class ServedPrompts:
    """Answers prompts with a server, `parallel` requests at once; the answers come in the order of the prompts."""

    def __init__(self, remote: Remote, parallel: int, emit: JobContext, put: Put) -> None:
        self._remote, self._parallel, self._emit, self._put = remote, parallel, emit, put
        self._aside = AsideQuiet(emit)
        self._lock = Lock()  # over all that follows, and `put`
        self._held: dict[int, Answered] = {}  # those that wait for one before them
        self._told = 0
        self._over = False

    def answer(self, prompts: Iterable[Prompt]) -> None:
        """Answer prompts; raises `Cancelled`, and `Unreachable` where the server has gone."""
        source = enumerate(prompts)
        try:
            with beside([partial(self._serve, source)] * self._parallel, self._emit):
                pass
        finally:  # what is made is kept although others before it are not
            with self._lock:
                self._over = True
                for place in sorted(self._held):
                    self._put(self._held[place])

    def _serve(self, source: Iterator[tuple[int, Prompt]]) -> None:
        """Answer until there is nothing more to do, over a connection of its own."""
        known = self._remote
        side = Remote(known.where, known.model, known.listing)
        try:
            while (item := self._next(source)) is not None:
                self._tell(item[0], self._ask(side, item[1]))
        except BaseException:
            self._over = True
            raise
        finally:
            side.close()

    def _next(self, source: Iterator[tuple[int, Prompt]]) -> tuple[int, Prompt] | None:
        self._aside.raise_if_cancelled()
        with self._lock:
            return None if self._over else next(source, None)

    def _tell(self, place: int, made: Answered) -> None:
        with self._lock:
            self._held[place] = made
            while not self._over and self._told in self._held:
                self._put(self._held.pop(self._told))
                self._told += 1

    def _ask(self, side: Remote, prompt: Prompt, again: bool = True) -> Answered:
        """Ask once; a second time where the server broke off. Raises `Unreachable`: that is no fault of a line."""
        try:
            done = side.reply(prompt.request(side.chats), self._aside)
        except Unreachable:
            raise
        except ReplError as error:
            broke_off = again and isinstance(error, Failed) and "/retry" in error.hints
            return self._ask(side, prompt, again=False) if broke_off else Answered(prompt, problem=error)
        if done.finish == "cancelled":
            raise Cancelled
        return Answered(prompt, done, done.measures.logprobs)


# a whole file


@dataclass(frozen=True, slots=True, kw_only=True)
class Batched(Message):
    """What came of a file of prompts; `known` lines had their results before, of `failed` ones an error is written."""

    out: str
    lines: int
    known: int
    made: int
    failed: int
    tokens: int
    seconds: float


class Tally:
    """Writes each answer, and counts what came of them; `emit` is told how far things are."""

    def __init__(self, file: PromptFile, results: Results, emit: JobContext) -> None:
        self._file, self._results, self._emit = file, results, emit
        self._began, self._tokens = time.monotonic(), 0
        self._lines = file.count()
        self._known = self._made = 0
        self._problems: list[tuple[int, str]] = []

    def pending(self) -> Iterator[Prompt]:
        """Yield the prompts that have no result yet; raises `UsageError` where the results are of another file."""
        for prompt in self._file:
            if self._results.has(prompt):
                self._known += 1
            else:
                yield prompt

    def put(self, answered: Answered) -> None:
        """Write an answer."""
        self._results.add(answered.record())
        if answered.done is not None:
            self._made, self._tokens = self._made + 1, self._tokens + answered.done.usage.completion
        elif answered.problem is not None:
            self._problems.append((answered.prompt.line, answered.problem.message))
        self.tell()

    def tell(self) -> None:
        """Say how far things are."""
        done = self._made + len(self._problems)
        with suppress(Cancelled):  # what is made must be written all the same
            self._emit(Progress("answering", done, self._lines - self._known, "prompts"))

    def batched(self) -> Batched:
        """Return what came of the file, in words and figures."""
        seconds, out = time.monotonic() - self._began, self._results.name
        line, problem = min(self._problems, default=(0, ""))
        made = f"{counted(self._tokens, 'token')} in {seconds:.1f} s, {rate(self._tokens / seconds)}"
        text = join_facts(
            f"{self._made:,} of {counted(self._lines, 'prompt')} answered",
            f"{self._known:,} had results before" if self._known else "",
            f"{len(self._problems):,} failed, first line {line}: {problem}" if problem else "",
            made if self._tokens else "",
            "" if out == STDOUT else out,
        )
        return Batched(
            text,
            out=out,
            lines=self._lines,
            known=self._known,
            made=self._made,
            failed=len(self._problems),
            tokens=self._tokens,
            seconds=seconds,
        )


def run_batch(
    file: PromptFile, out: str, answer: Callable[[Iterator[Prompt], Put], object], emit: JobContext
) -> Batched:
    """Answer what has no answer yet, and add the results. Raises `Cancelled`, which says what there is by then."""
    with open_results(out) as results:
        tally = Tally(file, results, emit)
        tally.tell()
        try:
            answer(tally.pending(), tally.put)
        except Cancelled:
            emit.begin_cleanup()
            goes_on = "the same with >> goes on" if out == STDOUT else "the same line goes on"
            raise Cancelled(join_facts(tally.batched().text, goes_on)) from None
        return tally.batched()
