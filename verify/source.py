"""Source text as syntax trees: names resolved through imports, calls traced to functions of the project."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TypeVar, cast

from verify.trace.record import NotSeenError, Record

Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)
# The parser shares one object of these between all places.
SHARED = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module)


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


FRAMEWORKS = words("lightning pytorch_lightning transformers accelerate ignite fastai catalyst composer mmcv mmengine")
# How far a value is followed through assignments and calls. Real scripts need two or three.
DEPTH = 6


@dataclass(frozen=True, eq=False)
class Binding:
    """One place that gives a name its value.

    Args:
        kind: `value` (assigned from `expr`), `item` (element `index` of `expr`), `loop` (an element of `expr`),
            `param`, `import` (of `target`), `def` or `other`.
        node: where.
    """

    kind: str
    node: ast.AST
    expr: ast.expr | None = None
    index: int = 0
    target: str = ""


@dataclass(eq=False)
class SourceFile:
    """One Python file. `path` is relative to the project."""

    path: str
    text: str
    tree: ast.Module
    stars: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The dotted names under which it can be imported, the longest first."""
        parts = list(PurePosixPath(self.path).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        return [".".join(parts[start:]) for start in range(len(parts))]

    @property
    def package(self) -> list[str]:
        """The parts of the package that relative imports start from."""
        return list(PurePosixPath(self.path).parent.parts)


class Project:
    """The Python files of a project, cross-referenced.

    Args:
        texts: text by path; files that are not Python, or do not parse, are left out.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        self.files: list[SourceFile] = []
        self.parent: dict[ast.AST, ast.AST] = {}
        self._nodes: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        self._found: dict[ast.Name, tuple[ast.AST | None, list[Binding]]] = {}
        self._file: dict[ast.AST, SourceFile] = {}
        self._bindings: dict[ast.AST, dict[str, list[Binding]]] = defaultdict(lambda: defaultdict(list))
        self._globals: dict[ast.AST, set[str]] = defaultdict(set)
        self._modules: dict[str, list[SourceFile]] = defaultdict(list)
        self.methods: dict[str, list[Function]] = defaultdict(list)
        self.classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
        self.calls: list[ast.Call] = []
        self.reordered: set[tuple[str, str]] | None = (
            None  # kept for SRC065: names that are sorted or shuffled, by file
        )
        self.attributes: dict[str, list[ast.Attribute]] = defaultdict(list)  # by name, where they are read
        self.attribute_values: dict[str, list[tuple[ast.Attribute, ast.expr]]] = defaultdict(list)  # where assigned
        for path, text in texts.items():
            if path.endswith(".py"):
                self._add(path, text)
        for file in self.files:
            for name in file.names:
                self._modules[name].append(file)
        for file in self.files:
            self._index(file)

    def _add(self, path: str, text: str) -> None:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return
        self.files.append(SourceFile(path.replace("\\", "/"), text, tree))

    def _index(self, file: SourceFile) -> None:
        self._file[file.tree] = file
        nodes: list[ast.AST] = [file.tree]
        for node in nodes:  # grows as it goes
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, SHARED):
                    self.parent[child] = node
                    nodes.append(child)
        for node in nodes:
            self._nodes[type(node)].append(node)
            if isinstance(node, ast.Global):
                self._globals[self.scope(node)].update(node.names)
        for node in nodes:
            self._index_node(node, file)

    def _index_node(self, node: ast.AST, file: SourceFile) -> None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self._bind_import(node, file)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._bind(node.name, Binding("def", node), self.scope(self.parent[node]))
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name].append(node)
                else:
                    if isinstance(self.parent[node], ast.ClassDef):
                        self.methods[node.name].append(node)
                    self._bind_parameters(node)
            case ast.Lambda():
                self._bind_parameters(node)
            case ast.Assign():
                for target in node.targets:
                    self._bind_target(target, node.value, node)
            case ast.AnnAssign(value=value) if value is not None:
                self._bind_target(node.target, value, node)
            case ast.NamedExpr():
                self._bind_target(node.target, node.value, node)
            case ast.AugAssign(target=ast.Name(id=name)):
                self._bind(name, Binding("other", node), self.scope(node))
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                for name in names_in(node.target):
                    self._bind(name, Binding("loop", node, node.iter), self.scope(self.parent[node]))
            case ast.withitem(optional_vars=target) if target is not None:
                for name in names_in(target):
                    self._bind(name, Binding("other", node), self.scope(self.parent[node]))
            case ast.ExceptHandler(name=str(name)):
                self._bind(name, Binding("other", node), self.scope(node))
            case ast.Call():
                self.calls.append(node)
            case ast.Attribute(ctx=ast.Load()):
                self.attributes[node.attr].append(node)

    def _bind(self, name: str, binding: Binding, scope: ast.AST) -> None:
        if name in self._globals.get(scope, ()):
            while not isinstance(scope, ast.Module):
                scope = self.scope(self.parent[scope])
        self._bindings[scope][name].append(binding)

    def _bind_parameters(self, node: Function | ast.Lambda) -> None:
        for arg in parameters(node):
            self._bind(arg.arg, Binding("param", arg), node)
        for extra in (node.args.vararg, node.args.kwarg):
            if extra is not None:
                self._bind(extra.arg, Binding("other", extra), node)

    def _bind_target(self, target: ast.expr, value: ast.expr, node: ast.AST) -> None:
        if isinstance(target, ast.Name):
            self._bind(target.id, Binding("value", node, value), self.scope(node))
        elif isinstance(target, ast.Attribute):
            self.attribute_values[target.attr].append((target, value))
        elif isinstance(target, ast.Tuple | ast.List):
            pairs = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            pairs = pairs if len(pairs) == len(target.elts) else []
            for index, element in enumerate(target.elts):
                if pairs:
                    self._bind_target(element, pairs[index], node)
                elif isinstance(element, ast.Name):
                    self._bind(element.id, Binding("item", node, value, index), self.scope(node))
                elif isinstance(element, ast.Starred):
                    for name in names_in(element):
                        self._bind(name, Binding("other", node), self.scope(node))

    def _bind_import(self, node: ast.Import | ast.ImportFrom, file: SourceFile) -> None:
        scope = self.scope(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                self._bind(name, Binding("import", node, target=alias.name if alias.asname else name), scope)
            return
        base = node.module or ""
        if node.level:
            package = file.package[: len(file.package) - node.level + 1]
            base = ".".join([*package, *([node.module] if node.module else [])])
        for alias in node.names:
            if alias.name == "*":
                file.stars.append(base)
            else:
                target = f"{base}.{alias.name}" if base else alias.name
                self._bind(alias.asname or alias.name, Binding("import", node, target=target), scope)

    # Where a node lies.

    def file(self, node: ast.AST) -> SourceFile:
        """The file that holds a node."""
        while not isinstance(node, ast.Module):
            node = self.parent[node]
        return self._file[node]

    def at(self, node: ast.AST) -> str:
        """`file.py:12`."""
        return f"{self.file(node).path}:{getattr(node, 'lineno', 1)}"

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around a node, inside out."""
        while node in self.parent:
            node = self.parent[node]
            yield node

    def scope(self, node: ast.AST) -> ast.AST:
        """The function, lambda, class or module whose names a statement at `node` binds."""
        while not isinstance(node, SCOPES):
            node = self.parent[node]
        return node

    def function(self, node: ast.AST) -> Function | None:
        """The function around a node."""
        return next((up for up in self.ancestors(node) if isinstance(up, Function)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The class around a node."""
        return next((up for up in self.ancestors(node) if isinstance(up, ast.ClassDef)), None)

    def nodes(self, *types: type[Node]) -> Iterator[Node]:
        """Every node of some types, in every file."""
        for kind in types:
            yield from cast(list[Node], self._nodes.get(kind, []))

    # What a name means.

    def lookup(self, name: ast.Name) -> tuple[ast.AST | None, list[Binding]]:
        """The scope that binds a name, and every binding there; imports are followed into the project's own files."""
        if name in self._found:
            return self._found[name]
        scope: ast.AST = self._expression_scope(name)
        while True:
            table = self._bindings.get(scope, {})
            if name.id in table and name.id not in self._globals.get(scope, ()):
                break
            if isinstance(scope, ast.Module):
                break
            scope = self._outer(scope)
        self._found[name] = self._follow(scope, name.id, 0)
        return self._found[name]

    def _expression_scope(self, node: ast.AST) -> ast.AST:
        """As `scope`, but defaults, decorators and annotations of a function belong to what is around it."""
        child, node = node, self.parent[node]
        while True:
            if isinstance(node, ast.Lambda) and child is node.body:
                return node
            if isinstance(node, Function) and child in node.body:
                return node
            if isinstance(node, ast.ClassDef) and child in node.body:
                return node
            if isinstance(node, ast.Module):
                return node
            child, node = node, self.parent[node]

    def _outer(self, scope: ast.AST) -> ast.AST:
        """The next scope outwards that a function sees: classes are skipped."""
        scope = self._expression_scope(scope)
        while isinstance(scope, ast.ClassDef):
            scope = self._expression_scope(scope)
        return scope

    def _follow(self, scope: ast.AST, name: str, depth: int) -> tuple[ast.AST | None, list[Binding]]:
        bindings = self._bindings.get(scope, {}).get(name, [])
        if depth > DEPTH:
            return scope, bindings
        if len(bindings) == 1 and bindings[0].kind == "import":
            base, _, last = bindings[0].target.rpartition(".")
            module = self.module(base, scope) if base else None
            if module and self.has_global(module, last):
                return self._follow(module.tree, last, depth + 1)
            return scope, bindings
        if not bindings and isinstance(scope, ast.Module):
            for star in self._file[scope].stars:
                module = self.module(star, scope)
                if module and module.tree is not scope and self.has_global(module, name):
                    return self._follow(module.tree, name, depth + 1)
        return (scope if bindings else None), bindings

    def has_global(self, file: SourceFile, name: str, depth: int = 0) -> bool:
        """Whether a module of the project has a name at its top level."""
        if name in self._bindings.get(file.tree, {}):
            return True
        stars = (self.module(star, file.tree) for star in file.stars) if depth < DEPTH else ()
        return any(module is not file and self.has_global(module, name, depth + 1) for module in stars if module)

    def module(self, dotted: str, near: ast.AST) -> SourceFile | None:
        """The project's file with an import name; of several, the one closest to where it is imported."""
        files = self._modules.get(dotted, [])
        if len(files) < 2:
            return files[0] if files else None
        here = self.file(near).path
        return max(files, key=lambda file: len(_common(file.path, here)))

    def qualified(self, node: ast.expr) -> str:
        """The dotted name of what an expression refers to (`torch.nn.Softmax` for `nn.Softmax`), or ''."""
        if isinstance(node, ast.Attribute):
            base = self.qualified(node.value)
            return f"{base}.{node.attr}" if base else ""
        if not isinstance(node, ast.Name):
            return ""
        _, bindings = self.lookup(node)
        imports = {binding.target for binding in bindings if binding.kind == "import"}
        if len(imports) == 1 and all(binding.kind == "import" for binding in bindings):
            return imports.pop()
        if not bindings and "torch.nn" in self.file(node).stars and node.id[:1].isupper():
            return f"torch.nn.{node.id}"
        return ""

    def builtin(self, node: ast.expr) -> str:
        """The name of the builtin that an expression refers to, or ''."""
        return node.id if isinstance(node, ast.Name) and not self.lookup(node)[1] else ""

    def definitions(self, node: ast.expr) -> list[Function | ast.ClassDef]:
        """The functions and classes of the project that a name or a dotted name refers to."""
        if isinstance(node, ast.Name):
            _, bindings = self.lookup(node)
            return [b.node for b in bindings if isinstance(b.node, Function | ast.ClassDef) and b.kind == "def"]
        if not isinstance(node, ast.Attribute):
            return []
        dotted = self.qualified(node.value)
        module = self.module(dotted, node) if dotted else None
        if module is None:
            return []
        _, bindings = self._follow(module.tree, node.attr, 0)
        return [b.node for b in bindings if isinstance(b.node, Function | ast.ClassDef) and b.kind == "def"]

    def is_module(self, node: ast.ClassDef, depth: int = 0) -> bool:
        """Whether a class is an `nn.Module`."""
        for base in node.bases:
            name = self.qualified(base)
            if name.startswith(("torch.nn.", "torchvision.models.", "timm.models.")):
                return True
            if depth < DEPTH and any(
                isinstance(d, ast.ClassDef) and self.is_module(d, depth + 1) for d in self.definitions(base)
            ):
                return True
        return False

    # Calls.

    def callees(self, call: ast.Call) -> list[tuple[Function, bool]]:
        """The project's functions that a call reaches, each with whether its first parameter is bound already.

        A method whose object is unknown reaches every method of that name.
        """
        found = self.definitions(call.func)
        if found:
            return [pair for definition in found for pair in self._entry(definition)]
        if not isinstance(call.func, ast.Attribute) or self.qualified(call.func):
            return []
        base = call.func.value
        if isinstance(base, ast.Call) and self.builtin(base.func) == "super":
            return self._inherited(call, call.func.attr)
        return [(method, not _is_static(method)) for method in self.methods.get(call.func.attr, [])]

    def _entry(self, definition: Function | ast.ClassDef) -> list[tuple[Function, bool]]:
        if isinstance(definition, Function):
            return [(definition, False)]
        own = [node for node in definition.body if isinstance(node, Function) and node.name == "__init__"]
        if own:
            return [(own[-1], True)]
        bases = [d for base in definition.bases for d in self.definitions(base) if d is not definition]
        return [pair for base in bases if isinstance(base, ast.ClassDef) for pair in self._entry(base)]

    def _inherited(self, node: ast.AST, name: str) -> list[tuple[Function, bool]]:
        around = self.class_of(node)
        bases = [d for base in around.bases for d in self.definitions(base)] if around else []
        methods = [
            item for base in bases if isinstance(base, ast.ClassDef) for item in base.body if isinstance(item, Function)
        ]
        return [(method, True) for method in methods if method.name == name]

    @cached_property
    def calls_of(self) -> dict[Function, list[ast.Call]]:
        """The calls that reach each function of the project."""
        table: dict[Function, list[ast.Call]] = defaultdict(list)
        for call in self.calls:
            for function, _ in self.callees(call):
                table[function].append(call)
        return table

    def origins(self, node: ast.expr, depth: int = 0) -> list[ast.expr | None]:
        """The expressions that a value comes from, through names, `self` attributes and parameters.

        None stands for a source that cannot be seen.
        """
        if depth > DEPTH:
            return [None]
        if isinstance(node, ast.Name):
            _, bindings = self.lookup(node)
            return [e for binding in bindings for e in self._origins_of(binding, depth + 1)] or [None]
        if isinstance(node, ast.Attribute) and is_self(node.value):
            around = self.class_of(node)
            values = [v for t, v in self.attribute_values.get(node.attr, []) if self.class_of(t) is around]
            return [e for value in values for e in self.origins(value, depth + 1)] or [None]
        return [node]

    def _origins_of(self, binding: Binding, depth: int) -> list[ast.expr | None]:
        if binding.kind == "value" and binding.expr is not None:
            return self.origins(binding.expr, depth)
        if binding.kind != "param":
            return [None]
        function = self.function(binding.node)
        if function is None or len(self.methods.get(function.name, [])) > 1:
            return [None]
        given: list[ast.expr | None] = []
        for call in self.calls_of.get(function, []):
            values = [value for arg, value in arguments(call, function, self) if arg is binding.node]
            given += [e for value in values for e in self.origins(value, depth)] or [None]
        return given or [None]

    def all_from(self, node: ast.expr, names: Iterable[str]) -> bool:
        """Whether a value surely comes from calls of functions or classes with one of these dotted names."""
        wanted = set(names)
        origins = self.origins(node)
        return all(isinstance(origin, ast.Call) and self.qualified(origin.func) in wanted for origin in origins)

    @cached_property
    def imported(self) -> frozenset[str]:
        """The top-level names of everything imported."""
        roots: set[str] = set()
        for node in self.nodes(ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        for source in self.nodes(ast.ImportFrom):
            if not source.level and source.module:
                roots.add(source.module.split(".")[0])
        return frozenset(roots)

    @property
    def has_framework(self) -> bool:
        """Whether a framework may do what the code itself does not show."""
        return bool(self.imported & FRAMEWORKS)


def project_of(record: Record) -> Project:
    """The Python files of a run; parsed once for each record.

    Raises:
        NotSeenError: the record holds none.
    """
    project: Project | None = record.__dict__.get("_project")
    if project is None:
        project = Project(record.sources)
        record.__dict__["_project"] = project
    if not project.files:
        raise NotSeenError("the record holds no Python source of the project")
    return project


def torch_project(record: Record) -> Project:
    """The Python files of a run that uses PyTorch.

    Raises:
        NotSeenError: no file does.
    """
    project = project_of(record)
    if "torch" not in project.imported:
        raise NotSeenError("no file of the project imports torch")
    return project


def parameters(node: Function | ast.Lambda) -> list[ast.arg]:
    """The named parameters of a function, in order."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def arguments(call: ast.Call, function: Function, project: Project) -> Iterator[tuple[ast.arg, ast.expr]]:
    """The parameters of `function` that `call` gives, with their expressions; `*` and `**` are left out."""
    bound = next((bound for callee, bound in project.callees(call) if callee is function), False)
    positional = [*function.args.posonlyargs, *function.args.args][1 if bound else 0 :]
    for arg, value in zip(positional, call.args, strict=False):
        if isinstance(value, ast.Starred):
            break
        yield arg, value
    by_name = {arg.arg: arg for arg in parameters(function)}
    for keyword in call.keywords:
        if keyword.arg in by_name:
            yield by_name[keyword.arg], keyword.value


def names_in(node: ast.AST) -> list[str]:
    """Every plain name in a node."""
    return [child.id for child in ast.walk(node) if isinstance(child, ast.Name)]


def first_name(node: ast.expr) -> str:
    """The first plain name in an expression, or ''."""
    return (names_in(node) or [""])[0]


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument."""
    return next((item.value for item in call.keywords if item.arg == name), None)


def argument(call: ast.Call, index: int, name: str) -> ast.expr | None:
    """The value of an argument that may be given by position or by name."""
    if index < len(call.args) and not any(isinstance(arg, ast.Starred) for arg in call.args[: index + 1]):
        return call.args[index]
    return keyword(call, name)


def has_unpacking(call: ast.Call) -> bool:
    """Whether a call has `*` or `**` arguments, so that what it gets is not visible."""
    return any(isinstance(arg, ast.Starred) for arg in call.args) or any(item.arg is None for item in call.keywords)


def text_of(node: ast.AST | None) -> str | None:
    """The value of a string constant."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def literal(node: ast.AST | None) -> object:
    """The value of a literal, or None when it is none."""
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def is_self(node: ast.AST) -> bool:
    """Whether a node is the name `self`."""
    return isinstance(node, ast.Name) and node.id == "self"


def _is_static(function: Function) -> bool:
    return any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)


def _common(left: str, right: str) -> list[str]:
    same = []
    for one, other in zip(PurePosixPath(left).parts, PurePosixPath(right).parts, strict=False):
        if one != other:
            break
        same.append(one)
    return same
