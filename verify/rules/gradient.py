"""GRD: whether a loss reaches every parameter, and reaches it right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verify.report import Finding, Status, plural, shortlist
from verify.rules import rule
from verify.rules.switches import optional_layers, sources_of, switched_off

if TYPE_CHECKING:
    from verify.probe import ModelProbe


@rule("GRD301")
def gradient_missing(probe: ModelProbe) -> Iterator[Finding]:
    """A trainable parameter never receives a gradient.

    Why it matters: it keeps its random initial value for ever, and nothing says so.
    Found by: the gradients of a real loss over several training steps; a parameter counts as reached if its gradient is
    non-zero at any of them. (That a gradient exists proves nothing: it may be all zeros.)
    Not an error: a gradient of zero at the first step (zero-initialised branches and heads), and biases whose
    gradient is zero by mathematics, such as one before a batch norm; the weight of a layer that is given nothing but
    zeros where forward has further, optional arguments; a layer that an option of the model switches off (a note).

    Wrong: `x = self.block(x).detach()`, a layer that forward never calls, `with torch.no_grad():` around a part of
    forward
    Right: every layer of the constructor is used in forward, and nothing cuts the graph
    """
    seen = probe.rehearsal
    names = {name: p.numel() for name, p in probe.model.named_parameters() if p.requires_grad}
    if not names:
        yield Finding(status=Status.SKIP, message="no trainable parameter (GRD303)")
        return
    dead = [n for n in names if n not in seen.moved and not (n in seen.reached and probe.bias_of_trained_layer(n))]
    if dead and not seen.non_finite and set(dead) <= (idle := probe.behaviour.fed_with_zeros):
        yield Finding(
            status=Status.SKIP,
            message=f"{shortlist(sorted(idle & set(dead)))}: the layer has an optional argument of forward for input, "
            "which is all zeros where it is not given",
        )
        return
    dead = [n for n in dead if n not in probe.behaviour.fed_with_zeros] if dead else dead
    off = {n: test for n, test in _switched_off(probe, dead).items() if n.rpartition(".")[0] not in probe.ran_modules}
    if off:
        yield Finding(
            status=Status.NOTE,
            message=f"only used where `{next(iter(off.values()))}`, which is not so here",
            location=shortlist(off),
        )
        dead = [n for n in dead if n not in off]
    if not dead:
        yield Finding(
            status=Status.PASS, measured=f"{len(names) - len(off)} of {plural(len(names), 'tensor')} have a gradient"
        )
        return
    if seen.non_finite:
        yield Finding(status=Status.SKIP, message=f"not finite: {seen.non_finite} (GRD302)")
        return
    size = sum(names[name] for name in dead)
    yield Finding(
        measured=f"{len(dead)} of {plural(len(names), 'tensor')} ({size:,} parameters) without a gradient",
        expected="every trainable tensor has a non-zero gradient at some step",
        message=_reason(probe, dead),
        location=shortlist(dead),
        hint="look for .detach(), .data, .item(), torch.no_grad() or torch.tensor(...) on the way to the output, "
        "or for a layer that forward does not use",
    )


def _switched_off(probe: ModelProbe, dead: list[str]) -> dict[str, str]:
    return switched_off(dead, optional_layers(sources_of(probe.model))) if dead else {}


def _reason(probe: ModelProbe, dead: list[str]) -> str:
    if not probe.rehearsal.reached:
        return "the output is cut off from every parameter"
    idle = [name for name in dead if name.rpartition(".")[0] not in probe.ran_modules]
    if len(idle) == len(dead):
        return "these layers are built but forward never calls them"
    reached = [name for name in dead if name in probe.rehearsal.reached]
    if len(reached) == len(dead):
        return "their gradient exists and is exactly zero at every step"
    return "the loss does not reach these parameters: the graph is cut between them and the output"


@rule("GRD302")
def gradient_not_finite(probe: ModelProbe) -> Iterator[Finding]:
    """The loss or a gradient is NaN or infinite within a few steps.

    Why it matters: one such step destroys every weight.
    Found by: memorising a small batch of ordinary numbers (zero mean, unit variance) with Adam.
    Not an error: overflow in half precision; this runs in the model's own precision.
    """
    seen = probe.rehearsal
    if seen.non_finite:
        yield Finding(
            measured=seen.non_finite,
            expected="finite numbers",
            message=f"not finite with ordinary inputs at learning rate {seen.learning_rate:g}",
            hint="a log or sqrt of 0, a division by a norm that can be 0, an exp without its maximum subtracted?",
        )


@rule("GRD303")
def parameter_frozen(probe: ModelProbe) -> Iterator[Finding]:
    """A parameter with random values is frozen.

    Why it matters: it was never trained and never will be.
    Found by: parameters with `requires_grad=False` whose values differ between two builds, so that they come from the
    random initialisation and from no file.
    Not an error: pretrained or fixed values, which every build has alike, and what the spec lists under `frozen`.

    Wrong: `for p in self.layer2.parameters(): p.requires_grad = False` in a model that is trained from scratch
    Right: `frozen: ["backbone.*"]` in verify.yaml if it is meant
    """
    frozen = probe.frozen
    trainable = [p for p in probe.model.parameters() if p.requires_grad]
    never_trained = [name for name, is_random in frozen.items() if is_random]
    hint = 'set requires_grad to True, or list it in verify.yaml if it is meant: frozen: ["pattern"]'
    if never_trained or not trainable:
        names = never_trained or list(frozen)
        yield Finding(
            measured=f"{plural(len(names), 'frozen tensor')} with random values" if trainable else "all frozen",
            expected="0",
            message="frozen at its random initial value" if trainable else "nothing in this model can be trained",
            location=shortlist(names),
            hint=hint,
        )
    elif frozen:
        yield Finding(
            status=Status.WARN,
            measured=plural(len(frozen), "frozen tensor"),
            expected="0, or listed as frozen",
            message="frozen, with the same values in every build: pretrained, fixed, or forgotten",
            location=shortlist(frozen),
            hint=hint,
        )


@rule("GRD304")
def gradient_mismatch(probe: ModelProbe) -> Iterator[Finding]:
    """Autograd's gradient is not the slope of the loss.

    Why it matters: training follows a wrong direction; it still goes down, slowly, and ends worse.
    Found by: moving the parameters along random directions in float64 and comparing how the loss changes with what
    autograd says; the two must agree within 1%.
    Not an error: models that define their own backward pass (`torch.autograd.Function`), and straight-through
    estimators, where the loss itself has no slope. Both are left alone. Where the two differ by less than a third, as
    with the detached coupling coefficients of routing by agreement or a centre that follows the batch, it is a note.

    Wrong: `x.detach() + self.block(x)`
    Right: `x + self.block(x)`
    """
    result = probe.gradient_comparison
    if result.reason_skipped:
        yield Finding(status=Status.SKIP, message=result.reason_skipped)
    elif result.wrong and not set(result.wrong) & probe.rehearsal.moved:
        yield Finding(status=Status.SKIP, message="these parameters have no gradient at all (GRD301)")
    elif result.wrong:
        yield Finding(
            status=Status.FAIL if result.is_large else Status.NOTE,
            measured=f"autograd {result.autograd:.3g}, finite difference {result.difference:.3g}",
            expected="equal within 1%",
            message=f"the gradient of {plural(len(result.wrong), 'tensor')} misses a part of what they do to the loss",
            location=shortlist(result.wrong),
            hint="look for .detach(), .data or torch.no_grad() on one of two paths, such as a skip connection",
        )
    elif result.staircase:
        message = f"the loss jumps with {shortlist(result.staircase)}: a straight-through estimator?"
        yield Finding(status=Status.SKIP, message=message)
    else:
        yield Finding(
            status=Status.PASS,
            measured=f"autograd {result.autograd:.5g}, finite difference {result.difference:.5g}",
            expected="equal within 1%",
        )
