"""LOS: losses made of a measure of overlap."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, torch_project
from verify.trace.record import Record

OVERLAP = re.compile(r"dice|jaccard|tversky|(?<![a-z])s?oft_?iou|(?<![a-z])[gdc]?iou(?![a-z])|iou_?loss", re.IGNORECASE)
TURNS = re.compile(r"log|exp|rsub|neg|sub")
MOST_DEPTH = 3


@rule("LOS916", severity=Status.WARN, subject=Subject.RUN)
def overlap_minimised(record: Record) -> Iterator[Finding]:
    """What is called a Dice or IoU loss is the coefficient itself.

    Why it matters: it is 1 for a perfect answer and 0 for none, so that minimising it pulls the prediction off the
    target; beside a cross entropy the training still learns something, and nobody notices.
    Found by: reading the source: a function or a module whose name says overlap and loss, and returns a quotient that
    nothing subtracts from 1, negates or takes the logarithm of, neither there nor where it is used.
    Not an error: the coefficient as a metric; `1 - dice_loss(...)` where it is used.

    Wrong: `return (2 * inter + eps) / (total + eps)` in `DiceLoss.forward`
    Right: `return 1 - (2 * inter + eps) / (total + eps)`
    """
    project = torch_project(record)
    if not any(OVERLAP.search(file.text) for file in project.files) or _is_turned_in_use(project):
        return
    for function in [*project.nodes(ast.FunctionDef)]:
        owner = project.parent[function]
        name = owner.name if isinstance(owner, ast.ClassDef) and function.name == "forward" else function.name
        if not (OVERLAP.search(name) and "loss" in name.lower()) or _is_turned(project, function, 0):
            continue
        returns = [node for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
        if returns and _divides(project, function, 0):
            yield Finding(
                measured=f"{name} returns {ast.unparse(returns[-1])[7:80]}",
                expected="1 minus the coefficient",
                message="the overlap itself is minimised",
                location=project.at(returns[-1]),
                hint="a loss is lower where the answer is better: 1 - dice",
            )


def _is_turned_in_use(project: Project) -> bool:
    """Whether anything that speaks of overlap is subtracted or negated anywhere but in a function that is called so."""
    parts: list[tuple[ast.AST, ast.expr]] = []
    parts += [(node, node.right) for node in project.nodes(ast.BinOp) if isinstance(node.op, ast.Sub)]
    parts += [(node, node.value) for node in project.nodes(ast.AugAssign) if isinstance(node.op, ast.Sub)]
    parts += [(node, node.operand) for node in project.nodes(ast.UnaryOp) if isinstance(node.op, ast.USub)]
    for node, part in parts:
        if OVERLAP.search(ast.unparse(part)):
            function = project.function(node)
            owner = project.parent[function] if function is not None else None
            names = [getattr(one, "name", "") for one in (function, owner)]
            if not any(OVERLAP.search(name) for name in names):
                return True
    return False


def _is_turned(project: Project, function: Function, depth: int) -> bool:
    """Whether a function, or one of the project that it calls, may turn a coefficient into a loss."""
    for node in ast.walk(function):
        negates = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if isinstance(node, ast.UnaryOp) and negates and not isinstance(node.operand, ast.Constant):
            return True
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Sub):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if TURNS.search(name) and not name.startswith(("log_softmax", "logsigmoid")):
                return True
            if depth < MOST_DEPTH and any(_is_turned(project, f, depth + 1) for f, _ in project.callees(node)):
                return True
    return False


def _divides(project: Project, function: Function, depth: int) -> bool:
    """Whether a quotient is formed in a function, or in one of the project that it calls."""
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return True
        callees = project.callees(node) if isinstance(node, ast.Call) and depth < MOST_DEPTH else []
        if any(_divides(project, callee, depth + 1) for callee, _ in callees):
            return True
    return False
