"""Starts a script again: once to see whether it repeats itself, once more to see whether it goes on where it was."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from verify.report import without_colours
from verify.trace.record import Event, Record
from verify.trace.restart import RESUMED_EPOCHS, Plan, Restart, plan, restart, worth
from verify.trace.resumed import lost_average, lost_values

REPEATED_STEPS = 20
MARGIN = 1.3  # a second start takes no longer than the first, but another program may begin beside it
NO_TIME = "there was no time to start the script again"


def try_resume(ended: Any, command: list[str], start: Any, cut: Any, left: float) -> list[dict[str, Any]]:
    """Run the script again, and compare.

    Args:
        ended: the watched run.
        start: `start(command, cut, mirror)` runs a command; with the mirror of an earlier run, in its folder.
        left: seconds that may be used.

    Returns:
        Events of kind `repeat` and `resume`.
    """
    whole = Record(ended.events)
    if not whole.steps:
        return []
    planned = plan(whole)
    after = MARGIN * _seconds(whole, RESUMED_EPOCHS, ended.seconds / 3 / MARGIN)  # what the resumed run needs
    began = time.monotonic()
    if planned.stop and left < MARGIN * _seconds(whole, planned.stop, ended.seconds):
        planned = Plan(reason=NO_TIME)
    if not planned.stop:
        if left < MARGIN * _seconds(whole, 0, ended.seconds):
            return [{"kind": "repeat", "skipped": NO_TIME}, _skipped(planned.reason)]
        first, _ = start(command, replace(_within(cut, left), stop_steps=REPEATED_STEPS), None)
        return [_compare(whole, Record(first.events)), _skipped(planned.reason)]
    ended_first, mirror = start(
        command, replace(_within(cut, left - min(left / 2, after)), stop_after=planned.stop), None
    )
    first = Record(ended_first.events)
    found = [_compare(whole, first)]
    left -= time.monotonic() - began
    again = restart(command, whole, first, getattr(mirror, "copy", None))
    reason = _stopped_elsewhere(first, planned.stop) or again.reason
    if not reason and left < after:
        reason = NO_TIME
    if reason:
        return [*found, _skipped(reason)]
    second, _ = start(again.command, replace(_within(cut, left), stop_after=RESUMED_EPOCHS), mirror)
    return [*found, _judge(whole, first, second, planned.stop, again)]


def _within(cut: Any, seconds: float) -> Any:
    return replace(cut, probe_seconds=0.0, soft_seconds=seconds, timeout=seconds)


def _skipped(reason: str) -> dict[str, Any]:
    return {"kind": "resume", "skipped": reason}


def _seconds(whole: Record, epochs: int, otherwise: float) -> float:
    """What a start needs: to the end of some epochs, or to the step up to which losses are compared.

    Args:
        otherwise: where the record does not say when something happened.
    """
    if epochs:
        numbers = {one.begin for one in whole.epochs[epochs : epochs + 1]}
        ends = [e for e in whole.of("iter_begin") if e.get("i") in numbers]
    else:
        ends = whole.steps[:REPEATED_STEPS][-1:]
    seen = ends[0].get("t") if ends else None
    return float(seen) if seen is not None else min(otherwise, 20.0)


def _stopped_elsewhere(first: Record, stop: int) -> str:
    """Why the run that was to be stopped after some epochs is none to resume; empty if it is."""
    crash = first.of("crash")
    if crash:
        return f"the second start ended with an error: {_error(crash[0])}"
    if any(e["why"] == "time" for e in first.of("ended")) or _trained(first) < stop:
        return f"time was up before the second start had seen {stop} epochs"
    if any(e["epoch"] < stop for e in first.of("fast")):
        return f"the second start was too slow to train {stop} epochs in full"
    return ""


def _trained(record: Record) -> int:
    """Passes over loaders that were trained on, which is what a stop counts."""
    return sum(one.role == "train" for one in record.iterations)


def _error(crash: Event) -> str:
    """The first line of an error; a KeyError has its lines between quotes."""
    message = without_colours(crash["message"]).split("\\n")[0]
    return f"{crash['error']}: {message}"[:300]


def _values(record: Record) -> list[Any]:
    return [e["value"] for e in record.of("backward")]


def _compare(whole: Record, again: Record) -> dict[str, Any]:
    """Whether two runs gave the same losses."""
    one, other = _values(whole), _values(again)
    count = min(len(one), len(other))
    if count < 3:
        return {"kind": "repeat", "skipped": "the second start gave too few losses"}
    different = next((n for n in range(count) if one[n] != other[n]), None)
    if different is None:
        return {"kind": "repeat", "equal": True, "compared": count}
    return {
        "kind": "repeat",
        "equal": False,
        "compared": count,
        "step": different + 1,
        "first": one[different],
        "second": other[different],
    }


def _judge(whole: Record, first: Record, second: Any, stop: int, again: Restart) -> dict[str, Any]:
    record = Record(second.events)
    read = _own_loads(first, record)
    if not record.steps:
        return _without_a_step(first, record, second.log, stop, again)
    loaded = [e for e in record.of("weights_loaded") if e["step"] == 0]
    fresh = _epoch_of(*_prints(whole, first, record), stop) == 0
    if loaded or (read and not fresh):  # a pickled module, and weights that are copied by hand, are loaded as well
        own = [] if again.file else sorted({e["path"] for e in read if e["path"]})
        return {"kind": "resume", "own": own, **_findings(whole, first, record, stop, (loaded or read)[0]["loc"])}
    if not again.asked:
        return _skipped("the script does not load what it has saved before it trains")
    if not read and (again.file or not again.is_said):
        given = f"{again.option} {again.file}".strip()
        return _skipped(f"the second start, with {given}, loaded nothing; the option may mean something else")
    finding = {
        "measured": "no weights are loaded",
        "expected": "the weights of the checkpoint",
        "message": "the option to resume is there and loads nothing into the model",
        "location": record.steps[0]["loc"],
        "hint": "load_state_dict for model, optimizer and scheduler",
    }
    return _broken(finding, "the resumed run started from nothing")


def _broken(finding: dict[str, str], reason: str) -> dict[str, Any]:
    """The `resume` event of a start from which nothing can be said about epochs."""
    return {"kind": "resume", "lost": [finding], "back": [], "back_skipped": reason}


def _own_loads(first: Record, again: Record) -> list[Event]:
    """Where the resumed run read a file that the stopped one had written."""
    paths = {e["path"] for e in first.of("save")}
    shapes = [_keys(e["content"]) for e in first.of("save")]
    return [
        e
        for e in again.of("load")
        if e["step"] == 0 and (e["path"] in paths or (e["path"] is None and _keys(e["content"]) in shapes))
    ]


def _keys(content: Any) -> Any:
    """What tells checkpoints apart whose files have no names: in memory, in archives."""
    if isinstance(content, dict) and content.get("kind") == "dict":
        return set(content["keys"])
    return content.get("first") if isinstance(content, dict) else None


def _without_a_step(first: Record, record: Record, log: str, stop: int, again: Restart) -> dict[str, Any]:
    """A resumed run that trained nothing: a finding where it failed on what it had saved itself, else the reason."""
    crash = record.of("crash")
    if not crash:
        if any(e["why"] == "time" for e in record.of("ended")):
            return _skipped("time was up before the resumed run had made a step")
        said = [line.strip() for line in without_colours(log).splitlines() if line.strip()]
        return _skipped(f"the second start did not train; it last said: {(said or [''])[-1][:120]}")
    error = crash[0]
    paths = {e["path"] for e in first.of("save")}
    refused = [e for e in record.of("load_failed") if e["path"] in paths and e["error"] == error["error"]]
    read = _own_loads(first, record)
    if not refused and not read:
        return _skipped(f"the second start failed before it read a checkpoint: {_error(error)}")
    if not refused and again.file and not worth(again.content):
        return _skipped(f"{again.file} holds weights alone, and the second start failed for it: {_error(error)}")
    finding = {
        "measured": _error(error),
        "expected": "training goes on",
        "message": f"the script cannot be resumed after {stop} epochs",
        "location": error["loc"],
        "hint": "load the checkpoint that the script itself writes, with weights_only in mind"
        if refused
        else "resume once by hand: the checkpoint must hold what this line needs",
    }
    return _broken(finding, "the resumed run failed before its first step")


def _findings(whole: Record, first: Record, again: Record, stop: int, place: str) -> dict[str, Any]:
    lost: list[dict[str, str]] = []
    back: list[dict[str, str]] = []
    main = whole.main_optimizer or 0
    prints, earlier, now = _prints(whole, first, again)
    at = _epoch_of(prints, earlier, now, stop)
    if at is not None and at < stop:
        back.append(
            {
                "measured": f"the weights of epoch {at} after {stop} complete epochs",
                "expected": f"those of epoch {stop}",
                "message": "the resumed run begins with an older checkpoint than the last",
                "location": place,
                "hint": "save a last checkpoint every epoch, and resume from it; keep the best one for evaluation",
            }
        )
    reached = at if at is not None else stop
    moments = bool(prints[1:] and prints[1]["state"])
    if now is not None and moments and not now["state"]:
        lost.append(
            {
                "measured": "no moments at the first step",
                "expected": f"those of {prints[1]['state']} tensors",
                "message": f"{whole.optimizers[main]['cls']} starts without its moments",
                "location": place,
                "hint": "save optimizer.state_dict() and load it after the optimizer is built",
            }
        )
    lost += _lost_schedule(whole, again, reached, place)
    back += _epochs_again(whole, again, reached, place)
    if not back and reached < len(prints):
        offset = prints[reached]["step"]
        lost += lost_values(whole, first, again, offset, place)
        lost += lost_average(whole, again, offset, place)
    found = {"lost": lost, "back": back, "stop": stop, "at": at}
    if at is None and _epoch_loop(again) is None:
        found["back_skipped"] = "neither weights nor a loop over epochs show where the resumed run begins"
    return found


def _prints(whole: Record, first: Record, again: Record) -> tuple[list[Event], list[Event], Event | None]:
    """The checksums of the weights at the first step of each epoch, and the first one of the resumed run."""
    main = whole.main_optimizer or 0
    prints = [[e for e in record.of("weights") if e["opt"] == main] for record in (whole, first, again)]
    return prints[0], prints[1], next(iter(prints[2] or again.of("weights")), None)


def _epoch_of(prints: list[Event], earlier: list[Event], now: Event | None, stop: int) -> int | None:
    """After how many epochs the weights were those that the resumed run starts with.

    Where two runs are not the same, the stopped one still tells whether it was an epoch before its last.
    """
    for known in (prints[: stop + 1], earlier[:stop]) if now is not None else ():
        match = [n for n, e in enumerate(known) if now is not None and e["sum"] == now["sum"]]
        if match:
            return match[-1]
    return None


def _lost_schedule(whole: Record, again: Record, reached: int, place: str) -> list[dict[str, str]]:
    """The first learning rate of the resumed epochs that is not that of the whole run.

    The first epoch is not enough: an optimizer's state brings its learning rate along, and only the next call of a
    scheduler that was not restored goes wrong.
    """
    expected, got = _first_rates(whole)[reached:], _first_rates(again)
    for n, (wanted, seen) in enumerate(zip(expected, got, strict=False)):
        if not _same(wanted, seen):
            restarted = _same(seen, whole.steps[0]["lrs"])
            return [
                {
                    "measured": f"learning rate {_show(seen)} in epoch {reached + n + 1}",
                    "expected": f"{_show(wanted)}, as in the run that was not interrupted",
                    "message": "the schedule starts anew"
                    if restarted
                    else "the schedule is at another place than it was",
                    "location": place,
                    "hint": "save and load scheduler.state_dict(); build it before the optimizer's state is loaded",
                }
            ]
    return []


def _first_rates(record: Record) -> list[list[Any]]:
    """The learning rates at the first step of each epoch."""
    steps = [s for s in record.of("step") if s["opt"] == record.main_optimizer]
    firsts = [next((s for s in steps if s["i"] > epoch.begin), None) for epoch in record.epochs]
    return [step["lrs"] for step in firsts if step is not None]


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-7 * max(abs(a), abs(b)) for a, b in zip(one, other, strict=True)
    )


def _show(rates: list[Any]) -> str:
    return f"{max(rates):.4g}"


def _epochs_again(whole: Record, again: Record, reached: int, place: str) -> list[dict[str, str]]:
    first = _epoch_loop(whole)
    second = _epoch_loop(again, first["loc"]) if first else None
    if first is None or second is None:
        return []
    begins = second["start"] - first["start"]
    if begins == reached:
        return []
    what = f"{reached - begins} trained twice" if begins < reached else f"{begins - reached} left out"
    return [
        {
            "measured": f"the loop begins at {second['start']} after {reached} complete epochs from {first['start']}",
            "expected": f"{first['start'] + reached}",
            "message": f"the count of epochs is off: {what}",
            "location": second["loc"],
            "hint": 'start_epoch = checkpoint["epoch"] + 1 when that epoch was complete',
        }
    ]


def _epoch_loop(record: Record, place: str = "") -> dict[str, Any] | None:
    """The longest loop over epochs, or the one at a place: a helper may have a short loop of its own inside."""
    loops = [e for e in record.of("loop") if e["step"] == 1 and (not place or e["loc"] == place)]
    named = [e for e in loops if "epoch" in e["variable"].lower() or "epoch" in e["text"].lower()]
    return max(named, key=lambda e: e["stop"] - e["start"], default=None)
