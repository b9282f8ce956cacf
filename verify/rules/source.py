"""SRC: mistakes that the text of the source shows by itself."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

from verify.report import Finding, Status, shortlist
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    argument,
    has_unpacking,
    is_self,
    keyword,
    literal,
    names_in,
    project_of,
    text_of,
    words,
)
from verify.trace.record import NotSeenError, Record


def _torch_project(record: Record) -> Project:
    project = project_of(record)
    if "torch" not in project.imported:
        raise NotSeenError("no file of the project imports torch")
    return project


# Names.


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
    project = _torch_project(record)
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


# Schedules and the library.

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
    Found by: reading the source: `.step(x)` of something that is surely a scheduler of `torch.optim.lr_scheduler`.
    Not an error: `ReduceLROnPlateau.step(loss)`, `CosineAnnealingWarmRestarts.step(epoch + i / n)`, timm's schedulers.

    Wrong: `scheduler.step(epoch - 1)`
    Right: `scheduler.step()` once an epoch, after `optimizer.step()`
    """
    project = _torch_project(record)
    for call in project.calls:
        if not (isinstance(call.func, ast.Attribute) and call.func.attr == "step"):
            continue
        given = argument(call, 0, "epoch")
        if given is not None and literal(given) is None and project.all_from(call.func.value, SCHEDULERS):
            yield Finding(
                measured=ast.unparse(call),
                expected=f"{ast.unparse(call.func)}()",
                message="the epoch that is passed overrides the schedule's own count",
                hint="call step() without an argument",
                location=project.at(call),
            )


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
    project = _torch_project(record)
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


# Listings of folders.

LISTINGS = words("os.listdir os.scandir glob.glob glob.iglob")
MAY_LIST = re.compile(r"listdir|scandir|glob|iterdir|\bset\(|\{[^{}]*\bfor\b")
LISTING_METHODS = words("iterdir rglob")
ORDERED = words("sorted set frozenset len any sum max min Counter natsorted")


@rule("SRC065", severity=Status.WARN, subject=Subject.RUN)
def unsorted_listing(record: Record) -> Iterator[Finding]:
    """The order of a folder's listing decides labels, pairs or splits.

    Why it matters: the operating system lists files in any order it likes: on another machine, or after a copy, class 3
    is another class, images get the masks of others, and test images are in the training split.
    Found by: reading the source: an unsorted `os.listdir`, `glob` or `iterdir`, or a `set` of names, whose positions
    become class indices, are paired with another listing, or are cut into splits.
    Not an error: a listing that is sorted, shuffled, counted, or only walked through.

    Wrong: `classes = os.listdir(root); label = classes.index(name)`
    Right: `classes = sorted(os.listdir(root))`
    """
    project = project_of(record)
    seen: set[str] = set()
    if not any(MAY_LIST.search(file.text) for file in project.files):
        return
    found = chain(_indexed(project), _zipped(project), _cut(project), _paired(project))
    for node, use in found:
        location = project.at(node)
        if location not in seen:
            seen.add(location)
            yield Finding(
                measured=ast.unparse(node)[:80],
                expected="sorted(...)",
                message=f"the order of the listing is not fixed, and {use}",
                hint="sort it",
                location=location,
            )


def _listing(project: Project, node: ast.expr | None, depth: int = 0) -> ast.expr | None:
    """The unsorted listing that a value takes its order from."""
    if node is None or depth > 5:
        return None
    match node:
        case ast.Call():
            return _listing_call(project, node, depth)
        case ast.ListComp() | ast.GeneratorExp():
            return _listing(project, node.generators[0].iter, depth + 1)
        case ast.Name():
            _, bindings = project.lookup(node)
            if len(bindings) == 1 and bindings[0].kind == "value" and not _reordered(project, node.id, node):
                return _listing(project, bindings[0].expr, depth + 1)
        case ast.Attribute() if is_self(node.value):
            around = project.class_of(node)
            values = [v for t, v in project.attribute_values.get(node.attr, []) if project.class_of(t) is around]
            if len(values) == 1 and not _reordered(project, node.attr, node):
                return _listing(project, values[0], depth + 1)
    return None


