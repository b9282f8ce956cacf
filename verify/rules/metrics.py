"""EVL: formulas of metrics, and what they are given, as the source says it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Project, arguments, literal, names_in, parameters, project_of, torch_project, words
from verify.trace.record import Record

PREDICTED = re.compile(
    r"(?<![a-z])(y_?)?(preds?|predict|predictions?|predicted|prob|probs|probas?|scores?|logits?|outputs?|hat|log_?p"
    r"|log_?probs?)(?![a-z])",
    re.IGNORECASE,
)
TRUE = re.compile(
    r"(?<![a-z])(true|truth|targets?|labels?|gts?|y_?(te|va|tr|test|val|valid|true|train)|ground_?truth|trues|truths"
    r"|actuals?|references?)(?![a-z])",
    re.IGNORECASE,
)
# scikit-learn's metrics that ask for the truth first, and that give another number the other way round.
TRUTH_FIRST = words(
    "confusion_matrix classification_report precision_score recall_score fbeta_score roc_auc_score roc_curve "
    "average_precision_score precision_recall_curve precision_recall_fscore_support r2_score log_loss "
    "balanced_accuracy_score top_k_accuracy_score explained_variance_score brier_score_loss "
    "mean_absolute_percentage_error"
)
# torch's losses that ask for the output first, and that are another loss the other way round.
OUTPUT_FIRST = words("binary_cross_entropy binary_cross_entropy_with_logits cross_entropy nll_loss")
LOSS_CLASSES = words("torch.nn.BCELoss torch.nn.BCEWithLogitsLoss torch.nn.CrossEntropyLoss torch.nn.NLLLoss")


def side_of(node: ast.expr) -> str:
    """`predicted`, `true` or '' for what an expression is by the names in it."""
    names = [
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    ]
    return side_of_names(names)


def side_of_names(names: list[str]) -> str:
    """As `side_of`, for names; `pred_labels` and `predicted_targets` are predicted, `true_scores` is neither."""
    split = [re.sub(r"([a-z])([A-Z])", r"\1_\2", name).replace("_", " ").replace(" ", "_") for name in names]
    predicted = any(PREDICTED.search(name.replace("_", " ")) or PREDICTED.search(name) for name in split)
    true = any(TRUE.search(name.replace("_", " ")) or TRUE.search(name) for name in split)
    really_true = any(re.search(r"(?<![a-z])(true|gt|truth|ground)(?![a-z])", n.replace("_", " "), re.I) for n in split)
    if predicted or "argmax" in names or "sigmoid" in names or "softmax" in names:
        return "" if really_true else "predicted"
    return "true" if true else ""


@rule("EVL614", subject=Subject.RUN)
def metric_arguments_swapped(record: Record) -> Iterator[Finding]:
    """A metric or a loss gets the prediction where it wants the truth, and the other way round.

    Why it matters: precision becomes recall, the confusion matrix is transposed, R2 and the area under the curve are
    other numbers altogether; a loss is another loss.
    Found by: reading the source: scikit-learn's metrics, torch's losses, and functions of the project whose parameters
    say which is which, given arguments whose names say the opposite, both of them.
    Not an error: metrics that are the same both ways, such as the accuracy; distances that are taken both ways; names
    that do not say what they hold.

    Wrong: `confusion_matrix(y_pred, y_true)`, `recall_score(predictions, labels)`
    Right: `confusion_matrix(y_true, y_pred)`, `recall_score(labels, predictions)`
    """
    project = project_of(record)
    for call in project.calls:
        wanted = _wanted(project, call)
        if wanted is None:
            continue
        first, second, order = wanted
        given = (side_of(first), side_of(second))
        if given == order[::-1] and not _is_made_both_ways(project, call, first, second):
            yield Finding(
                measured=ast.unparse(call)[:100],
                expected=f"the {order[0]} values first",
                message=f"{ast.unparse(call.func)} gets {ast.unparse(first)[:40]} for the {order[0]} "
                f"and {ast.unparse(second)[:40]} for the {order[1]} values",
                location=project.at(call),
                hint="exchange the two arguments",
            )


def _is_made_both_ways(project: Project, call: ast.Call, first: ast.expr, second: ast.expr) -> bool:
    """Whether the same function makes the call with the arguments in the other order too: a distance both ways."""
    scope, given = project.scope(call), [ast.unparse(second), ast.unparse(first)]
    return any(
        [ast.unparse(arg) for arg in other.args[:2]] == given
        and ast.unparse(other.func) == ast.unparse(call.func)
        and project.scope(other) is scope
        for other in project.calls
    )


def _wanted(project: Project, call: ast.Call) -> tuple[ast.expr, ast.expr, tuple[str, str]] | None:
    """The two arguments that a call compares, and which of them it wants to be true and which predicted."""
    name = project.qualified(call.func)
    last = name.rpartition(".")[2]
    if name.startswith("sklearn.metrics") and last in TRUTH_FIRST:
        return _two(call, ("y_true",), ("y_pred", "y_score", "y_prob", "y_proba"), ("true", "predicted"))
    is_loss = name.startswith("torch.nn.functional") and last in OUTPUT_FIRST
    if is_loss or (not name and call.func and _is_loss_object(project, call)):
        return _two(call, ("input",), ("target",), ("predicted", "true"))
    return _wanted_by_parameters(project, call)


def _is_loss_object(project: Project, call: ast.Call) -> bool:
    if isinstance(call.func, ast.Call):
        return project.qualified(call.func.func) in LOSS_CLASSES
    return isinstance(call.func, ast.Name | ast.Attribute) and project.all_from(call.func, LOSS_CLASSES)


def _two(
    call: ast.Call, first: tuple[str, ...], second: tuple[str, ...], order: tuple[str, str]
) -> tuple[ast.expr, ast.expr, tuple[str, str]] | None:
    named = {item.arg: item.value for item in call.keywords}
    one = call.args[0] if call.args else next((named[key] for key in first if key in named), None)
    two = call.args[1] if len(call.args) > 1 else next((named[key] for key in second if key in named), None)
    if one is None or two is None or isinstance(one, ast.Starred) or isinstance(two, ast.Starred):
        return None
    return one, two, order


def _wanted_by_parameters(project: Project, call: ast.Call) -> tuple[ast.expr, ast.expr, tuple[str, str]] | None:
    """What a function of the project wants, if the names of its parameters say so in every function that it may be."""
    if len(call.args) + len(call.keywords) < 2:
        return None
    found: tuple[ast.expr, ast.expr, tuple[str, str]] | None = None
    for function, _ in project.callees(call):
        sides = {arg.arg: side_of_names([arg.arg]) for arg in parameters(function)}
        pairs = [(sides[arg.arg], value) for arg, value in arguments(call, function, project) if sides[arg.arg]]
        if sorted(side for side, _ in pairs) != ["predicted", "true"]:
            return None
        one = (pairs[0][1], pairs[1][1], (pairs[0][0], pairs[1][0]))
        if found is not None and found != one:
            return None
        found = one
    return found


ABSOLUTE = re.compile(r"(?<![a-z])(mae|mean_?abs(olute)?|l1(_err(or)?)?|abs_?err(or)?)(?![a-z])", re.IGNORECASE)
SQUARED = re.compile(r"(?<![a-z])(r?mse)(?![a-z])", re.IGNORECASE)


@rule("EVL615", subject=Subject.RUN)
def errors_cancel(record: Record) -> Iterator[Finding]:
    """Errors are averaged before their sign is taken away.

    Why it matters: positive and negative errors cancel; what is called the mean absolute error is the bias, which is
    close to zero for any model that is right on average.
    Found by: reading the source: the absolute value, or the square, of a mean, under a name such as `mae` or `rmse`.
    Not an error: the same formula called a bias or an offset.

    Wrong: `mae = (pred - y).mean().abs()`
    Right: `mae = (pred - y).abs().mean()`
    """
    project = project_of(record)
    for name, value in _named_values(project):
        pattern, outer = (ABSOLUTE, _of_mean) if ABSOLUTE.search(name) else (SQUARED, _square_of_mean)
        if not pattern.search(name):
            continue
        for node in ast.walk(value):
            if isinstance(node, ast.expr) and outer(node):
                yield Finding(
                    measured=f"{name}: {ast.unparse(node)[:80]}",
                    expected="the mean of the absolute errors" if pattern is ABSOLUTE else "the mean of the squares",
                    message="positive and negative errors cancel in the mean, so this is the bias",
                    location=project.at(node),
                    hint="take the absolute value, or the square, of each error before the mean",
                )
                break


def _named_values(project: Project) -> Iterator[tuple[str, ast.expr]]:
    """Values with the names that they get: assigned, as entries of dicts, as arguments, or returned by a function."""
    for node in project.nodes(ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name | ast.Attribute | ast.Subscript):
                yield _spelled(target), node.value
    for entry in project.nodes(ast.Dict):
        for key, value in zip(entry.keys, entry.values, strict=True):
            if key is not None:
                yield _spelled(key), value
    for call in project.calls:
        yield from ((item.arg, item.value) for item in call.keywords if item.arg)
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("log", "add_scalar") and len(call.args) > 1:
            yield _spelled(call.args[0]), call.args[1]
    for statement in project.nodes(ast.Return):
        function = project.function(statement)
        if function is not None and statement.value is not None:
            yield function.name, statement.value


def _spelled(node: ast.expr) -> str:
    """The words of a target or of a key, those of an f-string too."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return _spelled(node.slice)
    parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return " ".join(parts).replace("_", " ")


