"""EVL: which data the best model is chosen by."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_probe import Json, data_probe
from verify.rules.selection import compared_sides, comparisons_with_best, is_made_again, name_of_number
from verify.source import Project, project_of, text_of
from verify.trace.record import Event, NotSeenError, Record

TEST = re.compile(r"(^|_)(test|tst)(ing)?(_|$|set|loader|dl)|^test", re.IGNORECASE)
VALIDATION = re.compile(r"(^|_)(val|valid|vld|validation|dev)(_|$|set|loader|dl)", re.IGNORECASE)
MEASURE = re.compile(r"acc|loss|f1|score|err|metric|nll|auc|iou|prec|map|dice|bleu|wer|rmse|mae", re.IGNORECASE)
KEPT = re.compile(r"best", re.IGNORECASE)
FEWEST = 2


@dataclass
class Gap:
    """What happened between two trainings: the loaders that were evaluated, and what was made of the results."""

    loaders: set[int] = field(default_factory=set)
    decided: list[str] = field(default_factory=list)


@rule("EVL622", severity=Status.WARN, subject=Subject.RUN)
def selected_on_test(record: Record) -> Iterator[Finding]:
    """The best model is chosen by the test set, although there is a validation set.

    Why it matters: the best of many results on the test set is no estimate of anything new: it is too good by as much
    as the results scatter.
    Found by: after an epoch the loader that is called test is evaluated and the one that is called validation is not,
    and the best checkpoint is saved or a plateau schedule steps; or, in the source, a result of the test is compared
    with the best so far beside one of the validation.
    Not an error: scripts that have no validation set, as is usual for CIFAR; a test result that is only logged.

    Wrong: `if evaluate(model, test_loader) > best: save()`
    Right: `if evaluate(model, val_loader) > best: save()`, and the test once, at the end
    """
    found = _in_source(project_of(record)) if record.sources else None
    found = found or _in_run(record)
    if found:
        measured, location = found
        yield Finding(
            measured=measured,
            expected="the validation set decides, the test set is looked at once",
            message="the best epoch is chosen by the test set",
            location=location,
            hint="evaluate the validation set after each epoch",
        )


# -- the run -----------------------------------------------------------------------------------------------------------


def _in_run(record: Record) -> tuple[str, str] | None:
    """After how many epochs the test alone was evaluated and something was decided, and where."""
    views = [view for view in _views(record) if view["id"] is not None]
    tests = {view["id"] for view in views if _is_called(view, TEST) and not _is_called(view, VALIDATION)}
    others = {view["id"] for view in views if _is_called(view, VALIDATION) and not _is_called(view, TEST)}
    if not tests or not others:
        return None
    gaps = [gap for gap in _gaps(record) if gap.loaders & tests and not gap.loaders & others]
    places = [place for gap in gaps for place in gap.decided]
    if len(gaps) < FEWEST or not places:
        return None
    return f"after {len(gaps)} epochs the test set alone was evaluated, and what follows depends on it", places[0]


def _views(record: Record) -> list[Json]:
    try:
        data_probe(record)
    except NotSeenError:
        return []
    made = [event["result"] for event in record.of("probe") if event["name"] == "data" and "result" in event]
    return [view for result in made for view in result.get("evals", [])]


def _is_called(view: Json, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(name.rpartition(".")[2]) for name in view.get("names") or [])


def _gaps(record: Record) -> list[Gap]:
    """What lies between the end of an epoch and the begin of the next; what follows the last epoch is left out."""
    roles = {one.number: (one.role, one.loader) for one in record.iterations}
    gaps: list[Gap] = []
    for event in record.events:
        if event["kind"] == "iter_begin":
            role, loader = roles.get(event["iteration"], ("other", -1))
            if role == "train":
                gaps.append(Gap())
            elif role == "eval" and gaps:
                gaps[-1].loaders.add(loader)
        elif gaps and gaps[-1].loaders and _decides(event):
            gaps[-1].decided.append(str(event.get("loc") or ""))
    return gaps[:-1]


def _decides(event: Event) -> bool:
    kept = event["kind"] == "save" and KEPT.search(str(event["path"]).rpartition("/")[2])
    plateau = event["kind"] == "sched" and any(isinstance(value, float) for value in event.get("given") or [])
    return bool(kept or plateau)


# -- the source --------------------------------------------------------------------------------------------------------


def _in_source(project: Project) -> tuple[str, str] | None:
    """A comparison of a result of the test with the best, in a function that also has one of the validation."""
    for compare, place in comparisons_with_best(project):
        others = [side for side in compared_sides(compare) or () if side is not place]
        of_test = [side for side in others if _measures(name_of_number(side), TEST)]
        if not of_test or _measures(name_of_number(place), TEST) or not is_made_again(project, compare):
            continue
        around = project.function(compare) or project.file(compare).tree
        if any(_measures(name, VALIDATION) for name in _names(around)):
            return ast.unparse(compare), project.at(compare)
    return None


def _measures(name: str, split: re.Pattern[str]) -> bool:
    return bool(split.search(name) and MEASURE.search(name))


def _names(node: ast.AST) -> Iterator[str]:
    """The variables that are set in a node, and the keys that are used."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.Subscript) and text_of(inner.slice):
            yield text_of(inner.slice) or ""
