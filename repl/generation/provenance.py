"""Where a reply comes from, as its record tells it: the model, the libraries, the machine."""

from functools import cache
from importlib.metadata import version

from repl.core.reply import Environment, ModelRecord
from repl.core.settings import Settings
from repl.models.loader import ModelInfo


def describe_model(facts: ModelInfo, settings: Settings) -> ModelRecord:
    """Return the model of a record."""
    return ModelRecord(
        id=facts.id,
        revision=settings.load.revision,
        commit=facts.commit,
        dtype=facts.dtype,
        device_map=dict(facts.device_map),
        quantization=facts.quantization,
        adapter=facts.adapter,
        parameters=facts.parameters,
        context=facts.context,
        bytes=facts.bytes,
        touched=facts.touched,
    )


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a reply is."""
    return {name: version(name) for name in ("transformers", "torch", "tokenizers")}


def describe_environment(facts: ModelInfo) -> Environment:
    """Return what else may decide between two tokens that are nearly as likely."""
    import torch

    return Environment(facts.attention, torch.get_num_threads(), _devices(facts))


def _devices(facts: ModelInfo) -> dict[str, str]:
    import torch

    places = sorted(set(facts.device_map.values()))
    names = {place: torch.cuda.get_device_name(place) for place in places if place.startswith("cuda")}
    return {"cpu": torch.backends.cpu.get_cpu_capability(), **names}
