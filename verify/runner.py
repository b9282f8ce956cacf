"""Runs the verifier in a process of its own, and turns whatever comes of it into a report.

The user's code may hang, exit, crash the interpreter, print megabytes or eat all memory; this process only reads the
events that the child wrote, and never imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verify.report import Check, Report, Status, Table
from verify.rules import Rule, planned_rules
from verify.spec import Spec

MEMORY_SHARE = 0.7
# Of the time-out, for memorising a batch.
TRAINING_SHARE = 0.25
POLL_SECONDS = 0.05
# Looking at the child's memory costs an import; a model that is checked within this time has not eaten it all.
FIRST_MEMORY_CHECK = 1.0
BUILD_RULE = "MOD101"
# Appended: the child imports the same `verify` as this process, installed or not, and nothing else from there first.
HERE = str(Path(__file__).resolve().parent.parent)
COMMAND = f"import sys; sys.path.append({HERE!r}); from verify.worker import main; main()"


@dataclass(frozen=True)
class Profile:
    """How much time a verdict may take.

    Args:
        name: how it is asked for.
        seconds: after which no further rule is begun; those that are left are skipped and say so.
        training: seconds for memorising a batch, before the other rules have had their turn.
        timeout: after which the process is killed.
        forgiving: whether a rule that is killed then counts as not run, instead of as a model that hangs.
    """

    name: str
    seconds: float
    training: float
    timeout: float
    forgiving: bool = False


QUICK = Profile("--quick", 6.0, 2.0, 9.0, forgiving=True)
DEFAULT = Profile("default", 60.0, 15.0, 120.0)
FULL = Profile("--full", 300.0, 75.0, 330.0)


def verify_model(
    spec: Spec,
    *,
    folder: Path | None = None,
    device: str = "auto",
    require_gpu: bool = False,
    profile: Profile = DEFAULT,
    timeout: float | None = None,
    on_rule: Callable[[str, str], None] = lambda code, name: None,
    summary: bool = False,
) -> Report:
    """Check a model against the catalogue, in an isolated process.

    Args:
        spec: the target and what it must be.
        folder: where files and modules of the target are looked up; the current one by default.
        device: `auto`, `cpu` or `cuda`.
        require_gpu: refuse to run without one.
        profile: how much time it may take.
        timeout: seconds after which the process is killed, if not the profile's.
        on_rule: called with code and name of each rule when it begins.
        summary: also make the table of parameters, work and memory.

    Raises:
        ValueError: `select` or `ignore` match no rule, or what is left has nothing to check.
    """
    folder = (folder or Path.cwd()).resolve()
    planned = planned_rules(spec)
    limit = timeout or profile.timeout
    request = {
        "spec": asdict(spec),
        "folder": str(folder),
        "device": device,
        "require_gpu": require_gpu,
        "seconds": profile.seconds,
        "training_seconds": min(profile.training, TRAINING_SHARE * limit),
        "profile": profile.name,
        "summary": summary,
        "rules": [(rule.function.__module__, rule.code) for rule in planned],
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kit-verify-") as scratch:
        events = Path(scratch) / "events.jsonl"
        stderr = Path(scratch) / "stderr.txt"
        ending = _run_child(json.dumps(request), events, stderr, folder, device, limit, on_rule)
        report = _read_report(spec.model, planned, events, ending, _tail(stderr))
        if profile.forgiving and ending == _too_late(limit):
            _forgive(report, limit)
    report.seconds = time.monotonic() - started
    return report


def _run_child(
    request: str,
    events: Path,
    stderr: Path,
    folder: Path,
    device: str,
    timeout: float,
    on_rule: Callable[[str, str], None],
) -> str:
    """Wait for the child; how it ended, as the end of a sentence, or nothing if it ended by itself with success."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    # Threads that spin while they wait make everything several times slower where another process wants the core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with stderr.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, request, str(events)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        return _watch(child, events, timeout, on_rule)
    finally:
        _end(child)


def _watch(child: subprocess.Popen, events: Path, timeout: float, on_rule: Callable[[str, str], None]) -> str:
    started = time.monotonic()
    limit, announced = 0, 0
    while True:
        try:
            code = child.wait(POLL_SECONDS)
            return "" if code == 0 else _describe_exit(code)
        except subprocess.TimeoutExpired:
            pass
        announced = _announce(events, announced, on_rule)
        elapsed = time.monotonic() - started
        if elapsed > timeout:
            return _too_late(timeout)
        if elapsed > FIRST_MEMORY_CHECK:
            limit = limit or _memory_limit()
            if _memory_of(child.pid) > limit:
                return f"used more than {limit / 2**30:.1f} GiB of memory"


def _too_late(timeout: float) -> str:
    return f"gave no answer within {timeout:g} s (--timeout)"


def _forgive(report: Report, limit: float) -> None:
    """A rule that did not come to an end was not run; a model that was only built may hang."""
    if not any(check.status is Status.PASS and check.code != BUILD_RULE for check in report.checks):
        return
    reason = f"not finished within {limit:g} s"
    report.checks = [
        replace(check, status=Status.SKIP, message=reason) if check.status is Status.ERROR else check
        for check in report.checks
    ]


def _announce(events: Path, already: int, on_rule: Callable[[str, str], None]) -> int:
    starts = [event for event in _read_events(events) if event["event"] == "start"]
    for event in starts[already:]:
        on_rule(event["code"], event["name"])
    return len(starts)


def _memory_limit() -> int:
    import psutil

    limit = psutil.virtual_memory().available
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return int(MEMORY_SHARE * limit)


def _memory_of(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
    except psutil.Error:
        return 0


def _end(child: subprocess.Popen) -> None:
    """End the child and everything it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _read_events(events: Path) -> list[dict[str, Any]]:
    if not events.exists():
        return []
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _tail(file: Path, size: int = 4000) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        lines = stream.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _read_report(name: str, planned: list[Rule], events: Path, ending: str, last_error: str) -> Report:
    report = Report(target=name)
    started = ""
    ended = False
    for event in _read_events(events):
        kind = event["event"]
        if kind == "begin":
            report.device, report.torch = event["device"], event["torch"]
        elif kind == "start":
            started = event["code"]
        elif kind == "check":
            report.checks.append(Check.from_json(event["check"]))
        elif kind == "table":
            report.tables.append(Table(**event["table"]))
        elif kind == "unusable":
            at = next((rule for rule in planned if rule.code == started), planned[0])
            report.checks.append(_error(at, event["message"]))
            ended = True
        elif kind == "done":
            report.notes, ended = event["notes"], True
    if not ended:
        _note_early_end(report, planned, started, ending, last_error)
    return report


def _error(rule: Rule, message: str) -> Check:
    return Check(code=rule.code, name=rule.name, status=Status.ERROR, message=message)


def _note_early_end(report: Report, planned: list[Rule], started: str, ending: str, last_error: str) -> None:
    """The child ended in the middle: an error for the rule it was at, and a skip for each that it did not reach."""
    codes = [rule.code for rule in planned]
    at = codes.index(started) if started else 0
    ending = ending or "ended the process (os._exit?)"
    detail = f": {last_error}" if last_error and "exit code" in ending else ""
    when = f"while {planned[at].name} was checked" if started else "while it was imported"
    report.checks.append(_error(planned[at], f"the model's code {ending} {when}{detail}"))
    for rule in planned[at + 1 :]:
        message = f"not reached, see {planned[at].code}"
        report.checks.append(Check(code=rule.code, name=rule.name, status=Status.SKIP, message=message))
