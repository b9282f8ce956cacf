"""What the source and the saved files say about resuming, where the script could not be stopped and started again."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from verify.report import Finding, Status
from verify.source import Project, arguments, keyword, text_of
from verify.trace.record import Event, Record
from verify.trace.restart import OPTIMIZER, SCHEDULE, held, resume_option, speaks_of_resuming

EPOCH = re.compile(r"epoch", re.IGNORECASE)
# What keeps a state from step to step with any settings; SGD does with momentum.
STATEFUL = re.compile(r"adam|adagrad|adadelta|rmsprop|rprop|lion|lamb|lars|adafactor|muon|shampoo", re.IGNORECASE)


@dataclass(frozen=True)
class Restored:
    """Where the epoch of a checkpoint, whose weights are loaded as well, becomes the beginning of a loop.

    Args:
        key: of the epoch in the checkpoint. statement: the assignment. name: what is assigned to.
        exact: whether the loop begins at the very number that is in the checkpoint, for sure.
    """

    key: str
    statement: ast.Assign
    name: str
    exact: bool


def restored_epochs(record: Record, project: Project, content: dict[str, Any]) -> list[Restored]:
    """The places that bring weights and the epoch back from a checkpoint.

    Args:
        content: the descriptions of what a checkpoint holds, by key.
    """
    if not (speaks_of_resuming(record) or resume_option(record)):
        return []
    epochs = [k for k, e in content.items() if e["kind"] == "value" and type(e["value"]) is int and EPOCH.search(k)]
    weights = [k for k, e in content.items() if e["kind"] in ("weights", "module")]
    loaded = {_base(project, read) for key in weights for read in _reads(project, key)}
    found = []
    for key in epochs:
        for read in _reads(project, key):
            assigned = _assignment(project, read) if _base(project, read) in loaded else None
            if assigned is None:
                continue
            statement, target, value = assigned
            name = target.attr if isinstance(target, ast.Attribute) else target.id
            starts = list(_loop_starts(project, target, name))
            if starts:
                exact = value is read and all(isinstance(s, ast.Name | ast.Attribute) for s in starts)
                found.append(Restored(key, statement, name, exact and not _counted_on(project, name)))
    return found


def _reads(project: Project, key: str) -> Iterator[ast.expr]:
    """`x["key"]`, `x.get("key", ...)`."""
    for node in project.nodes(ast.Constant):
        up = project.parent.get(node)
        if node.value != key or not isinstance(node.value, str):
            continue
        if isinstance(up, ast.Subscript) and up.slice is node and isinstance(up.ctx, ast.Load):
            yield up
        is_call = isinstance(up, ast.Call) and isinstance(up.func, ast.Attribute) and up.func.attr in ("get", "pop")
        if is_call and isinstance(up, ast.Call) and node in up.args[:1]:
            yield up


def _base(project: Project, read: ast.expr) -> tuple[str, str]:
    """The file, and the text of what a key is read from."""
    base = read.value if isinstance(read, ast.Subscript) else read.func.value  # type: ignore[attr-defined]
    return project.file(read).path, ast.unparse(base)


def _assignment(project: Project, read: ast.expr) -> tuple[ast.Assign, Any, ast.expr] | None:
    """The assignment of a read value to one name or attribute, and the expression that is assigned."""
    value: ast.AST = read
    while isinstance(up := project.parent.get(value), ast.BinOp | ast.Call | ast.IfExp):
        value = up
    targets: list[ast.expr] = []
    if isinstance(up, ast.Tuple) and isinstance(statement := project.parent.get(up), ast.Assign):
        place = [element is value for element in up.elts].index(True)
        rows = [t.elts for t in statement.targets if isinstance(t, ast.Tuple) and len(t.elts) == len(up.elts)]
        targets = [row[place] for row in rows]
    elif isinstance(up, ast.Assign):
        statement, targets = up, up.targets
    plain = [target for target in targets if isinstance(target, ast.Name | ast.Attribute)]
    return (statement, plain[0], value) if len(plain) == 1 and isinstance(value, ast.expr) else None  # type: ignore[return-value]


def _loop_starts(project: Project, target: ast.expr, name: str) -> Iterator[ast.expr]:
    """First arguments of `range` that a name, or a parameter that it is given to, stands in."""
    names = {name}
    for call in project.calls:
        for function, _ in project.callees(call):
            names |= {arg.arg for arg, value in arguments(call, function, project) if _is_called(value, name)}
    for call in project.calls:
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called not in ("range", "trange") or len(call.args) < 2:
            continue
        if any(_is_called(node, one) for node in ast.walk(call.args[0]) for one in names):
            yield call.args[0]


def _is_called(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _counted_on(project: Project, name: str) -> bool:
    """Whether one is added to it elsewhere: `start += 1`, `start = start + 1`."""
    if any(_is_called(node.target, name) for node in project.nodes(ast.AugAssign)):
        return True
    return any(
        isinstance(node.value, ast.BinOp) and any(_is_called(target, name) for target in node.targets)
        for node in project.nodes(ast.Assign)
    )


def saves_of(record: Record, project: Project) -> list[Event]:
    """The `save` events; where nothing was saved yet, what the source says that it would save."""
    if record.of("save"):
        return record.of("save")
    found = []
    for call, literal in _saved_dicts(project):
        if all(text_of(key) is not None for key in literal.keys):
            rows = zip(literal.keys, literal.values, strict=True)
            keys = {str(text_of(key)): _described(str(text_of(key)), value) for key, value in rows}
            content = {"kind": "dict", "type": "dict", "keys": keys}
            found.append({"kind": "save", "path": "the checkpoint", "content": content, "loc": project.at(call)})
    return found


def _saved_dicts(project: Project) -> list[tuple[ast.Call, ast.Dict]]:
    """Calls of torch.save, with the literals that they are given."""
    calls = [c for c in project.calls if project.qualified(c.func) == "torch.save" and c.args]
    return [(call, one) for call in calls for one in project.origins(call.args[0]) if isinstance(one, ast.Dict)]


def _described(key: str, value: ast.expr) -> dict[str, Any]:
    """As the recorder describes what is saved, as far as the source tells."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "state_dict"):
        return {"kind": "value", "value": 0 if EPOCH.search(key) else None}
    owner = ast.unparse(value.func.value)
    kinds = {"scheduler": SCHEDULE, "scaler": re.compile("scaler", re.IGNORECASE), "optimizer": OPTIMIZER}
    kind = next((kind for kind, named in kinds.items() if named.search(owner)), "weights")
    return {"kind": kind, "type": "dict", "keys": {"entries": 1} if kind == "optimizer" else {}}


