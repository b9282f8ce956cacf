"""AMP: mixed precision."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record


def _calls(record: Record) -> list[Event]:
    calls = record.of("scaler")
    if not calls:
        raise NotSeenError("no GradScaler is used")
    if record.of("scaler_asked") and not any(e["enabled"] for e in calls):
        raise NotSeenError("the GradScaler is off, and the script does something else then")
    return calls


def _windows(record: Record) -> list[list[Event]]:
    """Scaler, clip and step events, cut after each optimizer step."""
    windows: list[list[Event]] = [[]]
    for event in record.of("scaler", "clip", "step", "backward"):
        windows[-1].append(event)
        if event["kind"] == "step":
            windows.append([])
    return windows[:-1]


@rule("AMP031", subject=Subject.RUN)
def clip_before_unscale(record: Record) -> Iterator[Finding]:
    """Gradients are clipped while they are still scaled.

    Why it matters: the norm is that of gradients times up to 65,536, so every step is cut to next to nothing.
    Found by: a clip between `scaler.scale(loss).backward()` and `scaler.step` without `scaler.unscale_` before it. The
    order is judged on a CPU too, where the scaler is off.
    Not an error: clipping without a scaler.

    Wrong: `scaler.scale(loss).backward(); clip_grad_norm_(...); scaler.step(optimizer)`
    Right: `scaler.scale(loss).backward(); scaler.unscale_(optimizer); clip_grad_norm_(...); scaler.step(optimizer)`
    """
    _calls(record)
    wrong = []
    for window in _windows(record):
        calls = [e["call"] if e["kind"] == "scaler" else e["kind"] for e in window]
        if "scale" in calls and "clip" in calls and "unscale_" not in calls[: calls.index("clip")]:
            wrong += [e for e in window if e["kind"] == "clip"][:1]
    if len(wrong) >= 2:
        yield Finding(
            measured=f"{len(wrong)} steps clipped without unscale_",
            expected="scaler.unscale_(optimizer) before clipping",
            message="the clipping limit is compared with scaled gradients",
            location=wrong[0]["loc"],
            hint="scaler.unscale_(optimizer) between backward and clip",
        )


@rule("AMP032", subject=Subject.RUN)
def scaler_not_updated(record: Record) -> Iterator[Finding]:
    """The scaler is never updated.

    Why it matters: the scale stays what it was; after the first overflow every step is skipped, or gradients underflow.
    Found by: `scaler.step` without `scaler.update`.
    Not an error: one update for the steps of several optimizers.
    """
    calls = [e["call"] for e in _calls(record)]
    if calls.count("step") >= 2 and calls.count("update") == 0:
        yield Finding(
            measured=f"{calls.count('step')} steps, no update",
            expected="scaler.update() after the steps of a batch",
            message="the loss scale never changes",
            location=next(e["loc"] for e in record.of("scaler") if e["call"] == "step"),
            hint="scaler.update() after scaler.step(optimizer)",
        )


@rule("AMP033", severity=Status.WARN, subject=Subject.RUN)
def float16_without_scaler(record: Record) -> Iterator[Finding]:
    """Training runs in float16 without a scaler.

    Why it matters: gradients below 6e-8 round to zero, so deep layers stop learning.
    Found by: an autocast to float16 around training, and no GradScaler.
    Not an error: bfloat16, which has the range of float32; float16 in an evaluation.

    Wrong: `with autocast("cuda"): loss = ...` and `loss.backward()`
    Right: `scaler.scale(loss).backward()`, or `dtype=torch.bfloat16`
    """
    made = [e for e in record.of("autocast") if e["call"] == "made" and e["enabled"]]
    if not made:
        raise NotSeenError("no autocast is used")
    half = [e for e in made if e["dtype"] == "float16"]
    if half and not record.of("scaler") and record.steps and any(e["step"] > 1 for e in record.of("backward")):
        before_backward = [e for e in half if any(b["i"] > e["i"] for b in record.of("backward"))]
        if len(before_backward) >= 2:
            yield Finding(
                measured="autocast to float16, no GradScaler",
                expected="a GradScaler, or bfloat16",
                message="small gradients underflow to zero",
                location=half[0]["loc"],
                hint="torch.amp.GradScaler, or dtype=torch.bfloat16",
            )


@rule("AMP034", severity=Status.WARN, subject=Subject.RUN)
def autocast_not_entered(record: Record) -> Iterator[Finding]:
    """An autocast is made and never entered.

    Why it matters: training runs in float32, slower than meant, and nobody is told.
    Found by: `autocast(...)` objects that no `with` enters.
    Not an error: autocast as a decorator; `enabled=False`.
    """
    events = record.of("autocast")
    if not events:
        raise NotSeenError("no autocast is used")
    entered = {e["loc"] for e in events if e["call"] == "entered"}
    idle = [e for e in events if e["call"] == "made" and e["enabled"] and e["loc"] not in entered]
    if idle and record.steps and not entered:
        yield Finding(
            measured="no autocast was entered",
            expected="`with autocast(...):` around forward and loss",
            message="mixed precision is set up and not used",
            location=idle[0]["loc"],
            hint="enter it with `with`",
        )


@rule("AMP035", subject=Subject.RUN)
def scaler_bypassed(record: Record) -> Iterator[Finding]:
    """The loss is scaled and the optimizer steps without the scaler.

    Why it matters: on a GPU the gradients are up to 65,536 times too large at that step.
    Found by: `scaler.scale` before the backward pass and `optimizer.step()` outside of `scaler.step`.
    Not an error: scale and step both through the scaler.

    Wrong: `scaler.scale(loss).backward(); optimizer.step()`
    Right: `scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()`
    """
    calls = [e["call"] for e in _calls(record)]
    direct = [s for s in record.steps if not s["scaled"]]
    if "step" in calls and "scale" not in calls and record.of("backward"):
        yield Finding(
            measured=f"{calls.count('step')} steps through the scaler, no scaled loss",
            expected="scaler.scale(loss).backward()",
            message="the scaler divides gradients by a scale that the loss was never multiplied with",
            location=record.of("backward")[0]["loc"],
            hint="scaler.scale(loss).backward()",
        )
    if "scale" in calls and "step" not in calls and direct and "unscale_" not in calls:
        yield Finding(
            measured=f"{calls.count('scale')} scaled losses, {len(direct)} steps without the scaler",
            expected="scaler.step(optimizer)",
            message="the gradients are never scaled back",
            location=direct[0]["loc"],
            hint="scaler.step(optimizer); scaler.update()",
        )
