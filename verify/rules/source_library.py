"""SRC: names that are misspelt, and calls of the library that are old or leave out what matters."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from verify.report import Finding, Status, shortlist
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    argument,
    has_unpacking,
    is_self,
    literal,
    names_in,
    torch_project,
    words,
)
from verify.trace.record import Record


def _close_to(name: str, wanted: str) -> bool:
    """Whether a name is a slip of another one: at most two letters more, fewer or different."""
    if name == wanted or abs(len(name) - len(wanted)) > 2:
        return False
    row = list(range(len(wanted) + 1))
    for i, left in enumerate(name, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(wanted, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1] <= 2


MODULE_ITERATORS = words("children modules named_children named_modules")


@rule("SRC061", severity=Status.FAIL, subject=Subject.RUN)
def require_grad_typo(record: Record) -> Iterator[Finding]:
    """Freezing goes to an attribute that does not exist.

    Why it matters: Python creates the misspelt attribute without a word, and the parameters train on.
    Found by: reading the source: an assignment to a name that is one or two letters off `requires_grad` and that
    nothing reads, or to `requires_grad` of a whole module, where it means nothing.
    Not an error: `parameter.requires_grad = False`; a class that has an attribute of the other name and reads it.

    Wrong: `p.require_grad = False`, `model.backbone.requires_grad = False`
    Right: `p.requires_grad = False`, `model.backbone.requires_grad_(False)`
    References: TorchFix TOR002.
    """
    project = torch_project(record)
    for name, assigned in project.attribute_values.items():
        misspelt = _close_to(name.lower(), "requires_grad") or name.lower() in ("require_gradient", "requires_gradient")
        if name != "requires_grad" and misspelt and name not in project.attributes:
            for target, _ in assigned:
                yield Finding(
                    measured=ast.unparse(target),
                    expected="requires_grad",
                    message=f"{name} is no attribute of a tensor; the assignment freezes nothing",
                    hint="write requires_grad",
                    location=project.at(target),
                )
    for target, _ in project.attribute_values.get("requires_grad", []):
        if _is_module_value(project, target.value):
            yield Finding(
                measured=ast.unparse(target),
                expected="requires_grad_(False) on the module",
                message="requires_grad of a module means nothing; its parameters train on",
                hint=f"{ast.unparse(target.value)}.requires_grad_(False)",
                location=project.at(target),
            )


def _is_module_value(project: Project, node: ast.expr) -> bool:
    """Whether an expression is surely an `nn.Module`."""
    if isinstance(node, ast.Name) and _loops_over_modules(project, node):
        return True
    origins = [origin for origin in project.origins(node) if not _keeps_module(origin)]
    if origins and all(isinstance(origin, ast.Call) and _makes_module(project, origin) for origin in origins):
        return True
    if not isinstance(node, ast.Attribute) or is_self(node.value):
        return False
    # One step down: `model.fc`, where the class of `model` says what `fc` is.
    makers = [origin for origin in project.origins(node.value) if isinstance(origin, ast.Call)]
    if not makers or len(makers) != len(project.origins(node.value)):
        return False
    return all(_has_submodule(project, maker, node.attr) for maker in makers)


def _keeps_module(node: ast.expr | None) -> bool:
    """`model = model.to(device)`: the model again."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in ("to", "cuda", "cpu", "train", "eval", "half", "float")


def _makes_module(project: Project, call: ast.Call) -> bool:
    name = project.qualified(call.func)
    if name.startswith("torch.nn.") and name.rpartition(".")[2][:1].isupper() and "Parameter" not in name:
        return True
    if re.match(r"torchvision\.models\.[a-z]\w+$|timm\.create_model$", name):
        return not name.startswith(("torchvision.models.get_", "torchvision.models.list_"))
    return any(isinstance(item, ast.ClassDef) and project.is_module(item) for item in project.definitions(call.func))


def _has_submodule(project: Project, call: ast.Call, name: str) -> bool:
    if project.qualified(call.func).startswith("torchvision.models."):
        return name in words("fc classifier features layer1 layer2 layer3 layer4 conv1 bn1 avgpool encoder heads")
    classes = [item for item in project.definitions(call.func) if isinstance(item, ast.ClassDef)]
    values = [
        v for t, v in project.attribute_values.get(name, []) if is_self(t.value) and project.class_of(t) in classes
    ]
    return bool(values) and all(isinstance(value, ast.Call) and _makes_module(project, value) for value in values)


