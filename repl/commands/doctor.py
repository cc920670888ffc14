"""The doctor: versions, devices, Hub, cache and terminal, with hints for what could be better."""

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed

from packaging.requirements import Requirement
from rich.console import RenderableType
from rich.text import Text

from repl import __version__
from repl.analysis.matmul_speed import MatmulSpeed, advice, measure_speeds
from repl.commands import extensions
from repl.commands.extensions import Extension
from repl.commands.registry import command
from repl.core.events import Progress
from repl.core.format import amount, join_facts
from repl.core.jobs import JobContext
from repl.core.sanitize import clean_line
from repl.generation import fast_paths
from repl.generation.fast_paths import FastPath
from repl.hub import cache as hub_cache
from repl.hub import locate
from repl.hub.download import call_hub, prepare
from repl.models import imports
from repl.models.memory.available import Room
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import facts

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "huggingface_hub", "safetensors")
EXTRAS = {
    "llguidance": "replies in a /format",
    "peft": "adapters",
    "bitsandbytes": "8bit and 4bit weights",
    "torchao": "int8 and int4 weights",
}
DISTRIBUTION = "hub-repl"
TESTED = ("torch", "transformers")
"""Libraries whose declared versions are those that the tests run on."""
HUB_TIMEOUT_S = 4.5


@dataclass(frozen=True, slots=True)
class Doctor:
    """The findings; `hub` tells how the Hub answers, `hints` what to change."""

    versions: dict[str, str]
    devices: list[str]
    threads: int
    speeds: list[MatmulSpeed]
    hub: str
    token: bool
    cache: str
    cache_bytes: int
    disk_free: int
    extras: dict[str, str]
    extensions: tuple[Extension, ...]
    terminal: str
    paths: tuple[FastPath, ...]
    hints: list[str]


@command("other", "/doctor", "/fast", see="version fast memory")
def doctor(session: Session) -> Task[Doctor]:
    """Check versions, devices, dtypes, the Hub, the cache and the terminal.

    It takes some seconds.
    """
    terminal, chosen = describe_terminal(), session.settings

    def examine(emit: JobContext) -> Doctor:
        imports.import_libraries(emit)
        import torch

        prepare(emit)
        speeds = measure_speeds(emit)
        emit(Progress("asking the Hub"))
        answer, token = check_hub(emit, session.store.offline)
        home = hub_cache.home()
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink())
        versions = {"hub-repl": __version__, "python": platform.python_version(), **find_versions(LIBRARIES)}
        return Doctor(
            versions=versions,
            devices=[describe_device(room) for room in session.store.measure()],
            threads=torch.get_num_threads(),
            speeds=speeds,
            hub=answer,
            token=token,
            cache=str(home),
            cache_bytes=size,
            disk_free=locate.disk()[1],
            extras=find_versions(EXTRAS),
            extensions=extensions.load_extensions(),
            terminal=terminal,
            paths=fast_paths.list_paths(session.store.current(), chosen) if session.store.facts() else (),
            hints=[*find_untested(versions), *advice(speeds)],
        )

    return session.run_on_model(examine)


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages without importing them; '' for one that is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return installed(name) if importlib.util.find_spec(name) else ""
    except PackageNotFoundError:
        return "of unknown version"


def find_untested(versions: Mapping[str, str]) -> list[str]:
    """Return a sentence for each library whose version is outside the tested ones."""
    with suppress(PackageNotFoundError):  # run from a folder, without being installed
        declared = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
        return [
            f"{each.name} {found} is outside the tested versions ({each.specifier}): failures may come from that"
            for each in declared
            if each.name in TESTED and not each.marker and (found := versions.get(each.name))
            if not each.specifier.contains(found, prereleases=True)
        ]
    return []


def describe_device(room: Room) -> str:
    """Describe a device in a few words."""
    free = f"{amount(room.free)} of {amount(room.total)} free"
    if room.device.startswith("cuda"):
        import torch

        return join_facts(room.device, torch.cuda.get_device_name(int(room.device[5:])), free)
    return join_facts(room.device, platform.machine() if room.device == "cpu" else "", free)


def check_hub(emit: JobContext, offline: bool) -> tuple[str, bool]:
    """Send the Hub one small request: returns how it answers, and whether there is a token."""
    from huggingface_hub import HfApi, constants, get_token

    token = get_token() is not None
    if offline or constants.HF_HUB_OFFLINE:
        return "not checked: this session is offline", token
    began = time.monotonic()
    try:
        call_hub(lambda: next(iter(HfApi().list_models(limit=1)), None), emit, HUB_TIMEOUT_S)
    except Exception:  # of any kind: the Hub does not answer
        return f"does not answer at {constants.ENDPOINT}", token
    return f"answers at {constants.ENDPOINT} in {time.monotonic() - began:.1f} s", token


def describe_terminal() -> str:
    """Describe the terminal by its environment variables, size and encoding."""
    columns, rows = shutil.get_terminal_size()
    return join_facts(
        os.environ.get("TERM", "") or "no TERM",
        f"{columns} x {rows}",
        os.environ.get("COLORTERM", ""),
        (sys.stdout.encoding or "no encoding").lower(),
        "NO_COLOR" if "NO_COLOR" in os.environ else "",
        "" if sys.stdout.isatty() else "not a terminal",
    )


@render.register
def _(result: Doctor) -> RenderableType:
    table = facts(findings(result))
    for hint in result.hints:
        table.add_row("hint", Text(clean_line(hint), "accent"))
    return table


def findings(result: Doctor) -> list[tuple[str, str]]:
    """Return the rows of the table: names and values."""
    extras = [f"{name} {version}" for name, version in result.extras.items() if version]
    absent = [f"{name} ({EXTRAS[name]})" for name, version in result.extras.items() if not version]
    return [
        ("versions", ", ".join(f"{name} {version or 'missing'}" for name, version in result.versions.items())),
        *(("device", device) for device in result.devices),
        ("threads", str(result.threads)),
        *(
            (one.dtype, f"{one.reading:.0f} GFLOP/s prefill, {one.replying:.1f} decode · {one.device}")
            for one in result.speeds
        ),
        ("Hub", result.hub),
        ("token", "there" if result.token else "none: gated models need hf auth login"),
        ("cache", f"{result.cache} · {amount(result.cache_bytes)}, {amount(result.disk_free)} of the disk free"),
        ("extras", ", ".join(extras) or "none"),
        ("absent", ", ".join(absent) or "nothing"),
        *(("extension", describe_extension(one)) for one in result.extensions),
        ("terminal", result.terminal),
        *((path.name, join_facts("on" if path.on else "off", path.why)) for path in result.paths),
    ]


def describe_extension(found: Extension) -> str:
    """Describe a package with commands."""
    names = ", ".join(f"/{name}" for name in found.commands)
    return join_facts(f"{found.package} {found.version}", names, found.problem)
