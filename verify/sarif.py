"""SARIF 2.1.0, the format of code scanning: findings, the pages of their rules, and how the verifier ended.

Reference: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from verify.github import annotation, repository_path
from verify.report import Check, Report, Status
from verify.rules import Rule, all_rules

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
DISTRIBUTION = "claude-pytorch-kit"
LEVELS = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning", Status.NOTE: "note"}
FINDINGS = (Status.FAIL, Status.WARN, Status.NOTE)
# Code scanning computes `primaryLocationLineHash` itself and complains about any other value, so ours has its own name.
FINGERPRINT = "kitFinding/v1"
PYTHON_FILE = re.compile(r"[^\s:'\"=]+\.py\b")


def render_sarif(report: Report) -> str:
    """A SARIF log with one run.

    Failures, warnings and notes are results; what could not be carried out is a notification; what was skipped is not
    in the log. A finding without a line of its own is attached to the file that was checked, because code scanning
    rejects a result without a file; its module or parameter becomes the logical location.
    """
    codes = list(dict.fromkeys(check.code for check in report.checks))
    index = {code: number for number, code in enumerate(codes)}
    names = {check.code: check.name for check in report.checks}
    catalogue = all_rules()
    driver = {
        "name": "kit",
        **_version(),
        "rules": [_descriptor(code, names[code], catalogue.get(code)) for code in codes],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(report, index)],
        "results": _results(report, index),
        "properties": {
            "target": report.target,
            "device": report.device,
            "torch": report.torch,
            "seconds": round(report.seconds, 3),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _version() -> dict[str, str]:
    try:
        return {"version": version(DISTRIBUTION)}
    except PackageNotFoundError:
        return {}


def _descriptor(code: str, name: str, rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {"id": code, "name": name}
    why = re.search(r"Why it matters: (.*?)(?=\n[A-Z][\w ]*:|\n\n|\Z)", rule.page, re.DOTALL)
    return {
        "id": code,
        "name": name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": " ".join((why[1] if why else rule.title).split())},
        "help": {"text": rule.page or rule.title, "markdown": _markdown(rule)},
        "defaultConfiguration": {"level": LEVELS.get(rule.severity, "warning")},
    }


def _markdown(rule: Rule) -> str:
    """The page with its headings in bold, each beginning a paragraph."""
    page = re.sub(r"^([A-Z][A-Za-z ]{2,20}):", r"\n**\1:**", rule.page, flags=re.MULTILINE)
    return f"{rule.title}.\n\n{page.strip()}"


def _invocation(report: Report, index: dict[str, int]) -> dict[str, Any]:
    errors = report.of(Status.ERROR)
    notifications = [
        {
            "level": "error",
            "message": {"text": annotation(check)},
            "associatedRule": {"id": check.code, "index": index[check.code]},
            **_locations(check, report.target),
        }
        for check in errors
    ]
    notifications += [{"level": "note", "message": {"text": note}} for note in report.notes if note]
    return {
        "executionSuccessful": not errors and report.exit_code != 2,
        "exitCode": report.exit_code,
        "toolExecutionNotifications": notifications,
    }


def _results(report: Report, index: dict[str, int]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    results = []
    for check in report.of(*FINDINGS):
        fingerprint = _fingerprint(check)
        seen[fingerprint] += 1
        results.append(
            {
                "ruleId": check.code,
                "ruleIndex": index[check.code],
                "level": LEVELS[check.status],
                "message": {"text": annotation(check)},
                **_locations(check, report.target),
                "partialFingerprints": {FINGERPRINT: f"{fingerprint}:{seen[fingerprint]}"},
            }
        )
    return results


def _fingerprint(check: Check) -> str:
    """Of what a finding is about: neither its line nor a number that was measured is part of it."""
    place = check.source_line
    where = repository_path(place[0]) if place else check.location
    about = re.sub(r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?", "#", check.message or check.measured)
    return hashlib.sha256("\n".join([check.code, where, about]).encode("utf-8", "replace")).hexdigest()[:32]


def _locations(check: Check, target: str) -> dict[str, Any]:
    place = check.source_line or _file_of(target)
    location: dict[str, Any] = {}
    if place:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": _uri(repository_path(place[0]))},
            "region": {"startLine": place[1]},
        }
    if check.location and not check.source_line:
        location["logicalLocations"] = [{"fullyQualifiedName": check.location}]
    return {"locations": [location]} if location else {}


def _file_of(target: str) -> tuple[str, int] | None:
    """The first line of the file in a target such as `net.py:Net` or `python train.py --lr 1`."""
    match = PYTHON_FILE.search(target)
    return (match[0], 1) if match else None


def _uri(path: str) -> str:
    """A relative reference, or a file address of an absolute path."""
    if PureWindowsPath(path).drive:
        return PureWindowsPath(path).as_uri()
    return PurePosixPath(path).as_uri() if path.startswith("/") else quote(path)