def _loops_over_modules(project: Project, node: ast.Name) -> bool:
    _, bindings = project.lookup(node)
    loops = [b.node for b in bindings if b.kind == "loop" and isinstance(b.node, ast.For | ast.comprehension)]
    around = [up for up in project.ancestors(node) if up in loops]
    if not around:
        return False
    loop = around[0]
    if not isinstance(loop, ast.For) or not isinstance(loop.iter, ast.Call) or loop.iter.args:
        return False
    function = loop.iter.func
    if not isinstance(function, ast.Attribute) or function.attr not in MODULE_ITERATORS:
        return False
    names = names_in(loop.target)
    return bool(names) and names[-1] == node.id


SCHEDULERS = frozenset(
    f"torch.optim.lr_scheduler.{name}"
    for name in words(
        "StepLR MultiStepLR ExponentialLR CosineAnnealingLR LambdaLR MultiplicativeLR LinearLR ConstantLR PolynomialLR "
        "OneCycleLR CyclicLR SequentialLR ChainedScheduler"
    )
)


@rule("SRC063", severity=Status.WARN, subject=Subject.RUN)
def scheduler_step_epoch(record: Record) -> Iterator[Finding]:
    """A schedule is stepped with the number of the epoch.

    Why it matters: the number overrides the schedule's own count: `step(epoch - 1)` repeats the first learning rates
    and never reaches the last, and what is restored from a checkpoint is thrown away. PyTorch deprecates the argument.
    Found by: reading the source: `.step(x)` of something that is surely a scheduler of `torch.optim.lr_scheduler`; and
    calls with a number in the run.
    Not an error: `ReduceLROnPlateau.step(loss)`, `CosineAnnealingWarmRestarts.step(epoch + i / n)`, timm's schedulers.

    Wrong: `scheduler.step(epoch - 1)`
    Right: `scheduler.step()` once an epoch, after `optimizer.step()`
    """
    project = torch_project(record)
    calls = [c for c in project.calls if isinstance(c.func, ast.Attribute) and c.func.attr == "step"]
    called = _called_with_a_number(record)
    for call in calls:
        given = argument(call, 0, "epoch")
        if given is None or literal(given) is not None:
            continue
        if project.at(call) in called or project.all_from(call.func.value, SCHEDULERS):  # type: ignore[attr-defined]
            yield Finding(
                measured=ast.unparse(call),
                expected=f"{ast.unparse(call.func)}()",
                message="the epoch that is passed overrides the schedule's own count",
                hint="call step() without an argument",
                location=project.at(call),
            )


def _called_with_a_number(record: Record) -> set[str]:
    """Where the run stepped a scheduler of torch's with the number of an epoch."""
    known = {name.rpartition(".")[2] for name in SCHEDULERS}
    kinds = {e["id"]: e["cls"] for e in record.of("scheduler")}
    return {e["loc"] for e in record.of("sched") if e["given"] and kinds.get(e["id"]) in known}


