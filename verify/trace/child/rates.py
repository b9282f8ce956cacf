"""What a script does about the learning rate by itself: schedules that it wrote, rates that it computed, its plan."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from . import reported

RATE = re.compile(r"(?:cur|curr|current|new|this|step|next|epoch|iter|iteration)?_?(?:lr|learning_rate)")
FRAMES = 6
# Names are looked at in each of the first steps, then now and then.
LOOKED_AT, LOOKED_AT_EVERY = 400, 20
LIGHTNING = ("lightning.", "pytorch_lightning.")
LOOPS = (ast.For, ast.While)


def named(recorder: Any, steps: int) -> dict[str, float]:
    """Numbers that the script holds under the name of a learning rate."""
    if steps > LOOKED_AT and steps % LOOKED_AT_EVERY:
        return {}
    found: dict[str, float] = {}
    for frame in recorder.session.places.user_frames()[:FRAMES]:
        names = _rate_names(frame.f_code)
        values = frame.f_locals if names else {}
        for name in names:
            value = values.get(name)
            if type(value) in (int, float) or isinstance(value, float):
                found.setdefault(name, float(value))
    return found


_names: dict[CodeType, list[str]] = {}


def _rate_names(code: CodeType) -> list[str]:
    if code not in _names:
        own = code.co_names if code.co_name == "<module>" else (*code.co_varnames, *code.co_cellvars)
        _names[code] = [name for name in own if RATE.fullmatch(name)]
    return _names[code]


def note_holders(recorder: Any, number: int, optimizer: Any) -> None:
    """Objects of the script that keep the optimizer: a schedule of its own is among them."""
    from torch.optim.lr_scheduler import LRScheduler

    seen: set[int] = set()
    for name, value in _objects(recorder.session.places.user_frames()[:FRAMES]):
        kept = _attributes(value)
        if id(value) in seen or isinstance(value, LRScheduler) or not any(one is optimizer for one in kept.values()):
            continue
        seen.add(id(value))
        kind = type(value)
        recorder.emit("rate_holder", opt=number, cls=kind.__name__, module=kind.__module__, name=name)


def _objects(frames: list[FrameType]) -> Iterator[tuple[str, Any]]:
    for frame in frames:
        yield from list(frame.f_locals.items())
        yield from list(_attributes(frame.f_locals.get("self")).items())


def _attributes(value: Any) -> dict[str, Any]:
    """What an object keeps, without asking its own code for it."""
    try:
        kept = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return kept if type(kept) is dict and not isinstance(value, type(os)) else {}


def note_plan(recorder: Any, number: int) -> None:
    """How many steps the loops around the first one mean to make; nothing where one of them does not tell."""
    counts = []
    for frame in recorder.session.places.user_frames():
        for loop in _loops(frame.f_code.co_filename, frame.f_lineno):
            count = _count(loop, frame)
            if count is None:
                return
            counts.append(count)
    if not counts:
        return
    total = 1
    for count in counts:
        total *= count
    recorder.emit("step_plan", opt=number, steps=total)


_trees: dict[str, list[ast.For | ast.While]] = {}


def _loops(filename: str, line: int) -> list[ast.For | ast.While]:
    """The loops of a file around a line."""
    if filename not in _trees:
        try:
            with open(filename, encoding="utf-8", errors="replace") as file:
                tree: ast.AST = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError):
            tree = ast.Module(body=[], type_ignores=[])
        _trees[filename] = [node for node in ast.walk(tree) if isinstance(node, LOOPS)]
    return [loop for loop in _trees[filename] if loop.lineno < line <= (loop.end_lineno or loop.lineno)]


def _count(loop: ast.For | ast.While, frame: FrameType) -> int | None:
    if isinstance(loop, ast.For):
        bounds = reported.range_bounds(loop.iter, frame)
        return len(range(*bounds)) if bounds and bounds[2] else None
    test = _ends_at(loop)
    if test is None:
        return None
    try:
        start, stop = (reported.evaluate(one, frame) for one in (test.left, test.comparators[0]))
    except Exception:  # a name that is gone by now; nothing is known then
        return None
    return stop - start if isinstance(start, int) and isinstance(stop, int) and stop > start else None


def _ends_at(loop: ast.While) -> ast.Compare | None:
    """The comparison of a counter that ends a `while`: its own, or that of its only break."""
    leaves = [node for node in ast.walk(loop) if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Break)]
    tests = [node.test for node in leaves] if isinstance(loop.test, ast.Constant) else [loop.test]
    if len(tests) != 1 or not isinstance(tests[0], ast.Compare) or len(tests[0].ops) != 1:
        return None
    test = tests[0]
    counted = isinstance(test.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE))
    return test if counted and all(map(reported.is_plain, (test.left, test.comparators[0]))) else None


def note_trainer(recorder: Any) -> None:
    """The epochs that Lightning was asked for: its loop is not in the script."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        epochs = _epochs_of(frame)
        if epochs:
            place = recorder.here()
            recorder.emit(
                "loop", around="sched", start=0, stop=epochs, step=1, variable="", text="Trainer.fit", loc=place
            )
            return
        frame = frame.f_back


def _epochs_of(frame: FrameType) -> int | None:
    if not str(frame.f_globals.get("__name__", "")).startswith(LIGHTNING):
        return None
    epochs = _attributes(frame.f_locals.get("self")).get("max_epochs")
    return epochs if type(epochs) is int and epochs > 0 else None
