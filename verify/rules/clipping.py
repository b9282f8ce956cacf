"""TRN: gradients that are clipped, and those that are stepped with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

FEW = 3


@rule("TRN417", subject=Subject.RUN)
def clip_of_others(record: Record) -> Iterator[Finding]:
    """The gradients of another model are clipped than those that the step is made with.

    Why it matters: the model that is trained is never clipped, and nothing says so.
    Found by: at each call from a place, tensors that have no gradient and are in no optimizer; or tensors of another
    optimizer than the one that steps next, whose own are never clipped, and that get new gradients before their step.
    Not an error: all clipped, then all stepped; a norm that is measured, with no limit.

    Wrong: `clip_grad_norm_(ema.parameters(), 1.0)`
    Right: `clip_grad_norm_(model.parameters(), 1.0)`
    """
    clips = [c for c in record.of("clip") if c.get("holders") is not None and _limits(c)]
    if not clips:
        raise NotSeenError("no gradients are clipped")
    clipped = {opt for c in clips for opt in c["holders"]}
    for place in sorted({c["loc"] for c in clips}):
        here = [c for c in clips if c["loc"] == place]
        if len(here) < FEW:
            continue
        if all(c["tensors"] and not c["graded"] and not c["holders"] for c in here):
            yield Finding(
                measured=f"{here[0]['tensors']} tensors without a gradient in all {len(here)} calls, in no optimizer",
                expected="the parameters that the step is made with",
                message="the gradients of a model are clipped that has none",
                location=place,
                hint="clip the parameters of the model that backward() and step() are about",
            )
        elif others := _stepped_instead(record, here, clipped):
            yield Finding(
                measured=f"in all {len(here)} calls, what is clipped is not in the {others} that steps next",
                expected="the parameters that the step is made with",
                message="the gradients of another network are clipped; those of this step never are",
                location=place,
                hint="clip the parameters of the network whose optimizer steps",
            )


@rule("TRN419", severity=Status.WARN, subject=Subject.RUN)
def clip_of_a_part(record: Record) -> Iterator[Finding]:
    """Only a part of the gradients is clipped.

    Why it matters: the gradients of the others explode as before, and the norm that is printed is not that of the step.
    Found by: at each call, the tensors of the optimizer that have a gradient and are not among those that are clipped:
    half and more of them, which no other call clips.
    Not an error: several calls for several parts; parts with a limit of their own; a backbone that is frozen.

    Wrong: `clip_grad_norm_(model.head.parameters(), 1.0)`
    Right: `clip_grad_norm_(model.parameters(), 1.0)`
    """
    clips = [c for c in record.of("clip") if c.get("left_out") is not None and c.get("holders") and _limits(c)]
    if not clips:
        raise NotSeenError("no gradients of an optimizer are clipped")
    places = {c["loc"] for c in clips}
    if len(places) == 1 and len(clips) >= FEW and all(c["left_out"] >= max(2, c["graded"]) for c in clips):
        clip = clips[0]
        yield Finding(
            measured=f"{clip['graded']} of {clip['graded'] + clip['left_out']} tensors with a gradient",
            expected="all that the step is made with",
            message="most gradients of the optimizer are never clipped",
            location=clip["loc"],
            hint="clip_grad_norm_(model.parameters(), limit)",
        )


def _limits(clip: Event) -> bool:
    limit = clip["limit"]
    return isinstance(limit, int | float) and math.isfinite(limit) and limit < 1e6


def _stepped_instead(record: Record, clips: list[Event], clipped: set[int]) -> str:
    """The optimizer that always steps after these calls, if its parameters are never clipped."""
    found, events = set(), record.of("step", "backward")
    for clip in clips:
        after = [e for e in events if e["i"] > clip["i"]]
        following = next((e for e in after if e["kind"] == "step"), None)
        own = next((e for e in after if e["kind"] == "step" and e["opt"] in clip["holders"]), None)
        if following is None:
            continue  # the run ended here
        renewed = own is None or any(e["kind"] == "backward" and e["i"] < own["i"] for e in after)
        if following["opt"] in clipped or not clip["holders"] or not renewed:
            return ""
        found.add(following["opt"])
    return str(record.optimizers[found.pop()]["cls"]) if len(found) == 1 else ""
