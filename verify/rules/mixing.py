"""DAT218 and its like: what a classifier is really trained towards, when batches are mixed and when they are not."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

ENOUGH = 2
# Relative errors of the least-squares fit of the gradient: an explanation that is exact, and one that does not fit.
EXACT, WRONG = 2e-3, 2e-2
# Parts are measured on a few thousand values of each image, sums on all digits.
SHARE_TOLERANCE = {"sum": 0.02, "parts": 0.06}
MOST_SMOOTHING = 0.35
# Labels of other images are by chance those of the partner in fewer samples.
MOST_CHANCE = 0.5


def _mixed(record: Record) -> list[Event]:
    mixed = [e for e in record.of("targets") if e["how"] != "none"]
    if not mixed:
        raise NotSeenError("no batch is mixed with itself between the loader and the model")
    return mixed


def _explains(event: Event, name: str) -> bool:
    return event[name] is not None and event[name] < EXACT


@rule("DAT218", subject=Subject.RUN)
def mix_targets(record: Record) -> Iterator[Finding]:
    """Mixed images are trained towards targets that are mixed otherwise.

    Why it matters: an image that is 90% cat is taught as 90% dog, or as all cat; the augmentation then is label noise.
    Found by: a batch as the loader delivered it is compared with what the model is given, which yields the weight of
    each image in each; the targets follow from the gradient of the logits, which for any cross entropy is a multiple
    of softmax(logits) - targets. No name and no loss function needs to be known. Where other terms are added to the
    loss, the weights that two cross entropies of the labels get in it tell.
    Not an error: label smoothing, a partner that is the image itself, one weight a sample. Targets that are not mixed
    at all are a warning, because some augmentations keep the label on purpose; so are weights that do not sum to 1.

    Wrong: `x[box] = x[p][box]` with the weight drawn before the box was clipped at the border
    Right: `lam = 1 - box_area / image_area` after clipping, and `lam * loss(y) + (1 - lam) * loss(y[p])`
    References: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix".
    """
    mixed = _mixed(record)
    sums = list(_weights_do_not_sum(mixed))
    yield from sums
    if sums:
        return  # shares of what is no mean say nothing about the targets
    unfit = [e for e in mixed if e["mixed"] is not None and e["mixed"] > WRONG]
    swapped = [e for e in unfit if _explains(e, "swapped")]
    unmixed = [e for e in unfit if _explains(e, "unmixed")]
    other = [e for e in unfit if _explains(e, "two") and _share_is_off(e) and e not in swapped and e not in unmixed]
    # Of pasted parts several images may be the source.
    summed = [e for e in unfit if e["how"] == "sum" and not _explains(e, "two") and e.get("partner") is not None]
    stranger = [e for e in summed if e["partner"] < MOST_CHANCE]
    # Beside other terms, such as distillation, the weights of the two losses of the labels tell.
    among = [e for e in unfit if not _explains(e, "two") and e.get("called") is not None and _share_is_off(e)]
    swapped += [e for e in among if abs(1 - e["own"] / e["sum"] - e["called"]) <= _tolerance(e)]
    other += [e for e in among if e not in swapped]
    for events, status, said, hint in (
        (
            swapped,
            Status.FAIL,
            "the two targets are weighted the wrong way round",
            "lam belongs to the image it weighs",
        ),
        (unmixed, Status.WARN, "the targets are not mixed", "lam * loss(y) + (1 - lam) * loss(y[partner])"),
        (
            stranger,
            Status.FAIL,
            "the second label is not that of the second image",
            "mix images and labels with the same permutation",
        ),
        (
            other,
            Status.WARN,
            "the weights of the targets are not those of the images",
            "for CutMix compute lam again from the clipped box: lam = 1 - area / (H * W)",
        ),
    ):
        if len(events) >= ENOUGH:
            one = max(events, key=lambda e: abs(e["own"] / e["sum"] - _label_share(e)))
            yield Finding(
                status=status,
                measured=f"a share of {one['own']:.2f} of the image, {_label_share(one):.2f} of its label, "
                f"at one of {len(events)} such steps"
                if events is not stranger
                else f"{one['partner']:.0%} of the second labels are those of the second images",
                expected="equal shares" if events is not stranger else "100%",
                message=said,
                location=one["loc"],
                hint=hint,
            )


def _label_share(event: Event) -> float:
    """The weight of the own label among two."""
    found = event["called"] if event.get("called") is not None else event["two_own"]
    return float(found) if found is not None else 0.0


def _tolerance(event: Event) -> float:
    """Pixels that two images have in common do not tell from which of them they are."""
    return SHARE_TOLERANCE[event["how"]] + float(event.get("slack", 0.0))


def _share_is_off(event: Event) -> bool:
    known = event.get("called") is not None or event["two_own"] is not None
    return known and abs(event["own"] / event["sum"] - _label_share(event)) > _tolerance(event)


def _weights_do_not_sum(mixed: list[Event]) -> Iterator[Finding]:
    off = [e for e in mixed if e["how"] == "sum" and abs(e["sum"] - 1) > SHARE_TOLERANCE["sum"]]
    if len(off) >= ENOUGH and len(off) > len(mixed) / 2:
        worst = max(off, key=lambda e: abs(e["sum"] - 1))
        yield Finding(
            status=Status.WARN,
            measured=f"the weights of two mixed images sum to {worst['sum']:.2f}",
            expected="1",
            message="mixing changes the brightness of the images, which only training sees",
            location=worst["loc"],
            hint="x = lam * x + (1 - lam) * x[partner], not in place: the second x must be the unscaled one",
        )


@rule("LOS913", severity=Status.WARN, subject=Subject.RUN)
def smoothing_strong(record: Record) -> Iterator[Finding]:
    """More than a third of each target lies on the wrong classes.

    Why it matters: the labels are drowned; logits stay small and the loss has a high floor.
    Found by: the targets that the gradient of the logits gives away, as in DAT218: what part of them is uniform.
    Not an error: smoothing of 0.1 or 0.2; distillation and class weights, which no such explanation fits.

    Wrong: `target = one_hot(y, 10) * 0.9 + 0.1`
    Right: `target = one_hot(y, 10) * 0.9 + 0.1 / 10`, or `nn.CrossEntropyLoss(label_smoothing=0.1)`
    References: Szegedy et al. 2016, "Rethinking the Inception Architecture".
    """
    events = [e for e in record.of("targets") if _explains(e, "mixed") and e["smoothing"] is not None]
    if not events:
        raise NotSeenError("no gradient of a cross entropy was explained")
    strong = [e for e in events if e["smoothing"] > MOST_SMOOTHING]
    if len(strong) >= ENOUGH and len(strong) == len(events):
        yield Finding(
            measured=f"{strong[0]['smoothing']:.0%} of a target is uniform over the classes",
            expected=f"at most {MOST_SMOOTHING:.0%}",
            message="the label smoothing is not what its formula says",
            location=strong[0]["loc"],
            hint="divide the smoothing by the number of classes",
        )
