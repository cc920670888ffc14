"""Looks at one model in all ways, and compares with what the bare library makes of the same ids."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from driving import ask, drawn, opened, run

from repl.core.errors import ReplError

VIEWS = (
    "load",
    "bare",
    "greedy",
    "second",
    "beams",
    "sampled",
    "next",
    "score",
    "probs",
    "why",
    "lens",
    "arch",
    "plan",
)
FIRST, SECOND = "Once upon a time there was a small model that told stories.", "What is the capital of France?"
TEXT = "The quick brown fox jumps over the lazy dog while seven wizards quietly box."
LENGTH = 10
CLOSE = 2e-3  # nats, between two ways to the same number


def examine(folder: Path, found: dict[str, str]) -> None:
    """Put for each view "ok", or what is wrong or was refused, into `found`."""
    bare = Bare(folder, found)
    with contextlib.suppress(ReplError):
        with outcome(found, "load"):
            session = opened(folder, max_new_tokens=LENGTH)
            live = session.__enter__()
        if found["load"].startswith("ok"):
            try:
                Look(live, bare, found).all()
            finally:
                session.__exit__(None, None, None)


class Bare:
    """The library alone."""

    def __init__(self, folder: Path, found: dict[str, str]) -> None:
        self.model: Any = None
        with outcome(found, "bare"):
            import torch
            from transformers import AutoConfig, AutoModelForImageTextToText

            from repl.models.from_files import auto_class

            config = AutoConfig.from_pretrained(folder)
            options = {"dtype": torch.float32, "output_loading_info": True}
            model, report = auto_class(config).from_pretrained(folder, **options)
            if report["missing_keys"]:  # the class for text alone does not know the names in the files
                model, report = AutoModelForImageTextToText.from_pretrained(folder, **options)
            assert not report["missing_keys"], sorted(report["missing_keys"])[:3]
            self.model = model.eval()
            self.ids([5, 6, 7, 8])

    def ids(self, prompt: list[int], **values: Any) -> list[int]:
        """Return the ids of a reply."""
        return self._call(prompt, **values).sequences[0, len(prompt) :].tolist()

    def logprobs(self, prompt: list[int], length: int = 1) -> Any:
        """Return the log-probabilities at each token of a reply, shape (tokens, vocab)."""
        import torch

        output = self._call(prompt, max_new_tokens=length, output_logits=True)
        return torch.cat(output.logits).float().log_softmax(-1)

    def _call(self, prompt: list[int], **values: Any) -> Any:
        import torch

        if values.pop("seed", None) is not None:
            torch.manual_seed(7)
        given = torch.tensor([prompt])
        chosen = {"max_new_tokens": LENGTH, "do_sample": False, "return_dict_in_generate": True, **values}
        with torch.no_grad():
            return self.model.generate(input_ids=given, attention_mask=torch.ones_like(given), **chosen)


class Look:
    """One session, looked at in all ways."""

    def __init__(self, session: Any, bare: Bare, found: dict[str, str]) -> None:
        self.session, self.bare, self.found = session, bare, found

    def all(self) -> None:
        run(self.session, "/greedy")
        self.view("greedy", lambda: self.reply(FIRST))
        self.view("probs", self.probs)
        self.view("why", self.why)
        self.view("second", lambda: self.reply(SECOND))
        self.view("next", self.next)
        self.view("lens", self.lens)
        self.view("score", self.score)
        self.view("arch", lambda: run(self.session, "/arch").traits.attention)
        self.view("plan", self.plan)
        run(self.session, "/clear", "/beams 3")
        self.view("beams", lambda: self.reply(FIRST, num_beams=3))
        run(self.session, "/beams 1", "/clear", "/sample", "/seed 7")
        self.view("sampled", lambda: self.reply(FIRST, do_sample=True, seed=7))

    def view(self, name: str, look: Callable[[], str]) -> None:
        with outcome(self.found, name) as say:
            say(look())

    def reply(self, text: str, **values: Any) -> str:
        done = ask(self.session, text)
        expected = self.bare.ids(list(done.prompt_ids), **values)
        ours = list(done.token_ids)
        if expected[: len(ours)] != ours or not ours:
            return f"DIFFERS {ours} for {expected}"
        return f"ok {done.usage.reused} of {done.usage.prompt} reused, {len(set(ours))} kinds of token"

    def probs(self) -> str:
        done = self.session.last.record
        logs = self.bare.logprobs(list(done.prompt_ids), len(done.token_ids))
        expected = [float(row[token]) for row, token in zip(logs, done.token_ids, strict=False)]
        return near(done.measures.logprobs, expected)

    def why(self) -> str:
        drawn(run(self.session, f"/why {min(3, len(self.session.last.record.token_ids))}"))
        return ""

    def next(self) -> str:
        result = run(self.session, f"/next {TEXT}")
        logs = self.bare.logprobs(self.session.store.current().tokenizer(TEXT)["input_ids"])[0]
        return near([one.logprob for one in result.candidates], [float(logs[one.id]) for one in result.candidates])

    def score(self) -> str:
        result = run(self.session, f"/score {TEXT}")
        places = [2, len(result.ids) // 2, len(result.ids) - 1]
        expected = [float(self.bare.logprobs(result.ids[:place])[0][result.ids[place]]) for place in places]
        return near([result.logprobs[place] for place in places], expected)

    def lens(self) -> str:
        result = run(self.session, f"/lens {TEXT}")
        logs = self.bare.logprobs(self.session.store.current().tokenizer(TEXT)["input_ids"])[0]
        told = near([result.answer.logprob], [float(logs[result.answer.id])])
        layers = self.session.facts().layers
        return told if len(result.layers) == layers + 1 else f"ok {len(result.layers) - 1} of {layers} layers"

    def plan(self) -> str:
        from transformers import AutoConfig

        from repl.models.memory import estimate
        from repl.models.memory.plan import plan_device_map

        run(self.session, "/plan")
        resident = self.session.store.current()
        plan_device_map(AutoConfig.from_pretrained(resident.facts.folder), resident.load, [])
        guess = estimate.cache_bytes(resident.model.config, 64, 4)
        with contextlib.suppress(RuntimeError, ValueError, TypeError, AttributeError):  # a model that takes no bare ids
            return f"ok cache {guess} for {cache_bytes(resident.model, 64)}"
        return "ok not measured"


@contextlib.contextmanager
def outcome(found: dict[str, str], name: str) -> Iterator[Callable[[str], None]]:
    """Keep how a view ended."""
    said: list[str] = []
    try:
        yield said.append
    except ReplError as error:
        found[name] = f"says: {error}"
    except Exception as error:
        found[name] = f"RAISES {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        word = (said or [""])[0]
        found[name] = word if word.startswith(("ok", "DIFFERS")) else f"ok {word}".strip()


def near(ours: Any, expected: Any) -> str:
    pairs = list(zip(ours, expected, strict=False))
    most = max((abs(one - other) for one, other in pairs), default=9.0)
    return "" if most < CLOSE else f"DIFFERS by {most:.3f} nats"


def cache_bytes(model: Any, tokens: int) -> int:
    """Return what a model keeps of so many tokens, seen from two short runs; 0 where it keeps no cache."""
    import torch

    from repl.core import library

    sizes = []
    for length in (2, 3):
        with torch.no_grad():
            output = model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=True)
        sizes.append(sum(tensor.nbytes for tensor in _tensors(library.cache_of(output))))
    return sizes[0] + (tokens - 2) * (sizes[1] - sizes[0])


def _tensors(value: Any) -> Iterator[Any]:
    """Yield the tensors of a cache that hold more than a counter."""
    import torch

    if isinstance(value, torch.Tensor):
        yield from [value] if value.dim() > 1 else []
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
