"""Schedulers, at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LONGEST_CURVE = 2_000_000


def write_schedulers(recorder: Any) -> None:
    """Schedulers that were made and never stepped, but for those inside of others."""
    told = getattr(recorder, "told_schedulers", {})
    for key, number in told.items():
        functions = getattr(recorder.schedulers.get(key), "lr_lambdas", None)
        if functions and callable(functions[0]):
            recorder.emit("lambda_curve", id=number, points=_curve_of(functions[0]))
    inner = {id(one) for s in recorder.schedulers.values() for one in _held_by(s)}
    for key, scheduler in recorder.schedulers.items():
        if key in told or key in inner:
            continue
        info = recorder.optimizers.get(id(scheduler.optimizer))
        recorder.emit("scheduler_unused", cls=type(scheduler).__name__, opt=info.number if info else None)


def _curve_of(function: Callable[[int], float]) -> list[list[float]]:
    """What a function of the number of calls gives, at more and more distant calls."""
    points: list[list[float]] = []
    call = 0
    while call <= LONGEST_CURVE and len(points) < 600:
        points.append([call, float(function(call))])
        call += max(1, call // 60)
    return points


def _held_by(scheduler: Any) -> list[Any]:
    """What a scheduler keeps, lists unpacked: the schedules that it goes on with after a warm-up are among it."""
    values = list(vars(scheduler).values())
    return values + [item for value in values if isinstance(value, (list, tuple)) for item in value]
