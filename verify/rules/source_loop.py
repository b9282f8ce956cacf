"""SRC: slips in the loop over epochs and batches."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import (
    Project,
    first_name,
    keyword,
    literal,
    names_in,
    project_of,
    text_of,
    torch_project,
    words,
)
from verify.trace.record import Record

ACTIONS = words("eval train zero_grad step backward update unscale_ zero_ detach_ requires_grad_ set_epoch item")


@rule("SRC071", severity=Status.FAIL, subject=Subject.RUN)
def method_not_called(record: Record) -> Iterator[Finding]:
    """A method is named but not called: the parentheses are missing.

    Why it matters: `model.eval` alone on a line does nothing: dropout stays on, gradients are not cleared, weights do
    not move.
    Found by: reading the source: a statement that is nothing but `something.eval`, `.train`, `.step`, `.zero_grad`,
    `.backward` and the like.
    Not an error: a method that is passed on or stored.

    Wrong: `model.eval`
    Right: `model.eval()`
    """
    project = torch_project(record)
    for statement in project.nodes(ast.Expr):
        node = statement.value
        if isinstance(node, ast.Attribute) and node.attr in ACTIONS and not isinstance(node.value, ast.Constant):
            yield Finding(
                measured=ast.unparse(node),
                expected=f"{ast.unparse(node)}()",
                message=f"{ast.unparse(node)} is not called, so the line does nothing",
                hint="add the parentheses",
                location=project.at(node),
            )


@rule("SRC072", severity=Status.WARN, subject=Subject.RUN)
def loss_rewrapped(record: Record) -> Iterator[Finding]:
    """The loss, or what it is computed from, is cut from the graph before `backward`.

    Why it matters: `backward` then runs without an error and reaches no weight.
    Found by: reading the source: `backward` on a loss that was made with `torch.tensor`, detached, or had
    `requires_grad` set by hand; a model's output wrapped in `torch.tensor(..., requires_grad=True)` in a function that
    calls `backward`.
    Not an error: an input whose own gradient is asked for, as in adversarial attacks; leaf tensors that are optimised.

    Wrong: `loss = torch.tensor(loss, requires_grad=True); loss.backward()`
    Right: `loss = criterion(model(x), y); loss.backward()`
    """
    project = torch_project(record)
    for call in project.calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "backward":
            cause = _cut_loss(project, call, call.func.value)
            if cause is not None:
                yield _rewrapped(project, cause, "the loss is cut from the graph before backward()")
    for call in project.calls:
        if _wraps(project, call) and call.args and _wraps_prediction(project, call):
            yield _rewrapped(
                project, call, "the model's output is wrapped in a new tensor, which cuts it from the graph"
            )


def _rewrapped(project: Project, node: ast.AST, message: str) -> Finding:
    return Finding(
        measured=ast.unparse(node),
        expected="a loss that is connected to the weights",
        message=message,
        hint="use the tensor as it is; if backward() then complains, find out where the graph is cut",
        location=project.at(node),
    )


def _wraps(project: Project, call: ast.Call) -> bool:
    name = project.qualified(call.func)
    return name in ("torch.tensor", "torch.autograd.Variable", "torch.FloatTensor", "torch.Tensor") and (
        literal(keyword(call, "requires_grad")) is True
    )


def _cut_loss(project: Project, call: ast.Call, loss: ast.expr) -> ast.AST | None:
    """What cuts the receiver of `backward` from the graph."""
    if _detaches(loss):
        return call
    if isinstance(loss, ast.Call) and _wraps(project, loss):
        return loss
    if not isinstance(loss, ast.Name):
        return None
    before = [node for node in _statements_before(project, call) if _stores(node, loss.id)]
    if not before:
        return None
    last = before[0]
    if isinstance(last, ast.Assign) and (_detaches(last.value) or _rewraps(project, last.value)):
        return last
    if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Attribute) and literal(last.value) is True:
        return last
    return last if isinstance(last, ast.Expr) else None


def _rewraps(project: Project, node: ast.expr) -> bool:
    """`torch.tensor(loss, requires_grad=True)` of something computed, not of a number."""
    return isinstance(node, ast.Call) and _wraps(project, node) and bool(node.args) and literal(node.args[0]) is None


def _detaches(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "data"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "detach"


def _statements_before(project: Project, call: ast.Call) -> list[ast.stmt]:
    """The statements of the same block before a call, the nearest first."""
    statement: ast.AST = call
    while not isinstance(statement, ast.stmt):
        statement = project.parent[statement]
    for _, part in ast.iter_fields(project.parent[statement]):
        if isinstance(part, list) and statement in part:
            return part[: part.index(statement)][::-1]
    return []


def _stores(node: ast.stmt, name: str) -> bool:
    """Whether a statement gives a name, or its `requires_grad`, a value."""
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        own = isinstance(target, ast.Attribute) and target.attr == "requires_grad" and _is_name(target.value, name)
        return own or any(name in names_in(t) and isinstance(t, ast.Name | ast.Tuple) for t in node.targets)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return (
            isinstance(function, ast.Attribute) and function.attr == "requires_grad_" and _is_name(function.value, name)
        )
    return isinstance(node, ast.AugAssign | ast.For | ast.If | ast.With) and name in names_in(node)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _wraps_prediction(project: Project, call: ast.Call) -> bool:
    scope = project.function(call) or project.file(call).tree
    nodes = list(ast.walk(scope))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    if not {"backward", "step"} <= attributes or "grad" in attributes:
        return False
    return any(
        isinstance(origin, ast.Call) and isinstance(origin.func, ast.Name) and _is_model_name(project, origin.func.id)
        for name in ast.walk(call.args[0])
        if isinstance(name, ast.Name)
        for binding in project.lookup(name)[1]
        for origin in [binding.expr]
    )


def _is_model_name(project: Project, name: str) -> bool:
    used = [node for kind in ("parameters", "train", "eval", "state_dict") for node in project.attributes.get(kind, [])]
    return any(_is_name(node.value, name) for node in used)


@rule("SRC073", severity=Status.WARN, subject=Subject.RUN)
def training_error_swallowed(record: Record) -> Iterator[Finding]:
    """Errors of the training step are caught and dropped.

    Why it matters: a step that fails on every batch looks like a run in which nothing is learnt.
    Found by: reading the source: `backward` or the optimizer's step inside a `try` whose handler catches everything and
    only passes or continues.
    Not an error: a handler for one kind of error, or one that logs, counts or re-raises.

    Wrong: `try: train_step(batch)` with `except Exception: pass`
    Right: let it raise, or handle `torch.OutOfMemoryError` alone
    """
    project = torch_project(record)
    for node in project.nodes(ast.Try):
        body = [inner for statement in node.body for inner in ast.walk(statement)]
        trains = any(isinstance(n, ast.Attribute) and n.attr == "backward" for n in body)
        for handler in node.handlers if trains else []:
            broad = handler.type is None or project.builtin(handler.type) in ("Exception", "BaseException")
            if broad and all(isinstance(item, ast.Pass | ast.Continue) for item in handler.body):
                yield Finding(
                    measured="except: pass" if handler.type is None else f"except {ast.unparse(handler.type)}: pass",
                    expected="an error that shows",
                    message="whatever goes wrong in the training step is dropped without a word",
                    hint="let it raise",
                    location=project.at(handler),
                )


@rule("SRC074", severity=Status.WARN, subject=Subject.RUN)
def text_compared_by_identity(record: Record) -> Iterator[Finding]:
    """Text is compared with `is`.

    Why it matters: two equal texts need not be one object: a value from the command line or a file takes the wrong
    branch.
    Found by: reading the source: `is` or `is not` with a text constant.
    Not an error: `is None`, `is True`.

    Wrong: `if args.optimizer is "sgd"`
    Right: `if args.optimizer == "sgd"`
    """
    project = project_of(record)
    for node in project.nodes(ast.Compare):
        sides = [node.left, *node.comparators]
        if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops) and any(
            text_of(side) is not None for side in sides
        ):
            yield Finding(
                measured=ast.unparse(node),
                expected="==",
                message="`is` asks whether it is the same object, not whether it is the same text",
                hint="use ==",
                location=project.at(node),
            )


OPTIMIZERS = re.compile(r"^torch\.optim\.(?!lr_scheduler|swa_utils)[A-Z]\w*$")


@rule("SRC076", severity=Status.WARN, subject=Subject.RUN)
def optimizer_rebuilt(record: Record) -> Iterator[Finding]:
    """The optimizer is built anew in every epoch.

    Why it matters: momentum and Adam's averages start from zero each time, and a schedule on the old one has no effect.
    Found by: reading the source: an optimizer of `torch.optim` made without a condition in the body of the loop over
    epochs, for a model that was made outside; and in the run: optimizers of the same parameters, made at the same
    place, each for one epoch.
    Not an error: cross-validation, restarts with a new model, or a change of phase under a condition.

    Wrong: `for epoch in range(epochs): optimizer = Adam(model.parameters())`
    Right: build it once, before the loop
    """
    project = torch_project(record)
    found = [*_rebuilt_in_source(project)] or [*_rebuilt_in_run(record)]
    yield from found


def _rebuilt_in_run(record: Record) -> Iterator[Finding]:
    makers: dict[tuple[str, str, str], list[int]] = {}
    for number, made in record.optimizers.items():
        group = made["groups"][0] if made["groups"] else {}
        if made.get("holds") and (group.get("momentum") or "betas" in group):
            makers.setdefault((made["loc"], made["cls"], made["holds"]), []).append(number)
    for (place, name, _), numbers in makers.items():
        epochs = [{s["iteration"] for s in record.steps_of.get(number, ())} for number in numbers]
        epochs = [passes for passes in epochs if passes]
        if len(epochs) >= 3 and all(len(passes) == 1 and None not in passes for passes in epochs):
            yield Finding(
                measured=f"{len(epochs)} optimizers of the same parameters in {len(epochs)} epochs",
                expected="one optimizer for the whole training",
                message=f"{name} forgets its state at the start of every epoch",
                hint="build it once, before the loop over epochs",
                location=place,
            )


def _rebuilt_in_source(project: Project) -> Iterator[Finding]:
    for call in project.calls:
        if not OPTIMIZERS.match(project.qualified(call.func)) or not call.args:
            continue
        statement = project.parent[call]
        loop = project.parent.get(statement)
        if not (isinstance(statement, ast.Assign) and isinstance(loop, ast.For) and _is_epoch_loop(loop)):
            continue
        stored = {n.id for n in ast.walk(loop) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if not stored & set(names_in(call.args[0])) and statement in loop.body:
            yield Finding(
                measured=ast.unparse(statement),
                expected="one optimizer for the whole training",
                message="the optimizer forgets its state at the start of every epoch",
                hint="move it in front of the loop",
                location=project.at(call),
            )


def _is_epoch_loop(loop: ast.For) -> bool:
    return bool(re.match(r"^(epoch|ep|epoch_idx|epoch_num|i_epoch|cur_epoch|e)$", first_name(loop.target)))


@rule("SRC077", severity=Status.FAIL, subject=Subject.RUN)
def plus_after_equals(record: Record) -> Iterator[Finding]:
    """`=+` is written for `+=`.

    Why it matters: the sum is overwritten at every step, so the loss or accuracy that is printed is that of the last
    batch.
    Found by: reading the source: an assignment whose value starts with a plus right after the equals sign.
    Not an error: `x = +1`, with a space between; `=-`, which may be a minus sign.

    Wrong: `total =+ loss.item()`
    Right: `total += loss.item()`
    """
    project = project_of(record)
    for node in project.nodes(ast.Assign):
        value = node.value
        if not isinstance(value, ast.UnaryOp) or not isinstance(value.op, ast.UAdd):
            continue
        line = project.file(node).text.splitlines()[value.lineno - 1]
        # The column counts bytes.
        before = line.encode()[: value.col_offset].decode(errors="ignore")
        after = line.encode()[value.col_offset :].decode(errors="ignore")
        if before.endswith(" =") and after.startswith("+ "):
            yield Finding(
                measured=ast.unparse(node).replace("= +", "=+ "),
                expected=f"{ast.unparse(node.targets[0])} += ...",
                message="this overwrites instead of adding up",
                hint="write +=",
                location=project.at(node),
            )


@rule("SRC078", severity=Status.WARN, subject=Subject.RUN)
def comparison_for_assignment(record: Record) -> Iterator[Finding]:
    """A comparison stands where an assignment is meant.

    Why it matters: `p.requires_grad == False` on a line of its own compares, throws the answer away, and freezes
    nothing.
    Found by: reading the source: a statement in a function, loop or branch that is nothing but `a.b == c` or `a[b] ==
    c`.
    Not an error: the last line of a notebook's cell.

    Wrong: `group["lr"] == 0.01`
    Right: `group["lr"] = 0.01`
    """
    project = project_of(record)
    for statement in project.nodes(ast.Expr):
        node = statement.value
        if not (isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq)):
            continue
        if isinstance(project.parent[statement], ast.Module) or not isinstance(
            node.left, ast.Attribute | ast.Subscript
        ):
            continue
        yield Finding(
            measured=ast.unparse(node),
            expected=ast.unparse(node).replace("==", "=", 1),
            message="the line compares and throws the answer away",
            hint="use one equals sign",
            location=project.at(node),
        )
