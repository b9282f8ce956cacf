"""CFG: options and configuration files, and whether they do what they say."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import yaml

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    arguments,
    is_self,
    keyword,
    literal,
    parameters,
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
# Launchers pass these whether or not the script needs them.
LAUNCHER = words("local_rank f fff node_rank")
SELF_DECLARED = re.compile(
    r"deprecated|obsolete|unused|not used|no longer|ignored|no effect|suppress|reserved|legacy", re.I
)
CONFIG_NAME = re.compile(r"config|cfg|conf\b|hparam|hyper|param|setting|option|args|arguments|opts?\b", re.I)
NOT_TRAINING_CONFIG = frozenset(["pyproject.toml", "verify.yaml", "verify.yml", "setup.json", "package.json"])
HYPERPARAMETER = re.compile(
    r"^(LR|LEARNING_RATE|BASE_LR|MIN_LR|WEIGHT_DECAY|EPOCHS|NUM_EPOCHS|N_EPOCHS|MAX_EPOCHS|BATCH_SIZE|MOMENTUM|DROPOUT"
    r"|DROPOUT_RATE|PATIENCE|WARMUP_EPOCHS|WARMUP_STEPS|LABEL_SMOOTHING|GRAD_CLIP|CLIP_GRAD|T_MAX|GAMMA|STEP_SIZE"
    r"|MIXUP_ALPHA|CUTMIX_ALPHA|SEED|NUM_WORKERS|EMA_DECAY)$"
)

LOADERS = {
    "yaml": words(
        "yaml.safe_load yaml.load yaml.full_load yaml.unsafe_load ruamel.yaml.safe_load omegaconf.OmegaConf.load"
    ),
    "json": words("json.load json.loads"),
    "toml": words("tomllib.load tomllib.loads toml.load toml.loads tomli.load tomli.loads"),
}
FORMATS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
PARSERS = frozenset(["parse_args", "parse_known_args", "parse_intermixed_args"])

# Calls that hand the same keys on in another container.
SAME = words(
    "vars dict argparse.Namespace types.SimpleNamespace copy.copy copy.deepcopy dataclasses.asdict dataclasses.replace "
    "types.MappingProxyType omegaconf.OmegaConf.create omegaconf.OmegaConf.to_container easydict.EasyDict munch.Munch "
    "munch.munchify addict.Dict box.Box ml_collections.ConfigDict dotmap.DotMap attrdict.AttrDict omegaconf.DictConfig "
    "omegaconf.OmegaConf.structured"
)
# Calls that only show or store what they get.
SHOWN = words("print str repr len type isinstance id bool format hash callable pprint issubclass")
SHOWN_IN = re.compile(
    r"^(json\.dumps?|yaml\.\w*dump\w*|toml\.dumps?|tomli_w\.dumps?|pickle\.dumps?|torch\.save|pprint\.\w+|logging\.\w+"
    r"|warnings\.warn|wandb\.(init|log|config\.update)|mlflow\.log_\w+|rich\.\w+|omegaconf\.OmegaConf\.(save|to_yaml)"
    r"|loguru\.logger\.\w+|click\.echo|tabulate\.tabulate|tqdm\.tqdm\.write|joblib\.dump|numpy\.savez?)$"
)
SHOWN_BY = words(
    "info debug warning error critical log_hyperparams log_hyperparameters log_hparams add_hparams add_text "
    "write writerow write_text log_params log_param log_config writelines"
)
MERGED = words("update clear merge_with merge_from_dict merge_from_list merge_from_file freeze defrost")
PASSED_ON = words("copy deepcopy _asdict model_dump to_dict as_dict dict todict to_container clone")
LOOKED_UP = words("get pop setdefault __getitem__ getattr")
ITERATED = words("items keys values iteritems _get_kwargs")


@dataclass
class Key:
    """One option: where it is declared, its value when it is a constant, and the options below it."""

    line: int
    value: object = None
    below: dict[str, Key] = field(default_factory=dict)


@dataclass(eq=False)
class Options:
    """A set of options that belong together.

    Args:
        kind: `argparse`, `file`, `dict` or `class`.
        path: the file that declares it.
        keys: by name.
        roots: the expressions that hold it, before anything is done with them.
    """

    kind: str
    path: str
    keys: dict[str, Key]
    roots: list[ast.AST] = field(default_factory=list)
    node: ast.ClassDef | None = None

    def at(self, where: tuple[str, ...]) -> dict[str, Key]:
        """The options below a path."""
        keys = self.keys
        for name in where:
            keys = keys[name].below
        return keys


Value = tuple[Options, tuple[str, ...]]


class Flow:
    """Follows sets of options through a project and notes every key that is read.

    A set that reaches code whose use of it cannot be seen has *escaped*: nothing is known of the keys below.
    """

    def __init__(self, project: Project, options: list[Options]) -> None:
        self.project = project
        self.options = options
        self.read: set[Value] = set()
        self.escaped: set[Value] = set()
        self.written: list[tuple[Value, ast.AST]] = []
        self.values: dict[ast.AST, set[Value]] = defaultdict(set)
        self.leaves: dict[ast.AST, set[Value]] = defaultdict(set)
        self._todo: list[tuple[ast.AST, Value]] = []
        self._run()

    # Tables.

    @cached_property
    def uses(self) -> dict[tuple[ast.AST, str], list[ast.AST]]:
        """Where each name of each scope is read."""
        table: dict[tuple[ast.AST, str], list[ast.AST]] = defaultdict(list)
        for node in self.project.nodes(ast.Name, ast.Attribute):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                scope, bindings = self.project.lookup(node)
                if scope is not None:
                    name = bindings[0].target.rpartition(".")[2] if bindings[0].kind == "import" else node.id
                    table[scope, node.id].append(node)
                    if name != node.id:
                        table[scope, name].append(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                dotted = self.project.qualified(node.value)
                module = self.project.module(dotted, node) if dotted else None
                if module is not None:
                    table[module.tree, node.attr].append(node)
        return table

    @cached_property
    def keyed(self) -> dict[str, list[ast.AST]]:
        """Reads of constant keys: `x["k"]`, `x.get("k")`."""
        table: dict[str, list[ast.AST]] = defaultdict(list)
        for node in self.project.nodes(ast.Subscript, ast.Call):
            match node:
                case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                    table[key].append(node)
                case ast.Call(func=ast.Attribute(attr="get" | "pop"), args=[ast.Constant(value=str(key)), *_]):
                    table[key].append(node)
        return table

    # The walk.

    def _run(self) -> None:
        for options in self.options:
            for root in options.roots:
                if options.kind == "argparse" and _gives_pair(root):
                    self._unpack(root, 0, 2, (options, ()))
                else:
                    self._add(root, (options, ()))
            if options.node is not None:
                self._class_roots(options, options.node)
        while self._todo:
            self._step(*self._todo.pop())

    def _class_roots(self, options: Options, node: ast.ClassDef) -> None:
        scope = self.project.scope(self.project.parent[node])
        for use in self.uses.get((scope, node.name), []):
            self._add(use, (options, ()))
        for method in node.body:
            if isinstance(method, Function) and (first := parameters(method)[:1]):
                self._bind_parameter(first[0], (options, ()))

    def _add(self, node: ast.AST, value: Value) -> None:
        if value not in self.values[node]:
            self.values[node].add(value)
            self._todo.append((node, value))

    def _escape(self, value: Value) -> None:
        self.escaped.add(value)

    def _step(self, node: ast.AST, value: Value) -> None:
        up = self.project.parent.get(node)
        if value[0].kind == "class" and self._in_annotation(node):
            return
        match up:
            case ast.Attribute():
                self._attribute(up, value)
            case ast.Subscript() if up.value is node:
                self._subscript(up, value)
            case ast.Call() if up.func is node:
                if value[0].kind == "class":
                    self._add(up, value)
                else:
                    self._escape(value)
            case ast.Call():
                self._argument(up, node, value, unpacked=False)
            case ast.keyword():
                call = self.project.parent[up]
                if isinstance(call, ast.Call):
                    self._argument(call, node, value, unpacked=up.arg is None)
            case ast.Assign():
                for target in up.targets:
                    self._bind(target, value)
            case ast.AnnAssign() if up.value is node:
                self._bind(up.target, value)
            case ast.NamedExpr():
                self._bind(up.target, value)
                self._add(up, value)
            case ast.AugAssign() if up.value is node and isinstance(up.op, ast.BitOr):
                self._bind(up.target, value)
            case ast.Return():
                self._return(up, value)
            case ast.Tuple() | ast.List():
                self._in_tuple(up, node, value)
            case ast.IfExp() if up.test is not node:
                self._add(up, value)
            case ast.BoolOp():
                self._add(up, value)
            case ast.BinOp() if isinstance(up.op, ast.BitOr):
                self._add(up, value)
            case ast.BinOp() if isinstance(up.op, ast.Mod):
                self._in_text(up.left, value)
            case ast.Compare():
                self._compare(up, node, value)
            case ast.Dict():
                self._in_dict(up, node, value)
            case ast.For() | ast.comprehension() if up.iter is node:
                if not self._only_shown(node):
                    self._escape(value)
            case ast.arguments():
                self._default(up, node, value)
            case ast.Await():
                self._add(up, value)
            case _ if not self._reads_nothing(up, node):
                self._escape(value)

    def _reads_nothing(self, up: ast.AST | None, node: ast.AST) -> bool:
        """Whether a place only tests, shows, deletes or annotates."""
        if isinstance(up, ast.UnaryOp):
            return isinstance(up.op, ast.Not)
        if isinstance(up, ast.comprehension):
            return up.iter is not node
        if isinstance(up, ast.AnnAssign):
            return up.annotation is node
        shown = (ast.If, ast.While, ast.Assert, ast.Expr, ast.IfExp, ast.FormattedValue, ast.Delete, ast.Module)
        declared = (ast.arg, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return up is None or isinstance(up, shown + declared) or self._in_annotation(node)

    def _in_annotation(self, node: ast.AST) -> bool:
        """`Optional[Config]`, `Config | None`."""
        child = node
        for up in self.project.ancestors(node):
            if isinstance(up, ast.arg | ast.AnnAssign):
                return up.annotation is child
            if isinstance(up, Function):
                return up.returns is child
            if isinstance(up, ast.stmt):
                return False
            child = up
        return False

    def _bind(self, target: ast.AST, value: Value) -> None:
        match target:
            case ast.Name():
                self._flow_name(target, value)
            case ast.Attribute():
                for load in self.project.attributes.get(target.attr, []):
                    self._add(load, value)
                dotted = self.project.qualified(target.value)
                module = self.project.module(dotted, target) if dotted else None
                for use in self.uses.get((module.tree, target.attr), []) if module else []:
                    self._add(use, value)
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                self._contained(key, value)
            case _:
                self._escape(value)

    def _flow_name(self, target: ast.Name, value: Value) -> None:
        scope, _ = self.project.lookup(target)
        if isinstance(self.project.scope(target), ast.ClassDef):
            for load in self.project.attributes.get(target.id, []):
                self._add(load, value)
        for use in self.uses.get((scope, target.id), []) if scope is not None else []:
            self._add(use, value)

    def _bind_parameter(self, arg: ast.arg, value: Value) -> None:
        function = self.project.parent[self.project.parent[arg]]
        for use in self.uses.get((function, arg.arg), []):
            self._add(use, value)

    def _contained(self, key: str, value: Value) -> None:
        """A value was put into some container under a key: whatever is taken out under that key may be it."""
        for node in self.keyed.get(key, []):
            self._add(node, value)

    def _return(self, node: ast.Return, value: Value) -> None:
        function = self.project.function(node)
        if function is None:
            return
        if any(isinstance(item, ast.Name) and "property" in item.id for item in function.decorator_list):
            for load in self.project.attributes.get(function.name, []):
                self._add(load, value)
        calls = self.project.calls_of.get(function, [])
        if not calls:
            self._escape(value)  # whoever calls it is not to be seen
        for call in calls:
            self._add(call, value)

    def _in_tuple(self, node: ast.Tuple | ast.List, child: ast.AST, value: Value) -> None:
        up = self.project.parent[node]
        index = next((i for i, item in enumerate(node.elts) if item is child), -1)
        if isinstance(up, ast.Assign):
            targets = [t for t in up.targets if isinstance(t, ast.Tuple | ast.List) and len(t.elts) == len(node.elts)]
            for target in targets:
                self._bind(target.elts[index], value)
            if len(targets) == len(up.targets):
                return
        elif isinstance(up, ast.Return) and (function := self.project.function(up)) is not None:
            for call in self.project.calls_of.get(function, []):
                self._unpack(call, index, len(node.elts), value)
            return
        elif isinstance(up, ast.BinOp) and isinstance(up.op, ast.Mod):
            self._in_text(up.left, value)
            return
        self._escape(value)

    def _unpack(self, call: ast.AST, index: int, length: int, value: Value) -> None:
        up = self.project.parent[call]
        if isinstance(up, ast.Assign) and len(up.targets) == 1:
            target = up.targets[0]
            if isinstance(target, ast.Tuple | ast.List) and (length < 0 or len(target.elts) == length):
                return self._bind(target.elts[index], value)
        if isinstance(up, ast.Subscript) and literal(up.slice) == index:
            return self._add(up, value)
        if not isinstance(up, ast.Expr):
            self._escape(value)
        return None

    def _in_text(self, text: ast.AST, value: Value) -> None:
        """`"%(lr)s" % vars(args)`: the keys that the text names are read."""
        written = text_of(text)
        if written is None:
            if not isinstance(text, ast.JoinedStr):
                self._escape(value)
            return
        for name in value[0].at(value[1]):
            if re.search(rf"\b{re.escape(name)}\b", written):
                self.read.add((value[0], (*value[1], name)))

    def _compare(self, node: ast.Compare, child: ast.AST, value: Value) -> None:
        if all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            return
        key = text_of(node.left)
        if key is not None and child is not node.left:
            self._touch(value, key)
        else:
            self._escape(value)

    def _in_dict(self, node: ast.Dict, child: ast.AST, value: Value) -> None:
        for key, item in zip(node.keys, node.values, strict=True):
            if item is child and key is None:
                return self._add(node, value)
            if item is child and (name := text_of(key)) is not None:
                return self._contained(name, value)
        return self._escape(value)

    def _default(self, node: ast.arguments, child: ast.AST, value: Value) -> None:
        positional = [*node.posonlyargs, *node.args]
        pairs = [*zip(reversed(positional), reversed(node.defaults), strict=False)]
        pairs += [(arg, default) for arg, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default]
        for arg, default in pairs:
            if default is child:
                self._bind_parameter(arg, value)

    # Reads.

    def _touch(self, value: Value, key: str) -> None:
        if key in value[0].at(value[1]):
            self.read.add((value[0], (*value[1], key)))

    def _visit(self, node: ast.AST, value: Value, key: str) -> None:
        """`node` is the value under `key`."""
        child = value[0].at(value[1]).get(key)
        if child is None:
            return
        below = (value[0], (*value[1], key))
        self.leaves[node].add(below)
        if child.below:
            self.read.add(below)
            self._add(node, below)
        elif not self._is_dead(node):
            self.read.add(below)

    def _is_dead(self, node: ast.AST) -> bool:
        """Whether what is read here surely goes nowhere."""
        up = self.project.parent[node]
        if isinstance(up, ast.Assign) and len(up.targets) == 1 and isinstance(up.targets[0], ast.Name):
            name = up.targets[0]
            scope = self.project.scope(up)
            if not isinstance(scope, Function) or not self._sees_all(scope):
                return False
            return self.project.lookup(name)[0] is scope and not self.uses.get((scope, name.id))
        call = self.project.parent[up] if isinstance(up, ast.keyword) else up
        if not isinstance(call, ast.Call) or node is call.func:
            return False
        functions = self.project.definitions(call.func)
        if len(functions) != 1 or not isinstance(function := functions[0], Function) or function.decorator_list:
            return False
        used = [arg for arg, value in arguments(call, function, self.project) if value is node]
        return (
            bool(used)
            and self._sees_all(function)
            and not isinstance(self.project.parent[function], ast.ClassDef)
            and not self.uses.get((function, used[0].arg))
            and not any(isinstance(n, ast.Raise) for n in function.body)
            and used[0].arg[:1] != "_"
        )

    def _sees_all(self, function: ast.AST) -> bool:
        hidden = ("locals", "eval", "exec", "vars", "globals")
        calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
        return not any(self.project.builtin(call.func) in hidden for call in calls)

    def _attribute(self, node: ast.Attribute, value: Value) -> None:
        options, where = value
        keys = options.at(where)
        if not isinstance(node.ctx, ast.Load):
            if node.attr in keys:
                self.written.append(((options, (*where, node.attr)), node))
            return
        up = self.project.parent[node]
        called = isinstance(up, ast.Call) and up.func is node
        if node.attr in keys and not (called and node.attr in LOOKED_UP | ITERATED | PASSED_ON):
            self._visit(node, value, node.attr)
        elif node.attr in ("__dict__", "__members__"):
            self._add(node, value)
        elif called and isinstance(up, ast.Call):
            self._method(up, node.attr, value)
        elif node.attr in LOOKED_UP | ITERATED:
            self._escape(value)  # handed on as a function

    def _method(self, call: ast.Call, name: str, value: Value) -> None:
        options = value[0]
        key = text_of(call.args[0]) if call.args else None
        if name in LOOKED_UP and key is not None:
            self._visit(call, value, key)
        elif name in PASSED_ON:
            self._add(call, value)
        elif name in MERGED:
            return
        elif name in ITERATED:
            if not self._only_shown(call):
                self._escape(value)
        elif options.node is not None and any(
            isinstance(item, Function) and item.name == name for item in options.node.body
        ):
            if self._is_constructor(options.node, name):
                self._add(call, value)
        else:
            self._escape(value)

    def _is_constructor(self, node: ast.ClassDef, name: str) -> bool:
        methods = (item for item in node.body if isinstance(item, Function) and item.name == name)
        return any(
            isinstance(item, ast.Name) and item.id == "classmethod"
            for method in methods
            for item in method.decorator_list
        )

    def _subscript(self, node: ast.Subscript, value: Value) -> None:
        key = text_of(node.slice)
        if isinstance(node.ctx, ast.Load):
            if key is not None:
                self._visit(node, value, key)
            else:
                self._escape(value)
        elif key is not None and key in value[0].at(value[1]):
            self.written.append(((value[0], (*value[1], key)), node))

    # Calls.

    def _argument(self, call: ast.Call, node: ast.AST, value: Value, unpacked: bool) -> None:
        builtin = self.project.builtin(call.func)
        if builtin in ("getattr", "hasattr") and call.args and call.args[0] is node:
            return self._by_name(call, value)
        if builtin in ("setattr", "delattr") and call.args and call.args[0] is node:
            return None
        if self._shows(call):
            return self._shown(call, value)
        if self._hands_on(call):
            return self._add(call, value)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "update" and not self.project.callees(call):
            return self._merge(call.func.value, value)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "update" and not unpacked:
            self._merge(call.func.value, value)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "format" and text_of(call.func.value):
            return self._in_text(call.func.value, value)
        if unpacked:
            return self._escape(value)
        return self._into_function(call, node, value)

    def _by_name(self, call: ast.Call, value: Value) -> None:
        key = text_of(call.args[1]) if len(call.args) > 1 else None
        if key is None:
            self._escape(value)
        elif self.project.builtin(call.func) == "hasattr":
            self._touch(value, key)
        else:
            self._visit(call, value, key)

    def _shows(self, call: ast.Call) -> bool:
        if self.project.builtin(call.func) in SHOWN or SHOWN_IN.match(self.project.qualified(call.func)):
            return True
        return (
            isinstance(call.func, ast.Attribute)
            and call.func.attr in SHOWN_BY
            and not self.project.qualified(call.func)
            and not self.project.callees(call)
        )

    def _shown(self, call: ast.Call, value: Value) -> None:
        """Shown or stored; a tracker may hand the options back as its `config`."""
        if self.project.qualified(call.func).startswith("wandb."):
            for load in self.project.attributes.get("config", []):
                self._add(load, value)

    def _hands_on(self, call: ast.Call) -> bool:
        name = self.project.qualified(call.func) or self.project.builtin(call.func)
        if name in SAME:
            return True
        definitions = self.project.definitions(call.func)
        return any(
            _is_converter(item) if isinstance(item, Function) else self._is_namespace(item) for item in definitions
        )

    def _is_namespace(self, node: ast.ClassDef) -> bool:
        bases = {self.project.qualified(base) or self.project.builtin(base) for base in node.bases}
        return bool(bases & {"dict", "argparse.Namespace", "types.SimpleNamespace", "easydict.EasyDict"})

    def _merge(self, target: ast.expr, value: Value) -> None:
        """`defaults.update(cfg)`: what holds the defaults now also holds `cfg`."""
        if isinstance(target, ast.Call) and self.project.builtin(target.func) == "vars" and target.args:
            target = target.args[0]
        elif isinstance(target, ast.Attribute) and target.attr == "__dict__":
            target = target.value
        if self.project.qualified(target).startswith("wandb."):
            return
        if isinstance(target, ast.Name) and not is_self(target):
            self._flow_name(target, value)
        else:
            self._escape(value)

    def _into_function(self, call: ast.Call, node: ast.AST, value: Value) -> None:
        callees = self.project.callees(call)
        if not callees:
            return self._escape(value)
        for function, _ in callees:
            found = [arg for arg, given in arguments(call, function, self.project) if given is node]
            for arg in found:
                self._bind_parameter(arg, value)
            if not found:
                self._escape(value)
        return None

    def _only_shown(self, node: ast.AST) -> bool:
        """Whether something that is iterated over only ends in a print, a log or a file."""
        up = self.project.parent[node]
        match up:
            case ast.For() if up.iter is node:
                return all(self._is_shown_statement(statement) for statement in up.body)
            case ast.Call() if up.func is not node:
                return self._shows(up) or (self._is_formatting(up) and self._only_shown(up))
            case ast.Assign(targets=[ast.Name() as name]):
                scope, bindings = self.project.lookup(name)
                uses = self.uses.get((scope, name.id), []) if scope is not None else []
                return len(bindings) == 1 and all(self._only_shown(use) for use in uses)
            case ast.comprehension() | ast.GeneratorExp() | ast.ListComp() | ast.FormattedValue() | ast.JoinedStr():
                return self._only_shown(up)
            case ast.BinOp() | ast.keyword() | ast.Starred() | ast.Attribute():
                return self._only_shown(up)
            case ast.DictComp():
                return self._only_shown(up)
            case ast.Expr():
                return True
        return False

    def _is_formatting(self, call: ast.Call) -> bool:
        plain = self.project.builtin(call.func) in ("sorted", "list", "str", "enumerate", "tuple", "max", "map", "len")
        return plain or (
            isinstance(call.func, ast.Attribute) and call.func.attr in ("join", "format", "ljust", "rjust")
        )

    def _is_shown_statement(self, statement: ast.stmt) -> bool:
        return (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and self._shows(statement.value)
        )

    # The verdict.

    def unread(self, options: Options, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Key]]:
        """The keys below a path that surely nothing reads."""
        if (options, where) in self.escaped:
            return
        for name, key in options.at(where).items():
            path = (*where, name)
            if (options, path) in self.escaped:
                continue
            if (options, path) not in self.read:
                yield path, key
            elif key.below:
                yield from self.unread(options, path)

    def seen(self, options: Options) -> bool:
        """Whether the options were followed from somewhere."""
        return bool(options.roots) or options.node is not None


def _gives_pair(call: ast.AST) -> bool:
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "parse_known_args"


def _is_converter(function: Function) -> bool:
    """A function that only turns a dict into a namespace or back, whatever its keys."""
    makes = False
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in ("setattr", "SimpleNamespace", "Namespace", "EasyDict"):
                makes = True
            elif name not in (function.name, "isinstance", "type", "vars", "items", "list", "tuple", "dict", "append"):
                return False
    return makes


# What declares options.


def _argparse_options(project: Project) -> Options | None:
    keys: dict[str, Key] = {}
    path = ""
    for call in project.calls:
        name = _dest(call)
        if name and name not in LAUNCHER and _is_plain_option(call):
            path = path or project.file(call).path
            keys.setdefault(name, Key(call.lineno, value=project.at(call)))
    roots: list[ast.AST] = [
        call for call in project.calls if isinstance(call.func, ast.Attribute) and call.func.attr in PARSERS
    ]
    return Options("argparse", path, keys, roots) if keys and roots else None


def _dest(call: ast.Call) -> str | None:
    """The attribute under which `add_argument` stores its value."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"):
        return None
    flags = [text_of(arg) for arg in call.args]
    if not flags or any(flag is None for flag in flags) or any(item.arg is None for item in call.keywords):
        return None
    if (dest := keyword(call, "dest")) is not None:
        return text_of(dest)
    names = [flag for flag in flags if flag]
    long = [flag for flag in names if flag.startswith("--")]
    chosen = (long or names or [""])[0]
    return chosen.lstrip("-").replace("-", "_") if chosen.startswith("-") else chosen


