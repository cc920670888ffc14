"""The logits processors and warpers between a model's logits and the draw, applied one after another."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from repl.core.errors import Failed, library_errors
from repl.core.library_types import LogitsProcessor, LogitsProcessorList, PreTrainedModel, Tensor
from repl.generation.decode import loop
from repl.generation.decode.format_mask import FormatMask
from repl.generation.decode.loop import Arguments
from repl.generation.interface import Model
from repl.generation.measure.forward import input_ids

NAMES = {
    "TemperatureLogitsWarper": ("temperature", "temperature"),
    "TopHLogitsWarper": ("top_h", "top_h"),
    "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"),
    "MinPLogitsWarper": ("min_p", "min_p"),
    "TypicalLogitsWarper": ("typical_p", "mass"),
    "EpsilonLogitsWarper": ("epsilon_cutoff", "epsilon"),
    "EtaLogitsWarper": ("eta_cutoff", "epsilon"),
    "RepetitionPenaltyLogitsProcessor": ("repetition_penalty", "penalty"),
    "NoRepeatNGramLogitsProcessor": ("no_repeat_ngram_size", "ngram_size"),
    "MinNewTokensLengthLogitsProcessor": ("min_new_tokens", "min_new_tokens"),
    "MinLengthLogitsProcessor": ("min_length", "min_length"),
    "NoBadWordsLogitsProcessor": ("bad_words_ids", ""),
    "SequenceBiasLogitsProcessor": ("sequence_bias", ""),
    "SuppressTokensLogitsProcessor": ("suppress_tokens", ""),
    "SuppressTokensAtBeginLogitsProcessor": ("begin_suppress_tokens", ""),
    "ForcedBOSTokenLogitsProcessor": ("forced_bos_token_id", "bos_token_id"),
    "ForcedEOSTokenLogitsProcessor": ("forced_eos_token_id", ""),
    "ExponentialDecayLengthPenalty": ("exponential_decay_length_penalty", "regulation_factor"),
    "InfNanRemoveLogitsProcessor": ("remove_invalid_values", ""),
    "LogitNormalization": ("renormalize_logits", ""),
    "FormatMask": ("format", ""),
    "NextBan": ("ban", ""),
    "RecordedBan": ("ban", ""),
    "RecordedSwitch": ("think", ""),
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": ("guidance_scale", "guidance_scale"),
}
"""The setting that brings each processor of the library, and where the processor keeps its value."""
REMEMBERS = ("guidance_scale",)  # what it makes of a token depends on its own earlier calls


@dataclass(frozen=True, slots=True)
class Stage:
    """The scores after one processor, shape (vocab,); the first stage is the model itself and has no name."""

    name: str
    value: float | None
    scores: Any

    @property
    def probabilities(self) -> Tensor:
        """Return the distribution, shape (vocab,)."""
        return self.scores.softmax(-1)

    @property
    def label(self) -> str:
        """Return the setting with its value, as it is typed."""
        return self.name if self.value is None else f"{self.name} {self.value:g}"

    @property
    def entropy(self) -> float:
        """Return the entropy of the distribution, in nats."""
        logs = self.scores.log_softmax(-1)
        return max(0.0, float(-(logs.exp() * logs).nansum()))

    @property
    def left(self) -> int:
        """Return how many tokens can still be drawn."""
        return int(self.scores.isneginf().logical_not().sum())


def stages(
    resident: Model,
    chosen: Arguments,
    prompt: Sequence[int],
    made: Sequence[int],
    logits: Tensor,
    mask: FormatMask | None = None,
    own: Sequence[LogitsProcessor] = (),
) -> list[Stage]:
    """Apply the processors of a `generate` call to logits, shape (vocab,), of the token after `prompt` and `made`.

    The processors are those that `generate` itself would use, in its order, the form before them. Raises `Failed` where
    one of them depends on its own earlier calls.
    """
    ids = input_ids(resident.model, [*prompt, *made])
    scores = logits.float()[None].to(ids.device)
    if (chosen.config.num_beams or 1) > 1:
        scores = scores.log_softmax(-1)  # a beam search sums logprobs, and processes those
    found = [Stage("", None, scores[0])]
    for processor in processors(resident.model, chosen, prompt, mask, own):
        name, value = _name_processor(processor)
        if name in REMEMBERS and made:
            raise Failed(f"{name} depends on earlier tokens in a way that is not recorded", "/next")
        with torch.no_grad():
            scores = processor(ids, scores.clone())
        found.append(Stage(name, value, scores[0]))
    return found


def processors(
    model: PreTrainedModel,
    chosen: Arguments,
    prompt: Sequence[int],
    mask: FormatMask | None = None,
    own: Sequence[LogitsProcessor] = (),
) -> LogitsProcessorList:
    """Return the processors and warpers of one call of `generate`: it prepares them, and is stopped there.

    Raises `Failed` with what the library says where it refuses a value.
    """
    bare = copy.copy(chosen.config)
    bare.num_return_sequences, bare.token_healing = 1, False  # they change no score
    ids = input_ids(model, prompt)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": bare, **chosen.off}
    with library_errors("the library refuses these settings"):
        found, _ = loop.capture_processors(model, mask, logits_processor=[*own], **given)
    return found


def _name_processor(processor: LogitsProcessor) -> tuple[str, float | None]:
    kind = type(processor).__name__
    name, place = NAMES.get(kind, (kind, ""))
    value = getattr(processor, place, None) if place else None
    return name, None if value is None else round(float(value), 12)
