"""A second start shows whether a run repeats itself and goes on where it was; the comparison is tested on records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.verify.run_records import Run
from tests.verify.trace.runs import PLAIN, TRAIN, watched, write
from verify.trace.launch import Ended, watch
from verify.trace.record import Record
from verify.trace.restart import plan, restart
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


def compare(
    second: Run, first: Run | None = None, whole: Run | None = None, log: str = ""
) -> tuple[dict[str, Any], list[Any]]:
    """The `resume` event, and the starts that were made."""
    ended = Ended(code=0, seconds=2.0, log="", events=(whole or whole_run()).record().events)
    starts: list[Any] = []
    runs = [first or whole_run(), second]

    def start(command: list[str], cut: Any, mirror: Any) -> tuple[Any, str]:
        starts.append((command, cut, mirror))
        return SimpleNamespace(events=runs[len(starts) - 1].record().events, log=log), "mirror"

    events = try_resume(ended, ["python", "train.py"], start, PLAIN, 60.0)
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


# -- from which file, by which options -----------------------------------------------------------------------------

WEIGHTS = {"kind": "weights", "tensors": 9, "first": "0.weight", "prefix": "", "live": 6, "made_at": 6}


def content(*names: str) -> dict[str, Any]:
    """What is known about a checkpoint that holds the model and more."""
    kinds = {
        "optimizer": {"kind": "optimizer", "type": "dict", "keys": {"entries": 9}},
        "scheduler": {"kind": "scheduler", "type": "dict", "keys": {}},
        "epoch": {"kind": "value", "value": 1},
        "best_acc": {"kind": "value", "value": 0.5},
        "optimizer_states": {"kind": "other", "type": "builtins.list"},
    }
    return {"kind": "dict", "type": "dict", "keys": {"model": WEIGHTS, **{name: kinds[name] for name in names}}}


def option(*flags: str, value: bool = True, **fields: Any) -> dict[str, Any]:
    dest = flags[-1].strip("-").replace("-", "_")
    common = {"type": None, "default": "None", "action": "_StoreAction"}
    return {"dest": dest, "flags": list(flags), "takes_value": value, **common, **fields}


def saving(run: Run, *saves: tuple[str, dict[str, Any], int, int], options: Any = ()) -> Run:
    """A run that saves files (path, content, first epoch, every so many), and has options."""
    events, run.events = run.events, []
    for event in events:
        if event["kind"] != "save":
            run.events.append(event)
            continue
        due = [s for s in saves if event["epoch"] >= s[2] and (event["epoch"] - s[2]) % s[3] == 0]
        run.events += [{**event, "path": path, "content": held} for path, held, *_ in due]
    return run.more("argparse", options=list(options))


def long_run(*saves: Any, options: Any = (), epochs: int = 16) -> Run:
    run = Run(epochs)
    run.more("source", path="train.py", text=SOURCE)
    run.before(
        "iter_begin", "weights", lambda e: e["loader"] == 0, opt=0, sum=lambda e: 10.0 + e["epoch"], state=9
    )  # fmt: skip
    return saving(run, *saves, options=options)


PATH = option("--resume", default="''")
FULL, ALONE = content("epoch", "optimizer"), content("best_acc")


def asked(*options: dict[str, Any], saves: Any = (("last.pt", FULL, 0, 1),)) -> list[str]:
    """What is added to the command."""
    run = long_run(*saves, options=options).record()
    return restart(["python", "train.py"], run, run, None).command[2:]


def test_the_file_that_holds_most_is_waited_for_and_chosen():
    whole = long_run(("model.th", ALONE, 0, 1), ("checkpoint.th", content("epoch"), 8, 10), options=[PATH])
    found, starts = compare(again_from(9, 9), whole, whole)
    assert starts[0][1].stop_after == 9
    assert starts[1][0][2:] == ["--resume", "checkpoint.th"], found


def test_two_epochs_remain_to_be_resumed():
    """The first resumed epoch has the rate that the optimizer brings along, with or without a schedule."""
    whole = long_run(("best.pt", FULL, 0, 1), epochs=8).drop("save", where=lambda e: e["epoch"] == 6)
    assert plan(whole.record()).stop == 2, "seven is the only stop after which the best is not the last"


def test_the_file_of_every_few_epochs_is_waited_for():
    saves = ("best.pt", FULL, 0, 2), ("last.pt", FULL, 4, 5)
    assert plan(long_run(*saves, epochs=12).record()).stop == 6, "after the fifth, the best would be the last"
    assert plan(long_run(*saves, epochs=5).record()).stop == 2, "it comes too late"


def test_one_epoch_remains_where_the_file_is_late():
    assert plan(long_run(("last.pt", FULL, 2, 10), epochs=4).record()).stop == 3


@pytest.mark.parametrize(
    ("saves", "reason"),
    [
        (
            [("model.th", ALONE, 0, 1), ("checkpoint.th", FULL, 13, 10)],
            "checkpoint.th, the file to resume from",
        ),
        ([("model.th", ALONE, 12, 10)], "first saved after 13 epochs"),
        ([], "saves nothing that it could resume from"),
    ],
)
def test_the_file_comes_too_late(saves: Any, reason: str):
    found, starts = compare(again_from(9, 9), None, long_run(*saves, options=[PATH]))
    assert reason in found["skipped"]
    assert [one[1].stop_after for one in starts] == [0]


def test_fewer_epochs_than_needed_are_no_missing_checkpoint():
    found, _ = compare(again_from(1, 1), None, long_run(("last.pt", FULL, 0, 1), options=[PATH], epochs=2))
    assert found["skipped"].startswith("2 training epochs of the script were seen")


def test_no_word_of_resuming():
    whole = long_run(("last.pt", FULL, 0, 1)).put("source", text="import torch")
    assert "no option and no word" in compare(again_from(1, 1), None, whole)[0]["skipped"]


@pytest.mark.parametrize(
    ("saves", "chosen"),
    [
        ([("best.pt", FULL, 0, 1), ("last.pt", FULL, 0, 1), ("model.pt", FULL, 0, 1)], "last.pt"),
        ([("last.pt", ALONE, 0, 1), ("best.pt", FULL, 0, 1)], "best.pt"),
        ([("a.ckpt", content("optimizer_states", "epoch"), 0, 1), ("last.ckpt", ALONE, 0, 1)], "a.ckpt"),
        ([("checkpoint.pt", FULL, 0, 1), ("weights.pt", FULL, 0, 1)], "checkpoint.pt"),
    ],
)
def test_which_file(saves: Any, chosen: str):
    assert asked(PATH, saves=saves) == ["--resume", chosen]


SWITCH = option("-r", "--resume", value=False, action="_StoreTrueAction")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([SWITCH], ["--resume"]),
        ([SWITCH, option("--resume_path")], ["--resume", "--resume_path", "last.pt"]),
        ([option("--ckpt-file"), SWITCH], ["--resume", "--ckpt-file", "last.pt"]),
        ([SWITCH, option("--checkpoint-path", default="'out/last.pt'")], ["--resume"]),
        ([option("--resume", type="bool", default="False")], ["--resume", "True"]),
        ([option("--resume", "--no-resume", value=False)], ["--resume"]),
        ([option("--resume-from"), option("--resume-every", type="int")], ["--resume-from", "last.pt"]),
        ([option("--ckpt")], ["--ckpt", "last.pt"]),
    ],
)
def test_how_it_is_asked(options: Any, words: list[str]):
    assert asked(*options) == words


@pytest.mark.parametrize(
    "other",
    [
        option("--download", value=False),
        option("--no-resume", value=False),
        option("--resume", value=False, action="_StoreFalseAction"),
        option("--gradient-checkpointing", value=False),
        option("--checkpoint-every", type="int"),
        option("--dataloader-workers"),
        option("--checkpoint", default="'checkpoint'"),
        option("--restore-best-weights", value=False),
        option("--resume-epoch", type="int"),
    ],
)
def test_options_that_do_not_resume(other: dict[str, Any]):
    assert asked(other) == []


def test_files_that_are_gone_are_not_chosen(tmp_path: Path):
    run = long_run(("last.pt", FULL, 0, 1), ("best.pt", FULL, 0, 1), options=[PATH]).record()
    (tmp_path / "best.pt").touch()
    assert restart(["x"], run, run, tmp_path).command == ["x", "--resume", "best.pt"]
    (tmp_path / "best.pt").unlink()
    assert "left no file" in restart(["x"], run, run, tmp_path).reason


def test_renamed_files_go_by_their_new_names():
    events = [{"kind": "save", "path": "last.tmp", "i": 0}, {"kind": "renamed", "path": "last.tmp", "to": "last.pt"}]
    assert [e["path"] for e in Record(events).of("save")] == ["last.pt"]


# -- starts that fail ----------------------------------------------------------------------------------------------


def failed(error: str, message: str, *events: tuple[str, dict[str, Any]]) -> Run:
    """A second start that ends before its first step."""
    run = Run(0)
    for kind, fields in events:
        run.more(kind, **{"step": 0, "loc": "train.py:9", **fields})
    return run.more("crash", error=error, message=message, more="", loc="train.py:10", module="")


def failing(second: Run, options: Any, saves: Any = (("last.pt", FULL, 0, 1),)) -> dict[str, Any]:
    whole = long_run(*saves, options=options)
    return compare(second, whole, whole)[0]


READ = ("load", {"path": "last.pt", "content": FULL})


@pytest.mark.parametrize(
    "second",
    [
        failed("UnpicklingError", "weights only", ("load_failed", {"path": "last.pt", "error": "UnpicklingError"})),
        failed("RuntimeError", "Error(s) in loading state_dict for Net", READ),
        failed("KeyError", "'scheduler'", READ),
        failed("KeyError", "\"param 'initial_lr' is not specified\\\\nThis happens when\"", READ),
        failed("KeyError", "'net'", ("load", {"path": None, "content": FULL})),
    ],
)
@pytest.mark.parametrize("way", [PATH, SWITCH])
def test_failing_on_its_own_checkpoint_is_a_finding(second: Run, way: dict[str, Any]):
    found = failing(second, [way])
    assert [f["location"] for f in found["lost"]] == ["train.py:10"]
    assert "This happens when" not in found["lost"][0]["measured"]
    assert "failed before its first step" in found["back_skipped"]


@pytest.mark.parametrize(
    "second",
    [
        failed("TypeError", "stat: path should be string, not NoneType"),
        failed("AttributeError", "NoneType", ("load_failed", {"path": None, "error": "AttributeError"})),
        failed("KeyError", "'lr'", ("load", {"path": "vgg16.pth", "content": ALONE})),
        failed("FileNotFoundError", "no", ("load_failed", {"path": "best.pt", "error": "FileNotFoundError"})),
    ],
)
def test_failing_before_a_checkpoint_is_read_is_none(second: Run):
    assert "failed before it read a checkpoint" in failing(second, [SWITCH])["skipped"]


def test_weights_alone_lack_what_resuming_asks_for():
    second = failed("KeyError", "'epoch'", ("load", {"path": "model.th", "content": ALONE}))
    found = failing(second, [PATH], [("model.th", ALONE, 0, 1)])
    assert found["skipped"].startswith("model.th holds weights alone")


def test_a_usage_error_is_quoted():
    whole = long_run(("last.pt", FULL, 0, 1), options=[SWITCH])
    found, _ = compare(Run(0), whole, whole, log="usage: train.py\ntrain.py: error: --path is missing\n")
    assert found["skipped"].endswith("train.py: error: --path is missing")


def without_loading() -> Run:
    return again_from(0, 0, state=9).drop("weights_loaded")


def test_a_switch_that_loads_nothing():
    found = failing(without_loading(), [SWITCH])
    assert "loads nothing" in found["lost"][0]["message"]
    assert "back_skipped" in found


def test_an_option_that_may_mean_something_else():
    assert "may mean something else" in failing(without_loading(), [PATH])["skipped"]


def test_a_pickled_module_is_loaded_too():
    second = again_from(2, 2, state=9).drop("weights_loaded")
    second.before("iter_begin", "load", lambda e: e["loader"] == 0, step=0, path="last.pt", content=FULL)
    whole = long_run(("last.pt", FULL, 0, 1), options=[SWITCH]).put("loop", stop=16)
    found, _ = compare(second, whole, whole)
    assert found["at"] == 2, found


def test_what_torch_refuses_to_load_is_recorded(tmp_path: Path):
    script = """