def _is_plain_option(call: ast.Call) -> bool:
    """Whether an option does nothing but store a value, and says nothing about being without use."""
    action = keyword(call, "action")
    stores = ("store", "store_true", "store_false", "store_const", "append", "append_const", "count", "extend")
    if (
        action is not None
        and text_of(action) not in stores
        and not ast.unparse(action).endswith("BooleanOptionalAction")
    ):
        return False
    described = keyword(call, "help")
    return described is None or not SELF_DECLARED.search(ast.unparse(described))


def _file_options(record: Record, project: Project) -> Iterator[Options]:
    if project.imported & {"hydra", "gin", "jsonargparse"}:
        return
    for path, text in record.sources.items():
        kind = FORMATS.get(PurePosixPath(path).suffix)
        if kind is None or not _is_configuration(path, kind):
            continue
        roots: list[ast.AST] = [call for call in project.calls if _loads(project, call, kind)]
        keys = _file_keys(text, kind)
        if roots and keys and not {"defaults", "_target_", "__base__", "_base_", "hydra"} & keys.keys():
            yield Options("file", path, keys, roots)


def _is_configuration(path: str, kind: str) -> bool:
    name = PurePosixPath(path).name
    return name not in NOT_TRAINING_CONFIG and (kind != "json" or bool(CONFIG_NAME.search(name)))


