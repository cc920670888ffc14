"""Commands that other packages bring, through the entry point group `hub_repl.commands`.

In: the packages that are installed. Out: what each registered, or a sentence on why it did not load. Nothing is taken
from the working folder.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from repl.commands import registry

ENTRY_POINT_GROUP = "hub_repl.commands"


@dataclass(frozen=True, slots=True)
class Extension:
    """A package that brings commands: their names, or the reason why there are none."""

    package: str
    version: str
    commands: tuple[str, ...] = ()
    problem: str = ""


@cache
def load_extensions() -> tuple[Extension, ...]:
    """Import every extension once, in the order of their names."""
    return tuple(_load(entry) for entry in sorted(entry_points(group=ENTRY_POINT_GROUP)) if _is_installed(entry))


def _is_installed(entry: EntryPoint) -> bool:
    """Tell whether a package was installed, and does not merely lie in the working folder."""
    return entry.dist is not None and Path(str(entry.dist.locate_file(""))).resolve() != Path.cwd()


def _load(entry: EntryPoint) -> Extension:
    package, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.name, "")
    before = dict(registry.COMMANDS)
    try:
        entry.load()
    except Exception as error:  # a stranger's module: it must not take the program down
        registry.COMMANDS.clear()
        registry.COMMANDS.update(before)
        said = " ".join(str(error).split())[:200]
        return Extension(package, version, problem=f"{type(error).__name__}: {said}".removesuffix(": "))
    replaced = [name for name, found in before.items() if registry.COMMANDS.get(name) is not found]
    registry.COMMANDS.update(before)  # what is here already is not replaced
    added = tuple(name for name in registry.COMMANDS if name not in before)
    hidden = ", ".join(f"/{name}" for name in replaced)
    return Extension(package, version, added, f"{hidden} exists already" if replaced else "")


def problems() -> list[str]:
    """Return a sentence for each extension that did not load as it is."""
    wrong = [found for found in load_extensions() if found.problem]
    return [f"the extension {found.package} {found.version}: {found.problem}" for found in wrong]
