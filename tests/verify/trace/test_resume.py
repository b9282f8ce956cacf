"""A second start shows whether a run repeats itself and goes on where it was; the comparison is tested on records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.verify.run_records import Run
from tests.verify.trace.runs import PLAIN, TRAIN, write
from verify.trace.launch import Ended, watch
from verify.trace.record import Record
from verify.trace.resume import try_resume
from verify.watch import judge

SOURCE = "parser.add_argument('--resume')\n"


def whole_run() -> Run:
    """A run that says how it resumes, with a checksum of its weights at the start of each epoch."""
    run = Run(6)
    run.more("source", path="train.py", text=SOURCE)
    run.put("loop", loc="train.py:29")
    run.before(
        "iter_begin", "weights", lambda e: e["loader"] == 0, opt=0, sum=lambda e: 10.0 + e["epoch"],
        state=lambda e: e["epoch"],
    )  # fmt: skip
    return run


def again_from(
    epoch: int, loop_start: int, rate: float | None = None, state: int = 3, weights: int | None = None
) -> Run:
    """The second start: it loads the weights of an epoch and trains one more."""
    run = Run(1)
    run.before("iter_begin", "weights_loaded", lambda e: e["loader"] == 0, step=0)
    start = 10.0 + (epoch if weights is None else weights)
    run.before("iter_begin", "weights", lambda e: e["loader"] == 0, opt=0, sum=start, state=state)
    run.put("step", lrs=[rate if rate is not None else Run(6).rate(epoch)])
    return run.put("loop", start=loop_start, stop=6, loc="train.py:29")


def compare(second: Run, first: Run | None = None) -> tuple[dict[str, Any], list[Any]]:
    """The `resume` event, and the starts that were made."""
    whole = Ended(code=0, seconds=2.0, log="", events=whole_run().record().events)
    starts: list[Any] = []
    runs = [first or whole_run(), second]

    def start(command: list[str], cut: Any, mirror: Any) -> tuple[Any, str]:
        starts.append((command, cut, mirror))
        return SimpleNamespace(events=runs[len(starts) - 1].record().events, log=""), "mirror"

    events = try_resume(whole, ["python", "train.py"], start, PLAIN, 60.0)
    return next(e for e in events if e["kind"] == "resume"), starts


def test_a_run_that_goes_on_where_it_was():
    stop = compare(again_from(2, 2))[1][0][1].stop_after
    found, starts = compare(again_from(stop, stop))
    assert (found["lost"], found["back"], found["at"]) == ([], [], stop)
    assert [one[2] for one in starts] == [None, "mirror"], "the second start is made where the first one stopped"


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"rate": 0.1}, "lost", "the schedule starts anew"),
        ({"state": 0}, "lost", "starts without its moments"),
        ({"loop_start": 1}, "back", "trained twice"),
        ({"loop_start": 3}, "back", "left out"),
        ({"weights": 1}, "back", "older checkpoint"),
    ],
)
def test_what_is_lost_is_named(changes: dict[str, Any], where: str, what: str):
    found, starts = compare(again_from(**{"epoch": 2, "loop_start": 2, **changes}))
    assert starts[0][1].stop_after == 2
    assert any(what in finding["message"] for finding in found[where]), found


def test_two_runs_that_differ():
    other = whole_run().put("backward", lambda e: e["step"] >= 3, value=lambda e: e["value"] + 1e-6)
    whole = Ended(code=0, seconds=2.0, log="", events=whole_run().record().events)
    runs = iter([other, again_from(2, 2)])

    def start(*_: Any) -> tuple[Any, None]:
        return SimpleNamespace(events=next(runs).record().events, log=""), None

    (repeat, _) = try_resume(whole, ["python", "train.py"], start, PLAIN, 60.0)
    assert (repeat["equal"], repeat["step"]) == (False, 4)


def test_without_time_nothing_is_started():
    whole = Ended(code=0, seconds=30.0, log="", events=whole_run().record().events)
    events = try_resume(whole, ["python", "train.py"], pytest.fail, PLAIN, 5.0)
    assert [e["skipped"] for e in events] == ["there was no time to start the script again"] * 2


RESUMES = (
    """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
"""
    + TRAIN
    + """
start = 0
if args.resume and os.path.exists("last.pt"):
    state = torch.load("last.pt")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    start = state["epoch"] + 1
for epoch in range(start, 6):
    train(1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "last.pt")
"""
)


@pytest.mark.slow
def test_a_real_script_is_stopped_and_resumed(tmp_path: Path):
    write(tmp_path, RESUMES)
    record: Record = watch(["python", "train.py"], folder=tmp_path, cut=replace(PLAIN, resume=True))
    (repeat,), (resume,) = record.of("repeat"), record.of("resume")
    assert repeat["equal"], repeat
    assert (resume.get("lost"), resume.get("back")) == ([], []), resume
    codes = {check.code: check.status for check in judge(record, ["CKP014", "CKP015", "REP021"]).checks}
    assert set(codes.values()) == {"pass"}
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
