"""TRN: models that only give answers while others are trained: teachers, frozen encoders."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.trace.record import Event, NotSeenError, Record

FEW_STEPS = 4


@rule("TRN418", subject=Subject.RUN)
def fixed_model_in_train_mode(record: Record) -> Iterator[Finding]:
    """A model that is no longer trained still runs in train mode.

    Why it matters: its dropout makes its answers random, its batch norms depend on the rest of the batch and learn from
    all data that they are shown, test data included.
    Found by: passes without gradients, in train mode, of a model with dropout or batch norm whose weights stay the same
    while another model makes steps; a frozen model that never runs in eval mode and whose statistics change.
    Not an error: momentum teachers, whose weights move; statistics that are renewed before an evaluation; dropout that
    is left on at the end to measure how sure the model is.

    Wrong: `teacher.requires_grad_(False)` alone
    Right: `teacher.requires_grad_(False).eval()`
    """
    passes = [p for p in record.of("pass") if not p["grad"] and p["training"] and (p["norms"] > 0 or p["drops"] > 0)]
    if not passes:
        raise NotSeenError("no model runs in train mode without gradients")
    tables = {table["model"]: table for table in record.of("params")}
    for model in sorted({p["model"] for p in passes}):
        trained = [p["i"] for p in record.of("pass") if p["model"] == model and p["trained"]]
        own = [p for p in passes if p["model"] == model and p["i"] > max(trained, default=-1)]
        table = tables.get(model)
        if not own or table is None or not table["rows"]:
            continue
        moved = any(row["changed"] is not False for row in table["rows"])
        steps = {p["step"] for p in own}
        seen = [p["weights"] for p in own if p.get("weights") is not None]
        if len(seen) >= FEW_STEPS and len(set(seen)) == 1 and (trained or not moved):
            yield _found(record, own, Status.FAIL if own[0]["norms"] > 0 else Status.WARN, f"in {len(steps)} steps")
        elif not trained and not moved and len(own) >= 2 and _drifts(record, table):
            yield _found(record, own, Status.WARN, "all frozen, and never in eval mode")


def _drifts(record: Record, table: Event) -> bool:
    """Whether a frozen model that never ran in eval mode has changed its running statistics."""
    frozen = not any(row["trainable"] or row["opts"] for row in table["rows"])
    never = not any(p["model"] == table["model"] and not p["training"] for p in record.of("pass"))
    return frozen and never and any(moved for name, moved in table["buffers"] if name.endswith("running_mean"))


def _found(record: Record, passes: list[Event], status: Status, when: str) -> Finding:
    names = {e["id"]: e["cls"] for e in record.of("model")}
    parts = [what for what, key in (("batch norms", "norms"), ("dropout", "drops")) if passes[0][key] > 0]
    return Finding(
        status=status,
        measured=f"{names.get(passes[0]['model'], 'model')}: {len(passes)} passes in train mode, {when}",
        expected="eval mode",
        message=f"a model that is not trained any more runs with {' and '.join(parts)} in train mode",
        location=passes[0]["loc"],
        hint="call .eval() on it, and see that no later .train() of a model around it undoes that",
    )
