"""EMA: averages of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

# Nobody averages over less than two steps; clients of a federation share half and half.
LEAST_DECAY = 0.4
AVERAGES = frozenset(["ema", "average", "averaged", "avg", "swa", "shadow"])


def _averages(record: Record) -> list[Event]:
    if not record.of("twin"):
        raise NotSeenError("there is no second module of the model's shape")
    return record.of("twin")


def _evaluated(record: Record) -> set[int]:
    return {p["model"] for e in record.evaluations for p in e.passes}


@rule("EMA041", severity=Status.WARN, subject=Subject.RUN)
def ema_never_evaluated(record: Record) -> Iterator[Finding]:
    """An average of the weights is kept and never used.

    Why it matters: the better model is computed at every step and thrown away.
    Found by: a module of the model's shape that no optimizer holds, that changes while training, and that never runs.
    Not an error: averages that are saved in files of their own.
    """
    twins = _averages(record)
    saved = any(
        weights["live"] == 0
        for e in record.of("save")
        if e["content"]["kind"] == "weights"
        for weights in [e["content"]]
    )
    if len(record.evaluations) < 2:
        raise NotSeenError("fewer than two evaluations were seen")
    for twin in twins:
        if twin["changed"] and twin["model"] is None and not saved:
            yield Finding(
                measured=f"{twin['cls']}: updated, never called",
                expected="evaluated, or saved",
                message="an average of the weights is updated and only the raw model is evaluated",
                location=record.evaluations[0].passes[0]["loc"],
                hint="evaluate the averaged model",
            )


@rule("EMA042", subject=Subject.RUN)
def ema_never_updated(record: Record) -> Iterator[Finding]:
    """The average of the weights is none: it is never updated, or it is the model itself.

    Why it matters: what is evaluated and saved as the average is the untrained model, or the model of the last step.
    Found by: a copy of the initial model that runs in the evaluations and is bit for bit what it was at the start;
    an average that shares its tensors with the model each time that a checkpoint is saved.
    Not an error: a frozen teacher, which does not run in evaluations; weights that are saved under two names, neither
    of which is that of an average.

    Wrong: `self.shadow = model.state_dict()`, then `self.shadow[name].mul_(decay).add_(value, alpha=1 - decay)`
    Right: `self.shadow = copy.deepcopy(model.state_dict())`
    """
    aliased = _aliased(record)
    if aliased is not None:
        yield aliased
        return
    for twin in _averages(record):
        evaluated = twin["model"] is not None and twin["model"] in _evaluated(record)
        if evaluated and not twin["changed"] and twin["was_initial"] and len(record.evaluations) >= 2:
            yield Finding(
                measured=f"{twin['cls']}: unchanged since the start",
                expected="updated after each step",
                message="the averaged model that is evaluated was never updated",
                hint="call its update after optimizer.step()",
            )


def _aliased(record: Record) -> Finding | None:
    """An average that is the live model, in every checkpoint that holds it."""
    events = [e for e in record.of("save") if e["step"] > 0 and e["content"]["kind"] == "dict"]
    for name in sorted({key for e in events for pair in e.get("same", []) for key in pair if names_average(key)}):
        holding = [e for e in events if name in e["content"]["keys"]]
        pairs = [pair for e in holding for pair in e.get("same", []) if name in pair]
        others = [key for pair in pairs for key in pair if not names_average(key)]
        if len(holding) >= 2 and others and all(any(name in p for p in e.get("same", [])) for e in holding):
            return _alias(f"{name!r} and {others[0]!r} of {holding[0]['path']} are the same tensors", holding[0]["loc"])
    held = record.of("average_aliased")
    if len(held) >= 2 and len(held) >= min(20, len({e["step"] for e in record.of("save") if e["step"] > 0})):
        return _alias(f"{held[0]['name']} holds the tensors of the model", held[0]["loc"])
    return None


def names_average(name: str) -> bool:
    """Whether a name says that an average of weights is behind it."""
    return bool(set(re.split(r"[^a-z]+", name.lower())) & AVERAGES)


def _alias(measured: str, place: str) -> Finding:
    return Finding(
        measured=measured,
        expected="tensors of its own",
        message="the average shares its tensors with the model: it is the model of the last step",
        location=place,
        hint="copy.deepcopy(model), or clone each tensor, before averaging",
    )


@rule("EMA043", severity=Status.WARN, subject=Subject.RUN)
def ema_buffers_stale(record: Record) -> Iterator[Finding]:
    """The averaged model keeps the initial statistics of its batch norms.

    Why it matters: averaged weights with statistics of the untrained network evaluate far worse than they are.
    Found by: running statistics of an evaluated average that never change while those of the model do; the average is
    a copy of the model, whose parameters change without any gradient.
    Not an error: statistics that are copied, averaged, or renewed before the evaluation.
    """
    stale = _stale_copy(record)
    if stale:
        yield _stale(stale)
        return
    for twin in _averages(record):
        evaluated = twin["model"] is not None and twin["model"] in _evaluated(record)
        if (
            twin["changed"]
            and twin["buffers"]
            and not twin["buffers_changed"]
            and twin["live_buffers_changed"]
            and evaluated
        ):
            yield _stale(twin["buffers"])


def _stale(count: int) -> Finding:
    return Finding(
        measured=f"{count} running statistics as they were at the start",
        expected="those of the trained model",
        message="only the parameters are averaged; batch norms evaluate with stale statistics",
        hint="copy or average the buffers too (AveragedModel(use_buffers=True), or update_bn)",
    )


def _stale_copy(record: Record) -> int:
    """How many statistics of an evaluated model are stale, which follows the trained one without an optimizer."""
    tables = {e["model"]: e for e in record.of("params") if e["rows"]}
    trained = [e for e in tables.values() if any(row["graded"] and row["opts"] for row in e["rows"])]
    for number in _evaluated(record) & set(tables):
        rows, buffers = tables[number]["rows"], _statistics(tables[number])
        followed = all(row["changed"] and not row["opts"] and not row["graded"] for row in rows)
        if not followed or not buffers or any(buffers.values()):
            continue
        for live in trained:
            alike = [row["name"] for row in live["rows"]] == [row["name"] for row in rows]
            if alike and all(_statistics(live).get(name) for name in buffers):
                return len(buffers)
    return 0


def _statistics(table: Event) -> dict[str, bool]:
    """Whether each of the running statistics of a model has changed, by name."""
    return {name: changed for name, changed in table["buffers"] if name.endswith(("running_mean", "running_var"))}


@rule("EMA044", subject=Subject.RUN)
def ema_decay_upside_down(record: Record) -> Iterator[Finding]:
    """The decay of an average of the weights is upside down.

    Why it matters: each update takes nearly all of the newest weights, so that the average is the live model under
    another name.
    Found by: the share of the old average that is left after an update, measured at several steps, for modules, lists
    and dicts of tensors with the shapes of the model: below 40% in the end, and not growing.
    Not an error: a decay that starts low and grows; a copy of the weights, of which nothing is averaged.

    Wrong: `average.lerp_(value, decay)`
    Right: `average.lerp_(value, 1 - decay)`
    """
    looks = record.of("average")
    if not looks:
        raise NotSeenError("no average of the weights was seen")
    for number in sorted({e["id"] for e in looks}):
        shares = [e["decay"] for e in looks if e["id"] == number]
        clean = all(e["rest"] < 0.01 for e in looks if e["id"] == number)
        if len(shares) < 3 or not clean:
            continue
        last = shares[-3:]  # a decay that warms up and is upside down begins high and falls
        if all(1e-6 < share < LEAST_DECAY for share in last) and last[-1] <= 1.02 * min(last[0], shares[0]):
            yield Finding(
                measured=f"{shares[-1]:.2g} of the average is left after an update ({len(shares)} were measured)",
                expected="most of it, such as 0.999",
                message="the decay of the average is upside down: it is practically the live model",
                location=record.steps[0]["loc"] if record.steps else "",
                hint="average.lerp_(value, 1 - decay), or average.mul_(decay).add_(value, alpha=1 - decay)",
            )
            return