# -- what is left out ----------------------------------------------------------------------------------------------


def loads_into_optimizer(project: Project) -> bool:
    """Whether any call may bring an optimizer's state back."""
    return _calls_on(project, "load_state_dict", OPTIMIZER) or _calls_on(project, "load_state", re.compile(""))


def _calls_on(project: Project, method: str, named: re.Pattern[str]) -> bool:
    calls = [c.func for c in project.calls if isinstance(c.func, ast.Attribute) and c.func.attr == method]
    return any(any(named.search(word) for word in re.findall(r"\w+", ast.unparse(f.value))) for f in calls)


def never_saved(record: Record, project: Project) -> Iterator[Finding]:
    """The epoch comes back, and the moments and the schedule that belong to it were never saved."""
    saves = [e for e in saves_of(record, project) if e["content"]["kind"] == "dict"]
    if any({"optimizer", "scheduler"} & held(e["content"]) for e in saves) or project.has_framework:
        return
    for save in reversed(saves):
        content = save["content"]["keys"]
        places = restored_epochs(record, project, content)
        if places and not any(inner["kind"] == "other" for inner in content.values()):
            lost = [*_lost_moments(record, project), *_lost_schedule(record, project)]
            if lost:
                yield Finding(
                    status=Status.WARN,
                    measured=f"{save['path']} holds {', '.join(content)}",
                    expected="all that resuming needs is saved",
                    message=f"resuming brings back the epoch, but not {' or '.join(lost)}",
                    location=project.at(places[0].statement),
                    hint="save and load the state_dict() of optimizer and scheduler as well",
                )
            return


def _lost_moments(record: Record, project: Project) -> list[str]:
    """The optimizer's state, if it has one that outlives an epoch and no code saves it."""
    if not keeps_moments(record) or _calls_on(project, "state_dict", OPTIMIZER):
        return []
    optimizer = _optimizer(record)
    again = [e for e in record.optimizers.values() if optimizer and e["loc"] == optimizer["loc"]]
    return [f"the moments of {optimizer['cls']}"] if optimizer and len(again) == 1 else []


def keeps_moments(record: Record) -> bool:
    """Whether the optimizer with the most steps has a state."""
    optimizer = _optimizer(record)
    if optimizer is None:
        return False
    momentum = any(isinstance(g.get("momentum"), int | float) and g["momentum"] for g in optimizer["groups"])
    return bool(momentum or STATEFUL.search(optimizer["cls"]))


def _optimizer(record: Record) -> Event | None:
    """The optimizer with the most steps, or the only one."""
    known = record.optimizers
    if record.main_optimizer is not None:
        return known.get(record.main_optimizer)
    return next(iter(known.values())) if len(known) == 1 else None


