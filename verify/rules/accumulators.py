"""EVL: sums and lists that go on from epoch to epoch although the mean of one epoch is taken of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import FRAMEWORKS, Function, Project, first_name, is_self, names_in, torch_project, words
from verify.trace.record import Record

EPOCH = re.compile(r"(^|[^a-z])(n_?|num_?|max_?)?(epochs?|ep)($|[^a-z])", re.IGNORECASE)
MEASURED = re.compile(r"loss|correct|acc(?![a-z])|accuracy|hits|nll|err|\.item\(\)", re.IGNORECASE)
# Whole-run figures: how much was done, how fast, and what reinforcement learning earns.
OTHER = re.compile(
    r"token|time|sec|elapsed|flop|step|iter|global|seen|reward|return|ema|smooth|mem|grad|speed|throughput|history|"
    r"lifetime|cum|running_(avg|mean)|so_far",
    re.IGNORECASE,
)
COLLECTED = re.compile(r"pred|prob|out|logit|score|label|target|true|gt|loss|acc|correct|err", re.IGNORECASE)
# Calls that make one of a whole list; what they get is wrapped in conversions at most.
WHOLE = words("mean average nanmean fmean cat concat concatenate stack hstack vstack zip")
CONVERSIONS = words("tensor array asarray as_tensor FloatTensor Tensor float int item double float")
FORGETS = words("clear reset pop popleft zero_ fill_ remove __init__")
STEPS = words("training_step validation_step test_step")
Loop = ast.For | ast.AsyncFor | ast.While


@rule("EVL613", severity=Status.WARN, subject=Subject.RUN)
def sum_never_reset(record: Record) -> Iterator[Finding]:
    """A sum over the batches of an epoch goes on in the next epoch.

    Why it matters: what is printed as the loss or the accuracy of an epoch, and what may choose the best model, is a
    mean over all epochs so far, or grows from epoch to epoch.
    Found by: reading the source: a sum or a list that grows in the loop over batches, of which a mean is taken in the
    loop over epochs, and that is set back nowhere in it; a list, a sum or a metric object of a trainer that every
    evaluation adds to and nothing ever clears.
    Not an error: histories with one entry an epoch, counters of steps, samples and seconds, a mean of the last entries,
    a mean over the whole run that is taken after it, metrics that Lightning resets.

    Wrong: `total = 0.0` in front of `for epoch in ...:`, `total / len(loader)` in it
    Right: `total = 0.0` at the start of every epoch
    """
    project = torch_project(record)
    seen: set[tuple[str, str]] = set()
    for one in chain(_in_loops(project), _in_classes(project), _meters(project)):
        key = (project.file(one.grows).path, one.name)
        if key in seen:
            continue
        seen.add(key)
        yield Finding(
            status=Status.FAIL if one.sure else Status.WARN,
            measured=f"{ast.unparse(one.grows)[:80]}, and {one.name} is never set back",
            expected=f"{one.name} starts anew in every epoch",
            message=f"{ast.unparse(one.used)[:80]} is taken of all epochs so far",
            location=project.at(one.used),
            hint="set it back at the start of each epoch or evaluation",
        )


@dataclass
class Grown:
    """Something that grows and is never set back: its name, where it grows, where it is used, whether that is sure."""

    name: str
    grows: ast.AST
    used: ast.AST
    sure: bool


# -- variables of the function with the loop over epochs ---------------------------------------------------------------


def _in_loops(project: Project) -> Iterator[Grown]:
    for grows, name in _growing_names(project):
        epochs = _epoch_loop(project, grows)
        if epochs is None or OTHER.search(name) or not _starts_before(project, grows, name, epochs):
            continue
        if _is_set_back(epochs, name):
            continue
        used = _mean_of(project, epochs, name)
        if used is not None:
            yield Grown(name, grows, used[0], used[1])


def _growing_names(project: Project) -> Iterator[tuple[ast.AST, str]]:
    for node in project.nodes(ast.AugAssign):
        if isinstance(node.op, ast.Add) and isinstance(node.target, ast.Name):
            is_list = isinstance(node.value, ast.List)
            text = f"{node.target.id} {ast.unparse(node.value)}"
            if (COLLECTED if is_list else MEASURED).search(text) and not isinstance(node.value, ast.Constant):
                yield node, node.target.id
    for call in project.calls:
        match call.func:
            case ast.Attribute(value=ast.Name(id=name), attr="append" | "extend") if COLLECTED.search(name):
                yield call, name


def _epoch_loop(project: Project, node: ast.AST) -> Loop | None:
    """The loop over epochs around the loop over batches that a node lies in, both in the node's own function."""
    scope = project.scope(node)
    loops = [up for up in project.ancestors(node) if isinstance(up, Loop) and project.scope(up) is scope]
    if not loops or _is_over_epochs(loops[0]):
        return None
    return next((loop for loop in loops[1:] if _is_over_epochs(loop)), None)


