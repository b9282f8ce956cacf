"""Starts a script again: once to see whether it repeats itself, once more to see whether it goes on where it was."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from verify.trace.record import Record
from verify.trace.resumed import lost_average, lost_values

RESUME_OPTION = re.compile(r"resume|restore|continue|ckpt|checkpoint|load")
RESUME_WORDS = re.compile(r"resum|start_epoch|restore|continu(e|ing)\b.*\b(from|where)|ckpt_path", re.IGNORECASE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LATEST_STOP = 12
REPEATED_STEPS = 20
SLOW_RUN = 0.5  # of the time for the whole verdict


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
    if ended.seconds > SLOW_RUN * cut.timeout or left < 1.2 * min(ended.seconds, 20.0):
        reason = "there was no time to start the script again"
        return [{"kind": "repeat", "skipped": reason}, {"kind": "resume", "skipped": reason}]
    stop = _stop(whole)
    short = replace(cut, probe_seconds=0.0, soft_seconds=left / 2, timeout=left / 2)
    began = time.monotonic()
    limits = {"stop_after": stop} if stop else {"stop_steps": REPEATED_STEPS}
    first, mirror = start(command, replace(short, **limits), None)
    found = [_compare(whole, Record(first.events))]
    if not stop:
        return [*found, {"kind": "resume", "skipped": "the script saves nothing that it could resume from"}]
    if left - (time.monotonic() - began) < ended.seconds / 3:
        return [*found, {"kind": "resume", "skipped": "there was no time to start the script again"}]
    again = _resuming(command, whole, Record(first.events))
    second, _ = start(again, replace(short, stop_after=2), mirror)
    return [*found, _judge(whole, Record(first.events), second, stop, again != command)]


def _stop(record: Record) -> int:
    """After how many epochs to stop, so that there is a checkpoint, and the best is not the last; 0 for not at all."""
    saves = [e for e in record.of("save") if not e["fast"]]
    words = any(RESUME_WORDS.search(text) for path, text in record.sources.items() if path.endswith(".py"))
    if not saves or not (words or _option(record)) or len(record.epochs) < 3:
        return 0
    first = min(e["epoch"] for e in saves) + 1
    best = {e["epoch"] + 1 for e in saves if "best" in e["path"].lower()}
    latest = min(LATEST_STOP, len(record.epochs) - 1)
    for epochs in range(max(2, first), latest + 1):
        if best and epochs not in best and min(best) < epochs:
            return epochs
    return max(2, first) if max(2, first) <= latest else 0


def _option(record: Record) -> dict[str, Any] | None:
    """The command line option that resumes, if there is one."""
    for event in record.of("argparse"):
        options = [o for o in event["options"] if o["flags"]]
        for word in ("resume", "restore", "continue", "ckpt", "checkpoint", "load"):
            for option in options:
                if any(word in flag for flag in option["flags"]) and "dir" not in option["dest"]:
                    return dict(option)
    return None


def _resuming(command: list[str], whole: Record, first: Record) -> list[str]:
    option = _option(whole)
    if option is None or any(flag in command for flag in option["flags"]):
        return command
    flag = max(option["flags"], key=len)
    if not option["takes_value"]:
        return [*command, flag]
    paths = list(dict.fromkeys(e["path"] for e in first.of("save")))
    named = [p for p in paths if any(word in Path(p).name.lower() for word in ("last", "latest"))]
    last = named or [p for p in paths if "best" not in Path(p).name.lower()] or paths
    return [*command, flag, last[-1]] if last else command


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


def _judge(whole: Record, first: Record, second: Any, stop: int, asked: bool) -> dict[str, Any]:
    record = Record(second.events)
    loaded = [e for e in record.of("weights_loaded") if e["step"] == 0]
    if not record.steps:
        log = [line for line in second.log.strip().splitlines() if line.strip()]
        crash = record.of("crash")
        if crash and (asked or loaded or record.of("load")):
            error = crash[0]
            finding = {
                "measured": ANSI.sub("", f"{error['error']}: {error['message']}")[:300],
                "expected": "training goes on",
                "message": f"the script cannot be resumed after {stop} epochs",
                "location": error["loc"],
                "hint": "load the checkpoint that the script itself writes, with weights_only in mind",
            }
            return {"kind": "resume", "lost": [finding], "back": []}
        return {"kind": "resume", "skipped": f"the second start did not train; it last said: {(log or [''])[-1][:120]}"}
    if not loaded:
        if asked:
            finding = {
                "measured": "no weights are loaded",
                "expected": "the weights of the checkpoint",
                "message": "the option to resume is there and loads nothing into the model",
                "location": record.steps[0]["loc"],
                "hint": "load_state_dict for model, optimizer and scheduler",
            }
            return {"kind": "resume", "lost": [finding], "back": []}
        return {"kind": "resume", "skipped": "the script does not load what it has saved before it trains"}
    return {"kind": "resume", **_findings(whole, first, record, stop, loaded[0]["loc"])}


def _findings(whole: Record, first: Record, again: Record, stop: int, place: str) -> dict[str, Any]:
    lost: list[dict[str, str]] = []
    back: list[dict[str, str]] = []
    main = whole.main_optimizer or 0
    prints = [e for e in whole.of("weights") if e["opt"] == main]
    now = next((e for e in again.of("weights")), None)
    at = _epoch_of(prints, now, stop)
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
    return {"lost": lost, "back": back, "stop": stop, "at": at}


def _epoch_of(prints: list[dict[str, Any]], now: dict[str, Any] | None, stop: int) -> int | None:
    """After how many epochs of the whole run the weights were those that the resumed run starts with."""
    if now is None:
        return None
    match = [n for n, e in enumerate(prints[: stop + 1]) if e["sum"] == now["sum"]]
    return match[-1] if match else None


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
