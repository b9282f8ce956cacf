"""Learning rates that a script sets by itself: the shape that they make, and the code that means to set them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from itertools import pairwise

from verify.source import Function, Project
from verify.trace.record import Record

# How exactly a curve has to be a cosine, of its drop.
EXACT = 1e-3
# Schedules that go up and down on purpose say so.
CYCLES = re.compile(r"cycl|restart|triang|sgdr|sawtooth|snapshot", re.IGNORECASE)
OTHERS_THAT_STEP = re.compile(r"opt|scaler|accel|prof|bar|^xm$|env", re.IGNORECASE)
TORCH_OPTIMIZERS = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam",
    "RMSprop", "Rprop", "SGD",
)  # fmt: skip


# The shape of the rates.


def is_constant(record: Record, opt: int) -> bool:
    """Whether no group of an optimizer ever changed its rate."""
    return len({tuple(e["lrs"]) for e in record.of("step") if e["opt"] == opt and e["lrs"]}) == 1


def is_complete(record: Record, opt: int) -> bool:
    """Whether the run went as far as it had planned: an early stop leaves any schedule unfinished."""
    if not record.ran_to_the_end:
        return False
    if record.planned_epochs and record.epochs:
        return len(record.epochs) >= record.planned_epochs
    return _as_planned(record, opt)


def _as_planned(record: Record, opt: int) -> bool:
    plan = next((e["steps"] for e in record.of("step_plan") if e["opt"] == opt), None)
    return plan is not None and len(record.learning_rates(opt)) >= 0.95 * plan


def whole_curve(record: Record, opt: int) -> list[float]:
    """The rates as they are without the time-lapse, at each step or once an epoch; nothing if the run does not show.

    The time-lapse leaves batches out but no epochs. A rate that changes with the epoch is seen as it is; one that
    changes with the batch only where no batch was left out.
    """
    rates = record.learning_rates(opt)
    by_epoch: dict[int, list[float]] = {}
    for event in record.of("step"):
        if event["opt"] == opt and event["lrs"] and event["iteration"] is not None:
            by_epoch.setdefault(event["iteration"], []).append(max(event["lrs"]))
    changes = sum(a != b for a, b in pairwise(rates))
    if len(by_epoch) >= 5 and changes <= len(by_epoch) + 1:
        return [values[-1] for values in by_epoch.values()]
    cut = any(e.length is None or e.counts["batches"] < e.length for e in record.epochs)
    return rates if not cut or _as_planned(record, opt) else []


def unfinished(curve: list[float]) -> str:
    """How a curve ends far above where it was going; nothing for one that ends where it should.

    A cosine falls faster and faster up to its middle, and a line evenly; what falls slower and slower (exponential,
    inverse square root) has no end to be missed.
    """
    top = max(curve)
    tail = curve[len(curve) - 1 - curve[::-1].index(top) :]
    tail = tail[1 - len(tail) % 2 :]
    if len(tail) < max(5, len(curve) / 2) or not 0.5 * top < tail[-1] < 0.9999 * top or not _is_falling(tail):
        return ""
    first, second = tail[0] - tail[len(tail) // 2], tail[len(tail) // 2] - tail[-1]
    distinct = len(set(tail))
    bends = distinct >= 5 and second > 1.5 * first
    straight = distinct > max(8, 0.9 * len(tail)) and tail[-1] > 0.7 * top and _is_straight(tail)
    return f"{top:.2g}, {tail[-1]:.2g} at the end" if bends or straight else ""


def _is_straight(values: list[float]) -> bool:
    last, drop = len(values) - 1, values[0] - values[-1]
    return all(abs(values[0] - drop * n / last - value) < 0.003 * drop for n, value in enumerate(values))


def is_cosine(values: list[float], first: int, start: int, end: int) -> bool:
    """Whether values at steps `first`, ... are on half a cosine from step `start` to step `end`, above any floor."""
    shape = [math.cos(math.pi * (first + n - start) / (end - start)) for n in range(len(values))] if end > start else []
    if not shape or first + len(values) > end + 1:
        return False
    mean, height = sum(shape) / len(shape), sum(values) / len(values)
    slope = sum((a - mean) * (b - height) for a, b in zip(shape, values, strict=True))
    slope /= sum((a - mean) ** 2 for a in shape)
    off = max(abs(height + slope * (a - mean) - b) for a, b in zip(shape, values, strict=True))
    # What lies beyond: the value at the end may be a floor, but no rate below zero.
    return off < EXACT * (values[0] - values[-1]) and height - slope * (1 + mean) > -0.01 * max(values)


def is_line(values: list[float], first: int, end: int) -> bool:
    """Whether values at steps `first`, ... are on a line that is zero at step `end`."""
    drop = values[0] - values[-1]
    if not _is_straight(values) or drop <= 0:
        return False
    zero = first + (len(values) - 1) * values[0] / drop
    return abs(zero - end) < 0.01 * end


def _is_falling(values: list[float]) -> bool:
    return all(b <= a for a, b in pairwise(values))


def climbs_again(curve: list[float]) -> str:
    """How a curve falls and gently climbs again, as a cosine does behind its minimum; nothing for other curves.

    Only the flat bottom tells a cosine that went too far from a triangle.
    """
    top = max(curve)
    fall = curve[curve.index(top) :]
    low = next((n for n in range(1, len(fall) - 1) if fall[n - 1] >= fall[n] < fall[n + 1]), None)
    if low is None or fall[low] > 0.3 * top or not _is_falling(fall[: low + 1]):
        return ""
    climb = fall[low : next((n for n in range(low + 1, len(fall)) if fall[n] < fall[n - 1]), len(fall))]
    rises = [b - a for a, b in pairwise(climb) if b > a]
    if len(rises) < 4 or climb[-1] < 0.5 * top or rises[0] > 0.5 * max(rises) or max(rises) > 0.5 * top:
        return ""
    return f"{top:.2g}, down to {fall[low]:.2g} and up to {climb[-1]:.2g}"


def still_warming(curve: list[float]) -> str:
    """How a curve rises evenly through most of the run; nothing for other curves."""
    top = max(curve)
    reached = next(n for n, rate in enumerate(curve) if rate >= 0.999 * top)
    rises = [b - a for a, b in pairwise(curve[: reached + 1]) if b != a]
    if len(curve) < 8 or reached < 0.6 * len(curve) or len(rises) < 5 or curve[0] > 0.5 * top:
        return ""
    even = min(rises) > 0 and max(rises) <= 1.5 * min(rises)  # a range test multiplies
    return f"{curve[0]:.2g} to {top:.2g} in {reached / len(curve):.0%} of the run" if even else ""


def at_the_floor(rates: list[float]) -> int:
    """For how many of the last steps the rate has been at the floor of a smooth decay that ended early; 0 if not so.

    A decay that multiplies by the same number each time has no horizon: its floor is a matter of taste.
    """
    top, floor = max(rates), rates[-1]
    begin = len(rates)
    while begin and rates[begin - 1] == floor:
        begin -= 1
    fall = rates[rates.index(top) : begin + 1]
    steps = [(a, b) for a, b in pairwise(fall) if a != b]
    if not 0 < floor <= 0.05 * top or len(rates) - begin < 0.6 * len(rates) or len(steps) < 6 or not _is_falling(fall):
        return 0
    factors = [b / a for a, b in steps[:-1]]
    return 0 if max(factors) - min(factors) < 0.02 else len(rates) - begin


def says_cycles(record: Record) -> bool:
    """Whether the source speaks of cycles or restarts."""
    return any(CYCLES.search(text) for path, text in record.sources.items() if path.endswith(".py"))


# The code that means to set them.


def named_but_not_set(record: Record, opt: int) -> tuple[str, float, float] | None:
    """A variable called a learning rate that changes from step to step: name, first and last value."""
    seen: dict[str, list[float]] = {}
    for event in record.of("step"):
        if event["opt"] == opt and event["lrs"]:
            for name, value in (event.get("named_rates") or {}).items():
                seen.setdefault(name, []).append(value)
    rate = max(next(e["lrs"] for e in record.of("step") if e["opt"] == opt and e["lrs"]))
    for name, values in seen.items():
        plausible = min(values) >= 0 and 0.1 * rate <= max(values) <= 10 * rate
        if plausible and len(set(values)) >= 3 and max(values) > 1.05 * min(values):
            return name, values[0], values[-1]
    return None


def is_defined(project: Project, cls: str) -> bool:
    """Whether the project has a class of that name."""
    return any(node.name == cls for node in project.nodes(ast.ClassDef))


def setters(project: Project) -> Iterator[Function]:
    """The functions and methods that write the rate of an optimizer's groups."""
    for function in project.nodes(ast.FunctionDef):
        if any(_writes_rate(target, function) for target in _targets(function)):
            yield function


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign):
            yield from inner.targets
        elif isinstance(inner, ast.AugAssign):
            yield inner.target


