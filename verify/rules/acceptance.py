"""SPC: whether a run is what the project's verify.yaml says it must be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import NotSeenError, Record

CLOSE = 1e-6
RATE_TOLERANCE = 0.01


def _wanted(record: Record, key: str) -> Any:
    """What `training:` in verify.yaml says under a key.

    Raises:
        NotSeenError: it says nothing.
    """
    spec = (record.of("spec") or [{"training": {}}])[-1]["training"]
    if spec.get(key) is None:
        raise NotSeenError("verify.yaml asks nothing of it")
    return spec[key]


def _finding(measured: str, expected: str, holds: bool, place: str = "", message: str = "") -> Finding:
    status = Status.PASS if holds else Status.FAIL
    return Finding(
        status=status, measured=measured, expected=expected, location=place, message="" if holds else message
    )


@rule("SPC081", subject=Subject.RUN)
def split_sizes(record: Record) -> Iterator[Finding]:
    """The splits do not have the sizes that were asked for.

    Why it matters: a split that is too large has samples of another one.
    Found by: the sizes of the data sets behind the loaders of the run; `training: splits: {train: 45000, val: 5000}`.
    Not an error: splits that the run never reads.
    """
    wanted = _wanted(record, "splits")
    evaluated = [loader for n, loader in record.loaders.items() if n not in record.train_loaders]
    trained = [loader for n, loader in record.loaders.items() if n in record.train_loaders]
    if not trained:
        raise NotSeenError("training iterates no DataLoader")
    for name, size in wanted.items():
        loaders = trained if name == "train" else evaluated
        sizes = sorted({loader["n"] for loader in loaders if loader["n"]})
        place = loaders[0]["loc"] if loaders else ""
        shown = ", ".join(f"{n:,}" for n in sizes) or "none"
        yield _finding(f"{name}: {shown}", f"{size:,}", size in sizes, place, f"the {name} split has another size")


@rule("SPC082", subject=Subject.RUN)
def batch_size_as_asked(record: Record) -> Iterator[Finding]:
    """Training batches do not have the size that was asked for.

    Why it matters: learning rate and schedule were chosen for it.
    Found by: the largest batch that was trained on; `training: batch_size: 128`.
    Not an error: a smaller last batch.
    """
    wanted = _wanted(record, "batch_size")
    passes = [p for p in record.of("pass") if p["trained"]]
    if not passes:
        raise NotSeenError("no forward pass was trained on")
    largest = max(p["n"] for p in passes)
    yield _finding(str(largest), str(wanted), largest == wanted, passes[0]["loc"], "another batch size")


@rule("SPC083", subject=Subject.RUN)
def optimizer_as_asked(record: Record) -> Iterator[Finding]:
    """The optimizer, or one of its numbers, is not what was asked for.

    Why it matters: a learning rate or weight decay that is not handed on leaves the default in its place.
    Found by: class and parameter groups of the optimizer that steps; `training: optimizer: {name: Adam, lr: 0.001}`.
    Not an error: keys that are not asked for.
    """
    wanted = _wanted(record, "optimizer")
    record.need_training()
    made = record.optimizers[record.main_optimizer or 0]
    for key, value in wanted.items():
        if key == "name":
            yield _finding(
                made["cls"], str(value), made["cls"].lower() == str(value).lower(), made["loc"], "another optimizer"
            )
            continue
        name = "initial_lr" if key == "lr" and any("initial_lr" in g for g in made["groups"]) else key
        seen = [group.get(name) for group in made["groups"]]
        holds = any(_equal(one, value) for one in seen)
        yield _finding(
            f"{key} = {', '.join(map(str, dict.fromkeys(map(str, seen))))}",
            str(value),
            holds,
            made["loc"],
            f"another {key}",
        )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= CLOSE * max(abs(one), abs(other))
    return bool(one == other)


@rule("SPC084", subject=Subject.RUN)
def learning_rates_as_asked(record: Record) -> Iterator[Finding]:
    """The learning rate at an epoch is not the one that was asked for.

    Why it matters: it is what the schedule is for.
    Found by: the rate at the first step of the epoch; `training: learning_rate: {1: 0.1, 200: 0.001}`, within 1%.
    Not an error: epochs that the run does not reach, which are skipped.
    """
    wanted = _wanted(record, "learning_rate")
    rates = _rates(record)
    for epoch, rate in wanted.items():
        if int(epoch) > len(rates):
            yield Finding(status=Status.SKIP, message=f"the run ended before epoch {epoch}")
            continue
        seen = rates[int(epoch) - 1]
        holds = abs(seen - rate) <= RATE_TOLERANCE * abs(rate) + 1e-9
        yield _finding(
            f"epoch {epoch}: {seen:.4g}", f"{rate:g}", holds, record.steps[0]["loc"], "another learning rate"
        )


def _rates(record: Record) -> list[float]:
    """The largest learning rate at the first step of each epoch."""
    record.need_training()
    by_pass: dict[Any, float] = {}
    for step in record.of("step"):
        if step["opt"] == record.main_optimizer and step["iteration"] is not None:
            by_pass.setdefault(step["iteration"], max(step["lrs"]))
    return list(by_pass.values())


@rule("SPC085", subject=Subject.RUN)
def clipping_as_asked(record: Record) -> Iterator[Finding]:
    """Gradients are not clipped at the norm that was asked for.

    Why it matters: without it one bad batch can undo an epoch.
    Found by: the limit of `clip_grad_norm_` at each step; `training: clip: 1.0`.
    Not an error: a norm below the limit.
    """
    wanted = _wanted(record, "clip")
    record.need_training()
    limits = sorted({c["limit"] for c in record.of("clip") if c["fn"] == "clip_grad_norm_"})
    place = record.of("clip")[0]["loc"] if limits else record.steps[0]["loc"]
    shown = ", ".join(map(str, limits)) or "no clipping"
    yield _finding(shown, f"{wanted:g}", limits == [wanted], place, "another limit, or none")


@rule("SPC086", subject=Subject.RUN)
def checkpoints_as_asked(record: Record) -> Iterator[Finding]:
    """Checkpoints are not saved as often as was asked for.

    Why it matters: what is not saved is lost when the run is interrupted.
    Found by: the epochs in which a file was saved; `training: checkpoint_every: 10`.
    Not an error: more of them, as for the best epochs.
    """
    wanted = int(_wanted(record, "checkpoint_every"))
    epochs = len([e for e in record.epochs if e.exhausted])
    if epochs < wanted:
        raise NotSeenError(f"the run ended before epoch {wanted}")
    saved = {e["epoch"] + 1 for e in record.of("save")}
    missing = [n for n in range(wanted, epochs + 1, wanted) if n not in saved and n + 1 not in saved]
    first = f"no checkpoint in epoch {missing[0]}" if missing else f"in every {wanted} of {epochs} epochs"
    yield _finding(first, f"every {wanted}", not missing, message="a checkpoint is missing")


@rule("SPC087", subject=Subject.RUN)
def epochs_as_asked(record: Record) -> Iterator[Finding]:
    """The run does not plan the number of epochs that was asked for.

    Why it matters: the schedule ends with them.
    Found by: the bounds of the loop over epochs; `training: epochs: 50`.
    Not an error: early stopping.
    """
    wanted = _wanted(record, "epochs")
    planned = record.planned_epochs or (len(record.epochs) if record.ran_to_the_end else None)
    if planned is None:
        raise NotSeenError("the run does not show how many epochs it plans")
    stopped = record.planned_epochs is None and planned < wanted
    if stopped:
        raise NotSeenError(f"the run stopped after {planned} epochs, by itself")
    yield _finding(str(planned), str(wanted), planned == wanted, message="another number of epochs")


@rule("SPC088", subject=Subject.RUN)
def scheduler_as_asked(record: Record) -> Iterator[Finding]:
    """The scheduler is not the one that was asked for.

    Why it matters: a name in a configuration that is never read leaves another one in its place.
    Found by: the classes of the schedulers that are stepped; `training: scheduler: CosineAnnealingLR`.
    Not an error: the part of a sequence.
    """
    wanted = str(_wanted(record, "scheduler"))
    seen = []
    for scheduler in record.of("scheduler"):
        seen += [scheduler["cls"], *[part["cls"] for part in scheduler["numbers"].get("inner", [])]]
    place = record.of("scheduler")[0]["loc"] if seen else ""
    simple = re.sub(r"LR$", "", wanted, flags=re.IGNORECASE).lower()
    holds = any(re.sub(r"LR$", "", one).lower().startswith(simple) for one in seen)
    yield _finding(", ".join(seen) or "none is stepped", wanted, holds, place, "another scheduler")


@rule("SPC089", subject=Subject.RUN)
def accuracy_as_asked(record: Record) -> Iterator[Finding]:
    """The validation accuracy after some epochs is below what was asked for.

    Why it matters: it is what training is for.
    Found by: the accuracy recomputed from the logits of the evaluation after an epoch; `training: accuracy: {10: 0.8}`.
    In the time-lapse an epoch is a few batches, so this is judged only in runs that were not cut.
    Not an error: epochs that the run does not reach, which are skipped.
    """
    wanted = _wanted(record, "accuracy")
    if any(e.length is None or e.length > e.limit for e in record.epochs):
        raise NotSeenError("the time-lapse cut the epochs; --max-train-batches and --max-val-batches give whole ones")
    for epoch, least in wanted.items():
        begins = [e.begin for e in record.epochs]
        if int(epoch) > len(begins):
            yield Finding(status=Status.SKIP, message=f"the run ended before epoch {epoch}")
            continue
        end = begins[int(epoch)] if int(epoch) < len(begins) else float("inf")
        seen = [e.accuracy for e in record.evaluations if begins[int(epoch) - 1] < e.begin < end and e.accuracy]
        if not seen:
            yield Finding(status=Status.SKIP, message=f"nothing was evaluated after epoch {epoch}")
            continue
        yield _finding(
            f"epoch {epoch}: {max(seen):.2%}", f"at least {least:.2%}", max(seen) >= least, message="too low"
        )


@rule("SPC090", subject=Subject.RUN)
def augmentation_as_asked(record: Record) -> Iterator[Finding]:
    """Augmentation is not where it was asked for: on the training images alone.

    Why it matters: without it the model overfits; on validation images it makes every number a matter of chance.
    Found by: the same images taken twice under different seeds; `training: augmented: [train]`.
    Not an error: data that cannot be taken item by item, which is skipped.
    """
    wanted = _wanted(record, "augmented")
    made = record.probe("data").get("augmentation") or {}
    train = made.get("train") or {}
    if "changing" not in train:
        raise NotSeenError("the items of the training data could not be taken one by one")
    changing = bool(train["changing"])
    yield _finding(
        f"train: {'random' if changing else 'the same each time'}",
        "random" if "train" in wanted else "the same each time",
        changing == ("train" in wanted),
        message="augmentation of the training images",
    )
