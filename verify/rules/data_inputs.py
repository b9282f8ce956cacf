"""DAT: the numbers that reach the model: their scale in each split, and the order of the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_probe import Json, data_probe, measured_evals, part_of, place_of
from verify.trace.record import NotSeenError, Record

# Inputs. Pictures in [0, 1] have a standard deviation of about 0.25, normalised ones of about 1.
LARGE_INPUT = 20.0
NO_RANGE = 0.05
NARROW_RANGE, NO_SPREAD = 0.5, 0.02
MEAN_LIMIT = 1.0
STD_LIMITS = (0.3, 5.0)
IMAGENET_RANGE = (-2.2, 2.7)
SWAP_TOLERANCE = 0.25  # in the logarithm: random crops with a black border move mean and std by 15%
SPLIT_SHIFT = 0.5
RAW_RATIO = 1.5
SPLIT_RATIO = 2.0
MIN_PICTURES = 48
SCRAMBLED = 0.75  # roughness of the unscrambled picture, relative to the delivered one
COMB_RATIO, COMB_ERRORS = 0.98, 8.0


@rule("DAT209", severity=Status.WARN, subject=Subject.RUN)
def normalisation_off(record: Record) -> Iterator[Finding]:
    """The inputs are not scaled as they should be.

    Why it matters: inputs of 0 to 255, or all close to one number, learn slowly or not at all at usual learning rates.
    Found by: range, mean and standard deviation of the training pictures, and of what reaches the first layer with
    weights; the constants of Normalize against the raw statistics that they imply.
    Not an error: pictures in [0, 1] or [-1, 1]; another dataset's constants, as fine-tuning needs them; scaling on the
    device or within the model; strong augmentation, when the evaluation split has the usual scale.

    Wrong: `Normalize((0.247, 0.243, 0.262), (0.491, 0.482, 0.447))`, mean and std swapped
    Right: `Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))`
    References: torchvision issue 546, facenet-pytorch issue 89.
    """
    probe = data_probe(record)
    stats = part_of(probe, "stats")
    made = _what_is_trained_on(stats)
    where = place_of(probe["train"])
    if made["non_finite"]:
        yield Finding(
            status=Status.FAIL,
            measured=f"{made['non_finite']:,} inputs are NaN or infinite",
            expected="0",
            message="the training inputs are not all finite",
            location=where,
            hint="a channel with standard deviation 0, or missing values in the data",
        )
        return
    if not probe["image_like"] or len(made["shape"]) != 3:
        raise NotSeenError("the inputs are not pictures")
    varying = bool(((probe.get("augmentation") or {}).get("train") or {}).get("varying"))
    finding = _scale_problem(made, stats, varying)
    if finding is not None:
        status, measured, expected, message, hint = finding
        yield Finding(status=status, measured=measured, expected=expected, message=message, location=where, hint=hint)


def _what_is_trained_on(stats: Json) -> Json:
    """Statistics of what the model was given where the loop scales its batches, else of what the loader delivers."""
    loaded, given = stats["train"], stats.get("model_input") or {"skipped": "not measured"}
    if loaded.get("skipped"):
        return part_of(stats, "model_input")
    if given.get("skipped") or given["shape"] != loaded["shape"]:
        return dict(loaded)
    width = max(loaded["max"] - loaded["min"], 1e-12)
    moved = max(abs(loaded["max"] - given["max"]), abs(loaded["min"] - given["min"]))
    return dict(given if moved > 0.5 * width else loaded)


def _scale_problem(made: Json, stats: Json, varying: bool) -> tuple[Status, str, str, str, str] | None:
    low, high = made["min"], made["max"]
    first = stats.get("first_layer") or {}
    measured_inside = "max" in first
    span = f"inputs in [{low:.4g}, {high:.4g}]"
    inside = max(abs(first["min"]), abs(first["max"])) if measured_inside else max(abs(low), abs(high))
    if max(abs(low), abs(high)) > LARGE_INPUT and inside > LARGE_INPUT:
        raw = low > -0.02 * high and measured_inside
        return (
            Status.FAIL if raw else Status.WARN,
            span,
            "about [-3, 3], or [0, 1]",
            "the pictures reach the first layer unscaled",
            "divide by 255 (ToTensor does it for uint8 only), then normalise",
        )
    narrow = high - low < NARROW_RANGE and max(made["std"]) < NO_SPREAD  # channels may stand apart
    if (high - low < NO_RANGE or narrow) and made["n"] >= 8:
        if measured_inside and first["max"] - first["min"] >= (NO_RANGE if not narrow else 2 * (high - low)):
            return None
        return (
            Status.FAIL,
            span,
            "a standard deviation near 1, or pictures in [0, 1]",
            "all inputs are almost one number",
            "divided by 255 twice? constants for 0..255 applied to pictures in [0, 1]?",
        )
    swapped = _swapped(stats["train"], stats.get("normalize"))
    if swapped:
        return (
            Status.FAIL,
            swapped,
            "mean near 0, std near 1",
            "Normalize has its mean and std swapped",
            "Normalize(mean, std)",
        )
    if low >= -1.01 and high <= 1.01:
        return None
    if measured_inside and max(abs(first["min"] - low), abs(first["max"] - high)) > 0.1 * (high - low):
        return None  # the model scales its inputs itself
    if not _is_off(made) or (varying and _may_be_augmentation(made, stats)):
        return None
    if (low >= IMAGENET_RANGE[0] and high <= IMAGENET_RANGE[1]) or len(made["mean"]) > 4:
        return None
    return (
        Status.WARN,
        f"mean {_few(made['mean'])}, std {_few(made['std'])}",
        f"mean within {MEAN_LIMIT:g} of 0, std in [{STD_LIMITS[0]:g}, {STD_LIMITS[1]:g}]",
        "the constants of the normalisation do not fit the data",
        "compute mean and std over the training split, in the range that the pictures have by then",
    )


def _is_off(made: Json, limit: float = MEAN_LIMIT) -> bool:
    far = any(abs(mean) > limit for mean in made["mean"])
    return far or any(not STD_LIMITS[0] <= std <= STD_LIMITS[1] for std in made["std"])


def _may_be_augmentation(made: Json, stats: Json) -> bool:
    """Whether random changes of the pictures (black borders, darker colours) explain it, and not the constants.

    An evaluation split without them shows it; where none was seen, only what is far off counts.
    """
    evals = [one for one in stats["evals"] if not one.get("skipped") and len(one["mean"]) == len(made["mean"])]
    return not any(map(_is_off, evals)) if evals else not _is_off(made, 2 * MEAN_LIMIT)


def _few(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values[:4]) + ")"


def _swapped(made: Json, normalizers: Any) -> str:
    """What shows that the raw mean was used as std and the raw std as mean; empty when they were not."""
    if not isinstance(normalizers, list) or len(normalizers) != 1 or made.get("skipped"):
        return ""
    given_mean, given_std = normalizers[0]["mean"], normalizers[0]["std"]
    channels = len(made["mean"])
    if len(given_mean) != channels or len(given_std) != channels:
        return ""
    for mean, std, shift, scale in zip(made["mean"], made["std"], given_mean, given_std, strict=True):
        raw_mean, raw_std = mean * scale + shift, std * scale
        if min(raw_mean, raw_std, shift, scale) <= 0 or abs(log(shift / scale)) < 2 * SWAP_TOLERANCE:
            return ""
        if max(abs(log(raw_mean / scale)), abs(log(raw_std / shift))) > SWAP_TOLERANCE:
            return ""
    return f"Normalize(mean={_few(given_mean)}, std={_few(given_std)}) gives mean {_few(made['mean'])}"


@rule("DAT210", severity=Status.WARN, subject=Subject.RUN)
def splits_normalised_differently(record: Record) -> Iterator[Finding]:
    """Training and evaluation inputs are scaled differently.

    Why it matters: the network is evaluated on inputs such as it has never seen; the training loss looks fine.
    Found by: mean and standard deviation of each channel or feature over samples of both splits. An error when one
    split looks raw and the other normalised, or when their Normalize transforms differ.
    Not an error: what augmentation changes (erasing, padding and mixup shrink the standard deviation by a fifth).

    Wrong: `Normalize` in the training transform alone
    Right: the same constants, from the training split, in both
    References: pytorch-cifar-models issue 8.
    """
    probe = data_probe(record)
    stats = part_of(probe, "stats")
    train = part_of(stats, "train")
    for index, (view, made) in enumerate(measured_evals(probe, stats["evals"])):
        if (
            view["is_train_loader"]
            or made["shape"][:1] != train["shape"][:1]
            or min(made["n"], train["n"]) < MIN_PICTURES
        ):
            continue
        constants = _other_constants(stats, index)
        shift, ratio = _difference(train, made)
        augmented = bool(((probe.get("augmentation") or {}).get("train") or {}).get("varying"))
        exchanged = _opposite(train, made)
        raw = _one_is_raw(train, made) and ratio > RAW_RATIO
        alike = shift <= SPLIT_SHIFT and ratio <= SPLIT_RATIO + augmented
        if not constants and not exchanged and not raw and alike:
            continue
        certain = bool(constants) or _one_is_raw(train, made) or (len(train["shape"]) == 1 and (shift > 2 or ratio > 5))
        yield Finding(
            status=Status.FAIL if certain else Status.WARN,
            measured=constants
            or f"train mean {_few(train['mean'])}, std {_few(train['std'])}; "
            f"evaluation mean {_few(made['mean'])}, std {_few(made['std'])}",
            expected="the same scaling",
            message="evaluation inputs are scaled differently from training inputs",
            location=place_of(view),
            hint="are red and blue exchanged in one of them? (OpenCV reads BGR)"
            if exchanged and not certain
            else "the transform of evaluation needs the Normalize of training, with the same constants",
        )
        return


def _difference(train: Json, other: Json) -> tuple[float, float]:
    """The shift, in standard deviations, and the ratio of standard deviations.

    Of pictures the largest shift of a channel, for red and blue may be exchanged; of features the median.
    """
    shifts, ratios = [], []
    rows = zip(train["mean"], train["std"], train["error"], other["mean"], other["std"], other["error"], strict=True)
    for mean, std, error, other_mean, other_std, other_error in rows:
        unit = max(std, other_std, 1e-12)
        noise = 3 * (error**2 + other_error**2) ** 0.5
        shifts.append(max(0.0, abs(mean - other_mean) - noise) / unit)
        ratios.append(unit / max(min(std, other_std), 1e-12) if unit > 1e-9 else 1.0)
    shift = max(shifts) if len(train["shape"]) == 3 and len(shifts) <= 4 else sorted(shifts)[len(shifts) // 2]
    return shift, sorted(ratios)[len(ratios) // 2]


def _opposite(train: Json, other: Json) -> bool:
    """Whether the first and the last of three channels clearly moved in opposite directions, the middle one hardly."""
    if len(train["mean"]) != 3 or len(train["shape"]) != 3:
        return False
    moved = [b - a for a, b in zip(train["mean"], other["mean"], strict=True)]
    noise = [(a * a + b * b) ** 0.5 for a, b in zip(train["error"], other["error"], strict=True)]
    clear = [abs(moved[i]) > max(8 * noise[i], 0.25 * train["std"][i]) for i in (0, 2)]
    return all(clear) and moved[0] * moved[2] < 0 and abs(moved[1]) < min(abs(moved[0]), abs(moved[2])) / 2


def _one_is_raw(train: Json, other: Json) -> bool:
    if len(train["shape"]) != 3:
        return False
    raw = [made["min"] >= 0 and (made["max"] <= 1.001 or made["max"] > LARGE_INPUT) for made in (train, other)]
    scales = sorted((max(abs(train["min"]), train["max"]), max(abs(other["min"]), other["max"])))
    return raw[0] != raw[1] or scales[1] > 30 * max(scales[0], 1e-12)


def _other_constants(stats: Json, index: int) -> str:
    ours, theirs = stats.get("normalize"), stats.get("eval_normalize")
    theirs = theirs[index] if isinstance(theirs, list) and len(theirs) > index else None
    if not isinstance(ours, list) or not isinstance(theirs, list) or len(ours) != 1 or len(theirs) != 1:
        return ""
    train, other = ours[0], theirs[0]
    if len(train["mean"]) != len(other["mean"]) or len(train["std"]) != len(other["std"]):
        return ""
    moved = max(abs(a - b) / max(s, 1e-12) for a, b, s in zip(train["mean"], other["mean"], train["std"], strict=True))
    scaled = max(max(a, b) / max(min(a, b), 1e-12) for a, b in zip(train["std"], other["std"], strict=True))
    if moved <= 0.2 and scaled <= 1.5:
        return ""
    return (
        f"Normalize({_few(train['mean'])}, {_few(train['std'])}) in training, "
        f"Normalize({_few(other['mean'])}, {_few(other['std'])}) in evaluation"
    )


@rule("DAT211", subject=Subject.RUN)
def pixels_scrambled(record: Record) -> Iterator[Finding]:
    """The pixels of the pictures are scrambled.

    Why it matters: a convolution sees no neighbourhood any more. The network still learns, much worse.
    Found by: neighbouring pixels differ far less once the memory is read as (height, width, channel).
    Not an error: noise, checkerboards, pictures of one channel.

    Wrong: `torch.tensor(picture).view(3, 32, 32)` of a (32, 32, 3) picture
    Right: `torch.tensor(picture).permute(2, 0, 1)`
    References: Karpathy 2019, "A Recipe for Training Neural Networks".
    """
    probe = data_probe(record)
    candidates = part_of(probe, "stats").get("roughness") or []
    judged = [made for made in (candidates if isinstance(candidates, list) else [candidates]) if "n" in made]
    if not judged:
        raise NotSeenError("no pictures with three channels were seen")
    for made in judged:
        measured = (
            f"neighbours differ {made['as_is']:.2f} sd as delivered, {made['unmixed']:.2f} sd if read as (H, W, C)"
        )
        comb = made["comb"].values()
        like_comb = made["n"] >= 32 and all(ratio < COMB_RATIO and errors < -COMB_ERRORS for ratio, errors in comb)
        if like_comb or (made["n"] >= 4 and made["unmixed"] < SCRAMBLED * made["as_is"]):
            yield Finding(
                measured=measured + ("; alike again every third pixel" if like_comb else ""),
                expected="smoother as delivered",
                message="a (height, width, channel) picture was reshaped to (channel, height, width)",
                location=place_of(probe["train"]),
                hint="permute(2, 0, 1) instead of view or reshape",
            )
            return
    yield Finding(status=Status.PASS, measured=measured)
