"""Renderers of a report: text for people, JSON for programs, JUnit XML for CI."""

from __future__ import annotations

import json
from collections.abc import Callable
from textwrap import wrap
from xml.etree import ElementTree

from verify.report import Check, Report, Status, plural

INDENT = " " * 6
ORDER = (Status.FAIL, Status.ERROR, Status.WARN)
STYLE = {Status.FAIL: "bold red", Status.ERROR: "bold magenta", Status.WARN: "yellow"}
LABEL = {Status.FAIL: "FAIL", Status.ERROR: "ERROR", Status.WARN: "WARN"}


def render_json(report: Report) -> str:
    """The documented JSON object."""
    return json.dumps(report.to_json(), indent=2)


def render_junit(report: Report) -> str:
    """JUnit XML, one test case a check; a warning is a passed test with its text as output."""
    failed, errors, skipped = (len(report.of(s)) for s in (Status.FAIL, Status.ERROR, Status.SKIP))
    counts = {"tests": len(report.checks), "failures": failed, "errors": errors, "skipped": skipped}
    attributes = {
        "name": f"kit verify {report.target}",
        **{key: str(value) for key, value in counts.items()},
        "time": f"{report.seconds:.3f}",
    }
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for check in report.checks:
        _add_case(suite, check, report.target)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _add_case(suite: ElementTree.Element, check: Check, target: str) -> None:
    name = f"{check.code} {check.name}"
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": _printable(target), "name": name, "time": f"{check.seconds:.3f}"}
    )
    text = _printable("\n".join([describe(check), *([f"fix: {check.hint}"] if check.hint else [])]))
    element = {Status.FAIL: "failure", Status.ERROR: "error", Status.SKIP: "skipped", Status.WARN: "system-out"}.get(
        check.status
    )
    if element is None:
        return
    child = ElementTree.SubElement(case, element)
    if element != "system-out":
        child.set("message", _printable(check.message or check.measured))
    if element != "skipped":
        child.text = text


def _printable(text: str) -> str:
    """XML 1.0 has no way to write most control characters."""
    return "".join(c for c in text if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff"))


def describe(check: Check) -> str:
    """One paragraph: what, where, measured against expected."""
    facts = check.measured + (f" (expected {check.expected})" if check.measured and check.expected else "")
    return ": ".join(part for part in (check.location, check.message, facts) if part)


def render_text(report: Report, title: str, write: Callable[[str], None], width: int | None = None) -> None:
    """The verdict as a person reads it: problems first, then what held, then what was not checked.

    Args:
        title: the command, for the first line.
        write: prints a line of rich markup.
        width: characters in a line of the terminal; None for a file, where lines stay whole.
    """
    from rich.markup import escape

    def write_indented(text: str, style: str = "") -> None:
        for line in wrap(text, width - len(INDENT)) if width else [text]:
            write(INDENT + (f"[{style}]{escape(line)}[/]" if style else escape(line)))

    write(f"[bold]{escape(title)}[/]   {verdict(report)} in {report.seconds:.1f} s on {escape(report.device)}")
    for status in ORDER:
        for check in report.of(status):
            where = f"  {escape(check.location)}" if check.location else ""
            write(f"[{STYLE[status]}]{LABEL[status]:5}[/] [bold]{check.code}[/] {check.name}{where}")
            for line in _body(check):
                write_indented(line)
    passed, skipped = report.of(Status.PASS), report.of(Status.SKIP)
    if passed:
        write(f"[green]ok[/]    {plural(len(passed), 'check')}")
        for line in _held(passed):
            write_indented(line)
    if skipped:
        write(f"[dim]skip[/]  {plural(len(skipped), 'check')}")
        for line in _reasons(skipped):
            write_indented(line, "dim")
    for note in report.notes:
        write(f"[dim]note[/]  {escape(note)}")


def _body(check: Check) -> list[str]:
    facts = f"measured {check.measured}" if check.measured else ""
    facts += f"{', ' if facts else ''}expected {check.expected}" if check.expected else ""
    lines = [line for line in (check.message, facts) if line]
    return [*lines, *([f"fix: {check.hint}"] if check.hint else [])]


def _held(passed: list[Check]) -> list[str]:
    lines = []
    for check in passed:
        if check.measured:
            expected = f"  (expected {check.expected})" if check.expected else ""
            lines.append(f"{check.code} {check.name}: {check.measured}{expected}")
    silent = [check.name for check in passed if not check.measured]
    return [*lines, f"no sign of {', '.join(silent)}"] if silent else lines


def _reasons(skipped: list[Check]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for check in skipped:
        by_reason.setdefault(check.message, []).append(check.code)
    return [f"{', '.join(codes)}: {reason}" for reason, codes in by_reason.items()]


def verdict(report: Report) -> str:
    """`2 errors, 1 warning`, in colour."""
    failed, errors, warned = (len(report.of(status)) for status in ORDER)
    parts = []
    if failed:
        parts.append(f"[bold red]{plural(failed, 'error')}[/]")
    if errors:
        parts.append(f"[bold magenta]{plural(errors, 'check')} could not be carried out[/]")
    if warned:
        parts.append(f"[yellow]{plural(warned, 'warning')}[/]")
    if not failed and not errors:
        parts.insert(0, "[bold green]passed[/]" if report.passed else "[bold magenta]nothing was checked[/]")
    return ", ".join(parts)
