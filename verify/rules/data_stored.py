"""DAT: datasets that change what they hold, samplers that draw the wrong way round, crops that cannot move."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status, plural
from verify.rules import Subject, rule
from verify.rules.data_probe import data_probe, part_of, place_of
from verify.rules.loss_weights import grows_with_counts
from verify.source import Project, argument, has_unpacking
from verify.trace.record import NotSeenError, Record

FEW_CHANGED = 3
LEAST_CALLS = 20


@rule("DAT226", subject=Subject.RUN)
def stored_data_changes(record: Record) -> Iterator[Finding]:
    """Fetching a training item changes the data that the dataset holds.

    Why it matters: an augmentation in place on a view of the stored sample is never undone; noise piles up from
    epoch to epoch, shifts walk out of the picture, and the original data is gone.
    Found by: fetching training items several times under the same seeds, other ones in between, and comparing what is
    stored for them. Without a DataLoader: comparing the tensor that batches are cut from before and after an epoch.
    Not an error: what is filled in at the first fetch; counters and priorities; samples that are made anew in place;
    shuffling; an augmented copy beside the original.

    Wrong: `x = self.images[i]; x += noise * torch.randn_like(x)`; `train_x.copy_(augment(train_x))`
    Right: `x = self.images[i]; x = x + noise * torch.randn_like(x)`; `epoch_x = augment(train_x)`
    """
    probe = data_probe(record)
    made = part_of(probe, "stored")
    if made["changed"] < FEW_CHANGED:
        yield Finding(status=Status.PASS, measured=f"{plural(made['n'], 'item')} fetched again")
        return
    name = f" in {made['name']}" if made["name"] else ""
    yield Finding(
        status=Status.WARN if made.get("hand_cut") else Status.FAIL,
        measured=f"{made['changed']} of {made['n']} stored samples{name} changed",
        expected="0",
        message="the stored training data is changed from epoch to epoch"
        if made.get("hand_cut")
        else "fetching an item changes the stored sample, each time further",
        location=place_of(probe["train"]),
        hint="augment a copy: x = x + noise instead of x += noise, or clone() first",
    )


@rule("DAT227", subject=Subject.RUN)
def sampler_upside_down(record: Record) -> Iterator[Finding]:
    """The weights of a sampler make the classes less balanced than the data.

    Why it matters: the sampler is there so that rare classes are seen as often as others; with counts for weights they
    are hardly seen at all.
    Found by: the weights of a `WeightedRandomSampler` by class, against the number of samples of each class.
    Not an error: weights that fall as counts rise; weights of single samples, such as hard ones.

    Wrong: `weights = [counts[y] for y in labels]`
    Right: `weights = [1 / counts[y] for y in labels]`
    """
    probe = data_probe(record)
    made = part_of(probe, "sampler")
    if not made["even"] or len(made["classes"]) < 2:
        raise NotSeenError("the samples of a class are drawn with different weights")
    counts = [float(count) for _, count, _ in made["classes"]]
    shares = [share for _, _, share in made["classes"]]
    status = grows_with_counts(counts, [share / count for share, count in zip(shares, counts, strict=True)])
    if status is None:
        return
    rare = min(range(len(counts)), key=lambda i: counts[i])
    yield Finding(
        status=status,
        measured=f"class {made['classes'][rare][0]}: {counts[rare] / sum(counts):.1%} of the samples, "
        f"{shares[rare] / sum(shares):.1%} of the draws",
        expected="rare classes drawn more often than they occur",
        message="the sampler's weights follow the class counts instead of their inverse",
        location=place_of(probe["train"]),
        hint="weight each sample by 1 / count of its class",
    )


@rule("DAT228", severity=Status.WARN, subject=Subject.RUN)
def crop_without_room(record: Record) -> Iterator[Finding]:
    """A random crop is as large as the picture, so it never moves.

    Why it matters: the code reads as if pictures were shifted at random; they are not, and the network overfits.
    Found by: `RandomCrop` without padding, whose result had the size of its input each time that it ran.
    Not an error: padding, also `padding=0` that a setting gives; pictures of which some are larger.

    Wrong: `RandomCrop(32)` for pictures of 32x32
    Right: `RandomCrop(32, padding=4)`
    """
    probe = data_probe(record)
    crops = part_of(probe, "augmentation").get("crops") or []
    judged = [crop for crop in crops if crop["calls"] >= LEAST_CALLS]
    if not judged or _all_say_padding(record):
        raise NotSeenError("no random crop without padding ran")
    for crop in judged:
        if crop["without_room"] == crop["calls"]:
            size = "x".join(str(side) for side in crop["size"])
            yield Finding(
                measured=f"{crop['calls']} of {crop['calls']} crops are the whole picture",
                expected="crops that move",
                message=f"RandomCrop to {size} without padding does nothing to pictures of {size}",
                location=place_of(probe["train"]),
                hint="padding=4, or resize the pictures to something larger first",
            )
            return


def _all_say_padding(record: Record) -> bool:
    """Whether the source gives a padding, which may be 0, with every random crop."""
    calls = [call for call in Project(record.sources).calls if ast.unparse(call.func).endswith("RandomCrop")]
    return bool(calls) and all(has_unpacking(call) or argument(call, 1, "padding") is not None for call in calls)
