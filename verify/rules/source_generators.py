"""SRC: random generators that begin again at every use."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, is_self, torch_project, words
from verify.trace.record import Record

# Called for each batch or each sample.
AT_EACH_USE = words("__call__ forward __getitem__")
MAKERS = words("numpy.random.default_rng numpy.random.RandomState random.Random")
# A permutation or a projection may be meant to be the same each time.
DRAWS = words("random beta uniform integers randint rand randrange random_sample bernoulli choice gauss betavariate")


@rule("SRC095", severity=Status.WARN, subject=Subject.RUN)
def generator_begins_again(record: Record) -> Iterator[Finding]:
    """A generator of random numbers gets the same seed again at every call.

    Why it matters: every batch, or every sample, gets the same draws: the same weight of mixing, the same box, the same
    crop. It looks random and is a constant.
    Found by: reading the source: `self.rng`, made in the constructor and drawn from, is made again with a seed that
    never changes in `__call__`, `forward` or `__getitem__`, or in a method that these call on `self`.
    Not an error: a seed that depends on the epoch, the index or a count; a condition around it, as for evaluation;
    permutations that are meant to be fixed.

    Wrong: `def __call__(self, x): self.rng = np.random.default_rng(self.seed); lam = self.rng.beta(1, 1)`
    Right: the generator is made in `__init__` alone
    """
    project = torch_project(record)
    for around in project.nodes(ast.ClassDef):
        methods = {node.name: node for node in around.body if isinstance(node, Function)}
        for method in _used_each_time(methods):
            for statement in method.body:
                name = _begun_again(project, statement)
                if name and _is_made_before(methods, name) and _is_drawn_from(around, name):
                    yield Finding(
                        measured=ast.unparse(statement),
                        expected="once, in the constructor",
                        message=f"every call of {method.name} begins with the same random numbers",
                        location=project.at(statement),
                        hint="leave it to the constructor, or let the seed depend on the epoch and the index",
                    )


def _used_each_time(methods: dict[str, Function]) -> list[Function]:
    """The methods that are called for each batch or sample, and those that these call without a condition."""
    found = [methods[name] for name in sorted(AT_EACH_USE & set(methods))]
    for method in list(found):
        called = [
            node.func.attr
            for statement in method.body
            if not isinstance(statement, ast.If)
            for node in ast.walk(statement)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_self(node.func.value)
        ]
        found += [methods[name] for name in called if name in methods and methods[name] not in found]
    return found


def _begun_again(project: Project, statement: ast.stmt) -> str:
    """The attribute whose generator a statement begins anew, with a seed that is the same each time."""
    match statement:
        case ast.Assign(targets=[ast.Attribute(value=owner, attr=name)], value=ast.Call(args=[seed]) as made):
            seeds = project.qualified(made.func) in MAKERS or _seeds_a_new_one(project, made)
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=ast.Attribute() as held, attr="manual_seed"), args=[seed])
        ):
            owner, name, seeds = held.value, held.attr, True
        case _:
            return ""
    return name if seeds and is_self(owner) and _never_changes(project, seed) else ""


def _seeds_a_new_one(project: Project, call: ast.Call) -> bool:
    """`torch.Generator().manual_seed(seed)`"""
    inner = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr == "manual_seed" else None
    return isinstance(inner, ast.Call) and project.qualified(inner.func) == "torch.Generator"


def _never_changes(project: Project, seed: ast.expr) -> bool:
    """Whether a seed is a number, or an attribute that the constructor alone sets."""
    if isinstance(seed, ast.Constant):
        return isinstance(seed.value, int)
    if not (isinstance(seed, ast.Attribute) and is_self(seed.value)):
        return False
    stored = [n for n in project.nodes(ast.Attribute) if n.attr == seed.attr and isinstance(n.ctx, ast.Store)]
    makers = [project.function(node) for node in stored]
    return bool(makers) and all(maker is not None and maker.name == "__init__" for maker in makers)


def _is_made_before(methods: dict[str, Function], name: str) -> bool:
    constructor = methods.get("__init__")
    return constructor is not None and any(
        isinstance(n, ast.Attribute) and n.attr == name and isinstance(n.ctx, ast.Store) for n in ast.walk(constructor)
    )


def _is_drawn_from(around: ast.ClassDef, name: str) -> bool:
    """Whether a method draws from the generator: `self.rng.beta(...)`, or `generator=self.rng`."""
    for node in ast.walk(around):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=held), attr=draw)) if held == name:
                if draw in DRAWS:
                    return True
            case ast.Call(keywords=[*_, ast.keyword(arg="generator", value=ast.Attribute(attr=held))]):
                if held == name and not ast.unparse(node.func).endswith(("randperm", "randn")):
                    return True
    return False
