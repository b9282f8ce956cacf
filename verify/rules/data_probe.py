"""What the probe of the data measured, as the rules about data read it."""

from __future__ import annotations

from typing import Any

from verify.trace.record import NotSeenError, Record

Json = dict[str, Any]
CONTAINED = 0.99


def part_of(probe: Json, name: str) -> Json:
    """One entry of the probe's result.

    Raises:
        NotSeenError: it could not be measured.
    """
    part: Any = probe.get(name)
    if part is None and probe.get("skipped"):
        raise NotSeenError(probe["skipped"])
    if not isinstance(part, dict):
        raise NotSeenError("not measured")
    if part.get("skipped"):
        raise NotSeenError(part["skipped"])
    return part


def data_probe(record: Record) -> Json:
    """The result of the probe, with `evaluated` in each description of a loader.

    A loader that no model has seen without learning from it (it may have served to compute a mean) is no evaluation.
    """
    probe = dict(record.probe("data"))
    passes = record.of("iter_end")
    evaluated = {event["loader"] for event in passes if event.get("forwards") and not event.get("steps")}
    probe["evals"] = [
        {**view, "evaluated": not passes or view["id"] is None or view["id"] in evaluated}
        for view in probe.get("evals", [])
    ]
    probe.setdefault("train", {})
    return probe


def measured_evals(probe: Json, parts: list[Any]) -> list[tuple[Json, Json]]:
    """(description, result) of every evaluation loader whose result could be measured.

    Raises:
        NotSeenError: none could.
    """
    both = zip(probe["evals"], parts, strict=False)
    pairs = [(view, made) for view, made in both if view["evaluated"] and not made.get("skipped")]
    if not pairs:
        raise NotSeenError(next((made["skipped"] for made in parts if made.get("skipped")), "no evaluation was seen"))
    return pairs


def overlaps_of(probe: Json) -> list[Json]:
    """What each evaluation loader has in common with training, or why that was not compared."""
    found = probe.get("overlap")
    return found if isinstance(found, list) else [{"skipped": "not compared"} for _ in probe.get("evals", [])]


def sees_training_data(probe: Json) -> set[int]:
    """Indices of evaluation loaders that hold training samples alone: a train accuracy, or a split that is none."""
    return {
        index
        for index, made in enumerate(overlaps_of(probe))
        if probe["evals"][index]["is_train_loader"] or made.get("share", 0.0) >= CONTAINED
    }


def place_of(view: Json) -> str:
    """Where a loader was made, else what it is called."""
    return str(view.get("loc") or view.get("name") or "")