def _listing_call(project: Project, node: ast.Call, depth: int) -> ast.expr | None:
    name = project.qualified(node.func)
    if name in LISTINGS:
        return node
    if isinstance(node.func, ast.Attribute) and node.func.attr in LISTING_METHODS and not name:
        return node
    if (
        isinstance(node.func, ast.Attribute)
        and node.func.attr == "glob"
        and project.all_from(node.func.value, ["pathlib.Path"])
    ):
        return node
    builtin = project.builtin(node.func)
    if builtin in ("list", "tuple", "filter", "map", "enumerate", "iter") and node.args:
        inner = node.args[-1]
        if builtin in ("list", "tuple") and _is_set_of_names(project, inner):
            return node
        return _listing(project, inner, depth + 1)
    return None


def _is_set_of_names(project: Project, node: ast.expr) -> bool:
    """`set(d.name for d in ...)`: text is hashed differently in every process."""
    if not (isinstance(node, ast.Call) and project.builtin(node.func) == "set" and len(node.args) == 1):
        return isinstance(node, ast.SetComp) and _is_text(node.elt)
    inner = node.args[0]
    return isinstance(inner, ast.ListComp | ast.GeneratorExp) and _is_text(inner.elt)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("name", "stem", "suffix")
    if isinstance(node, ast.Subscript):
        return _is_text(node.value)
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("split", "basename")
    )


def _reordered(project: Project, name: str, node: ast.AST) -> bool:
    """Whether something of this name is sorted or shuffled anywhere in the file."""
    if project.reordered is None:
        project.reordered = _find_reordered(project)
    return (project.file(node).path, name) in project.reordered


def _find_reordered(project: Project) -> set[tuple[str, str]]:
    found = set()
    for call in project.calls:
        function = call.func
        last = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        changed: list[ast.expr] = []
        if isinstance(function, ast.Attribute) and last == "sort":
            changed = [function.value]
        elif last in ("shuffle", "sorted", "natsorted", "permutation", "sample", "train_test_split"):
            changed = call.args
        for value in changed:
            if isinstance(value, ast.Name | ast.Attribute):
                found.add((project.file(call).path, value.id if isinstance(value, ast.Name) else value.attr))
    return found