def _writes_rate(target: ast.expr, function: Function) -> bool:
    if not isinstance(target, ast.Subscript) or getattr(target.slice, "value", None) != "lr":
        return False
    base = target.value
    if not isinstance(base, ast.Name):
        return "param_groups" in ast.unparse(base)
    loops = [n for n in ast.walk(function) if isinstance(n, ast.For) and "param_groups" in ast.unparse(n.iter)]
    return any(base.id in {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)} for loop in loops)


def method_never_called(project: Project, cls: str) -> ast.ClassDef | None:
    """The class of that name if none of its methods that lead to a new rate is called, but by its constructor."""
    nodes = [node for node in project.nodes(ast.ClassDef) if node.name == cls]
    if len(nodes) != 1 or not all(project.definitions(base) for base in nodes[0].bases):
        return None  # the methods of a class on top of a library's are called from there
    family = {nodes[0], *(d for base in nodes[0].bases for d in project.definitions(base))}
    methods = [f for f in project.nodes(ast.FunctionDef) if project.class_of(f) in family]
    entries = {f for f in setters(project) if f in methods}
    for _ in methods:  # a method that calls an entry is one
        names = {f.name for f in entries}
        entries |= {f for f in methods if any(a.attr in names for a in _own_attributes(f))}
    entries = {f for f in entries if f.name != "__init__"}
    names = {f.name for f in entries}
    if not entries or any(name.startswith(("__", "on_")) for name in names) or names & _texts(project):
        return None
    inside: set[ast.AST | None] = {*entries, *(f for f in methods if f.name == "__init__")}
    used = any(_is_use(project, a, names, inside) for a in project.nodes(ast.Attribute))
    return None if used else nodes[0]