import argparse
torch.save({"args": argparse.Namespace(lr=0.1)}, "last.pt")
train(1)
torch.load("last.pt", weights_only=True)
"""
    record = watched(tmp_path, TRAIN + script)
    assert [(e["path"], e["error"]) for e in record.of("load_failed")] == [("last.pt", "UnpicklingError")]
    assert record.of("crash")[0]["error"] == "UnpicklingError"


# -- a second start under load -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run.more("ended", why="time", step=3), "time was up"),
        (lambda run: run.drop("iter_end", where=lambda e: e["iteration"] > 2), "time was up"),
        (lambda run: run.more("fast", epoch=1, step=6, worked=20.0), "too slow to train 2 epochs in full"),
        (lambda run: run.more("crash", error="OSError", message="disk full", loc=""), "OSError: disk full"),
    ],
)
def test_a_start_that_did_not_get_to_the_stop_is_not_resumed(change: Any, reason: str):
    found, starts = compare(again_from(1, 1), change(whole_run()))
    assert reason in found["skipped"]
    assert len(starts) == 1


def timed(seconds: float) -> Ended:
    """A run of 6 epochs of one second, that took longer: probes, and what came after."""
    run = whole_run()
    epoch = -1
    for event in run.events:
        epoch += event["kind"] == "iter_begin" and event["loader"] == 0
        event["t"] = 1.0 + max(0, epoch)
    return Ended(code=0, seconds=seconds, log="", events=run.record().events)


@pytest.mark.parametrize(("left", "starts"), [(30.0, 2), (2.0, 0)])
def test_a_slow_run_is_started_again_when_its_first_epochs_were_quick(left: float, starts: int):
    runs = iter([whole_run(), again_from(2, 2)])
    made = []

    def start(*_: Any) -> tuple[Any, None]:
        made.append(1)
        return SimpleNamespace(events=next(runs).record().events, log=""), None

    events = try_resume(timed(90.0), ["python", "train.py"], start, PLAIN, left)
    assert len(made) == starts, events


def test_a_run_that_does_not_repeat_still_shows_an_older_checkpoint():
    first = whole_run().put("weights", sum=lambda e: e["sum"] + 0.5)
    second = again_from(2, 2).put("weights", sum=11.5)
    found, _ = compare(second, first)
    assert "older checkpoint" in found["back"][0]["message"]


def test_nothing_shows_where_it_begins():
    second = again_from(2, 2).put("weights", sum=99.0).drop("loop")
    assert "where the resumed run begins" in compare(second)[0]["back_skipped"]


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


MORE = """parser.add_argument("--resume_path")
parser.add_argument("--every", type=int, default=4)
args = parser"""
EVERY = """
    torch.save({"model": model.state_dict()}, "model.pt")
    if epoch % args.every == 3:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "full.pt")
