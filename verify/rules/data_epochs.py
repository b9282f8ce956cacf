"""DAT: data sets and samplers that want to be told which epoch it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, is_self, names_in, text_of, torch_project, words
from verify.trace.record import NotSeenError, Record

# What a loader calls of a data set or a sampler.
ASKED = words("__getitem__ __getitems__ __iter__ __call__")
# Libraries whose loops or loaders call set_epoch of what they are given.
TELL = words("deepspeed fairseq fairscale streaming ray")


@rule("DAT246", severity=Status.WARN, subject=Subject.RUN)
def epoch_never_told(record: Record) -> Iterator[Finding]:
    """A data set or sampler has a `set_epoch` of its own, and nothing calls it.

    Why it matters: its draws follow from the epoch, so that a run can be repeated; without `set_epoch` every epoch has
    the same augmentation, or the same order.
    Found by: reading the source: a class whose `set_epoch` keeps the epoch in an attribute that `__getitem__` or
    `__iter__` uses, or what they call; the class is used, no line of the project calls `set_epoch` or sets the
    attribute from elsewhere, and training has two epochs or more.
    Not an error: projects whose loop belongs to a framework, which calls it; an epoch that `__iter__` counts itself.

    Wrong: `for epoch in range(epochs): train(loader)`
    Right: `for epoch in range(epochs): loader.dataset.set_epoch(epoch); train(loader)`
    """
    if max(len(record.epochs), record.planned_epochs or 0) < 2:
        raise NotSeenError("fewer than two epochs were seen")
    project = torch_project(record)
    if project.has_framework or project.imported & TELL or _is_told(project):
        return
    for setter in project.methods.get("set_epoch", []):
        around = project.parent[setter]
        if not isinstance(around, ast.ClassDef) or not _is_used(project, around):
            continue
        for name in _kept(setter):
            if _is_read(around, name) and not _is_set_elsewhere(project, setter, name):
                yield Finding(
                    measured=f"{around.name}.set_epoch, which nothing calls",
                    expected="set_epoch(epoch) at the start of each epoch",
                    message=f"self.{name} stays what it is at first, so every epoch draws the same",
                    location=project.at(setter),
                    hint="loader.dataset.set_epoch(epoch), or loader.sampler.set_epoch(epoch), in the loop over epochs",
                )
                return


def _is_told(project: Project) -> bool:
    """Whether `set_epoch` is called, passed on or asked for by its name; `super().set_epoch` within one is no call."""
    for node in project.attributes.get("set_epoch", []):
        function = project.function(node)
        if function is None or function.name != "set_epoch":
            return True
    return any(text_of(node) == "set_epoch" for node in project.nodes(ast.Constant))


def _is_used(project: Project, around: ast.ClassDef) -> bool:
    """Whether the project makes an object of a class, or of one that is derived from it."""
    names = {around.name}
    for _ in range(3):
        for made in project.nodes(ast.ClassDef):
            if any(getattr(base, "id", getattr(base, "attr", "")) in names for base in made.bases):
                names.add(made.name)
    return any(getattr(call.func, "id", getattr(call.func, "attr", "")) in names for call in project.calls)


def _kept(setter: Function) -> list[str]:
    """The attributes that `set_epoch` gives the epoch, or something that follows from it."""
    given = {arg.arg for arg in setter.args.args[1:]}
    found = []
    for node in ast.walk(setter):
        if isinstance(node, ast.Assign) and given & set(names_in(node.value)):
            found += [t.attr for t in node.targets if isinstance(t, ast.Attribute) and is_self(t.value)]
    return found


def _is_read(around: ast.ClassDef, name: str) -> bool:
    """Whether what a loader calls reads an attribute, itself or in the methods that it calls."""
    methods = {item.name: item for item in around.body if isinstance(item, Function)}
    reached = [name for name in methods if name in ASKED]
    for method in reached:  # grows as it goes
        for node in ast.walk(methods[method]):
            if not (isinstance(node, ast.Attribute) and is_self(node.value) and isinstance(node.ctx, ast.Load)):
                continue
            if node.attr == name:
                return True
            if node.attr in methods and node.attr not in reached:
                reached.append(node.attr)
    return False


def _is_set_elsewhere(project: Project, setter: Function, name: str) -> bool:
    """Whether an attribute of this name is set or counted anywhere but at the start and in `set_epoch`."""
    for node in project.nodes(ast.Attribute):
        if node.attr != name or not isinstance(node.ctx, ast.Store):
            continue
        function = project.function(node)
        begins = function is not None and function.name in ("__init__", "__post_init__", "set_epoch")
        if not begins and (project.class_of(node) is project.parent[setter] or not is_self(node.value)):
            return True
    return False
