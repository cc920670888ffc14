"""Commands of other packages, through the entry point group `hub_repl.commands`.

In come the installed packages; out come the commands that each registered, or the reason why it did not load. Nothing
is loaded from the working folder.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from repl.commands import registry

ENTRY_POINT_GROUP = "hub_repl.commands"


@dataclass(frozen=True, slots=True)
class Extension:
    """A package with commands: their names, or the reason why it did not load."""

    package: str
    version: str
    commands: tuple[str, ...] = ()
    problem: str = ""


@cache
def load_extensions() -> tuple[Extension, ...]:
    """Import every extension once, in the order of their names."""
    found = [(entry, entry.dist) for entry in sorted(entry_points(group=ENTRY_POINT_GROUP)) if entry.dist]
    installed = [pair for pair in found if Path(str(pair[1].locate_file(""))).resolve() != Path.cwd()]
    return tuple(_load(entry, package.name, package.version) for entry, package in installed)


def _load(entry: EntryPoint, package: str, version: str) -> Extension:
    before = dict(registry.COMMANDS)
    try:
        entry.load()
    except Exception as error:  # of a module that we do not know: the program goes on
        registry.COMMANDS.clear()
        registry.COMMANDS.update(before)
        said = " ".join(str(error).split())[:200]
        return Extension(package, version, problem=f"{type(error).__name__}: {said}".removesuffix(": "))
    replaced = [name for name, found in before.items() if registry.COMMANDS.get(name) is not found]
    registry.COMMANDS.update(before)  # the program's own commands are not replaced
    added = tuple(name for name in registry.COMMANDS if name not in before)
    hidden = ", ".join(f"/{name}" for name in replaced)
    return Extension(package, version, added, f"{hidden} exists already" if replaced else "")


def problems() -> list[str]:
    """Return a sentence for each extension with a problem."""
    wrong = [found for found in load_extensions() if found.problem]
    return [f"the extension {found.package} {found.version}: {found.problem}" for found in wrong]
