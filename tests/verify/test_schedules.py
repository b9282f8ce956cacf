"""Schedules that a script writes itself, and calls of a schedule that come at the wrong time."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.verify.run_records import BATCHES, Run
from verify.report import Check
from verify.rules import all_rules
from verify.watch import _apply

TOP = 0.1
EPOCHS = 20
STEPS = EPOCHS * BATCHES
Curve = Callable[[float], float]


def cosine(share: float, floor: float = 0.0) -> float:
    return floor + 0.5 * (TOP - floor) * (1 + math.cos(math.pi * share))


def own(per_step: Curve | None = None, per_epoch: Curve | None = None, length: int = BATCHES) -> Run:
    """A run without a scheduler of torch, whose rates follow a function of the share of the run."""
    run = Run(EPOCHS).drop("scheduler", "sched")
    if per_step:
        run.put("step", lrs=lambda e: [per_step((e["n"] - 1) / STEPS)])
    if per_epoch:
        run.put("step", lrs=lambda e: [per_epoch(e["epoch"] / EPOCHS)])
    return run.put("iter_end", lambda e: e["loader"] == 0, length=length)


def constant(source: str = "import torch\n", cls: str = "SGD") -> Run:
    run = own(per_step=lambda share: TOP).put("optimizer", cls=cls)
    return run.more("source", path="train.py", text=source)


def called(name: str, value: Curve) -> Run:
    return constant().put("step", named_rates=lambda e: {name: value(e["n"] / STEPS)})


def held(source: str, cls: str = "Warmup") -> Run:
    return constant(source).more("rate_holder", opt=0, cls=cls, module="__main__", name="schedule")


def found(code: str, run: Run) -> list[Check]:
    checks = list(_apply(all_rules()[code], run.record()))
    assert all("internal error" not in check.message for check in checks), checks
    return [check for check in checks if check.status in ("fail", "warn", "error")]


SCHEDULE = """
import torch
class Warmup:
    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.step_update(0)
    def step_update(self, number):
        self._set(0.1 / (1 + number))
    def _set(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr
"""
LOOP = """
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
schedule = Warmup(optimizer)
for epoch in range(20):
    optimizer.step()
"""
FUNCTION = """
import torch
def adjust_learning_rate(optimizer, epoch):
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * 0.5**epoch
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(20):
    optimizer.step()
"""
ATTRIBUTE = """
from torch.optim import SGD
optimizer = SGD(net.parameters(), lr=0.1)
for epoch in range(20):
    optimizer.lr = 0.1 * 0.5**epoch
"""

NEVER_SET = [
    ("a-variable", lambda: called("lr", cosine)),
    ("another-name", lambda: called("current_lr", cosine)),
    ("an-object-that-nothing-calls", lambda: held(SCHEDULE + LOOP)),
    ("an-object-whose-step-is-the-optimizers", lambda: held((SCHEDULE + LOOP).replace("step_update", "step"))),
    ("a-function-that-nothing-names", lambda: constant(FUNCTION)),
    ("an-attribute-of-the-optimizer", lambda: constant(ATTRIBUTE)),
]
SET_OR_CONSTANT = [
    ("a-constant-variable", lambda: called("lr", lambda share: TOP)),
    ("a-number-of-another-size", lambda: called("lr", lambda share: 1000 * share)),
    ("a-rate-that-is-set", lambda: own(per_step=cosine).put("step", named_rates=lambda e: {"lr": e["lrs"][0]})),
    ("an-object-that-is-called", lambda: held(SCHEDULE + LOOP + "    schedule.step_update(epoch)\n")),
    ("called-under-another-name", lambda: held(SCHEDULE + LOOP + "    train(schedule)\ndef f(s): s.step_update(1)\n")),
    (
        "an-object-whose-step-is-called",
        lambda: held((SCHEDULE + LOOP).replace("step_update", "step") + "    schedule.step(epoch)\n"),
    ),
    ("a-class-that-nobody-made", lambda: constant(SCHEDULE)),
    ("a-callback-of-a-library", lambda: held((SCHEDULE + LOOP).replace("Warmup:", "Warmup(torch.nn.Module):"))),
    ("a-function-behind-an-option", lambda: constant(FUNCTION + "    if decay: adjust_learning_rate(optimizer, 1)\n")),
    ("a-function-of-another-file", lambda: constant().more("source", path="tools.py", text=FUNCTION)),
    ("an-option-called-optimizer", lambda: constant("import torch\nconfig.optimizer.lr = 0.1\n")),
    ("an-optimizer-of-ones-own", lambda: constant(ATTRIBUTE + "class Lion: pass\n", cls="Lion")),
    ("several-optimizers", lambda: called("lr", cosine).put("step", lambda e: e["n"] % 2 == 0, opt=1)),
]


@pytest.mark.parametrize(("name", "run"), NEVER_SET, ids=[name for name, _ in NEVER_SET])
def test_a_rate_that_is_never_set(name: str, run: Callable[[], Run]):
    assert found("LRS801", run())


@pytest.mark.parametrize(("name", "run"), SET_OR_CONSTANT, ids=[name for name, _ in SET_OR_CONSTANT])
def test_a_rate_that_is_set_or_meant_to_stay(name: str, run: Callable[[], Run]):
    assert not found("LRS801", run())


def warmed(share: float) -> float:
    """A tenth of warmup, then a cosine over the rest."""
    return TOP * (10 * share + 0.01) if share < 0.1 else cosine((share - 0.1) / 0.9)


def stopped(run: Run) -> Run:
    """The same run, of a loop that meant to go on for longer."""
    return run.put("loop", stop=2 * EPOCHS)


BAD_CURVES = [
    ("LRS802", "cosine-ten-times-too-long", lambda: own(per_step=lambda s: cosine(s / 10))),
    ("LRS802", "cosine-too-long-once-an-epoch", lambda: own(per_epoch=lambda s: cosine(s / 4), length=40)),
    ("LRS802", "line-too-long", lambda: own(per_step=lambda s: TOP * (1 - s / 10))),
    ("LRS802", "cosine-that-comes-back", lambda: own(per_step=lambda s: cosine(2 * s))),
    ("LRS802", "cosine-that-comes-back-in-part", lambda: own(per_epoch=lambda s: cosine(1.8 * s), length=40)),
    ("LRS803", "warmup-without-end", lambda: own(per_step=lambda s: TOP * (s + 0.01))),
    ("LRS803", "warmup-of-epochs", lambda: own(per_epoch=lambda s: min(TOP, TOP * (s / 0.8 + 0.01)), length=40)),
    ("LRS810", "over-early", lambda: own(per_step=lambda s: cosine(min(1, 5 * s), 1e-4), length=40)),
]
GOOD_CURVES = [
    ("warmup-and-cosine", lambda: own(per_step=warmed)),
    ("warmup-and-cosine-to-a-floor", lambda: own(per_step=lambda s: cosine(s, 0.6 * TOP))),
    ("cosine-once-an-epoch", lambda: own(per_epoch=cosine, length=40)),
    ("line", lambda: own(per_step=lambda s: TOP * (1 - s))),
    ("slow-exponential", lambda: own(per_epoch=lambda s: TOP * 0.99 ** (EPOCHS * s))),
    ("inverse-square-root", lambda: own(per_step=lambda s: TOP / math.sqrt(1 + 2 * s))),
    ("exponential-with-a-floor", lambda: own(per_epoch=lambda s: max(1e-4, TOP * 0.3 ** (EPOCHS * s)))),
    ("steps-by-hand", lambda: own(per_epoch=lambda s: TOP * 0.1 ** sum(s >= at for at in (0.1, 0.2, 0.3)))),
    ("stopped-early", lambda: stopped(own(per_epoch=lambda s: cosine(s / 3)))),
    ("warming-when-stopped-early", lambda: stopped(own(per_epoch=lambda s: TOP * (s + 0.01)))),
    ("warmup-in-batches-that-were-left-out", lambda: own(per_step=lambda s: TOP * (s + 0.01), length=40)),
    ("range-test", lambda: own(per_step=lambda s: 1e-5 * 10 ** (4 * s))),
    ("restarts", lambda: own(per_step=lambda s: cosine(4 * s % 1))),
    ("triangles", lambda: own(per_step=lambda s: TOP * (0.02 + abs(1 - 4 * s % 2)))),
    (
        "waves-that-say-so",
        lambda: own(per_step=lambda s: cosine(2 * s)).more("source", path="train.py", text="# cyclic annealing"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "name", "run"), BAD_CURVES, ids=[f"{c}-{n}" for c, n, _ in BAD_CURVES])
def test_a_curve_that_does_not_fit_the_run(code: str, name: str, run: Callable[[], Run]):
    assert found(code, run())


@pytest.mark.parametrize(("name", "run"), GOOD_CURVES, ids=[name for name, _ in GOOD_CURVES])
def test_a_curve_that_fits_the_run(name: str, run: Callable[[], Run]):
    assert not [check for code in ("LRS801", "LRS802", "LRS803", "LRS810") for check in found(code, run())]


def test_a_loop_over_steps_shows_that_the_run_is_complete():
    run = own(per_step=lambda s: cosine(s / 10)).drop("loop", "iter_begin", "iter_end").put("step", iteration=None)
    assert not found("LRS802", run)
    assert found("LRS802", run.more("step_plan", opt=0, steps=STEPS))
    assert not found("LRS802", run.put("step_plan", steps=2 * STEPS))


def sequence(run: Run, horizon: int) -> Run:
    parts = [
        {"cls": "LinearLR", "numbers": {"total_iters": 2}},
        {"cls": "CosineAnnealingLR", "numbers": {"T_max": horizon}},
    ]
    return run.put("scheduler", cls="SequentialLR", numbers={"_milestones": [2], "inner": parts})


def test_a_cosine_behind_a_warmup_that_is_over_early():
    assert found("LRS802", sequence(Run(EPOCHS), 8))
    assert not found("LRS802", sequence(Run(EPOCHS), EPOCHS - 2))


def test_an_epoch_that_a_trainer_of_a_library_leaves_at_its_last_batch():
    """Lightning asks for no batch more than it needs, so no pass over its loader ever ends by itself."""
    run = Run(EPOCHS).put("scheduler", cls="OneCycleLR", numbers={"total_steps": STEPS})
    assert found("LRS802", run.put("iter_end", exhausted=False))


def after_epochs(*epochs: int, cls: str = "CosineAnnealingLR") -> Run:
    run = Run(EPOCHS).drop("sched", where=lambda e: e["epoch"] not in epochs)
    return run.put("scheduler", cls=cls)


@pytest.mark.parametrize(
    ("run", "bad"),
    [
        (after_epochs(0, 1, 2, 4, 5, 9, 10, 14), True),
        (after_epochs(0, 1, 2, 4, 5, 9, 10, 14, cls="ExponentialLR"), False),
        (after_epochs(*range(0, EPOCHS, 2)), False),
        (after_epochs(*range(5, EPOCHS)), False),
        (after_epochs(*range(12)), False),
        (after_epochs(5, 9), False),
        (after_epochs(*range(EPOCHS)), False),
    ],
    ids=["on-improvement", "by-hand-on-a-plateau", "every-second", "late", "until", "milestones", "always"],
)
def test_a_schedule_that_is_stepped_now_and_then(run: Run, bad: bool):
    assert bool(found("LRS803", run)) is bad


# What the recorder sees in the script.

pytest.importorskip("torch")


def seen(source: str, **names: object) -> tuple[ast.stmt, SimpleNamespace]:
    frame = SimpleNamespace(f_globals={}, f_locals=names)
    return ast.parse(source).body[0], frame


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("for i in range(n): pass", 50),
        ("for i in tqdm(range(1, n + 1)): pass", 50),
        ("while i < n: pass", 50),
        ("while True:\n    if i >= n:\n        break", 50),
        ("for a, b in loader: pass", None),
        ("while True: pass", None),
        ("while not done(): pass", None),
        ("while True:\n    if i >= n:\n        break\n    if bad > 3:\n        break", None),
    ],
)
def test_how_far_a_loop_means_to_go(source: str, count: int | None):
    from verify.trace.child import rates

    assert rates._count(*seen(source, n=50, i=0, bad=0)) == count


def test_what_the_script_calls_a_learning_rate():
    from verify.trace.child import rates

    def train() -> dict[str, float]:
        lr, current_lr, lr_image, learning_rate, clr = 0.1, 0.2, 0.3, "0.4", 0.5
        assert lr < current_lr < lr_image < clr
        assert learning_rate
        places = SimpleNamespace(user_frames=lambda: [sys._getframe(2)])
        return rates.named(SimpleNamespace(session=SimpleNamespace(places=places)), 1)

    assert train() == {"lr": 0.1, "current_lr": 0.2}
