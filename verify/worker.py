"""The isolated child process: builds the model, applies the rules, writes a JSON line for everything that happens.

It is started as `python -P -c "...; from verify.worker import main; main()" REQUEST EVENTS`, so that no file of the
user's can shadow a module of ours before it is imported. Events go to a file and are flushed line by line: whatever the
user's code does to this process, what was found out before stays known.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from verify.faults import ModelExitedError, ModelRaisedError, UnavailableError
from verify.outputs import part_of_model
from verify.probe import ModelProbe
from verify.report import Check, Finding, Status
from verify.rules import SHAPE_RULES, Rule, rules_named
from verify.spec import ExpectSpec, Spec
from verify.summary import summary_table
from verify.targets import TargetError, resolve


class CountingOutput(io.TextIOBase):
    """Takes the place of the standard output: counts lines and drops all but the start of the first."""

    KEPT = 60

    def __init__(self) -> None:
        self.lines = 0
        self.start = ""

    def write(self, text: str) -> int:
        """Count the lines in `text`."""
        if not self.lines:
            self.start = (self.start + text)[: self.KEPT]
        self.lines += text.count("\n")
        return len(text)

    def summary(self) -> tuple[int, str]:
        """The number of lines so far, and how the first one begins."""
        return self.lines, self.start.partition("\n")[0]


def main() -> None:
    """Carry out the request that the command line holds."""
    request = json.loads(sys.argv[1])
    with Path(sys.argv[2]).open("a", encoding="utf-8") as events:
        output = CountingOutput()
        sys.argv[1:] = []
        sys.stdout = output
        try:
            _run(request, events, output)
        except (TargetError, ModelExitedError) as error:
            _emit(events, event="unusable", message=str(error))


def _emit(events: TextIO, **event: Any) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def _run(request: dict[str, Any], events: TextIO, output: CountingOutput) -> None:
    started = time.monotonic()
    device = _device(request["device"], request["require_gpu"])
    _emit(events, event="begin", device=str(device), torch=torch.__version__)
    expect = request["spec"]["expect"]
    spec = Spec(**{**request["spec"], "training": None, "expect": ExpectSpec(**expect) if expect else None})
    target = resolve(spec.model, spec.kwargs, spec.num_classes, Path(request["folder"]))
    if spec.output_size:
        target = part_of_model(target, spec.output_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rules = rules_named(request["rules"])
    probe = ModelProbe(target, spec, device, request["training_seconds"], output.summary, threads)
    probe.shapes_only = {rule.code for rule in rules} <= set(SHAPE_RULES)
    if spec.like:
        probe.reference = resolve(spec.like, spec.like_kwargs, _classes(probe), Path(request["folder"]))
    _emit(events, event="target", name=target.name)
    probe.settle_device()
    reported: dict[str, str] = {}
    if request["summary"]:
        _emit(events, event="table", table=asdict(summary_table(probe)))
    for rule in rules:
        if time.monotonic() - started > request["seconds"]:
            reason = f"not begun: {request['seconds']:g} s were over (profile {request['profile']}); --full allows more"
            late = Check(code=rule.code, name=rule.name, status=Status.SKIP, message=reason)
            _emit(events, event="check", check=asdict(late))
            continue
        _emit(events, event="start", code=rule.code, name=rule.name)
        for check in apply(rule, probe, reported):
            _emit(events, event="check", check=asdict(check))
    for table in probe.tables:
        _emit(events, event="table", table=asdict(table))
    _emit(events, event="done", notes=list(dict.fromkeys(probe.notes)))


def _classes(probe: ModelProbe) -> int | None:
    """As many logits as the model has, for the reference; None where there is no telling, so that it keeps its own."""
    with suppress(ModelRaisedError, UnavailableError):
        return probe.num_classes
    return None


def _device(wanted: str, require_gpu: bool) -> torch.device:
    available = wanted != "cpu" and torch.cuda.is_available()
    if require_gpu and not available:
        raise TargetError("a GPU is required (--require-gpu) and PyTorch sees none" + _on_cpu(wanted))
    if wanted == "cuda" and not available:
        raise TargetError("--device cuda, but PyTorch sees no GPU here; use --device auto or cpu")
    return torch.device("cuda" if available else "cpu")


def _on_cpu(wanted: str) -> str:
    return " because --device cpu was asked for" if wanted == "cpu" else ""


def apply(rule: Rule, probe: ModelProbe, reported: dict[str, str]) -> Iterator[Check]:
    """The checks that a rule makes of a probe.

    Args:
        reported: problem -> code of the rule that reported it; one mistake of the model stands in the way of many
        rules and is reported once.
    """
    start = time.monotonic()
    try:
        findings = _findings(rule, probe)
    except UnavailableError as error:
        # What was asked for and could not be checked is never a pass.
        findings = [Finding(status=Status.ERROR if rule.asked else Status.SKIP, message=str(error))]
    except ModelRaisedError as error:
        findings = [_raised(error, reported, rule.code)]
    except ModelExitedError as error:
        findings = [_once(Finding(status=Status.ERROR, message=str(error)), "sys.exit", reported, rule.code)]
    except (TargetError, KeyboardInterrupt):
        raise
    except MemoryError:
        findings = [Finding(status=Status.ERROR, message="out of memory")]
    except Exception as error:
        place = _place_in_verifier(error)
        message = f"internal error in the verifier at {place}: {type(error).__name__}: {error}"
        findings = [Finding(status=Status.ERROR, message=message, hint="please report this with the model")]
    seconds = time.monotonic() - start
    for finding in findings:
        reported.setdefault(f"{finding.measured} {finding.location}", rule.code)
        yield Check(
            code=rule.code,
            name=rule.name,
            **{**asdict(finding), "status": finding.status or rule.severity},
            seconds=round(seconds / len(findings), 4),
        )


def _findings(rule: Rule, probe: ModelProbe) -> list[Finding]:
    if not rule.is_asked(probe.spec):
        return [Finding(status=Status.SKIP, message=f"nothing was asked: {rule.asked}")]
    return list(rule.function(probe)) or [Finding(status=Status.PASS)]


def _raised(error: ModelRaisedError, reported: dict[str, str], code: str) -> Finding:
    out_of_memory = (
        "OutOfMemoryError" in error.summary or "allocate memory" in error.summary or "MemoryError" in error.summary
    )
    finding = Finding(
        status=Status.ERROR if out_of_memory else Status.FAIL,
        measured=error.summary,
        message=f"the model raises {error.phase}",
        location=error.location,
    )
    if error.rule != code:
        return Finding(status=Status.SKIP, message=f"stopped by what {error.rule} reports")
    return _once(finding, f"{error.summary} {error.location}", reported, code)


def _once(finding: Finding, problem: str, reported: dict[str, str], code: str) -> Finding:
    if problem in reported:
        return Finding(status=Status.SKIP, message=f"stopped by what {reported[problem]} reports")
    reported[problem] = code
    return finding


def _place_in_verifier(error: BaseException) -> str:
    place = ""
    with suppress(AttributeError):
        trace = error.__traceback__
        while trace is not None:
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
    return place
