"""CFG: options and configuration files, and whether they do what they say."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from verify.options import flow_of
from verify.options.declared import dest_of, flag_of
from verify.options.flow import Flow
from verify.options.model import Key, Options, Value
from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    is_self,
    keyword,
    literal,
    project_of,
    text_of,
    words,
)
from verify.trace.record import NotSeenError, Record

# What names and describes a run; nobody expects it to change the training.
METADATA = words(
    "name description desc notes note comment comments author authors version tags tag title experiment "
    "experiment_name exp_name run_name project project_name license url date help id type"
)
HYPERPARAMETER = re.compile(
    r"^(LR|LEARNING_RATE|BASE_LR|MIN_LR|WEIGHT_DECAY|EPOCHS|NUM_EPOCHS|N_EPOCHS|MAX_EPOCHS|BATCH_SIZE|MOMENTUM|DROPOUT"
    r"|DROPOUT_RATE|PATIENCE|WARMUP_EPOCHS|WARMUP_STEPS|LABEL_SMOOTHING|GRAD_CLIP|CLIP_GRAD|T_MAX|GAMMA|STEP_SIZE"
    r"|MIXUP_ALPHA|CUTMIX_ALPHA|SEED|NUM_WORKERS|EMA_DECAY)$"
)


@rule("CFG501", severity=Status.FAIL, subject=Subject.RUN)
def tilde_on_bool(record: Record) -> Iterator[Finding]:
    """A boolean is negated with `~`.

    Why it matters: `~True` is -2 and `~False` is -1, both true: the option does nothing, whatever it is set to.
    Found by: reading the source: `~` applied to an option with `store_true` or `store_false`, to a boolean of the
    configuration, or to a name that only ever holds True, False or the result of `not`.
    Not an error: `~mask` of a boolean tensor or array, and `~` of an integer.

    Wrong: `use_amp = ~args.no_amp`
    Right: `use_amp = not args.no_amp`
    """
    flow = flow_of(record)
    project = flow.project
    for node in project.nodes(ast.UnaryOp):
        if isinstance(node.op, ast.Invert) and _is_bool(flow, node.operand):
            yield Finding(
                measured=ast.unparse(node),
                expected=f"not {ast.unparse(node.operand)}",
                message="~ of a Python boolean is -1 or -2, which are both true, so this is never off",
                hint=f"write `not {ast.unparse(node.operand)}`",
                location=project.at(node),
            )


BOOL_CALLS = words("bool isinstance hasattr callable any all issubclass")
BOOL_FUNCTIONS = words("torch.cuda.is_available os.path.exists os.path.isfile os.path.isdir torch.is_tensor")


def _is_bool(flow: Flow, node: ast.expr) -> bool:
    project = flow.project
    if flow.leaves.get(node):
        return all(_is_bool_option(flow, value) for value in flow.leaves[node])
    match node:
        case ast.Constant(value=bool()) | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Compare(ops=[ast.Is() | ast.IsNot() | ast.In() | ast.NotIn()]):
            return True
        case ast.BoolOp(values=values):
            return all(_is_bool(flow, value) for value in values)
        case ast.Call():
            return project.builtin(node.func) in BOOL_CALLS or project.qualified(node.func) in BOOL_FUNCTIONS
        case ast.Name():
            _, bindings = project.lookup(node)
            return bool(bindings) and all(
                _binds_bool(flow, binding.kind, binding.node, binding.expr) for binding in bindings
            )
        case ast.Attribute() if is_self(node.value):
            around = project.class_of(node)
            values = [v for t, v in project.attribute_values.get(node.attr, []) if project.class_of(t) is around]
            return bool(values) and all(value is not node and _is_bool(flow, value) for value in values)
    return False


def _binds_bool(flow: Flow, kind: str, node: ast.AST, value: ast.expr | None) -> bool:
    if kind == "value" and value is not None:
        return not any(isinstance(n, ast.Invert) for n in ast.walk(value)) and _is_bool(flow, value)
    if kind != "param" or not isinstance(node, ast.arg):
        return False
    if node.annotation is not None:
        return isinstance(node.annotation, ast.Name) and node.annotation.id == "bool"
    function = flow.project.parent[flow.project.parent[node]]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = dict(zip([arg.arg for arg in reversed(positional)], reversed(function.args.defaults), strict=False))
    defaults |= {a.arg: d for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if d}
    return isinstance(literal(defaults.get(node.arg)), bool)


def _is_bool_option(flow: Flow, value: Value) -> bool:
    options, path = value
    key = options.at(path[:-1])[path[-1]]
    if options.kind != "argparse":
        return isinstance(key.value, bool)
    calls = [call for call in flow.project.calls if dest_of(call) == path[-1]]
    return bool(calls) and all(
        text_of(keyword(call, "action")) in ("store_true", "store_false") or _names(keyword(call, "type"), "bool")
        for call in calls
    )


def _names(node: ast.expr | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


@rule("CFG502", severity=Status.FAIL, subject=Subject.RUN)
def option_never_read(record: Record) -> Iterator[Finding]:
    """An option or a configuration key changes nothing: no code reads it.

    Why it matters: whoever sets it believes that weight decay, mixup or the schedule is on.
    Found by: following what the parser, the file or Hydra gave through assignments, calls and attributes of the whole
    project; a key counts as unread only when every place that the options reach is known.
    Not an error: options that reach a library, are unpacked with `**` or looked up under a computed name (then nothing
    is said about them); names and descriptions of a run; options that say in their help that they are without effect.

    Wrong: `weight_decay: 0.0001` in config.yaml and `Adam(model.parameters(), lr=config["lr"])`
    Right: `Adam(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])`
    """
    flow = flow_of(record)
    known = [options for options in flow.options if flow.seen(options)]
    constants = [*_dead_constants(flow.project, record)]
    if not known and not constants:
        raise NotSeenError("the run has no options and reads no configuration file")
    if _runs_text(flow.project):
        raise NotSeenError("the script runs code from text (eval or exec), so that reads of its options stay hidden")
    elsewhere = _mentioned_elsewhere(record)
    total = 0
    for path, found in _by_file(flow, known, elsewhere).items():
        total += len(found)
        names = [name for name, _, _ in found]
        line = min(key.line for _, key, _ in found)
        kinds = {kind for _, _, kind in found}
        yield Finding(
            measured=f"never read: {', '.join(names)}",
            expected="every option is read",
            message=f"{shortlist(names, 6)}: {'this changes' if len(names) == 1 else 'these change'} nothing, "
            f"no code reads {'it' if len(names) == 1 else 'them'}{_hard_coded(flow.project, names)}",
            hint="use the value where it belongs, or remove the option"
            if kinds != {"file"}
            else "read the key, or remove it",
            location=f"{path}:{line}",
        )
    yield from constants
    if not total and not constants:
        count = sum(len(options.keys) for options in known)
        yield Finding(status=Status.PASS, measured=f"{plural(count, 'option')}, each read or handed on")


def _by_file(flow: Flow, known: list[Options], elsewhere: set[str]) -> dict[str, list[tuple[str, Key, str]]]:
    found: dict[str, list[tuple[str, Key, str]]] = defaultdict(list)
    for options in known:
        if options.kind in ("dict", "class") and not any(value[0] is options for value in flow.read):
            continue
        if options.kind == "class" and flow.project.has_framework:
            continue
        for path, key in flow.unread(options):
            if (
                path[-1].lower() in METADATA
                or path[-1] in elsewhere
                or any(v == (options, path) for v, _ in flow.written)
            ):
                continue
            where = str(key.value).rpartition(":")[0] if options.kind == "argparse" else key.path or options.path
            name = ("--" + path[-1].replace("_", "-")) if options.kind == "argparse" else ".".join(path)
            found[where].append((name, key, options.kind))
    return found


def _mentioned_elsewhere(record: Record) -> set[str]:
    """Words of the project's files that this run did not import: another script may read what this one does not."""
    found: set[str] = set()
    for event in record.of("sibling"):
        found.update(re.findall(r"\w+", event["text"]))
    return found


