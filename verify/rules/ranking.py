"""EVL: measures of a ranking, which need scores, and what they are given."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import DEPTH, Function, Project, arguments, literal, names_in, project_of, words
from verify.trace.record import Record

# The functions rank the samples by a score, their second argument.
OF_RANKING = words(
    "sklearn.metrics.roc_auc_score sklearn.metrics.average_precision_score sklearn.metrics.roc_curve "
    "sklearn.metrics.precision_recall_curve sklearn.metrics.log_loss sklearn.metrics.brier_score_loss"
)
SCORES = words("y_score y_scores probas_pred y_prob y_proba")
DECIDING = words("argmax round rint sign")
# What leaves decisions decisions, of what they are called on or given.
PASSED_ON = words(
    "numpy cpu detach tolist item astype float int long double bool to type ravel flatten reshape view squeeze "
    "unsqueeze array asarray concatenate cat stack hstack vstack tensor as_tensor from_numpy one_hot label_binarize"
)
COLLECTING = words("append extend")


@rule("EVL627", severity=Status.WARN, subject=Subject.RUN)
def ranking_of_decisions(record: Record) -> Iterator[Finding]:
    """The area under a curve is computed from decisions instead of scores.

    Why it matters: of 0s and 1s the curve has a single corner; the number is a balanced accuracy at one threshold and
    lower than the area, and models are compared and chosen by it.
    Found by: reading the source: `roc_auc_score`, `average_precision_score`, their curves and `log_loss` that are given
    nothing but an argmax, rounded numbers or a comparison: directly, by name, through a function or in a list that was
    filled before.
    Not an error: probabilities and logits, of which some batches may be rounded; the accuracy of decisions.

    Wrong: `roc_auc_score(labels, logits.argmax(1))`, `roc_auc_score(labels, probs > 0.5)`
    Right: `roc_auc_score(labels, probs[:, 1])`
    """
    project = project_of(record)
    for call in project.calls:
        if project.qualified(call.func) not in OF_RANKING:
            continue
        scores = call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg in SCORES), None)
        decided = _decided(project, scores, 0) if scores is not None else None
        if decided is not None:
            yield Finding(
                measured=f"{ast.unparse(decided)[:90]}, given to {ast.unparse(call.func)} at {project.at(call)}",
                expected="probabilities or logits",
                message="the area under the curve is computed from decisions, not from scores",
                location=project.at(decided),
                hint="give it the probability of the class",
            )
            return


def _decided(project: Project, node: ast.expr, depth: int) -> ast.expr | None:
    """Where a value was decided, if every way to it that is seen goes through a decision; None if any does not."""
    if depth > DEPTH:
        return None
    match node:
        case ast.Compare(ops=[ast.Gt() | ast.GtE() | ast.Lt() | ast.LtE()]):
            return node
        case ast.Name():
            return _decided_by_name(project, node, depth)
        case ast.Subscript(value=value, slice=index):
            # Rows of an identity matrix, the indices of `max(dim)`, or a part of what was decided.
            if isinstance(value, ast.Call) and _word(value) in ("eye", "max"):
                rows = _word(value) == "eye" and _decided(project, index, depth + 1)
                return node if rows or (_word(value) == "max" and literal(index) == 1 and _over_a_dim(value)) else None
            return _decided(project, value, depth + 1)
        case ast.Attribute(value=ast.Call() as call, attr="indices") if _word(call) == "max":
            return node
        case ast.Call():
            return _decided_by_call(project, node, depth)
    return None


def _word(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _over_a_dim(call: ast.Call) -> bool:
    return bool(call.args or call.keywords)


def _decided_by_call(project: Project, call: ast.Call, depth: int) -> ast.expr | None:
    word = _word(call)
    is_function = bool(project.qualified(call.func)) or isinstance(call.func, ast.Name)
    if word in DECIDING and not project.callees(call):
        to_digits = word == "round" and (len(call.args) > int(is_function) or bool(call.keywords))
        return None if to_digits else call
    if word == "where" and len(call.args) == 3 and all(literal(arg) is not None for arg in call.args[1:]):
        return call
    if word not in PASSED_ON:
        return None
    subject = call.args[0] if is_function and call.args else getattr(call.func, "value", None)
    return _decided(project, subject, depth + 1) if subject is not None else None


def _decided_by_name(project: Project, node: ast.Name, depth: int) -> ast.expr | None:
    _, bindings = project.lookup(node)
    found: list[ast.expr | None] = []
    for binding in bindings:
        if binding.kind == "param":
            found += _decided_by_callers(project, binding.node, depth)
        elif binding.kind == "item" and isinstance(binding.expr, ast.Call) and _word(binding.expr) in ("max", "topk"):
            found.append(binding.expr if binding.index == 1 and _over_a_dim(binding.expr) else None)
        elif binding.kind != "value" or binding.expr is None:
            return None
        elif not _is_empty_list(binding.expr) and node.id not in names_in(binding.expr):  # preds = torch.cat(preds)
            found.append(_decided(project, binding.expr, depth + 1))
    found += [_decided(project, call.args[0], depth + 1) for call in _collected(project, node)]
    return found[0] if found and None not in found else None


def _is_empty_list(node: ast.expr) -> bool:
    return isinstance(node, ast.List) and not node.elts


def _collected(project: Project, node: ast.Name) -> list[ast.Call]:
    """The calls that put something into a list of this name."""
    scope, _ = project.lookup(node)
    return [
        call
        for call in project.calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in COLLECTING
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == node.id
        and project.lookup(call.func.value)[0] is scope
        and call.args
    ]


def _decided_by_callers(project: Project, arg: ast.AST, depth: int) -> list[ast.expr | None]:
    function = project.function(arg)
    if function is None or len(project.methods.get(function.name, [])) > 1:
        return [None]
    given = [_given(project, call, function, arg) for call in project.calls_of.get(function, [])]
    return [_decided(project, value, depth + 1) if value is not None else None for value in given] or [None]


def _given(project: Project, call: ast.Call, function: Function, arg: ast.AST) -> ast.expr | None:
    return next((value for given, value in arguments(call, function, project) if given is arg), None)