def _lost_schedule(record: Record, project: Project) -> list[str]:
    """The schedule, if it counts by itself and nothing in the code sets it to an epoch."""
    schedulers = record.of("scheduler", "scheduler_unused")
    named = [c for c in project.calls if isinstance(c.func, ast.Attribute) and c.func.attr == "step"]
    named = [c for c in named if SCHEDULE.search(ast.unparse(c.func))]
    placed = any(keyword(c, "last_epoch") is not None for c in project.calls)
    if (
        not schedulers
        or placed
        or any(e["given"] for e in record.of("sched"))
        or _calls_on(project, "state_dict", SCHEDULE)
    ):
        return []
    return ["the schedule"] if len(named) == 1 and not named[0].args and not named[0].keywords else []


# -- the epoch that is trained twice -------------------------------------------------------------------------------


def finished_epoch_again(record: Record, project: Project) -> Iterator[Finding]:
    """The number of a finished epoch is saved, and the loop of the resumed run begins with it."""
    loops = [e for e in record.of("loop") if e["step"] == 1 and EPOCH.search(f"{e['variable']} {e['text']}")]
    saves = [e for e in saves_of(record, project) if e["content"]["kind"] == "dict" and not e.get("fast")]
    if not saves or project.has_framework:
        return
    start = max(loops, key=lambda e: e["stop"] - e["start"])["start"] if loops else None
    content = saves[-1]["content"]["keys"]
    for place in restored_epochs(record, project, content):
        alike = [e for e in saves if place.key in e["content"]["keys"]]
        if record.of("save"):
            sure = start is not None and all(_is_finished(record, e, place.key, start) for e in alike)
            what = f"saved was {place.key} {content[place.key]['value']}, when that epoch was complete"
        else:
            sure = _is_saved_when_finished(project, place)
            what = f"{place.key} is saved as it is when that epoch was complete"
        if place.exact and alike and sure:
            yield Finding(
                measured=f"{ast.unparse(place.statement)}; {what}",
                expected="the epoch after it",
                message="the resumed run trains an epoch again that it had finished",
                location=project.at(place.statement),
                hint='start_epoch = checkpoint["epoch"] + 1',
            )
            return


def _is_saved_when_finished(project: Project, place: Restored) -> bool:
    """Whether the body of the loop that is resumed trains first, and saves its variable below that."""
    loops = [loop for loop in project.nodes(ast.For) if _begins_at(loop, place.name)]
    values = [
        value
        for _, node in _saved_dicts(project)
        for key, value in zip(node.keys, node.values, strict=True)
        if key is not None and text_of(key) == place.key
    ]
    if len(loops) != 1 or len(values) != 1 or not isinstance(values[0], ast.Name):
        return False
    (loop,), value = loops, values[0]
    training = [n for n, statement in enumerate(loop.body) if _reaches(project, statement, _is_backward)]
    saving = [n for n, statement in enumerate(loop.body) if _reaches(project, statement, lambda node: node is value)]
    return bool(training and saving) and max(training) < min(saving) and _is_variable(project, value, loop)


def _begins_at(loop: ast.For, name: str) -> bool:
    called = loop.iter if isinstance(loop.iter, ast.Call) else None
    return called is not None and len(called.args) >= 2 and _is_called(called.args[0], name)


def _is_backward(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "backward"


def _reaches(project: Project, statement: ast.AST, wanted: Callable[[ast.AST], bool]) -> bool:
    """Whether a statement, or a function of the project that it calls, holds a node."""
    pending, seen = [statement], set[ast.AST]()
    for place in pending:
        for node in ast.walk(place):
            if wanted(node):
                return True
            for function, _ in project.callees(node) if isinstance(node, ast.Call) else ():
                if function not in seen:
                    seen.add(function)
                    pending.append(function)
    return False


def _is_variable(project: Project, name: ast.Name, loop: ast.For) -> bool:
    """Whether a name is the variable of a loop, or a parameter that always gets it."""
    _, bindings = project.lookup(name)
    if len(bindings) != 1:
        return False
    if bindings[0].kind == "loop":
        return bindings[0].node is loop
    function = project.function(bindings[0].node) if bindings[0].kind == "param" else None
    if function is None:
        return False
    given = [
        value
        for call in project.calls_of.get(function, [])
        for arg, value in arguments(call, function, project)
        if arg is bindings[0].node
    ]
    return bool(given) and all(isinstance(v, ast.Name) and _is_variable(project, v, loop) for v in given)


def _is_finished(record: Record, save: Event, key: str, start: int) -> bool:
    """Whether the saved number is that of the epoch whose training was over when it was saved, and not of the next."""
    begun = sum(one.begin < save["i"] for one in record.epochs)
    done = sum(one.end < save["i"] for one in record.epochs)
    return begun == done > 0 and save["content"]["keys"][key]["value"] == start + done - 1