def _loads(project: Project, call: ast.Call, kind: str) -> bool:
    name = project.qualified(call.func)
    if name in LOADERS[kind] or (kind == "json" and name in LOADERS["yaml"]):
        return True
    made = isinstance(call.func, ast.Attribute) and call.func.attr == "load"
    return made and isinstance(call.func, ast.Attribute) and project.all_from(call.func.value, ["ruamel.yaml.YAML"])


def _file_keys(text: str, kind: str) -> dict[str, Key]:
    """The keys of a configuration file, with their lines; nothing when it does not parse."""
    if kind == "toml":
        return _toml_keys(text)
    try:
        if kind == "json":
            json.loads(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return {}
    if not isinstance(root, yaml.MappingNode):
        return {}
    shared = _shared_nodes(root)
    keys = _yaml_keys(root, shared)
    for used in re.findall(r"\$\{([^}]*)\}", text):
        _drop(keys, used.split(".")[-1].split(":")[-1].strip())
    return keys


def _shared_nodes(root: yaml.Node) -> set[int]:
    """Nodes that an alias repeats: their anchor is read by the file itself."""
    seen: dict[int, int] = defaultdict(int)

    def visit(node: yaml.Node) -> None:
        seen[id(node)] += 1
        if seen[id(node)] > 1:
            return
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        for child in children if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else []:
            visit(child)

    visit(root)
    return {node for node, count in seen.items() if count > 1}


def _yaml_keys(node: yaml.MappingNode, shared: set[int]) -> dict[str, Key]:
    keys = {}
    for name, value in node.value:
        if name.tag != "tag:yaml.org,2002:str" or id(value) in shared or name.value.startswith(("_", ".", "x-")):
            continue
        below = _yaml_keys(value, shared) if isinstance(value, yaml.MappingNode) else {}
        constant = yaml.SafeLoader("").construct_object(value) if isinstance(value, yaml.ScalarNode) else None
        keys[name.value] = Key(name.start_mark.line + 1, constant, below)
    return keys


def _toml_keys(text: str) -> dict[str, Key]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}
    lines = text.splitlines()

    def build(table: dict[str, Any]) -> dict[str, Key]:
        return {
            name: Key(_toml_line(lines, name), value, build(value) if isinstance(value, dict) else {})
            for name, value in table.items()
        }

    return build(data)


