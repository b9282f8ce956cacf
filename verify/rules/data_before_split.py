"""DAT: what is learned from all samples before some of them are set aside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_fitting import OF_LABELS, OF_OUTPUTS, OF_PLOTS, fits, names_axis, reduced, roles_in, standardised
from verify.source import Project, project_of
from verify.trace.child.names import role
from verify.trace.record import Record

SPLITTERS = re.compile(r"(^|\.)(train_test_split|random_split)$")
# What is fitted on labels, or copies samples: there the score itself is wrong, and not by little.
WITH_LABELS = re.compile(r"SelectKBest|SelectPercentile|SelectFrom|SelectF|RFE|TargetEncoder")
STEPS = 6  # from what is fitted to what is split, by assignments


@dataclass(frozen=True)
class Learned:
    """A statement in which something is learned from all samples, and the names that then hold what came of it."""

    node: ast.expr
    names: frozenset[str]
    serious: bool
    what: str


@rule("DAT250", severity=Status.WARN, subject=Subject.RUN)
def fitted_before_split(record: Record) -> Iterator[Finding]:
    """Something is fitted on all samples before validation or test data are set aside.

    Why it matters: the evaluated samples have had their say in how the training inputs are made. With a scaler the
    score is a little too good; with features that were chosen by their labels, or with copies of rare samples, it is
    worth nothing.
    Found by: reading the source: a scaler, a projection or an imputation is fitted on a name that stands for no split,
    or the mean and deviation of each feature are taken, and what comes of it is split afterwards in the same function.
    An error where labels are given to what is fitted, or samples are drawn again (`fit_resample`).
    Not an error: fitting on the training part; pipelines, which are fitted later; encoders of labels; projections for a
    plot; constants that were published with the data; one mean and one deviation for all of the data.

    Wrong: `X = StandardScaler().fit_transform(X); X_train, X_test = train_test_split(X)`
    Right: `X_train, X_test = train_test_split(X); X_train = scaler.fit_transform(X_train)`
    References: the common pitfalls in the documentation of scikit-learn; Kaufman et al. 2012, "Leakage in data mining".
    """
    project = project_of(record)
    for one in [*_fitted(project), *_resampled(project), *_standardised(project), *_measured(project)]:
        place = _split_after(project, one)
        if place is None:
            continue
        yield Finding(
            status=Status.FAIL if one.serious else Status.WARN,
            measured=ast.unparse(one.node),
            expected="only training samples",
            message=f"{one.what} before the data is split at {project.at(place)}",
            location=project.at(one.node),
            hint="split first, then fit on the training part and transform the others",
        )
        return


def _fitted(project: Project) -> Iterator[Learned]:
    for fit in fits(project):
        given = fit.call.args[0]
        label = OF_LABELS.search(fit.made_by) and not WITH_LABELS.search(fit.made_by)
        plot = OF_PLOTS.search(fit.made_by) or OF_PLOTS.search(fit.receiver)
        if not fit.made_by.startswith("sklearn.") or not _is_everything(given) or fit.split or label or plot:
            continue
        names = _targets(project, fit.call)
        if isinstance(fit.call.func, ast.Attribute) and fit.call.func.attr == "fit":
            transforms = (call for call in project.calls if _transforms(call, fit.receiver, given))
            names = frozenset().union(*(_targets(project, call) for call in transforms))
        serious = bool(WITH_LABELS.search(fit.made_by)) and len(fit.call.args) > 1
        yield Learned(fit.call, names, serious, "fitted on all samples")


def _transforms(call: ast.Call, receiver: str, given: ast.expr) -> bool:
    is_transform = isinstance(call.func, ast.Attribute) and call.func.attr == "transform"
    same = is_transform and ast.unparse(call.func.value) == receiver  # type: ignore[attr-defined]
    return same and bool(call.args) and ast.unparse(call.args[0]) == ast.unparse(given)


def _resampled(project: Project) -> Iterator[Learned]:
    for call in project.calls:
        resamples = isinstance(call.func, ast.Attribute) and call.func.attr == "fit_resample"
        if resamples and call.args and _is_everything(call.args[0]):
            yield Learned(call, _targets(project, call), True, "samples of all data are drawn again")


def _standardised(project: Project) -> Iterator[Learned]:
    for node in project.nodes(ast.BinOp):
        one = standardised(project, node)
        if one is not None and one.by_feature and _is_everything(one.of) and not OF_OUTPUTS.search(one.text):
            yield Learned(one.node, _targets(project, one.node), False, "standardised by all samples")


def _measured(project: Project) -> Iterator[Learned]:
    """`mean, std = x.mean(0), x.std(0)` of what is split later, although both are used on its parts."""
    for call in project.calls:
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "std" or not names_axis(project, call):
            continue
        name = reduced(project, call)
        everything = name.isidentifier() and not role(name) and not OF_OUTPUTS.search(name)
        if everything and any(re.search(r"std|sigma|scale|dev", target) for target in _targets(project, call)):
            yield Learned(call, frozenset({name}), False, "mean and deviation are taken of all samples")


def _is_everything(node: ast.expr) -> bool:
    """Whether an expression is a plain name, which stands for no split, and not a part of something."""
    return isinstance(node, ast.Name) and not roles_in(node)


def _targets(project: Project, node: ast.expr) -> frozenset[str]:
    """The names that the statement around an expression assigns to."""
    statement = next((up for up in project.ancestors(node) if isinstance(up, ast.stmt)), None)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return frozenset(part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


def _split_after(project: Project, one: Learned) -> ast.AST | None:
    """Where, in the same scope and further down, what was made of all samples is split."""
    scope = project.scope(one.node)
    held = set(one.names)
    parts: set[str] = set()
    for statement in _statements_after(project, scope, one.node):
        inside = list(ast.walk(statement.value)) if statement.value is not None else []
        if not held & {part.id for part in inside if isinstance(part, ast.Name)}:
            continue
        if any(isinstance(part, ast.Call) and _splits(project, part, held) for part in inside):
            return statement
        cut = {role for part in inside for role in _roles_of_index(part, held)}
        parts |= cut
        if parts >= {"train", "eval"}:
            return statement
        if isinstance(statement, ast.Assign) and not cut and len(held) < len(one.names) + STEPS:
            held |= {part.id for t in statement.targets for part in ast.walk(t) if isinstance(part, ast.Name)}
    return None


def _statements_after(
    project: Project, scope: ast.AST, node: ast.expr
) -> list[ast.Assign | ast.AnnAssign | ast.Return | ast.Expr]:
    found: list[ast.Assign | ast.AnnAssign | ast.Return | ast.Expr] = [
        *project.nodes(ast.Assign),
        *project.nodes(ast.AnnAssign),
        *project.nodes(ast.Return),
        *project.nodes(ast.Expr),
    ]
    end = node.end_lineno or node.lineno
    return sorted((n for n in found if project.scope(n) is scope and n.lineno > end), key=lambda n: n.lineno)


def _splits(project: Project, call: ast.Call, held: set[str]) -> bool:
    name = project.qualified(call.func) or ast.unparse(call.func)
    return bool(SPLITTERS.search(name)) and any(
        isinstance(part, ast.Name) and part.id in held for value in call.args for part in ast.walk(value)
    )


def _roles_of_index(node: ast.AST, held: set[str]) -> set[str]:
    """The splits that an index into one of these names stands for: `x[train]`, `x[val_idx]`."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or node.value.id not in held:
        return set()
    return roles_in(node.slice)
