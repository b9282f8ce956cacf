"""TRN: the first steps of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status
from verify.rules import NO_LOGITS, rule

if TYPE_CHECKING:
    from verify.probe import ModelProbe

# Healthy networks started at 2.27 to 2.64 with 10 classes (ln 10 = 2.30); outliers that train well reach 3 x ln C.
INITIAL_LOSS_RANGE = (0.5, 2.0)
# A model that sees its input leaves the blind loss clearly behind; one that does not may come a little below it by
# rounding.
SEES_INPUT = 0.95


@rule("TRN401", severity=Status.WARN)
def initial_loss(probe: ModelProbe) -> Iterator[Finding]:
    """The loss of the untrained model is far from ln C.

    Why it matters: an untrained classifier should find all C classes about equally likely. A higher loss means a
    badly scaled head or initialisation, and the first epochs are spent undoing it.
    Found by: cross entropy of the untrained model, in train mode, on inputs of zero mean and unit variance. A large
    model has a little noise on its weights of zeros then, so that a head of zeros shows slightly more than ln C.
    Not an error: a factor of 2 either way. A softmax too many is invisible here (see MOD110).
    References: Karpathy 2019, "A Recipe for Training Neural Networks": verify loss at init.
    """
    if probe.spec.output_size:
        yield Finding(status=Status.SKIP, message=NO_LOGITS)
        return
    expected = math.log(max(probe.num_classes, 2))
    measured = probe.rehearsal.initial_loss
    low, high = (factor * expected for factor in INITIAL_LOSS_RANGE)
    if not math.isfinite(measured):
        yield Finding(status=Status.SKIP, message="the loss is not finite (GRD302)")
        return
    healthy = low <= measured <= high
    too_high = "the untrained model is far too sure of itself"
    yield Finding(
        status=Status.PASS if healthy else Status.WARN,
        measured=f"{measured:.3f}",
        expected=f"{expected:.3f} (ln {max(probe.num_classes, 2)})",
        message="" if healthy else too_high if measured > high else "the loss is too small for a guess",
        hint="" if healthy else "scale down the last layer's initial weights, and check that inputs are normalised",
    )


@rule("TRN402")
def overfit_small_batch(probe: ModelProbe) -> Iterator[Finding]:
    """The model cannot memorise a handful of images.

    Why it matters: what cannot learn eight images by heart will learn nothing from fifty thousand.
    Found by: up to `--train-steps` (100) steps of Adam at learning rates 5e-4, 1e-4 and 1e-2 on one small batch of unit
    variance, then at 1e-2 on pixels from 0 to 255; dropout off, on the GPU if there is one. It fails if the loss stays
    where a model that cannot see its input would end, and warns if it falls without getting every image right.
    Not an error: a large model (two thousand million multiply-adds an image and more), which takes no more steps than
    it needs for a gradient everywhere and is reported as skipped, as is one that runs out of time. `--full` and
    `--train-steps` take all of them.
    References: Karpathy 2019, "A Recipe for Training Neural Networks": overfit one batch.
    """
    if probe.spec.output_size:
        yield Finding(status=Status.SKIP, message=NO_LOGITS)
        return
    run = probe.rehearsal
    steps = len(run.losses)
    progress = (
        f"loss {run.initial_loss:.2f} -> {run.losses[-1]:.2f}, {run.accuracy:.0%} right after {steps} steps "
        f"of {run.method} at {run.learning_rate:g} on {probe.device.type}, inputs of {run.inputs}"
    )
    goal = "all images right"
    if run.non_finite:
        yield Finding(status=Status.SKIP, message=f"not finite: {run.non_finite} (GRD302)")
    elif run.memorised:
        yield Finding(status=Status.PASS, measured=progress, expected=goal)
    elif run.out_of_time:
        message = f"ran out of time ({progress}); --train-steps 100 takes as long as it needs, up to --timeout"
        yield Finding(status=Status.SKIP, measured=progress, expected=goal, message=message)
    elif run.cut_short:
        message = "not tried on so large a model; --train-steps 100 takes as long as it needs, up to --timeout"
        yield Finding(status=Status.SKIP, message=message)
    elif run.losses[-1] > SEES_INPUT * run.blind_loss:
        yield Finding(
            measured=progress,
            expected=f"{goal}, loss far below {run.blind_loss:.2f}",
            message="training does not get below the loss of a model that cannot see its input",
            hint="see the other findings first; then the initialisation, dead activations, the path from the input",
        )
    else:
        yield Finding(
            status=Status.WARN,
            measured=progress,
            expected=goal,
            message="it learns, but cannot memorise a small batch",
            hint="a saturating output (softmax, sigmoid, tanh)? too few units? --train-steps gives it longer",
        )
