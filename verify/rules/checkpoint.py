"""CKP: what is saved and loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from verify.report import Finding, Status, plural, shortlist, without_colours
from verify.rules import Subject, rule
from verify.rules.averaging import names_average
from verify.rules.resuming import (
    finished_epoch_again,
    keeps_moments,
    loads_into_optimizer,
    never_saved,
    restored_epochs,
    saves_of,
)
from verify.source import Project, keyword, literal, project_of, text_of
from verify.trace.record import Event, NotSeenError, Record
from verify.trace.resumed import BEST, COUNTER, ELSEWHERE

MATCHED = 0.95
# What weights_only=True takes, by the beginning of the type's name.
PLAIN = ("builtins.", "collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.dtype", "torch.device")
HEADS = ("head", "fc", "classifier", "linear", "logits", "output", "proj_out", "last")


def weights_in(content: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, description) of the state dicts in a checkpoint."""
    if not isinstance(content, dict):
        return
    if content.get("kind") == "weights":
        yield name, content
    for key, inner in (content.get("keys") or {}).items():
        yield from weights_in(inner, str(key))


def _saves(record: Record) -> list[Event]:
    if not record.of("save"):
        raise NotSeenError("torch.save was not called")
    return record.of("save")


@rule("CKP011", subject=Subject.RUN)
def best_kept_by_reference(record: Record) -> Iterator[Finding]:
    """The best weights are kept by reference and change with the model.

    Why it matters: `state_dict()` returns the live tensors; the "best" state is the last one.
    Found by: a state dict that is older than the last step and whose tensors are still the model's own, when it is
    saved, loaded, or held in a variable called best.
    Not an error: a deep copy, or a state dict that is saved at once.

    Wrong: `best = model.state_dict()`
    Right: `best = copy.deepcopy(model.state_dict())`
    """
    for event in record.of("weights_loaded"):
        if event["own"] and event["aliased"] >= 0.5 * event["own"]:
            yield _by_reference(event["made_at"], event["step"], "loaded back", event["loc"])
            return
    for event in record.of("save"):
        for _, weights in weights_in(event["content"]):
            old = weights["made_at"] is not None and weights["made_at"] < event["step"]
            if old and weights["live"] >= 0.5 * weights["tensors"]:
                yield _by_reference(weights["made_at"], event["step"], "saved", event["loc"])
                return
    for event in record.of("old_snapshot"):
        yield _by_reference(event["made_at"], event["step"], f"still held in {event['name']}", event["loc"])
        return
    if not record.of("save") and not record.of("weights_loaded"):
        raise NotSeenError("no weights were saved or loaded")


def _by_reference(made: int | None, now: int, what: str, place: str) -> Finding:
    origin = "an earlier step" if made is None else f"step {made}"
    return Finding(
        measured=f"a state dict of {origin}, {what} at step {now}, holds the weights of step {now}",
        expected=f"the weights of {origin}",
        message="the snapshot shares its tensors with the model and has changed with it",
        location=place,
        hint="copy.deepcopy(model.state_dict()), or save it to a file at once",
    )


@rule("CKP012", subject=Subject.RUN)
def checkpoint_mostly_ignored(record: Record) -> Iterator[Finding]:
    """Loading with strict=False leaves most weights as they were.

    Why it matters: names that do not match are skipped without a word, and random weights pass for pretrained ones.
    Found by: the share of the model's tensors that a state dict fills, below 95%.
    Not an error: a new head on an old body.

    Wrong: `model.load_state_dict(state, strict=False)` of a state whose names begin with `module.`
    Right: rename the keys, and load strictly
    """
    loads = record.of("weights_loaded")
    if not loads:
        raise NotSeenError("no weights were loaded")
    for event in loads:
        if event["strict"] or not event["own"]:
            continue
        share = event["matched"] / event["own"]
        only_head = share > 0.5 and all(any(h in name.lower() for h in HEADS) for name in event["missing"])
        if share < MATCHED and not only_head:
            yield Finding(
                measured=f"{event['matched']} of {event['own']} tensors of {event['cls']} filled; "
                f"missing {shortlist(event['missing'])}; not used {shortlist(event['unexpected']) or 'none'}",
                expected=f"at least {MATCHED:.0%}",
                message="most of the checkpoint does not fit the model and was skipped",
                location=event["loc"],
                hint="compare the names: a prefix such as module. or _orig_mod.? Load with strict=True",
            )


