"""A copy of the model that follows it without an optimizer, and the statistics of its batch norms."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge


def with_a_copy(*, evaluated: bool = True, stale: bool = True, follows: bool = True, own: bool = False) -> Run:
    """A run that evaluates a second model of the same shape, of which no twin was found."""
    run = Run()
    if evaluated:
        run.put("pass", lambda e: not e["training"], model=1)
    live = next(e for e in run.events if e["kind"] == "params")
    rows = [{**row, "opts": [1] if own else [], "graded": own, "changed": follows} for row in live["rows"]]
    statistics = [["norm.running_mean", not stale], ["norm.running_var", not stale]]
    run.put("params", buffers=[[name, True] for name, _ in statistics])
    return run.more("params", model=1, rows=rows, buffers=statistics, passes=12)


def test_stale_statistics_of_a_copy() -> None:
    assert judge(with_a_copy().record(), ["EMA043"]).of(Status.WARN)


@pytest.mark.parametrize(
    "run",
    [
        with_a_copy(stale=False),
        with_a_copy(evaluated=False),
        with_a_copy(follows=False),
        with_a_copy(own=True),
        with_a_copy().put("params", lambda e: e["model"] == 0, buffers=[]),
    ],
    ids=["renewed", "not-evaluated", "frozen", "trained", "no-statistics"],
)
def test_copies_with_good_statistics(run: Run) -> None:
    assert not judge(run.record(), ["EMA043"]).of(Status.WARN)
