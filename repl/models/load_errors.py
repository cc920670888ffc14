"""What goes wrong while a model loads, in one sentence: damage, missing packages, and memory that does not suffice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from repl.core.errors import BadModel, Cancelled, MissingExtra, NoMemory, ReplError
from repl.core.explain import is_memory, sentence
from repl.core.library_types import PreTrainedConfig
from repl.core.settings import Load
from repl.hub.weight_headers import Weights
from repl.models.memory import estimate, fit
from repl.models.memory.available import measure


@contextmanager
def translated(load: Load) -> Iterator[None]:
    """Turn what the libraries raise while loading into one sentence."""
    try:
        yield
    except (ReplError, Cancelled):
        raise
    except ImportError as error:
        way_out = () if load.attention == "auto" else ("/attention auto",)
        raise MissingExtra(f"a package is missing for {load.model}: {sentence(error)}", *way_out) from error
    except json.JSONDecodeError as error:
        raise BadModel(f"a file of {load.model} is not valid JSON: {sentence(error)}") from error
    except BaseException as error:  # the Rust sides of the libraries panic with a BaseException
        if is_memory(error):
            said = f"{load.model} does not fit: {sentence(error)}"
            raise NoMemory(said, f"/plan {fit.name(load)}", "/device auto") from error
        raise BadModel(f"{load.model} does not load: {sentence(error)}") from error


@contextmanager
def weighed(weights: Weights, config: PreTrainedConfig, load: Load) -> Iterator[None]:
    """Let an error about memory say what was needed, what is free, and what needs less."""
    try:
        yield
    except BaseException as error:  # as `translated` sees it
        if isinstance(error, ReplError | Cancelled) or not is_memory(error):
            raise
        rooms = measure()
        needed = fit.spelled(estimate.needs(weights, config, load))
        free = ", ".join(map(fit.described, rooms))
        said = f"{load.model} does not fit: {sentence(error)}; it needs {needed}, and {free}"
        raise NoMemory(said, choices=fit.lighter(weights, config, load, rooms)) from error
