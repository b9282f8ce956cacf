"""Follows sets of options through the source: which keys are read, and where nothing can be known any more."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

from verify.options.model import Key, Options, Value
from verify.source import (
    Function,
    Project,
    arguments,
    is_self,
    literal,
    parameters,
    text_of,
    words,
)

# Calls that hand the same keys on in another container.
SAME = words(
    "vars dict argparse.Namespace types.SimpleNamespace copy.copy copy.deepcopy dataclasses.asdict dataclasses.replace "
    "types.MappingProxyType omegaconf.OmegaConf.create omegaconf.OmegaConf.to_container easydict.EasyDict munch.Munch "
    "munch.munchify addict.Dict box.Box ml_collections.ConfigDict dotmap.DotMap attrdict.AttrDict omegaconf.DictConfig "
    "omegaconf.OmegaConf.structured omegaconf.OmegaConf.merge omegaconf.OmegaConf.unsafe_merge"
)
# Calls that only show or store what they get.
SHOWN = words("print str repr len type isinstance id bool format hash callable pprint issubclass")
SHOWN_IN = re.compile(
    r"^(json\.dumps?|yaml\.\w*dump\w*|toml\.dumps?|tomli_w\.dumps?|pickle\.dumps?|torch\.save|pprint\.\w+|logging\.\w+"
    r"|warnings\.warn|wandb\.(init|log|config\.update)|mlflow\.log_\w+|rich\.\w+"
    r"|omegaconf\.OmegaConf\.(save|to_yaml|set_\w+|is_\w+|resolve)|omegaconf\.(open_dict|read_write|flag_override)"
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
            for parameter in options.given:
                self._bind_parameter(parameter, (options, ()))
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
        return bool(options.roots or options.given) or options.node is not None


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
