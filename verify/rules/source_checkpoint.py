"""SRC: how checkpoints are written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import Function, Project, arguments, names_in, parameters, torch_project
from verify.trace.record import Record

BEST = re.compile(r"^_?(is_?)?(the_?)?(new_?)?best(_?(model|so_?far|yet))?$", re.IGNORECASE)


@rule("SRC082", severity=Status.WARN, subject=Subject.RUN)
def best_flag_ignored(record: Record) -> Iterator[Finding]:
    """A function that saves checkpoints is told which is the best, and does not look.

    Why it matters: the file is written over in every epoch, better or not, and no copy of the best is kept; what is
    evaluated in the end is the last model, under the best one's accuracy.
    Found by: reading the source: a function that calls `torch.save`, whose parameter `is_best` or `best` its body never
    reads.
    Not an error: callers that ask themselves, `if is_best: save_checkpoint(state, is_best)`.

    Wrong: `def save_checkpoint(state, is_best, path): torch.save(state, path)`
    Right: `if is_best: shutil.copyfile(path, best_path)` as its last line
    """
    project = torch_project(record)
    for function in project.nodes(ast.FunctionDef):
        flags = [arg for arg in parameters(function) if BEST.match(arg.arg)]
        for flag in flags:
            if _saves(project, function) and not _reads(project, function, flag) and _is_given(project, function, flag):
                yield Finding(
                    measured=f"{flag.arg} is a parameter of {function.name}, which never reads it",
                    expected=f"a file that is written only if {flag.arg}",
                    message=f"{function.name} does the same whether the model is the best or not",
                    hint=f"if {flag.arg}: shutil.copyfile(path, best_path)",
                    location=project.at(function),
                )


def _saves(project: Project, function: Function) -> bool:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(project.qualified(call.func) == "torch.save" for call in calls)


def _reads(project: Project, function: Function, flag: ast.arg) -> bool:
    """Whether its body, or another method that overrides it or is overridden, reads a parameter."""
    alike = [function]
    if isinstance(project.parent.get(function), ast.ClassDef):
        alike = [one for one in project.methods[function.name] if flag.arg in {arg.arg for arg in parameters(one)}]
    names = [name for one in alike for statement in one.body for name in names_in(statement)]
    return flag.arg in names or "locals" in names


def _is_given(project: Project, function: Function, flag: ast.arg) -> bool:
    """Whether a caller passes something that is decided at run time, and does not ask for it itself."""
    for call in project.calls_of.get(function, []):
        for arg, value in arguments(call, function, project):
            asked = {*names_in(value), *(one.attr for one in ast.walk(value) if isinstance(one, ast.Attribute))}
            if arg is flag and not isinstance(value, ast.Constant) and not _asks(project, call, asked):
                return True
    return False


def _asks(project: Project, call: ast.Call, names: set[str]) -> bool:
    """Whether a condition in the function around a call reads one of the names."""
    around = project.scope(call)
    tests = [node.test for node in ast.walk(around) if isinstance(node, ast.If | ast.IfExp)]
    read = {word for test in tests for word in re.findall(r"\w+", ast.unparse(test))}
    return bool(names & read)
