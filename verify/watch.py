"""Judges the record of a watched run: every rule about runs, applied, and what the probes of the live model found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

from verify.report import Check, Finding, Report, Status, plural
from verify.rules import Rule, Subject, select_rules
from verify.spec import TrainingSpec
from verify.trace.record import NotSeenError, Record

NO_TIME = ("out of time", "no time was left for it")  # as the probes say it
UNFINISHED = (Status.FAIL, Status.ERROR)
CHECK_FIELDS = {field.name for field in fields(Check)}


def judge(record: Record, select: list[str] | None = None, ignore: list[str] | None = None) -> Report:
    """Apply the rules to a record.

    Args:
        select: prefixes of rule codes to check; all when empty.
        ignore: prefixes of rule codes to leave out.

    Raises:
        ValueError: `select` or `ignore` match no rule.
    """
    started = time.monotonic()
    rules = _chosen(select or [], ignore or [])
    others = [rule for rule in _of_the_run_itself(ignore or []) if rule not in rules]
    report = Report(target=record.command, device=record.device, torch=record.torch, notes=record.notes)
    for rule in rules:
        if rule.subject is Subject.RUN:
            report.checks += list(_apply(rule, record))
    # Whatever was selected: what could not run cannot have passed.
    report.checks += [check for rule in others for check in _apply(rule, record) if check.status in UNFINISHED]
    report.checks += _model_checks(record, rules)
    report.checks = _without_repeats(report.checks)
    late = sum(check.status is Status.SKIP and check.message in NO_TIME for check in report.checks)
    if late:
        report.notes = [*report.notes, f"{plural(late, 'check')} not made for lack of time; --full gives it more"]
    report.seconds = record.seconds or time.monotonic() - started
    return report


def _of_the_run_itself(ignore: list[str]) -> list[Rule]:
    """The rules about whether the script ran, to its end and long enough to be judged; none if all are ignored."""
    try:
        return select_rules(["RUN"], ignore, Subject.RUN)
    except ValueError:
        return []


def with_spec(record: Record, training: TrainingSpec | None) -> Record:
    """The record, with what a project's verify.yaml asks of it."""
    if training is None:
        return record
    asked = {key: value for key, value in asdict(training).items() if value is not None}
    return Record([*record.events, {"kind": "spec", "training": asked}])


def acceptance_checks(
    record: Record | None, training: TrainingSpec, select: list[str], ignore: list[str]
) -> list[Check]:
    """The checks of what verify.yaml asks of the training; skipped without a record."""
    rules = [rule for rule in _chosen(select, ignore) if rule.code.startswith("SPC")]
    if record is None:
        message = "needs a record: kit watch --record FILE -- python train.py, then kit verify --record FILE"
        return [Check(code=rule.code, name=rule.name, status=Status.SKIP, message=message) for rule in rules]
    asked = with_spec(record, training)
    return [check for rule in rules for check in _apply(rule, asked)]


def _chosen(select: list[str], ignore: list[str]) -> list[Rule]:
    found, problem = [], None
    for subject in (Subject.RUN, Subject.MODEL):
        try:
            found += select_rules(select, ignore, subject)
        except ValueError as error:
            problem = error
    if not found and problem:
        raise problem
    return found


def _apply(rule: Rule, record: Record) -> Iterator[Check]:
    start = time.monotonic()
    try:
        findings = list(dict.fromkeys(rule.function(record))) or [Finding(status=Status.PASS)]
    except NotSeenError as error:
        findings = [Finding(status=Status.SKIP, message=str(error))]
    except Exception as error:
        if record.is_old:
            reason = "the record was made by an earlier kit and does not hold what is needed; watch the run again"
            yield Check(code=rule.code, name=rule.name, status=Status.SKIP, message=reason)
            return
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        message = f"internal error in the verifier at {place}: {type(error).__name__}: {error}"
        findings = [Finding(status=Status.ERROR, message=message, hint="please report this with the record")]
    seconds = (time.monotonic() - start) / len(findings)
    for finding in findings:
        status = finding.status or rule.severity
        yield Check(code=rule.code, name=rule.name, **{**asdict(finding), "status": status}, seconds=round(seconds, 4))


def _model_checks(record: Record, rules: list[Rule]) -> list[Check]:
    """What the probes of the live model found; a skip for each rule when there were none."""
    wanted = {rule.code: rule for rule in rules if rule.subject is Subject.MODEL}
    if not wanted or record.training_failed:
        return []
    try:
        result = record.probe("model")
        reason = result.get("skipped", "")
    except NotSeenError as error:
        result, reason = {}, str(error)
    made = [
        Check.from_json({key: value for key, value in check.items() if key in CHECK_FIELDS})
        for check in result.get("checks", [])
        if check["code"] in wanted
    ]
    if _starts_from_weights(record):
        made = [_not_of_a_stem(check) if check.code in OF_STEMS else check for check in made]
    if made or not reason:
        return made
    if reason.startswith(OUR_ERRORS):
        first = next(iter(wanted.values()))
        message = f"internal error in the verifier, no model rule was checked: {reason}"
        return [Check(code=first.code, name=first.name, status=Status.ERROR, message=message)]
    return [
        Check(code=rule.code, name=rule.name, status=Status.SKIP, message=f"the live model: {reason}")
        for rule in wanted.values()
    ]


# What one does not change about a network whose weights are given.
OF_STEMS = {"MOD125", "MOD146"}


def _starts_from_weights(record: Record) -> bool:
    """Whether most tensors of the model that is trained were loaded before the first step."""
    tensors = len(record.parameters)
    return any(e["step"] == 0 and e["matched"] > tensors / 2 for e in record.of("weights_loaded"))


def _not_of_a_stem(check: Check) -> Check:
    message = "the weights were loaded, and their network is given"
    return Check(code=check.code, name=check.name, status=Status.SKIP, message=message)


def _without_repeats(checks: list[Check]) -> list[Check]:
    """One mistake, told once: what a more telling rule says already is left to it."""
    failed = {check.code for check in checks if check.status in (Status.FAIL, Status.WARN)}
    return [check for check in checks if not _is_told(check, failed)]


# What a probe of the live model cannot have met in the user's code: it imports nothing of his.
OUR_ERRORS = ("ImportError", "ModuleNotFoundError", "SyntaxError")

# Consequences, which are not worth a finding of their own when their cause is reported.
TOLD_BY = {
    "TRN415": ("TRN", "OPT", "LOS", "GRD", "MOD", "DAT", "LRS", "AMP"),
    "GRD305": ("TRN404", "TRN405", "TRN406", "LOS905", "OPT703", "MOD", "TRN409"),
    "MOD108": ("OPT712", "TRN414", "TRN415"),
    "OPT712": ("TRN403", "TRN414", "LOS903", "LOS904"),
    "EVL610": ("EVL603", "EVL604"),
    "LOS905": ("TRN409", "TRN408", "OPT702", "OPT703"),
}


def _is_told(check: Check, failed: set[str]) -> bool:
    others = TOLD_BY.get(check.code, ())
    return (
        bool(others)
        and check.status in (Status.WARN, Status.FAIL)
        and any(code != check.code and code.startswith(others) for code in failed)
    )