def _is_over_epochs(loop: Loop) -> bool:
    text = (
        ast.unparse(loop.test)
        if isinstance(loop, ast.While)
        else f"{ast.unparse(loop.target)} {ast.unparse(loop.iter)}"
    )
    return bool(EPOCH.search(text)) and "per_epoch" not in text


def _starts_before(project: Project, node: ast.AST, name: str, epochs: Loop) -> bool:
    """Whether the function itself sets the name, outside of the loop over epochs, and nobody else may."""
    shared: list[ast.Global | ast.Nonlocal] = [*project.nodes(ast.Global), *project.nodes(ast.Nonlocal)]
    if any(name in statement.names for statement in shared):
        return False
    inside = {id(inner) for inner in ast.walk(epochs)}
    scope = project.scope(node)
    for other in ast.walk(scope):
        stored = isinstance(other, ast.Name) and other.id == name and isinstance(other.ctx, ast.Store)
        if stored and id(other) not in inside and project.scope(other) is scope:
            return True
    return False


def _is_set_back(epochs: Loop, name: str) -> bool:
    adding = {id(n.target) for n in ast.walk(epochs) if isinstance(n, ast.AugAssign) and isinstance(n.op, ast.Add)}
    for node in ast.walk(epochs):
        match node:
            case ast.Name(id=found, ctx=ast.Store() | ast.Del()) if found == name and id(node) not in adding:
                return True
            case ast.Subscript(value=ast.Name(id=found), ctx=ast.Store() | ast.Del()) if found == name:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id=found), attr=attr)) if found == name and attr in FORGETS:
                return True
    return False


def _mean_of(project: Project, epochs: Loop, name: str) -> tuple[ast.AST, bool] | None:
    """Where the loop over epochs takes a mean of the variable, and whether it is divided by what one epoch has."""
    scope = project.scope(epochs)
    for node in ast.walk(epochs):
        if not isinstance(node, ast.BinOp | ast.Call) or project.scope(node) is not scope:
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _core(node.left) == name:
            below = ast.unparse(node.right)
            epoch = first_name(epochs.target) if isinstance(epochs, ast.For) else "epoch"
            if OTHER.search(below.replace("seen", "")) or epoch in names_in(node.right):
                continue
            return node, _is_of_one_epoch(epochs, node.right)
        if isinstance(node, ast.Call) and _name_of(node.func) in WHOLE:
            given = [arg.value if isinstance(arg, ast.Starred) else arg for arg in node.args]
            if any(_core(arg) == name for arg in given):
                return node, False
    return None


