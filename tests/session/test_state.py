"""What a session knows has one owner."""

import ast
from pathlib import Path

import pytest

import repl

ROOT = Path(repl.__file__).parent


def assigned(tree: ast.AST) -> set[str]:
    """Return the attributes of a session that a module assigns to."""
    targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign | ast.AugAssign)]
    several = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    places = [part for part in several if isinstance(part, ast.Attribute)]
    return {ast.unparse(part) for part in places if ast.unparse(part.value).split(".")[-1] in ("session", "_session")}


@pytest.mark.slow
def test_only_a_session_changes_what_it_knows() -> None:
    """Elsewhere its methods are called."""
    found = {path.name: assigned(ast.parse(path.read_text("utf-8"))) for path in ROOT.rglob("*.py")}
    assert {name: places for name, places in found.items() if places} == {}
