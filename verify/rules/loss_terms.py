"""LOS: divergences, and the terms that a loss is made of."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.loss import ENOUGH, MOST
from verify.trace.record import Event, NotSeenError, Record

# A log-probability that rounds up, and how much of a batch's rows must be probabilities.
ROUNDED = 1e-3


@rule("LOS914", subject=Subject.RUN)
def divergence_inputs(record: Record) -> Iterator[Finding]:
    """A Kullback-Leibler divergence is not given what it asks for.

    Why it matters: `kl_div` wants the logarithm of the model's probabilities, and plain probabilities as the target.
    With anything else it is no divergence: it has no minimum where both agree, and pulls the model nowhere.
    Found by: the range of what `kl_div` is given: log-probabilities are never above 0, probabilities never below.
    Not an error: `log_target=True` with logarithms on both sides.

    Wrong: `F.kl_div(student.softmax(1), teacher.softmax(1))`
    Right: `F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")`
    """
    described = [e for e in record.of("loss") if "input" in e and e["fn"] == "kl_div"]
    if len(described) < ENOUGH:
        raise NotSeenError("kl_div was not called")
    above = [e for e in described if e["input"]["max"] > ROUNDED]
    logs = [e for e in described if e["target"].get("min", 0) < -ROUNDED and not e.get("log_target")]
    plain = [e for e in described if e["target"].get("max", 0) > ROUNDED and e.get("log_target")]
    for wrong, key, what, hint in (
        (above, "input", "its first argument must be log-probabilities", "log_softmax on the first argument"),
        (logs, "target", "its target must be probabilities", "softmax for the target, or log_target=True"),
        (plain, "target", "with log_target=True its target must be log-probabilities", "log_softmax for the target"),
    ):
        if len(wrong) >= max(ENOUGH, MOST * len(described)):
            values = wrong[0][key]
            kind = " whose rows sum to 1" if values.get("simplex") else ""
            yield Finding(
                measured=f"{key} in [{values['min']:.3g}, {values['max']:.3g}]{kind}",
                expected="values of at most 0" if key == "input" or wrong is plain else "values of at least 0",
                message=f"kl_div is no divergence here: {what}",
                location=wrong[0]["loc"],
                hint=hint,
            )
            return


@rule("LOS915", severity=Status.WARN, subject=Subject.RUN)
def term_without_gradient(record: Record) -> Iterator[Finding]:
    """A term of the loss has no gradient.

    Why it matters: it is computed, added and printed, and the model learns nothing from it: most often its input was
    detached, or computed under `no_grad`.
    Found by: a loss function of torch that gives a number without a graph while gradients are on, at every training
    step, and a graph of the loss with a constant term at those steps.
    Not an error: losses that are computed under `no_grad` to be printed; a teacher's own loss that is not added.

    Wrong: `loss = hard + distillation(logits.detach(), teacher_logits)`
    Right: `loss = hard + distillation(logits, teacher_logits)`
    """
    backwards = record.of("backward")
    if not backwards:
        raise NotSeenError("no backward pass was seen")
    steps: dict[int, Event] = {b["step"]: b for b in backwards if b["step"] is not None}
    constant = {step for step, b in steps.items() if b.get("constant")}
    bare: dict[tuple[str, str], list[Event]] = {}
    for event in record.of("loss"):
        if (
            event["grad"]
            and not event["needs_grad"]
            and event["step"] in steps
            and event["i"] < steps[event["step"]]["i"]
        ):
            bare.setdefault((event["fn"], event["loc"]), []).append(event)
    for (name, place), events in bare.items():
        at = {e["step"] for e in events}
        others = {step for step, b in steps.items() if b["loc"] == steps[events[0]["step"]]["loc"] and step >= min(at)}
        if len(at) > ENOUGH and at <= constant and others & constant == at and len(others) < 1.2 * len(at) + 1:
            yield Finding(
                measured=f"{name} without a graph at each of {len(at)} steps, and a loss with a constant term",
                expected="a gradient from every term",
                message=f"what {name} gives is added to the loss and teaches the model nothing",
                location=place,
                hint="look for detach(), no_grad or .item() before it; leave the term out if it is only to be printed",
            )
            return