def _is_of_one_epoch(epochs: Loop, divisor: ast.expr) -> bool:
    """Whether a divisor does not go on growing as well."""
    growing = {n.target.id for n in ast.walk(epochs) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    back = [name for name in names_in(divisor) if name not in growing or _is_set_back(epochs, name)]
    return len(back) == len(names_in(divisor)) and bool(back)


def _core(node: ast.expr) -> str:
    """The dotted name that a value is, up to factors and conversions; '' for anything else, such as a slice."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            return f"self.{attr}"
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return (
                _core(right)
                if isinstance(left, ast.Constant)
                else _core(left)
                if isinstance(right, ast.Constant)
                else ""
            )
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=[]) if attr in CONVERSIONS:
            return _core(value)
        case ast.Call(func=function, args=[inner, *_]) if _name_of(function) in CONVERSIONS | {"sum"}:
            return _core(inner)
    return ""


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


# -- attributes of a trainer -------------------------------------------------------------------------------------------


def _in_classes(project: Project) -> Iterator[Grown]:
    for classes in list(project.classes.values()):
        for owner in classes:
            methods = {node.name: node for node in owner.body if isinstance(node, Function)}
            stepped = _reached(methods, set(methods) & STEPS)
            trains = any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(owner))
            if not stepped and not trains:
                continue  # a meter, which may be made anew for every epoch
            for grows, attribute in _growing_attributes(project, methods, stepped):
                if OTHER.search(attribute) or _is_cleared(project, owner, attribute):
                    continue
                used = _used_in(methods, attribute)
                if used is not None:
                    yield Grown(f"self.{attribute}", grows, used, bool(stepped))


def _reached(methods: dict[str, Function], names: set[str]) -> set[str]:
    """The methods that some methods call on `self`, with themselves."""
    found = set(names)
    for name in names:
        for node in ast.walk(methods[name]):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=attr)) if attr in methods:
                    left = {key: method for key, method in methods.items() if key not in found}
                    found |= _reached(left, {attr} & set(left))
    return found


def _growing_attributes(
    project: Project, methods: dict[str, Function], stepped: set[str]
) -> Iterator[tuple[ast.AST, str]]:
    """What grows with every batch: in a step of Lightning's, beside `backward`, or in a loop over batches."""
    for name, method in methods.items():
        if name in ("__init__", "reset"):
            continue
        trains = any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(method))
        for node in ast.walk(method):
            attribute = _grows(node)
            if not attribute:
                continue
            loops = [up for up in project.ancestors(node) if isinstance(up, Loop) and project.scope(up) is method]
            if name in stepped or (loops and not _is_over_epochs(loops[0])) or (trains and not loops):
                yield node, attribute


def _grows(node: ast.AST) -> str:
    """The attribute of `self` that a statement or a call adds a measured value to, or ''."""
    match node:
        case ast.AugAssign(target=target, op=ast.Add(), value=value) if not isinstance(value, ast.Constant):
            attribute = _attribute(target)
            is_measured = MEASURED.search(f"{attribute} {ast.unparse(value)}")
            return attribute if is_measured or isinstance(value, ast.List) else ""
        case ast.Call(func=ast.Attribute(value=value, attr="append" | "extend"), args=[_, *_]):
            return _attribute(value)
    return ""