def _runs_text(project: Project) -> bool:
    return any(project.builtin(call.func) in ("eval", "exec") for call in project.calls)


def _hard_coded(project: Project, names: list[str]) -> str:
    """The loop that has the number of epochs written into it, when the option for it is dead."""
    if not any("epoch" in name.lower() for name in names):
        return ""
    for node in project.nodes(ast.For):
        if not (isinstance(node.iter, ast.Call)):
            continue
        target = node.target.id if isinstance(node.target, ast.Name) else ""
        numbers = [literal(arg) for arg in node.iter.args]
        if "epoch" in target.lower() and project.builtin(node.iter.func) == "range" and isinstance(numbers[-1], int):
            return f"; {project.at(node)} loops over {ast.unparse(node.iter)}"
    return ""


def _dead_constants(project: Project, record: Record) -> Iterator[Finding]:
    """Hyper-parameters written as constants of a module that no text of the project mentions again."""
    counts: dict[str, int] = defaultdict(int)
    texts = [*record.sources.values(), *(event["text"] for event in record.of("sibling"))]
    for text in texts:
        for word in re.findall(r"\w+", text):
            counts[word] += 1
    for file in project.files:
        dead = [(name, node.lineno) for name, node in _constants(file.tree) if counts[name] == 1]
        if dead:
            names = [name for name, _ in dead]
            yield Finding(
                status=Status.WARN,
                measured=f"never read: {', '.join(names)}",
                expected="every hyper-parameter is used",
                message=f"{shortlist(names, 6)} is set but nothing uses it",
                hint="use the value where it belongs, or remove it",
                location=f"{file.path}:{dead[0][1]}",
            )


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if HYPERPARAMETER.match(name) and isinstance(node.value, ast.Constant):
                yield name, node


