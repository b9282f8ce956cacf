"""SRC: results that are thrown away."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.rules.source_images import is_batch
from verify.source import Project, keyword, literal, text_of, torch_project, words
from verify.trace.record import Record

OUT_OF_PLACE = words(
    "clamp clip masked_fill permute unsqueeze detach softmax log_softmax requires_grad clamp_min clamp_max "
    "reshape transpose squeeze contiguous astype"
)
CONTEXTS = words("torch.no_grad torch.inference_mode torch.enable_grad torch.autocast torch.amp.autocast")
# Functions that change none of their arguments, and whose result is all that they are called for.
PURE = words(
    "dataclasses.replace copy.copy copy.deepcopy random.sample numpy.clip numpy.where numpy.sort numpy.concatenate "
    "numpy.stack numpy.transpose numpy.reshape numpy.expand_dims numpy.squeeze numpy.roll numpy.flip numpy.append "
    "numpy.delete numpy.insert numpy.random.permutation torch.clamp torch.clip torch.where torch.cat torch.roll "
    "torch.flip torch.randperm torch.nn.functional.normalize torch.nn.functional.one_hot torch.nn.functional.pad"
)
BUILTINS = words("sorted reversed map filter zip")
OF_TEXT = words("strip lstrip rstrip lower upper")
OF_TABLES = words("drop dropna fillna sort_values sort_index reset_index set_index drop_duplicates rename")
IN_PLACE = words("inplace out copy")
CELLS = re.compile(r"^# (%%|In\[)", re.MULTILINE)


@rule("SRC079", severity=Status.WARN, subject=Subject.RUN)
def result_thrown_away(record: Record) -> Iterator[Finding]:
    """A result is thrown away, and nothing else is done.

    Why it matters: `grad.clamp(-1, 1)` and `mask.masked_fill(...)` return a new tensor and leave the old one as it is;
    so do `images.to(device)`, `dataclasses.replace(config, ...)`, `sorted(files)`, `frame.fillna(0)`, `name.strip()`.
    Found by: reading the source: such a call as a statement of its own; `.to(device)` of what a loop over a loader
    gives; `torch.no_grad()` without a `with`, which does nothing.
    Not an error: `model.to(device)`, which moves the module itself, operations that end in an underscore,
    `inplace=True`, `path.replace(target)`, a line of a notebook's cell, a call that is tried to see whether it raises.

    Wrong: `p.grad.clamp(-1, 1)`, `images.to(device)`, `replace(config, lr=0.1)`
    Right: `p.grad.clamp_(-1, 1)`, `images = images.to(device)`, `config = replace(config, lr=0.1)`
    """
    project = torch_project(record)
    for statement in project.nodes(ast.Expr):
        call = statement.value
        if not isinstance(call, ast.Call):
            continue
        if project.qualified(call.func) in CONTEXTS:
            yield Finding(
                measured=ast.unparse(call),
                expected=f"with {ast.unparse(call)}:",
                message="a context manager that is not entered does nothing",
                hint="put the lines that it is meant for under a with",
                location=project.at(call),
            )
        found = _of_tensor(project, call) or _of_anything(project, call)
        if found and not _may_be_meant(project, statement):
            kept, said = found
            yield Finding(
                measured=ast.unparse(call)[:100],
                expected=f"{kept} = {ast.unparse(call)}"[:120],
                message=f"{said}, which is thrown away here",
                hint="keep the result, or use the form that works in place",
                location=project.at(call),
            )


def _of_tensor(project: Project, call: ast.Call) -> tuple[str, str] | None:
    """What should be kept, and what is returned, for methods of tensors and arrays."""
    if not isinstance(call.func, ast.Attribute):
        return None
    tensor = call.func.attr in OUT_OF_PLACE and not _foreign(project, call)
    moved = call.func.attr in ("to", "cuda") and isinstance(call.func.value, ast.Name)
    if tensor or (moved and isinstance(call.func.value, ast.Name) and is_batch(project, call.func.value)):
        return ast.unparse(call.func.value), f"{call.func.attr} returns a new tensor"
    return None


def _of_anything(project: Project, call: ast.Call) -> tuple[str, str] | None:
    """The same for functions that change nothing, and for methods of text and of tables."""
    name = project.qualified(call.func)
    pure = name in PURE or (name.startswith("np.") and name.replace("np.", "numpy.", 1) in PURE)
    if (pure or project.builtin(call.func) in BUILTINS) and not any(k.arg in IN_PLACE for k in call.keywords):
        return ast.unparse(call.args[0]) if call.args else "...", f"{ast.unparse(call.func)} returns something new"
    if not isinstance(call.func, ast.Attribute) or _foreign(project, call):
        return None
    method, texts = call.func.attr, [text_of(arg) is not None for arg in call.args]
    is_text = (method in OF_TEXT and all(texts)) or (method == "replace" and len(texts) == 2 and any(texts))
    if is_text and not call.keywords:
        return ast.unparse(call.func.value), f"{method} returns a new text"
    in_place = keyword(call, "inplace")
    of_table = method in OF_TABLES and "pandas" in project.imported and (call.args or call.keywords)
    if of_table and (in_place is None or literal(in_place) is False) and _is_of_table(call):
        return ast.unparse(call.func.value), f"{method} returns a new table"
    return None


def _is_of_table(call: ast.Call) -> bool:
    """`rename` and `drop` are also what files and other objects do."""
    assert isinstance(call.func, ast.Attribute)
    named = {item.arg for item in call.keywords}
    return call.func.attr not in ("rename", "drop") or bool(named & {"columns", "index", "axis", "labels"})


def _may_be_meant(project: Project, statement: ast.Expr) -> bool:
    """Whether a line is shown by a notebook, or tried to see whether it raises."""
    if isinstance(project.parent[statement], ast.Module) and CELLS.search(project.file(statement).text):
        return True
    for up in project.ancestors(statement):
        if isinstance(up, ast.Try) and any(statement in ast.walk(part) for part in up.body):
            return True
        if isinstance(up, ast.With) and any("raises" in ast.unparse(item).lower() for item in up.items):
            return True
    return False


def _foreign(project: Project, call: ast.Call) -> bool:
    """Whether a method may belong to something else: a library's function, or a class of the project."""
    assert isinstance(call.func, ast.Attribute)
    return bool(project.qualified(call.func)) or bool(project.callees(call)) or keyword(call, "out") is not None
