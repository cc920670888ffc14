"""The project's promises about itself."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

from repl import commands
from repl.commands import registry
from repl.core import settings

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "repl").rglob("*.py"))
FUNCTION = 40


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(node: ast.AST) -> list[str]:
    """Return the modules that an import names: of `from a import b` both, as `b` may be one."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "repl":
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    """That packages only import what lies below them is a contract of import-linter."""
    known = {module(path): path for path in FILES if path.name != "__init__.py"}
    uses = {
        name: {found for node in ast.walk(ast.parse(path.read_text("utf-8"))) for found in imported(node)} & {*known}
        for name, path in known.items()
    }
    TopologicalSorter(uses).prepare()  # raises CycleError, which names the circle


def heavy(path: Path) -> set[str]:
    """Return what takes seconds to import of what a file imports at its head."""
    tree = ast.parse(path.read_text("utf-8"))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} & {"torch", "transformers", "accelerate", "peft"}


def test_tests_are_found_without_the_libraries() -> None:
    """Collecting them takes seconds."""
    tests = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("conftest.py")]
    assert {str(path.relative_to(ROOT)): found for path in tests if (found := heavy(path))} == {}


def test_only_what_is_imported_late_needs_torch() -> None:
    """The `__init__` of a package lists its modules with torch at their heads: the prompt is on screen before it."""
    late = {path: import_module(module(path.parent)).__all__ for path in FILES if heavy(path)}
    assert [path for path, names in late.items() if path.stem not in names] == []
    line = "import sys, repl.commands, repl.cli.shell, repl.cli.embed; print(*sys.modules)"
    brought = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout.split()
    assert not set(brought) & {"torch", "transformers", "accelerate", "peft", "huggingface_hub.hf_api", "jinja2"}


def test_functions_keep_their_budget() -> None:
    """Over budget means split by meaning."""
    long = [
        f"{module(path)}.{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION + 10
    ]
    assert long == []


def test_every_command_has_help() -> None:
    """Nothing works that nobody can find."""
    assert commands
    for name, found in registry.COMMANDS.items():
        assert found.help, f"/{name} has no help"


def test_every_setting_has_a_command_an_option_and_one_line_of_help() -> None:
    """A setting is declared once, and everything follows from the field."""
    from repl.cli.main import parser

    options = {option for action in parser()._actions for option in action.option_strings}
    for name in settings.places():
        assert settings.help_of(name)
        assert name in registry.COMMANDS
        assert name == "model" or {f"--{name}", f"--{name.replace('_', '-')}"} <= options


def test_the_prompt_is_drawn_before_the_rest_is_imported() -> None:
    """What takes long to import is not needed to type: it comes while the prompt stands."""
    line = "import sys, repl.cli.main, repl.cli.program, repl.terminal.editor.prompt; print(*sys.modules)"
    brought = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout.split()
    assert "prompt_toolkit" in brought
    assert not set(brought) & {
        "rich",
        "sqlite3",
        "psutil",
        "pygments",
        "jinja2",
        "huggingface_hub",
        "torch",
        "filelock",
    }
    assert not [name for name in brought if name.startswith("repl.commands")]


def test_the_top_level_holds_what_the_design_says() -> None:
    """Nothing else lies about."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.partition("/")[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} <= {
        "repl",
        "tests",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