def _is_mean(node: ast.expr) -> bool:
    """`x.mean()`, `np.mean(x)`, of something that is no absolute value or square itself."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name != "mean":
        return False
    whole = not node.args or not isinstance(node.args[0], ast.Constant)
    inner = node.args[0] if node.args and whole else node.func.value if isinstance(node.func, ast.Attribute) else node
    called = {
        n.attr if isinstance(n, ast.Attribute) else n.id
        for n in ast.walk(inner)
        if isinstance(n, ast.Name | ast.Attribute)
    }
    signed = not called & words("abs absolute fabs square pow l1_loss norm sqrt")
    powers = any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow) for n in ast.walk(inner))
    return whole and not any(k.arg in ("dim", "axis") for k in node.keywords) and signed and not powers


def _of_mean(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr="abs"), args=[]):
            return _is_mean(value)
        case ast.Call(func=ast.Name(id="abs") | ast.Attribute(attr="abs" | "absolute" | "fabs"), args=[value]):
            return _is_mean(value)
    return False


def _square_of_mean(node: ast.expr) -> bool:
    match node:
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=2)):
            return _is_mean(left)
        case ast.Call(func=ast.Attribute(value=value, attr="square"), args=[]):
            return _is_mean(value)
        case ast.Call(func=ast.Attribute(value=value, attr="pow"), args=[ast.Constant(value=2)]):
            return _is_mean(value)
    return False


@rule("EVL616", subject=Subject.RUN)
def share_over_wrong_axis(record: Record) -> Iterator[Finding]:
    """What is called recall is precision, or the other way round.

    Why it matters: the diagonal of a confusion matrix over the sums of the true classes is recall, over those of the
    predicted classes precision; classes, thresholds and models are chosen by the wrong one.
    Found by: reading the source: the diagonal over the sums along one axis, of a matrix whose layout is sure: from
    scikit-learn, or counted as `true * n + predicted`, under a name that says recall or precision.
    Not an error: a matrix with the predicted classes in its rows, divided along the other axis.

    Wrong: `recall = cm.diagonal() / cm.sum(axis=0)` with scikit-learn's `confusion_matrix`
    Right: `recall = cm.diagonal() / cm.sum(axis=1)`
    """
    project = project_of(record)
    for name, value in _named_values(project):
        word = next((w for w in ("recall", "precision") if w in name.lower()), "")
        for node in ast.walk(value) if word else ():
            divided = _diagonal_over_sums(project, node)
            if divided is None:
                continue
            matrix, axis = divided
            rows = _rows_are(project, matrix)
            if rows and (axis == (1 if rows == "true" else 0)) != (word == "recall"):
                yield Finding(
                    measured=f"{name}: {ast.unparse(node)[:90]}, rows are {rows} classes",
                    expected=f"axis {1 - axis}",
                    message=f"this is {'precision' if word == 'recall' else 'recall'}, not {word}",
                    location=project.at(node),
                    hint="recall divides by how often a class is true, precision by how often it is predicted",
                )


def _diagonal_over_sums(project: Project, node: ast.AST) -> tuple[ast.expr, int] | None:
    """The matrix, and the axis summed over, of `M.diag() / M.sum(axis)`; the diagonal may have a name."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
        return None
    _, bindings = project.lookup(node.left) if isinstance(node.left, ast.Name) else (None, [])
    left = bindings[0].expr if len(bindings) == 1 and bindings[0].kind == "value" else node.left
    diagonals = [
        n for n in ast.walk(left or node.left) if isinstance(n, ast.Call) and _called(n) in ("diag", "diagonal")
    ]
    sums = [n for n in ast.walk(node.right) if isinstance(n, ast.Call) and _called(n) == "sum"]
    if len(diagonals) != 1 or len(sums) != 1:
        return None
    one, other = _subject(diagonals[0]), _subject(sums[0])
    given = [k.value for k in sums[0].keywords if k.arg in ("dim", "axis")]
    own = isinstance(sums[0].func, ast.Attribute) and ast.dump(sums[0].func.value) == ast.dump(other)
    given += sums[0].args[0 if own else 1 :][:1]
    axis = literal(given[0]) if given else None
    if ast.unparse(one) != ast.unparse(other) or axis not in (0, 1, -1):
        return None
    return one, 1 if axis in (1, -1) else 0


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _subject(call: ast.Call) -> ast.expr:
    """`M` of `M.sum(0)` and of `np.sum(M, 0)`."""
    is_function = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("np", "numpy", "torch")
    return (
        call.args[0] if call.args and is_function else call.func.value if isinstance(call.func, ast.Attribute) else call
    )


