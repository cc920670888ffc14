"""The border with the libraries: what no documentation promises stands in one file; nothing of theirs is changed."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "repl"
BORDER = ROOT / "core" / "library.py"
PRIVATE = re.compile(r"_[A-Za-z]\w*(?<!__)")
PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
C_INTERFACES = {"ctypes", "cffi", "_ctypes"}
IMPORTS = ("sys.modules", "sys.meta_path", "sys.path_hooks")
OURS = ("self", "cls")
STANDARD = {"os": {"_exit", "environ"}, "logging": {"raiseExceptions"}, "sys": {"stdin", "stdout", "stderr"}}
"""What Python documents although it looks like somebody else's: a name with an underscore, switches to be set."""

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


def documented(node: ast.Attribute) -> bool:
    """Tell whether Python's own documentation has this name of a module."""
    return node.attr in STANDARD.get(dotted(node.value), ())


def made(tree: ast.AST) -> set[str]:
    """Return the private names that a file makes itself."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return set(filter(private, found))


def attributes(tree: ast.AST, own: set[str], every: set[str]) -> Iterator[Finding]:
    """Yield private attributes that are not ours: of `self` what no file makes, of others what this file does not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and not documented(node):
            known = every if dotted(node.value) in OURS else own
            if node.attr not in known:
                yield node.lineno, node.attr


def words(tree: ast.AST, own: set[str]) -> Iterator[Finding]:
    """Yield strings that are private names: arguments of `getattr`, lists of names, modules to import."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in texts:
        named = PATH.fullmatch(node.value) and any(map(private, node.value.split(".")))
        if named and node.value not in own and node not in parts_of_words(tree):
            yield node.lineno, repr(node.value)


def parts_of_words(tree: ast.AST) -> list[ast.AST]:
    """Return the strings that a file only compares with the beginning or end of others."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    asked = [call for call in calls if call.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix")]
    return [node for call in asked for argument in call.args for node in ast.walk(argument)]


def imports(tree: ast.AST) -> Iterator[Finding]:
    """Yield imports of private modules and names, and of C interfaces."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in C_INTERFACES or (parts[0] != "repl" and any(map(private, parts))):
                yield node.lineno, name


def theirs(tree: ast.AST) -> set[str]:
    """Return the names in a file that stand for modules, or things in modules, that are not this program's."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {each.asname or each.name.partition(".")[0] for each in names}
            case ast.ImportFrom(module=module, names=names) if str(module).partition(".")[0] != "repl":
                found |= {each.asname or each.name for each in names}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func)) if loads(func):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=func)) if loads(func):
                found.add(name)
    return found - {"repl"}


def loads(function: ast.AST) -> bool:
    """Tell whether a call of this imports a module."""
    return dotted(function).rpartition(".")[2] in ("import_module", "__import__")


def changes(tree: ast.AST) -> Iterator[Finding]:
    """Yield where a file sets names in modules or classes that are not its own."""
    others = theirs(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()) if dotted(node).partition(".")[0] in others:
                if not documented(node):
                    yield node.lineno, f"{dotted(node)} ="
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[first, *_]):
                if dotted(first).partition(".")[0] in others - set(STANDARD):
                    yield node.lineno, f"setattr({dotted(first)}, ...)"


def meddling(tree: ast.AST) -> Iterator[Finding]:
    """Yield where a file changes what Python imports, and from where."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()) if dotted(value) in IMPORTS:
                yield node.lineno, f"{dotted(value)}[...] ="
            case ast.Call(func=ast.Attribute(value=value, attr=verb)) if dotted(value) in IMPORTS and verb != "get":
                yield node.lineno, f"{dotted(value)}.{verb}(...)"


def findings(trees: dict[Path, ast.AST]) -> dict[Path, list[Finding]]:
    """Return what each file uses, or changes, that is not promised to it."""
    own = {path: made(tree) for path, tree in trees.items()}
    every = set[str]().union(*own.values())
    return {
        path: sorted(
            {
                *attributes(tree, own[path], every),
                *words(tree, own[path]),
                *imports(tree),
                *changes(tree),
                *meddling(tree),
            }
        )
        for path, tree in trees.items()
    }


@cache
def found() -> dict[Path, list[Finding]]:
    """Read the whole program once."""
    return findings({path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))})


@pytest.mark.slow
def test_private_names_of_libraries_stand_in_one_file() -> None:
    """And no function, constant or module of a library is replaced, nor anything called through a C interface."""
    wrong = [
        f"{path.relative_to(ROOT)} line {line}: {name}"
        for path, lines in found().items()
        if path != BORDER
        for line, name in lines
    ]
    assert wrong == []


def test_every_use_says_where_it_was_seen() -> None:
    """So that who meets the next version knows what to look for."""
    tree = ast.parse(BORDER.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not private(node.name):
            said = ast.get_docstring(node) or ""
            assert re.search(r"\d\.\d+", said), f"{node.name} names no version"


@pytest.mark.parametrize(
    "line",
    [
        "model._prefill(1)",
        "getattr(model, '_prefill', None)",
        "NAMES = ('generate', '_sample')",
        "self._modules['whole']",
        "from torch._dynamo import utils",
        "from torch import _dynamo",
        "import torch._inductor.config",
        "import importlib; importlib.import_module('torch._inductor')",
        "import torch; torch._inductor",
        "import ctypes",
        "from ctypes import byref",
        "import transformers; transformers.tqdm = None",
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1",
        "from transformers import GenerationMixin; setattr(GenerationMixin, 'generate', 1)",
        "import importlib; found = importlib.import_module('torch'); found.load = 1",
        "import sys; sys.modules['torch._dynamo'] = 1",
        "import sys; sys.modules.pop('torch')",
        "import sys; sys.modules |= {}",
        "import sys; sys.meta_path.insert(0, 1)",
        "import sys; sys.meta_path[:] = []",
    ],
)
def test_each_kind_of_use_is_found(line: str) -> None:
    """The test above sees what it is to see."""
    assert findings({ROOT / "probe.py": ast.parse(line)})[ROOT / "probe.py"]


@pytest.mark.parametrize(
    "line",
    [
        "class A:\n def __init__(self): self._x = 1\n def get(self, other): return other._x + self._x",
        "import os; os._exit(1)",
        "import os; os.environ |= {'A': 'b'}",
        "import sys; sys.modules.get('torch')",
        "print('a _word_ of text', __name__, 'pad_token'.endswith('_token'))",
        "model.config.use_cache = False",
    ],
)
def test_ones_own_names_are_left_alone(line: str) -> None:
    assert findings({ROOT / "probe.py": ast.parse(line)})[ROOT / "probe.py"] == []
