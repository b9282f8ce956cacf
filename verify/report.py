"""What the verifier says: findings of a rule, checks of a run, and the report that holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = 1
# A folder may have spaces in its name; a file that code is written in hardly ever does, but text before it would.
SOURCE_LINE = re.compile(
    r"(?P<file>(?:[A-Za-z]:)?(?:[^:,;()\n]*[/\\])?[^\s:,;()/\\]+\.[A-Za-z]\w*):(?P<line>[1-9]\d*)\b"
)
LATER_SOURCE_LINE = re.compile(r"(?P<file>[^\s:,;()]+\.[A-Za-z]\w*):(?P<line>[1-9]\d*)\b")


class Status(StrEnum):
    """The outcome of one check.

    `ERROR` means that it could not be carried out, which is never a pass. `NOTE` is for information: the rule held, and
    has something to tell.
    """

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    NOTE = "note"
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
class Table:
    """Numbers that belong beside the checks: a summary of a model, two structures side by side.

    Args:
        title: what it shows.
        columns: heading of each column.
        rows: of text, as many in each row as there are columns.
        notes: sentences below the table: conventions, totals.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


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

    @property
    def source_line(self) -> tuple[str, int] | None:
        """File and line that `location` names, with or without text around them; None for a module or a parameter."""
        match = SOURCE_LINE.match(self.location.strip()) or LATER_SOURCE_LINE.search(self.location)
        return (match["file"], int(match["line"])) if match else None

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
    tables: list[Table] = field(default_factory=list)

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
        if Status.ERROR in statuses or not statuses & {Status.PASS, Status.WARN, Status.NOTE}:
            return 2
        return 0

    def of(self, *statuses: Status) -> list[Check]:
        """The checks that ended in one of `statuses`, in order."""
        return [check for check in self.checks if check.status in statuses]

    def to_json(self) -> dict[str, Any]:
        """The report as the documented JSON object (`schema` 1), in which a note is a pass with a message.

        `tables` is there only if there are any.
        """
        contract = {
            "schema": SCHEMA,
            "passed": self.passed,
            "target": self.target,
            "device": self.device,
            "torch": self.torch,
            "seconds": round(self.seconds, 3),
            "checks": [_contract(check) for check in self.checks],
        }
        return contract | ({"tables": [asdict(table) for table in self.tables]} if self.tables else {})

    def assert_passed(self) -> None:
        """For a test: everything held.

        Raises:
            AssertionError: with the text of every check that failed or could not be carried out.
        """
        __tracebackhide__ = True
        if not self.passed:
            self._complain(self.of(Status.FAIL, Status.ERROR), "nothing was checked")

    def assert_held(self, *codes: str) -> None:
        """For a test: these rules were checked and have nothing to object to, not even a warning.

        Args:
            codes: codes of rules such as `MOD104`, or families such as `MOD`.

        Raises:
            AssertionError: with the text of each of them that did not hold, was skipped, or was never checked.
        """
        __tracebackhide__ = True
        for code in codes:
            checks = [check for check in self.checks if check.code.startswith(code)]
            bad = [check for check in checks if check.status not in (Status.PASS, Status.NOTE)]
            if bad or not checks:
                self._complain(bad or self.of(Status.ERROR), f"{code} was not checked")

    def _complain(self, checks: list[Check], otherwise: str) -> None:
        from verify.render import check_text

        __tracebackhide__ = True
        raise AssertionError(
            "\n".join([f"kit verify {self.target}:", *map(check_text, checks)] if checks else [otherwise])
        )


def _contract(check: Check) -> dict[str, Any]:
    status = Status.PASS if check.status is Status.NOTE else check.status
    return {**asdict(check), "status": status}


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 error`, `2 errors`; `many` is the plural where it does not just end in s."""
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def without_colours(text: str) -> str:
    """What a terminal was to show, without the codes of its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def shortlist(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