def _own_attributes(function: Function) -> list[ast.Attribute]:
    return [
        a for a in ast.walk(function) if isinstance(a, ast.Attribute) and getattr(a.value, "id", "") in ("self", "cls")
    ]


def _is_use(project: Project, node: ast.Attribute, names: set[str], inside: set[ast.AST | None]) -> bool:
    if node.attr not in names or project.function(node) in inside:
        return False
    receiver = ast.unparse(node.value).rsplit(".", 1)[-1]
    return node.attr != "step" or not OTHERS_THAT_STEP.search(receiver)


def function_never_used(project: Project, files: set[str]) -> Function | None:
    """A function of these files that sets rates, and whose name stands nowhere else."""
    used = {n.id for n in project.nodes(ast.Name)} | {a.attr for a in project.nodes(ast.Attribute)}
    words = _texts(project)
    for function in setters(project):
        alone = project.class_of(function) is None and project.function(function) is None
        plain = alone and not function.decorator_list and function.name not in used | words
        if plain and project.file(function).path in files:
            return function
    return None


def _texts(project: Project) -> set[str]:
    return {c.value for c in project.nodes(ast.Constant) if isinstance(c.value, str)}


def attribute_of_optimizer(project: Project) -> ast.Attribute | None:
    """A rate that is written to an attribute of one of torch's optimizers, where nothing reads it."""
    optimizers = [f"torch.optim.{name}" for name in TORCH_OPTIMIZERS]
    for node in [*project.nodes(ast.Assign), *project.nodes(ast.AugAssign)]:
        for target in _targets(node):
            is_rate = isinstance(target, ast.Attribute) and target.attr in ("lr", "learning_rate")
            if is_rate and project.all_from(target.value, optimizers):  # type: ignore[attr-defined]
                return target  # type: ignore[return-value]
    return None


def timm_schedule_never_called(project: Project) -> bool:
    """Whether nothing in the source could step a scheduler of timm."""
    uses = [a for a in project.nodes(ast.Attribute) if a.attr in ("step", "step_update")]
    return not any(_is_use(project, a, {"step", "step_update"}, set()) for a in uses)
