"""EVL: results whose names say something else than where they come from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, literal, project_of, text_of, words
from verify.trace.record import NotSeenError, Record

# `top1`, `acc1`, `best_acc@5`, `val_prec_5`; the number is what the accuracy counts as right.
COUNTED = re.compile(
    r"(?:^|[^a-z])(?:top|acc|accuracy|prec|precision)[_@]?(1|5|10)(?:[_ ]?(?:acc|accuracy|avg|mean|meter|m))?$", re.I
)
# What a number goes through on its way: `top5.avg`, `acc5.item()`, `acc5[0]`, `float(acc5)`.
SAME = words("item avg average mean value val global_avg compute detach cpu numpy tolist global_average")
KEPT = words("float max min round")
METERS = words("update append add")
VALIDATION = re.compile(r"(?<![a-zA-Z])(validation|valid|val|dev)(?![a-zA-Z])")
TEST = re.compile(r"(?<![a-zA-Z])test(?![a-zA-Z])", re.IGNORECASE)


def _k(name: str) -> int:
    """The k of a top-k accuracy that a name says, or 0."""
    found = COUNTED.findall(name)
    return int(found[0]) if len(found) == 1 else 0


def _own_name(node: ast.expr | None) -> str:
    """The name of what a number is: a variable, an attribute or a key, through what leaves it the same."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return _own_name(value) if attr in SAME else attr
        case ast.Subscript(value=value, slice=index):
            return text_of(index) or (_own_name(value) if isinstance(literal(index), int) else "")
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=[]) if attr in SAME:
            return _own_name(value)
        case ast.Call(func=ast.Name(id=name), args=args) if name in KEPT:
            names = [_own_name(arg) for arg in args if not isinstance(arg, ast.Constant)]
            return next((name for name in names if _k(name) > 1), names[0] if names else "")
    return ""


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr | int]]:
    """Targets with the values that they get; with an index where one call gives several."""
    if not isinstance(target, ast.Tuple | ast.List):
        yield target, value
    elif isinstance(value, ast.Tuple | ast.List):
        if len(value.elts) == len(target.elts):
            yield from zip(target.elts, value.elts, strict=True)
    else:
        yield from ((element, index) for index, element in enumerate(target.elts))


def _returned(project: Project, call: ast.Call, index: int | None) -> str:
    """The name of what a function of the project returns, at an index of a tuple, if all its returns agree."""
    names = set()
    for function, _ in project.callees(call):
        for node in _returns(project, function):
            value = node.value
            if isinstance(value, ast.Tuple) and index is not None and index < len(value.elts):
                value = value.elts[index]
            elif isinstance(value, ast.Tuple) or index is not None:
                return ""
            names.add(_own_name(value))
    return names.pop() if len(names) == 1 else ""


def _returns(project: Project, function: Function) -> list[ast.Return]:
    return [n for n in ast.walk(function) if isinstance(n, ast.Return) and project.function(n) is function]


def _order_of_topk(project: Project, call: ast.Call) -> list[int]:
    """The ks of `accuracy(output, target, topk=(1, 5))`, in the order of what it returns."""
    given = next((k.value for k in call.keywords if k.arg in ("topk", "top_k", "ks")), None)
    ks = literal(given)
    return [k for k in ks if isinstance(k, int)] if isinstance(ks, tuple | list) else []


def _named_pairs(project: Project) -> Iterator[tuple[str, str, ast.AST]]:
    """What numbers are called, and what they are by the place that they come from."""
    for node in project.nodes(ast.Assign):
        for whole in node.targets:
            for target, value in _pairs(whole, node.value):
                yield from _of_target(project, node, _own_name(target), value)
    for entry in project.nodes(ast.Dict):
        for key, value in zip(entry.keys, entry.values, strict=True):
            yield text_of(key) or "", _own_name(value), value
    for call in project.calls:
        yield from ((item.arg, _own_name(item.value), call) for item in call.keywords if item.arg)
        if isinstance(call.func, ast.Attribute) and call.func.attr in METERS and call.args:
            yield _own_name(call.func.value), _own_name(call.args[0]), call


def _of_target(
    project: Project, node: ast.Assign, name: str, value: ast.expr | int
) -> Iterator[tuple[str, str, ast.AST]]:
    if isinstance(value, ast.expr):
        called = _returned(project, value, None) if isinstance(value, ast.Call) and not _own_name(value) else ""
        yield name, called or _own_name(value), node
    elif isinstance(node.value, ast.Call):
        order = _order_of_topk(project, node.value)
        is_whole = isinstance(node.targets[0], ast.Tuple) and len(order) == len(node.targets[0].elts)
        yield name, f"top{order[value]}" if is_whole else _returned(project, node.value, value), node


