"""DAT: marks of missing values that come too late."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, project_of, words
from verify.trace.record import Record

ASKS = words("isnan isna isnull notna notnull")
FILLS = words("nan_to_num fillna")
# Ways of asking whether, or how many; they look at the result and make no feature of it.
SUMMARIES = words("any all sum mean item count_nonzero")


@rule("DAT241", severity=Status.WARN, subject=Subject.RUN)
def marked_after_filling(record: Record) -> Iterator[Finding]:
    """Missing values are marked after they were filled, so nothing is ever marked.

    Why it matters: that a value is missing often says more than the value; the flags are zeros in every row, and the
    network gets columns without information.
    Found by: reading the source: a name or a column that is filled, and of which the same block then asks which values
    are missing, with no other assignment in between.
    Not an error: asking whether any or how many are left, in an assertion, a test or a print; filling some columns.

    Wrong: `x = np.where(np.isnan(x), median, x)` and then `flags = np.isnan(x)`
    Right: `flags = np.isnan(x)` and then `x = np.where(np.isnan(x), median, x)`
    """
    project = project_of(record)
    for block in _blocks(project):
        filled: dict[str, ast.stmt] = {}
        for statement in block:
            for asked in _asked(project, statement):
                fill = filled.get(asked.what) or filled.get(asked.what.partition("[")[0])
                if fill is not None:
                    yield Finding(
                        measured=f"{ast.unparse(asked.node)[:60]} after {ast.unparse(fill)[:60]}",
                        expected="the flags first, then the filling",
                        message="missing values are marked after they were filled: no value is ever marked",
                        location=project.at(asked.node),
                        hint="compute the flags before filling",
                    )
                    return
            _follow(project, statement, filled)


class _Asked:
    """`np.isnan(x)`, `x.isna()`: the call, and the text of what it asks about."""

    def __init__(self, node: ast.Call, what: str) -> None:
        self.node, self.what = node, what


def _blocks(project: Project) -> Iterator[list[ast.stmt]]:
    """Statements that run one after another."""
    for node in project.nodes(ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.For, ast.With, ast.If):
        yield node.body  # type: ignore[attr-defined]


def _asked(project: Project, statement: ast.stmt) -> Iterator[_Asked]:
    """Where an assignment or a return makes values of which ones are missing."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return) or statement.value is None:
        return
    for node in ast.walk(statement.value):
        what = _subject(project, node, ASKS)
        if what and isinstance(node, ast.Call) and not _is_summary(project, node):
            yield _Asked(node, what)


def _is_summary(project: Project, node: ast.AST) -> bool:
    """Whether the answer is only summed up, or chooses between values."""
    for up in project.ancestors(node):
        if isinstance(up, ast.stmt):
            return False
        if isinstance(up, ast.IfExp | ast.Compare | ast.BoolOp | ast.Lambda):
            return True
        name = ""
        if isinstance(up, ast.Call):
            name = up.func.attr if isinstance(up.func, ast.Attribute) else getattr(up.func, "id", "")
        if name in SUMMARIES or name in ("where", "masked_fill", *FILLS):
            return True
    return False


def _subject(project: Project, node: ast.AST, names: frozenset[str]) -> str:
    """`x` of `np.isnan(x)` and of `x.isna()`, as text."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in names:
        return ""
    if project.qualified(node.func):
        return ast.unparse(node.args[0]) if node.args else ""
    return ast.unparse(node.func.value)


def _follow(project: Project, statement: ast.stmt, filled: dict[str, ast.stmt]) -> None:
    """Take note of what a statement fills, and forget what it changes otherwise."""
    fill = _fill(project, statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            _forget(filled, ast.unparse(node))
        if isinstance(node, Function):
            return
    if fill:
        filled[fill] = statement


def _forget(filled: dict[str, ast.stmt], text: str) -> None:
    """A column that is assigned leaves the other columns as they are."""
    for known in list(filled):
        if known == text or known.startswith((text + "[", text + ".")) or text.startswith(known + "["):
            del filled[known]


def _fill(project: Project, statement: ast.stmt) -> str:
    """The text of what a statement replaces by its filled self, or ''."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ""
    target, value = ast.unparse(statement.targets[0]), statement.value
    if isinstance(value, ast.Call) and value.args and _subject(project, value, FILLS) == target:
        # A table may be filled in some of its columns; a constant fills all of them.
        all_of_it = "fillna" not in ast.unparse(value.func) or "[" in target or isinstance(value.args[0], ast.Constant)
        return target if all_of_it and not {k.arg for k in value.keywords} & {"method", "limit", "value"} else ""
    is_where = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "where"
    if not is_where or not isinstance(value, ast.Call) or len(value.args) != 3 or not project.qualified(value.func):
        return ""
    chosen = _subject(project, value.args[0], words("isnan isna isnull"))
    return target if chosen == target == ast.unparse(value.args[2]) else ""
