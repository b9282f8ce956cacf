"""EVL, DAT: what must be kept apart: metrics of two stages, folds, the validation and the test split."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, arguments, is_self, names_in, torch_project
from verify.trace.record import Record

STEPS = ("training_step", "validation_step", "test_step")
TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)
VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|dev)(?![a-z])", re.IGNORECASE)
DATA = re.compile(r"(?<![a-z])(set|data|dataset|ds|subset|split|data_set)(?![a-z])", re.IGNORECASE)
FOLDS = re.compile(r"^sklearn\.model_selection\.\w*(KFold|ShuffleSplit|GroupOut)$")
FRESH = re.compile(r"reset|init|fresh|restore|rebuild|build|make|create|new_", re.IGNORECASE)


@rule("EVL633", severity=Status.WARN, subject=Subject.RUN)
def metric_of_two_stages(record: Record) -> Iterator[Finding]:
    """One metric object collects the batches of training and of validation.

    Why it matters: Lightning validates within the epoch of training, so what is reported as validation also counts the
    training batches before it, and chooses the checkpoint.
    Found by: reading the source: a torchmetrics object that a LightningModule updates in its training step and in its
    validation step, logs as an object or asks to compute, and never resets by itself.
    Not an error: one object for each stage; objects made by `clone`; a stage that only reads it; logging what a call
    returns, which is the value of the batch.

    Wrong: `self.acc(logits, y); self.log("val_acc", self.acc)` in both steps
    Right: `self.train_acc` and `self.val_acc`
    """
    project = torch_project(record)
    for definitions in project.classes.values():
        for node in definitions:
            yield from _shared_metric(project, node)


def _shared_metric(project: Project, node: ast.ClassDef) -> Iterator[Finding]:
    methods = {item.name: item for item in node.body if isinstance(item, Function)}
    if "training_step" not in methods or "validation_step" not in methods:
        return
    updated = {name: dict(_updated_metrics(project, methods[name])) for name in STEPS[:2]}
    for name, call in updated["validation_step"].items():
        resets = any(ast.unparse(one.value).endswith(f"self.{name}") for one in project.attributes.get("reset", []))
        if name in updated["training_step"] and not resets and _is_read_whole(project, node, name):
            yield Finding(
                measured=f"self.{name} in training_step and in validation_step",
                expected="a metric for each stage",
                message=f"self.{name} counts the training batches of the epoch in what is reported for validation",
                location=project.at(call),
                hint="make a second metric for validation",
            )


def _is_read_whole(project: Project, node: ast.ClassDef, name: str) -> bool:
    """Whether what was collected is used: the object itself is logged, or asked to compute.

    What a call returns is the value of its batch alone, which Lightning averages.
    """
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Attribute) or inner.attr != name or not is_self(inner.value):
            continue
        up = project.parent.get(inner)
        if isinstance(up, ast.Attribute) and up.attr == "compute":
            return True
        if isinstance(up, ast.Dict | ast.keyword) or (isinstance(up, ast.Call) and inner in up.args):
            return True
    return False


def _updated_metrics(project: Project, method: Function) -> Iterator[tuple[str, ast.Call]]:
    """`self.acc(...)`, `self.acc.update(...)` for what was made by a class of torchmetrics."""
    for call in ast.walk(method):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
            continue
        metric = call.func.value if call.func.attr == "update" else call.func
        if not isinstance(metric, ast.Attribute) or not is_self(metric.value):
            continue
        origins = project.origins(metric)
        if all(isinstance(o, ast.Call) and project.qualified(o.func).startswith("torchmetrics.") for o in origins):
            yield metric.attr, call


@rule("DAT243", severity=Status.WARN, subject=Subject.RUN)
def test_split_unused(record: Record) -> Iterator[Finding]:
    """What is called the test loader reads the validation split, and the test split is never read.

    Why it matters: the checkpoint was chosen by these very samples, so the test score is too good, and nobody has
    looked at the held-out data.
    Found by: reading the source: a DataLoader in `test_dataloader`, or that is called a test loader, over a data set
    that is called validation, while a data set that is called test is made and never used.
    Not an error: one held-out split for both, where no test data set is made.

    Wrong: `def test_dataloader(self): return DataLoader(self.val_set)`
    Right: `def test_dataloader(self): return DataLoader(self.test_set)`
    """
    project = torch_project(record)
    for call in project.calls:
        given = call.args[0] if call.args else None
        if project.qualified(call.func) != "torch.utils.data.DataLoader" or given is None:
            continue
        if not TEST.search(_words(_role(project, call))) or not _is_called(given, VALIDATION):
            continue
        unused = next(_unused_test_sets(project), None)
        if unused is not None:
            yield Finding(
                measured=f"{_role(project, call)}: {ast.unparse(call)[:70]}",
                expected=ast.unparse(unused),
                message=f"the test loader reads {ast.unparse(given)}, and {ast.unparse(unused)} is never read",
                location=project.at(call),
                hint=f"DataLoader({ast.unparse(unused)}, ...)",
            )
            return


def _words(name: str) -> str:
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ")


def _is_called(node: ast.expr, pattern: re.Pattern[str]) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    other = TEST if pattern is VALIDATION else VALIDATION
    return bool(pattern.search(_words(name))) and not other.search(_words(name))


def _role(project: Project, call: ast.Call) -> str:
    """The name that a loader gets: of a variable or an attribute, else of the function that returns it."""
    up = project.parent[call]
    if isinstance(up, ast.Assign) and isinstance(up.targets[0], ast.Name | ast.Attribute):
        return ast.unparse(up.targets[0]).rpartition(".")[2]
    function = project.function(call)
    return function.name if function is not None and isinstance(up, ast.Return) else ""


def _unused_test_sets(project: Project) -> Iterator[ast.expr]:
    """Names and attributes of test data that are assigned and read nowhere."""
    read = {one.id for one in project.nodes(ast.Name) if isinstance(one.ctx, ast.Load)} | set(project.attributes)
    for statement in project.nodes(ast.Assign):
        for target in statement.targets:
            for node in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                if _is_called(node, TEST) and DATA.search(_words(name)) and name not in read:
                    yield node


@rule("EVL635", severity=Status.WARN, subject=Subject.RUN)
def model_of_all_folds(record: Record) -> Iterator[Finding]:
    """One model goes through all folds of a cross validation.

    Why it matters: from the second fold on, the model was trained on the rows that it is now validated on; the scores
    of all folds but the first are too good.
    Found by: reading the source: a loop over the splits of scikit-learn that makes an optimizer of a model from outside
    of the loop, and in it nothing that makes, copies, loads or initialises a model before.
    Not an error: a model that is made in the loop; weights of the start that are loaded again; a single split.

    Wrong: `model = Net()` and `for train, val in folds.split(x): optimizer = Adam(model.parameters()); ...`
    Right: `for train, val in folds.split(x): model = Net(); ...`
    """
    project = torch_project(record)
    for loop in project.nodes(ast.For):
        if not _is_over_folds(project, loop) or any(isinstance(one, ast.Break) for one in ast.walk(loop)):
            continue
        for call, model in _trained_in(project, loop):
            if _comes_from_outside(project, model, loop) and not _is_renewed(loop, call, model.id):
                yield Finding(
                    measured=f"{model.id} is made once, {ast.unparse(call)[:60]} in each fold",
                    expected="a new model in each fold",
                    message=f"{model.id} goes on from fold to fold, and has been trained on what it is validated on",
                    location=project.at(call),
                    hint=f"make {model.id} in the loop",
                )
                return


def _is_over_folds(project: Project, loop: ast.For) -> bool:
    for call in ast.walk(loop.iter):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "split":
            origins = project.origins(call.func.value)
            if all(isinstance(o, ast.Call) and FOLDS.match(project.qualified(o.func)) for o in origins):
                return True
    return False


def _trained_in(project: Project, loop: ast.For) -> Iterator[tuple[ast.Call, ast.Name]]:
    """Where an optimizer is made in each fold, here or in a function that is called here, and of which model."""
    for node in ast.walk(loop):
        if not isinstance(node, ast.Call):
            continue
        model = _model_of(project, node)
        if model is not None:
            yield node, model
        for function, _ in project.callees(node) if not isinstance(node.func, ast.Attribute) else ():
            yield from ((node, given) for given in _trained_by(project, node, function))


def _model_of(project: Project, call: ast.Call) -> ast.Name | None:
    """`model` of `Adam(model.parameters())`, also through the name of a list of groups."""
    if not project.qualified(call.func).startswith("torch.optim.") or not call.args:
        return None
    origins = project.origins(call.args[0])
    for node in (part for origin in origins if origin is not None for part in ast.walk(origin)):
        if isinstance(node, ast.Attribute) and node.attr in ("parameters", "named_parameters"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            return root if isinstance(root, ast.Name) and root.id != "self" else None
    return None


def _trained_by(project: Project, call: ast.Call, function: Function) -> Iterator[ast.Name]:
    """The names that a call gives to a function for parameters of which it makes an optimizer."""
    for arg, value in arguments(call, function, project):
        if not isinstance(value, ast.Name):
            continue
        for node in ast.walk(function):
            model = _model_of(project, node) if isinstance(node, ast.Call) else None
            is_given = model is not None and [one.node for one in project.lookup(model)[1]] == [arg]
            if is_given and not _is_renewed(function, node, arg.arg):
                yield value


def _comes_from_outside(project: Project, model: ast.Name, loop: ast.For) -> bool:
    scope, bindings = project.lookup(model)
    inside = set(map(id, ast.walk(loop)))
    made = [one for one in bindings if one.kind == "value"]
    return (
        scope is project.scope(loop)
        and bool(made)
        and len(made) == len(bindings)
        and not any(id(one.node) in inside for one in bindings)
    )


def _is_renewed(around: ast.AST, optimizer: ast.AST, model: str) -> bool:
    """Whether, above the optimizer, something is done to the model that may bring it back to its start."""
    for node in ast.walk(around):
        if not isinstance(node, ast.Call) or node.lineno >= optimizer.lineno or model not in names_in(node):  # type: ignore[attr-defined]
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("load_state_dict", "apply") or FRESH.search(name):
            return True
    return False


@rule("DAT244", severity=Status.WARN, subject=Subject.RUN)
def scaled_by_each_stage(record: Record) -> Iterator[Finding]:
    """The data are scaled again by each stage that sets them up.

    Why it matters: Lightning calls `setup` for fit and again for test: the second time it scales what is scaled
    already, and the test data are not what the network was trained on.
    Found by: reading the source: `setup` of a LightningDataModule replaces an attribute by arithmetic on itself,
    without loading it anew and without asking whether that was done, and the script runs fit and another stage.
    Not an error: arithmetic on a local name; `if stage == "fit"`; a flag.

    Wrong: `self.x = (self.x - self.mean) / self.std` in `setup`
    Right: `x = (self.x - self.mean) / self.std` in `setup`
    """
    project = torch_project(record)
    called = {call.func.attr for call in project.calls if isinstance(call.func, ast.Attribute)}
    if "fit" not in called or not called & {"test", "validate", "predict"}:
        return
    for method in project.methods.get("setup", []):
        around = project.class_of(method)
        if around is None or not any(ast.unparse(base).endswith("DataModule") for base in around.bases):
            continue
        for statement in ast.walk(method):
            target = _scaled_itself(statement)
            if target and not _is_conditional(project, statement, method) and not _is_loaded(method, target, statement):
                yield Finding(
                    measured=ast.unparse(statement)[:100],
                    expected="a local name, or a scaling that is done once",
                    message=f"setup runs for each stage, and scales {target} again in each",
                    location=project.at(statement),
                    hint="keep the raw data, and put the scaled ones under another name",
                )
                return


def _scaled_itself(statement: ast.AST) -> str:
    """`self.x` of `self.x = (self.x - a) / b` and of `self.x /= b`."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Sub | ast.Div | ast.Mult):
        target: ast.expr = statement.target
    elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.BinOp):
        target = statement.targets[0]
        parts = [ast.unparse(part) for part in ast.walk(statement.value) if isinstance(part, ast.Attribute)]
        scales = isinstance(statement.value.op, ast.Sub | ast.Div | ast.Mult)
        if not scales or ast.unparse(target) not in parts:
            return ""
    else:
        return ""
    return ast.unparse(target) if isinstance(target, ast.Attribute) and is_self(target.value) else ""


def _is_conditional(project: Project, statement: ast.AST, method: Function) -> bool:
    """Whether a condition, or a return above, may keep the statement from running twice."""
    for up in project.ancestors(statement):
        if up is method:
            break
        if isinstance(up, ast.If | ast.For | ast.While):
            return True
    returns = [one for one in ast.walk(method) if isinstance(one, ast.Return)]
    return any(one.lineno < statement.lineno for one in returns)  # type: ignore[attr-defined]


def _is_loaded(method: Function, target: str, statement: ast.AST) -> bool:
    """Whether the method always gives the attribute a new value before, or a call above may do so."""
    for one in method.body:
        if one is statement:
            return False
        if isinstance(one, ast.Assign) and any(target in ast.unparse(part) for part in one.targets):
            return True
        is_call = isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)
        if is_call and ast.unparse(one).startswith("self."):  # it may load the data
            return True
    return False