GONE = {
    "torch._six": "collections.abc, math.inf",
    "torch.gels": "torch.linalg.lstsq",
    "torch.lstsq": "torch.linalg.lstsq",
    "torch.rfft": "torch.fft.rfft",
    "torch.irfft": "torch.fft.irfft",
    "torch.ifft": "torch.fft.ifft",
    "torch.btrifact": "torch.linalg.lu_factor",
    "torch.gesv": "torch.linalg.solve",
    "torch.solve": "torch.linalg.solve",
    "torch.symeig": "torch.linalg.eigh",
    "torch.eig": "torch.linalg.eig",
    "torch.qr": "torch.linalg.qr",
    "torch.cholesky": "torch.linalg.cholesky",
    "torch.matrix_rank": "torch.linalg.matrix_rank",
    "torch.set_deterministic": "torch.use_deterministic_algorithms",
    "torch.is_deterministic": "torch.are_deterministic_algorithms_enabled",
    "torch.utils.ffi": "torch.utils.cpp_extension",
    "torch.onnx._export": "torch.onnx.export",
    "torch.utils.data.dataloader._DataLoaderIter": "iter(loader)",
    "torchvision.models.utils": "torch.hub",
    "torchvision.transforms.Scale": "torchvision.transforms.Resize",
    "torchvision.transforms.RandomSizedCrop": "torchvision.transforms.RandomResizedCrop",
    "torchvision.transforms.functional_tensor": "torchvision.transforms.functional",
} | {
    f"torchvision.models.{name}.model_urls": f"torchvision.models.{name} weights enums"
    for name in words("resnet vgg densenet alexnet squeezenet inception googlenet mobilenet")
}
GONE_KEYWORDS = {
    "torchvision.transforms.RandomRotation": {"resample": "interpolation"},
    "torchvision.transforms.RandomAffine": {"resample": "interpolation", "fillcolor": "fill"},
    "torchvision.utils.make_grid": {"range": "value_range"},
    "torchvision.utils.save_image": {"range": "value_range"},
    "torch.autograd.Variable": {"volatile": "torch.no_grad()"},
} | {name: {"verbose": "get_last_lr()"} for name in [*SCHEDULERS, "torch.optim.lr_scheduler.ReduceLROnPlateau"]}
OLD = {
    "torch.nn.functional.upsample": "torch.nn.functional.interpolate",
    "torch.nn.utils.clip_grad_norm": "torch.nn.utils.clip_grad_norm_",
    "torch.nn.utils.weight_norm": "torch.nn.utils.parametrizations.weight_norm",
    "torch.cuda.amp.autocast": "torch.amp.autocast('cuda')",
    "torch.cuda.amp.GradScaler": "torch.amp.GradScaler('cuda')",
    "torch.range": "torch.arange",
    "torch.set_default_tensor_type": "torch.set_default_dtype",
    "torch.chain_matmul": "torch.linalg.multi_dot",
    "torch.triangular_solve": "torch.linalg.solve_triangular",
    "torch.lu": "torch.linalg.lu_factor",
    "torch.backends.cuda.sdp_kernel": "torch.nn.attention.sdpa_kernel",
} | {
    f"torch.nn.init.{name}": f"torch.nn.init.{name}_"
    for name in words(
        "uniform normal constant xavier_uniform xavier_normal kaiming_uniform kaiming_normal orthogonal eye"
    )
}


@rule("SRC064", severity=Status.WARN, subject=Subject.RUN)
def stale_api(record: Record) -> Iterator[Finding]:
    """Code calls what PyTorch or torchvision no longer has, or is about to drop.

    Why it matters: a branch that this run did not take stops with an error, or an argument no longer does anything.
    Found by: reading the source; each name was tried with torch 2.14 and torchvision 0.29.
    Not an error: names behind `try`/`except` or a test of the version. What still works and only warns is a note.

    Wrong: `StepLR(optimizer, 10, verbose=True)`, `from torch._six import inf`
    Right: `StepLR(optimizer, 10)` and `scheduler.get_last_lr()`, `from math import inf`
    """
    project = torch_project(record)
    gone: dict[str, list[tuple[int, str]]] = defaultdict(list)
    old: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for node, name, instead in _stale(project, GONE):
        gone[project.file(node).path].append((getattr(node, "lineno", 1), f"{name} -> {instead}"))
    for call, name, instead in _stale_keywords(project):
        gone[project.file(call).path].append((call.lineno, f"{name}= -> {instead}"))
    for node, name, instead in _stale(project, OLD):
        old[project.file(node).path].append((getattr(node, "lineno", 1), f"{name} -> {instead}"))
    for path, uses in gone.items():
        yield _stale_finding(path, uses, None, "no longer exists or no longer has an effect")
    for path, uses in old.items():
        yield _stale_finding(path, uses, Status.NOTE, "still works, with a warning that it will go")


def _stale_finding(path: str, uses: list[tuple[int, str]], status: Status | None, what: str) -> Finding:
    names = [*dict.fromkeys(name for _, name in sorted(uses))]
    return Finding(
        status=status,
        measured=shortlist(names, 5),
        expected="a name that torch still has",
        message=f"{shortlist([name.partition(' ->')[0] for name in names])} {what}",
        hint=f"use {names[0].partition('-> ')[2]}",
        location=f"{path}:{min(line for line, _ in uses)}",
    )


def _stale(project: Project, table: dict[str, str]) -> Iterator[tuple[ast.AST, str, str]]:
    for node in project.nodes(ast.Attribute, ast.Name):
        if isinstance(getattr(node, "ctx", None), ast.Load):
            name = project.qualified(node)
            if name in table and not _guarded(project, node):
                yield node, name, table[name]
    for source in project.nodes(ast.ImportFrom):
        if not source.level and source.module in table and not _guarded(project, source):
            yield source, source.module, table[source.module]


def _stale_keywords(project: Project) -> Iterator[tuple[ast.Call, str, str]]:
    for call in project.calls:
        removed = GONE_KEYWORDS.get(project.qualified(call.func), {})
        for item in call.keywords:
            if item.arg in removed and not _guarded(project, call) and literal(item.value) is not False:
                yield call, str(item.arg), removed[str(item.arg)]


