"""Where the proposals of a reply come from: the text itself, or an assistant, a smaller model beside the first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from repl import library, reuse, settings
from repl.ahead import Ahead, Lookup, refusal
from repl.errors import ReplError, UsageError
from repl.events import Drafts, Notice
from repl.loading import Facts, Resident
from repl.probe import breakable, entry
from repl.settings import Load, Settings
from repl.worker import Emit

Get = Callable[[Load, Emit], Resident]
MOST = 8  # tokens that an assistant proposes at once
TOKENS = 15  # looked up at once where nothing else is said: on a CPU the last ones cost next to nothing
SURE = 0.4  # probability below which an assistant's next token is not worth proposing


class Assistant:
    """Proposes what a smaller model holds likeliest. `fed` are the ids that its cache holds.

    `vocabulary` is how many tokens the larger one knows, `context` how long a text this one may read (0: any).
    """

    def __init__(self, model: Any, cache: Any, fed: list[int], vocabulary: int, context: int = 0) -> None:
        self._model, self._cache, self._vocabulary, self._context = model, cache, vocabulary, context
        self.fed = fed
        self._last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

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

    def _feed(self, ids: Sequence[int]) -> Any:
        """Bring the cache to these ids; returns the logits of what follows, shape (vocab,)."""
        import torch

        same = min(reuse.common(self.fed, ids), len(ids) - 1)
        reuse.cropped(self._cache, same)
        del self.fed[same:]
        fresh = torch.tensor([ids[same:]], device=entry(self._model))
        output = self._model(fresh, **{library.cache_name(): self._cache}, use_cache=True, **self._last)
        self.fed += ids[same:]
        return output.logits[0, -1]


class Drafting:
    """How one reply is read ahead, if at all."""

    def __init__(self, resident: Resident, chosen: Settings, emit: Emit) -> None:
        self._resident, self._chosen, self._emit = resident, chosen, emit
        self.get: Get | None = None
        """Brings the assistant."""
        self._by = wanted(chosen)
        self._loop: Ahead | None = None
        self._helper: Resident | None = None

    @contextmanager
    def words(self, config: Any, ids: Any, past: dict[str, Any], streamer: Any) -> Iterator[dict[str, Any]]:
        """Yield what to call `generate` with besides: the cache that was lent, and the loop that reads ahead.

        `ids` is the prompt, shape (1, tokens). Where it cannot be done, that is said once for each model.
        """
        if not self._by or not self._may(config, ids.shape[-1]):
            yield past
            return
        model = self._resident.model
        with ExitStack() as stack:
            drafter = Lookup() if self._helper is None else stack.enter_context(self._assistant(self._helper, ids))
            most = self._chosen.decode.prompt_lookup if self._helper is None else MOST
            ends = stack.enter_context(taken_over(config, self._resident.tokenizer))
            self._loop = Ahead(drafter, most, reuse.stretch(model), streamer, ends, self._resident.threads)
            off = {"stop_strings": None} if model.generation_config.stop_strings else {}  # they are criteria here
            past = past or {library.cache_name(): reuse.remembering(model)}
            yield {"custom_generate": self._loop, **off, **past}

    def _may(self, config: Any, prompt: int) -> bool:
        reason = refusal(self._resident.model, config, prompt)
        if self._by == "assistant" and not reason:
            reason = self._bring()
        said = f"{self._by} rests: {reason}"
        if reason and said not in self._resident.told:
            self._resident.told.add(said)
            self._emit(Notice(said))
        return not reason

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
    def _assistant(self, helper: Resident, ids: Any) -> Iterator[Assistant]:
        model, fed = helper.model, list[int]()
        words = self._resident.model.get_output_embeddings().weight.shape[0]
        prompt = ids.to(entry(model))
        with helper.kept.lent(model, model.generation_config, prompt, lambda: fed) as (past, reused):
            fed += prompt[0, :reused].tolist()
            with breakable(model, self._emit.check):
                cache = past[library.cache_name()] if past else reuse.remembering(model)
                yield Assistant(model, cache, fed, words, helper.facts.context)

    @property
    def works(self) -> bool:
        """Tell whether this reply is read ahead."""
        return self._loop is not None

    def drafts(self) -> Drafts | None:
        """Return the figures of the reply; None where it was not read ahead."""
        if self._loop is None:
            return None
        facts = self._helper.facts if self._helper else None
        named = {"id": facts.id, "commit": facts.commit, "dtype": facts.dtype} if facts else {}
        return self._loop.drafts(self._by, named)


@contextmanager
def taken_over(config: Any, tokenizer: Any) -> Iterator[list[Any]]:
    """Yield the stop strings as criteria: a loop of one's own cannot be given them, nor a tokenizer, by `generate`."""
    from transformers import StopStringCriteria

    stops = config.stop_strings
    config.stop_strings = None
    try:
        yield [StopStringCriteria(tokenizer, stops)] if stops else []
    finally:
        config.stop_strings = stops


def looked_up(resident: Resident, config: Any, prompt: int, streamer: Any) -> dict[str, Any]:
    """Return what to call a bare `generate` with for it to look ahead; raises `UsageError` where it cannot."""
    model = resident.model
    if reason := refusal(model, config, prompt):
        raise UsageError(f"prompt_lookup rests: {reason}")
    loop = Ahead(Lookup(), TOKENS, reuse.stretch(model), streamer)
    return {"custom_generate": loop, library.cache_name(): reuse.remembering(model)}


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


def unfit(resident: Resident, helper: Resident) -> str:
    """Say why one model cannot assist another; empty where it can."""
    name, other = helper.facts.name, resident.facts.name
    if helper.model is resident.model:
        return f"{name} is the model itself"
    if resident.tokenizer.get_vocab() != helper.tokenizer.get_vocab():
        return f"{name} has another tokenizer than {other}"
    if refusal(helper.model, helper.model.generation_config, 1):
        return f"what {name} keeps of a text cannot be taken back token by token"
    return ""


def admit(resident: Resident, chosen: Settings, emit: Emit, get: Get) -> Facts:
    """Load the assistant and tell what it is; raises `UsageError` where it cannot help this model."""
    helper = get(load(chosen), emit)
    if reason := unfit(resident, helper):
        raise UsageError(f"no assistant: {reason}", "/fast prompt_lookup")
    return helper.facts
