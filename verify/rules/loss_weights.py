"""LOS: weights of classes against how often they occur, and targets that are no probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

LEAST_COUNT = 10  # of a class, for its share to mean something
UNEQUAL, WEIGHTED = 1.5, 1.2  # the least ratio of the largest to the smallest count, and weight
LIKELY, SURE = 0.9, 0.97  # correlation of the logarithms
SLOPES = (0.3, 1.3)  # weights that grow like the root of the counts, up to the counts themselves
FEW_SLOPES = ((0.45, 0.55), (0.93, 1.07))  # what two or three classes must have to be no coincidence
TOLERATED = 1e-3
FAR_OUTSIDE = 0.3  # targets up to 1.2 are a known trick for training a GAN


def relation(counts: list[float], weights: list[float]) -> tuple[int, float, float]:
    """(number of classes, correlation, slope) of the logarithm of the weights over that of the counts.

    Classes that are rare or weigh nothing are left out; (0, 0, 0) where counts or weights are about equal.
    """
    pairs = [(math.log(c), math.log(w)) for c, w in zip(counts, weights, strict=True) if c >= LEAST_COUNT and w > 0]
    if len(pairs) < 2:
        return 0, 0.0, 0.0
    xs, ys = zip(*pairs, strict=True)
    if max(xs) - min(xs) < math.log(UNEQUAL) or max(ys) - min(ys) < math.log(WEIGHTED):
        return 0, 0.0, 0.0
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    xx = sum((x - mean_x) ** 2 for x in xs)
    yy = sum((y - mean_y) ** 2 for y in ys)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return len(pairs), xy / math.sqrt(xx * yy), xy / xx


def grows_with_counts(counts: list[float], weights: list[float]) -> Status | None:
    """Whether weights favour the classes that are frequent already: surely, probably, or not."""
    classes, correlation, slope = relation(counts, weights)
    if classes < 2 or correlation < LIKELY or slope <= 0:
        return None
    if classes < 4:
        exact = any(low <= slope <= high for low, high in FEW_SLOPES) and correlation > SURE
        return Status.WARN if exact else None
    return Status.FAIL if correlation > SURE and SLOPES[0] < slope < SLOPES[1] else Status.WARN


def _weighted(record: Record, key: str) -> dict[str, list[Event]]:
    """The training calls of weighted losses, by place."""
    found: dict[str, list[Event]] = {}
    for event in record.of("loss"):
        if event["grad"] and event.get(key) and event.get("counts"):
            found.setdefault(event["loc"], []).append(event)
    return found


def _summed(events: list[Event]) -> list[float]:
    return [float(sum(column)) for column in zip(*(event["counts"] for event in events), strict=True)]


@rule("LOS917", subject=Subject.RUN)
def weights_upside_down(record: Record) -> Iterator[Finding]:
    """The weights of the classes grow with how often they occur.

    Why it matters: weights are there so that rare classes count; these make them count less than with none at all.
    Found by: the `weight` of cross entropy, or the `pos_weight` of a binary one, against the classes in the batches
    that it was computed on: it follows their share, or its root, instead of the inverse.
    Not an error: weights chosen otherwise; balanced batches; weights that fall as the counts rise.

    Wrong: `weight = counts / counts.sum()`; `pos_weight = positives / negatives`
    Right: `weight = counts.sum() / (len(counts) * counts)`; `pos_weight = negatives / positives`
    """
    classes, binary = _weighted(record, "weight"), _weighted(record, "pos_weight")
    if not classes and not binary:
        raise NotSeenError("no loss with weights for classes was called in training")
    for place, events in classes.items():
        counts, weights = _summed(events), events[0]["weight"]
        status = grows_with_counts(counts, weights) if len(counts) == len(weights) else None
        if status is not None:
            most, least = _extremes(counts)
            yield Finding(
                status=status,
                measured=f"class {most}: {counts[most]:.0f} targets, weight {weights[most]:.3g}; "
                f"class {least}: {counts[least]:.0f}, weight {weights[least]:.3g}",
                expected="the larger weight for the rarer class",
                message="the class weights follow the frequency of the classes instead of its inverse",
                location=place,
                hint="weight = total / (classes * counts)",
            )
            return
    inverted = (made for place, events in binary.items() for made in _inverted_positives(place, events))
    yield from islice(inverted, 1)


def _extremes(counts: list[float]) -> tuple[int, int]:
    enough = [index for index, count in enumerate(counts) if count >= LEAST_COUNT]
    return max(enough, key=lambda i: counts[i]), min(enough, key=lambda i: counts[i])


def _inverted_positives(place: str, events: list[Event]) -> Iterator[Finding]:
    """Positive weights that equal positives / negatives, where the inverse of that would be another number."""
    weights, positives = events[0]["pos_weight"], _summed(events)
    total = sum(event["count_of"] for event in events)
    pairs = [
        (math.log(count / (total - count)), math.log(weight))
        for count, weight in zip(positives, weights, strict=True)
        if LEAST_COUNT <= count <= total - LEAST_COUNT and weight > 0
    ]
    uneven = [(odds, weight) for odds, weight in pairs if abs(odds) > math.log(UNEQUAL)]
    inverted = [(odds, weight) for odds, weight in uneven if abs(odds - weight) < 0.2 * abs(odds) + 0.1]
    if not uneven or len(inverted) < 0.8 * len(pairs):
        return
    odds, weight = inverted[0]
    yield Finding(
        status=Status.FAIL if len(inverted) >= 4 else Status.WARN,
        measured=f"{math.exp(odds):.2f} positives for a negative, pos_weight {math.exp(weight):.2f}",
        expected=f"about {math.exp(-odds):.2f}",
        message="pos_weight is positives over negatives, which weighs the rarer answer down",
        location=place,
        hint="pos_weight = negatives / positives",
    )


@rule("LOS919", severity=Status.WARN, subject=Subject.RUN)
def class_not_counted(record: Record) -> Iterator[Finding]:
    """The loss leaves a whole class out.

    Why it matters: with `ignore_index=0` class 0 teaches nothing, and with a weight of 0 neither; the model never
    predicts it, and the loss looks better than it is.
    Found by: cross entropy of one label a sample, in training: labels of one class that `ignore_index` takes out, in
    batch after batch; a class that occurs and weighs 0.
    Not an error: -100 and other numbers that are no class; labels of pixels or words, where 0 may stand for padding.
    A warning, for a data set may have a class for what nobody has labelled.

    Wrong: `CrossEntropyLoss(ignore_index=0)`
    Right: `CrossEntropyLoss()`
    """
    calls = [e for e in record.of("loss") if e["fn"] in ("cross_entropy", "nll_loss") and _is_by_sample(e)]
    trained = [e for e in calls if e["grad"]]
    passes = [e for e in record.of("pass") if e["trained"]]
    flattened = any(len(e.get("shape") or []) != 2 or e["shape"][0] != e["n"] for e in passes)
    if not trained or not passes or flattened:
        raise NotSeenError("no cross entropy of one label a sample was computed in training")
    left_out = [e["target"]["ignored"] for e in trained if e["target"].get("ignored")]
    number = next((n for e in trained if (n := e["target"].get("ignored_class")) is not None), None)
    if number is not None and len(left_out) >= max(2, len(trained) / 2):
        samples = sum(e["n"] for e in trained)
        yield Finding(
            measured=f"{sum(left_out)} of {samples} samples, all of class {number}",
            expected="none",
            message=f"ignore_index={number} takes class {number} out of the loss",
            location=trained[0]["loc"],
            hint="leave ignore_index away; it is for labels that are no class, such as -100",
        )
        return
    yield from _weigh_nothing([e for e in trained if e.get("weight") and e.get("counts")])


def _is_by_sample(event: Event) -> bool:
    target: dict[str, Any] = event.get("target") or {"shape": []}
    return len(target["shape"]) == 1 and not target["float"] and len(event["input"]["shape"]) == 2


def _weigh_nothing(events: list[Event]) -> Iterator[Finding]:
    if not events:
        return
    weights, counts = events[0]["weight"], _summed(events)
    classes = [n for n, (weight, count) in enumerate(zip(weights, counts, strict=True)) if not weight and count >= 2]
    if classes and any(weights):
        yield Finding(
            measured=f"class {classes[0]}: weight 0, {counts[classes[0]]:.0f} samples seen",
            expected="a weight above 0",
            message="the loss leaves out a class that the data has",
            location=events[0]["loc"],
            hint="a class without samples in what the weights were computed from?",
        )


@rule("LOS918", subject=Subject.RUN)
def targets_no_probabilities(record: Record) -> Iterator[Finding]:
    """Targets of a binary cross entropy lie outside of 0 to 1.

    Why it matters: with a target of 2 the loss has no minimum; it pushes the logit towards infinity, and torch says
    nothing.
    Found by: the range of the targets that the loss was given.
    Not an error: soft targets within 0 to 1, rounding; -1 for entries that are masked, by a weight or after the loss;
    targets up to 1.2 where two networks play against each other.

    Wrong: `y[i, label] += 1.0` for a label that occurs twice; standardised pictures as targets of an autoencoder
    Right: `y[i, label] = 1.0`
    """
    events = [
        e
        for e in record.of("loss")
        if e["fn"] in ("binary_cross_entropy_with_logits", "binary_cross_entropy") and "max" in (e.get("target") or {})
    ]
    if not events:
        raise NotSeenError("no binary cross entropy was called")
    judged = [e for e in events if e["reduction"] != "none" and not e.get("weighted")]
    outside = [e for e in judged if max(e["target"]["max"] - 1, -e["target"]["min"]) > TOLERATED]
    if not outside:
        return
    low, high = min(e["target"]["min"] for e in outside), max(e["target"]["max"] for e in outside)
    far = max(high - 1, -low) > FAR_OUTSIDE
    if not far and len(record.steps_of) > 1:
        return
    yield Finding(
        status=Status.FAIL if far else Status.WARN,
        measured=f"targets in [{low:.3g}, {high:.3g}]",
        expected="0 to 1",
        message="binary cross entropy is given targets that are no probabilities",
        location=outside[0]["loc"],
        hint="are labels counted instead of set? are the targets standardised? clamp, or use another loss",
    )
