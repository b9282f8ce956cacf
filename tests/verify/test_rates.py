"""The rates that the steps of a run were made with, and the decay of an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.verify.run_records import BATCHES, Run
from tests.verify.test_run_rules import averages
from verify.report import Check, Status
from verify.rules import all_rules
from verify.watch import _apply, judge

TOP, EPOCHS = 0.1, 12
Curve = Callable[[float], float]
BAD = ("fail", "warn", "error")


def found(code: str, run: Run) -> list[Check]:
    checks = list(_apply(all_rules()[code], run.record()))
    assert all("internal error" not in check.message for check in checks), checks
    return [check for check in checks if check.status in BAD]


def cosine(share: float, floor: float = 0.0) -> float:
    return floor + 0.5 * (TOP - floor) * (1 + math.cos(math.pi * share))


def groups(rates: tuple[float, ...], steps: Callable[[float], list[float]], cls: str = "OneCycleLR") -> Run:
    """A run whose groups were built with some rates, and have others in its steps."""
    run = Run(EPOCHS).put("scheduler", cls=cls)
    group = {"tensors": 2, "numel": 70, "vectors": 1, "frozen": 0, "weight_decay": 0.0}
    run.put("optimizer", groups=[{**group, "lr": rate} for rate in rates])
    return run.put("step", lrs=lambda e: steps(e["n"] / (EPOCHS * BATCHES)))


def alike(share: float) -> list[float]:
    return [cosine(share)] * 2


def loaded(run: Run) -> Run:
    return run.more("optimizer_loaded", opt=0, entries=2, step=0, loc="train.py:9")


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (groups((0.01, 0.1), alike), "fail"),
        (groups((0.01, 0.1), alike, cls="LambdaLR"), "warn"),
        (groups((0.1, 0.1), alike), ""),
        (groups((0.01, 0.1), lambda s: [0.1 * cosine(s), cosine(s)]), ""),
        (groups((0.0, 0.1), alike), ""),
        (groups((0.01, 0.1), lambda s: [cosine(s)] * 3), ""),
        (loaded(groups((0.01, 0.1), alike)), ""),
    ],
    ids=["one-number-for-all", "by-hand", "built-alike", "in-proportion", "frozen-at-first", "added-later", "resumed"],
)
def test_rates_of_groups_that_are_overwritten(run: Run, status: str):
    assert [check.status for check in found("LRS811", run)] == ([status] if status else [])


def accumulated(curve: Curve, accumulation: int = 2) -> Run:
    """A run that steps after every second batch; `curve` is a function of the number of the step."""
    run = Run(EPOCHS).drop("step", where=lambda e: e["n"] % accumulation != 0)
    run.put("step", lrs=lambda e: [curve(e["n"] // accumulation - 1)])
    return run.put("iter_end", lambda e: e["loader"] == 0, steps=BATCHES // accumulation)


ALL = EPOCHS * BATCHES


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (accumulated(lambda n: cosine(n / ALL)), True),
        (accumulated(lambda n: cosine(n / ALL, 0.01)), True),
        (accumulated(lambda n: TOP * (n + 1) / 6 if n < 6 else cosine((n - 6) / (ALL - 6))), True),
        (accumulated(lambda n: TOP * (1 - n / ALL)), True),
        (accumulated(lambda n: cosine(2 * n / ALL)), False),
        (accumulated(lambda n: cosine(2 * n / ALL, 0.06)), False),
        (accumulated(lambda n: TOP * (1 - 2 * n / ALL)), False),
        (accumulated(lambda n: cosine(n / (20 * ALL))), False),
        (accumulated(lambda n: TOP * 0.98**n), False),
        (accumulated(lambda n: TOP / math.sqrt(1 + n / 10)), False),
        (accumulated(lambda n: TOP * 0.5 ** (n // 12)), False),
        (accumulated(lambda n: TOP), False),
        (accumulated(lambda n: cosine(n / ALL)).put("run", code=1), False),
        (accumulated(lambda n: cosine(n / ALL), accumulation=1), False),
    ],
    ids=[
        "cosine", "to-a-floor", "behind-a-warmup", "line", "of-the-run", "of-the-run-to-a-floor", "line-of-the-run",
        "of-all-batches-without-time-lapse", "exponential", "inverse-square-root", "steps", "constant", "broken-off",
        "a-step-a-batch",
    ],
)  # fmt: skip
def test_a_horizon_that_counts_batches(run: Run, bad: bool):
    assert bool(found("LRS812", run)) is bad


def stepped(curve: Curve) -> Run:
    return Run(EPOCHS).put("step", lrs=lambda e: [curve(e["n"] - 1)])


@pytest.mark.parametrize(
    ("curve", "bad"),
    [
        (lambda n: 0.0 if n < 4 else cosine(n / ALL), True),
        (lambda n: TOP * n / 5 if n < 5 else cosine(n / ALL), False),
        (lambda n: 0.0 if n < 1 else cosine(n / ALL), False),
        (lambda n: 0.0 if n < 4 else TOP * min(1, (n - 3) / 5), False),
        (lambda n: 0.0 if n < 4 else TOP, False),
    ],
    ids=["floor-division", "a-line", "one-step", "frozen-then-warmed", "frozen-then-constant"],
)
def test_a_warmup_of_zeros(curve: Curve, bad: bool):
    assert bool(found("LRS813", stepped(curve))) is bad


def function(curve: Curve, whole: int = BATCHES, per_batch: bool = True) -> Run:
    """A LambdaLR with its function; an epoch has `whole` batches without the time-lapse."""
    run = Run(EPOCHS).put("scheduler", cls="LambdaLR", numbers={})
    run.put("iter_end", lambda e: e["loader"] == 0, length=whole)
    if per_batch:
        run.drop("sched").after(
            "step", "sched", id=0, given=[], step=lambda e: e["n"], epoch=0, iteration=None,
            lrs=lambda e: [TOP * curve(e["n"])],
        )  # fmt: skip
    points, call = [], 0
    while len(points) < 600:
        points.append([call, curve(call)])
        call += max(1, call // 60)
    return run.more("lambda_curve", id=0, points=points)


def falling(horizon: int, floor: float = 0.0, warmup: int = 2) -> Curve:
    def at(call: float) -> float:
        share = min(1.0, max(0.0, (call - warmup) / (horizon - warmup)))
        return (call + 1) / warmup if call < warmup else floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * share))

    return at


FUNCTIONS = [
    ("of-epochs-in-batches", lambda: function(falling(EPOCHS, 0.05)), True),
    ("ten-times-too-long", lambda: function(falling(10 * ALL)), True),
    ("too-long-with-all-batches", lambda: function(falling(100 * ALL), whole=60), True),
    ("too-long-once-an-epoch", lambda: function(falling(4 * EPOCHS), per_batch=False), True),
    ("line-too-long", lambda: function(lambda n: max(0.0, 1 - n / (5 * ALL))), True),
    ("of-the-run", lambda: function(falling(ALL)), False),
    ("of-the-run-without-time-lapse", lambda: function(falling(10 * ALL), whole=60), False),
    ("once-an-epoch", lambda: function(falling(EPOCHS), per_batch=False), False),
    ("to-a-high-floor", lambda: function(falling(EPOCHS, 0.5)), False),
    ("half-of-the-run", lambda: function(falling(ALL // 2, 0.05)), False),
    ("inverse-square-root", lambda: function(lambda n: min(1, n / 9) / math.sqrt(1 + n)), False),
    ("exponential", lambda: function(lambda n: 0.99**n), False),
    ("exponential-with-a-floor", lambda: function(lambda n: max(0.01, 0.3**n)), False),
    ("steps", lambda: function(lambda n: 0.1 ** (n // 3)), False),
    ("constant", lambda: function(lambda n: 1.0), False),
    ("warmup-alone", lambda: function(lambda n: min(1.0, (n + 1) / 10)), False),
]


@pytest.mark.parametrize(("name", "run", "bad"), FUNCTIONS, ids=[name for name, _, _ in FUNCTIONS])
def test_the_horizon_of_a_function(name: str, run: Callable[[], Run], bad: bool):
    assert bool(found("LRS814", run())) is bad


def wave(call: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * call / 20)


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (function(wave), True),
        (function(wave).more("source", path="train.py", text="# cosine with restarts"), False),
        (function(wave).more("source", path="data.py", text="cycles = 0.13  # of the waves"), True),
        (function(lambda n: wave(n % 20)), False),
        (function(falling(ALL)), False),
        (function(lambda n: 1.0), False),
    ],
    ids=["behind-its-end", "said-so", "other-cycles", "jumps", "of-the-run", "constant"],
)
def test_a_function_that_climbs_again(run: Run, bad: bool):
    assert bool(found("LRS816", run)) is bad


def milestones(*marks: int, per_batch: bool) -> Run:
    run = function(lambda n: 0.5 ** sum(n >= mark for mark in marks), per_batch=per_batch)
    return run.put("scheduler", cls="MultiStepLR", numbers={"milestones": list(marks)})


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (milestones(6, 9, per_batch=True), True),
        (milestones(6, 9, per_batch=False), False),
        (milestones(30, 60, per_batch=True), False),
    ],
    ids=["in-batches", "in-epochs", "steps-in-batches"],
)
def test_milestones_in_epochs(run: Run, bad: bool):
    assert bool(found("LRS815", run)) is bad


def horizon(milestone: int, end: int) -> Run:
    parts = [{"cls": "LinearLR", "numbers": {}}, {"cls": "CosineAnnealingLR", "numbers": {"T_max": end}}]
    return Run(EPOCHS).put("scheduler", cls="SequentialLR", numbers={"_milestones": [milestone], "inner": parts})


def test_a_last_part_that_begins_when_the_run_ends():
    assert found("LRS802", horizon(EPOCHS - 1, EPOCHS - 1))
    assert not found("LRS802", horizon(1, EPOCHS - 1))
    assert not found("LRS802", horizon(2, EPOCHS))


def averaged(*decays: float, rest: float = 1e-6) -> Run:
    return averages(Run(), *decays, rest=rest)


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (averaged(0.05, 0.05, 0.05), True),
        (averaged(0.3, 0.2, 0.1), True),
        (averaged(0.95, 0.95, 0.95), False),
        (averaged(0.01, 0.02, 0.03), False),
        (averaged(0.0, 0.0, 0.0), False),
        (averaged(0.5, 0.5, 0.5), False),
        (averaged(0.05, 0.05), False),
        (averaged(0.05, 0.05, 0.05, rest=0.3), False),
        (averaged(0.05, 0.9, 0.05), False),
    ],
    ids=["swapped", "swapped-ramp", "right", "slow-ramp", "copies", "halves", "too-few", "no-average", "mixed"],
)
def test_a_decay_that_is_upside_down(run: Run, bad: bool):
    assert bool(found("EMA044", run)) is bad


def test_the_decay_is_measured():
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from verify.trace.child import averages as child

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    held = {"average": {name: p.detach().clone() for name, p in model.named_parameters()}}
    told: list[dict[str, object]] = []
    recorder = SimpleNamespace(
        held_averages=[], twins={}, averaged=None, fast=False, average_looks=[], step=9,
        emit=lambda kind, **fields: told.append({"kind": kind, **fields}),
    )  # fmt: skip
    child.find(recorder, model)
    assert recorder.held_averages
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # the model has moved away from its average
        child.begin(recorder, child.LOOKS[0])
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p))
            held["average"][name] = 0.05 * held["average"][name] + 0.95 * p
    child.end(recorder)
    assert told[0]["kind"] == "average", told
    assert told[0]["decay"] == pytest.approx(0.05, abs=1e-5)
    assert told[0]["rest"] < 1e-4
    child.begin(recorder, child.LOOKS[1])
    child.end(recorder)
    assert len(told) == 1  # nothing was averaged since


def test_a_warmup_that_the_time_lapse_makes_longer_than_the_run() -> None:
    def curve(call: float) -> float:
        """Of a horizon in calls of the time-lapse, with a warmup in calls of the real run; it swings behind its end."""
        return call / (2 * ALL) if call < 2 * ALL else 0.5 + 0.5 * math.cos(math.pi * (call - 2 * ALL))

    assert not judge(function(curve, whole=60).record(), ["LRS803"]).of(Status.WARN)
    assert judge(function(lambda n: min(1.0, n / (20 * ALL)), whole=60).record(), ["LRS803"]).of(Status.WARN)


def two_groups(*, first_alone: bool, line: str) -> Run:
    run = Run()
    made = next(e for e in run.events if e["kind"] == "optimizer")
    made["groups"] = [made["groups"][0], dict(made["groups"][0])]
    run.put("step", lrs=lambda e: [e["lrs"][0], 0.1 if first_alone else e["lrs"][0]])
    return run.more("source", path="train.py", text=f"import torch\n{line}\n")


def test_a_schedule_for_the_first_group_alone() -> None:
    only_first = "optimizer.param_groups[0]['lr'] = lr"
    assert judge(two_groups(first_alone=True, line=only_first).record(), ["LRS817"]).of(Status.WARN)
    by_name = "def adjust(optimizer, lr):\n    group = optimizer.param_groups[0]\n    group['lr'] = lr"
    assert judge(two_groups(first_alone=True, line=by_name).record(), ["LRS817"]).of(Status.WARN)
    each = "for group in optimizer.param_groups:\n    group['lr'] = lr\n"
    assert not judge(two_groups(first_alone=True, line=each).record(), ["LRS817"]).of(Status.WARN)
    assert not judge(two_groups(first_alone=False, line=only_first).record(), ["LRS817"]).of(Status.WARN)
    by_name = "g = optimizer.param_groups[0]\ng['lr'] = g['base'] * scale"
    assert judge(two_groups(first_alone=True, line=by_name).record(), ["LRS817"]).of(Status.WARN)
    shown = "print(optimizer.param_groups[0]['lr'])"
    assert not judge(two_groups(first_alone=True, line=shown).record(), ["LRS817"]).of(Status.WARN)


@pytest.mark.parametrize(
    ("opt", "cls", "bad"), [(0, "CosineAnnealingLR", True), (1, "CosineAnnealingLR", False), (0, "LinearLR", False)]
)
def test_two_schedules_on_one_optimizer(opt: int, cls: str, bad: bool) -> None:
    run = Run()
    made = next(e for e in run.events if e["kind"] == "optimizer")
    run.more("optimizer", **{**{k: v for k, v in made.items() if k != "kind"}, "id": 1, "loc": "train.py:22"})
    run.put("step", lambda e: e["n"] % 2 == 0, opt=1)
    run.more("scheduler", id=1, loc="train.py:23", cls=cls, numbers={}, opt=opt)
    assert bool(judge(run.record(), ["LRS818"]).of(Status.WARN)) is bad
