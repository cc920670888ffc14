"""The source of a chat template, parsed but not run: the variables that it reads, and its literal text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, meta, nodes
from jinja2.ext import Extension, loopcontrols


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The variables that a chat template reads from its caller, the attributes that it looks up, its literal text."""

    variables: frozenset[str]
    attributes: frozenset[str]
    literals: str


@lru_cache(16)
def parse(source: str) -> TemplateSource:
    """Parse a template; raises `jinja2.TemplateSyntaxError`, or `RecursionError` where it is nested too deeply."""
    tree = _environment().parse(source)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)} | texts
    unset = meta.find_undeclared_variables(tree) & set(_read_before_set(tree, set()))
    return TemplateSource(frozenset(unset), frozenset(attributes), "\0".join(texts))


def _read_before_set(node: Any, known: set[str]) -> Iterator[str]:
    """Yield the names that are read where the template has not set them, in the order of execution.

    Jinja takes a name for undeclared where only one branch sets it, but what a caller gives there has no effect.
    """
    if isinstance(node, nodes.Name):
        if node.ctx == "load" and node.name not in known:
            yield node.name
        elif node.ctx != "load":
            known.add(node.name)
        return
    order = {nodes.Assign: ("node", "target"), nodes.CondExpr: ("test", "expr1", "expr2")}
    order |= {nodes.For: ("iter", "target", "test", "body", "else_"), nodes.AssignBlock: ("body", "filter", "target")}
    inside = set(known) if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.FilterBlock) else known
    for field in order.get(type(node), node.fields):
        value = getattr(node, field)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                yield from _read_before_set(child, inside)


@lru_cache(1)
def _environment() -> Any:
    """Return a Jinja environment with the syntax of chat templates: the library's extensions, which do nothing here."""

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(extensions=[Generation, loopcontrols])
    environment.globals |= {"raise_exception": None, "strftime_now": None}  # functions that the library provides
    return environment
