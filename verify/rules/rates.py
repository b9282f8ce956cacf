"""LRS: the learning rates that the steps of a run were made with, whoever set them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise, takewhile

from verify.report import Finding, Status
from verify.rules import Subject, own_schedule, rule
from verify.rules.schedule import CYCLIC, TOO_LONG, _counted, _parts, _planned_calls, _unit
from verify.trace.record import Event, NotSeenError, Record

SAME = 1 - 1e-9
FIRST_GROUP = re.compile(
    r"""param_groups\[0\]\[["']lr["']\]\s*=[^=]"""
    r"""|\b(?P<group>\w+)\s*=\s*[\w.\[\]]+\.param_groups\[0\]\s(?s:.){0,400}?\b(?P=group)\[["']lr["']\]\s*=[^=]"""
)
# Files that say something about schedules.
OF_SCHEDULES = re.compile(r"lr_lambda|LambdaLR|lr_scheduler|get_\w+_schedule")


@rule("LRS811", subject=Subject.RUN)
def group_rates_overwritten(record: Record) -> Iterator[Finding]:
    """The learning rates that the groups were given are all replaced by one.

    Why it matters: layers that were to learn slowly learn as fast as the new ones; what was pretrained is lost.
    Found by: an optimizer whose groups were built with different rates and have the same rate in every step.
    Not an error: groups with rates of their own in any step; a state that was loaded; groups that were added later.

    Wrong: `OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)` with groups of different rates
    Right: `OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps)`
    """
    record.need_training(3)
    loaded = {e["opt"] for e in record.of("optimizer_loaded")}
    for opt, steps in record.steps_of.items():
        given = [group.get("lr") for group in record.optimizers[opt]["groups"]][:16]
        seen = [s["lrs"] for s in steps if s["lrs"]]
        numbers = all(isinstance(lr, int | float) and lr > 0 for lr in given)
        if opt in loaded or len(seen) < 3 or len(given) < 2 or not numbers or max(given) <= 1.01 * min(given):
            continue
        if all(len(lrs) == len(given) and max(lrs) - min(lrs) <= 1e-9 * max(lrs) for lrs in seen):
            classes = {part["cls"] for s in record.of("scheduler") if s["opt"] == opt for part in _parts(s)}
            cyclic = sorted(classes & set(CYCLIC))
            yield Finding(
                status=Status.FAIL if cyclic else Status.WARN,
                measured=f"built with {min(given):.2g} to {max(given):.2g}, all {len(given)} groups at "
                f"{max(seen[0]):.2g} in the first step and alike in all {len(seen)}",
                expected="rates that keep their ratio",
                message=f"{cyclic[0]} with one number for all groups overwrites the rate of each"
                if cyclic
                else "one learning rate is written to all groups, over those that they were given",
                location=_made_at(record, opt),
                hint="a list with one rate a group, or a factor that multiplies each",
            )


def _made_at(record: Record, opt: int) -> str:
    return next((s["loc"] for s in record.of("scheduler") if s["opt"] == opt), record.optimizers[opt]["loc"])


@rule("LRS812", severity=Status.WARN, subject=Subject.RUN)
def horizon_counts_batches(record: Record) -> Iterator[Finding]:
    """The horizon of the schedule counts batches, and the optimizer steps after several of them.

    Why it matters: the schedule is cut off on its way down; the rate never anneals, and the warmup is too long.
    Found by: in a run that went to its end and accumulates gradients, rates that are exactly a cosine or a line whose
    end lies at the number of batches of the run, not at the number of its steps.
    Not an error: windows whose last one is shorter; a schedule that ends with the run; steps, exponential decay.

    Wrong: `total = epochs * len(loader)` when `scheduler.step()` follows every second batch
    Right: `total = epochs * math.ceil(len(loader) / accumulation)`
    """
    record.need_training(10)
    if not record.ran_to_the_end or len(record.steps_of) > 1:
        raise NotSeenError("the run was not seen to its end, or has several optimizers")
    rates, epochs = record.learning_rates(record.main_optimizer or 0), record.epochs
    batches, steps = sum(e.counts["batches"] for e in epochs), sum(e.counts["steps"] for e in epochs)
    if len(epochs) < 2 or steps < 0.9 * len(rates) or batches < TOO_LONG * len(rates):
        raise NotSeenError("the optimizer steps after every batch")
    if ends_at(rates, batches):
        yield Finding(
            measured=f"a schedule over {batches} steps in a run of {batches} batches and {len(rates)} steps; "
            f"{rates[-1] / max(rates):.0%} of the highest rate at the end",
            expected=f"a schedule over {len(rates)} steps",
            message="the horizon counts batches, the schedule is stepped once an optimizer step: it never anneals",
            location=_made_at(record, record.main_optimizer or 0),
            hint="divide the number of batches by that of an accumulation, rounded as the loop rounds it",
        )


def ends_at(rates: list[float], horizon: int) -> bool:
    """Whether a curve, from its top on, is a cosine or a line that ends at `horizon` steps, and is not there yet."""
    top = max(rates)
    begin = max(n for n, rate in enumerate(rates) if rate >= SAME * top)
    fall = rates[begin:]
    if len(fall) < 8 or rates[-1] < 0.2 * top or len(set(fall)) < 0.9 * len(fall) or fall != sorted(fall, reverse=True):
        return False
    starts = {0, *range(max(0, begin - 1), begin + 2)}
    return any(own_schedule.is_cosine(fall, begin, start, end) for start in starts for end in _about(horizon)) or any(
        own_schedule.is_line(fall, begin, end) for end in _about(horizon)
    )


def _about(horizon: int) -> tuple[int, ...]:
    return horizon - 1, horizon


@rule("LRS813", severity=Status.WARN, subject=Subject.RUN)
def warmup_at_zero(record: Record) -> Iterator[Finding]:
    """The warm-up is zero in all of its steps, and then jumps to the peak.

    Why it matters: the steps of the warm-up are lost, and the peak comes without one.
    Found by: a rate of zero in the first steps of a run, two or more, followed by the highest of all.
    Not an error: a warm-up whose first step alone has the rate zero; one that begins anew.

    Wrong: `(step + 1) // warmup`
    Right: `(step + 1) / warmup`
    """
    record.need_training(5)
    if len(record.steps_of) > 1:
        raise NotSeenError("several optimizers")
    rates = record.learning_rates(record.main_optimizer or 0)
    begin = next((n for n, rate in enumerate(rates) if rate > 0), 0)
    if begin >= 2 and len(rates) > begin + 2 and rates[begin] == max(rates) and len(set(rates)) > 2:
        yield Finding(
            measured=f"0 in the first {begin} steps, then {rates[begin]:.2g}, the highest of all",
            expected="a rate that rises step by step",
            message="the warm-up does not rise: its factor is 0 up to its last step",
            location=_made_at(record, record.main_optimizer or 0),
            hint="divide with / instead of // or int()",
        )


@rule("LRS814", severity=Status.WARN, subject=Subject.RUN)
def function_horizon_off(record: Record) -> Iterator[Finding]:
    """The function of a LambdaLR is much longer than the run, or counts epochs where it is stepped in batches.

    Why it matters: a decay that is too long never anneals; after one that is too short, nearly all of the training is
    done at the lowest rate.
    Found by: the call up to which the function falls smoothly, against the number of calls that the run makes, with and
    without the time-lapse: half again as many and more, or no more than the run has epochs, stepped in batches.
    Not an error: decay by steps, by the same factor each time or without an end; a decay that ends with the run.

    Wrong: `LambdaLR(optimizer, cosine(epochs))`, stepped after every batch
    Right: `LambdaLR(optimizer, cosine(epochs * len(loader)))`
    """
    curves = {e["id"]: e["points"] for e in record.of("lambda_curve")}
    if not curves:
        raise NotSeenError("no LambdaLR was stepped")
    for scheduler in record.of("scheduler"):
        end, floor = _falls_until(curves.get(scheduler["id"]) or [])
        if not end:
            continue
        planned, unit = _planned_calls(record, scheduler["id"]), _unit(record, scheduler["id"])
        short = unit == "step" and end <= (record.planned_epochs or 0) + 1 and all(end < 0.3 * p for p in planned)
        if all(end > TOO_LONG * plan for plan in planned):
            message = "the schedule is still on its way down when the run ends; it never anneals"
        elif short and 0 < floor <= 0.1:
            message = "the schedule is over long before the run: it counts epochs and is stepped in batches"
        else:
            continue
        yield Finding(
            measured=f"it falls until call {end:.0f}, the run steps it {_counted(planned, unit)}",
            expected="a decay as long as the run",
            message=message,
            location=scheduler["loc"],
            hint="its horizon is the number of times that scheduler.step() is called",
        )


def _falls_until(points: list[list[float]]) -> tuple[float, float]:
    """The call up to which a function falls smoothly from its top, and its share of the top there; 0 if it does not."""
    values = [value for _, value in points]
    top = max(values, default=0)
    if top <= 0 or len(values) < 10:
        return 0, 0
    first = values.index(top)
    begin = first + next((n for n, value in enumerate(values[first:]) if value < SAME * top), 1) - 1
    fall = list(takewhile(lambda pair: pair[1][1] < pair[0][1], pairwise(points[begin:])))
    if len(fall) < 4 or begin + len(fall) >= len(points) - 1:
        return 0, 0
    end, last = fall[-1][1]
    factors = [(b[1] / a[1]) ** (1 / (b[0] - a[0])) for a, b in fall[:-1] if b[1] > 0]
    return (0, 0) if _is_steady(factors) or last > 0.2 * top else (end, last / top)


def _is_steady(factors: list[float]) -> bool:
    """Whether a curve falls by the same share at each call, as exponential decay does."""
    losses = [1 - factor for factor in factors]
    return max(losses) < 1.05 * min(losses)


@rule("LRS815", severity=Status.WARN, subject=Subject.RUN)
def milestones_in_epochs(record: Record) -> Iterator[Finding]:
    """Milestones that are epochs are reached in batches.

    Why it matters: all decays happen in the first few batches; the run goes on at the lowest rate.
    Found by: milestones (or a step size) that all lie within the epochs that the run plans, and a scheduler that is
    stepped more often than that many times over, after each optimizer step.
    Not an error: a scheduler that is stepped once an epoch; milestones in steps.

    Wrong: `MultiStepLR(optimizer, milestones=[30, 60])`, stepped after every batch
    Right: stepped after every epoch
    """
    epochs = record.planned_epochs
    found = [s for s in record.of("scheduler") if s["cls"] == "MultiStepLR"]
    if not found or not epochs:
        raise NotSeenError("no MultiStepLR was stepped, or the run does not show how many epochs it plans")
    for scheduler in found:
        marks = [m for m in scheduler["numbers"].get("milestones") or [] if isinstance(m, int | float)]
        calls = sum(e["id"] == scheduler["id"] for e in record.of("sched"))
        steps = len(record.steps_of.get(scheduler["opt"], []))
        if marks and 1 < max(marks) <= epochs and calls > 3 * epochs and calls >= 0.9 * steps:
            yield Finding(
                measured=f"milestones {', '.join(f'{m:g}' for m in marks)}, stepped {calls} times in {steps} steps of "
                f"a run of {epochs} epochs",
                expected="stepped once an epoch",
                message="milestones that are epochs are reached in the first few batches",
                location=scheduler["loc"],
                hint="move scheduler.step() out of the loop over batches",
            )


@rule("LRS816", severity=Status.WARN, subject=Subject.RUN)
def function_climbs_again(record: Record) -> Iterator[Finding]:
    """The function of a LambdaLR passes its end and climbs back to the full rate.

    Why it matters: the cosine of a share above 1 rises again; the run swings between the peak and nothing.
    Found by: the rates after each call of a LambdaLR, which fall and gently climb to half of the highest and more.
    Not an error: cycles and restarts that the source calls so.

    Wrong: `0.5 * (1 + cos(pi * step / epochs))`, stepped after every batch
    Right: `0.5 * (1 + cos(pi * step / (epochs * len(loader))))`
    """
    found = [s for s in record.of("scheduler") if s["cls"] == "LambdaLR"]
    if not found:
        raise NotSeenError("no LambdaLR was stepped")
    for scheduler in found:
        again = swings(record, scheduler)
        if again and not _says_cycles(record, scheduler["loc"]):
            yield Finding(
                measured=again,
                expected="a schedule as long as the run",
                message="the schedule reaches its minimum early and climbs back",
                location=scheduler["loc"],
                hint="its horizon is the number of times that scheduler.step() is called",
            )


def swings(record: Record, scheduler: Event) -> str:
    """How the rates of a LambdaLR fall and gently climb again, as a cosine does behind its end."""
    calls = [max(e["lrs"]) for e in record.of("sched") if e["id"] == scheduler["id"] and e["lrs"]]
    return own_schedule.climbs_again(calls) if len(calls) >= 10 and max(calls) > 0 else ""


def _says_cycles(record: Record, place: str) -> bool:
    """Whether the files that are about schedules speak of cycles or restarts."""
    texts = {p: text for p, text in record.sources.items() if OF_SCHEDULES.search(text) or place.startswith(f"{p}:")}
    return any(own_schedule.CYCLES.search(text) for path, text in texts.items() if path.endswith(".py"))


@rule("LRS817", severity=Status.WARN, subject=Subject.RUN)
def one_group_scheduled(record: Record) -> Iterator[Finding]:
    """The script sets the learning rate of the first group of parameters alone.

    Why it matters: the other groups, biases or a head, train at the full rate from the first step to the last.
    Found by: an optimizer of several groups that were built with one rate, of which the first changes and the others
    never do, in a script that writes to `param_groups[0]`.
    Not an error: groups whose rates differ from the start.

    Wrong: `optimizer.param_groups[0]["lr"] = lr_at(step)`
    Right: `for group in optimizer.param_groups: group["lr"] = lr_at(step)`
    """
    record.need_training(3)
    writes = [path for path, text in record.sources.items() if FIRST_GROUP.search(text)]
    for opt, steps in record.steps_of.items():
        seen = [s["lrs"] for s in steps if len(s["lrs"]) >= 2]
        numbers = seen and all(isinstance(lr, int | float) for lrs in seen for lr in lrs)
        if not writes or not numbers or len({len(lrs) for lrs in seen}) != 1:
            continue
        first, *others = zip(*seen, strict=True)
        built = [group.get("lr") for group in record.optimizers[opt]["groups"]][:16]
        if len(set(first)) >= 3 and all(len(set(rates)) == 1 for rates in others) and len(set(built)) == 1:
            yield Finding(
                measured=f"group 1: {min(first):.3g} to {max(first):.3g}; the other {len(others)}: {others[0][0]:.3g}",
                expected="one schedule for all groups",
                message="the schedule is set for the first group of parameters alone",
                location=record.optimizers[opt]["loc"],
                hint='for group in optimizer.param_groups: group["lr"] = lr',
            )
            return


@rule("LRS818", severity=Status.WARN, subject=Subject.RUN)
def two_schedules_on_one_optimizer(record: Record) -> Iterator[Finding]:
    """Two schedulers of one kind act on the same optimizer, and another optimizer has none.

    Why it matters: one rate decays twice as fast as was asked for, and the other never does.
    Found by: the optimizer that each scheduler holds, in a run with several optimizers that step.
    Not an error: a warm-up and a schedule, which are of two kinds; an optimizer that is meant to have a constant rate
    beside one scheduler for each of the others.

    Wrong: `sched_d = StepLR(opt_g, 10)`
    Right: `sched_d = StepLR(opt_d, 10)`
    """
    record.need_training(3)
    made = record.of("scheduler")
    held = {e["opt"] for e in made}
    without = [opt for opt in record.steps_of if opt not in held]
    for number, one in enumerate(made):
        twin = next((e for e in made[number + 1 :] if (e["opt"], e["cls"]) == (one["opt"], one["cls"])), None)
        if twin is not None and one["opt"] is not None and without and len(made) >= len(record.steps_of):
            yield Finding(
                measured=f"two {one['cls']} on the optimizer of {record.optimizers[one['opt']]['loc']}, "
                f"none on that of {record.optimizers[without[0]]['loc']}",
                expected="one scheduler for each optimizer",
                message="a scheduler is built on the wrong optimizer",
                location=twin["loc"],
                hint="give the second scheduler its own optimizer",
            )
            return
