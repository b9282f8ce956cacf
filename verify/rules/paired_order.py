"""EVL: results that are put beside what the data set holds in its own order."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, arguments, project_of, words
from verify.trace.record import NotSeenError, Record

# These say something about the data set as a whole, not about each sample in turn.
OF_THE_WHOLE = words(
    "classes class_to_idx transform transforms target_transform num_classes name root mean std dataset"
)


@rule("EVL628", severity=Status.WARN, subject=Subject.RUN)
def order_of_results_lost(record: Record) -> Iterator[Finding]:
    """Results of a shuffled loader are put beside values in the order of the data set.

    Why it matters: each prediction gets the name, the patient or the label of another sample; what is grouped, saved
    or submitted so is wrong, and nothing crashes.
    Found by: a loader that only evaluations iterate and that shuffles, and in the source a call or a table that gets
    both what was made with a loader and a field of `loader.dataset`.
    Not an error: loaders in the order of the data set; fields about the whole, such as the names of the classes; values
    that come out of the batches.

    Wrong: `DataLoader(test_set, shuffle=True)` and `zip(loader.dataset.paths, predict(model, loader))`
    Right: `DataLoader(test_set, shuffle=False)`
    """
    shuffled = _shuffled_evaluations(record)
    if not shuffled:
        raise NotSeenError("no evaluation iterates a shuffled loader of its own")
    project = project_of(record)
    for field in project.nodes(ast.Attribute):
        inner = field.value
        if field.attr in OF_THE_WHOLE or not isinstance(inner, ast.Attribute) or inner.attr != "dataset":
            continue
        beside = _beside(project, field, ast.unparse(inner.value))
        if beside is not None and _may_be(project, inner.value, shuffled):
            yield Finding(
                measured=f"{ast.unparse(beside)[:90]}; the loader of {shuffled[0]} shuffles",
                expected="both in one order",
                message=f"{ast.unparse(field)} is in the order of the data set, the results are shuffled",
                location=project.at(field),
                hint="shuffle=False for evaluations, or take the values out of the batches",
            )
            return


def _shuffled_evaluations(record: Record) -> list[str]:
    """Where loaders were made that shuffle and that evaluations alone iterate."""
    roles: dict[int, set[str]] = {}
    for one in record.iterations:
        roles.setdefault(one.loader, set()).add(one.role)
    loaders = [record.loaders[number] for number, found in roles.items() if "eval" in found and "train" not in found]
    return [loader["loc"] for loader in loaders if loader["shuffle"]]


def _beside(project: Project, field: ast.Attribute, loader: str) -> ast.expr | None:
    """The call or table that holds a field of the data set beside a result of the loader."""
    for up in project.ancestors(field):
        if not isinstance(up, ast.expr | ast.keyword):
            return None
        if isinstance(up, ast.Call) and isinstance(up.func, ast.Name) and up.func.id == "len":
            return None
        parts: list[ast.expr] = []
        if isinstance(up, ast.Call):
            parts = [*up.args, *(k.value for k in up.keywords)]
        elif isinstance(up, ast.Dict):
            parts = up.values
        others = [part for part in parts if field not in ast.walk(part)]
        if any(_is_result(project, part, loader) for part in others):
            return up if isinstance(up, ast.expr) else None
    return None


def _is_result(project: Project, node: ast.expr, loader: str) -> bool:
    """Whether a value is, or was filled by, what a call with the loader gave or a loop over it."""
    for name in (n for n in ast.walk(node) if isinstance(n, ast.Name)):
        _, bindings = project.lookup(name)
        calls = [b.expr for b in bindings if b.kind in ("value", "item") and isinstance(b.expr, ast.Call)]
        if any(ast.unparse(arg) == loader for call in calls for arg in call.args):
            return True
        loops = [
            up
            for call in project.calls
            if isinstance(call.func, ast.Attribute)
            and call.func.attr in ("append", "extend")
            and ast.unparse(call.func.value) == name.id
            for up in project.ancestors(call)
            if isinstance(up, ast.For)
        ]
        if any(loader in map(ast.unparse, ast.walk(loop.iter)) for loop in loops if loop.iter is not None):
            return True
    return any(isinstance(n, ast.Call) and any(ast.unparse(arg) == loader for arg in n.args) for n in ast.walk(node))


def _may_be(project: Project, loader: ast.expr, places: list[str], depth: int = 0) -> bool:
    """Whether a variable may hold one of the loaders that were made at some places."""
    if depth > 4 or not isinstance(loader, ast.Name):
        return False
    _, bindings = project.lookup(loader)
    for binding in bindings:
        if binding.kind == "param":
            function = project.function(binding.node)
            given = _given(project, function, binding.node) if function is not None else []
            if any(_may_be(project, value, places, depth + 1) for value in given):
                return True
        elif _is_made_at(project, binding.node, places):
            return True
        elif binding.kind == "item" and isinstance(binding.expr, ast.Call):
            returned = _returned(project, binding.expr, binding.index)
            if any(_may_be(project, value, places, depth + 1) for value in returned):
                return True
    return False


def _is_made_at(project: Project, node: ast.AST, places: list[str]) -> bool:
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
    path = project.file(node).path
    return any(f"{path}:{line}" in places for line in range(first, last + 1))


def _given(project: Project, function: Function, parameter: ast.AST) -> list[ast.expr]:
    calls = project.calls_of.get(function, [])
    return [value for call in calls for arg, value in arguments(call, function, project) if arg is parameter]


def _returned(project: Project, call: ast.Call, index: int) -> list[ast.expr]:
    return [
        node.value.elts[index]
        for function, _ in project.callees(call)
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and index < len(node.value.elts)
    ]
