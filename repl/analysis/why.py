"""Why one token was chosen: its probability in the model's own distribution and after each logits processor."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from repl.analysis import recipe
from repl.core.errors import UsageError
from repl.core.jobs import JobContext
from repl.core.library_types import PreTrainedTokenizerBase, Tensor
from repl.core.reply import Reply
from repl.generation import decode, measure
from repl.generation.decode.detokenizer import Detokenizer
from repl.generation.interface import Model
from repl.generation.measure.token_text import Speller, quote

if TYPE_CHECKING:
    from repl.generation.measure.processors import Stage

SHOWN_CANDIDATES = 8  # candidates shown, by the model's odds and by the final ones


@dataclass(frozen=True, slots=True)
class ProcessorStep:
    """One logits processor: the token's probability after it, and how many tokens it removed."""

    name: str
    value: float | None
    probability: float
    factor: float
    """The factor on the token's probability: the model's probability times all factors is the final one."""
    removed: int
    mass: float
    """The total probability of the removed tokens."""
    changed: bool
    """Whether it changed any probability."""


@dataclass(frozen=True, slots=True)
class WhyToken:
    """A candidate with its probabilities: the model's own first, then those after each processor."""

    id: int
    text: str
    probabilities: list[float]
    removed_by: str


@dataclass(frozen=True, slots=True)
class Why:
    """Why one token of the last reply was chosen."""

    number: int
    of: int
    """Tokens of the reply."""
    id: int
    text: str
    how: str
    """sampled, greedy or beams; taken if the user put the token in."""
    model: float
    """The token's probability in the model's own distribution."""
    rank: int
    entropy: float
    """Of the model's own distribution, in nats."""
    steps: list[ProcessorStep]
    probability: float
    """The token's probability after all processors."""
    likeliest: int
    """The most likely token after all processors, which greedy decoding takes."""
    candidates: list[WhyToken]
    notes: list[str]
    least_certain: bool = False
    """Whether it was selected as the least certain token of the reply."""


def explain(resident: Model, record: Reply, place: str, shared: bool, emit: JobContext) -> Why:
    """Compute why a token was chosen, from the record of its reply; for the model thread.

    `place` is the number of the token, from 1, or its text. Raises `UsageError`.
    """
    spot = _place(resident.tokenizer, record, place)
    token = record.token_ids[spot]
    prompt, made = call_ids(record, spot)
    chosen = decode.loop.Arguments.of_values(resident.model, recipe.recorded_values(record))
    logits = measure.scoring.next_logits(resident, [*prompt, *made], emit, shared)
    mask = decode.format_mask.recorded_mask(resident, record, prompt, chosen.config)
    own = [*decode.phrase_ban.recorded_ban(record), *decode.thought.recorded_switch(record, prompt, chosen.config)]
    found = measure.processors.stages(resident, chosen, prompt, made, logits, mask, own)
    odds = [stage.probabilities for stage in found]
    steps = [_step(token, *pair) for pair in pairwise(found)]
    speller, config = Speller(resident.tokenizer), chosen.config
    way = "beams" if (config.num_beams or 1) > 1 else "sampled" if config.do_sample else "greedy"
    made_in, now = record.model.dtype, resident.facts.dtype
    gone = ", ".join(quote(one.text) for one in record.taken_back if one.place == spot + 1)
    notes = [f"made in {made_in}, computed here in {now}"] if made_in != now else []
    shown = sorted({token, *_best(odds[0]), *_best(odds[-1])}, key=lambda one: -float(odds[0][one]))
    return Why(
        number=spot + 1,
        of=len(record.token_ids),
        id=token,
        text=speller.text(token),
        how="taken" if spot + 1 in record.taken else way,
        model=float(odds[0][token]),
        rank=int((odds[0] > odds[0][token]).sum()) + 1,
        entropy=found[0].entropy,
        steps=steps,
        probability=float(odds[-1][token]),
        likeliest=int(found[-1].scores.argmax()),
        candidates=[
            WhyToken(
                one,
                speller.text(one),
                [float(row[one]) for row in odds],
                next((stage.name for stage in found[1:] if stage.scores[one].isneginf()), ""),
            )
            for one in shown
        ],
        notes=[*notes, *([f"taken back here, as it is banned: {gone}"] if gone else [])],
    )


def call_ids(record: Reply, spot: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the prompt ids of the `generate` call that made a token, and the ids it had made before that token.

    A continued reply was made by several calls; the prompt of a later call ends with the reply before it.
    """
    calls = record.continued or (record.usage.prompt - len(record.prompt_ids),)
    start = max((place for place in calls if 0 < place <= spot), default=0)
    return record.prompt_ids + record.token_ids[:start], record.token_ids[start:spot]


def _place(tokenizer: PreTrainedTokenizerBase, record: Reply, word: str) -> int:
    """Return the place of a token by its number or its text; raises `UsageError`."""
    count = len(record.token_ids)
    if word.isdecimal():
        if not 0 < int(word) <= count:
            raise UsageError(f"the last reply has tokens 1 to {count}, not {word}", "/tokens --ids")
        return int(word) - 1
    reader = Detokenizer(tokenizer, record.prompt_ids, skip_special_tokens=False)
    texts = [reader.feed(token) for token in record.token_ids]
    alone = [place for place, text in enumerate(texts) if text.strip() == word]
    begin = "".join(texts).find(word)
    ends = [sum(map(len, texts[: place + 1])) for place in range(count)]
    spots = alone or [place for place, end in enumerate(ends) if 0 <= begin < end]
    if not spots:
        raise UsageError(f"the last reply has no {word!r}", "/tokens --ids")
    return spots[0]


def _best(odds: Tensor) -> list[int]:
    values, places = odds.topk(min(SHOWN_CANDIDATES, len(odds)))
    return [token for token, value in zip(places.tolist(), values.tolist(), strict=True) if value]


def _step(token: int, before: "Stage", after: "Stage") -> ProcessorStep:
    old, new = before.probabilities, after.probabilities
    gone = after.scores.isneginf() & before.scores.isneginf().logical_not()
    was, now = float(old[token]), float(new[token])
    changed = bool((old - new).abs().max() > 1e-7)
    return ProcessorStep(
        after.name, after.value, now, now / was if was else 0.0, int(gone.sum()), float(old[gone].sum()), changed
    )
