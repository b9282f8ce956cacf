"""DAT: the order in which training reads its samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_probe import Json, data_probe
from verify.trace.record import NotSeenError, Record

MIN_ORDERED = 32  # a smaller training set may well be read in order


def _train_epochs(record: Record) -> Iterator[tuple[Json, list[list[Json]]]]:
    """Each training loader, with the first batches of each of its epochs.

    Loaders that are made anew every epoch by one line are one loader here.
    """
    training = _training_passes(record)
    ids = {loader for loader, _ in training}
    loaders = {event["id"]: event for event in record.of("loader") if event["id"] in ids}
    if not loaders:
        raise NotSeenError("no DataLoader was used for training")
    epochs: dict[tuple[int, int], list[Json]] = {}
    for event in record.of("batch_print"):
        if (event["loader"], event["epoch"]) in training:
            epochs.setdefault((event["loader"], event["epoch"]), []).append(event)
    groups: dict[Any, tuple[Json, list[list[Json]]]] = {}
    for (loader, _), prints in epochs.items():
        made = loaders.get(loader)
        if made is not None:
            line = (made.get("loc"), made.get("sampler"), made.get("batch_size"), made.get("n"))
            groups.setdefault(line if made.get("loc") else loader, (made, []))[1].append(prints)
    yield from groups.values()


def _training_passes(record: Record) -> set[tuple[int, int]]:
    """(loader, pass number) of the passes that a model learned from."""
    learned = {event["iteration"] for event in record.of("iter_end") if event.get("steps") or event.get("backwards")}
    passes = {(event["loader"], event["epoch"]) for event in record.of("iter_begin") if event["iteration"] in learned}
    phases = [event for event in record.of("phase") if event.get("phase") == "train" and "epoch" in event]
    return passes | {(event["loader"], event["epoch"]) for event in phases}


def epochs_repeat(epochs: list[list[Json]], field: str) -> bool:
    """Whether every epoch begins with the same batches."""
    length = min(len(prints) for prints in epochs)
    rows = [tuple(event.get(field) for event in prints[:length]) for prints in epochs]
    return length > 0 and all(rows[0]) and len(set(rows)) == 1


def _order_can_be_judged(loader: Json, epochs: list[list[Json]]) -> bool:
    size, batch = loader.get("n") or 0, loader.get("batch_size") or 0
    return len(epochs) >= 2 and size >= MIN_ORDERED and 0 < batch < size and not loader.get("iterable")


def judged_orders(record: Record) -> list[tuple[Json, list[list[Json]]]]:
    """Training loaders of several batches that were read for two epochs, with the first batches of each.

    Raises:
        NotSeenError: there is none.
    """
    judged = [(loader, epochs) for loader, epochs in _train_epochs(record) if _order_can_be_judged(loader, epochs)]
    if not judged:
        raise NotSeenError("no training loader with several batches was seen for two epochs")
    return judged


@rule("DAT204", severity=Status.WARN, subject=Subject.RUN)
def train_order_fixed(record: Record) -> Iterator[Finding]:
    """Training reads its samples in the same order every epoch, as they are stored.

    Why it matters: batches always hold the same samples, which costs accuracy; where samples are stored class by class
    the network forgets one class while it sees the next.
    Found by: a sequential sampler and equal batches at the beginning of every epoch. An error when batches hold far
    fewer classes than they would by chance.
    Not an error: the whole set in one batch, tiny sets, streams; sequences that must stay in order, which is why this
    is a warning.

    Wrong: `DataLoader(train, batch_size=128)`
    Right: `DataLoader(train, batch_size=128, shuffle=True)`
    References: super-gradients issue 416.
    """
    for loader, epochs in judged_orders(record):
        if loader.get("sampler") != "SequentialSampler" or loader.get("shuffle"):
            continue
        if not epochs_repeat(epochs, "labels" if epochs[0][0].get("labels") else "inputs"):
            continue
        found = _sorted_batches(record, epochs[0])
        yield Finding(
            status=Status.FAIL if found else Status.WARN,
            measured=f"the same batches in each of {len(epochs)} epochs" + (f"; {found}" if found else ""),
            expected="another order every epoch",
            message="samples come sorted by class and are not shuffled"
            if found
            else "the training data is not shuffled",
            location=str(loader.get("loc") or ""),
            hint="shuffle=True",
        )
        return


def _sorted_batches(record: Record, prints: list[Json]) -> str:
    """What shows that samples are stored class by class; empty when they are not."""
    classes = _class_count(record)
    batches = [event for event in prints if event.get("classes") and event.get("n", 0) >= 16]
    if not classes or classes < 2 or not batches:
        return ""
    seen = sum(event["classes"] for event in batches) / len(batches)
    size = batches[0]["n"]
    by_chance = classes * (1 - (1 - 1 / classes) ** size)
    few = seen <= max(1.0, by_chance / 3)
    return f"a batch of {size} holds {seen:.0f} of {classes} classes" if few else ""


def _class_count(record: Record) -> int | None:
    try:
        probe = data_probe(record)
    except NotSeenError:
        return None
    train = (probe.get("labels") or {}).get("train") or {}
    distinct = train.get("distinct")
    if distinct and distinct <= max(2, train["n"] // 4):
        return int(distinct)
    count = probe.get("num_classes")
    return int(count) if count else None


@rule("DAT205", severity=Status.WARN, subject=Subject.RUN)
def order_repeats(record: Record) -> Iterator[Finding]:
    """The shuffled order is the same every epoch.

    Why it matters: every epoch then forms the same batches, although `shuffle=True` says otherwise.
    Found by: a random sampler, and equal batches at the beginning of every epoch.
    Not an error: a generator that is seeded once, before the first epoch.

    Wrong: `for epoch in range(50): torch.manual_seed(0); ...`
    Right: seed once at the start of the program
    """
    for loader, epochs in judged_orders(record):
        shuffled = loader.get("sampler") in ("RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler")
        told_apart = any((event.get("classes") or 2) > 1 for event in epochs[0])
        field = "labels" if epochs[0][0].get("labels") and told_apart else "inputs"
        if shuffled and epochs_repeat(epochs, field):
            yield Finding(
                measured=f"the same batches in each of {len(epochs)} epochs",
                expected="another order every epoch",
                message="the data is shuffled, and in the same way every epoch",
                location=str(loader.get("loc") or ""),
                hint="is a seed set within the epoch loop, or a generator made anew with a fixed seed?",
            )
            return
