"""MOD: what a model is and what its forward pass does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.faults import BUILD_RULE, ModelRaisedError
from verify.report import Finding, Status, plural, shortlist
from verify.rules import NO_LOGITS, rule

if TYPE_CHECKING:
    from verify.probe import ModelProbe

# Samples may differ by rounding when their neighbours change (another blocking of a matrix product), not by more.
LEAK_TOLERANCE = 1e-4


@rule("MOD101")
def model_builds(probe: ModelProbe) -> Iterator[Finding]:
    """The model cannot be built.

    Why it matters: nothing else can be checked.
    Found by: calling the class or function with the given arguments; on the meta device if nothing but shapes and
    counts is asked for, else for real.
    Not an error: a constructor that needs real numbers and so does not work on the meta device.
    """
    model = (probe.meta_model if probe.shapes_only else None) or probe.model
    modules = sum(1 for _ in model.modules())
    yield Finding(status=Status.PASS, measured=f"{type(model).__name__}, {plural(modules, 'module')}")


@rule("MOD102")
def output_shape(probe: ModelProbe) -> Iterator[Finding]:
    """The output is not one row of logits a sample.

    Why it matters: a `squeeze` or `view` that fits the training batch breaks on the last, smaller batch, and on the
    single image that is served.
    Found by: running the model in eval mode on batches of 1, 2 and 5, on the meta device where that works. A pass that
    raises on the GPU alone is reported here, and the other rules then look at the model on the CPU.
    Not an error: auxiliary heads; the first tensor, or the one called `logits` or `out`, is judged. Of an encoder that
    timm lists without classes, only the batch is; of a block or another part, the shape that `--output-size` gives.

    Wrong: `return self.head(x).squeeze()`
    Right: `return self.head(x.flatten(1))`
    """
    from verify.probe import SHAPE_BATCHES

    if probe.device_error is not None:
        yield Finding(
            measured=probe.device_error.summary,
            expected="the logits that the CPU gives",
            message="forward raises on the GPU, and not on the CPU",
            location=probe.device_error.location,
            hint="model.to(device) moves nn.Parameter, register_buffer and nn.ModuleList, and nothing else",
        )
        return
    size = probe.input_size
    shapes: dict[int, tuple[int, ...]] = {}
    for batch in SHAPE_BATCHES:
        try:
            shapes[batch] = probe.output_shape(batch)
        except ModelRaisedError as error:
            if not shapes and error.rule == BUILD_RULE:
                raise  # it cannot even be built
            works = f"; it works at {shortlist(f'batch {b}' for b in shapes)}" if shapes else ""
            yield Finding(
                measured=error.summary,
                expected=f"logits ({batch}, classes)",
                message=f"forward raises at batch {batch}, input {'x'.join(map(str, size))}{works}",
                location=error.location,
                hint="the number of features must follow from the input, and dimension 0 is always the batch",
            )
            return
    if probe.target.num_classes == 0 and all(shape[0] == batch for batch, shape in shapes.items()):
        yield Finding(status=Status.PASS, measured=f"an encoder: {shapes[SHAPE_BATCHES[1]]}", expected="(batch, ...)")
        return
    classes = probe.spec.num_classes or probe.target.num_classes
    second = shapes[SHAPE_BATCHES[1]]
    wanted = classes or (second[1] if len(second) == 2 else None)
    part = probe.spec.output_size
    for batch, shape in shapes.items():
        if shape != (batch, wanted):
            yield Finding(
                measured=str(shape),
                expected=str((batch, *part)) if part else f"({batch}, {wanted or 'classes'})",
                message=f"at batch {batch} the output has the wrong shape",
                location=probe.describe(probe.model, ""),
                hint="" if part else _shape_hint(batch, shape, wanted),
            )
            return
    batch = SHAPE_BATCHES[1]
    output = (batch, *part) if part else shapes[batch]
    expected = f"(batch, {', '.join(map(str, output[1:]))})"
    yield Finding(status=Status.PASS, measured=f"{(batch, *size)} -> {output}", expected=expected)


def _shape_hint(batch: int, shape: tuple[int, ...], classes: int | None) -> str:
    if batch == 1 and len(shape) == 1:
        return "squeeze() without a dimension also removes the batch; flatten(1) keeps it"
    if len(shape) == 2 and shape[0] == batch:
        return f"the head has {shape[1]} outputs; give it num_classes={classes}"
    if len(shape) == 4:
        return "the feature map was not pooled and flattened before the head"
    return "dimension 0 of the output must be the batch, dimension 1 the classes"


@rule("MOD103")
def parameter_count(probe: ModelProbe) -> Iterator[Finding]:
    """The number of parameters is not the expected one.

    Why it matters: a layer too wide, a missing bias or a forgotten block changes the count and nothing else that one
    would notice.
    Found by: counting elements of distinct parameters on the meta device, without memory; buffers do not count.
    Not an error: tied weights count once.
    """
    total, trainable = probe.parameter_counts
    measured = f"{total:,}" + (f" ({trainable:,} trainable)" if trainable != total else "")
    expected = probe.spec.param_count()
    if expected is None:
        yield Finding(status=Status.PASS, measured=measured, message="nothing was expected; --expect-params says what")
    elif expected.accepts(total):
        yield Finding(status=Status.PASS, measured=measured, expected=str(expected))
    else:
        parts = ", ".join(f"{name} {count:,}" for name, count in probe.parameter_table if count)
        yield Finding(
            measured=measured,
            expected=str(expected),
            message=f"{abs(total - expected.count):,} parameters {'too many' if total > expected.count else 'too few'}",
            hint=f"by part: {parts}" if parts else "compare the layers with the specification",
        )


@rule("MOD104")
def sample_leak(probe: ModelProbe) -> Iterator[Finding]:
    """A sample's output depends on the other samples of its batch.

    Why it matters: accuracy then depends on what happens to share a batch, and serving one image gives another answer.
    Found by: in eval mode, the gradient of one sample's logits with respect to every other input must be exactly
    zero, and replacing the other inputs must not change them. Where parameters of zeros switch branches off at the
    start, a copy with noise on its parameters is asked too.
    Not an error: batch statistics in train mode.

    Wrong: `x - x.mean(dim=0)`, `x.view(-1, batch)`, attention without `batch_first=True`, batch norm without running
    statistics
    Right: normalise over channels or pixels, or use `nn.BatchNorm2d` with its running statistics
    References: Karpathy 2019, "A Recipe for Training Neural Networks": use backprop to chart dependencies.
    """
    run = probe.eval_run
    if not run.logits.isfinite().all():
        yield Finding(status=Status.SKIP, message="the logits are not finite (GRD302)")
        return
    if run.repeat_change and not run.leaked_gradient:
        yield Finding(status=Status.SKIP, message="two passes over one batch differ already (MOD105)")
        return
    if run.leaked_gradient or run.leaked_change > LEAK_TOLERANCE:
        yield Finding(
            measured=f"|d logits[i] / d x[j]| up to {run.leaked_gradient:.1e}, "
            f"logits[i] moves by {run.leaked_change:.1%} with the other samples",
            expected="0",
            message="in eval mode the logits of a sample change with the other samples of the batch",
            location=run.mixing_module,
            hint="something computes over dimension 0: a mean, a softmax, a view that mixes batch and features, "
            "a batch norm without running statistics, or attention without batch_first",
        )
        return
    yield Finding(status=Status.PASS, measured="|d logits[i] / d x[j]| = 0", expected="0")


@rule("MOD105")
def eval_not_deterministic(probe: ModelProbe) -> Iterator[Finding]:
    """Two passes over the same batch in eval mode give different logits.

    Why it matters: validation is noisy, the best checkpoint is luck, and a served model contradicts itself.
    Found by: two forward passes in eval mode under different seeds, compared bit for bit; more of them where the pass
    draws numbers, because a branch that is rarely skipped is the same in most pairs.
    Not an error: dropout in train mode; a model that is no classifier and draws a sample, as a variational autoencoder
    does, which is a note.

    Wrong: `F.dropout(x, 0.1)`, or `nn.Dropout(0.1)(x)` built inside forward
    Right: `F.dropout(x, 0.1, self.training)`, or an `nn.Dropout` made in the constructor
    """
    change = probe.eval_run.repeat_change
    if change:
        yield Finding(
            status=Status.FAIL if probe.is_classifier or probe.drops_in_eval else Status.NOTE,
            measured=f"logits differ by up to {change:.1e}",
            expected="equal bit for bit",
            message="the model is random in eval mode",
            location=probe.describe(probe.model, ""),
            hint="F.dropout needs training=self.training; a Dropout made inside forward is always in train mode",
        )


@rule("MOD106")
def state_dict_incomplete(probe: ModelProbe) -> Iterator[Finding]:
    """A saved and loaded model does not give the same logits.

    Why it matters: the checkpoint does not hold the model: what is evaluated or served is another one than was trained.
    Found by: the state dict of a briefly trained copy, saved, read with `weights_only=True` and loaded strictly into a
    model built under another seed; the logits in eval mode must be equal.
    Not an error: constants that every build makes alike.

    Wrong: `self.position = torch.randn(1, n, d)`
    Right: `self.position = nn.Parameter(torch.randn(1, n, d))`, or `register_buffer` if it is not to be learned
    """
    if probe.eval_run.repeat_change:
        yield Finding(status=Status.SKIP, message="two passes over one batch differ already (MOD105)")
        return
    if probe.unregistered:
        yield Finding(status=Status.SKIP, message="layers that are not registered are not saved either (MOD107)")
        return
    problem, difference = probe.round_trip
    if problem:
        yield Finding(
            measured=problem, expected="loads strictly", message="the state dict does not load into a new model"
        )
    elif difference > 0:
        yield Finding(
            measured=f"logits differ by up to {difference:.1e}",
            expected="equal bit for bit",
            message="the state dict does not hold everything that the output depends on",
            location=shortlist(probe.unsaved_tensors),
            hint="make it an nn.Parameter (learned) or register_buffer (fixed)",
        )


@rule("MOD107")
def layer_not_registered(probe: ModelProbe) -> Iterator[Finding]:
    """Layers or parameters are hidden in a Python list, tuple or dict.

    Why it matters: `parameters()`, `to(device)`, `state_dict()` and `eval()` do not see them: they are never trained,
    moved, saved.
    Found by: walking the attributes of every module; only what also runs in forward is reported.
    Not an error: a list of layers that are registered elsewhere too, or that forward never calls.

    Wrong: `self.blocks = [Block() for _ in range(4)]`
    Right: `self.blocks = nn.ModuleList(Block() for _ in range(4))`
    """
    hidden = probe.unregistered
    if hidden:
        yield Finding(
            measured=plural(len(hidden), "unregistered layer"),
            expected="0",
            message="layers that forward calls are invisible to the optimizer and to the checkpoint",
            location=shortlist(hidden),
            hint="nn.ModuleList, nn.ModuleDict or nn.ParameterList instead of a plain list or dict",
        )


@rule("MOD108")
def input_ignored(probe: ModelProbe) -> Iterator[Finding]:
    """The logits do not depend on the input.

    Why it matters: the model can only learn how frequent the classes are.
    Found by: logits of two different batches, and the gradient with respect to the input, before and after a few
    training steps.
    Not an error: a zero-initialised head or residual branch, which answers a constant until the first step.
    """
    run = probe.eval_run
    if run.own_gradient == 0 and run.input_change == 0:
        yield Finding(
            measured="equal logits for different inputs",
            expected="logits that change with the input",
            message="the output is the same whatever the input is",
            location=probe.describe(probe.model, ""),
            hint="is the input overwritten, multiplied by 0, or replaced by a constant on its way?",
        )


@rule("MOD109")
def eval_mode_not_followed(probe: ModelProbe) -> Iterator[Finding]:
    """`eval()` leaves modules in train mode.

    Why it matters: their dropout stays on, and their batch norm keeps learning from validation data.
    Found by: the `training` flag of every module after `model.eval()`.
    Not an error: modules that stay in eval mode after `train()`, as frozen batch norms do.

    Wrong: `def train(self, mode=True): super().train(True)`
    Right: `def train(self, mode=True): return super().train(mode)`
    """
    stubborn = probe.eval_run.training_modules
    if stubborn:
        yield Finding(
            measured=f"{plural(len(stubborn), 'module')} in train mode",
            expected="0",
            message="model.eval() does not reach every module",
            location=shortlist(stubborn),
            hint="an overridden train() must pass the mode on and return self",
        )


@rule("MOD110")
def output_is_probability(probe: ModelProbe) -> Iterator[Finding]:
    """The model returns probabilities where the loss expects logits.

    Why it matters: cross entropy applies a softmax itself; on probabilities its loss cannot fall below
    ln(e + C - 1) - 1 (1.46 for 10 classes), gradients shrink and accuracy stalls. The initial loss looks right all
    the same.
    Found by: rows of the output in train mode that are non-negative and sum to 1.
    Not an error: log-softmax, which cross entropy leaves as it is; a softmax that only eval mode applies; what a block
    or another part returns (`--output-size`).

    Wrong: `return self.head(x).softmax(dim=1)`
    Right: `return self.head(x)`
    """
    if probe.spec.output_size:
        yield Finding(status=Status.SKIP, message=NO_LOGITS)
        return
    logits = probe.rehearsal.first_logits
    if logits.shape[1] < 2 or probe.rehearsal.non_finite == "loss at step 1":
        yield Finding(status=Status.SKIP, message="needs two or more finite logits")
        return
    low, high = logits.min().item(), logits.max().item()
    sums = logits.sum(dim=1)
    span = f"outputs in [{low:.3f}, {high:.3f}]"
    if low >= 0 and (sums - 1).abs().max().item() < 1e-4:
        yield Finding(
            measured=f"{span}, every row sums to {sums[0].item():.4f}",
            expected="logits",
            message="the output is a softmax already, and cross entropy applies another",
            location=probe.describe(probe.model, ""),
            hint="return the logits; apply softmax where probabilities are shown",
        )
    elif low == 0 < high:
        yield Finding(
            status=Status.WARN,
            measured=span,
            expected="logits of either sign",
            message="no output is negative and some are exactly 0: a ReLU after the last layer?",
            hint="the last layer has no activation",
        )
    elif 0 < low < high < 1:
        yield Finding(
            status=Status.WARN,
            measured=span,
            expected="logits of either sign",
            message="every output lies in (0, 1): a sigmoid before the loss?",
            hint="return the logits; BCEWithLogitsLoss and cross entropy apply their own activation",
        )


@rule("MOD111")
def eval_changes_state(probe: ModelProbe) -> Iterator[Finding]:
    """A forward pass in eval mode changes parameters or buffers.

    Why it matters: the model learns from validation and test data, and its answers depend on what it was asked before.
    Found by: floating point state before and after three passes in eval mode.
    Not an error: counters (integer buffers), and running statistics in train mode.

    Wrong: `F.batch_norm(x, self.mean, self.var, training=True)`
    Right: `F.batch_norm(x, self.mean, self.var, training=self.training)`
    """
    changed = probe.eval_run.changed_state
    if changed:
        yield Finding(
            measured=f"{plural(len(changed), 'tensor')} changed",
            expected="0",
            message="evaluating the model changes it",
            location=shortlist(changed),
            hint="pass training=self.training, or update the state only `if self.training`",
        )


@rule("MOD112", severity=Status.WARN)
def input_overwritten(probe: ModelProbe) -> Iterator[Finding]:
    """Forward writes into its input.

    Why it matters: whoever uses the batch afterwards (a second model, a plot, a second loss) gets other images.
    Found by: the input before and after a forward pass.
    Not an error: in-place operations on tensors that forward made itself.

    Wrong: `x.sub_(mean)`, or `nn.ReLU(inplace=True)` as the first layer
    Right: `x = x - mean`
    """
    if probe.eval_run.input_modified:
        yield Finding(
            measured="input changed",
            expected="unchanged",
            message="the batch given to the model is overwritten",
            location=probe.describe(probe.model, ""),
            hint="the first operation on the input must not be in place",
        )


@rule("MOD113", severity=Status.WARN)
def prints(probe: ModelProbe) -> Iterator[Finding]:
    """The model prints while it is built or run.

    Why it matters: a line a batch floods the log of a long run, slows it down, and spoils the output of every program
    that is read by another.
    Found by: counting the lines that Python code writes to the standard output.
    Not an error: the `logging` module, and warnings on the standard error.
    """
    lines, first = probe.printed()
    if lines:
        yield Finding(
            measured=f"{plural(lines, 'line')}, the first: {first!r}",
            expected="0 lines",
            message="a forgotten print call?",
            hint="use the logging module",
        )


@rule("MOD114", severity=Status.WARN)
def layer_repeated(probe: ModelProbe) -> Iterator[Finding]:
    """The same layer object stands several times in a container.

    Why it matters: the copies share their weights, so a network of depth n has the capacity of one block.
    Found by: identical objects with parameters within one Sequential or ModuleList.
    Not an error: sharing on purpose, as in ALBERT; which is why this is a warning. Repeated activations have no
    weights.

    Wrong: `nn.Sequential(*[Block()] * 6)`
    Right: `nn.Sequential(*(Block() for _ in range(6)))`
    """
    repeated = probe.repeated_modules
    if repeated:
        yield Finding(
            measured=plural(len(repeated), "container"),
            expected="0",
            message="layers that look separate share their weights",
            location=shortlist(repeated),
            hint="build each layer anew: [Block() for _ in range(n)], not [Block()] * n",
        )


@rule("MOD115", severity=Status.WARN)
def batch_norm_momentum(probe: ModelProbe) -> Iterator[Finding]:
    """A batch norm's momentum follows the convention of another framework, or is given as its eps.

    Why it matters: in PyTorch momentum is the weight of the new batch, so 0.99 forgets everything but the last batch,
    and eval mode is far worse than train mode. Elsewhere it is the weight of the past. The second argument of the
    constructor is eps: a momentum that is passed there is added to every variance.
    Found by: momentum above 0.5; eps of 0.01 or more.
    Not an error: None, which averages over all batches; small values, which are slow and not wrong; eps of 0.001, as
    TensorFlow has it.

    Wrong: `nn.BatchNorm2d(64, momentum=0.99)`; `nn.BatchNorm2d(64, 0.1)`
    Right: `nn.BatchNorm2d(64, momentum=0.01)`; `nn.BatchNorm2d(64, momentum=0.1)`
    """
    large = probe.behaviour.large_eps
    if large:
        yield Finding(
            measured=f"eps {large[0][1]:g}",
            expected="about 1e-5",
            message="the second argument of a batch norm is eps, and this looks like a momentum",
            location=shortlist(name for name, _ in large),
            hint=f"nn.BatchNorm2d(channels, momentum={large[0][1]:g})",
        )
    odd = probe.odd_momenta
    if odd:
        yield Finding(
            measured=f"momentum {odd[0][1]:g}",
            expected="at most 0.5",
            message="the running statistics will be far from what training sees",
            location=shortlist(name for name, _ in odd),
            hint=f"TensorFlow's momentum m is PyTorch's 1 - m: {1 - odd[0][1]:g} here",
        )
