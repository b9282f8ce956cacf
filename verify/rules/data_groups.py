"""DAT: samples that belong together, and the splits that they are in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.data_probe import CONTAINED, data_probe, measured_evals, overlaps_of, place_of
from verify.trace.record import NotSeenError, Record

# Of splits by chance nearly every group has samples in training; of a few that are shared on purpose, not.
MIXED = 0.5
FEW_MIXED, FEWEST = 0.05, 3  # of groups that must never be
# Groups that no protocol mixes; of others the source must say that it keeps them apart.
ALWAYS_APART = ("patient",)


@rule("DAT245", severity=Status.WARN, subject=Subject.RUN)
def groups_mixed(record: Record) -> Iterator[Finding]:
    """Samples of the same patients are in training and in an evaluation.

    Why it matters: pictures of one patient are nearly the same; the score says how well patients are recognised, not
    how well new ones are judged.
    Found by: a field of the datasets that says which patient each sample is of, compared between the splits: a
    twentieth of the patients of an evaluation and more are trained on. Subjects, speakers, users and the like count
    when half of them are and the source says that it splits by them. The field may be an attribute, a column, or an
    entry of each item.
    Not an error: groups that are what is to be recognised; numbers that each split counts anew; a protocol that tests
    subjects on later sessions of their own.

    Wrong: `train_test_split(range(len(images)))` with several images of each patient
    Right: `GroupShuffleSplit().split(images, groups=patients)`
    """
    probe = data_probe(record)
    parts = probe.get("groups")
    if not isinstance(parts, list):
        raise NotSeenError("the fields of the datasets were not compared")
    overlaps = overlaps_of(probe)
    trained_on = [place_of(v) for v, made in zip(probe["evals"], overlaps, strict=False) if _is_of_training(made)]
    for view, made in measured_evals(probe, parts):
        apart = made["stem"] in ALWAYS_APART or _splits_by(record, made["stem"])
        few = made["stem"] in ALWAYS_APART and made["share"] >= FEW_MIXED and made["common"] >= FEWEST
        if (few or (apart and made["share"] >= MIXED)) and place_of(view) not in trained_on:
            yield Finding(
                measured=f"{made['common']} of {made['n']} {made['stem']}s of the evaluation are in training too "
                f"({made['field']})",
                expected="0",
                message=f"samples of one {made['stem']} are in training and in the evaluation",
                location=place_of(view),
                hint=f"split the {made['stem']}s, not the samples",
            )
            return


def _is_of_training(made: dict[str, object]) -> bool:
    share = made.get("share", 0.0)
    return isinstance(share, int | float) and share >= CONTAINED


def _splits_by(record: Record, stem: str) -> bool:
    """Whether the source says that it keeps groups apart."""
    said = re.compile(
        rf"split\w*_by_{stem}|by_{stem}\w*split|{stem}[-_ ]?(wise|disjoint|independent)[-_ ]split"
        rf"|Group(KFold|ShuffleSplit)|LeaveOneGroupOut",
        re.IGNORECASE,
    )
    return any(said.search(text) for path, text in record.sources.items() if path.endswith(".py"))
