"""Packages that bring commands: installed ones are found, broken ones are told, the working folder is left alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import driving
import pytest

from repl.commands import doctor, extensions, registry

MODULE = '''
from dataclasses import dataclass
from rich.text import Text
from repl import command, render


@dataclass(frozen=True)
class Greeting:
    text: str


@command("other")
def greet(session, name: str = "you") -> Greeting:
    """Greet somebody."""
    return Greeting(f"hello {name}")


@render.register
def _(result: Greeting) -> Text:
    return Text(result.text)
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that packages are installed in, and forget afterwards what they registered."""
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(registry.COMMANDS)
    extensions.load_extensions.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("hub_repl_")]:
        del sys.modules[name]
    registry.COMMANDS.clear()
    registry.COMMANDS.update(before)
    extensions.load_extensions.cache_clear()


def install(site: Path, name: str, code: str) -> None:
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{extensions.ENTRY_POINT_GROUP}]\n{name} = {name}\n")


def test_a_package_brings_a_command_with_its_view(site: Path) -> None:
    install(site, "hub_repl_greet", MODULE)
    (found,) = extensions.load_extensions()
    assert (found.package, found.version, found.commands, found.problem) == ("hub-repl-greet", "1.2", ("greet",), "")
    result = registry.parse_line("/greet Ada").run(None)
    assert driving.drawn(result) == "hello Ada\n"
    assert doctor.describe_extension(found) == "hub-repl-greet 1.2 · /greet"


def test_a_package_that_fails_is_told_and_leaves_nothing(site: Path) -> None:
    install(site, "hub_repl_broken", MODULE + "\nraise ValueError('out of order')")
    (found,) = extensions.load_extensions()
    assert found.problem == "ValueError: out of order"
    assert "greet" not in registry.COMMANDS
    assert extensions.problems() == ["the extension hub-repl-broken 1.2: ValueError: out of order"]


def test_a_package_replaces_no_command(site: Path) -> None:
    own = registry.COMMANDS["next"]
    install(site, "hub_repl_next", MODULE.replace("def greet", "def next"))
    (found,) = extensions.load_extensions()
    assert registry.COMMANDS["next"] is own
    assert found.problem == "/next exists already"


def test_the_working_folder_brings_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "hub_repl_greet", MODULE)
    monkeypatch.chdir(site)
    assert extensions.load_extensions() == ()


def test_the_example_for_contributors_runs(site: Path, llama_folder: Path) -> None:
    """The command that CONTRIBUTING.md shows is all of one."""
    page = (Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md").read_text("utf-8")
    code = next(block for block in page.split("```python\n")[1:] if "class Vocabulary" in block).partition("```")[0]
    install(site, "hub_repl_vocabulary", code)
    (found,) = extensions.load_extensions()
    assert found.commands == ("vocabulary",), found.problem
    with driving.opened(llama_folder) as session:
        assert driving.drawn(driving.run(session, "/vocabulary")).endswith("special\n")