def _toml_line(lines: list[str], name: str) -> int:
    pattern = re.compile(rf'^\s*(\[.*\b)?"?{re.escape(name)}"?\b\s*(=|\]|\.)')
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), 1)


def _drop(keys: dict[str, Key], name: str) -> None:
    keys.pop(name, None)
    for key in keys.values():
        _drop(key.below, name)


def _dict_options(project: Project) -> Iterator[Options]:
    """Dict literals under a name that says configuration."""
    for node in project.nodes(ast.Assign):
        if not (isinstance(node.value, ast.Dict) and len(node.targets) == 1):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and CONFIG_NAME.search(target.id) and len(node.value.keys) >= 3:
            keys = _dict_keys(node.value)
            if keys:
                yield Options("dict", project.file(node).path, keys, [node.value])


def _dict_keys(node: ast.Dict) -> dict[str, Key]:
    names = [text_of(key) for key in node.keys]
    if any(name is None or not name.isidentifier() for name in names):
        return {}
    return {
        name: Key(key.lineno, literal(value), _dict_keys(value) if isinstance(value, ast.Dict) else {})
        for name, key, value in zip(names, node.keys, node.values, strict=True)
        if name is not None and key is not None
    }


def _class_options(project: Project) -> Iterator[Options]:
    """Data classes, and classes of nothing but constants, whose name says configuration."""
    for classes in project.classes.values():
        for node in classes:
            if len(classes) == 1 and CONFIG_NAME.search(node.name) and _is_plain_class(project, node):
                keys = _class_keys(node)
                if len(keys) >= 3:
                    yield Options("class", project.file(node).path, keys, [], node)


