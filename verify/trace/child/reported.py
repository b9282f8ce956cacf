"""What the script itself knows: the numbers in its variables, and how many epochs its loop means to run."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor

from .tensors import scalar

MOST_VALUES = 120
LOOP_CALLS = ("range", "trange")


def numbers(scopes: list[Mapping[str, Any]]) -> dict[str, float | str]:
    """Scalars in the variables of user code, by name; also one level inside dicts, lists and `self`."""
    found: dict[str, float | str] = {}
    for scope in scopes[:8]:
        for name, value in list(scope.items()):
            if name.startswith("__") or len(found) >= MOST_VALUES:
                continue
            _collect(name, value, found)
            if name == "self" and hasattr(value, "__dict__"):
                for key, inner in list(vars(value).items()):
                    _collect(f"self.{key}", inner, found)
    return found


# How far a sum is followed, and what may stand around one.
MOST_ADDED = 24
PASSED_THROUGH = ("DivBackward0", "MulBackward0", "MeanBackward0", "SumBackward0", "StackBackward0", "CatBackward0")


def kept_graphs(frames: list[FrameType], terms: int) -> dict[str, int]:
    """Variables that hold on to the graphs of several batches: sums of losses, lists of losses; by name.

    `terms` is how many the losses of single batches have, which are sums themselves, or sums of lists.
    """
    least = max(3, terms + 2)
    found = {}
    for frame in frames[:4]:
        for name, value in list(frame.f_locals.items()):
            if _has_graph(value):
                depth = sum_depth(value)
                if depth >= least:
                    found[name] = depth
            elif type(value) is list and len(value) >= least and _has_graph(value[-1]):
                found[name] = len(value)
    return found


def sum_depth(loss: Tensor) -> int:
    """How many additions, one in the other, a number is made of; at least what is stacked for it."""
    depth, node = 0, loss.grad_fn
    stacked = 0
    for _ in range(MOST_ADDED):
        if node is None:
            break
        name = type(node).__name__
        depth += name == "AddBackward0"
        stacked = max(stacked, len(node.next_functions) if name.startswith(("Stack", "Cat")) else 0)
        inner = [n for n, _ in node.next_functions if n is not None]
        additions = [n for n in inner if type(n).__name__ == "AddBackward0"]
        if not additions and name not in PASSED_THROUGH:
            break
        node = next(iter(additions or inner), None)
    return max(depth, stacked)


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None and value.numel() == 1


def old_snapshots(recorder: Any, frames: list[FrameType]) -> dict[str, int]:
    """Variables that hold a state dict of an earlier step whose tensors are the live ones; name to step."""
    found = {}
    live = {p.data_ptr() for info in recorder.models.values() for _, p in info.named}
    for frame in frames[:6]:
        items = list(frame.f_locals.items())
        owner = frame.f_locals.get("self")
        if hasattr(owner, "__dict__"):
            items += [(f"self.{key}", value) for key, value in list(vars(owner).items())]
        for name, value in items:
            if "best" not in name.lower() or not isinstance(value, Mapping) or not value:
                continue
            shared = sum(getattr(t, "data_ptr", int)() in live for t in value.values())
            made = recorder.state_dicts.get(id(value))
            known = made[1] if made is not None and made[0]() is value else None
            first = recorder.best_seen.setdefault(id(value), recorder.step) if known is None else known
            if shared >= 0.5 * len(value) and first < recorder.step:
                found[name] = first
    return found


def _collect(name: str, value: Any, found: dict[str, float | str]) -> None:
    number = scalar(value)
    if number is not None:
        found.setdefault(name, number if abs(number) < 1e300 else str(number))
    elif type(value) is dict and len(value) <= 60:
        for key, inner in list(value.items()):
            number = scalar(inner)
            if number is None and isinstance(inner, list) and inner:
                number = scalar(inner[-1])
            if number is not None and len(found) < MOST_VALUES:
                found.setdefault(f"{name}[{key!r}]", number if abs(number) < 1e300 else str(number))
    elif type(value) in (tuple, list) and 0 < len(value) <= 1000 and scalar(value[-1]) is not None:
        found.setdefault(f"{name}[-1]", scalar(value[-1]))  # type: ignore[arg-type]
    elif "count" in getattr(value, "__dict__", ()):  # the averaging meter that many scripts carry
        number = _average(value)
        if number is not None:
            found.setdefault(f"{name}.avg", number)


def _average(meter: Any) -> float | None:
    """`avg`, which may be a property that divides by the count."""
    try:
        return scalar(meter.avg)
    except Exception:
        return None


_trees: dict[str, dict[int, list[ast.For]]] = {}


def _loops(filename: str) -> dict[int, list[ast.For]]:
    """The `for` loops around each line of a file, innermost first."""
    if filename not in _trees:
        around: dict[int, list[ast.For]] = {}
        try:
            with open(filename, encoding="utf-8", errors="replace") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError):
            tree = ast.Module(body=[], type_ignores=[])
        for node in ast.walk(tree):
            if isinstance(node, ast.For):
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    around.setdefault(line, []).append(node)
        for loops in around.values():
            loops.sort(key=lambda loop: -loop.lineno)
        _trees[filename] = around
    return _trees[filename]


def epoch_loops(recorder: Any, frames: list[FrameType], event: str) -> None:
    """Write down the bounds of each `for ... in range(...)` around the present place, once a place."""
    for frame in frames[:10]:
        filename = frame.f_code.co_filename
        if not os.path.isfile(filename):
            continue
        for loop in _loops(filename).get(frame.f_lineno, []):
            key = f"{filename}:{loop.lineno}"
            if key in recorder.horizon_places or (loop.lineno == frame.f_lineno and event == "iter"):
                continue
            recorder.horizon_places.add(key)
            bounds = range_bounds(loop.iter, frame)
            if bounds is None:
                continue
            place = f"{recorder.session.places.file(frame.f_code)}:{loop.lineno}"
            recorder.emit(
                "loop",
                around=event,
                start=bounds[0],
                stop=bounds[1],
                step=bounds[2],
                variable=ast.unparse(loop.target),
                text=ast.unparse(loop.iter)[:80],
                loc=place,
            )


def range_bounds(node: ast.expr, frame: FrameType) -> tuple[int, int, int] | None:
    """Start, stop and step of what a `for` goes through, if that is a `range`."""
    if not isinstance(node, ast.Call):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("tqdm", "enumerate", "track", "progress_bar", "reversed") and node.args:
        return range_bounds(node.args[0], frame)
    if name not in LOOP_CALLS or not 1 <= len(node.args) <= 3 or not all(map(is_plain, node.args)):
        return None
    try:
        values = [evaluate(argument, frame) for argument in node.args]
    except Exception:  # a name that is gone by now; nothing is known then
        return None
    if not all(isinstance(value, int) for value in values):
        return None
    start, stop, step = (0, values[0], 1) if len(values) == 1 else (values[0], values[1], [*values, 1][2])
    return start, stop, step


def is_plain(node: ast.expr) -> bool:
    """Whether evaluating this can have no effect: names, attributes, constant subscripts, arithmetic, int()."""
    allowed = (
        ast.Name,
        ast.Attribute,
        ast.Subscript,
        ast.Constant,
        ast.BinOp,
        ast.operator,
        ast.Load,
        ast.UnaryOp,
        ast.unaryop,
    )
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            if not (isinstance(inner.func, ast.Name) and inner.func.id in ("int", "max", "min") and not inner.keywords):
                return False
        elif not isinstance(inner, allowed):
            return False
    return True


def evaluate(node: ast.expr, frame: FrameType) -> Any:
    """The value of an expression of plain names and numbers in a frame."""
    code = compile(ast.Expression(body=node), "<bounds>", "eval")
    return eval(code, frame.f_globals, dict(frame.f_locals))
