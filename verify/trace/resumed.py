"""What a resumed run holds besides weights, moments and schedule: the best result so far, patience, averages."""

from __future__ import annotations

import re
from typing import Any

from verify.trace.record import Evaluation, Event, Record

# Variables that carry a decision from epoch to epoch. What is best so far decides what best.pt is, the counters when
# to stop.
BEST = re.compile(r"(^|_|\.|\b)(best|lowest|highest)(_|\b|\]|')", re.IGNORECASE)
COUNTER = re.compile(
    r"bad_?epoch|bad_?count|patien|wait|no_?improv|not_?improv|non_?improv|since_?(best|improv)|without_?improv"
    r"|stale|stall|plateau|num_bad|early_?stop",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(r"best_?(epoch|step|iter|idx|index)|time|path|\[-1\]|^cfg|config|args", re.IGNORECASE)
Numbers = dict[str, float]


def lost_values(whole: Record, first: Record, again: Record, offset: int, place: str) -> list[dict[str, str]]:
    """The best result or the patience that the resumed run does not know any more.

    Where the resumed epoch repeats that of the whole run bit by bit, each value must be the same. Where it does not
    (the random state is not restored), only the best result is judged: it cannot be worse than it was.

    Args:
        whole: the run that was not interrupted. first: the one that was stopped. again: the resumed one.
        offset: steps of the whole run before the resumed one begins.
    """
    seen = _reports(again)
    if not seen:
        return []
    step = min(seen)
    expected = _reports(whole).get(offset + step)
    if expected is not None and _repeats(whole, again, offset, step):
        found = _differing(expected, seen[step])
    else:
        found = _worse(whole, first, seen[step])
    return [_value_finding(*one, place) for one in found[:1]]


def _reports(record: Record) -> dict[int, Numbers]:
    """The numbers that the script held at its first look at an evaluation, by the number of steps before it."""
    found: dict[int, Numbers] = {}
    for event in record.of("held_values"):
        if event["step"] and event["step"] not in found:
            values = {name: value for name, value in event["values"].items() if isinstance(value, int | float)}
            found[event["step"]] = values
    return found


def _repeats(whole: Record, again: Record, offset: int, step: int) -> bool:
    """Whether training and evaluation of the resumed epoch are those of the whole run, to the last bit."""
    return _same_training(whole, again, offset, step) and _shown(whole, offset + step) == _shown(again, step)


def _same_training(whole: Record, again: Record, offset: int, step: int) -> bool:
    wanted: list[Any] = [e["value"] for e in whole.of("backward") if offset <= e["step"] < offset + step]
    got: list[Any] = [e["value"] for e in again.of("backward") if e["step"] < step]
    return len(got) >= 2 and wanted == got


def _shown(record: Record, step: int) -> list[Any]:
    """What an evaluation after so many steps gave."""
    return [[p["n"], p["losses"], p.get("correct")] for e in _evaluations(record, step) for p in e.passes]


def _sizes(record: Record, step: int) -> list[Any]:
    return [n for n, _, _ in _shown(record, step)]


def _evaluations(record: Record, step: int) -> list[Evaluation]:
    return [e for e in record.evaluations if e.passes[0]["step"] == step][:1]


def _differing(expected: Numbers, seen: Numbers) -> list[tuple[str, float, float]]:
    names = [n for n in expected if n in seen and not ELSEWHERE.search(n) and (BEST.search(n) or COUNTER.search(n))]
    names.sort(key=lambda name: not BEST.search(name))
    return [(name, seen[name], expected[name]) for name in names if seen[name] != expected[name]]


def _worse(whole: Record, first: Record, seen: Numbers) -> list[tuple[str, float, float]]:
    """Best results that went back; whether high or low is best shows in how they changed in the whole run."""
    before = _reports(first)
    if not before:
        return []
    last, found = before[max(before)], []
    for name in last:
        if not BEST.search(name) or ELSEWHERE.search(name) or name not in seen:
            continue
        series = [values[name] for _, values in sorted(_reports(whole).items()) if name in values]
        rises, falls = series == sorted(series), series == sorted(series, reverse=True)
        if len(series) >= 4 and rises != falls and (seen[name] < last[name] if rises else seen[name] > last[name]):
            found.append((name, seen[name], last[name]))
    return found


def _value_finding(name: str, seen: float, expected: float, place: str) -> dict[str, str]:
    best = BEST.search(name) is not None
    lost = "the best result so far is forgotten" if best else "the patience of early stopping starts anew"
    effect = "; the next one counts as the best, and may replace a better checkpoint" if best else ""
    return {
        "measured": f"{name} is {seen:.6g} after the first resumed epoch",
        "expected": f"{expected:.6g}, as in the run that was not interrupted",
        "message": lost + effect,
        "location": place,
        "hint": f"save {name} in the checkpoint, and set it when resuming",
    }


def lost_average(whole: Record, again: Record, offset: int, place: str) -> list[dict[str, str]]:
    """An average of the weights that starts anew: training goes on to the bit, what is evaluated does not."""
    averages = {t["model"] for t in whole.of("twin") if t["changed"] and t["model"] is not None}
    evaluated = [e for e in again.evaluations if e.passes[0]["step"]][:1]
    if not averages or not evaluated or evaluated[0].passes[0]["model"] not in averages:
        return []
    step = evaluated[0].passes[0]["step"]
    if not _same_training(whole, again, offset, step) or _sizes(whole, offset + step) != _sizes(again, step):
        return []
    now, then = _loss(again, step), _loss(whole, offset + step)
    if now is None or then is None or abs(now - then) <= 1e-6 * max(abs(now), abs(then)):
        return []
    return [
        {
            "measured": f"evaluated after the first resumed epoch: loss {now:.5g}",
            "expected": f"{then:.5g}, as in the run that was not interrupted",
            "message": "the average of the weights starts anew, while the training goes on",
            "location": place,
            "hint": "save and load the state of the average itself; that of AveragedModel holds its count of updates",
        }
    ]


def _loss(record: Record, step: int) -> float | None:
    """The summed losses of an evaluation; None when it was another one, or its losses were not seen."""
    passes: list[Event] = [p for e in _evaluations(record, step) for p in e.passes]
    losses = [value for p in passes for value in p["losses"]]
    if not losses or not all(isinstance(value, int | float) for value in losses):
        return None
    return float(sum(losses)) / len(losses)