def _guarded(project: Project, node: ast.AST) -> bool:
    """Whether code asks first, or is ready for the name to be missing."""
    for up in project.ancestors(node):
        if isinstance(up, ast.Try):
            return True
        if isinstance(up, ast.If | ast.IfExp) and re.search(r"hasattr|version|getattr|TORCH_", ast.unparse(up.test)):
            return True
    return False


SOFTMAXES = words("torch.nn.functional.softmax torch.nn.functional.log_softmax torch.nn.functional.softmin")
SOFTMAX_MODULES = words("torch.nn.Softmax torch.nn.LogSoftmax torch.nn.Softmin")


@rule("SRC068", severity=Status.WARN, subject=Subject.RUN)
def softmax_without_dim(record: Record) -> Iterator[Finding]:
    """A softmax does not say over which dimension.

    Why it matters: PyTorch then guesses: dimension 0, which is the batch, for tensors of one or three dimensions, else
    1.
    Found by: reading the source: `F.softmax(x)` or `nn.Softmax()` without `dim`.
    Not an error: a `dim` in any form.

    Wrong: `F.softmax(scores)`
    Right: `F.softmax(scores, dim=-1)`
    """
    project = torch_project(record)
    for call in project.calls:
        name = project.qualified(call.func)
        position = 1 if name in SOFTMAXES else 0 if name in SOFTMAX_MODULES else None
        if position is None or has_unpacking(call) or argument(call, position, "dim") is not None:
            continue
        yield Finding(
            measured=ast.unparse(call),
            expected="dim=...",
            message="without dim the dimension is guessed: over the batch for a tensor of three dimensions",
            hint="add dim=-1, or the dimension that is meant",
            location=project.at(call),
        )


DROPOUTS = words("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout")


@rule("SRC070", severity=Status.WARN, subject=Subject.RUN)
def dropout_always_on(record: Record) -> Iterator[Finding]:
    """A functional dropout does not follow the mode of the model.

    Why it matters: `F.dropout` is on unless it is told otherwise, and so is `dropout_p` of attention: evaluation and
    serving stay random, and accuracy is lower than it could be.
    Found by: reading the source: `F.dropout(x, p)` without `training`, or `scaled_dot_product_attention` with a
    constant `dropout_p`, in a method of an `nn.Module`.
    Not an error: `training=self.training`, code under `if self.training`, or a probability of 0.

    Wrong: `F.dropout(x, 0.1)`
    Right: `F.dropout(x, 0.1, training=self.training)`
    """
    project = torch_project(record)
    for call in project.calls:
        library, _, name = project.qualified(call.func).rpartition(".")
        if library != "torch.nn.functional" or has_unpacking(call) or not _in_module(project, call):
            continue
        always = _ignores_mode(call) if name in DROPOUTS else name == "scaled_dot_product_attention" and _drops(call)
        if always and not _under_training(project, call):
            yield Finding(
                measured=ast.unparse(call),
                expected="training=self.training" if name in DROPOUTS else "dropout_p=p if self.training else 0.0",
                message="this dropout stays on in eval mode",
                hint="use nn.Dropout, or hand it self.training",
                location=project.at(call),
            )


def _ignores_mode(call: ast.Call) -> bool:
    mode, probability = argument(call, 2, "training"), argument(call, 1, "p")
    if probability is not None and literal(probability) == 0:
        return False
    return mode is None or literal(mode) is True


def _drops(call: ast.Call) -> bool:
    probability = literal(argument(call, 4, "dropout_p"))
    return isinstance(probability, float) and probability > 0


def _in_module(project: Project, node: ast.AST) -> bool:
    around = project.class_of(node)
    return around is not None and project.is_module(around)


def _under_training(project: Project, call: ast.Call) -> bool:
    """Whether the call, or a test around it, asks for the mode."""
    if any("training" in ast.unparse(argument) for argument in [*call.args, *(item.value for item in call.keywords)]):
        return literal(argument(call, 2, "training")) is not True
    for up in project.ancestors(call):
        if isinstance(up, ast.If | ast.IfExp) and "training" in ast.unparse(up.test):
            return True
        if isinstance(up, Function):
            return any(
                isinstance(n, ast.If) and "training" in ast.unparse(n.test) and isinstance(n.body[-1], ast.Return)
                for n in up.body
            )
    return False
