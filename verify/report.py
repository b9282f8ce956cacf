"""What the verifier says: findings of a rule, checks of a run, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Status(StrEnum):
    """The outcome of one check. `ERROR` means that it could not be carried out, which is never a pass."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule yields.

    Args:
        status: overrides the severity of the rule; `PASS` and `SKIP` are findings too, and carry their evidence.
        measured: what was seen, with units.
        expected: what was asked for.
        message: one sentence, for a person who has never read the rule.
        hint: how to fix it.
        location: `file:line`, or the name of a module or parameter.
    """

    status: Status | None = None
    measured: str = ""
    expected: str = ""
    message: str = ""
    hint: str = ""
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of a report: a rule, applied. The fields are those of the JSON contract."""

    code: str
    name: str
    status: Status
    measured: str = ""
    expected: str = ""
    message: str = ""
    hint: str = ""
    location: str = ""
    seconds: float = 0.0

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Check:
        """Read back what `asdict` wrote."""
        return cls(**{**record, "status": Status(record["status"])})


@dataclass(kw_only=True)
class Report:
    """Everything that one run of the verifier found out."""

    target: str
    device: str = "cpu"
    torch: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether something was checked, nothing failed, and nothing that should be checked could not be."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0: all held. 1: something failed. 2: something could not be checked (and nothing failed)."""
        statuses = {check.status for check in self.checks}
        if Status.FAIL in statuses:
            return 1
        if Status.ERROR in statuses or not statuses & {Status.PASS, Status.WARN}:
            return 2
        return 0

    def of(self, *statuses: Status) -> list[Check]:
        """The checks that ended in one of `statuses`, in order."""
        return [check for check in self.checks if check.status in statuses]

    def to_json(self) -> dict[str, Any]:
        """The report as the documented JSON object (`schema` 1)."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "target": self.target,
            "device": self.device,
            "torch": self.torch,
            "seconds": round(self.seconds, 3),
            "checks": [asdict(check) for check in self.checks],
        }


def plural(count: int, noun: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortlist(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
