"""Annotations for GitHub Actions: workflow commands that show each finding at its line of a pull request.

The commands and their escapes are those of https://docs.github.com/en/actions (workflow commands).
"""

from __future__ import annotations

import os
from pathlib import Path

from verify.render import duration, plain_verdict
from verify.report import Check, Report, Status

COMMANDS = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning", Status.NOTE: "notice"}


def render_github(report: Report) -> str:
    """A workflow command for each finding, the worst first, and the verdict as a plain last line.

    A file is named relative to the root of the repository when the kit runs inside a workflow's checkout.
    """
    lines = [_command(check) for status in COMMANDS for check in report.of(status)]
    lines.append(f"kit: {report.target}: {plain_verdict(report)} in {duration(report.seconds)} on {report.device}")
    return "\n".join(_one_line(line) for line in lines)


def _command(check: Check) -> str:
    properties = {}
    place = check.source_line
    if place:
        properties = {"file": repository_path(place[0]), "line": str(place[1])}
    properties["title"] = f"{check.code} {check.name}"
    written = ",".join(f"{key}={_escape_property(value)}" for key, value in properties.items())
    return f"::{COMMANDS[check.status]} {written}::{_escape(annotation(check))}"


def annotation(check: Check) -> str:
    """What an annotation says below its title: message, place, measured and expected, fix. At least one line."""
    facts = [f"measured {check.measured}"] if check.measured else []
    facts += [f"expected {check.expected}"] if check.expected else []
    place = f"at {check.location}" if check.location and not check.source_line else ""
    fix = f"fix: {check.hint}" if check.hint else ""
    return "\n".join(part for part in (check.message, place, ", ".join(facts), fix) if part) or check.name


def repository_path(file: str) -> str:
    """`file` with forward slashes; relative to the checkout of a workflow, if it lies in there."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    path = Path(file)
    if workspace and (path.is_absolute() or path.exists()):
        try:
            path = path.resolve().relative_to(Path(workspace).resolve())
        except (ValueError, OSError):
            path = Path(file)
    return path.as_posix().removeprefix("./")


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")


def _one_line(text: str) -> str:
    """A target or a name may hold a line break, after which anything would be read as a command of its own."""
    return " ".join(text.splitlines())
