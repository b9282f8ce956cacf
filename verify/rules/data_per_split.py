"""DAT: codes that are numbered anew for each split, and random numbers that are drawn once for all items."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_fitting import LOOPS, is_repeated, roles_of_elements, split_of_call
from verify.source import Function, Project, is_self, literal, project_of
from verify.trace.child.names import role
from verify.trace.record import Record

ENCODERS = ("sklearn.preprocessing.OrdinalEncoder", "sklearn.preprocessing.LabelEncoder")
DRAWS = re.compile(
    r"^(torch\.(rand|randn|randint)|numpy\.random\.\w+|random\.(random|uniform|randint|gauss|randrange))$"
)
NO_DRAW = re.compile(r"seed|default_rng|RandomState|Generator|permutation|shuffle|choice|get_state")
LARGEST_DRAW = 4


@rule("DAT230", severity=Status.WARN, subject=Subject.RUN)
def codes_per_split(record: Record) -> Iterator[Finding]:
    """Categories are numbered anew for each split.

    Why it matters: the same category then has another number, and another row of the embedding, in validation than in
    training. Nothing fails; the network just reads other words.
    Found by: reading the source: numbers in the order in which values appear, or of those that appear, made from the
    rows of one split, in a loop over splits or in a function that is called for training and for another split.
    Not an error: one numbering that all splits use; a numbering made from all data before it is split; sorted names of
    classes that each split has.

    Wrong: `for name, part in parts.items(): codes[name] = pd.factorize(part["city"])[0]`
    Right: `cities = sorted(set(train["city"]))`, and one dict from these to numbers for every split
    """
    project = project_of(record)
    for node in _numberings(project):
        function = project.function(node)
        per_split = _in_loop_over_splits(project, node) or (
            function is not None
            and _made_of_parameters(project, node, function)
            and _called_per_split(project, function)
        )
        if per_split and not _decided(project, node):
            yield Finding(
                measured=ast.unparse(node),
                expected="one numbering, made from training data",
                message="each split numbers its categories for itself",
                location=project.at(node),
                hint="make the table once, from training data, and look every split up in it",
            )
            return


def _numberings(project: Project) -> Iterator[ast.expr]:
    """Expressions that give numbers to the values that occur."""
    for node in project.nodes(ast.Attribute):
        if node.attr == "codes" and isinstance(node.value, ast.Attribute) and node.value.attr == "cat":
            yield node
    for call in project.calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        numbering = (
            name == "factorize"
            or (name == "setdefault" and _numbers_by_size(project, call))
            or (name == "fit_transform" and _is_fresh_encoder(project, call))
            or (project.builtin(call.func) == "enumerate" and _in_order_of_appearance(project, call))
        )
        if numbering:
            yield call


def _numbers_by_size(project: Project, call: ast.Call) -> bool:
    """`table.setdefault(value, len(table))` with a table that the same function makes."""
    table = call.func.value if isinstance(call.func, ast.Attribute) else None
    if not isinstance(table, ast.Name) or len(call.args) != 2 or ast.unparse(call.args[1]) != f"len({table.id})":
        return False
    scope, bindings = project.lookup(table)
    return scope is project.function(call) and scope is not None and all(one.kind == "value" for one in bindings)


def _is_fresh_encoder(project: Project, call: ast.Call) -> bool:
    made = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(made, ast.Call) and project.qualified(made.func) in ENCODERS


def _in_order_of_appearance(project: Project, call: ast.Call) -> bool:
    """`enumerate` of the different values of something, which nothing sorts."""
    node = call.args[0] if call.args else None
    if not isinstance(node, ast.Call):
        return False
    by_method = isinstance(node.func, ast.Attribute) and node.func.attr in ("unique", "fromkeys")
    return (by_method and not project.qualified(node.func)) or project.builtin(node.func) == "set"


def _decided(project: Project, node: ast.AST) -> bool:
    """Whether a condition in the same function decides if it happens."""
    for up in project.ancestors(node):
        if isinstance(up, Function):
            return False
        if isinstance(up, ast.If | ast.IfExp):
            return True
    return False


def _in_loop_over_splits(project: Project, node: ast.AST) -> bool:
    names = {part.id for part in ast.walk(_statement(project, node)) if isinstance(part, ast.Name)}
    for up in project.ancestors(node):
        if isinstance(up, Function):
            return False
        loops = up.generators if isinstance(up, ast.ListComp | ast.GeneratorExp | ast.DictComp) else [up]
        for loop in loops:
            if isinstance(loop, ast.For | ast.comprehension) and _is_over_splits(project, loop.iter):
                return bool(names & {part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)})
    return False


def _is_over_splits(project: Project, node: ast.expr) -> bool:
    """A literal of splits, or a dict of them."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "values"):
        node = node.func.value
    origins = project.origins(node)
    made = origins[0] if len(origins) == 1 else None
    if isinstance(made, ast.Tuple | ast.List):
        return {"train", "eval"} <= roles_of_elements(made)
    if isinstance(made, ast.Dict):
        return {"train", "eval"} <= {role(str(literal(key))) for key in made.keys if key is not None}
    return False


def _statement(project: Project, node: ast.AST) -> ast.stmt:
    return next(up for up in (node, *project.ancestors(node)) if isinstance(up, ast.stmt))


