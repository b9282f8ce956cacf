"""Renderers of a report: text for people, JSON for programs, JUnit XML for CI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from textwrap import shorten, wrap
from xml.etree import ElementTree

from verify.report import Check, Report, Status, Table, plural, shortlist

INDENT = " " * 6
ORDER = (Status.FAIL, Status.ERROR, Status.WARN)
QUOTED = ("MOD102", "MOD103")
STYLE = {Status.FAIL: "bold red", Status.ERROR: "bold magenta", Status.WARN: "yellow", Status.NOTE: "dim"}
LABEL = {Status.FAIL: "FAIL", Status.ERROR: "ERROR", Status.WARN: "WARN", Status.NOTE: "note"}

# What held and what was skipped must not push the findings off the screen.
FILE_WIDTH = 120  # stands for the terminal's width in a file
MOST_LINES_HELD = 14  # as many as the rules about a model fill; more of them are summed up
MEASURED_LINES, SILENT_LINES = 3, 2
FACT_LENGTH = 90
MOST_REASONS = 6
MOST_CODES = 8


def render_json(report: Report) -> str:
    """The documented JSON object."""
    return json.dumps(report.to_json(), indent=2)


def render_junit(report: Report) -> str:
    """JUnit XML, one test case a check; a warning or a note is a passed test with its text as output."""
    failed, errors, skipped = (len(report.of(s)) for s in (Status.FAIL, Status.ERROR, Status.SKIP))
    counts = {"tests": len(report.checks), "failures": failed, "errors": errors, "skipped": skipped}
    attributes = {
        "name": _printable(f"kit: {report.target}"),
        **{key: str(value) for key, value in counts.items()},
        "time": f"{report.seconds:.3f}",
    }
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for check in report.checks:
        _add_case(suite, check, report.target)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


ELEMENTS = {
    Status.FAIL: "failure",
    Status.ERROR: "error",
    Status.SKIP: "skipped",
    Status.WARN: "system-out",
    Status.NOTE: "system-out",
}


def _add_case(suite: ElementTree.Element, check: Check, target: str) -> None:
    name = f"{check.code} {check.name}"
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": _printable(target), "name": name, "time": f"{check.seconds:.3f}"}
    )
    text = _printable("\n".join([describe(check), *([f"fix: {check.hint}"] if check.hint else [])]))
    element = ELEMENTS.get(check.status)
    if element is None:
        return
    child = ElementTree.SubElement(case, element)
    if element != "system-out":
        child.set("message", _printable(check.message or check.measured))
    if element != "skipped":
        child.text = text


def _printable(text: str) -> str:
    """XML 1.0 has no way to write most control characters, nor half of a surrogate pair."""
    return "".join(
        c for c in text if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c < "\ue000")
    )


def describe(check: Check) -> str:
    """One paragraph: what, where, measured against expected."""
    facts = check.measured + (f" (expected {check.expected})" if check.measured and check.expected else "")
    return ": ".join(part for part in (check.location, check.message, facts) if part)


def check_text(check: Check) -> str:
    """A check as the text report shows it, without colours: status, code, name and place, then what is known."""
    label = LABEL.get(check.status, check.status.value)
    head = "  ".join(part for part in (f"{label:5} {check.code} {check.name}", check.location) if part)
    return "\n".join([head, *(INDENT + line for text in _body(check) for line in text.splitlines())])


def render_text(report: Report, title: str, write: Callable[[str], None], width: int | None = None) -> None:
    """The verdict as a person reads it: problems first, then what held, what was not checked, and notes.

    Args:
        title: the command, for the first line.
        write: prints a line of rich markup.
        width: characters in a line of the terminal; None for a file, where sentences stay whole.
    """
    from rich.markup import escape

    def write_indented(text: str, style: str = "") -> None:
        for line in wrap(text, width - len(INDENT)) if width else [text]:
            write(INDENT + (f"[{style}]{escape(line)}[/]" if style else escape(line)))

    def write_check(check: Check, body_style: str = "") -> None:
        where = f"  {escape(check.location)}" if check.location else ""
        name = (
            f"[dim]{check.code} {check.name}{where}[/]" if body_style else f"[bold]{check.code}[/] {check.name}{where}"
        )
        write(f"[{STYLE[check.status]}]{LABEL[check.status]:5}[/] {name}")
        for line in _body(check):
            write_indented(line, body_style)

    for line in _headline(report, title, width):
        write(line)
    for status in ORDER:
        for check in report.of(status):
            write_check(check)
    passed, skipped = report.of(Status.PASS), report.of(Status.SKIP)
    if passed:
        write(f"[green]ok[/]    {plural(len(passed), 'check')}")
        for line in _held(passed, (width or FILE_WIDTH) - len(INDENT)):
            write_indented(line)
    if skipped:
        write(f"[dim]skip[/]  {plural(len(skipped), 'check')}")
        for line in _reasons(skipped):
            write_indented(line, "dim")
    for check in report.of(Status.NOTE):
        write_check(check, "dim")
    for note in report.notes:
        write(f"[dim]note[/]  {escape(note)}")
    for table in report.tables:
        for line in table_text(table).splitlines():
            write(escape(line))


def table_text(table: Table) -> str:
    """A table in a fixed-width font: an empty line, its title, aligned columns, notes. Numbers stand to the right."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]

    def aligned(row: list[str]) -> str:
        cells = (
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        return "  ".join(cells).rstrip()

    numeric = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.columns))]
    head = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(table.columns, widths, numeric, strict=True))
    return "\n".join(["", table.title, "  ".join(head).rstrip(), *map(aligned, table.rows), *table.notes])


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit()


