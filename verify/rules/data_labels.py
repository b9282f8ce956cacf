"""DAT: whether the targets are what the inputs, the model and the other split ask for."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status, plural, shortlist
from verify.rules import Subject, rule
from verify.rules.data_probe import Json, data_probe, measured_evals, part_of, place_of
from verify.trace.record import NotSeenError, Record

# Label statistics, in standard deviations from what shuffled labels give.
PREDICTABLE = 5.0
CHANCE = 1.64
UNPREDICTABLE = 3.0
EXPECTED_ERRORS = 10.0  # that evaluation would be from chance if it were as predictable as training
LEAST_LABELLED, LEAST_NUMBERED = 200, 300
LEAST_STEPS = 40
IGNORED_LABELS = {-100, -1, 255}


@rule("DAT212", subject=Subject.RUN)
def class_map_differs(record: Record) -> Iterator[Finding]:
    """A class has one number in training and another in evaluation.

    Why it matters: right answers are counted as wrong. Where the map comes from an unsorted listing, it may happen on
    one machine only.
    Found by: comparing `class_to_idx`, `classes` and maps of other names, for the names that both splits have.
    Not an error: an evaluation split without some of the classes, if the others keep their numbers.

    Wrong: `classes = os.listdir(root)` in each split
    Right: `classes = sorted(os.listdir(train_root))`, one map for all splits
    References: pytorch-image-models issue 957.
    """
    probe = data_probe(record)
    made = part_of(probe, "class_maps")
    if not made["evals"]:
        raise NotSeenError("the evaluation data has no class names of its own")
    for result in made["evals"]:
        if result["different"]:
            name, ours, theirs = result["example"][0]
            yield Finding(
                measured=f"{result['different']} of {result['classes']} classes have another number, "
                f"{name!r} is {ours} in training and {theirs} in evaluation",
                expected="one map",
                message="the splits number their classes differently",
                location=place_of(probe["evals"][result["eval"]]),
                hint="make the map once, sorted, from the training split, and hand it to the others",
            )
            return


def _counts(made: Json) -> dict[int, int]:
    return {int(value): int(count) for value, count in made["counts"]}


def _is_classification(made: Json) -> bool:
    """Whether integer targets are classes: few values, each met several times."""
    return made["distinct"] >= 2 and made["distinct"] <= max(2, made["n"] // 5) and made["distinct"] <= 1000


@rule("DAT214", severity=Status.WARN, subject=Subject.RUN)
def labels_out_of_range(record: Record) -> Iterator[Finding]:
    """Labels do not fit the number of logits.

    Why it matters: a label that has no logit ends the run in the middle of an epoch, or silently trains something else
    on the device; labels that begin at 1 leave the first logit without a class.
    Found by: every label of the training split where it can be read cheaply, against the width of the logits.
    Not an error: -100, -1 and 255, which losses are told to ignore; labels that the loop maps to others, which is why
    this is mostly a warning.
    """
    probe = data_probe(record)
    classes = probe["num_classes"]
    if not classes or classes < 2:
        raise NotSeenError("the number of logits is not known")
    made = part_of(part_of(probe, "labels"), "train")
    if not _is_classification(made):
        raise NotSeenError("the targets are not class numbers")
    counts = _counts(made)
    bad = {value: count for value, count in counts.items() if not 0 <= value < classes and value not in IGNORED_LABELS}
    in_batches = set(made["in_batches"])
    where = place_of(probe["train"])
    if bad and not in_batches & set(bad):
        fits = in_batches and max(in_batches) == classes - 1 and min(in_batches) == 0
        yield Finding(
            status=Status.FAIL if fits and sum(bad.values()) < 0.01 * made["n"] else Status.WARN,
            measured=f"{plural(sum(bad.values()), 'label')} outside, such as {next(iter(bad))}",
            expected=f"0 to {classes - 1}",
            message=f"the training data has labels for which the {classes} logits have no place",
            location=where,
            hint="a hidden folder that counts as a class? labels that begin at 1?",
        )
    elif not bad and 0 not in counts and made["n"] >= 20 * classes and set(range(1, classes)) <= set(counts):
        yield Finding(
            measured=f"labels 1 to {classes - 1}, {classes} logits",
            expected="labels from 0",
            message="no training sample has label 0, every other class occurs: labels begin at 1?",
            location=where,
            hint="subtract 1 from the labels and give the model one logit less",
        )


@rule("DAT215", severity=Status.WARN, subject=Subject.RUN)
def class_missing(record: Record) -> Iterator[Finding]:
    """Training has no sample of a class that is evaluated.

    Why it matters: the network can never predict it, and the score is bounded by that.
    Found by: all labels of the training split against the labels of the evaluation. A class that has hardly any
    training sample counts too, where all others have the same share in both splits.
    Not an error: evaluation on new classes alone, as in metric learning; long-tailed training data.

    Wrong: `train = data[:40000]` of a file that is sorted by class
    Right: `train_test_split(..., stratify=labels)`
    """
    probe = data_probe(record)
    made = part_of(probe, "labels")
    train = part_of(made, "train")
    if not train["whole"]:
        raise NotSeenError("the labels of the whole training split could not be read")
    ours = _counts(train)
    for view, other in measured_evals(probe, made["evals"]):
        theirs = _counts(other)
        missing = [value for value, count in theirs.items() if value not in ours and count >= 2 and value >= 0]
        if not missing and _is_classification(other):
            yield from _nearly_missing(ours, theirs, view)
        if not missing or not _is_classification(other) or 2 * len(missing) > len(theirs):
            continue
        yield Finding(
            measured=f"{plural(len(missing), 'class')} without a training sample: {shortlist(map(str, missing))}"
            if len(missing) == 1
            else f"{len(missing)} classes without a training sample: {shortlist(map(str, missing))}",
            expected="every evaluated class in the training data",
            message="the evaluation asks for a class that training never shows",
            location=place_of(view),
            hint="split at random, or stratified by class",
        )
        return


def _nearly_missing(ours: dict[int, int], theirs: dict[int, int], view: Json) -> Iterator[Finding]:
    """One class that training hardly has, while every other one has about the share that the evaluation has."""
    total, other_total = sum(ours.values()), sum(theirs.values())
    expected = {value: count * total / other_total for value, count in theirs.items()}
    rare = [v for v, count in expected.items() if count >= 30 and theirs[v] >= 10 and ours[v] < count / 4]
    alike = [v for v in theirs if v not in rare and 0.6 < ours[v] / expected[v] < 1.7]
    if len(rare) == 1 and len(alike) == len(theirs) - 1 and len(theirs) >= 3:
        value = rare[0]
        yield Finding(
            measured=f"class {value}: {ours[value]} of {total:,} training samples, {theirs[value]} of {other_total:,} "
            "in evaluation",
            expected=f"about {expected[value]:.0f} in training",
            message="training has hardly any sample of a class that is evaluated",
            location=place_of(view),
            hint="split at random, or stratified by class",
        )


@rule("DAT213", severity=Status.WARN, subject=Subject.RUN)
def labels_unrelated(record: Record) -> Iterator[Finding]:
    """The labels of a split have nothing to do with its inputs.

    Why it matters: training on them is memorising; a score on them is chance.
    Found by: predicting each label from the nearest other sample. One split is predictable far beyond chance, the
    other one, with as many samples, not at all, nor from the first; or both are, and a fixed renaming of classes is
    needed between them.
    Or nothing predicts them at all: not the nearest sample by pixels, by frequencies or by colours, not a plane
    through the samples, within a split or from one to the other, and the network's answers in evaluation stay at
    chance too. The same for a target that is one number.
    Not an error: data that is too hard for the nearest neighbour in both splits, if the network learns something;
    inputs that are noise; partly noisy labels.

    Wrong: `images = sorted(glob(a)); labels = os.listdir(b)`; `targets = targets[torch.randperm(n)]`
    Right: shuffle images and labels with one permutation
    """
    probe = data_probe(record)
    if _measured(probe, "numbers"):
        yield from _numbers_unrelated(record, probe)
        return
    made = part_of(probe, "learn")
    train, other = made["train"], made["eval"]
    comparable = train["n"] >= 0.7 * other["n"] and other["n"] >= 60
    measured = (
        f"nearest neighbour right for {train['accuracy']:.0%} in training (chance {train['chance']:.0%}), "
        f"{other['accuracy']:.0%} in evaluation (chance {other['chance']:.0%})"
    )
    if comparable and other["z"] > PREDICTABLE and train["z"] < CHANCE:
        yield Finding(
            measured=measured,
            expected="better than chance in both",
            message="the training labels look unrelated to the training inputs",
            location=place_of(probe["train"]),
            hint="are inputs and labels read, sorted or shuffled separately?",
        )
        return
    if _nothing_predicts(made) and not _network_learns(record):
        yield Finding(
            measured=measured + "; nothing else predicts them, nor does the network in evaluation",
            expected="better than chance",
            message="the labels look unrelated to the inputs, in training and in evaluation",
            location=place_of(probe["train"]),
            hint="are inputs and labels read, sorted or shuffled separately? look at a few samples with their labels",
        )
        return
    if "across" not in made or train["z"] < PREDICTABLE:
        return
    if _only_evaluation_unrelated(record, probe, made):
        across = made["across"]
        yield Finding(
            status=Status.FAIL,
            measured=f"{measured}; {across['accuracy']:.0%} from training to evaluation",
            expected="better than chance in both",
            message="the evaluation labels look unrelated to the evaluation inputs",
            location=place_of(_first_evaluation(probe)),
            hint="are inputs and labels read, sorted or shuffled separately?",
        )
        return
    if made["same_labels"] and other["z"] >= PREDICTABLE and _is_renamed(made["across"], made["mapping"]):
        yield _renamed(probe, made["across"], made["mapping"], probe["evals"][0])
        return
    for further in made.get("further", []):
        # The first evaluation agrees with training, so that this one would too.
        agrees = made["across"]["z"] >= PREDICTABLE and further["same_labels"]
        if agrees and _is_renamed(further["across"], further["mapping"]) and _is_one_to_one(further["mapping"]):
            yield _renamed(probe, further["across"], further["mapping"], probe["evals"][further["eval"]])
            return


def _first_evaluation(probe: Json) -> Json:
    """The one that `learn` compares with training."""
    return next((view for view in probe["evals"] if not view["is_train_loader"]), probe["evals"][0])


def _only_evaluation_unrelated(record: Record, probe: Json, made: Json) -> bool:
    """Whether the labels of evaluation follow neither from its own inputs nor from training, though they should."""
    train, other, across = made["train"], made["eval"], made["across"]
    chance = across["chance"]
    expected = (train["accuracy"] - chance) / (max(chance * (1 - chance), 1e-6) / across["n"]) ** 0.5
    if not made["same_labels"] or max(other["z"], across["z"], made["mapping"]["z"]) >= UNPREDICTABLE:
        return False
    number = _first_evaluation(probe)["id"]
    answered = [one for one in record.evaluations if one.loader == number and one.accuracy is not None]
    return expected >= EXPECTED_ERRORS and not any(_beats_chance(one.passes) for one in answered)


def _is_renamed(across: Json, mapping: Json) -> bool:
    return bool(across["z"] < CHANCE and mapping["z"] > PREDICTABLE and mapping["count"] >= 2)


def _is_one_to_one(mapping: Json) -> bool:
    """Whether no two classes of training look like one of the evaluation."""
    new = [pair[1] for pair in mapping["moved"]]
    return len(set(new)) == len(new)


def _renamed(probe: Json, across: Json, mapping: Json, view: Json) -> Finding:
    old, new = mapping["moved"][0]
    return Finding(
        measured=f"across splits {across['accuracy']:.0%} as labelled, {mapping['accuracy']:.0%} after renaming",
        expected="one meaning of each label",
        message=f"training's class {old} looks like evaluation's class {new}",
        location=place_of(view),
        hint="use one map from class names to numbers for all splits",
    )


def _measured(probe: Json, name: str) -> bool:
    part = probe.get(name)
    return isinstance(part, dict) and not part.get("skipped")


def _nothing_predicts(made: Json) -> bool:
    """Whether every way to predict a label fails, with so many samples of each class that one should not."""
    ways = [made["train"], made["eval"], made.get("across"), *made.get("other_ways", [])]
    enough = made["train"]["n"] >= max(LEAST_LABELLED, 20 * made["classes"]) and made["eval"]["n"] >= 60
    measured = len(ways) >= 7 and all(ways) and made.get("floating", False)
    return enough and measured and made["classes"] >= 2 and max(way["z"] for way in ways) < UNPREDICTABLE


def _network_learns(record: Record) -> bool:
    """Whether the network's answers beat chance in an evaluation; in training it may memorise what means nothing.

    So it is too when it had no time to show anything, or when its answers were not seen.
    """
    judged = [one for one in record.evaluations if one.accuracy is not None]
    if len(record.steps) < LEAST_STEPS or not judged:
        return True
    return any(_beats_chance(one.passes) for one in judged)


def _beats_chance(passes: list[Json]) -> bool:
    count = sum(event["n"] for event in passes)
    classes = max((event.get("shape") or [0, 2])[-1] for event in passes)
    chance = 1 / max(2, classes)
    return sum(event["correct"] for event in passes) > count * chance + 5 * (count * chance * (1 - chance)) ** 0.5


def _numbers_unrelated(record: Record, probe: Json) -> Iterator[Finding]:
    made = probe["numbers"]
    ways = [made["train"], made["plane"], *([made["across"]] if "across" in made else [])]
    if made["n"] < LEAST_NUMBERED or max(ways) >= UNPREDICTABLE or _loss_falls(record):
        return
    yield Finding(
        measured=f"rank correlation with the nearest sample's target {made['train']:+.1f} standard deviations from "
        f"chance, with a linear prediction {made['plane']:+.1f}",
        expected=f"more than {UNPREDICTABLE:g}",
        message="the targets look unrelated to the inputs",
        location=place_of(probe["train"]),
        hint="are inputs and targets read, sorted or shuffled separately?",
    )


def _loss_falls(record: Record) -> bool:
    """Whether an evaluation's loss gets clearly lower than the split's first ones; also when it had no time to."""
    splits: dict[int | None, list[float]] = {}
    for one in record.evaluations:
        if one.loss is not None:
            splits.setdefault(one.loader, []).append(one.loss)
    judged = [losses for losses in splits.values() if len(losses) >= 3]
    fell = any(min(losses) < 0.85 * max(losses[:2]) for losses in judged)
    return fell or not judged or len(record.steps) < LEAST_STEPS


@rule("DAT222", subject=Subject.RUN)
def mask_left_behind(record: Record) -> Iterator[Finding]:
    """A picture is flipped or turned, its mask is not.

    Why it matters: half of the masks then lie over the wrong pixels; the network learns a blurred average, and the
    loss still falls.
    Found by: fetching training items under several seeds. Where a picture comes back flipped or turned, the mask must
    come back so too.
    Not an error: brighter, blurred or noisy pictures with the mask as it was; symmetric masks.

    Wrong: `image = hflip(image)` alone; a random transform for the picture and another call of it for the mask
    Right: `image, mask = hflip(image), hflip(mask)` for one draw; torchvision's v2 with `tv_tensors.Mask`
    """
    probe = data_probe(record)
    made = part_of(probe, "masks")
    if not made["followed"] and not made["stayed"]:
        raise NotSeenError("no training picture was flipped or turned")
    if made["stayed"] < 3:
        yield Finding(status=Status.PASS, measured=f"{made['followed']} flipped pictures with their masks")
        return
    yield Finding(
        measured=f"{made['stayed']} of {made['stayed'] + made['followed']} masks stay where the picture is moved",
        expected="0",
        message=f"a picture that is {made['kind']} keeps the mask of the one that is not",
        location=place_of(probe["train"]),
        hint="draw once, and apply the flip to picture and mask alike",
    )
