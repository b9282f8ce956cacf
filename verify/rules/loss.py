"""LOS: what goes into the loss, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

CLASSIFICATION = ("cross_entropy", "nll_loss")
ELEMENTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "gaussian_nll_loss")
EXACT = 2e-3  # relative error of an explanation of the gradient, see DAT218
ENOUGH = 2
WIDER = 1.5
MOST = 0.8


def _described(record: Record, *functions: str) -> list[Event]:
    """Calls of loss functions whose input was looked at."""
    found = [e for e in record.of("loss") if "input" in e and (not functions or e["fn"] in functions)]
    if len(found) < ENOUGH:
        raise NotSeenError(f"no {' or '.join(functions)} was called" if functions else "no loss of torch was called")
    return found


def _mostly(events: list[Event], key: str) -> list[Event]:
    """The events whose input has a property, if most have."""
    having = [e for e in events if e["input"].get(key)]
    return having if len(having) >= MOST * len(events) else []


@rule("LOS901", subject=Subject.RUN)
def softmax_before_cross_entropy(record: Record) -> Iterator[Finding]:
    """Cross entropy is given probabilities instead of logits.

    Why it matters: it applies a softmax itself. On probabilities its loss cannot fall below ln(e + C - 1) - 1 (1.46 for
    10 classes, 3.62 for 100), gradients shrink and accuracy stalls. The initial loss looks right all the same.
    Found by: inputs of the loss whose rows are non-negative and sum to 1.
    Not an error: log-softmax, which a second log-softmax leaves as it is.

    Wrong: `F.cross_entropy(model(x).softmax(dim=1), y)`
    Right: `F.cross_entropy(model(x), y)`
    """
    events = _described(record, "cross_entropy")
    wrong = _mostly([e for e in events if e["grad"]] or events, "simplex")
    if wrong:
        first = wrong[0]["input"]
        yield Finding(
            measured=f"inputs in [{first['min']:.3f}, {first['max']:.3f}], every row sums to 1",
            expected="logits",
            message="the loss gets probabilities and applies another softmax to them",
            location=wrong[0]["loc"],
            hint="remove the softmax before the loss; use it where probabilities are shown",
        )


@rule("LOS902", subject=Subject.RUN)
def loss_pairing(record: Record) -> Iterator[Finding]:
    """The loss function and its input do not belong together.

    Why it matters: `nll_loss` wants log-probabilities, `BCEWithLogitsLoss` logits. With anything else the loss is
    another one, without a limit below, or with gradients that vanish.
    Found by: the range and the sums of the inputs of each loss.
    Not an error: logits that happen to lie in (0, 1) in a few batches.

    Wrong: `F.nll_loss(logits, y)`, `F.binary_cross_entropy_with_logits(x.sigmoid(), y)`
    Right: `F.cross_entropy(logits, y)`, `F.binary_cross_entropy_with_logits(x, y)`
    """
    described = [e for e in record.of("loss") if "input" in e]
    if not described:
        raise NotSeenError("no loss of torch was called")
    nll = [e for e in described if e["fn"] == "nll_loss" and e["input"]["shape"][1:2] != [1]]
    if len(nll) >= ENOUGH and len(_mostly(nll, "log_simplex")) < 0.2 * len(nll):
        kind = "probabilities" if _mostly(nll, "simplex") else "logits"
        yield Finding(
            measured=f"nll_loss of values in [{nll[0]['input']['min']:.3f}, {nll[0]['input']['max']:.3f}]",
            expected="log-probabilities: rows whose exponentials sum to 1",
            message=f"nll_loss gets {kind}; it only picks a number, so there is no minimum to find",
            location=nll[0]["loc"],
            hint="F.cross_entropy on the logits, or F.log_softmax before F.nll_loss",
        )
    single = [e for e in described if e["fn"] == "cross_entropy" and e["input"]["shape"][1:2] == [1]]
    if single:
        yield Finding(
            measured=f"cross_entropy of {tuple(single[0]['input']['shape'])}",
            expected="two or more classes",
            message="with a single logit cross entropy is always 0 and has no gradient",
            location=single[0]["loc"],
            hint="F.binary_cross_entropy_with_logits for one logit",
        )
    plain = [e for e in described if e["fn"] == "binary_cross_entropy"]
    cut = [e for e in plain if e["input"].get("zeros", 0) > 0.05 and e["input"]["min"] == 0]
    if len(cut) >= ENOUGH and len(cut) > len(plain) / 2:
        yield Finding(
            status=Status.WARN,
            measured=f"{cut[0]['input']['zeros']:.0%} of the inputs exactly 0",
            expected="probabilities from a sigmoid",
            message="binary_cross_entropy gets clamped values; where the clamp acts there is no gradient",
            location=cut[0]["loc"],
            hint="F.binary_cross_entropy_with_logits on the logits",
        )
    bce = [e for e in described if e["fn"] == "binary_cross_entropy_with_logits"]
    inside = [e for e in bce if e["input"]["min"] >= 0 and e["input"]["max"] <= 1]
    if len(bce) >= 5 and len(inside) == len(bce):
        low, high = min(e["input"]["min"] for e in bce), max(e["input"]["max"] for e in bce)
        yield Finding(
            measured=f"inputs in [{low:.3f}, {high:.3f}] in {len(bce)} batches",
            expected="logits of either sign",
            message="a sigmoid is applied before a loss that applies its own",
            location=bce[0]["loc"],
            hint="give the loss the output before the sigmoid",
        )


@rule("LOS903", subject=Subject.RUN)
def loss_sign(record: Record) -> Iterator[Finding]:
    """The loss is maximised.

    Why it matters: training makes the model worse at every step.
    Found by: backward passes that start from the negative of what the loss function returned.
    Not an error: losses of two networks that play against each other.
    """
    backwards = [b for b in record.of("backward") if isinstance(b["ratio"], int | float)]
    if not backwards:
        raise NotSeenError("backward does not start from a loss of torch")
    wrong = [b for b in backwards if b["ratio"] < 0 and b["fn"] in (*CLASSIFICATION, "mse_loss", "l1_loss")]
    if len(wrong) >= ENOUGH and len(wrong) >= MOST * len(backwards) and len(record.steps_of) <= 1:
        yield Finding(
            measured=f"backward starts from {wrong[0]['value']:.3f}, the loss is {-wrong[0]['value']:.3f}"
            if wrong[0]["ratio"] == -1
            else f"backward starts from {wrong[0]['ratio']:g} times the loss",
            expected="the loss",
            message="the sign of the loss is turned before backward",
            location=wrong[0]["loc"],
            hint="loss.backward(), without the minus",
        )


@rule("LOS904", severity=Status.WARN, subject=Subject.RUN)
def loss_not_mean(record: Record) -> Iterator[Finding]:
    """The loss is a sum over the batch.

    Why it matters: the gradient grows with the batch size, so the learning rate means something else for each size and
    for the last, smaller batch.
    Found by: `reduction="sum"`, or a plain sum of single losses, that backward starts from.
    Not an error: a sum that is divided before backward; the sum of a few losses; sums in an evaluation.
    """
    backwards = record.of("backward")
    if not backwards:
        raise NotSeenError("no backward pass was seen")
    batch = max((p["n"] for p in record.of("pass") if p["trained"]), default=0)
    summed = [b for b in backwards if (b["reduction"] == "sum" and b["ratio"] == 1) or _is_sum(b["chain"])]
    numbers = [b["summed"] for b in summed if b.get("summed")]
    if numbers and max(numbers) < batch / 2:
        return  # of a few losses
    if len(summed) >= ENOUGH and len(summed) >= MOST * len(backwards) and batch > 1:
        yield Finding(
            measured=f"backward starts from a sum over up to {batch} samples",
            expected="their mean",
            message="the size of a step depends on the number of samples in the batch",
            location=summed[0]["loc"],
            hint='reduction="mean" (the default), or divide by the batch size',
        )


@rule("LOS905", subject=Subject.RUN)
def loss_cut_from_graph(record: Record) -> Iterator[Finding]:
    """The loss has no path back to the model.

    Why it matters: backward runs without an error and no parameter gets a gradient.
    Found by: training passes after which no parameter of the optimizer has a gradient, or outputs that need none.
    Not an error: models evaluated beside the trained one.

    Wrong: `loss = torch.tensor(loss.item(), requires_grad=True)`, `criterion(out.detach().requires_grad_(), y)`
    Right: `loss = criterion(out, y)`
    """
    record.need_training(ENOUGH)
    steps = [s for s in record.steps if s["backwards"] and not s["zeroed_after_backward"] and not s["closure"]]
    empty = [s for s in steps if s["grads"] in ("none", "zero")]
    if len(empty) >= ENOUGH and len(empty) == len(steps):
        held = [h for h in record.of("held") if h["steps"] and h["frozen"] == h["tensors"]]
        if held:
            return  # everything is frozen, which OPT703 says
        yield Finding(
            measured=f"no gradient at any of {len(steps)} steps",
            expected="gradients",
            message="backward reaches no parameter of the optimizer"
            if all(s["grads"] == "none" for s in empty)
            else "every gradient is exactly zero: the output is saturated, dead, or does not matter to the loss",
            location=record.of("backward")[0]["loc"],
            hint="look for .detach(), .data, .item() or torch.tensor(...) between the model and backward, "
            "and for a bounded or clamped output",
        )


@rule("LOS906", severity=Status.WARN, subject=Subject.RUN)
def loss_clamped(record: Record) -> Iterator[Finding]:
    """The loss is clamped before backward.

    Why it matters: where the clamp acts its gradient is zero: the worst batches, which teach most, teach nothing.
    Found by: a clamp, minimum or maximum between the loss function and backward.
    Not an error: gradients that are clipped.

    Wrong: `loss.clamp(max=1).backward()`
    Right: `loss.backward(); clip_grad_norm_(model.parameters(), 1.0)`
    """
    clamped = [b for b in record.of("backward") if any(_is_clamp(name) for name in b["chain"][:3])]
    if len(clamped) >= ENOUGH and any("loss" in b["chain"] for b in clamped):
        yield Finding(
            measured=" <- ".join(clamped[0]["chain"]),
            expected="no clamp",
            message="the loss is clamped, which switches off the gradient of hard batches",
            location=clamped[0]["loc"],
            hint="clip the gradients instead",
        )


def _is_sum(chain: list[str]) -> bool:
    """Whether backward starts from a sum that nothing divides."""
    start = [name for name in chain if name != "NegBackward0"][:1]
    return start == ["SumBackward0"] and not any(n.startswith(("Div", "Mean", "Mul")) for n in chain[:2])


def _is_clamp(name: str) -> bool:
    return name.startswith(("Clamp", "Minimum", "Maximum", "Hardtanh"))


@rule("LOS907", subject=Subject.RUN)
def loss_broadcast(record: Record) -> Iterator[Finding]:
    """The loss compares tensors of different shapes.

    Why it matters: (N, 1) against (N,) becomes (N, N): every prediction is compared with every target, and the best
    answer is their mean.
    Found by: shapes of input and target of element-wise losses; in a loss that is written out, the shapes in the graph
    of a difference between an output and a constant.
    Not an error: equal shapes; an output that is unsqueezed on purpose, to compare each with each.

    Wrong: `F.mse_loss(model(x), y)` with shapes (N, 1) and (N,)
    Right: `F.mse_loss(model(x).squeeze(1), y)`
    """
    described = [e for e in record.of("loss") if "input" in e and e["fn"] in ELEMENTWISE]
    written_out = [b for b in record.of("backward") if b.get("broadcast")]
    if not described and not written_out:
        raise NotSeenError("no element-wise loss was called")
    wrong = [e for e in described if e["input"]["shape"] != e["target"]["shape"]]
    if wrong:
        yield Finding(
            measured=f"{tuple(wrong[0]['input']['shape'])} against {tuple(wrong[0]['target']['shape'])}",
            expected="equal shapes",
            message=f"{wrong[0]['fn']} broadcasts its arguments against each other",
            location=wrong[0]["loc"],
            hint="squeeze or unsqueeze one of them so that both have the same shape",
        )
    elif len(written_out) > ENOUGH and len(written_out) >= MOST * len(record.of("backward")) / 2:
        part, whole = written_out[0]["broadcast"]
        yield Finding(
            measured=f"an output {tuple(part)} less a target gives {tuple(whole)}",
            expected=f"{tuple(part)}",
            message="the loss compares every prediction with every target of its batch",
            location=written_out[0]["loc"],
            hint="squeeze or unsqueeze the target so that it has the shape of the output",
        )


@rule("LOS908", subject=Subject.RUN)
def loss_overflows(record: Record) -> Iterator[Finding]:
    """The loss is infinite or nan for a confident, wrong answer.

    Why it matters: sooner or later a probability rounds to 0, and its logarithm ends the run.
    Found by: the loss on scores of +-100; a logarithm directly behind a softmax or sigmoid in the graph is a warning.
    Not an error: log_softmax, and losses on logits.

    Wrong: `-torch.log(p.softmax(dim=1))[range(n), y].mean()`
    Right: `F.cross_entropy(logits, y)`
    """
    for event in record.of("backward"):
        chain = event["chain"]
        for one, then in pairwise(chain):
            if one.startswith("LogBackward") and then.startswith(("Softmax", "Sigmoid")):
                yield Finding(
                    status=Status.WARN,
                    measured=f"log of {then.removesuffix('Backward0').lower()}",
                    expected="log_softmax or logsigmoid",
                    message="the loss takes the logarithm of a probability that can round to 0",
                    location=event["loc"],
                    hint="F.cross_entropy or F.log_softmax on the logits",
                )
                return
    saturated = record.probe("loop")["saturated"]
    if "skipped" in saturated:
        raise NotSeenError(saturated["skipped"])
    if not saturated["finite"]:
        yield Finding(
            measured=f"{saturated['fn']} of scores of +-100 is not finite",
            expected="finite",
            message="the loss overflows on confident, wrong answers",
            hint="compute it from logits",
        )


@rule("LOS909", subject=Subject.RUN)
def softmax_over_batch(record: Record) -> Iterator[Finding]:
    """A softmax runs over the batch instead of the classes.

    Why it matters: each sample's scores then depend on who else is in the batch.
    Found by: inputs of the loss whose columns, not rows, sum to 1; or, whatever the loss, a gradient of the logits that
    only a softmax over dimension 0 explains.
    Not an error: logits.

    Wrong: `out.softmax(dim=0)`
    Right: no softmax before cross entropy
    """
    events = [e for e in record.of("loss") if "input" in e and e["input"].get("columns")]
    wrong = [e for e in events if not e["input"].get("simplex") and e["input"]["shape"][:2] != [1, 1]]
    if len(wrong) >= ENOUGH:
        yield Finding(
            measured="every column of the loss's input sums to 1",
            expected="logits",
            message="a softmax over dimension 0 mixes the samples of a batch",
            location=wrong[0]["loc"],
            hint="remove it; for probabilities use dim=1",
        )
        return
    targets = [e for e in record.of("targets") if e["over_batch"] is not None and e["mixed"] is not None]
    explained = [e for e in targets if e["over_batch"] < EXACT and e["mixed"] > 10 * EXACT]
    if len(explained) >= ENOUGH and len(explained) > len(targets) / 2:
        yield Finding(
            measured="the gradient of the logits sums to 0 over the batch, not over the classes",
            expected="softmax over the classes",
            message="a softmax over dimension 0 mixes the samples of a batch",
            location=explained[0]["loc"],
            hint="softmax(dim=1) or log_softmax(dim=-1)",
        )


@rule("LOS911", severity=Status.WARN, subject=Subject.RUN)
def logits_wider_than_labels(record: Record) -> Iterator[Finding]:
    """The model has many more outputs than there are labels.

    Why it matters: most often the head of another data set was left in place; the loss starts at ln 1000 instead of
    ln 10, and parameters are wasted.
    Found by: half as many logits again as the largest label needs, over at least 100 labels.
    Not an error: a few unused classes.
    """
    places: dict[str, list[Event]] = {}
    for event in _described(record, *CLASSIFICATION):
        if not event["target"]["float"] and "max" in event["target"] and len(event["input"]["shape"]) >= 2:
            places.setdefault(event["loc"], []).append(event)
    enough = {place: found for place, found in places.items() if sum(e["n"] for e in found) >= 100}
    if not enough:
        raise NotSeenError("too few labels were seen")
    for place, found in enough.items():
        widths, most = {e["input"]["shape"][1] for e in found}, max(e["target"]["max"] for e in found)
        seen = sum(e["n"] for e in found)
        if len(widths) == 1 and min(widths) >= WIDER * (most + 1) and min(widths) > 2 and seen > 20 * (most + 1):
            yield Finding(
                measured=f"{min(widths)} logits, labels up to {most}",
                expected=f"{most + 1} logits",
                message="the head is wider than the labels need",
                location=place,
                hint=f"num_classes={most + 1}",
            )
            return


@rule("LOS912", severity=Status.WARN, subject=Subject.RUN)
def logits_clipped_at_zero(record: Record) -> Iterator[Finding]:
    """The logits never fall below zero: a ReLU after the last layer.

    Why it matters: a class whose logit is cut gets no gradient, and no class can be ruled out.
    Found by: inputs of the loss that are never negative and often exactly zero.
    Not an error: logits of either sign.

    Wrong: `return F.relu(self.fc(x))`
    Right: `return self.fc(x)`
    """
    events = _described(record, *CLASSIFICATION, "binary_cross_entropy_with_logits")
    cut = [
        e
        for e in events
        if e["input"]["min"] == 0 and e["input"].get("zeros", 0) > 0.02 and not e["input"].get("simplex")
    ]
    if len(cut) >= max(ENOUGH, MOST * len(events)):
        yield Finding(
            measured=f"{cut[0]['input']['zeros']:.0%} of the logits exactly 0, none below",
            expected="logits of either sign",
            message="an activation after the last layer cuts the logits",
            location=cut[0]["loc"],
            hint="no activation after the last linear layer",
        )
