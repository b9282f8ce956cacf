"""Models that only give answers while others are trained, and gradients that are clipped beside the step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.verify.run_records import BATCHES, Event, Run
from verify.report import Check
from verify.rules import all_rules
from verify.watch import _apply

BAD = ("fail", "warn", "error")


def found(code: str, run: Run) -> list[Check]:
    checks = list(_apply(all_rules()[code], run.record()))
    assert all("internal error" not in check.message for check in checks), checks
    return [check for check in checks if check.status in BAD]


def trained(event: Event) -> bool:
    return bool(event["trained"])


TEACHER = {
    "model": 1, "training": True, "grad": False, "trained": False, "norms": 1.0, "drops": -1, "n": 16,
    "shape": [16, 10], "iteration": 1, "losses": [], "reductions": [], "weights": 3.5,
}  # fmt: skip


def teacher(changed: bool = False, opts: tuple[int, ...] = (), trainable: bool = False, **fields: object) -> Run:
    """A second model that runs beside each step of the first."""
    run = Run().before("pass", "pass", trained, **{**TEACHER, **fields})
    return table(run, changed, opts, trainable)


def table(run: Run, changed: bool = False, opts: tuple[int, ...] = (), trainable: bool = False) -> Run:
    row = {
        "name": "0.weight", "shape": [3, 4], "trainable": trainable, "was_trainable": trainable, "opts": list(opts),
        "graded": False, "changed": changed, "moved_frozen": False,
    }  # fmt: skip
    run.more("model", id=1, cls="Teacher", params=12, tensors=1, trainable=0, norms=1, dropouts=0, loc="train.py:30")
    return run.more("params", model=1, rows=[row], buffers=[["norm.running_mean", True]], passes=24)


def trained_before(**fields: object) -> Run:
    """A teacher that the run itself has trained before."""
    run = teacher(changed=True, **fields)
    first = next(n for n, event in enumerate(run.events) if event["kind"] == "pass")
    run.events[first:first] = [{"kind": "pass", **TEACHER, "grad": True, "trained": True, "step": 0, "loc": "a.py:1"}]
    return run


def features(training: bool = True, frozen: bool = True, then_eval: bool = False) -> Run:
    """A frozen encoder that runs over the data once, before training."""
    run, common = Run(), {**TEACHER, "training": training, "step": 0, "loc": "train.py:9", "iteration": None}
    run.events[0:0] = [{"kind": "pass", **common} for _ in range(3)]
    if then_eval:
        run.events[3:3] = [{"kind": "pass", **common, "training": False}]
    return table(run, trainable=not frozen)


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (teacher(), "fail"),
        (teacher(norms=-1, drops=1.0), "warn"),
        (trained_before(), "fail"),
        (features(), "warn"),
        (teacher(training=False, norms=0.0), ""),
        (teacher(norms=-1), ""),
        (teacher(weights=lambda e: e["step"] * 0.1, changed=True), ""),
        (teacher(changed=True), ""),
        (trained_before(weights=lambda e: e["step"] * 0.1), ""),
        (features(training=False), ""),
        (features(frozen=False), ""),
        (features(then_eval=True), ""),
        (Run(), ""),
    ],
    ids=[
        "teacher", "teacher-with-dropout", "trained-before", "frozen-encoder", "in-eval-mode", "nothing-to-switch",
        "momentum-teacher", "trained-beside", "goes-on", "encoder-in-eval-mode", "encoder-to-be-trained",
        "statistics-renewed", "no-other-model",
    ],
)  # fmt: skip
def test_a_fixed_model_in_train_mode(run: Run, status: str):
    assert [check.status for check in found("TRN418", run)] == ([status] if status else [])


def clipped(kind: str = "step", **fields: object) -> Run:
    common = {
        "fn": "clip_grad_norm_", "limit": 1.0, "norm": 0.0, "backwards": None, "tensors": 6, "graded": 6,
        "holders": [0], "iteration": 1,
    }  # fmt: skip
    return Run().before(kind, "clip", **{**common, **fields})


def in_turns(run: Run) -> Run:
    """Two optimizers that step in turns; the first is number 0."""
    run.more("optimizer", id=1, cls="Adam", groups=[], loc="train.py:25")
    return run.put("step", lambda e: e["n"] % 2 == 0, opt=1)


def of_the_other() -> Run:
    """What is clipped before each second step belongs to the first optimizer."""
    return in_turns(clipped(loc=lambda e: f"train.py:{40 + e['n'] % 2}"))


def both_then_both() -> Run:
    """The gradients of both networks are clipped, then both step."""
    run = in_turns(clipped(holders=[1], loc="train.py:41"))
    run.events = [e for e in run.events if e["kind"] != "backward" or e["step"] % 2 == 0]
    kept = [e for n, e in enumerate(run.events) if e["kind"] != "clip" or run.events[n + 1]["opt"] == 0]
    run.events = kept
    return run


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (clipped(graded=0, holders=[]), True),
        (of_the_other(), True),
        (clipped(), False),
        (clipped(holders=[]), False),
        (clipped(graded=0, holders=[], limit="inf"), False),
        (clipped(graded=0, holders=None), False),
        (both_then_both(), False),
        (of_the_other().before("step", "clip", limit=1.0, tensors=6, graded=6, holders=[1], loc="train.py:60"), False),
    ],
    ids=["a-copy", "of-the-other", "own", "in-no-optimizer-yet", "measured", "not-looked-at", "both", "both-clipped"],
)
def test_gradients_of_another_model_are_clipped(run: Run, bad: bool):
    assert bool(found("TRN417", run)) is bad


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (clipped(graded=2, left_out=20, loc="train.py:40"), True),
        (clipped(graded=22, left_out=0, loc="train.py:40"), False),
        (clipped(graded=20, left_out=2, loc="train.py:40"), False),
        (clipped(graded=2, left_out=20, loc=lambda e: f"train.py:{40 + e['n'] % 2}"), False),
        (clipped(graded=2, left_out=20, loc="train.py:40", limit="inf"), False),
        (clipped(graded=2, left_out=None, loc="train.py:40"), False),
    ],
    ids=["head", "all", "most", "several-calls", "measured", "several-optimizers"],
)
def test_a_part_of_the_gradients_is_clipped(run: Run, bad: bool):
    assert bool(found("TRN419", run)) is bad


def test_a_schedule_that_is_stepped_once_an_epoch_of_batches_cut_by_hand():
    run = Run(12).put("scheduler", cls="OneCycleLR", numbers={"total_steps": 12 * BATCHES})
    run.drop("iter_begin", "iter_end").put("step", iteration=None)
    assert found("LRS802", run)
    assert not found("LRS802", run.put("scheduler", numbers={"total_steps": 12}))


def test_statistics_that_drift_for_a_phase():
    assert not found("OPT711", Run())
    assert found("OPT711", Run().more("frozen_norm", model=0, name="norm", step=3))


def looks(*frozen: bool, training: bool = True) -> list[str]:
    """What is told of a batch norm that is frozen, or not, at each look; its model trains a head meanwhile."""
    torch = pytest.importorskip("torch")
    from verify.trace.child import weights
    from verify.trace.child.passes import ModelInfo

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    told: list[str] = []
    told_by = {"step": 3, "emit": lambda *_, **fields: told.append(fields["name"])}
    recorder = SimpleNamespace(models={1: ModelInfo(0, model)}, frozen_norms={}, **told_by)
    info = SimpleNamespace(parameters=lambda: list(model[1].parameters()))
    for still in frozen:
        model[0].requires_grad_(not still).train(training)
        weights.note_norms(recorder, info)
        model(torch.randn(8, 4))
    return told


def test_frozen_batch_norms_are_followed():
    assert looks(True, True, True, True, True) == ["0"]
    assert not looks(True, True, True, True, True, training=False)
    assert not looks(True, True, False, True, True, False)  # each second step, as in adversarial training
    assert not looks(*[False] * 6)


def test_weights_are_looked_at_now_and_then():
    torch = pytest.importorskip("torch")
    from verify.trace.child.passes import ModelInfo

    info = ModelInfo(0, torch.nn.Linear(4, 2))
    first = info.weights_at(0)
    assert first is not None
    assert info.weights_at(0) is None  # the same step
    assert info.weights_at(1) == first
    with torch.no_grad():
        info.module.bias.data = info.module.bias.data + 1  # as momentum encoders are updated
    assert info.weights_at(2) != first