"""
PATH_TOO = (
    RESUMES.partition("    torch.save(")[0].replace("args = parser", MORE).replace('"last.pt"', "args.resume_path")
)
PATH_TOO = PATH_TOO.replace("range(start, 6)", "range(start, 8)") + EVERY


@pytest.mark.slow
def test_a_real_script_that_wants_a_switch_and_the_file_of_every_fourth_epoch(tmp_path: Path):
    write(tmp_path, PATH_TOO)
    record: Record = watch(["python", "train.py"], folder=tmp_path, cut=replace(PLAIN, resume=True))
    (resume,) = record.of("resume")
    assert (resume.get("lost"), resume.get("back"), resume.get("stop")) == ([], [], 4), resume


@pytest.mark.slow
def test_a_real_script_that_cannot_read_its_checkpoint(tmp_path: Path):
    write(tmp_path, RESUMES.replace('"epoch": epoch}', '"epoch": epoch, "args": args}'))
    record: Record = watch(["python", "train.py"], folder=tmp_path, cut=replace(PLAIN, resume=True))
    checks = {check.code: check for check in judge(record, ["CKP014", "CKP015"]).checks}
    assert checks["CKP014"].status == "fail"
    assert checks["CKP014"].measured.startswith("UnpicklingError")
    assert checks["CKP015"].status == "skip"


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