@rule("EVL625", severity=Status.WARN, subject=Subject.RUN)
def accuracy_of_another_k(record: Record) -> Iterator[Finding]:
    """What is called the top-1 accuracy is the top-5 accuracy.

    Why it matters: top-5 is much higher and says much less; the best model is chosen by it, and it is printed, saved
    and compared as top-1.
    Found by: reading the source: a variable, key or meter with `acc1`, `top1`, `prec1` or the like in its name, which
    gets a number that is called `top5` or `acc5` where it is made or returned; `topk=(1, 5)` unpacked the other way
    round.
    Not an error: `acc5 = acc1` for few classes; models or folds that are numbered; a 1 that is not of a top-k.

    Wrong: `acc1 = validate(...)`, where `validate` returns `top5.avg`; `acc5, acc1 = accuracy(..., topk=(1, 5))`
    Right: `return top1.avg`; `acc1, acc5 = accuracy(..., topk=(1, 5))`
    """
    project = project_of(record)
    for name, given, node in _named_pairs(project):
        if _k(name) == 1 and _k(given) in (5, 10):
            yield Finding(
                measured=f"{name} gets {given}",
                expected="the top-1 accuracy",
                message=f"what is called {name} is the top-{_k(given)} accuracy",
                location=project.at(node),
                hint="return and keep the top-1 accuracy",
            )
            return


@rule("EVL626", severity=Status.WARN, subject=Subject.RUN)
def test_result_of_validation(record: Record) -> Iterator[Finding]:
    """What is called the result of the test is that of the validation; the test data are made and never used.

    Why it matters: the model was chosen by these data, so the number that is reported flatters it.
    Found by: reading the source: a variable with `test` in its name that gets the result of a call with the validation
    data, where there are test data of the same name, which nothing reads, or whose loader a run that went to its end
    never iterated.
    Not an error: a script that has no test data of its own and calls the validation a test; test data that are used.

    Wrong: `test_acc = evaluate(model, val_loader)`
    Right: `test_acc = evaluate(model, test_loader)`
    """
    project = project_of(record)
    if not record.ran_to_the_end:
        raise NotSeenError("the run was not seen to its end")
    for node in project.nodes(ast.Assign):
        named = [
            _own_name(t) for whole in node.targets for t in (whole.elts if isinstance(whole, ast.Tuple) else [whole])
        ]
        if not isinstance(node.value, ast.Call) or not all(TEST.search(_spaced(n)) for n in named if n != "_"):
            continue
        given = [*node.value.args, *(k.value for k in node.value.keywords)]
        spelled = [_own_name(arg) for arg in given]
        validation = [n for n in spelled if _says_split(n)]
        twins = [VALIDATION.sub("test", _spaced(n)).replace(" ", "_") for n in validation]
        if len(twins) != 1 or any(TEST.search(_spaced(n)) for n in spelled) or any(map(_says_split, named)):
            continue
        if _is_unread(project, twins[0]) or _is_never_iterated(record, project, twins[0], validation[0]):
            yield Finding(
                measured=ast.unparse(node)[:110],
                expected=f"the result with {twins[0]}",
                message=f"the result is called that of the test and is of the validation; {twins[0]} is never used",
                location=project.at(node),
                hint=f"give {twins[0]} to the call",
            )
            return


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _says_split(name: str) -> bool:
    return bool(VALIDATION.search(_spaced(name)))


def _is_unread(project: Project, name: str) -> bool:
    """Whether something has a name and no line of the project reads it."""
    stored = any(n.id == name and isinstance(n.ctx, ast.Store) for n in project.nodes(ast.Name))
    kept = name in project.attribute_values
    read = any(n.id == name and isinstance(n.ctx, ast.Load) for n in project.nodes(ast.Name))
    return (stored or kept) and not read and not project.attributes.get(name)


def _is_never_iterated(record: Record, project: Project, name: str, other: str) -> bool:
    """Whether of two loaders that are made side by side in the same way only the other was iterated."""
    iterated = {loader["loc"] for loader in record.loaders.values()}
    made: dict[str, list[ast.Assign]] = {name: [], other: []}
    for node in project.nodes(ast.Assign):
        if len(node.targets) == 1 and _own_name(node.targets[0]) in made and isinstance(node.value, ast.Call):
            made[_own_name(node.targets[0])].append(node)
    if any(len(nodes) != 1 for nodes in made.values()):
        return False
    one, two = made[name][0], made[other][0]
    alike = _call(one) == _call(two) and project.scope(one) is project.scope(two)
    return alike and not iterated & _lines(project, one) and bool(iterated & _lines(project, two))


def _call(node: ast.Assign) -> str:
    return ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""


def _lines(project: Project, node: ast.Assign) -> set[str]:
    path = project.file(node).path
    return {f"{path}:{line}" for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
