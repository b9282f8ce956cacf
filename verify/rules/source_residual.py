"""SRC: stochastic depth on the wrong side of the sum, and hooks that nobody calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, is_self, parameters, torch_project
from verify.trace.record import Record

DROPS = re.compile(r"drop_?path|stochastic_?depth", re.IGNORECASE)
SKIPS = re.compile(r"skip|short_?cut|identity|resid|down_?sample", re.IGNORECASE)
FEWEST_HOOKS = 3


@rule("SRC091", severity=Status.WARN, subject=Subject.RUN)
def skip_is_dropped_too(record: Record) -> Iterator[Finding]:
    """Stochastic depth drops the skip connection together with the branch.

    Why it matters: a dropped sample loses its whole signal, not one block of it, and the others are scaled up block
    after block; deep networks train badly and nobody looks there.
    Found by: reading the source: drop path called on the sum of the block's input, or of what is called its skip or
    shortcut, and a branch.
    Not an error: two branches that are added, dropped together and then added to the input.

    Wrong: `return self.drop_path(x + self.branch(x))`
    Right: `return x + self.drop_path(self.branch(x))`
    """
    project = torch_project(record)
    for call in project.calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        total = call.args[0] if call.args else None
        if not DROPS.search(name) or not isinstance(total, ast.BinOp) or not isinstance(total.op, ast.Add):
            continue
        function = project.function(call)
        skip = next((one for one in _addends(total) if function is not None and _is_skip(one, function)), None)
        if skip is not None and function is not None and not _is_added_later(project, call, function):
            yield Finding(
                measured=ast.unparse(call)[:100],
                expected=f"{ast.unparse(skip)} outside of {name}",
                message="stochastic depth is applied to the sum, so it drops the skip connection too",
                location=project.at(call),
                hint=f"{ast.unparse(skip)} + {ast.unparse(call.func)}(branch)",
            )


def _addends(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _addends(node.left)
        yield from _addends(node.right)
    else:
        yield node


def _is_skip(node: ast.expr, function: Function) -> bool:
    """The input of the block itself, or what is called a skip connection."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and is_self(node.func.value) and bool(SKIPS.search(node.func.attr))
    if not isinstance(node, ast.Name):
        return False
    given = [arg.arg for arg in parameters(function)][1:2]
    return node.id in given or bool(SKIPS.search(node.id))


def _is_added_later(project: Project, call: ast.Call, function: Function) -> bool:
    """Whether the result is added to something: in the same expression, or under the name that it gets."""
    up = project.parent[call]
    if isinstance(up, ast.BinOp | ast.AugAssign) and isinstance(up.op, ast.Add):
        return True
    if not isinstance(up, ast.Assign) or not isinstance(up.targets[0], ast.Name):
        return not isinstance(up, ast.Return)
    name = up.targets[0].id
    sums = [n for n in ast.walk(function) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add)]
    plain = [one for total in sums if total is not call.args[0] for one in _addends(total) if isinstance(one, ast.Name)]
    return any(one.id == name and one.lineno > call.lineno for one in plain)


@rule("SRC092", severity=Status.WARN, subject=Subject.RUN)
def hook_never_called(record: Record) -> Iterator[Finding]:
    """A hook has a name that nobody calls.

    Why it matters: the base class has an empty method for each real hook, so a misspelt one raises no error; clipping,
    logging or averaging just does not happen.
    Found by: reading the source: a class of hooks whose base class consists of empty methods, and a public method of it
    that is not among them and that no file mentions.
    Not an error: methods that begin otherwise or take other arguments than a hook; properties; names that appear in
    text anywhere, as for `getattr`.

    Wrong: `def before_optim_step(self, trainer): clip(...)` where the trainer calls `before_step`
    Right: `def before_step(self, trainer): clip(...)`
    """
    project = torch_project(record)
    for definitions in project.classes.values():
        for node in definitions:
            yield from _dead_hooks(project, node)


def _dead_hooks(project: Project, node: ast.ClassDef) -> Iterator[Finding]:
    bases = [d for base in node.bases for d in project.definitions(base) if isinstance(d, ast.ClassDef)]
    if len(bases) != 1 or len(node.bases) != 1 or bases[0].bases:
        return
    empty = {item.name for item in bases[0].body if isinstance(item, Function) and _is_empty(item)}
    others = [i for i in bases[0].body if isinstance(i, Function) and i.name not in empty and i.name != "__init__"]
    if len(empty) < FEWEST_HOOKS or others:
        return
    for item in node.body:
        if not isinstance(item, Function) or item.name in empty or item.decorator_list:
            continue
        if _is_like_a_hook(item, bases[0], empty) and not _is_mentioned(project, item.name):
            yield Finding(
                measured=f"{node.name}.{item.name}",
                expected=f"one of {', '.join(sorted(empty))}"[:120],
                message=f"nothing calls {item.name}, and {bases[0].name} has no such hook",
                location=project.at(item),
                hint="give the method the name of the hook that is called",
            )


def _is_like_a_hook(function: Function, base: ast.ClassDef, empty: set[str]) -> bool:
    """Whether a method takes what a hook takes, and has a name that begins like one: `before_`, `on_`."""
    hooks = [one for one in base.body if isinstance(one, Function) and one.name in empty]
    first = function.name.partition("_")[0]
    return any(
        hook.name.partition("_")[0] == first and len(parameters(hook)) == len(parameters(function)) for hook in hooks
    )


def _is_empty(function: Function) -> bool:
    """`...`, `pass`, a docstring, `return None`."""
    return all(
        isinstance(one, ast.Pass)
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        or (isinstance(one, ast.Return) and (one.value is None or isinstance(one.value, ast.Constant)))
        for one in function.body
    )


def _is_mentioned(project: Project, name: str) -> bool:
    """Whether a name occurs anywhere but in definitions of functions."""
    words = re.compile(rf"(?<!def )\b{re.escape(name)}\b")
    return any(words.search(file.text) for file in project.files)