def _made_of_parameters(project: Project, node: ast.AST, function: Function) -> bool:
    """Whether the statement with the numbering reads parameters, or what was made of them before."""
    known = {arg.arg for arg in function.args.args} - {"self", "cls"}
    here = _statement(project, node)
    for statement in ast.walk(function):
        if isinstance(statement, ast.Assign) and statement is not here and statement.lineno < here.lineno:
            read = {part.id for part in ast.walk(statement.value) if isinstance(part, ast.Name)}
            made = {t.id for target in statement.targets for t in ast.walk(target) if isinstance(t, ast.Name)}
            known = known | made if read & known else known - made
    around = [here, *(up.iter for up in project.ancestors(here) if isinstance(up, ast.For))]
    return any(isinstance(part, ast.Name) and part.id in known for one in around for part in ast.walk(one))


def _called_per_split(project: Project, function: Function) -> bool:
    calls = project.calls_of.get(function, [])
    if any(_in_loop_over_splits(project, call) for call in calls):
        return True
    splits = {split_of_call(project, call) for call in calls if not is_repeated(project, call)}
    return {"train", "eval"} <= splits


@rule("DAT229", severity=Status.WARN, subject=Subject.RUN)
def drawn_once(record: Record) -> Iterator[Finding]:
    """A random offset is drawn once for the whole data set.

    Why it matters: every item of every epoch is shifted, flipped or scaled by the same amount: no augmentation at all,
    and training data that differ from what is evaluated.
    Found by: reading the source: a number that `__init__` of a data set or of a random transform draws and never draws
    again, and that an item is changed by where a switch asks for augmentation.
    Not an error: seeds and generators; one number for each item; a permutation or rotation that defines the task.

    Wrong: `self.offset = torch.randint(0, 5, (2,)).tolist()` in `__init__`, used in `__getitem__`
    Right: the draw in `__getitem__`
    """
    project = project_of(record)
    for definitions in project.classes.values():
        for node in definitions:
            yield from _drawn_in(project, node)


def _drawn_in(project: Project, node: ast.ClassDef) -> Iterator[Finding]:
    methods = {item.name: item for item in node.body if isinstance(item, Function)}
    used_by = methods.get("__getitem__") or methods.get("__call__")
    if "__init__" not in methods or used_by is None or project.is_module(node):
        return
    for statement in ast.walk(methods["__init__"]):
        if not isinstance(statement, ast.Assign):
            continue
        target = statement.targets[0]
        if not isinstance(target, ast.Attribute) or not is_self(target.value) or not _draws(project, statement):
            continue
        assigned = project.attribute_values.get(target.attr, [])
        again = any(not any(up is methods["__init__"] for up in project.ancestors(one)) for one, _ in assigned)
        if not again and len(assigned) == 1 and _changes_items(project, node, used_by, target.attr):
            yield Finding(
                measured=ast.unparse(statement),
                expected="a draw for each item",
                message=f"self.{target.attr} is drawn once, and then used for every item",
                location=project.at(statement),
                hint=f"draw it in {used_by.name}",
            )
            return


def _draws(project: Project, statement: ast.stmt) -> bool:
    """Whether a statement assigns a few random numbers: not one for each item."""
    calls = [part for part in ast.walk(statement) if isinstance(part, ast.Call)]
    draws = [call for call in calls if DRAWS.match(project.qualified(call.func))]
    if any(NO_DRAW.search(ast.unparse(call.func)) for call in calls) or len(draws) != 1:
        return False
    if any(isinstance(up, LOOPS) for up in project.ancestors(draws[0])):
        return False
    name = project.qualified(draws[0].func)
    if name.startswith("random."):
        return True
    sizes = draws[0].args[:] if name in ("torch.rand", "torch.randn") else draws[0].args[-1:]
    sizes += [item.value for item in draws[0].keywords if item.arg == "size"]
    if name.startswith("numpy.") and not any(isinstance(size, ast.Tuple) for size in sizes):
        return not any(item.arg == "size" for item in draws[0].keywords)
    return all(_is_few(literal(size)) for size in sizes)


def _is_few(value: object) -> bool:
    numbers = value if isinstance(value, tuple | list) else (value,)
    total = 1
    for number in numbers:
        total *= number if isinstance(number, int) else LARGEST_DRAW + 1
    return total <= LARGEST_DRAW


def _changes_items(project: Project, node: ast.ClassDef, method: Function, name: str) -> bool:
    """Whether a method reads an attribute under a condition on the object, or at all in what is called random."""
    reads = [one for one in project.attributes.get(name, []) if is_self(one.value) and project.class_of(one) is node]
    helpers = {c.func.attr for c in ast.walk(method) if isinstance(c, ast.Call) and _is_own_method(c)}  # type: ignore[attr-defined]
    used = [method, *(item for item in node.body if isinstance(item, Function) and item.name in helpers)]
    inside = [one for one in reads if project.function(one) in used]
    if not inside or any(_is_index_or_seed(project, one) for one in inside):
        return False
    return node.name.startswith("Random") or any(_guarded(project, one, used) for one in inside)


def _is_own_method(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and is_self(call.func.value)


def _is_index_or_seed(project: Project, read: ast.Attribute) -> bool:
    up = project.parent[read]
    if isinstance(up, ast.Subscript) and up.value is read:
        return not isinstance(up.slice, ast.Constant)
    return isinstance(up, ast.Call) and bool(re.search("seed|enerator|rng", ast.unparse(up.func)))


def _guarded(project: Project, read: ast.Attribute, methods: list[Function]) -> bool:
    """Whether a condition on the object decides about a read: around it, or by returning before it."""
    for up in project.ancestors(read):
        if up in methods:
            before = [one for one in up.body if one.lineno < read.lineno]
            return any(_asks_the_object(one) and isinstance(one.body[-1], ast.Return) for one in before)  # type: ignore[attr-defined]
        if _asks_the_object(up):
            return True
    return False


def _asks_the_object(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Attribute) and is_self(part.value) for part in ast.walk(node.test)
    )
