"""DAT: statistics and scalers that are computed anew for each split."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, argument, literal, project_of
from verify.trace.child.names import role
from verify.trace.record import Record

FITTERS = (
    "sklearn.preprocessing.", "sklearn.impute.", "sklearn.decomposition.", "sklearn.feature_extraction.",
    "sklearn.feature_selection.", "sklearn.compose.",
)  # fmt: skip
# Fitted on the labels of another split they give the same numbers whenever all classes occur there.
OF_LABELS = re.compile(r"Label|Encoder|Binarizer")
OF_PLOTS = re.compile(r"tsne|umap|MDS|isomap|reducer|embed|proj", re.IGNORECASE)
# Answers of a network, which are compared and not trained on.
OF_OUTPUTS = re.compile(r"logit|pred|score|prob|output|loss|err|resid|reward|advantage", re.IGNORECASE)
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)


@dataclass(frozen=True)
class Fit:
    """A call that fits a scaler or the like: its receiver, the class of that where it is seen, and on which split."""

    call: ast.Call
    receiver: str
    made_by: str
    split: str


def roles_in(node: ast.AST | None) -> set[str]:
    """The splits that names, attributes and keys in an expression stand for."""
    found: set[str] = set()
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Name):
            found.add(role(part.id))
        elif isinstance(part, ast.Attribute):
            found.add(role(part.attr))
        elif isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant):
            found.add(role(str(part.slice.value)))
    return found - {""}


def _split_of(project: Project, call: ast.Call) -> str:
    """The split that is fitted on, by what is given, else by what the result is called."""
    roles = roles_in(call.args[0])
    if not roles:
        for up in project.ancestors(call):
            if isinstance(up, ast.Assign):
                roles = set().union(*(roles_in(target) for target in up.targets))
            if isinstance(up, ast.stmt):
                break
    return roles.pop() if len(roles) == 1 else ""


def _maker(project: Project, receiver: ast.expr) -> str:
    """The class that made a receiver, by its full name; empty when that cannot be seen."""
    origins = project.origins(receiver)
    names = {project.qualified(one.func) if isinstance(one, ast.Call) else "" for one in origins}
    return names.pop() if len(names) == 1 else ""


def fits(project: Project) -> Iterator[Fit]:
    """The calls that fit a transformation of data."""
    for call in project.calls:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("fit", "fit_transform") or not call.args:
            continue
        made_by = _maker(project, call.func.value)
        known = made_by.startswith(FITTERS)
        if known or (call.func.attr == "fit_transform" and not made_by.startswith("sklearn.")):
            yield Fit(call, ast.unparse(call.func.value), made_by, _split_of(project, call))


@rule("DAT224", subject=Subject.RUN)
def fitted_again(record: Record) -> Iterator[Finding]:
    """A scaler that was fitted on training data is fitted again on validation or test data.

    Why it matters: the evaluated inputs are scaled by other numbers than the network was trained with, the score
    depends on which samples are evaluated together, and what is saved for later belongs to the last split.
    Found by: reading the source: `fit` or `fit_transform` of one object, or of one class, on something that is called
    training and on something that is called validation or test.
    Not an error: `transform` on the other splits; projections for a plot; a script that has only one split. Encoders of
    labels are a warning: with all classes in every split they give the same numbers.

    Wrong: `x_train = scaler.fit_transform(x_train); x_test = scaler.fit_transform(x_test)`
    Right: `x_train = scaler.fit_transform(x_train); x_test = scaler.transform(x_test)`
    References: the common pitfalls in the documentation of scikit-learn.
    """
    project = project_of(record)
    found = [one for one in fits(project) if not _is_plot(project, one)]
    trained = [one for one in found if one.split == "train"]
    again = [one for one in found if one.split == "eval"]
    for one in again:
        first = next((other for other in trained if _same_object(project, one, other)), None)
        alike = first or next((other for other in trained if one.made_by and other.made_by == one.made_by), None)
        if alike is None or _in_branches(project, one.call, alike.call):
            continue
        sure = first is not None and not OF_LABELS.search(one.made_by)
        yield Finding(
            status=Status.FAIL if sure else Status.WARN,
            measured=ast.unparse(one.call),
            expected=f"{one.receiver}.transform",
            message=f"fitted on training data at {project.at(alike.call)}, and here again on another split",
            location=project.at(one.call),
            hint="fit on training data once, and only transform the others",
        )
        return


def _same_object(project: Project, one: Fit, other: Fit) -> bool:
    same_scope = project.function(one.call) is project.function(other.call)
    return one.receiver == other.receiver and same_scope and not one.receiver.endswith(")")


def _is_plot(project: Project, one: Fit) -> bool:
    """Whether a projection is one that only plots need, or goes to two dimensions."""
    if OF_PLOTS.search(one.made_by) or OF_PLOTS.search(one.receiver):
        return True
    origins = project.origins(one.call.func.value) if isinstance(one.call.func, ast.Attribute) else []
    made = [call for call in origins if isinstance(call, ast.Call)]
    return "decomposition" in one.made_by and any(literal(argument(c, 0, "n_components")) == 2 for c in made)


def _in_branches(project: Project, one: ast.AST, other: ast.AST) -> bool:
    """Whether only one of two places runs."""
    above = {up: child for child, up in _climb(project, one)}
    for child, up in _climb(project, other):
        if up in above:
            return isinstance(up, ast.If) and (child in up.body) != (above[up] in up.body)
    return False


def _climb(project: Project, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    for up in project.ancestors(node):
        yield node, up
        node = up


@dataclass(frozen=True)
class Standardised:
    """`(x - x.mean()) / x.std()`: the whole expression and x."""

    node: ast.BinOp
    of: ast.expr
    text: str
    by_feature: bool  # the deviation names an axis


@rule("DAT225", severity=Status.WARN, subject=Subject.RUN)
def own_statistics(record: Record) -> Iterator[Finding]:
    """Each split is standardised with its own mean and deviation.

    Why it matters: the network is evaluated on inputs that are scaled otherwise than those it was trained on; the score
    depends on the samples that happen to be evaluated together, and a single sample cannot be predicted at all.
    Found by: reading the source: `(x - x.mean()) / x.std()` over the samples, written for training and for validation
    or test data, applied to both in a loop, or in a function that is called for both and has nothing else to go by.
    Not an error: statistics of the training data for all splits; each sample by its own statistics; logits and scores.

    Wrong: `x_train, x_test = ((x - x.mean(0)) / x.std(0) for x in (x_train, x_test))`
    Right: `mean, std = x_train.mean(0), x_train.std(0)`, and `(x - mean) / std` for every split
    """
    project = project_of(record)
    found = [one for node in project.nodes(ast.BinOp) if (one := standardised(project, node)) is not None]
    for one in found:
        if OF_OUTPUTS.search(one.text):
            continue
        if _by_name(project, one, found) or _by_loop(project, one) or _by_calls(project, one):
            yield Finding(
                measured=ast.unparse(one.node),
                expected="mean and deviation of the training data",
                message="every split is standardised with its own statistics",
                location=project.at(one.node),
                hint="compute mean and deviation on training data, and use them for all splits",
            )
            return


def standardised(project: Project, node: ast.BinOp) -> Standardised | None:
    """`(x - x.mean()) / x.std()`, over the samples of x, if that is what an expression is."""
    above = node.left
    if not isinstance(node.op, ast.Div) or not isinstance(above, ast.BinOp) or not isinstance(above.op, ast.Sub):
        return None
    data, mean, std = above.left, above.right, node.right
    text = ast.unparse(data)
    reductions = _statistic(project, mean, "mean"), _statistic(project, std, "std")
    if any(one is None or reduced(project, one) != text for one in reductions):
        return None
    return Standardised(node, data, text, names_axis(project, reductions[1]))


def _statistic(project: Project, node: ast.expr, name: str) -> ast.Call | None:
    """The call that takes a mean or a deviation, by what it is called and what is done to it."""
    for _ in range(4):
        if isinstance(node, ast.Name):
            origins = project.origins(node)
            if len(origins) != 1 or origins[0] is None:
                return None
            node = origins[0]
        if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
            node = node.left  # + 1e-8
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == name:
                return node
            node = node.func.value  # .clamp(min=1e-4)
        else:
            return None
    return None


def reduced(project: Project, call: ast.Call) -> str:
    """The text of what a call of a method reduces over dimension 0: `x.mean(0)`, `np.mean(x, axis=0)`."""
    by_function = _by_function(project, call)
    if by_function and not call.args:
        return ""
    owner = call.args[0] if by_function else call.func.value  # type: ignore[attr-defined]
    return ast.unparse(owner) if _over_samples(_axes(project, call)) else ""


def names_axis(project: Project, call: ast.Call | None) -> bool:
    """Whether a reduction is over some axes and not over everything."""
    return call is not None and _axes(project, call) is not None


def _by_function(project: Project, call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and project.qualified(call.func.value) in ("numpy", "torch")


def _axes(project: Project, call: ast.Call) -> ast.expr | None:
    place = 1 if _by_function(project, call) else 0
    return argument(call, place, "axis") or argument(call, place, "dim")


def _over_samples(axes: ast.expr | None) -> bool:
    """Whether a reduction runs over dimension 0, as far as that can be read."""
    if axes is None:
        return True
    value = literal(axes)
    return value == 0 or (isinstance(value, tuple | list) and 0 in value)


def _by_name(project: Project, one: Standardised, found: list[Standardised]) -> bool:
    """Whether the same is written for training data in the same function."""
    around = project.function(one.node)
    others = [other for other in found if project.function(other.node) is around]
    return roles_in(one.of) == {"eval"} and any(roles_in(other.of) == {"train"} for other in others)


def _by_loop(project: Project, one: Standardised) -> bool:
    """Whether a loop over several splits does it to each."""
    names = {part.id for part in ast.walk(one.of) if isinstance(part, ast.Name)}
    for up in project.ancestors(one.node):
        if isinstance(up, Function):
            return False
        loops = up.generators if isinstance(up, ast.ListComp | ast.GeneratorExp | ast.DictComp) else [up]
        for loop in loops:
            if isinstance(loop, ast.For | ast.comprehension) and isinstance(loop.iter, ast.Tuple | ast.List):
                bound = {part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
                if bound & names and {"train", "eval"} <= roles_of_elements(loop.iter):
                    return True
    return False


def roles_of_elements(node: ast.Tuple | ast.List) -> set[str]:
    """The splits that the elements of a literal stand for, by name or by value."""
    found: set[str] = set()
    for element in node.elts:
        found |= {role(str(literal(element)))} if isinstance(element, ast.Constant) else roles_in(element)
    return found - {""}


def _by_calls(project: Project, one: Standardised) -> bool:
    """Whether the function around is called for training and for another split, and does it to what it was given."""
    function = project.function(one.node)
    if function is None or function.name in ("__getitem__", "forward", "__call__") or not _always_runs(project, one):
        return False
    given = {arg.arg for arg in function.args.args} - {"self", "cls"}
    if not _depends(function, one.of, given):
        return False
    calls = [call for call in project.calls_of.get(function, []) if not is_repeated(project, call)]
    if any(OF_OUTPUTS.search(ast.unparse(value)) for call in calls for value in call.args):
        return False
    splits = [split_of_call(project, call) for call in calls]
    return "train" in splits and "eval" in splits


def _always_runs(project: Project, one: Standardised) -> bool:
    """Whether nothing between the function and the expression decides or repeats."""
    for up in project.ancestors(one.node):
        if isinstance(up, Function):
            return True
        if isinstance(up, (*LOOPS, ast.If, ast.IfExp, ast.Lambda)):
            return False
    return False


def is_repeated(project: Project, call: ast.Call) -> bool:
    """Whether a call stands in a loop, which may go over single samples."""
    return any(isinstance(up, LOOPS) for up in project.ancestors(call))


def _depends(function: Function, node: ast.expr, given: set[str]) -> bool:
    """Whether an expression is made of parameters, through the assignments before it; not inside of loops."""
    known = set(given)
    for statement in function.body:
        if statement.lineno >= node.lineno:
            break
        if isinstance(statement, ast.Assign):
            made = {part.id for target in statement.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            from_given = any(isinstance(p, ast.Name) and p.id in known for p in ast.walk(statement.value))
            known = known | made if from_given else known - made
    return any(isinstance(part, ast.Name) and part.id in known for part in ast.walk(node))


def split_of_call(project: Project, call: ast.Call) -> str:
    """The one split that the arguments of a call stand for, or nothing."""
    values = [*call.args, *(item.value for item in call.keywords)]
    roles = {role(str(value.value)) for value in values if isinstance(value, ast.Constant)}
    roles = (roles | set().union(set(), *(roles_in(value) for value in values))) - {""}
    return roles.pop() if len(roles) == 1 else ""