@rule("CFG503", severity=Status.FAIL, subject=Subject.RUN)
def type_bool(record: Record) -> Iterator[Finding]:
    """A command line option has `type=bool`.

    Why it matters: `bool("False")` is True: `--augment False` switches augmentation on.
    Found by: reading the source: `add_argument(..., type=bool)`.
    Not an error: a function that parses the text, such as `type=str2bool`.

    Wrong: `parser.add_argument("--augment", type=bool, default=True)`
    Right: `parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)`
    References: the argparse documentation, section "type".
    """
    project = project_of(record)
    for call in project.calls:
        name = dest_of(call)
        if name and _parses_with_bool(project, keyword(call, "type")):
            yield Finding(
                measured=f"type=bool for {flag_of(call)}",
                expected="a flag, or a function that understands the text",
                message=f"{flag_of(call)} False means True: bool of any text but the empty one is True",
                hint="use action=argparse.BooleanOptionalAction, or store_true",
                location=project.at(call),
            )


def _parses_with_bool(project: Project, node: ast.expr | None) -> bool:
    if isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call) and node.args.args:
        inner = node.body
        own = [arg for arg in inner.args if isinstance(arg, ast.Name) and arg.id == node.args.args[0].arg]
        return project.builtin(inner.func) == "bool" and len(own) == 1 == len(inner.args)
    return node is not None and project.builtin(node) == "bool"