def _rows_are(project: Project, matrix: ast.expr) -> str:
    """`true` or `predicted`, or '' when it is not sure what the rows of a confusion matrix are."""
    origins = project.origins(matrix) if isinstance(matrix, ast.Name | ast.Attribute) else [matrix]
    if origins and all(
        isinstance(o, ast.Call) and project.qualified(o.func) == "sklearn.metrics.confusion_matrix" for o in origins
    ):
        sides = {tuple(map(side_of, o.args[:2])) for o in origins if isinstance(o, ast.Call)}
        return "true" if sides == {("true", "predicted")} else "predicted" if sides == {("predicted", "true")} else ""
    around = project.class_of(matrix) or project.scope(matrix)
    found = {row for node in ast.walk(around) for row in [_row_of(node, matrix)] if row}
    for origin in origins:
        found |= _rows_of_result(project, origin) if isinstance(origin, ast.Call) else set()
    return found.pop() if len(found) == 1 else ""


def _rows_of_result(project: Project, call: ast.Call) -> set[str]:
    """What the rows of a matrix are that a function of the project counts and returns."""
    found = set()
    for function in project.definitions(call.func):
        returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
        found |= {row for matrix in returned for n in ast.walk(function) for row in [_row_of(n, matrix)] if row}
    return found