def _headline(report: Report, title: str, width: int | None) -> list[str]:
    """Command and verdict: one line where they fit into it, else the command is shortened or stands alone."""
    from rich.markup import escape

    ending = f" in {duration(report.seconds)} on {report.device}"
    answer = verdict(report) + escape(ending)
    if width and len(title) + 3 + len(plain_verdict(report) + ending) > width:
        return [f"[bold]{escape(line)}[/]" for line in wrap(title, width)] + [answer]
    return [f"[bold]{escape(title)}[/]   {answer}"]


def duration(seconds: float) -> str:
    """`3.2 s`, `41 s`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _body(check: Check) -> list[str]:
    facts = f"measured {check.measured}" if check.measured else ""
    facts += f"{', ' if facts else ''}expected {check.expected}" if check.expected else ""
    lines = [line for line in (check.message, facts) if line]
    return [*lines, *([f"fix: {check.hint}"] if check.hint else [])]


def _held(passed: list[Check], width: int) -> list[str]:
    """A line for each measured value and one for the rest; a summary of a few lines where that would be too long."""
    lines = []
    for check in passed:
        if check.measured:
            expected = f"  (expected {check.expected})" if check.expected else ""
            lines.append(f"{check.code} {check.name}: {check.measured}{expected}")
    silent = [check.name for check in passed if not check.measured]
    if silent:
        lines.append(f"no sign of {', '.join(silent)}")
    if sum(len(wrap(line, width)) for line in lines) <= MOST_LINES_HELD:
        return lines
    room = width - len(f"; {len(passed)} more values")
    facts = [
        shorten(f"{check.name}: {check.measured}", min(room, FACT_LENGTH), placeholder=" ...")
        for check in _telling(passed)
    ]
    measured, left_out = _packed(facts, "; ", room, MEASURED_LINES)
    quiet, unnamed = _packed(silent, ", ", width - len(f"no sign of  and {len(silent)} more"), SILENT_LINES)
    if left_out:
        measured[-1] += f"; {plural(left_out, 'more value')}"
    if quiet:
        quiet[0] = f"no sign of {quiet[0]}"
        quiet[-1] += f" and {unnamed} more" if unnamed else ""
    return measured + quiet


def _telling(passed: list[Check]) -> Iterable[Check]:
    """Checks with a measured value: what people quote, then one of each family after the other, and those with real
    numbers in them first."""
    quoted = [check for check in passed if check.code in QUOTED and check.measured]
    families: dict[str, list[Check]] = {}
    for check in passed:
        if check.measured and check not in quoted:
            families.setdefault(check.code[:3], []).append(check)
    for checks in families.values():
        checks.sort(key=lambda check: len(check.measured) < 4 or not any(map(str.isdigit, check.measured)))
    return (check for check in chain(quoted, *zip_longest(*families.values())) if check is not None)


def _packed(items: list[str], separator: str, width: int, most: int) -> tuple[list[str], int]:
    """At most `most` lines of items, which are never broken, and how many found no room."""
    lines: list[str] = []
    for number, item in enumerate(items):
        if lines and len(lines[-1]) + len(separator) + len(item) <= width:
            lines[-1] += separator + item
        elif len(lines) < most:
            lines = [*lines[:-1], lines[-1] + separator.rstrip(), item] if lines else [item]
        else:
            return lines, len(items) - number
    return lines, 0


def _reasons(skipped: list[Check]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for check in skipped:
        by_reason.setdefault(check.message, []).append(check.code)
    shown = list(by_reason)
    if len(shown) > MOST_REASONS:
        shown = sorted(shown, key=lambda reason: -len(by_reason[reason]))[: MOST_REASONS - 1]
    lines = [f"{shortlist(by_reason[reason], MOST_CODES)}: {reason}" for reason in shown]
    rest = [code for reason, codes in by_reason.items() if reason not in shown for code in codes]
    if rest:
        others = plural(len(by_reason) - len(shown), "other reason")
        lines.append(f"{shortlist(rest)}: {others} (see --format json)")
    return lines


def verdict(report: Report) -> str:
    """`2 errors, 1 warning`, in colour."""
    return ", ".join(f"[{style}]{text}[/]" for text, style in _verdict(report))


def plain_verdict(report: Report) -> str:
    """`2 errors, 1 warning`."""
    return ", ".join(text for text, _ in _verdict(report))


def _verdict(report: Report) -> list[tuple[str, str]]:
    failed, errors, warned = (len(report.of(status)) for status in ORDER)
    parts = []
    if failed:
        parts.append((plural(failed, "error"), "bold red"))
    if errors:
        parts.append((f"{plural(errors, 'check')} could not be carried out", "bold magenta"))
    if warned:
        parts.append((plural(warned, "warning"), "yellow"))
    if not failed and not errors:
        parts.insert(0, ("passed", "bold green") if report.passed else ("nothing was checked", "bold magenta"))
    return parts