@rule("CKP013", severity=Status.WARN, subject=Subject.RUN)
def checkpoint_prefixed(record: Record) -> Iterator[Finding]:
    """The checkpoint is saved with the prefix of a wrapper.

    Why it matters: every name begins with `module.` or `_orig_mod.`, so it loads into no plain model, and with
    `strict=False` it loads nothing.
    Found by: the names in saved state dicts.
    Not an error: the state dict of the model inside the wrapper.

    Wrong: `torch.save(ddp.state_dict(), path)`
    Right: `torch.save(ddp.module.state_dict(), path)`
    """
    for event in _saves(record):
        for _, weights in weights_in(event["content"]):
            if weights["prefix"]:
                yield Finding(
                    measured=f"{weights['first']!r}",
                    expected=f"{weights['first'].removeprefix(weights['prefix'])!r}",
                    message=f"every name in {event['path']} begins with {weights['prefix']}",
                    location=event["loc"],
                    hint="save the state dict of the model inside the wrapper; compile in place with model.compile()",
                )
                return


@rule("CKP016", severity=Status.WARN, subject=Subject.RUN)
def checkpoint_unsafe(record: Record) -> Iterator[Finding]:
    """The checkpoint cannot be loaded with the default of torch.load.

    Why it matters: since torch 2.6 `torch.load` refuses anything but tensors and plain containers, so resuming fails on
    the day it is needed; `weights_only=False` runs whatever code the file holds.
    Found by: loading the saved files with `weights_only=True`.
    Not an error: scripts that load these files with `weights_only=False` themselves, for which this is a note.

    Wrong: `torch.save({"args": args, ...})` with an argparse Namespace
    Right: `torch.save({"args": vars(args), ...})`
    """
    if not record.of("saved_file"):
        raise NotSeenError("no small file was saved with torch.save")
    for event in record.of("saved_file"):
        if event["safe"]:
            continue
        saves = [e for e in record.of("save") if e["path"] == event["path"]]
        culprits = _objects(saves[-1]["content"]) if saves else []
        yield Finding(
            status=Status.NOTE if _is_trusted(record, event["path"]) else Status.WARN,
            measured=shortlist(culprits) or without_colours(event["problem"]),
            expected="loads with weights_only=True",
            message=f"{event['path']} does not load with the default of torch.load",
            location=saves[0]["loc"] if saves else "",
            hint="save tensors, numbers, strings, lists and dicts only: vars(args) instead of args",
        )
        return


def _objects(content: Any, name: str = "") -> list[str]:
    """What in a checkpoint is no plain data: a module, an object of a class."""
    if not isinstance(content, dict):
        return []
    kind = str(content.get("type", ""))
    if content.get("kind") == "module" or (content.get("kind") == "other" and not kind.startswith(PLAIN)):
        return [f"{name!r} is of the class {kind}" if name else f"an object of the class {kind}"]
    return [found for key, inner in (content.get("keys") or {}).items() for found in _objects(inner, str(key))]


def _is_trusted(record: Record, path: str) -> bool:
    """Whether the project itself loads a file with `weights_only=False`."""
    loads = record.of("load")
    if any(e["path"] == path and e["weights_only"] is False for e in loads):
        return True
    if any("weights_only=False" in event["text"].replace(" ", "") for event in record.of("sibling")):
        return True
    try:
        project = project_of(record)
    except NotSeenError:
        return False
    # The keyword may be given to a wrapper of torch.load, or to functools.partial.
    trusting = [project.at(c) for c in project.calls if literal(keyword(c, "weights_only")) is False]
    careful = [c for c in project.calls if project.qualified(c.func) == "torch.load" and not keyword(c, "weights_only")]
    elsewhere = {e["loc"] for e in loads if e["path"] != path} if careful else set()
    return any(place not in elsewhere for place in trusting)


@rule("CKP019", subject=Subject.RUN)
def pretrained_overwritten(record: Record) -> Iterator[Finding]:
    """Weights are initialised again after they were loaded.

    Why it matters: the pretraining is lost, and nothing says so.
    Found by: checksums of the parameters when they are loaded, and again before the first step.
    Not an error: a new head.

    Wrong: `model.load_state_dict(state); model.apply(init_weights)`
    Right: initialise first, then load
    """
    if not record.of("loaded_then"):
        raise NotSeenError("no weights were loaded before training")
    for event in record.of("loaded_then"):
        if event["changed"] > 0.3 * event["tensors"]:
            yield Finding(
                measured=f"{event['changed']} of {plural(event['tensors'], 'tensor')} of {event['cls']} changed since",
                expected="the loaded values at the first step",
                message="what was loaded is overwritten before training begins",
                location=shortlist(event["first"]),
                hint="initialise first, load last",
            )


