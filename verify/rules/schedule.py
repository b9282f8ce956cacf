"""LRS: the learning rate over the run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from verify.report import Finding, Status, plural
from verify.rules import Subject, own_schedule, rule
from verify.source import project_of, text_of
from verify.trace.record import Event, NotSeenError, Record

NEVER_ENDS = "the warmup never ends"
COSINE = "CosineAnnealingLR"
CYCLIC = ("CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR")
# How far a horizon may be from the run before it is a mistake rather than a habit.
TOO_LONG, TOO_SHORT = 1.5, 0.75
JUMP = 5.0
WITH_AN_END = (COSINE, "OneCycleLR", "PolynomialLR", "LinearLR")


def _calls(record: Record, number: int) -> list[Event]:
    return [e for e in record.of("sched") if e["id"] == number]


def _schedulers(record: Record) -> list[Event]:
    found = record.of("scheduler")
    if not found:
        raise NotSeenError("no scheduler of torch was stepped")
    return found


def _unit(record: Record, number: int) -> str:
    """`epoch` or `step`, by how often the scheduler is called within an epoch; or nothing."""
    calls = _calls(record, number)
    epochs = [e for e in record.epochs if e.exhausted or e.counts["batches"] >= e.limit]
    if not record.epochs and _once_an_epoch(record, number, len(calls)):
        return "epoch"
    if len(epochs) < 2:
        return ""
    begin, end = epochs[0].begin, epochs[1].begin
    within = sum(begin <= call["i"] < end for call in calls)
    if within == 1 and epochs[0].counts["batches"] > 1:
        return "epoch"
    return "step" if within > 1 else ""


def _once_an_epoch(record: Record, number: int, calls: int) -> bool:
    """Whether a scheduler is stepped once an epoch by a script that cuts its batches by hand."""
    opt = next((s["opt"] for s in record.of("scheduler") if s["id"] == number), None)
    steps, epochs = len(record.steps_of.get(opt, [])) if opt is not None else 0, record.planned_epochs or 0
    return record.ran_to_the_end and epochs >= 3 and calls == epochs and steps >= 2 * epochs


# More calls than this many times those of its epochs belong to the epochs of another loader.
SEVERAL_LOADERS = 1.2


def _planned_calls(record: Record, number: int) -> tuple[float, float]:
    """How many calls the whole run makes: in the time-lapse, and without it.

    Raises:
        NotSeenError: the run does not show it.
    """
    epochs, unit = record.planned_epochs, _unit(record, number)
    if not epochs or not unit:
        raise NotSeenError("the run does not show how many epochs it plans")
    if unit == "epoch":
        return epochs, epochs
    first, calls = record.epochs[0], _calls(record, number)
    if first.length is None:
        raise NotSeenError("nobody knows how many batches an epoch has")
    within = sum(first.begin <= c["i"] < record.epochs[1].begin for c in calls)
    if len(calls) > SEVERAL_LOADERS * epochs * within:
        raise NotSeenError("several loaders are iterated side by side, each with epochs of its own")
    whole = within * (first.length or first.counts["batches"]) / max(1, first.counts["batches"])
    return epochs * within, epochs * whole


def _parts(scheduler: Event) -> list[dict[str, Any]]:
    """The scheduler itself, or those inside a sequence of them."""
    inner = scheduler["numbers"].get("inner")
    return inner if inner else [scheduler]


@rule("LRS801", subject=Subject.RUN)
def schedule_never_steps(record: Record) -> Iterator[Finding]:
    """A schedule exists and never reaches the optimizer.

    Why it matters: the learning rate stays what it was at the start; the model ends worse and nobody sees why.
    Found by: schedulers on which `step` was never called in a run of two epochs or more. Where the script sets the rate
    by itself and it stays the same in every step: a variable named as a learning rate that changes; a living object
    whose methods for setting the rate nothing calls; a function for it that nothing names; a rate that is written to
    an attribute of the optimizer, which reads its groups alone.
    Not an error: schedulers inside of others, a constant learning rate, a schedule behind an option.

    Wrong: `scheduler = CosineAnnealingLR(optimizer, 50)` and no `scheduler.step()`; `lr = lr_at(step)` and nothing more
    Right: `scheduler.step()` once an epoch; `for group in optimizer.param_groups: group["lr"] = lr_at(step)`
    """
    epochs = max(len(record.epochs), len({e.after for e in record.evaluations if e.after >= 0}))
    if epochs < 2 and not (record.ran_to_the_end and len(record.steps) > 20):
        raise NotSeenError("fewer than two epochs were seen")
    for event in record.of("scheduler_unused"):
        if event["opt"] is not None and event["opt"] in record.steps_of:
            yield Finding(
                measured=f"{event['cls']}: no step in {epochs} epochs",
                expected="steps",
                message="the learning rate never changes although a schedule was built",
                location=record.optimizers[event["opt"]]["loc"],
                hint="call scheduler.step() once an epoch (or once a batch, if it counts in batches)",
            )
    if not record.of("scheduler", "scheduler_unused") and len(record.steps_of) == 1:
        yield from _own_schedule_without_effect(record)


def _own_schedule_without_effect(record: Record) -> Iterator[Finding]:
    opt, steps = record.main_optimizer or 0, len(record.steps)
    project = project_of(record)
    if not own_schedule.is_constant(record, opt) or own_schedule.is_defined(project, record.optimizers[opt]["cls"]):
        return  # an optimizer of the project's own may get its rate in another way
    rate, place = max(record.learning_rates(opt)), record.steps[0]["loc"]
    into_groups = 'for group in optimizer.param_groups: group["lr"] = lr'
    variable = own_schedule.named_but_not_set(record, opt)
    attribute = own_schedule.attribute_of_optimizer(project)
    idle = _idle_schedule(record, opt)
    unused = own_schedule.function_never_used(project, {record.steps[0]["loc"].rpartition(":")[0]})
    status, what, hint = None, "", into_groups
    if variable:
        name, first, last = variable
        what = f"`{name}` goes from {first:.3g} to {last:.3g}"
    elif attribute:
        what, place = "the rate is written to an attribute of the optimizer", project.at(attribute)
    elif idle:
        what, place = f"no method of {idle[0]} that sets the rate is called", idle[1]
        hint = "call it once an epoch or once a batch, whichever it counts in"
    elif unused:
        status, what, place = Status.WARN, f"{unused.name}() is called nowhere", project.at(unused)
        hint = "call it in the loop, or delete it"
    if what:
        yield Finding(
            status=status,
            measured=f"{what}; the optimizer stays at {rate:.3g} in {steps} steps",
            expected="a rate that follows the schedule",
            message="the learning rate never changes although the script has a schedule",
            location=place,
            hint=hint,
        )


def _idle_schedule(record: Record, opt: int) -> tuple[str, str] | None:
    """A living object that keeps the optimizer and whose setting of rates nothing calls: its class and its place."""
    project = project_of(record)
    for held in record.of("rate_holder"):
        if held["module"].startswith("timm.scheduler") and own_schedule.timm_schedule_never_called(project):
            return held["cls"], record.optimizers[opt]["loc"]
        node = own_schedule.method_never_called(project, held["cls"]) if held["opt"] == opt else None
        if node is not None:
            return held["cls"], project.at(node)
    return None


@rule("LRS802", severity=Status.WARN, subject=Subject.RUN)
def schedule_horizon_off(record: Record) -> Iterator[Finding]:
    """The schedule is much longer or shorter than the run.

    Why it matters: a cosine that is too long never anneals; one that is too short climbs back to the full rate at the
    end, because `CosineAnnealingLR` is periodic.
    Found by: the horizon of the scheduler against the number of times that the whole run steps it, both with and
    without the time-lapse. Of rates that the script sets by itself, the curve of a run that went to its planned end:
    one that has just begun to fall, or that falls and gently climbs again.
    Not an error: half again as long, warm restarts, plateau schedulers, early stopping, exponential decay.

    Wrong: `CosineAnnealingLR(optimizer, T_max=200)` in a run of 50 epochs
    Right: `CosineAnnealingLR(optimizer, T_max=epochs)`
    """
    if not record.of("scheduler"):
        yield from _own_horizon(record, _own_curve(record))
        return
    for scheduler in _schedulers(record):
        planned = _planned_calls(record, scheduler["id"])
        unit = _unit(record, scheduler["id"])
        for part in _parts(scheduler):
            finding = _horizon(part, planned, unit, scheduler["loc"], whole=part is scheduler)
            finding = finding or _last_part(scheduler, part, planned, unit)
            if finding:
                yield finding
                break


def _own_curve(record: Record) -> int:
    """The optimizer whose rates the script sets by itself.

    Raises:
        NotSeenError: there is none.
    """
    record.need_training(10)
    opt = record.main_optimizer or 0
    if record.of("scheduler") or len(record.steps_of) > 1 or own_schedule.is_constant(record, opt):
        raise NotSeenError("no scheduler of torch was stepped, and the rate of the one optimizer never changes")
    return opt


def _own_horizon(record: Record, opt: int) -> Iterator[Finding]:
    again = own_schedule.climbs_again(record.learning_rates(opt))
    curve = own_schedule.whole_curve(record, opt) if own_schedule.is_complete(record, opt) else []
    short = own_schedule.unfinished(curve) if curve else ""
    if again and not own_schedule.says_cycles(record):
        message = "the schedule reaches its minimum early and climbs back"
    elif short and not again:
        message = "the schedule has hardly begun to fall when the run ends; it never anneals"
    else:
        return
    yield Finding(
        measured=again or short,
        expected="a schedule as long as the run",
        message=message,
        location=record.steps[0]["loc"],
        hint="its horizon is the number of times that the rate is set in the whole run",
    )


def _last_part(scheduler: Event, part: dict[str, Any], planned: tuple[float, float], unit: str) -> Finding | None:
    """A cosine at the end of a sequence that is over long before the run, or hardly begins within it."""
    milestones, parts = scheduler["numbers"].get("_milestones"), _parts(scheduler)
    if not milestones or part is not parts[-1] or part["cls"] != COSINE or part["numbers"].get("T_max") is None:
        return None
    end = milestones[-1] + part["numbers"]["T_max"]
    short, long = all(end < TOO_SHORT * plan for plan in planned), all(end > TOO_LONG * plan for plan in planned)
    if not short and not long:
        return None
    return Finding(
        measured=f"{part['cls']} from {milestones[-1]} to {end} {unit}s, the run steps it {_counted(planned, unit)}",
        expected="as long as the run",
        message="the cosine reaches its minimum early and climbs back to the full rate"
        if short
        else "the last part of the schedule has hardly begun when the run ends; it never anneals",
        location=scheduler["loc"],
        hint="milestones and horizons are numbers of calls of scheduler.step(), and add up to all of the run's",
    )


def _counted(planned: tuple[float, float], unit: str) -> str:
    return f"{planned[0]:.0f} {unit}s" + (f" ({planned[1]:.0f} without the time-lapse)" if unit == "step" else "")


def _horizon(part: dict[str, Any], planned: tuple[float, float], unit: str, place: str, whole: bool) -> Finding | None:
    numbers, cls = part["numbers"], part["cls"]
    horizon = {COSINE: numbers.get("T_max"), "OneCycleLR": numbers.get("total_steps")}.get(cls)
    counted = _counted(planned, unit)
    if horizon:
        if any(TOO_SHORT * plan <= horizon <= TOO_LONG * plan for plan in planned):
            return None
        if all(horizon > plan for plan in planned):
            done = max(planned) / horizon
            return Finding(
                measured=f"{cls} over {horizon} {unit}s, the run steps it {counted}",
                expected="as long as the run",
                message=f"the schedule has gone {done:.0%} of its way when the run ends; it never anneals",
                location=place,
                hint="the horizon is the number of times that scheduler.step() is called",
            )
        if whole and cls == COSINE and all(horizon < plan for plan in planned):
            return Finding(
                measured=f"{cls} over {horizon} {unit}s, the run steps it {counted}",
                expected="as long as the run",
                message="the cosine reaches its minimum early and climbs back to the full rate",
                location=place,
                hint="the horizon is the number of times that scheduler.step() is called",
            )
    warmup = numbers.get("total_iters") if cls in ("LinearLR", "ConstantLR") else None
    if warmup and all(warmup >= plan for plan in planned):
        return Finding(
            measured=f"{cls} over {warmup} {unit}s, the run steps it {counted}",
            expected="a part of the run",
            message="the warmup is longer than the run",
            location=place,
            hint="a warmup of a few percent of the run",
        )
    first = numbers.get("step_size") if cls == "StepLR" else min(numbers.get("milestones") or [0])
    if whole and first and all(first >= plan for plan in planned):
        return Finding(
            measured=f"{cls} first acts after {first} {unit}s, the run has {counted}",
            expected="within the run",
            message="the learning rate never changes in a run of this length",
            location=place,
            hint="milestones within the run",
        )
    return None


@rule("LRS803", severity=Status.WARN, subject=Subject.RUN)
def schedule_step_unit(record: Record) -> Iterator[Finding]:
    """The schedule counts in epochs and is stepped once a batch, or the other way round.

    Why it matters: the rate has decayed to nothing after the first epochs, or the warmup never ends.
    Found by: the horizon against calls a batch; the learning rate of a whole run that is stepped once an epoch; epochs
    that are left out now and then, as by a call that stands where the model has improved; a rate that the script sets
    by itself and that rises through most of a run.
    Not an error: schedules without a horizon, every second epoch, a pause at the start or the end, a range test.

    Wrong: `OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)` stepped once an epoch
    Right: stepped once a batch
    """
    if not record.of("scheduler"):
        yield from _own_warmup(record, _own_curve(record))
        return
    for scheduler in _schedulers(record):
        number = scheduler["id"]
        yield from _now_and_then(record, scheduler)
        calls = [sum(e.begin <= c["i"] < f.begin for c in _calls(record, number)) for e, f in _pairs(record)]
        steps = [e.counts["steps"] for e, _ in _pairs(record)]
        if len(calls) >= 2 and all(c >= 1.9 * s > 1 for c, s in zip(calls, steps, strict=True)):
            yield Finding(
                measured=f"{calls[0]} calls for {steps[0]} optimizer steps in an epoch",
                expected="one call a step",
                message="the schedule is stepped for every batch, the optimizer only after several",
                location=scheduler["loc"],
                hint="call scheduler.step() beside optimizer.step()",
            )
            return
        unit, epochs = _unit(record, number), record.planned_epochs or 0
        rates = [max(e["lrs"]) for e in _calls(record, number)]
        if unit == "step" and epochs > 1 and scheduler["cls"] in ("ExponentialLR", "StepLR", "MultiStepLR"):
            yield from _decays_too_fast(record, scheduler, rates)
        elif unit == "epoch" and record.ran_to_the_end and len(rates) >= max(5, epochs):
            yield from _warmup_never_ends(scheduler, rates)
        elif unit == "step" and scheduler["cls"] == "LambdaLR" and scheduler["id"] in _curves(record):
            yield from _lambda_shape(record, scheduler, _curves(record)[scheduler["id"]])
        elif unit == "step" and scheduler["cls"] == "LambdaLR" and len(rates) >= 10:
            dead = next((n for n, rate in enumerate(rates) if rate <= 1e-4 * max(rates) and n > 0), None)
            if dead is not None and all(r <= 1e-4 * max(rates) for r in rates[dead:]) and dead < len(rates) // 3:
                yield Finding(
                    measured=f"the rate is gone after {dead} of {len(rates)} calls",
                    expected="at the end",
                    message="a schedule that counts in epochs is stepped once a batch",
                    location=scheduler["loc"],
                    hint="move scheduler.step() to the end of the epoch, or give it the number of batches",
                )


def _own_warmup(record: Record, opt: int) -> Iterator[Finding]:
    curve = own_schedule.whole_curve(record, opt) if own_schedule.is_complete(record, opt) else []
    warming = own_schedule.still_warming(curve) if curve else ""
    if warming:
        yield Finding(
            measured=warming,
            expected="a warmup of a few percent of the run, then a decay",
            message="the warmup lasts for most of the run: a schedule that counts in batches is given epochs?",
            location=record.steps[0]["loc"],
            hint="give the schedule the count that it is written for",
        )


def _now_and_then(record: Record, scheduler: Event) -> Iterator[Finding]:
    """A schedule of epochs that is stepped after some of them, without a pattern."""
    if not any(part["cls"] in WITH_AN_END for part in _parts(scheduler)) or len(record.epochs) < 8:
        return  # others may be stepped by hand where the loss stands still
    begins = [e.begin for e in record.epochs]
    calls = _calls(record, scheduler["id"])
    counts = [sum(a <= c["i"] < b for c in calls) for a, b in pairwise(begins)]
    stepped = [n for n, count in enumerate(counts) if count]
    gaps = {b - a for a, b in pairwise(stepped)}
    if max(counts) > 1 or counts.count(0) < 3 or len(stepped) < max(4, len(counts) / 4) or len(gaps) < 2:
        return
    pauses = sum(b - a > 1 for a, b in pairwise(stepped))
    if pauses >= 2:
        yield Finding(
            measured=f"stepped after {len(stepped)} of {len(counts)} epochs, with {pauses} gaps between",
            expected="after each epoch",
            message="the schedule is stepped only now and then, and does not reach its end",
            location=calls[0]["loc"],
            hint="move scheduler.step() out of the condition",
        )


def _pairs(record: Record) -> list[tuple[Any, Any]]:
    """Each epoch that was gone through, with the one after it."""
    epochs = record.epochs
    return [(a, b) for a, b in pairwise(epochs) if a.exhausted and a.counts["steps"]]


def _decays_too_fast(record: Record, scheduler: Event, rates: list[float]) -> Iterator[Finding]:
    numbers = scheduler["numbers"]
    first = record.epochs[0]
    batches = first.length or first.counts["batches"]
    gamma = numbers.get("gamma") or 1.0
    horizon = numbers.get("step_size") or min(numbers.get("milestones") or [1])
    per_epoch = gamma ** (batches / horizon) if scheduler["cls"] != "MultiStepLR" else gamma if horizon < batches else 1
    if per_epoch < 0.2 and horizon < batches:
        yield Finding(
            measured=f"{scheduler['cls']} stepped once a batch: times {per_epoch:.2g} in {batches} batches",
            expected="once an epoch",
            message="the learning rate is next to nothing after the first epochs",
            location=scheduler["loc"],
            hint="move scheduler.step() out of the loop over batches",
        )


def _warmup_never_ends(scheduler: Event, rates: list[float]) -> Iterator[Finding]:
    rising = all(b >= a for a, b in pairwise(rates)) and rates[-1] > rates[0]
    if rising and scheduler["cls"] in ("LambdaLR", "OneCycleLR", "LinearLR", "SequentialLR"):
        yield Finding(
            measured=f"{rates[0]:.2g} to {rates[-1]:.2g} over {len(rates)} epochs, still rising",
            expected="a warmup, then a decay",
            message="the warmup never ends: a schedule that counts in batches is stepped once an epoch",
            location=scheduler["loc"],
            hint="call scheduler.step() after every optimizer step",
        )


def _curves(record: Record) -> dict[int, list[list[float]]]:
    """What the functions of LambdaLR give for calls 0, 1, ...: pairs (call, factor) by scheduler."""
    return {e["id"]: e["points"] for e in record.of("lambda_curve")}


def _lambda_shape(record: Record, scheduler: Event, points: list[list[float]]) -> Iterator[Finding]:
    planned = _planned_calls(record, scheduler["id"])
    problems = [_problem([value for call, value in points if call <= plan]) for plan in planned]
    # A warmup that the time-lapse alone makes too long also spoils the curve behind it.
    by_time_lapse = problems[0] == NEVER_ENDS != problems[1]
    if all(problems) and not by_time_lapse:
        yield Finding(
            measured=f"{problems[0]}, over {planned[0]:.0f} calls ({planned[1]:.0f} without the time-lapse)",
            expected="a warmup, then a decay over the run",
            message="the schedule does not fit the number of times that it is stepped",
            location=scheduler["loc"],
            hint="count its horizon in calls of scheduler.step()",
        )


def _problem(values: list[float]) -> str:
    """What is wrong with the shape of a schedule; nothing when it rises, falls or stays as one expects."""
    if len(values) < 5 or max(values) <= 0:
        return ""
    top = max(values)
    if values[-1] >= top and values[0] < 0.9 * top and sum(v < 0.99 * top for v in values) > 0.9 * len(values):
        return NEVER_ENDS
    gone = next((n for n, v in enumerate(values) if v <= 1e-3 * top and n > values.index(top)), len(values))
    if gone < len(values) / 3 and max(values[gone:]) <= 1e-3 * top:
        return "the rate is gone in the first third"
    low = next((n for n, v in enumerate(values) if v < 0.1 * top and n > values.index(top)), None)
    if low is not None and max(values[low:]) > 0.5 * top:
        return "the rate falls and climbs again"
    return ""


@rule("LRS804", subject=Subject.RUN)
def schedule_of_another_optimizer(record: Record) -> Iterator[Finding]:
    """The scheduler belongs to an optimizer that makes no steps.

    Why it matters: the learning rate of the optimizer that trains never changes.
    Found by: the optimizer of each scheduler that is stepped: it never steps, or has made its last step when another
    one trains on.
    Not an error: several optimizers, each with its own.
    """
    record.need_training()
    for scheduler in _schedulers(record):
        late = _calls_after_the_last_step(record, scheduler)
        if late:
            yield Finding(
                measured=f"{scheduler['cls']} is stepped {plural(late, 'time')} after the last step of its optimizer",
                expected="the optimizer that trains",
                message="another optimizer trains meanwhile, and its rate never changes",
                location=scheduler["loc"],
                hint="build the scheduler from the optimizer that steps",
            )
        elif scheduler["opt"] is None or scheduler["opt"] not in record.steps_of:
            yield Finding(
                measured=f"{scheduler['cls']} of an optimizer without a single step",
                expected="the optimizer that trains",
                message="the optimizer was replaced after the scheduler was built",
                location=scheduler["loc"],
                hint="build the scheduler from the optimizer that steps",
            )


def _calls_after_the_last_step(record: Record, scheduler: Event) -> int:
    """How often a scheduler is stepped while only other optimizers do; 0 if it ever moves with its own."""
    own = record.steps_of.get(scheduler["opt"], []) if scheduler["opt"] is not None else []
    calls = [call["i"] for call in _calls(record, scheduler["id"])]
    if not own or not calls or calls[0] < own[-1]["i"]:
        return 0
    others = [step["i"] for opt, steps in record.steps_of.items() if opt != scheduler["opt"] for step in steps]
    return len(calls) if len(calls) > 1 and sum(i > calls[0] for i in others) > 1 else 0


@rule("LRS805", subject=Subject.RUN)
def plateau_mode_inverted(record: Record) -> Iterator[Finding]:
    """ReduceLROnPlateau watches the wrong direction.

    Why it matters: with mode "min" and an accuracy, the rate falls while the model gets better.
    Found by: the numbers it is given, compared with accuracy and loss of the evaluation before; where they are neither,
    by the name of what it is given, such as `f1` or `rmse`.
    Not an error: mode "max" with an accuracy, mode "min" with a loss or with a negated accuracy.

    Wrong: `ReduceLROnPlateau(optimizer); scheduler.step(val_accuracy)`
    Right: `ReduceLROnPlateau(optimizer, mode="max")`
    """
    plateau = [s for s in _schedulers(record) if s["cls"] == "ReduceLROnPlateau"]
    if not plateau:
        raise NotSeenError("no ReduceLROnPlateau")
    for scheduler in plateau:
        kinds = [
            _kind_of_metric(record, call) or _kind_by_name(record, call) for call in _calls(record, scheduler["id"])
        ]
        mode = scheduler["numbers"].get("mode", "min")
        wrong = {"min": "accuracy", "max": "loss"}[mode]
        if kinds.count(wrong) >= 2 and kinds.count(wrong) > len(kinds) / 2:
            yield Finding(
                measured=f'mode "{mode}" is given {"an accuracy or its like" if wrong == "accuracy" else "a loss"}',
                expected=f'mode "{"max" if mode == "min" else "min"}"',
                message="the learning rate falls while the model gets better",
                location=scheduler["loc"],
                hint=f'mode="{"max" if mode == "min" else "min"}", or give it the other metric',
            )


def _kind_of_metric(record: Record, call: Event) -> str:
    before = [e for e in record.evaluations if e.end < call["i"]]
    given = next((g for g in call["given"] if isinstance(g, int | float)), None)
    if not before or given is None:
        return ""
    last = before[-1]
    if last.accuracy is not None and any(abs(given - scale * last.accuracy) < 1e-4 * scale for scale in (1, 100)):
        return "accuracy"
    if last.loss is not None and abs(given - last.loss) < 0.05 * abs(last.loss):
        return "loss"
    return ""


HIGHER = re.compile(r"(^|_)(acc|accuracy|f1|auc|auroc|iou|miou|map|r2|dice|bleu|top1|recall|precision|kappa|mcc)(_|$)")
LOWER = re.compile(r"(^|_)(loss|nll|error|rmse|mae|mse|ppl|perplexity)(_|$)")


def _kind_by_name(record: Record, call: Event) -> str:
    """What the script calls the number that a scheduler is given."""
    if not record.sources:
        return ""
    project = project_of(record)
    steps = [
        node
        for node in project.calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "step" and node.args
        if project.at(node) == call["loc"]
    ]
    if len(steps) != 1:
        return ""
    given = steps[0].args[0]
    key = text_of(given.slice) if isinstance(given, ast.Subscript) else ""
    name = str(key or getattr(given, "attr", "") or getattr(given, "id", "")).lower()
    higher, lower = HIGHER.search(name), LOWER.search(name)
    return "" if bool(higher) == bool(lower) else "accuracy" if higher else "loss"


@rule("LRS806", severity=Status.WARN, subject=Subject.RUN)
def schedule_before_optimizer(record: Record) -> Iterator[Finding]:
    """The scheduler steps before the optimizer has.

    Why it matters: the first value of the schedule is skipped, and everything comes one step early.
    Found by: a call of `scheduler.step()` before the first optimizer step.
    Not an error: skipping ahead on purpose when training is resumed; a step that is told where it is
    (`step(epoch + i / n)`) and leaves the rate as it was.

    Wrong: `scheduler.step()` at the start of the epoch
    Right: `scheduler.step()` at its end
    """
    record.need_training()
    loaded = bool(record.of("scheduler_loaded") or record.of("optimizer_loaded"))
    early = [e for e in record.of("sched") if e["step"] == 0 and not _stays(e)]
    if early and not loaded:
        yield Finding(
            measured=f"scheduler.step() before the first of {len(record.steps)} optimizer steps",
            expected="optimizer.step() first",
            message="the first learning rate of the schedule is never used",
            location=early[0]["loc"],
            hint="call scheduler.step() after the batches of the epoch",
        )


def _stays(call: Event) -> bool:
    """Whether a scheduler is told that it is where it begins."""
    return bool(call["given"]) and call["given"][0] == 0


@rule("LRS807", severity=Status.WARN, subject=Subject.RUN)
def learning_rate_jumps(record: Record) -> Iterator[Finding]:
    """The learning rate jumps up in the middle of the run.

    Why it matters: a handover from warmup to schedule, or a schedule that starts again, undoes what was learned.
    Found by: a step whose rate is more than 5 times that of the step before, from a rate that was not tiny.
    Not an error: warm restarts, cyclic schedules, and a warmup from almost nothing.
    """
    record.need_training()
    if any(part["cls"] in CYCLIC for s in record.of("scheduler") for part in _parts(s)):
        raise NotSeenError("the schedule is cyclic")
    if len(record.steps_of) > 1:
        raise NotSeenError("several optimizers")
    rates = record.learning_rates(record.main_optimizer or 0)
    top, fallen = max(rates), False
    for n, (before, after) in enumerate(pairwise(rates), start=1):
        fallen = fallen or after < 0.999 * before
        gradual = n > 2 and before != rates[n - 2] and before > 0.03 * top
        if after > JUMP * before and before > 0.01 * top and (fallen or gradual):
            yield Finding(
                measured=f"{before:.2g} to {after:.2g} at step {n + 1} of {len(rates)}",
                expected="no jump",
                message="the learning rate jumps up",
                location=record.steps[0]["loc"],
                hint="does each scheduler begin where the one before it ended?",
            )
            return


@rule("LRS809", severity=Status.WARN, subject=Subject.RUN)
def schedule_lags(record: Record) -> Iterator[Finding]:
    """The scheduler is told an epoch that lags behind.

    Why it matters: `step(epoch)` sets the position by hand, is deprecated, and with `epoch` counted from 0 repeats the
    first value; the schedule never reaches its end.
    Found by: a number given to `step` of a scheduler that counts by itself.
    Not an error: metrics given to ReduceLROnPlateau, fractions of epochs given to warm restarts.

    Wrong: `scheduler.step(epoch - 1)`
    Right: `scheduler.step()`
    """
    for scheduler in _schedulers(record):
        if scheduler["cls"] in ("ReduceLROnPlateau", "CosineAnnealingWarmRestarts"):
            continue
        given = [e["given"][0] for e in _calls(record, scheduler["id"]) if e["given"]]
        late = [g for n, g in enumerate(given, start=1) if isinstance(g, int | float) and g < n]
        if len(late) >= 2 and len(late) == len(given):
            yield Finding(
                measured=f"step({given[0]:g}), step({given[1]:g}), ... as call 1, 2, ...",
                expected="step()",
                message=f"the schedule is {1 - given[0]:g} behind and never reaches its end",
                location=scheduler["loc"],
                hint="scheduler.step() without an argument, after each epoch",
            )


@rule("LRS810", severity=Status.WARN, subject=Subject.RUN)
def rate_gone_early(record: Record) -> Iterator[Finding]:
    """The learning rate is at its lowest long before the run ends.

    Why it matters: the rest of the run trains next to nothing.
    Found by: a rate at or next to zero for more than a third of the steps of a run that went to its end; a rate that
    the script sets by itself and that is through with its decay, to a twentieth or less, before 40% of the steps.
    Not an error: a schedule that ends at zero in its last steps, decay by steps, exponential decay with a floor.

    Wrong: `progress = updates / total_epochs`
    Right: `progress = updates / (total_epochs * updates_per_epoch)`
    """
    record.need_training(10)
    rates = record.learning_rates(record.main_optimizer or 0)
    if not record.ran_to_the_end or len(record.steps_of) > 1 or max(rates) == 0:
        raise NotSeenError("the run was not seen to its end, or has several optimizers")
    dead = 0  # the time-lapse leaves batches out, so that without it the floor would be reached even earlier
    for rate in reversed(rates):
        if rate > 1e-5 * max(rates):
            break
        dead += 1
    if dead > len(rates) / 3:
        yield Finding(
            measured=f"{rates[-1]:.1g} in the last {dead} of {len(rates)} steps",
            expected="above zero",
            message="the learning rate is gone long before the end",
            location=record.steps[0]["loc"],
            hint="the horizon of the schedule is too short",
        )
    elif not record.of("scheduler") and (floor := own_schedule.at_the_floor(rates)):
        yield Finding(
            measured=f"{max(rates):.2g} falls to {rates[-1]:.2g}, for the last {floor} of {len(rates)} steps",
            expected="a decay over the run",
            message="the decay is over long before the run: does it count in epochs what is given in batches?",
            location=record.steps[0]["loc"],
            hint="divide by the number of updates in the whole run",
        )


# What changes the rate whatever its arguments are; the others wait for a milestone, or for a plateau.
ALWAYS_MOVING = {"CosineAnnealingLR", "CosineAnnealingWarmRestarts", "OneCycleLR", "CyclicLR", "ExponentialLR"}
FEWEST_CALLS = 3


@rule("LRS819", subject=Subject.RUN)
def schedule_is_flat(record: Record) -> Iterator[Finding]:
    """A schedule is stepped and never changes the learning rate.

    Why it matters: the training is that of a constant rate, while the code, and everybody who reads it, says otherwise.
    Found by: the rates after every call of a schedule that always moves (cosine, one cycle, cyclic, exponential), of
    which there are three or more in a whole run.
    Not an error: schedules that wait (StepLR, MultiStepLR, a plateau), schedules within others, the first calls of a
    long cosine.

    Wrong: `CosineAnnealingLR(optimizer, epochs, eta_min=3e-4)` with `lr=3e-4`; `ExponentialLR(optimizer, gamma=1.0)`
    Right: `CosineAnnealingLR(optimizer, epochs, eta_min=3e-6)`
    """
    schedulers = _schedulers(record)
    if not record.ran_to_the_end or len(schedulers) > 1:
        raise NotSeenError("the run was not seen to its end, or has several schedules")
    scheduler = schedulers[0]
    rates = [call["lrs"] for call in _calls(record, scheduler["id"]) if call.get("lrs")]
    if scheduler["cls"] not in ALWAYS_MOVING or len(rates) < FEWEST_CALLS:
        return
    # The start of a long cosine moves by next to nothing, but it moves.
    still = all(len(set(group)) == 1 for group in zip(*rates, strict=False))
    if still and max(map(max, rates)) > 0:
        yield Finding(
            measured=f"{rates[0][0]:.3g} after each of {len(rates)} calls of {scheduler['cls']}",
            expected="a rate that changes",
            message="the schedule is stepped and the learning rate stays what it is",
            location=scheduler["loc"],
            hint=_why_flat(scheduler),
        )


def _why_flat(scheduler: Event) -> str:
    numbers = scheduler["numbers"]
    base, floor = numbers.get("base_lrs") or [], numbers.get("eta_min")
    if base and floor is not None and floor == max(base):
        return f"eta_min is the rate at which it starts, {floor:g}; it should be where the cosine ends"
    if numbers.get("gamma") == 1:
        return "gamma=1 changes nothing"
    return "something sets the rate back before the next step, or the arguments leave it no room"