def _attribute(node: ast.AST) -> str:
    """`x` for `self.x` and `self.x[...]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) and is_self(node.value) else ""


def _is_cleared(project: Project, owner: ast.ClassDef, attribute: str) -> bool:
    """Whether anything sets an attribute of that name back, or may do so unseen."""
    starts = 0
    for target, value in project.attribute_values.get(attribute, []):
        function = project.function(target)
        if function is None or function.name != "__init__":
            return True
        starts += 1
        if "deque" in ast.unparse(value):
            return True
    if not starts:
        return True
    places: list[ast.Subscript | ast.Attribute] = [*project.nodes(ast.Subscript), *project.nodes(ast.Attribute)]
    for node in places:
        if isinstance(node.ctx, ast.Store | ast.Del) and _last_attribute(node) == attribute:
            around = project.function(node)
            adds = isinstance(project.parent[node], ast.AugAssign)
            if not adds and (around is None or around.name != "__init__"):
                return True
    for call in project.calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in FORGETS:
            receiver = _last_attribute(call.func.value)
            unknown = not receiver and project.class_of(call) is owner
            if receiver == attribute or (unknown and not _is_other_call(project, call)):
                return True
        elif _name_of(call.func) in ("setattr", "vars"):
            return True
    return False


def _last_attribute(node: ast.AST) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_other_call(project: Project, call: ast.Call) -> bool:
    """`super().__init__()` and the like."""
    assert isinstance(call.func, ast.Attribute)
    return isinstance(call.func.value, ast.Call) and project.builtin(call.func.value.func) == "super"


def _used_in(methods: dict[str, Function], attribute: str) -> ast.AST | None:
    """Where a mean of the attribute is taken in a method that runs again and again."""
    for name, method in methods.items():
        again = re.search(r"epoch|eval|valid|report|log|metric|step|train|test|run", name) and "train_end" not in name
        if name in ("__init__",) or not (again or any(isinstance(node, ast.For) for node in ast.walk(method))):
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _whole(node.left) == attribute:
                below = ast.unparse(node.right)
                if not (OTHER.search(below) or EPOCH.search(below)):
                    return node
            made_one = isinstance(node, ast.Call) and _name_of(node.func) in WHOLE
            if isinstance(node, ast.Call) and made_one and any(_whole(arg) == attribute for arg in node.args):
                return node
    return None


def _whole(node: ast.expr) -> str:
    """The attribute of `self` that a value is all of: itself, one of its entries by name, or unpacked."""
    match node:
        case ast.Starred(value=value):
            return _whole(value)
        case ast.Subscript(value=value, slice=ast.Name() | ast.Constant(value=str())):
            return _attribute(value)
        case _:
            return _core(node).removeprefix("self.") if _core(node).startswith("self.") else ""


# -- objects that keep a sum -------------------------------------------------------------------------------------------


def _meters(project: Project) -> Iterator[Grown]:
    """Metric objects that a trainer makes once, feeds in a method that runs again and again, and never resets."""
    if _resets_unseen(project):
        return
    for attribute, values in list(project.attribute_values.items()):
        if OTHER.search(attribute) or len(values) != 1:
            continue
        target, value = values[0]
        around = project.function(target)
        if not is_self(target.value) or around is None or around.name != "__init__" or not isinstance(value, ast.Call):
            continue
        feeds = _feeds(project, value)
        if not feeds or _is_reset(project, attribute):
            continue
        for call in project.calls:
            fed = isinstance(call.func, ast.Attribute) and call.func.attr in feeds
            if fed and isinstance(call.func, ast.Attribute) and _last_attribute(call.func.value) == attribute:
                looped = any(isinstance(up, Loop) for up in project.ancestors(call))
                function = project.function(call)
                if looped and function is not None and _runs_again(project, function):
                    yield Grown(f"{ast.unparse(call.func.value)}", call, call, True)
                    break


def _feeds(project: Project, made: ast.Call) -> set[str]:
    """The methods by which an object adds up, if it has a `reset` that none of them calls."""
    name = project.qualified(made.func)
    if name.startswith(("torchmetrics.", "torcheval.metrics.")):
        return set() if project.imported & FRAMEWORKS else {"update"}
    for owner in project.definitions(made.func):
        if not isinstance(owner, ast.ClassDef):
            continue
        methods = {node.name: node for node in owner.body if isinstance(node, Function)}
        if "reset" not in methods:
            return set()
        for name, method in methods.items():
            if name != "__init__" and any(_calls_reset(node) for node in ast.walk(method)):
                return set()
        return {name for name, m in methods.items() if name != "reset" and any(map(_adds, ast.walk(m)))}
    return set()


def _calls_reset(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "reset" and is_self(node.value)


def _adds(node: ast.AST) -> bool:
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, ast.Add) and bool(_attribute(node.target))
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and bool(_attribute(node.func.value))
    )


def _resets_unseen(project: Project) -> bool:
    """Whether `reset` is called on something whose name does not say which object it is."""
    for call in project.calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "reset":
            receiver = call.func.value
            if isinstance(receiver, ast.Name) and receiver.id != "self":
                _, bindings = project.lookup(receiver)
                if not bindings or any(b.kind not in ("value", "import") for b in bindings):
                    return True
            elif not isinstance(receiver, ast.Name | ast.Attribute):
                return True
    return False


def _is_reset(project: Project, attribute: str) -> bool:
    """Whether `reset` is called on the attribute, or on a variable that may hold it."""
    for node in project.attributes.get("reset", []):
        if _last_attribute(node.value) == attribute:
            return True
        if isinstance(node.value, ast.Name) and node.value.id != "self":
            return True
    return False


def _runs_again(project: Project, function: Function, depth: int = 0) -> bool:
    """Whether a function is called in a loop, or in several places."""
    calls = project.calls_of.get(function, [])
    if len(calls) > 1:
        return True
    for call in calls:
        if any(isinstance(up, Loop) for up in project.ancestors(call)):
            return True
        around = project.function(call)
        if around is not None and depth < 3 and around is not function and _runs_again(project, around, depth + 1):
            return True
    return False
