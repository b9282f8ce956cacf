"""EVL: measures of a ranking that are given decisions."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Project, argument, literal, project_of, words
from verify.trace.record import Record

# scikit-learn's measures that ask for scores; of decisions they are other numbers.
OF_SCORES = words("roc_auc_score average_precision_score roc_curve precision_recall_curve log_loss brier_score_loss")
ROUNDED = words("round rint around heaviside")
CHOSEN = words("argmax")
# What changes the form of values, and not whether they are decisions.
FORM_ONLY = words(
    "astype int long float double cpu numpy tolist detach item flatten ravel squeeze reshape view bool array asarray "
    "concatenate cat hstack stack list"
)
DEPTH = 6


@rule("EVL631", severity=Status.WARN, subject=Subject.RUN)
def ranking_of_decisions(record: Record) -> Iterator[Finding]:
    """The area under a curve, or a log loss, is computed from decisions instead of scores.

    Why it matters: decisions have two values, so the curve has one corner; its area is the balanced accuracy at one
    threshold. Models whose rankings differ look alike, and the number cannot be compared with a real AUC.
    Found by: reading the source: scikit-learn's measures that ask for scores, given what was rounded, compared with a
    threshold, or chosen by argmax.
    Not an error: probabilities rounded to some digits; a threshold that makes the truth binary; lists that hold scores.

    Wrong: `roc_auc_score(labels, probs.round())`, `roc_auc_score(labels, probs > 0.5)`
    Right: `roc_auc_score(labels, probs)`
    """
    project = project_of(record)
    for call in project.calls:
        name = project.qualified(call.func)
        if not name.startswith("sklearn.metrics") or name.rpartition(".")[2] not in OF_SCORES:
            continue
        scores = argument(call, 1, "y_proba" if name.endswith("brier_score_loss") else "y_score")
        scores = scores if scores is not None else argument(call, 1, "y_pred")
        if scores is not None and _are_decisions(project, scores):
            yield Finding(
                measured=ast.unparse(call)[:100],
                expected="scores or probabilities",
                message=f"{name.rpartition('.')[2]} gets decisions instead of scores",
                location=project.at(call),
                hint="give it the probabilities or the logits themselves, before any threshold",
            )


def _are_decisions(project: Project, node: ast.expr, depth: int = 0) -> bool:
    """Whether all values of an expression surely are 0 or 1, or numbers of classes."""
    if depth > DEPTH:
        return False
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and isinstance(node.ops[0], ast.Gt | ast.GtE | ast.Lt | ast.LtE)
    if isinstance(node, ast.Call):
        return _call_decides(project, node, depth)
    if not isinstance(node, ast.Name):
        return False
    _, bindings = project.lookup(node)
    values = [one.expr if one.kind == "value" else None for one in bindings]
    collected = _collected(project, node)
    # A name that starts as an empty list holds what is put into it.
    given = [v for v in values if not (isinstance(v, ast.List) and not v.elts and collected)] + collected
    return bool(given) and all(v is not None and _are_decisions(project, v, depth + 1) for v in given)


def _call_decides(project: Project, call: ast.Call, depth: int) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    is_function = bool(project.qualified(call.func)) or not isinstance(call.func, ast.Attribute)
    rest = call.args[1:] if is_function else call.args
    if name in ROUNDED and (not is_function or call.args):
        return not [k for k in call.keywords if k.arg in ("decimals", "ndigits")] and all(literal(a) == 0 for a in rest)
    if name in CHOSEN:
        return True
    if name == "where" and is_function and len(call.args) == 3:
        return [literal(a) for a in call.args[1:]] in ([1, 0], [0, 1], [1.0, 0.0], [0.0, 1.0])
    if name not in FORM_ONLY:
        return False
    subject = (call.args[0] if call.args else None) if is_function else call.func.value  # type: ignore[attr-defined]
    return isinstance(subject, ast.expr) and _are_decisions(project, subject, depth + 1)


def _collected(project: Project, name: ast.Name) -> list[ast.expr]:
    """What is appended to a list of this name in the same scope; `extend` and `+=` count as well."""
    scope, _ = project.lookup(name)
    found: list[ast.expr] = []
    for call in project.calls:
        to = call.func
        puts = isinstance(to, ast.Attribute) and to.attr in ("append", "extend") and isinstance(to.value, ast.Name)
        if puts and to.value.id == name.id and project.lookup(to.value)[0] is scope:  # type: ignore[attr-defined]
            found += call.args
    return found