@rule("CKP014", subject=Subject.RUN)
def resume_loses_state(record: Record) -> Iterator[Finding]:
    """A resumed run does not go on where it stopped.

    Why it matters: without the optimizer's moments, the schedule or the epoch, training takes a jump back; the result
    of a long run depends on how often it was interrupted.
    Found by: stopping the script after a few epochs and starting it again: learning rate, moments, epochs and weights
    at the first step after that, against those of a run that was not interrupted; after the first resumed epoch, the
    best result, the patience and the loss of an average. A resumed start that fails counts where it fails at or after
    reading a file that the first one saved. And by reading the source: what the checkpoint holds, and the code that
    takes optimizer or epoch out of it leaves there; where nothing could be started again, moments and a schedule that
    are never saved, while the epoch is.
    Not an error: scripts that cannot resume, and those that load weights alone, to evaluate them or to begin with.

    Wrong: `model.load_state_dict(ckpt["model"])` alone
    Right: model, optimizer, scheduler, epoch, best result, averages and random state
    """
    forgotten = [*_never_read_back(record)]
    try:
        lost = _resume(record).get("lost", [])
    except NotSeenError:
        if not forgotten and (project := _source(record)):
            forgotten = [*never_saved(record, project)]
        if not forgotten:
            raise
        lost = []
    for finding in lost:
        yield Finding(**finding)
    if not lost:
        yield from forgotten


def _source(record: Record) -> Project | None:
    try:
        return project_of(record)
    except NotSeenError:
        return None


def _never_read_back(record: Record) -> Iterator[Finding]:
    """State that is saved, and that the code which restores the optimizer or the epoch leaves where it is."""
    project = _source(record)
    saves = [e for e in saves_of(record, project) if _optimizer_keys(e["content"])] if project else []
    if not saves or project is None:
        return
    content = saves[-1]["content"]["keys"]
    reads = _constant_reads(project)
    states = _optimizer_keys(saves[-1]["content"])
    if _reads_hidden(project, reads, content):
        return
    mentioned = {word for e in record.of("sibling") for word in re.findall(r"\w+", e["text"])}
    lost = [key for key, inner in content.items() if _is_state(key, inner) and key not in reads]
    restores_optimizer = any(key in reads for key in states)
    if not restores_optimizer:
        if loads_into_optimizer(project) or not restored_epochs(record, project, content):
            return
        seen = bool(record.of("save")) or keeps_moments(record)  # else the source says so, not the state itself
        lost = [key for key in states if seen and content[key]["keys"].get("entries")] + lost
    lost = [key for key in lost if not set(re.findall(r"\w+", key)) & mentioned]
    if lost:
        heavy = any(content[key]["kind"] != "value" for key in lost)
        yield Finding(
            status=Status.FAIL if heavy else Status.WARN,
            measured=f"never read back: {', '.join(lost)}",
            expected="all that resuming needs is restored",
            message=f"the checkpoint holds {shortlist(lost)}, and the code that resumes from it leaves "
            f"{'it' if len(lost) == 1 else 'them'} out",
            location=saves[-1]["loc"],
            hint=f"restore {'it' if len(lost) == 1 else 'them'} beside "
            f"{'the state of the optimizer' if restores_optimizer else 'weights and epoch'}",
        )


def _optimizer_keys(content: Any) -> list[str]:
    if not isinstance(content, dict) or content.get("kind") != "dict":
        return []
    return [key for key, inner in content["keys"].items() if isinstance(inner, dict) and inner["kind"] == "optimizer"]


def _is_state(key: str, inner: Any) -> bool:
    """Whether a resumed run needs it: averages, schedules, scalers, the best result, patience."""
    if not isinstance(inner, dict):
        return False
    if inner["kind"] == "weights" or (inner["kind"] == "dict" and inner["keys"]):
        named = names_average(key) or (inner["kind"] == "dict" and re.search(r"sched", key, re.IGNORECASE))
        return bool(named)
    if inner["kind"] in ("scheduler", "scaler"):
        return True
    number = inner["kind"] == "value" and isinstance(inner["value"], int | float) and inner["value"] is not None
    return number and not ELSEWHERE.search(key) and bool(BEST.search(key) or COUNTER.search(key))


