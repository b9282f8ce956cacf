"""REP: whether the same run gives the same numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import NotSeenError, Record

# Of a loss, where two runs on a GPU differ for the first time; half precision rounds to a thousandth.
GPU_ROUNDING = 1e-3


@rule("REP021", severity=Status.WARN, subject=Subject.RUN)
def not_repeatable(record: Record) -> Iterator[Finding]:
    """The script sets a seed, and two runs of it differ all the same.

    Why it matters: the seed promises what it does not keep; a source of chance was forgotten (NumPy, Python's random,
    the order of files, a time or a process number).
    Found by: starting the script twice and comparing the losses of the first steps.
    Not an error: scripts that set no seed at all, for which this is a note; on a GPU, a difference that rounding
    explains, as it does not add in the same order twice.
    """
    events = record.of("repeat")
    if not events:
        raise NotSeenError("the script was not started a second time")
    event = events[0]
    if event.get("skipped"):
        raise NotSeenError(event["skipped"])
    if event["equal"]:
        yield Finding(status=Status.PASS, measured=f"{event['compared']} losses of two runs equal bit for bit")
        return
    if record.device == "cuda" and abs(event["first"] - event["second"]) <= GPU_ROUNDING * abs(event["first"]):
        yield Finding(status=Status.PASS, measured=f"two runs part at step {event['step']}, by no more than rounding")
        return
    seeded = bool(record.of("seed"))
    yield Finding(
        status=Status.WARN if seeded else Status.NOTE,
        measured=f"loss {event['first']} and {event['second']} at step {event['step']}",
        expected="equal",
        message="two runs differ although a seed is set" if seeded else "no seed is set, and two runs differ",
        location=record.of("seed")[0]["loc"] if seeded else "",
        hint="seed torch, random and numpy before anything else; give the DataLoader a generator",
    )


@rule("REP022", severity=Status.NOTE, subject=Subject.RUN)
def nondeterministic_flag(record: Record) -> Iterator[Finding]:
    """cuDNN is told to be deterministic and to try out algorithms at once.

    Why it matters: `benchmark=True` chooses by timing, which may choose another algorithm in the next run.
    Found by: both flags at the end of the run.
    Not an error: either of them alone.
    """
    for flags in record.of("flags"):
        if flags["benchmark"] and flags["deterministic"]:
            yield Finding(
                measured="cudnn.benchmark and cudnn.deterministic are both True",
                expected="benchmark = False",
                message="the claim to be deterministic does not hold on a GPU",
                hint="torch.backends.cudnn.benchmark = False",
            )


@rule("REP023", severity=Status.WARN, subject=Subject.RUN)
def seed_reset_each_epoch(record: Record) -> Iterator[Finding]:
    """The same seed is set again in every epoch.

    Why it matters: order, augmentation and dropout repeat: the model sees the same crops again and again.
    Found by: calls of seeding functions with one value in three epochs or more, after training has begun.
    Not an error: a seed that changes with the epoch; seeding within an evaluation that restores the state after it.

    Wrong: `set_seed(0)` inside the loop over epochs
    Right: `set_seed(0)` once, or `set_seed(seed + epoch)`
    """
    record.need_training()
    restored = {(e["fn"], e["step"]) for e in record.of("state_put_back")}
    again = [
        e
        for e in record.of("seed")
        if e["step"] > 0 and e["value"] is not None and (e["fn"], e["step"]) not in restored
    ]
    by_call: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for event in again:
        by_call[event["fn"], event["loc"], event["value"]].add(event["step"])
    for (function, place, value), steps in by_call.items():
        if len(steps) >= 3 and function in ("torch.manual_seed", "numpy.random.seed", "random.seed"):
            yield Finding(
                measured=f"{function}({value}) {len(steps)} times while training",
                expected="once, before training",
                message="order, augmentation and dropout are the same in every epoch",
                location=place,
                hint="seed once, or add the epoch to the seed",
            )
            return