def _indexed(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """Positions in a listing that become numbers of classes."""
    for call in project.calls:
        if project.builtin(call.func) == "enumerate" and call.args:
            listing = _listing(project, call.args[0])
            if listing is not None and _becomes_label(project, call):
                yield listing, "positions in it become labels"
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "index" and len(call.args) == 1:
            listing = _listing(project, call.func.value)
            if listing is not None:
                yield listing, "positions in it become labels"
        elif project.builtin(call.func) == "zip" and len(call.args) == 2 and _is_range(project, call.args[1]):
            listing = _listing(project, call.args[0])
            if listing is not None:
                yield listing, "positions in it become labels"


def _is_range(project: Project, node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and project.builtin(node.func) == "range"


def _becomes_label(project: Project, call: ast.Call) -> bool:
    up = project.parent[call]
    if isinstance(up, ast.comprehension):
        around = project.parent[up]
        index = _first_name(up.target)
        return isinstance(around, ast.DictComp) and index in (*names_in(around.key), *names_in(around.value))
    if not isinstance(up, ast.For):
        return False
    index = _first_name(up.target)
    for node in (inner for statement in up.body for inner in ast.walk(statement)):
        stored = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
        if stored and isinstance(node, ast.Call) and any(_holds(arg, index) for arg in node.args):
            return True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and _holds(node.value, index):
            return not isinstance(node.targets[0].slice, ast.Name) or node.targets[0].slice.id != index
    return False


def _holds(node: ast.expr, name: str) -> bool:
    """Whether a value is the name itself, or a tuple with it."""
    if isinstance(node, ast.Tuple | ast.List):
        return any(_holds(element, name) for element in node.elts)
    return isinstance(node, ast.Name) and node.id == name


def _first_name(node: ast.expr) -> str:
    return (names_in(node) or [""])[0]


def _zipped(project: Project) -> Iterator[tuple[ast.AST, str]]:
    for call in project.calls:
        if project.builtin(call.func) == "zip" and len(call.args) > 1:
            listings = [_listing(project, arg) for arg in call.args]
            found = [listing for listing in listings if listing is not None]
            if len(found) > 1 or (found and any(_is_sorted_listing(project, arg) for arg in call.args)):
                yield found[0], "it is paired with another listing by position"


def _is_sorted_listing(project: Project, node: ast.expr) -> bool:
    origins = project.origins(node)
    return any(
        isinstance(o, ast.Call)
        and project.builtin(o.func) == "sorted"
        and o.args
        and _listing(project, o.args[0]) is not None
        for o in origins
    )


def _cut(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """`files[:n]` and `files[n:]`."""
    parts: dict[tuple[ast.AST, str], set[str]] = defaultdict(set)
    found: dict[tuple[ast.AST, str], ast.AST] = {}
    for node in project.nodes(ast.Subscript):
        if not isinstance(node.slice, ast.Slice) or node.slice.step is not None:
            continue
        if (node.slice.lower is None) == (node.slice.upper is None):
            continue
        listing = _listing(project, node.value)
        if listing is not None:
            key = (listing, ast.unparse(node.value))
            side = "head" if node.slice.lower is None else "tail"
            parts[key].add(f"{side} {ast.unparse(node.slice.upper or node.slice.lower or node.slice)}")
            found[key] = listing
    for cut, sides in parts.items():
        cuts = {side.partition(" ")[2] for side in sides}
        if len(sides) > len(cuts):
            yield found[cut], "it is cut into splits by position"


def _paired(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """Two listings of one data set, read at the same index."""
    for classes in project.classes.values():
        for node in classes:
            items = [m for m in node.body if isinstance(m, Function) and m.name == "__getitem__"]
            for method in items:
                yield from _paired_in(project, method)


def _paired_in(project: Project, method: Function) -> Iterator[tuple[ast.AST, str]]:
    read: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(method):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and is_self(node.value.value):
            listing = _listing(project, node.value)
            if listing is not None:
                read[ast.unparse(node.slice)].append(listing)
    for listings in read.values():
        if len({id(listing) for listing in listings}) > 1:
            yield listings[0], "it is paired with another listing by position"


# Images.


@rule("SRC066", severity=Status.WARN, subject=Subject.RUN)
def bgr_image(record: Record) -> Iterator[Finding]:
    """Images are read with OpenCV and never turned from BGR into RGB.

    Why it matters: a pretrained network, and the means and deviations of ImageNet, expect RGB; and the model that is
    served sees other colours than the one that was trained.
    Found by: reading the source: `cv2.imread` in the code of a data set, and no conversion anywhere in the project.
    Not an error: images read as grey, a conversion in any form, or code that only looks at masks.

    Wrong: `image = cv2.imread(path)`
    Right: `image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)`
    """
    project = _torch_project(record)
    if any(_converts_colour(text) for path, text in record.sources.items() if path.endswith(".py")):
        return
    for call in project.calls:
        if project.qualified(call.func) != "cv2.imread" or len(call.args) > 1 or call.keywords:
            continue
        around = project.class_of(call)
        if around is not None and any(isinstance(m, Function) and m.name == "__getitem__" for m in around.body):
            yield Finding(
                measured=ast.unparse(call),
                expected="RGB",
                message="OpenCV reads blue first, and nothing in the project converts to RGB",
                hint="cv2.cvtColor(image, cv2.COLOR_BGR2RGB)",
                location=project.at(call),
            )


def _converts_colour(text: str) -> bool:
    return bool(re.search(r"BGR2|cvtColor|::\s*-1|\[2,\s*1,\s*0\]|IMREAD_COLOR_RGB|BGR|bgr|\.flip\(|merge\(", text))


NORMALIZE = words("torchvision.transforms.Normalize torchvision.transforms.v2.Normalize")
TO_TENSOR = words(
    "torchvision.transforms.ToTensor torchvision.transforms.v2.ToTensor torchvision.transforms.ConvertImageDtype"
)
STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (deviation of means)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "CLIP": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}


@rule("SRC067", severity=Status.FAIL, subject=Subject.RUN)
def statistics_constants(record: Record) -> Iterator[Finding]:
    """The constants of `Normalize` are swapped, or meant for pixels from 0 to 255.

    Why it matters: the inputs are far from mean 0 and deviation 1; training is slow, or nearly constant inputs teach
    nothing.
    Found by: reading the source: the pair equals the published statistics of a data set in the wrong order, the names
    say so, or numbers above 2 follow a conversion to the range 0 to 1.
    Not an error: the statistics of another data set; those of CIFAR-10 for CIFAR-100 are a note.

    Wrong: `Normalize(STD, MEAN)`, `[ToTensor(), Normalize((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]`
    Right: `Normalize(MEAN, STD)`, `[ToTensor(), Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]`
    """
    project = _torch_project(record)
    for call in project.calls:
        if project.qualified(call.func) in NORMALIZE and not has_unpacking(call):
            mean, std = argument(call, 0, "mean"), argument(call, 1, "std")
            if mean is not None and std is not None:
                yield from _judge_statistics(project, call, mean, std)


def _judge_statistics(project: Project, call: ast.Call, mean: ast.expr, std: ast.expr) -> Iterator[Finding]:
    means, stds = _numbers(project, mean), _numbers(project, std)
    named = _says(mean, "std") and _says(std, "mean")
    for name, (true_mean, true_std) in STATISTICS.items():
        if _near(means, true_std) and _near(stds, true_mean):
            yield _statistics_finding(project, call, f"these are the statistics of {name}, mean and deviation swapped")
            return
    if named and not (means and stds):
        yield _statistics_finding(project, call, "by their names, mean and deviation are swapped")
    elif max([abs(m) for m in means] + stds, default=0) > 2 and _follows_to_tensor(project, call):
        yield _statistics_finding(project, call, "the constants are for 0 to 255, but ToTensor gives 0 to 1")
    elif _near(means, STATISTICS["CIFAR-10"][0]) and _only_cifar100(project):
        yield Finding(
            status=Status.NOTE,
            measured=ast.unparse(call),
            message="these are the statistics of CIFAR-10, the data are CIFAR-100; the difference is small",
            location=project.at(call),
        )


def _statistics_finding(project: Project, call: ast.Call, message: str) -> Finding:
    return Finding(
        measured=ast.unparse(call),
        expected="Normalize(mean, std) in the range of the pixels",
        message=message,
        hint="mean comes first, and both are in the units of the tensor",
        location=project.at(call),
    )


def _numbers(project: Project, node: ast.expr) -> list[float]:
    origins = project.origins(node)
    if len(origins) != 1 or origins[0] is None:
        return []
    value = literal(origins[0])
    values = list(value) if isinstance(value, tuple | list) else [value]
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return numbers if len(numbers) == len(values) else []


def _near(numbers: list[float], published: tuple[float, ...]) -> bool:
    return len(numbers) == len(published) and all(abs(a - b) < 0.004 for a, b in zip(numbers, published, strict=True))


def _says(node: ast.expr, what: str) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    other = "mean" if what == "std" else "std"
    return what in name.lower() and other not in name.lower()


def _follows_to_tensor(project: Project, call: ast.Call) -> bool:
    """Whether the list that holds a `Normalize` has `ToTensor` before it and nothing that may change the range."""
    around = project.parent[call]
    if not isinstance(around, ast.List | ast.Tuple):
        return False
    before = around.elts[: next(i for i, element in enumerate(around.elts) if element is call)]
    names = [project.qualified(element.func) if isinstance(element, ast.Call) else "" for element in before]
    return any(name in TO_TENSOR for name in names) and all(
        name.startswith("torchvision.transforms.") and not name.endswith("Lambda") for name in names
    )


def _only_cifar100(project: Project) -> bool:
    used = {project.qualified(call.func) for call in project.calls}
    return "torchvision.datasets.CIFAR100" in used and "torchvision.datasets.CIFAR10" not in used


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
    project = _torch_project(record)
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


PER_IMAGE = words(
    "RandomCrop RandomResizedCrop RandomHorizontalFlip RandomVerticalFlip RandomRotation RandomAffine "
    "RandomPerspective RandomErasing RandomGrayscale ColorJitter RandAugment TrivialAugmentWide AutoAugment AugMix "
    "GaussianBlur RandomInvert "
    "RandomZoomOut RandomIoUCrop RandomPhotometricDistort RandomPosterize RandomSolarize ScaleJitter ElasticTransform"
)
CONTAINERS = words("Compose RandomApply RandomChoice RandomOrder Sequential")


@rule("SRC069", severity=Status.WARN, subject=Subject.RUN)
def batch_wide_augmentation(record: Record) -> Iterator[Finding]:
    """A random transform is called on a whole batch.

    Why it matters: torchvision draws once a call, so every image of the batch gets the same crop and the same flip:
    most of the augmentation is lost.
    Found by: reading the source: a transform of torchvision called on what a loop over a loader gives.
    Not an error: MixUp and CutMix, which are made for batches; kornia; a transform called image by image.

    Wrong: `for x, y in loader: x = v2.RandomCrop(32, 4)(x)`
    Right: the transform in the data set, where it sees one image
    References: pytorch/vision issue 8484.
    """
    project = _torch_project(record)
    for call in project.calls:
        if len(call.args) != 1 or call.keywords or not isinstance(call.args[0], ast.Name):
            continue
        if not _is_batch(project, call.args[0]):
            continue
        names = _random_transforms(project, call.func)
        if names:
            yield Finding(
                measured=ast.unparse(call),
                expected="one draw for each image",
                message=f"{shortlist(names)} draws once for the whole batch: all its images get the same",
                hint="put it into the transform of the data set",
                location=project.at(call),
            )


def _random_transforms(project: Project, node: ast.expr, depth: int = 0) -> list[str]:
    """The random transforms that calling a value applies."""
    found: list[str] = []
    for origin in project.origins(node) if depth < 4 else []:
        if not isinstance(origin, ast.Call):
            continue
        library, _, name = project.qualified(origin.func).rpartition(".")
        if library not in ("torchvision.transforms", "torchvision.transforms.v2", "torch.nn"):
            continue
        if name in PER_IMAGE and library != "torch.nn":
            found.append(name)
        elif name in CONTAINERS and origin.args:
            parts = origin.args[0].elts if isinstance(origin.args[0], ast.List | ast.Tuple) else origin.args
            inner = [isinstance(part, ast.Call) and project.qualified(part.func).endswith("Lambda") for part in parts]
            if not any(inner):
                found += [item for part in parts for item in _random_transforms(project, part, depth + 1)]
    return found


def _is_batch(project: Project, node: ast.Name) -> bool:
    """Whether a name is what a loop over a loader gives, at this place."""
    for up in project.ancestors(node):
        if isinstance(up, ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp | ast.Lambda):
            return False
        if isinstance(up, Function):
            return False
        if isinstance(up, ast.For):
            inner = up.iter
            while isinstance(inner, ast.Call) and inner.args and _wraps_iterable(project, inner):
                inner = inner.args[0]
            made = project.all_from(inner, ["torch.utils.data.DataLoader"])
            if made and node.id in names_in(up.target):
                return True
            if node.id in names_in(up.target):
                return False
    return False


def _wraps_iterable(project: Project, call: ast.Call) -> bool:
    return project.builtin(call.func) == "enumerate" or project.qualified(call.func).startswith("tqdm")


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
    project = _torch_project(record)
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


# Slips of the loop.

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
    project = _torch_project(record)
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
    project = _torch_project(record)
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
    project = _torch_project(record)
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
    epochs, for a model that was made outside.
    Not an error: cross-validation, restarts with a new model, or a change of phase under a condition.

    Wrong: `for epoch in range(epochs): optimizer = Adam(model.parameters())`
    Right: build it once, before the loop
    """
    project = _torch_project(record)
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
    return bool(re.match(r"^(epoch|ep|epoch_idx|epoch_num|i_epoch|cur_epoch|e)$", _first_name(loop.target)))


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


OUT_OF_PLACE = words(
    "clamp clip masked_fill permute unsqueeze detach softmax log_softmax requires_grad clamp_min clamp_max"
)


@rule("SRC079", severity=Status.WARN, subject=Subject.RUN)
def result_thrown_away(record: Record) -> Iterator[Finding]:
    """A tensor operation's result is thrown away.

    Why it matters: `grad.clamp(-1, 1)` and `mask.masked_fill(...)` return a new tensor and leave the old one as it is;
    so does `images.to(device)`.
    Found by: reading the source: such a call as a statement of its own; `.to(device)` of what a loop over a loader
    gives.
    Not an error: `model.to(device)`, which moves the module itself, and operations that end in an underscore.

    Wrong: `p.grad.clamp(-1, 1)`, `images.to(device)`
    Right: `p.grad.clamp_(-1, 1)`, `images = images.to(device)`
    """
    project = _torch_project(record)
    for statement in project.nodes(ast.Expr):
        call = statement.value
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        tensor = call.func.attr in OUT_OF_PLACE and not _foreign(project, call)
        moved = call.func.attr in ("to", "cuda") and isinstance(call.func.value, ast.Name)
        if tensor or (moved and isinstance(call.func.value, ast.Name) and _is_batch(project, call.func.value)):
            yield Finding(
                measured=ast.unparse(call),
                expected=f"{ast.unparse(call.func.value)} = {ast.unparse(call)}",
                message=f"{call.func.attr} returns a new tensor, which is thrown away here",
                hint="keep the result, or use the form with an underscore",
                location=project.at(call),
            )


def _foreign(project: Project, call: ast.Call) -> bool:
    """Whether a method may belong to something else: a library's function, or a class of the project."""
    assert isinstance(call.func, ast.Attribute)
    return bool(project.qualified(call.func)) or bool(project.callees(call)) or keyword(call, "out") is not None