@rule("CFG504", severity=Status.WARN, subject=Subject.RUN)
def int_with_float_default(record: Record) -> Iterator[Finding]:
    """A command line option takes integers only, and its default is a fraction.

    Why it matters: the default works, but `--dropout 0.1` ends with an error: the option cannot be set to what it is.
    Found by: reading the source: `add_argument(..., type=int, default=0.1)`.
    Not an error: a whole number written as a float, such as `1e4`.

    Wrong: `parser.add_argument("--dropout", type=int, default=0.1)`
    Right: `parser.add_argument("--dropout", type=float, default=0.1)`
    """
    project = project_of(record)
    for call in project.calls:
        name, default, kind = dest_of(call), literal(keyword(call, "default")), keyword(call, "type")
        if name and isinstance(default, float) and not default.is_integer() and kind is not None:
            if project.builtin(kind) != "int":
                continue
            yield Finding(
                measured=f"type=int, default={default}",
                expected="type=float",
                message=f"{flag_of(call)} cannot be given a fraction, though its default is one",
                hint="use type=float",
                location=project.at(call),
            )


@rule("CFG505", severity=Status.WARN, subject=Subject.RUN)
def option_shadowed(record: Record) -> Iterator[Finding]:
    """An option is parsed and then overwritten with a constant.

    Why it matters: whatever the user passes, the constant wins.
    Found by: reading the source: an assignment of a literal to a parsed option, or to the name that it was copied to,
    which always runs.
    Not an error: an assignment under a condition, one before parsing, or one computed from other options.

    Wrong: `args.epochs = 200` after `parse_args()`
    Right: leave the value as parsed; change the default instead
    """
    flow = flow_of(record)
    if not any(options.kind in ("argparse", "file") for options in flow.options):
        raise NotSeenError("the run has no options and reads no configuration file")
    for (options, path), target in flow.written:
        if options.kind in ("argparse", "file") and _always_constant(flow.project, target):
            yield _shadowed(flow.project, target, path[-1], options)
    for statement, (options, path) in _copied(flow):
        yield _shadowed(flow.project, statement, path[-1], options)


def _shadowed(project: Project, node: ast.AST, name: str, options: Options) -> Finding:
    statement = node if isinstance(node, ast.stmt) else project.parent[node]
    label = f"--{name.replace('_', '-')}" if options.kind == "argparse" else name
    return Finding(
        measured=ast.unparse(statement).split("\n")[0],
        expected="the value that was given",
        message=f"{label} is overwritten with a constant, so setting it changes nothing",
        hint="remove the assignment, or change the default",
        location=project.at(node),
    )


def _always_constant(project: Project, target: ast.AST) -> bool:
    """Whether an assignment stores a literal and runs whenever its function does."""
    up = project.parent[target]
    if not isinstance(up, ast.Assign) or target not in up.targets or not isinstance(up.value, ast.Constant):
        return False
    if up.value.value is None:
        return False
    if isinstance(target, ast.Attribute) and not isinstance(target.value, ast.Name):
        return False  # `self.args.resume = True` in a method prepares another run
    return isinstance(project.parent[up], Function | ast.Module) or _is_main_guard(project.parent[up])


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def _copied(flow: Flow) -> Iterator[tuple[ast.stmt, Value]]:
    """`lr = args.lr` and later, in the same block and with no use between, `lr = 0.1`."""
    for node, values in [*flow.leaves.items()]:
        up = flow.project.parent[node]
        leaf = [value for value in values if value[0].kind in ("argparse", "file")]
        if not (leaf and isinstance(up, ast.Assign) and len(up.targets) == 1 and isinstance(up.targets[0], ast.Name)):
            continue
        if (later := _overwritten(flow.project, up, up.targets[0].id)) is not None:
            yield later, leaf[0]


def _overwritten(project: Project, first: ast.Assign, name: str) -> ast.stmt | None:
    block = next((part for part in _blocks(project.parent[first]) if first in part), [])
    for statement in block[block.index(first) + 1 :] if block else []:
        used = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
        if not used:
            continue
        constant = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        alone = isinstance(statement, ast.Assign) and [ast.unparse(t) for t in statement.targets] == [name]
        return statement if constant and alone else None
    return None


def _blocks(node: ast.AST) -> Iterable[list[ast.stmt]]:
    return [
        part for _, part in ast.iter_fields(node) if isinstance(part, list) and part and isinstance(part[0], ast.stmt)
    ]