def _is_plain_class(project: Project, node: ast.ClassDef) -> bool:
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    data = [project.qualified(item) in ("dataclasses.dataclass", "attr.s", "attrs.define") for item in decorators]
    if not all(data) or any(project.qualified(base) != "pydantic.BaseModel" for base in node.bases) or node.keywords:
        return False
    if any(node in project.definitions(base) for other in project.classes.values() for c in other for base in c.bases):
        return False
    return bool(data or node.bases) or all(
        isinstance(item, ast.Assign | ast.AnnAssign | ast.Expr | ast.Pass) for item in node.body
    )


def _class_keys(node: ast.ClassDef) -> dict[str, Key]:
    keys = {}
    for item in node.body:
        targets = (
            [item.target] if isinstance(item, ast.AnnAssign) else item.targets if isinstance(item, ast.Assign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                keys[target.id] = Key(item.lineno, literal(getattr(item, "value", None)))
    return keys


def flow_of(record: Record) -> Flow:
    """Where the options of a run go; worked out once for each record."""
    flow: Flow | None = record.__dict__.get("_flow")
    if flow is None:
        project = project_of(record)
        parsed = _argparse_options(project)
        options = [parsed] if parsed else []
        options += [*_file_options(record, project), *_dict_options(project), *_class_options(project)]
        flow = Flow(project, options)
        record.__dict__["_flow"] = flow
    return flow


# The rules.


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
    calls = [call for call in flow.project.calls if _dest(call) == path[-1]]
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
    Found by: following what the parser or the file gave through assignments, calls and attributes of the whole project;
    a key counts as unread only when every place that the options reach is known.
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
            where = str(key.value).rpartition(":")[0] if options.kind == "argparse" else options.path
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
        name = _dest(call)
        if name and _parses_with_bool(project, keyword(call, "type")):
            yield Finding(
                measured=f"type=bool for --{name.replace('_', '-')}",
                expected="a flag, or a function that understands the text",
                message=f"--{name.replace('_', '-')} False means True: bool of any text but the empty one is True",
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
        name, default, kind = _dest(call), literal(keyword(call, "default")), keyword(call, "type")
        if name and isinstance(default, float) and not default.is_integer() and kind is not None:
            if project.builtin(kind) != "int":
                continue
            yield Finding(
                measured=f"type=int, default={default}",
                expected="type=float",
                message=f"--{name.replace('_', '-')} cannot be given a fraction, though its default is one",
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