def _constant_reads(project: Project) -> dict[str, list[ast.expr]]:
    """The expressions that a constant key is read from, by key; a key that is named anywhere else counts as read."""
    found: dict[str, list[ast.expr]] = {}
    for node in project.nodes(ast.Constant):
        up = project.parent.get(node)
        if not isinstance(node.value, str) or (isinstance(up, ast.Dict) and node in up.keys):
            continue
        if isinstance(up, ast.Subscript) and up.slice is node and not isinstance(up.ctx, ast.Load):
            continue
        base = up.value if isinstance(up, ast.Subscript) else None
        found.setdefault(node.value, []).extend([base] if base is not None else [])
    return found


def _reads_hidden(project: Project, reads: dict[str, list[ast.expr]], content: dict[str, Any]) -> bool:
    """Whether the checkpoint is also read in a way that does not name its keys: unpacked, iterated, handed on."""
    names = {ast.unparse(base) for key in content for base in reads.get(key, [])}
    for node in project.nodes(ast.Name, ast.Attribute):
        up = project.parent.get(node)
        if not isinstance(getattr(node, "ctx", None), ast.Load) or ast.unparse(node) not in names:
            continue
        if isinstance(up, ast.Subscript) and up.value is node and text_of(up.slice) is not None:
            continue
        if isinstance(up, ast.Attribute) and up.attr in ("get", "pop", "keys"):
            continue
        if isinstance(up, ast.Compare | ast.If | ast.Assert | ast.Return | ast.Delete):
            continue
        if isinstance(up, ast.Call) and (project.callees(up) or _only_keeps(project, up)):
            continue
        return True
    return False


def _only_keeps(project: Project, call: ast.Call) -> bool:
    return project.qualified(call.func) == "torch.save" or project.builtin(call.func) in ("print", "len", "isinstance")


@rule("CKP015", severity=Status.WARN, subject=Subject.RUN)
def resume_goes_back(record: Record) -> Iterator[Finding]:
    """A resumed run starts from an older state than the last.

    Why it matters: epochs are trained twice, and the number of epochs, the schedule and the logs no longer fit.
    Found by: stopping the script after a few epochs and starting it again: the epoch that it begins with. Where that
    was not possible, by the number that was saved when an epoch was complete, and a loop that begins with the same.
    Where the best happened to be the last: by a file of that name, the only one it reads, saved under an `if`.
    Not an error: repeating the epoch that was interrupted in its middle.

    Wrong: resuming from `best.pt`; `start_epoch = ckpt["epoch"]` when that epoch is complete
    Right: resuming from `last.pt`; `start_epoch = ckpt["epoch"] + 1`
    """
    try:
        event = _resume(record)
        if event.get("back_skipped"):
            raise NotSeenError(event["back_skipped"])
    except NotSeenError:
        project = _source(record)
        seen = [*finished_epoch_again(record, project)] if project else []
        if not seen:
            raise
        yield from seen
        return
    for finding in event.get("back", []):
        yield Finding(**finding)
    if not event.get("back"):
        yield from _only_the_best(record, event.get("own", []))


def _only_the_best(record: Record, read: list[str]) -> Iterator[Finding]:
    """All that a script finds to resume from is the best checkpoint: older than the last whenever that is not it."""
    saves = [e for e in record.of("save") if e["path"] in read]
    if not saves or not all("best" in path.lower() for path in read):
        return
    project = _source(record)
    if project is None or not all(_is_saved_at_times(project, e["loc"]) for e in saves):
        return
    yield Finding(
        measured=f"it resumes from {shortlist(read)}, saved for a better result alone",
        expected="the state after the last epoch",
        message="the resumed run begins with an older checkpoint than the last, unless that was the best",
        location=saves[0]["loc"],
        hint="save a last checkpoint every epoch, and resume from it; keep the best one for evaluation",
    )


def _is_saved_at_times(project: Project, place: str) -> bool:
    """Whether a call of torch.save, or each call of the function around it, is inside of an `if` about the best."""
    calls = [call for call in project.calls if project.at(call) == place]
    callers = [c for call in calls if (f := project.function(call)) is not None for c in project.calls_of.get(f, [])]
    return any(_is_for_the_best(project, call) for call in calls) or (
        bool(callers) and all(_is_for_the_best(project, call) for call in callers)
    )


def _is_for_the_best(project: Project, call: ast.Call) -> bool:
    tests = [up.test for up in project.ancestors(call) if isinstance(up, ast.If)]
    return any(re.search(r"best|improv", ast.unparse(test), re.IGNORECASE) for test in tests)


def _resume(record: Record) -> dict[str, Any]:
    events = record.of("resume")
    if not events:
        raise NotSeenError("the script was not stopped and started again")
    if events[0].get("skipped"):
        raise NotSeenError(events[0]["skipped"])
    return events[0]
