"""DST: training in several processes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Project, keyword, literal, names_in, project_of
from verify.trace.child.names import role
from verify.trace.record import NotSeenError, Record

SAMPLER = "DistributedSampler"


@rule("DST051", severity=Status.WARN, subject=Subject.RUN)
def set_epoch_missing(record: Record) -> Iterator[Finding]:
    """The distributed sampler is never told the epoch.

    Why it matters: it shuffles by its seed and the epoch; without `set_epoch` the order is the same in every epoch.
    Found by: two or more epochs over a loader with a DistributedSampler, and no call of `set_epoch`. Where the run is
    of one process: reading the source, which makes one for the training data and speaks of `set_epoch` nowhere.
    Not an error: samplers of evaluations, `shuffle=False`, a framework that calls it.
    """
    used = [record.loaders[number] for number in record.train_loaders if record.loaders[number]["sampler"] == SAMPLER]
    if not used:
        yield from _never_told(record)
        return
    if len(record.epochs) >= 2 and not record.of("set_epoch"):
        yield Finding(
            measured=f"no set_epoch in {len(record.epochs)} epochs",
            expected="sampler.set_epoch(epoch) before each",
            message="every epoch has the same order",
            location=used[0]["loc"],
            hint="sampler.set_epoch(epoch) at the start of the epoch",
        )


def _never_told(record: Record) -> Iterator[Finding]:
    project = project_of(record)
    made = [call for call in project.calls if project.qualified(call.func).endswith(f".{SAMPLER}")]
    if not made:
        raise NotSeenError("training uses no DistributedSampler")
    told = any("set_epoch" in file.text for file in project.files)
    for call in made if not told and not project.has_framework else ():
        train = any(role(name) == "train" for name in _names_around(project, call))
        if train and literal(keyword(call, "shuffle")) is not False and (record.planned_epochs or 0) >= 2:
            yield Finding(
                measured=f"{ast.unparse(call)[:80]}, and no set_epoch",
                expected="sampler.set_epoch(epoch) before each epoch",
                message="every epoch of a distributed training has the same order",
                location=project.at(call),
                hint="sampler.set_epoch(epoch) at the start of the epoch",
            )
            return


def _names_around(project: Project, call: ast.Call) -> list[str]:
    """What the sampler is called, and what it is made of."""
    statement = next(up for up in project.ancestors(call) if isinstance(up, ast.stmt))
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    named = [node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in targets]
    return [*named, *(names_in(call.args[0]) if call.args else [])]


@rule("DST052", subject=Subject.RUN)
def ddp_bypassed(record: Record) -> Iterator[Finding]:
    """Training calls the model inside its DistributedDataParallel wrapper.

    Why it matters: gradients are then not averaged over the processes, whose models drift apart.
    Found by: training passes that start at the inner module.
    Not an error: calling the inner module in an evaluation.

    Wrong: `loss = criterion(ddp.module(x), y)`
    Right: `loss = criterion(ddp(x), y)`
    """
    if not record.of("ddp"):
        raise NotSeenError("no DistributedDataParallel is used")
    inner = [p for p in record.of("pass") if p["trained"] and p.get("wrapped")]
    if len(inner) >= 2:
        yield Finding(
            measured=f"{len(inner)} training passes through the inner module",
            expected="through the wrapper",
            message="gradients are not averaged over the processes",
            location=inner[0]["loc"],
            hint="call the wrapper in training",
        )


@rule("DST053", severity=Status.WARN, subject=Subject.RUN)
def eval_padded(record: Record) -> Iterator[Finding]:
    """A distributed evaluation counts some samples twice.

    Why it matters: DistributedSampler repeats samples until every process has the same number, and the metric counts
    them.
    Found by: an evaluation loader with a DistributedSampler whose data does not divide evenly.
    Not an error: data that divides evenly.
    """
    evaluated = [r for n, r in record.loaders.items() if r["sampler"] == SAMPLER and n not in record.train_loaders]
    if not evaluated:
        raise NotSeenError("no evaluation uses a DistributedSampler")
    for loader in evaluated:
        world = max([int(e.get("world") or 0) for e in record.of("ddp")], default=0)
        if world > 1 and loader["n"] and loader["n"] % world:
            yield Finding(
                measured=f"{loader['n']} samples for {world} processes: {world - loader['n'] % world} counted twice",
                expected="each once",
                message="the sampler pads the evaluation data",
                location=loader["loc"],
                hint="evaluate on one process, or drop the padding before the metric",
            )
