"""Layers that only run where an option of the model says so: unused ones are meant, and not forgotten."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Branch = ast.If | ast.IfExp


def optional_layers(trees: Iterable[ast.AST]) -> dict[str, str]:
    """Attributes of `self` whose every use outside of constructors stands in one branch on an option -> its test.

    A test on the mode of the module is none, and neither is a layer that both branches use.
    """
    uses: dict[str, list[str | None]] = defaultdict(list)
    for tree in trees:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                for name, test in _uses(function, []):
                    uses[name].append(test)
    return {name: tests[0] for name, tests in uses.items() if tests[0] and None not in tests}


def switched_off(names: Iterable[str], optional: dict[str, str]) -> dict[str, str]:
    """Of these parameters, those that belong to an optional layer -> the test in front of it."""
    found = {}
    for name in names:
        tests = [optional[part] for part in name.split(".")[:-1] if part in optional]
        if tests:
            found[name] = tests[0]
    return found


def sources_of(model: nn.Module) -> list[ast.AST]:
    """The classes of a model's modules, as far as their source can be had; torch's own are left out."""
    classes = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}
    trees: list[ast.AST] = []
    for one in classes:
        with suppress(OSError, TypeError, SyntaxError, ValueError):
            trees.append(ast.parse(textwrap.dedent(inspect.getsource(one))))
    return trees


def trees_of(texts: Mapping[str, str]) -> list[ast.AST]:
    """The Python files of these, by path, that can be read."""
    trees: list[ast.AST] = []
    for path, text in texts.items():
        if path.endswith(".py"):
            with suppress(SyntaxError, ValueError):
                trees.append(ast.parse(text))
    return trees


def _uses(node: ast.AST, branches: list[tuple[str, Branch, bool]]) -> Iterator[tuple[str, str | None]]:
    """(attribute of self, test of the branch on an option that it stands in), in source order."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        both = _names_in_both(branches)
        tests = [test for test, _, optional in branches if optional]
        yield node.attr, tests[0] if tests and node.attr not in both else None
        return
    if isinstance(node, Branch):
        inside = [*branches, (ast.unparse(node.test), node, _is_option(node.test))]
        for child in (*_listed(node.body), *_listed(node.orelse)):
            yield from _uses(child, inside)
        return
    for child in ast.iter_child_nodes(node):
        yield from _uses(child, branches)


def _listed(part: list[ast.stmt] | ast.expr) -> list[ast.AST]:
    return list(part) if isinstance(part, list) else [part]


def _names_in_both(branches: list[tuple[str, Branch, bool]]) -> set[str]:
    both: set[str] = set()
    for _, branch, _ in branches:
        both |= _attributes(branch.body) & _attributes(branch.orelse)
    return both


def _attributes(part: list[ast.stmt] | ast.expr) -> set[str]:
    nodes = (node for one in _listed(part) for node in ast.walk(one))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def _is_option(test: ast.expr) -> bool:
    """Whether a test asks for a setting: names, attributes, constants, `not`, `and`, comparisons, and nothing else."""
    allowed = (ast.Name, ast.Attribute, ast.Constant, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load)
    operators = (ast.unaryop, ast.boolop, ast.cmpop)
    nodes = list(ast.walk(test))
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return bool(words) and "training" not in words and all(isinstance(n, (*allowed, *operators)) for n in nodes)
