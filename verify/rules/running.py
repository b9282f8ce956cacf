"""RUN: whether the script runs at all, on any machine."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report import Finding, Status, plural, shortlist, without_colours
from verify.rules import Subject, rule
from verify.trace.record import Record

FEWEST_STEPS = 3


@rule("RUN071", subject=Subject.RUN)
def script_crashed(record: Record) -> Iterator[Finding]:
    """The script ends with an error.

    Why it matters: whatever comes after is never reached. A run that dies on its last, smaller batch dies after hours.
    Found by: the exception that ends the process, or its exit code. A crash before the first training step is reported
    as something that could not be checked.
    Not an error: exit code 0, or a run that was ended by the watcher.
    """
    run, crashes = record.run, record.of("crash")
    if run["code"] == 0 or record.of("ended") or record.of("input"):
        return
    if crashes and crashes[0]["error"] in ("ModuleNotFoundError",):
        return
    if record.of("fast"):
        yield Finding(status=Status.SKIP, message="the script failed while only its schedule was carried on")
        return
    status = Status.FAIL if record.steps and not run["timed_out"] else Status.ERROR
    if crashes and crashes[0]["error"] == "AssertionError" and _is_cut(record):
        yield Finding(
            status=Status.ERROR,
            measured=f"AssertionError: {crashes[0]['message']}",
            message="a check of the script's own fails, which may come of epochs that are cut short",
            location=crashes[0]["loc"],
            hint="--max-train-batches and --max-val-batches allow whole epochs",
        )
        return
    if run["timed_out"]:
        yield Finding(
            status=Status.SKIP if record.steps else Status.ERROR,
            message="the script was still running when the time for watching was up",
            hint="--timeout gives it longer; --max-epochs makes it shorter",
        )
    elif crashes:
        crash = crashes[0]
        after = f" after {plural(len(record.steps), 'step')}" if record.steps else " before the first training step"
        yield Finding(
            status=status,
            measured=without_colours(f"{crash['error']}: {crash['message']}"),
            message=f"the script raises{after}",
            location=crash["loc"],
            hint="run it once without the watcher, with the same small data",
        )
    else:
        last = [line for line in run["log"].strip().splitlines() if line.strip()]
        yield Finding(
            status=status,
            measured=f"exit code {run['code']}",
            expected="0",
            message=f"the script fails; it last said: {last[-1].strip()[:200]}"
            if last
            else "the script fails silently",
        )


def _is_cut(record: Record) -> bool:
    return any(e["length"] is None or e["length"] > e["limit"] for e in record.of("iter_end"))


@rule("RUN072", severity=Status.WARN, subject=Subject.RUN)
def cuda_hard_coded(record: Record) -> Iterator[Finding]:
    """The script asks for CUDA without asking whether there is any.

    Why it matters: it runs on no laptop, no CI machine and no CPU server, and neither do its tests.
    Found by: `.cuda()` and `.to("cuda")` calls on a machine without a GPU. The run is then made again with such calls
    kept on the CPU.
    Not an error: the same calls behind `torch.cuda.is_available()`.

    Wrong: `model.cuda()`
    Right: `device = "cuda" if torch.cuda.is_available() else "cpu"; model.to(device)`
    """
    asked = record.of("cuda_asked")
    if asked:
        places = list(dict.fromkeys(f"{e['what']} at {e['loc']}" for e in asked))
        yield Finding(
            measured=plural(len(places), "place"),
            expected="0",
            message=f"the script fails on a machine without a GPU: {shortlist(places)}",
            location=asked[0]["loc"],
            hint='device = "cuda" if torch.cuda.is_available() else "cpu"',
        )


@rule("RUN073", severity=Status.ERROR, subject=Subject.RUN)
def missing_import(record: Record) -> Iterator[Finding]:
    """The script imports a package that is not installed.

    Why it matters: the requirements of the project do not say what it needs, or this is the wrong environment.
    Found by: the exception that ends the process.
    Not an error: an import that the script itself catches.
    """
    for crash in record.of("crash"):
        if crash["error"] == "ModuleNotFoundError":
            yield Finding(
                measured=crash["message"],
                message=f"nothing could be watched: the module {crash['module']!r} is missing",
                location=crash["loc"],
                hint=f"pip install the package that provides {crash['module']!r}, and add it to the requirements",
            )


@rule("RUN074", severity=Status.ERROR, subject=Subject.RUN)
def no_training_seen(record: Record) -> Iterator[Finding]:
    """No training step was seen.

    Why it matters: a verdict about a training that did not happen means nothing.
    Found by: no backward pass and no optimizer step in any Python process of the command.
    Not an error: nothing; this is never a pass.
    """
    if not record.training_failed or record.of("crash") or record.of("input") or _out_of_time(record):
        return
    if record.of("grad_call"):
        yield Finding(
            measured="gradients by torch.func or torch.autograd.grad alone",
            message="the training uses no backward pass and no optimizer of torch's, so its steps cannot be judged",
            hint="what can be: kit verify on the model, and a loop with backward() and an optimizer",
        )
        return
    log = [line.strip() for line in record.run["log"].strip().splitlines() if line.strip()]
    says = f"; it last said: {log[-1][:160]}" if log else ""
    what = "PyTorch was never imported" if not record.of("torch") else "no backward pass and no optimizer step"
    yield Finding(
        measured=what,
        message=f"the command trained nothing{says}",
        hint="give the command that trains, as one would type it: kit watch -- python train.py",
    )


@rule("RUN075", severity=Status.ERROR, subject=Subject.RUN)
def waits_for_input(record: Record) -> Iterator[Finding]:
    """The script asks for input.

    Why it matters: it cannot run unattended: not on a cluster, not in CI, not in an agent's shell.
    Found by: a call of `input()`.
    Not an error: questions that a command line option answers.
    """
    for event in record.of("input")[:1]:
        yield Finding(
            measured=f"input({event['prompt']!r})",
            message="the script waits for somebody to answer",
            location=event["loc"],
            hint="make it a command line option with a default",
        )


def _out_of_time(record: Record) -> bool:
    return record.run["timed_out"] or any(e["why"] == "time" for e in record.of("ended"))


@rule("RUN076", severity=Status.ERROR, subject=Subject.RUN)
def too_little_seen(record: Record) -> Iterator[Finding]:
    """The time for watching was up before there was enough for a verdict.

    Why it matters: most bugs show only after several steps and an evaluation, and none of them was looked for.
    Found by: the number of optimizer steps, of whole epochs and of evaluations, when the script was ended because it
    took too long: fewer than three steps, or neither an epoch nor an evaluation.
    Not an error: scripts that end by themselves after a few steps.
    """
    ended = [e for e in record.of("ended") if e["why"] == "time"]
    if not _out_of_time(record) or (record.run["timed_out"] and not record.steps):
        return
    steps, epochs = min([len(record.steps), *(e["step"] for e in ended)]), sum(one.exhausted for one in record.epochs)
    if steps < FEWEST_STEPS or not (epochs or record.evaluations):
        yield Finding(
            measured=f"{plural(steps, 'optimizer step')}, {plural(epochs, 'whole epoch')}, "
            f"{plural(len(record.evaluations), 'evaluation')}",
            expected=f"at least {FEWEST_STEPS} steps, and an epoch or an evaluation",
            message="time was up before enough of the training was seen for a verdict",
            hint="kit watch --full, a smaller model or batch, or a machine with less to do",
        )
