"""EVL and CKP: how the best model is chosen, when to stop, and whether what was chosen is what is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.checkpoint import weights_in
from verify.source import Project, literal, project_of, text_of
from verify.trace.record import NotSeenError, Record

BEST = re.compile(r"(^|_)(best|lowest|highest)(_|$)|^best", re.IGNORECASE)
# What is best of these is no measure of the model.
OTHER = re.compile(r"epoch|step|iter|idx|index|path|file|state|model|weight|thr|param|lr|seed|fold|name", re.IGNORECASE)
LIMIT = re.compile(r"patien|max_?(bad|wait|stale|no_?improv)|early_?stop|stop_?after|tolerance", re.IGNORECASE)
CONSTRUCTORS = ("__init__", "__post_init__", "setup", "on_train_start", "on_fit_start")
FEWEST = 4
Place = ast.Name | ast.Attribute


def _word(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _assignments(project: Project, place: Place) -> list[ast.stmt]:
    """Every statement that gives a variable or an attribute a value: in its function, or in any method."""
    name = _word(place)
    own = project.scope(place) if isinstance(place, ast.Name) else None
    declared = [*(n.names for n in project.nodes(ast.Global)), *(n.names for n in project.nodes(ast.Nonlocal))]
    shared = own is not None and any(name in names for names in declared)
    found: list[ast.stmt] = []
    for target in project.nodes(type(place)):
        if _word(target) != name or not isinstance(target.ctx, ast.Store):
            continue
        statement = next(up for up in project.ancestors(target) if isinstance(up, ast.stmt))
        if own is None or shared or project.scope(statement) is own:
            found.append(statement)
    return found


def _begins(project: Project, statement: ast.stmt) -> bool:
    """Whether an assignment only sets a start: in a constructor, or outside of any loop of its function."""
    function = project.function(statement)
    if function is not None and function.name in CONSTRUCTORS:
        return True
    around = [node for node in project.ancestors(statement) if isinstance(node, ast.For | ast.While)]
    scope = project.scope(statement)
    in_loop = any(project.scope(loop) is scope for loop in around)
    is_method = function is not None and isinstance(project.parent[function], ast.ClassDef)
    return not in_loop and not is_method


def compared_sides(compare: ast.Compare) -> tuple[ast.expr, ast.expr] | None:
    """The two sides of a comparison of which is larger."""
    larger = len(compare.ops) == 1 and isinstance(compare.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return (compare.left, compare.comparators[0]) if larger else None


def comparisons_with_best(project: Project) -> Iterator[tuple[ast.Compare, Place]]:
    """Comparisons of something with the best so far, which is a variable or an attribute."""
    tests = [inner for node in project.nodes(ast.If) for inner in ast.walk(node.test)]
    tests += [node.value for node in project.nodes(ast.Assign)]  # improved = loss < best
    for compare in [node for node in tests if isinstance(node, ast.Compare)]:
        for side in compared_sides(compare) or ():
            if (
                isinstance(side, ast.Name | ast.Attribute)
                and BEST.search(_word(side))
                and not OTHER.search(_word(side))
            ):
                yield compare, side


@rule("EVL611", subject=Subject.RUN)
def best_not_kept(record: Record) -> Iterator[Finding]:
    """The best result so far is not kept.

    Why it matters: what is compared with it counts as the best every time, or whenever it beats the one before; the
    "best" checkpoint is then just a late one.
    Found by: a variable that is compared as the best so far and that nothing in its function, or in any method, sets
    again after its start; one that is set to the result after the comparison and outside of it, or that follows the
    latest result down as well as up, in every evaluation.
    Not an error: a best that is kept in a dict or by an object of a library; a best over thresholds or folds.

    Wrong: `if accuracy > best: save()` and no `best = accuracy`; `best = accuracy` outside of the `if`
    Right: `if accuracy > best: best = accuracy; save()`
    """
    project = project_of(record)
    compared = list(comparisons_with_best(project))
    for compare, place in compared:
        given = [s for s in _assignments(project, place) if not _restores(project, s)]
        if not given or _is_handed_in(project, place):
            continue
        if all(_begins(project, statement) for statement in given) and is_made_again(project, compare):
            yield Finding(
                measured=f"{ast.unparse(compare)}; {_word(place)} is only set at {project.at(given[0])}",
                expected=f"{_word(place)} is set to each better result",
                message="the best result so far is never kept, so that every result counts as the best",
                location=project.at(compare),
                hint=f"set {ast.unparse(place)} where the better model is saved",
            )
            return
        once = sum(_word(other) == _word(place) for _, other in compared) == 1
        anew = [s for s in given if once and _starts_anew(project, compare, s)]
        if anew:
            yield Finding(
                measured=f"{ast.unparse(anew[0])}, before {ast.unparse(compare)} in the same loop",
                expected=f"{_word(place)} starts once, before the loop",
                message="the best result so far starts anew in every round, so that every result counts as the best",
                location=project.at(anew[0]),
                hint=f"move {ast.unparse(anew[0])} in front of the loop",
            )
            return
        always = [s for s in given if _is_set_always(project, compare, place, s)]
        if always and is_made_again(project, compare):
            yield Finding(
                measured=f"{ast.unparse(compare)}; {ast.unparse(always[0])}, whatever the comparison says",
                expected="only a better result is kept",
                message="the best result so far is overwritten by every result, better or not",
                location=project.at(always[0]),
                hint=f"set {_word(place)} inside of the if that found a better one",
            )
            return
    yield from _follows_the_latest(record, project)


def _starts_anew(project: Project, compare: ast.Compare, statement: ast.stmt) -> bool:
    """Whether a loop sets the best to a constant at the top of each round of a comparison with it."""
    loop = project.parent[statement]
    rounds = next((node for node in project.ancestors(compare) if isinstance(node, ast.For | ast.While)), None)
    if loop is not rounds or not isinstance(loop, ast.For) or project.scope(loop) is not project.scope(compare):
        return False
    values = statement.value if isinstance(statement, ast.Assign) else None
    parts = values.elts if isinstance(values, ast.Tuple) else [values]
    constant = any(isinstance(literal(part), int | float) or _is_infinity(part) for part in parts if part is not None)
    return constant and statement.lineno < compare.lineno


def _is_infinity(node: ast.expr) -> bool:
    return bool(re.search(r"\binf(inity)?\b", ast.unparse(node)))


def _is_set_always(project: Project, compare: ast.Compare, place: Place, statement: ast.stmt) -> bool:
    """Whether the best is set to a plain name in the block that holds the comparison, after it and outside of it."""
    around = next((up for up in project.ancestors(compare) if isinstance(up, ast.If | ast.Assign)), None)
    if around is None:
        return False
    block = project.parent[around]
    name = _word(place)
    plain = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name | ast.Attribute)
    if not plain or project.parent[statement] is not block or statement.lineno < around.lineno:
        return False
    others = {_word(side) for side in compared_sides(compare) or () if isinstance(side, ast.Name | ast.Attribute)} - {
        name
    }
    between = [n for n in _statements(block) if around.lineno <= n.lineno < statement.lineno and isinstance(n, ast.If)]
    return _word(statement.value) in others and not any(map(_leaves, between))  # type: ignore[attr-defined]


def _statements(block: ast.AST) -> list[ast.stmt]:
    return [node for node in ast.iter_child_nodes(block) if isinstance(node, ast.stmt)]


def _leaves(node: ast.If) -> bool:
    """Whether an `if` jumps away, so that what follows it is its other branch."""
    return any(
        isinstance(n, ast.Continue | ast.Break | ast.Return | ast.Raise) for one in node.body for n in ast.walk(one)
    )


def _is_handed_in(project: Project, place: Place) -> bool:
    """Whether a function only gets the best as an argument: who calls it keeps it."""
    function = project.function(place)
    return (
        isinstance(place, ast.Name)
        and function is not None
        and any(
            arg.arg == place.id for arg in [*function.args.args, *function.args.kwonlyargs, *function.args.posonlyargs]
        )
    )


def is_made_again(project: Project, compare: ast.Compare) -> bool:
    """Whether a comparison is made again and again: in a loop of its function, or in a method."""
    function = project.function(compare)
    loops = [node for node in project.ancestors(compare) if isinstance(node, ast.For | ast.While)]
    in_method = function is not None and isinstance(project.parent[function], ast.ClassDef)
    return in_method or any(project.scope(loop) is project.scope(compare) for loop in loops)


def _follows_the_latest(record: Record, project: Project) -> Iterator[Finding]:
    compared = {_word(place): compare for compare, place in comparisons_with_best(project)}
    reports = [e for e in record.of("held_values") if e["step"]]
    series: dict[str, list[float]] = {}
    for name in {key for e in reports for key in e["values"]}:
        values = [e["values"].get(name) for e in reports]
        if all(isinstance(value, int | float) for value in values):
            series[name] = [float(value) for value in values if value is not None]
    for name, best in series.items():
        word = name.rpartition(".")[2]
        if word not in compared or len(best) < FEWEST or len(set(best)) < 3 or _is_monotone(best):
            continue
        if any(values == best and not BEST.search(other.rpartition(".")[2]) for other, values in series.items()):
            yield Finding(
                measured=f"{name} = {', '.join(f'{value:.4g}' for value in best[:6])}",
                expected="it only gets better",
                message="the best result so far is overwritten by every result, better or not",
                location=project.at(compared[word]),
                hint=f"set {name} inside of the if that found a better one",
            )
            return


def _is_monotone(values: list[float]) -> bool:
    return values in (sorted(values), sorted(values, reverse=True))


@rule("EVL612", subject=Subject.RUN)
def patience_never_reset(record: Record) -> Iterator[Finding]:
    """The count of epochs without progress is never set back.

    Why it matters: it counts all bad epochs of the run, not those in a row, and stops a training that gets better.
    Found by: reading the source: a counter that is compared with a patience, grows by one, and is set to zero nowhere
    but at its start.
    Not an error: `epoch - best_epoch > patience`, a budget of bad epochs that is called so.

    Wrong: `else: wait += 1` alone
    Right: `if better: wait = 0` `else: wait += 1`
    """
    project = project_of(record)
    seen = False
    for sides in filter(None, map(compared_sides, project.nodes(ast.Compare))):
        for counter, limit in (sides, sides[::-1]):
            if not isinstance(counter, ast.Name | ast.Attribute) or not LIMIT.search(ast.unparse(limit)):
                continue
            if LIMIT.search(_word(counter)) and not re.search(r"count|wait|num", _word(counter)):
                continue
            given = _assignments(project, counter)
            grows = [s for s in given if isinstance(s, ast.AugAssign) and isinstance(s.op, ast.Add)]
            seen = seen or bool(grows)
            sets = [s for s in given if s not in grows and not _restores(project, s)]
            if (
                not grows
                or not sets
                or not all(_begins(project, s) for s in sets)
                or not _under_condition(project, grows)
            ):
                continue
            yield Finding(
                measured=f"{ast.unparse(grows[0])}, set only at {project.at(sets[0])}",
                expected="0 after every improvement",
                message="the patience counts all epochs without progress, not those in a row",
                location=project.at(grows[0]),
                hint=f"{ast.unparse(counter)} = 0 where the result got better",
            )
            return
    if not seen:
        raise NotSeenError("no early stopping of the script's own was found")


def _restores(project: Project, statement: ast.stmt) -> bool:
    """Whether a statement brings a state back from a checkpoint."""
    function = project.function(statement)
    return function is not None and re.search(r"load|restore|resume|setstate|set_state", function.name) is not None


def _under_condition(project: Project, statements: Sequence[ast.stmt]) -> bool:
    """Whether a counter grows only sometimes; one that grows in every epoch counts epochs."""
    return all(
        any(
            isinstance(up, ast.If)
            for up in project.ancestors(statement)
            if project.scope(up) is project.scope(statement)
        )
        for statement in statements
    )


@rule("CKP020", severity=Status.WARN, subject=Subject.RUN)
def checkpoint_not_used(record: Record) -> Iterator[Finding]:
    """A checkpoint is read, and its weights are never put into a model.

    Why it matters: what is evaluated as the best model is the one of the last epoch.
    Found by: a file of weights that the run has saved itself and reads back, followed by an evaluation or by training,
    and no `load_state_dict` of a module in between, nor after.
    Not an error: reading the epoch or the metrics that a file holds and using the weights later; a whole model that is
    unpickled.

    Wrong: `best = torch.load("best.pt")` and `evaluate(model)`
    Right: `model.load_state_dict(best["model"])` in between
    """
    loads = [e for e in record.of("load") if e["own"] and any(True for _ in weights_in(e["content"]))]
    if not loads:
        raise NotSeenError("the run reads none of its own checkpoints")
    last = loads[-1]
    used = [e for e in record.of("weights_loaded") if e["i"] > last["i"]]
    after = [e for e in record.of("pass") if e["i"] > last["i"] and not e["grad"]]
    if after and not used and not last.get("fast") and not record.of("fast"):
        yield Finding(
            measured=f"{last['path']} is read, and load_state_dict is not called after it",
            expected="the weights go into the model that is evaluated",
            message="the checkpoint is read and what is evaluated then is the model as it was",
            location=last["loc"],
            hint="model.load_state_dict(...) with the weights that were read",
        )


TRAINED = re.compile(r"(^|_)(train|tr|training)(_|$)", re.IGNORECASE)
MEASURE = re.compile(r"acc|loss|f1|score|err|metric|nll|auc|iou|prec", re.IGNORECASE)


@rule("EVL618", severity=Status.WARN, subject=Subject.RUN)
def best_by_training(record: Record) -> Iterator[Finding]:
    """The best model is chosen by a measure of the training, although there is a validation.

    Why it matters: the model that has learned the training data best is the one that has learned them by heart; the
    validation has no say.
    Found by: reading the source: a variable named as one of the training is compared with the best so far, in a run
    that evaluates after each epoch.
    Not an error: runs that have no validation.

    Wrong: `if train_accuracy > best: save()`
    Right: `if val_accuracy > best: save()`
    """
    if len(record.evaluations) < 2:
        raise NotSeenError("fewer than two evaluations were seen")
    project = project_of(record)
    for compare, place in comparisons_with_best(project):
        others = [side for side in compared_sides(compare) or () if side is not place]
        named = [
            side for side in others if TRAINED.search(name_of_number(side)) and MEASURE.search(name_of_number(side))
        ]
        if named and not TRAINED.search(_word(place)) and is_made_again(project, compare):
            yield Finding(
                measured=ast.unparse(compare),
                expected="a measure of the validation",
                message="the best model is the one that fits the training data best",
                location=project.at(compare),
                hint="compare the loss or the accuracy of the validation",
            )
            return


def name_of_number(side: ast.expr) -> str:
    """What a number is called: a variable, an attribute, or a key and what it is taken from."""
    if isinstance(side, ast.Subscript):
        return f"{name_of_number(side.value)}_{text_of(side.slice) or ''}"
    return _word(side)
