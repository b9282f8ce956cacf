"""DAT: pictures that lie otherwise in evaluation, inputs that name their class, batches scaled by themselves."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_probe import Json, data_probe, measured_evals, part_of, place_of
from verify.trace.record import NotSeenError, Record

# Of the mean pictures of two splits that show the same, the mean square of the distance is about 1 standard error.
FAR, NEAR, TIMES_NEARER = 6.0, 2.5, 4.0
MOST_TELLING = 0.05  # of the numbers of an input; where more of them name the class, the data is made up
FEWEST_NUMBERS = 4
CENTRED, NOT_CENTRED = 1e-4, 0.02  # in standard deviations


@rule("DAT247", subject=Subject.RUN)
def splits_turned(record: Record) -> Iterator[Finding]:
    """The pictures of an evaluation are turned or mirrored against those of training.

    Why it matters: the network is asked about pictures such as it has never seen; training looks fine, and the score is
    poor for no visible reason.
    Found by: the mean picture of each split, training read with and without its augmentation: far from each other as
    they are, and alike once one of them is turned, mirrored or transposed.
    Not an error: pictures for which it makes no difference; splits that show different things, however they are laid;
    random flips and turns in training.

    Wrong: `Digits(x[val].transpose(2, 3), y[val])`, or one split read by a library that has (width, height)
    Right: one function that reads the pictures of every split
    """
    probe = data_probe(record)
    parts = probe.get("turned")
    pairs = measured_evals(probe, parts if isinstance(parts, list) else [{"skipped": "not measured"}])
    for view, made in pairs:
        found = _turn(made["plain"], FAR, NEAR) or _turn(made["augmented"], 2 * FAR, 2 * NEAR)
        if found:
            as_it_is, way, best = found
            yield Finding(
                measured=f"mean pictures {as_it_is**0.5:.1f} standard errors apart; {best**0.5:.1f} {way}",
                expected="alike as they are",
                message=f"evaluation pictures look like training pictures only when {way}",
                location=place_of(view),
                hint="read and transform the pictures of both splits by the same code",
            )
            return
    yield Finding(status=Status.PASS, measured=f"{len(pairs)} compared, for eight ways to lay a picture")


def _turn(distances: Json, far: float, near: float) -> tuple[float, str, float] | None:
    """(distance as the pictures are, the way to lay them that brings them near, distance then), if there is one."""
    as_it_is = distances["as it is"]
    best, way = min((value, name) for name, value in distances.items() if name != "as it is")
    return (as_it_is, way, best) if as_it_is >= max(far, TIMES_NEARER * best) and best <= near else None


@rule("DAT248", subject=Subject.RUN)
def input_names_class(record: Record) -> Iterator[Finding]:
    """One number of the input gives the class away.

    Why it matters: the network reads the label instead of learning the task; every score is near 100%, and worthless.
    Found by: a pixel or feature that is the same in all samples of a class and differs between classes, in 100 samples
    or more, while most of the others vary.
    Not an error: features that predict the class well but not exactly; made-up data, in which many numbers do so.

    Wrong: `x[:, 0, 0, 0] = y / 9`; a column of the table that was filled in after the diagnosis
    Right: inputs that are known before the label is
    References: Kaufman et al. 2012, "Leakage in data mining".
    """
    probe = data_probe(record)
    parts: list[Json] = probe["tells"] if isinstance(probe.get("tells"), list) else []
    if all(one.get("skipped") for one in parts):
        raise NotSeenError(next((one["skipped"] for one in parts), "not measured"))
    views = [probe["train"], *probe["evals"]]
    for view, one in zip(views, parts, strict=False):
        if one.get("skipped") or not one["told"]:
            continue
        most = max(1, MOST_TELLING * one["numbers"])
        if one["told"] <= most and one["others_vary"] and one["numbers"] >= FEWEST_NUMBERS:
            yield Finding(
                measured=f"x{one['place']} is one value for each of {one['classes']} classes, in {one['n']} samples",
                expected="no number that names the class",
                message="a number of the input gives the class away",
                location=place_of(view),
                hint="is the label, or something made from it, written into the input?",
            )
            return


@rule("DAT249", subject=Subject.RUN)
def scaled_by_batch(record: Record) -> Iterator[Finding]:
    """Every batch is normalised by its own mean.

    Why it matters: what the model sees of a sample depends on the others in the batch. Sorted or small batches, and a
    single sample in use, give other answers.
    Found by: a batch that the model was given in training: its mean is zero at every pixel or in every channel, which
    that of single samples is not, and it is not the whole data set.
    Not an error: constants of the training split; pictures that are each scaled by themselves; training on all data at
    once.

    Wrong: `x = (x - x.mean(dim=0)) / x.std(dim=0)` in the loop
    Right: `x = (x - mean) / std`, with numbers from the training split
    """
    probe = data_probe(record)
    given = part_of(part_of(probe, "stats"), "batch_means")
    size = (probe.get("train") or {}).get("n")
    if size is not None and size <= given["n"]:
        return
    by = _centred(given)
    if by:
        yield Finding(
            measured=f"batches of {given['n']} with a mean of 0 {by}",
            expected="means that differ from batch to batch",
            message="the inputs are normalised by the statistics of their own batch",
            location=place_of(probe["train"]),
            hint="compute mean and standard deviation once, over the training split",
        )


def _centred(given: Json) -> str:
    if given["by_sample"] < NOT_CENTRED:
        return ""
    if given["by_element"] < CENTRED:
        return "at every pixel or feature"
    return "in every channel" if given["by_channel"] < CENTRED and given["channels"] else ""
