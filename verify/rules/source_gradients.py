"""SRC: gradients that are looked at in a way that shows nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, first_name, project_of
from verify.trace.record import NotSeenError, Record

EPOCH = re.compile(r"epoch|^ep$|^e$", re.IGNORECASE)
PARAMETERS = ("parameters", "named_parameters")


def _mentions_grad(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "grad" for one in ast.walk(node))


def _calls_method(node: ast.AST, name: str) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr == name
        for one in ast.walk(node)
    )


@rule("SRC080", severity=Status.WARN, subject=Subject.RUN)
def gradient_test_passes_for_zeros(record: Record) -> Iterator[Finding]:
    """A test of gradients passes when all of them are zero.

    Why it matters: a dead layer, a saturated output or a loss that ignores the model has gradients: zeros. The test is
    green, and nothing is learned.
    Found by: reading the project's tests: a test that calls backward and asks of gradients only whether they are None.
    Not an error: tests that look at a value of some gradient as well.

    Wrong: `assert p.grad is not None`
    Right: `assert p.grad is not None and p.grad.abs().sum() > 0`
    """
    texts = {e["path"]: e["text"] for e in record.of("sibling", "source")}
    tests = Project({path: text for path, text in texts.items() if "test" in path.rpartition("/")[2]})
    if not tests.files:
        raise NotSeenError("the project has no tests")
    for function in tests.nodes(ast.FunctionDef):
        if not function.name.startswith("test") or not _calls_method(function, "backward"):
            continue
        asked = [node for node in ast.walk(function) if _asks_for_none(node)]
        read = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and n.attr == "grad"]
        if asked and len(read) == len(asked):
            yield Finding(
                measured=f"{ast.unparse(asked[0])}, and no value is looked at",
                expected="a test that fails for zeros",
                message=f"{function.name} passes when every gradient is zero",
                hint="also assert that p.grad.abs().sum() > 0",
                location=tests.at(asked[0]),
            )


def _asks_for_none(node: ast.AST) -> bool:
    """`x.grad is None`, `x.grad is not None`."""
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Is | ast.IsNot)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "grad"
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
    )


@rule("SRC081", severity=Status.WARN, subject=Subject.RUN)
def gradient_norm_of_last_batch(record: Record) -> Iterator[Finding]:
    """The gradient norm that is logged for an epoch is that of its last batch.

    Why it matters: the last batch is the smallest and only one of hundreds; the curve is noise, and a spike in the
    middle of an epoch, which is what such a curve is kept for, never shows.
    Found by: reading the source: norms of `.grad` computed in the loop over epochs, and not in the loop over batches.
    Not an error: the norm of each batch, or an average of them.

    Wrong: `for epoch in ...: train(model); log(sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5)`
    Right: `norm = clip_grad_norm_(model.parameters(), limit)` at each step, logged there or averaged
    """
    project = project_of(record)
    measuring = [f.name for f in project.nodes(ast.FunctionDef) if _measures_norm(f) and not _is_step(f)]
    for loop in project.nodes(ast.For):
        if not EPOCH.search(first_name(loop.target)):
            continue
        place = next(iter(_norms_in(loop, measuring)), None)
        if place is not None:
            yield Finding(
                measured=ast.unparse(place).splitlines()[0],
                expected="the norm at each step",
                message="gradients are measured once an epoch, when those of the last batch are left",
                hint="measure in the loop over batches; clip_grad_norm_ returns the norm",
                location=project.at(place),
            )


def _measures_norm(node: ast.AST) -> bool:
    """A loop or comprehension over parameters that takes norms of their gradients."""
    return any(
        isinstance(one, ast.For | ast.GeneratorExp | ast.ListComp) and _is_over_parameters(one) and _takes_norm(one)
        for one in ast.walk(node)
    )


def _is_over_parameters(node: ast.For | ast.GeneratorExp | ast.ListComp) -> bool:
    iterated = node.iter if isinstance(node, ast.For) else node.generators[0].iter
    return any(_calls_method(iterated, name) for name in PARAMETERS)


def _takes_norm(node: ast.AST) -> bool:
    norms = [
        one
        for one in ast.walk(node)
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and "norm" in one.func.attr
    ]
    return any(_mentions_grad(one) for one in norms)


def _is_step(node: ast.AST) -> bool:
    return _calls_method(node, "backward")


def _norms_in(loop: ast.For, measuring: list[str]) -> Iterator[ast.AST]:
    """Where the body of a loop over epochs measures gradients, outside of a loop over batches of its own."""
    pending: list[ast.AST] = list(loop.body)
    for node in pending:
        if _is_measurement(node, measuring):
            yield node
        elif not (isinstance(node, ast.For | ast.While) and _has_batches(node)) and not isinstance(node, Function):
            pending.extend(ast.iter_child_nodes(node))


def _is_measurement(node: ast.AST, measuring: list[str]) -> bool:
    if isinstance(node, ast.For | ast.GeneratorExp | ast.ListComp):
        return _is_over_parameters(node) and _takes_norm(node)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in measuring


def _has_batches(node: ast.AST) -> bool:
    return _is_step(node) or _calls_method(node, "step")
