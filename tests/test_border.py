"""The border with the libraries: what no documentation promises is used in one file, and nothing of theirs is replaced."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BORDER = "library.py"
FILES = sorted((ROOT / "repl").rglob("*.py"))
PRIVATE = re.compile(r"_[A-Za-z]\w*(?<!__)")
PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
FORBIDDEN = {"ctypes", "cffi", "gc.get_referrers"}
LISTS = ("sys.modules", "sys.meta_path", "sys.path_hooks", "sys.path")

Finding = tuple[int, str]


def private(name: str) -> bool:
    """Tell whether a name is private to whoever made it; double underscores are Python's own."""
    return PRIVATE.fullmatch(name) is not None


def dotted(node: ast.AST) -> str:
    """Return a chain of attributes as it is written; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def defined(tree: ast.AST) -> set[str]:
    """Return the private names that a file makes itself."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if private(name)}


TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
OWN = {path: defined(tree) for path, tree in TREES.items()}
EVERY = set().union(*OWN.values())


def roots(tree: ast.AST) -> set[str]:
    """Return the names that stand for modules, or things in modules, that are not this program's."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {
                    each.asname or each.name.partition(".")[0] for each in names if not each.name.startswith("repl")
                }
            case ast.ImportFrom(module=module, names=names) if not str(module).startswith("repl"):
                found |= {each.asname or each.name for each in names}
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=func))
            ) if dotted(func).endswith("import_module"):
                found.add(name)
    return found


def names(tree: ast.AST, own: set[str]) -> Iterator[Finding]:
    """Yield the private names of others that a file uses: as attributes, in imports, and in strings."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if private(name) and name not in EVERY:
                yield line, name
            case ast.Attribute(value=value, attr=name) if private(name) and name not in own:
                if dotted(value) not in ("self", "cls"):
                    yield line, name
            case ast.Import(names=found) if any(map(private, ".".join(each.name for each in found).split("."))):
                yield line, ", ".join(each.name for each in found)
            case ast.ImportFrom(module=module, names=found):
                parts = [*str(module).split("."), *(each.name for each in found)]
                if any(map(private, parts)) and not str(module).startswith("repl"):
                    yield line, ".".join(parts)
            case ast.Constant(value=str(text)) if PATH.fullmatch(text) and any(map(private, text.split("."))):
                if text not in own:
                    yield line, repr(text)


def replaced(tree: ast.AST) -> Iterator[Finding]:
    """Yield where a file changes what is not its own: the list of modules, names in modules, the C interface."""
    theirs = roots(tree) - {"logging"}  # whose switches are its documented interface
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import(names=found) if FORBIDDEN & {each.name.partition(".")[0] for each in found}:
                yield line, "ctypes"
            case ast.ImportFrom(module=module) if str(module).partition(".")[0] in FORBIDDEN:
                yield line, "ctypes"
            case ast.Attribute(ctx=ast.Store() | ast.Del()) if dotted(node).partition(".")[0] in theirs:
                yield line, f"{dotted(node)} ="
            case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()) if dotted(value) in LISTS:
                yield line, f"{dotted(value)}[...] ="
            case ast.Call(func=ast.Attribute(value=value, attr=verb)) if dotted(value) in LISTS and verb != "get":
                yield line, f"{dotted(value)}.{verb}(...)"
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[first, *_]):
                if dotted(first).partition(".")[0] in theirs:
                    yield line, f"setattr({dotted(first)}, ...)"


def main() -> None:
    for path in FILES:
        for line, name in sorted({*names(TREES[path], OWN[path]), *replaced(TREES[path])}):
            print(path.relative_to(ROOT), line, name)


if __name__ == "__main__":
    main()
