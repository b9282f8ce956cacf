"""What other people's scripts showed: a finding that was wrong, and silent bugs that were not seen."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from tests.verify.test_run_rules import change_values, trained
from verify.report import Status
from verify.trace.record import Event
from verify.watch import judge

BAD = (Status.FAIL, Status.WARN)


def codes(run: Run, *wanted: str) -> set[str]:
    report = judge(run.record(), list(wanted))
    return {check.code for check in report.checks if check.status in BAD}


def status(run: Run, code: str) -> Status:
    return judge(run.record(), [code]).checks[0].status


def sum_of_means(run: Run, source: str) -> Run:
    change_values(run, lambda passes: {"val_loss": 0.0, "test_loss": sum(p["losses"][0] for p in passes)})
    for event in run.events:
        if event["kind"] == "held_values":
            del event["values"]["val_loss"]
    return run.more("source", path="train.py", text=source)


def test_a_running_sum_that_is_divided_where_it_is_shown_is_not_the_reported_loss() -> None:
    shown = "def test():\n    for i, batch in enumerate(loader):\n        bar(test_loss / (i + 1))\n"
    assert "EVL604" not in codes(sum_of_means(Run(), shown), "EVL604")
    assert "EVL604" in codes(sum_of_means(Run(), "print('validation', test_loss)\n"), "EVL604")
    assert "EVL604" not in codes(sum_of_means(Run(), "for b in loader:\n    test_loss += loss(b)\n"), "EVL604")


def test_the_last_item_of_a_list_that_is_averaged_is_the_loss_of_a_batch() -> None:
    def run(source: str) -> Run:
        changed = change_values(Run(), lambda passes: {"val_loss[-1]": passes[-1]["losses"][0]})
        for event in changed.events:
            if event["kind"] == "held_values":
                del event["values"]["val_loss"]
        return changed.more("source", path="train.py", text=source)

    assert "EVL604" not in codes(run("import numpy as np\nprint(np.average(val_loss))\n"), "EVL604")
    assert "EVL604" in codes(run("plt.plot(val_loss)\n"), "EVL604")


def fast_after_the_first_epoch(run: Run, **mode: object) -> Run:
    """Only the first epoch is carried out; of the others the modes alone are seen."""
    for event in run.events:
        if event["kind"] == "pass" and event["trained"] and event["step"] >= 6:
            event.clear()
            event.update({"kind": "skipped_pass", "model": 0, "loader": 0, "loc": "train.py:33"}, **mode)
    return run


def test_a_mode_that_is_lost_shows_in_fast_forward_too() -> None:
    lost = fast_after_the_first_epoch(Run(), training=False, norms=0.0, drops=0.0)
    assert status(lost, "TRN407") is Status.FAIL
    kept = fast_after_the_first_epoch(Run(), training=True, norms=1.0, drops=1.0)
    assert status(kept, "TRN407") is Status.PASS


def test_a_mode_that_was_never_seen_after_an_evaluation_is_skipped() -> None:
    run = Run().drop("pass", where=lambda e: trained(e) and e["step"] >= 6)
    assert status(run, "TRN407") is Status.SKIP


def rebuilt(run: Run, every: int, **group: object) -> Run:
    """A new optimizer every so many epochs, for the same parameters."""
    made = next(e for e in run.events if e["kind"] == "optimizer")
    made["holds"] = "a-b-6"
    made["groups"] = [{**made["groups"][0], **group}]
    for number in range(1, 4 // every):
        run.more("optimizer", **{**{k: v for k, v in made.items() if k != "kind"}, "id": number})

    def owner(event: Event) -> int:
        return int((event["n"] - 1) // 6 // every)

    return run.put("step", opt=owner).more("source", path="train.py", text="import torch\n")


def test_an_optimizer_that_is_made_in_a_function_called_each_epoch_is_rebuilt() -> None:
    assert "SRC076" in codes(rebuilt(Run(), every=1), "SRC076")


@pytest.mark.parametrize("run", [rebuilt(Run(), every=2), rebuilt(Run(), every=1, momentum=0.0), Run()])
def test_an_optimizer_for_each_stage_or_without_a_state_is_not(run: Run) -> None:
    run.more("source", path="train.py", text="import torch\n")
    assert "SRC076" not in codes(run, "SRC076")


def test_a_cause_silences_its_consequence() -> None:
    run = Run().put("held", n_foreign=6, tensors=6, foreign=[[10, 8]]).put("step", grads="none")
    report = judge(run.record(), ["OPT702", "LOS905", "GRD305"])
    found = [check for check in report.checks if check.status in BAD]
    assert "OPT702" in {check.code for check in found}
    assert "LOS905" not in {check.code for check in found}
    assert "another model" in next(check.message for check in found if check.code == "OPT702")


def test_colours_of_an_error_are_left_out() -> None:
    run = Run().put("run", code=1)
    run.more(
        "crash", error="UnpicklingError", message="\x1b[1mno\x1b[0m", more="", loc="train.py:3", stack=[], module=None
    )
    assert "\x1b" not in str(judge(run.record(), ["RUN071"]).checks)


def test_an_option_is_named_as_it_is_typed() -> None:
    text = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--use_aug', type=bool)\n"
    run = Run().more("source", path="train.py", text=text)
    (check,) = [c for c in judge(run.record(), ["CFG503"]).checks if c.status in BAD]
    assert "--use_aug" in check.message


def test_a_count_of_the_script_that_a_short_epoch_breaks_is_no_failure() -> None:
    run = Run().put("run", code=1).put("iter_end", length=3000)
    run.more("crash", error="AssertionError", message="no message", more="", loc="train.py:9", stack=[], module=None)
    assert status(run, "RUN071") is Status.ERROR
    assert status(run.put("iter_end", length=6), "RUN071") is Status.FAIL


def test_two_evaluations_before_the_training_are_no_two_epochs() -> None:
    run = Run().more("scheduler_unused", cls="StepLR", opt=0)
    assert status(run, "LRS801") is Status.FAIL
    begun = Run().drop("sched", "scheduler").more("scheduler_unused", cls="StepLR", opt=0)
    first = next(n for n, e in enumerate(begun.events) if e["kind"] == "iter_begin")
    end = next(n for n, e in enumerate(begun.events) if e["kind"] == "iter_end")
    evaluation = [e for e in begun.events if e["kind"] == "pass" and not e["trained"]][:3]
    begun.events = [*begun.events[:first], *evaluation, *begun.events[first : end + 1], *begun.events[-1:]]
    begun.more("ended", why="time", step=6)
    assert status(begun, "LRS801") is Status.SKIP


def test_an_end_before_any_epoch_and_evaluation_is_no_verdict() -> None:
    run = Run()
    end = next(n for n, e in enumerate(run.events) if e["kind"] == "iter_end")
    run.events = run.events[:end]
    run.more("ended", why="time", step=6)
    assert judge(run.record(), ["RUN"]).exit_code == 2


def plateau(run: Run, given: str, mode: str) -> Run:
    run.put("scheduler", cls="ReduceLROnPlateau", numbers={"mode": mode}, loc="train.py:1")
    run.put("sched", given=lambda e: [0.1 + 0.01 * e["epoch"]], loc="train.py:2")
    return run.more("source", path="train.py", text=f"import torch\nscheduler.step({given})\n")


@pytest.mark.parametrize(("given", "mode"), [("val_f1", "min"), ("m['rmse']", "max"), ("self.auc", "min")])
def test_a_metric_that_is_named_and_watched_in_the_wrong_direction(given: str, mode: str) -> None:
    assert "LRS805" in codes(plateau(Run(), given, mode), "LRS805")


@pytest.mark.parametrize(
    ("given", "mode"),
    [("val_f1", "max"), ("-val_f1", "min"), ("score", "min"), ("1 - acc", "min"), ("x['loss']", "min")],
)
def test_a_metric_that_is_watched_in_the_right_direction(given: str, mode: str) -> None:
    assert "LRS805" not in codes(plateau(Run(), given, mode), "LRS805")


def test_a_part_of_a_fused_weight_without_a_gradient() -> None:
    run = Run().more("dead_part", model=0, name="blocks.0.attn.qkv.weight", parts=3, dead=2, rows=96)
    (check,) = judge(run.record(), ["GRD306"]).of(Status.FAIL)
    assert "64 to 95 of 96" in check.measured
    assert "GRD306" not in codes(Run(), "GRD306")