def _row_of(node: ast.AST, matrix: ast.expr) -> str:
    """What the rows are, from `bincount(true * n + predicted)`, `M[true, predicted] += 1` or `np.add.at`."""
    if isinstance(node, ast.Call) and _called(node) == "bincount" and node.args:
        return _row_of_sum(node.args[0])
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.add.at", "numpy.add.at") and len(node.args) == 3:
        return _first_of(node.args[1]) if ast.unparse(node.args[0]) == ast.unparse(matrix) else ""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
        return _row_of_sum(node.value)
    counted = node.target if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript) else None
    if counted is not None and ast.unparse(counted.value) == ast.unparse(matrix):
        return _first_of(counted.slice)
    return ""


def _first_of(index: ast.expr) -> str:
    """What the first of two indices is, `true` or `predicted`, when the other is the other."""
    if not (isinstance(index, ast.Tuple) and len(index.elts) == 2):
        return ""
    sides = (side_of(index.elts[0]), side_of(index.elts[1]))
    return sides[0] if set(sides) == {"true", "predicted"} else ""


def _row_of_sum(node: ast.expr) -> str:
    """The factor of `a * n + b` that is multiplied by the number of classes."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
        return ""
    for product, other in ((node.left, node.right), (node.right, node.left)):
        if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult) and not isinstance(other, ast.BinOp):
            row, column = side_of(product), side_of(other)
            return row if {row, column} == {"true", "predicted"} else ""
    return ""


THRESHOLD = re.compile(r"(?<![a-z])(thr|thres|threshs?|thresholds?|cutoffs?)(?![a-z])", re.IGNORECASE)
LOGITS = re.compile(r"(?:^|_)logits?$", re.IGNORECASE)
SQUASHED = words("sigmoid expit softmax")


@rule("EVL617", severity=Status.WARN, subject=Subject.RUN)
def threshold_on_logits(record: Record) -> Iterator[Finding]:
    """Logits are compared with the threshold of a probability.

    Why it matters: a logit of 0.5 is a probability of 0.62: positives between are missed, and a threshold that was
    tuned between 0 and 1 means nothing.
    Found by: reading the source: a variable of logits compared with a number between 0 and 1, or with a threshold that
    is one, in a project that trains with a loss on logits and has no sigmoid in between.
    Not an error: `logits > 0`, and probabilities that are called logits.

    Wrong: `pred = logits > 0.5`
    Right: `pred = logits.sigmoid() > 0.5` or `logits > 0`
    """
    project = torch_project(record)
    text = "".join(file.text for file in project.files)
    if "BCEWithLogitsLoss" not in text and "binary_cross_entropy_with_logits" not in text:
        return
    for node in project.nodes(ast.Compare):
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Gt | ast.GtE | ast.Lt | ast.LtE):
            continue
        for scores, level in ((node.left, node.comparators[0]), (node.comparators[0], node.left)):
            if _is_probability_level(project, level) and _are_logits(project, scores):
                yield Finding(
                    measured=ast.unparse(node),
                    expected="a sigmoid before it, or a threshold of 0",
                    message="a threshold for probabilities is applied to logits",
                    location=project.at(node),
                    hint=f"torch.sigmoid({ast.unparse(scores)})",
                )


def _are_logits(project: Project, node: ast.expr) -> bool:
    """Whether a value is logits by its name or made by the model, and nothing squashed it."""
    if isinstance(node, ast.Attribute):
        return bool(LOGITS.search(node.attr)) and not _is_ever_squashed(project, node.attr)
    if not isinstance(node, ast.Name):
        return False
    _, bindings = project.lookup(node)
    values = [ast.unparse(b.expr) for b in bindings if b.expr is not None]
    if any(word in value.lower() for value in values for word in (*SQUASHED, "prob", "predict_proba")):
        return False
    return (bool(LOGITS.search(node.id)) and not _is_ever_squashed(project, node.id)) or _goes_to_loss(project, node)


def _is_ever_squashed(project: Project, name: str) -> bool:
    """Whether anywhere a name is given what went through a sigmoid."""
    return any(
        word in ast.unparse(node.value).lower()
        for node in project.nodes(ast.Assign)
        if any(name in names_in(target) for target in node.targets)
        for word in SQUASHED
    )


def _goes_to_loss(project: Project, node: ast.Name) -> bool:
    """Whether the same function gives the variable to a loss on logits."""
    scope, losses = project.scope(node), {"torch.nn.BCEWithLogitsLoss"}
    for call in project.calls:
        first = call.args[0] if call.args else None
        if not (isinstance(first, ast.Name) and first.id == node.id and project.scope(call) is scope):
            continue
        if project.qualified(call.func) == "torch.nn.functional.binary_cross_entropy_with_logits":
            return not _is_ever_squashed(project, node.id)
        is_object = isinstance(call.func, ast.Name | ast.Attribute) and not project.qualified(call.func)
        if is_object and project.all_from(call.func, losses):
            return not _is_ever_squashed(project, node.id)
    return False


def _is_probability_level(project: Project, node: ast.expr) -> bool:
    value = literal(node)
    if isinstance(value, int | float):
        return 0 < value < 1
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if not THRESHOLD.search(name.replace("_", " ")) or "logit" in name.lower():
        return False
    levels = [
        n.value for o in project.origins(node) if o is not None for n in ast.walk(o) if isinstance(n, ast.Constant)
    ]
    numbers = [level for level in levels if isinstance(level, float)]
    return bool(numbers) and all(0 < level < 1 for level in numbers)
