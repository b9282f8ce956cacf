"""SRC: listings of folders, whose order nobody promises."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

from verify.report import Finding, Status
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    first_name,
    is_self,
    names_in,
    project_of,
    words,
)
from verify.trace.record import Record

LISTINGS = words("os.listdir os.scandir glob.glob glob.iglob")
MAY_LIST = re.compile(r"listdir|scandir|glob|iterdir|\bset\(|\{[^{}]*\bfor\b")
LISTING_METHODS = words("iterdir rglob")


@rule("SRC065", severity=Status.WARN, subject=Subject.RUN)
def unsorted_listing(record: Record) -> Iterator[Finding]:
    """The order of a folder's listing decides labels, pairs or splits.

    Why it matters: the operating system lists files in any order it likes: on another machine, or after a copy, class 3
    is another class, images get the masks of others, and test images are in the training split.
    Found by: reading the source: an unsorted `os.listdir`, `glob` or `iterdir`, or a `set` of names, whose positions
    become class indices, are paired with another listing, or are cut into splits.
    Not an error: a listing that is sorted, shuffled, counted, or only walked through.

    Wrong: `classes = os.listdir(root); label = classes.index(name)`
    Right: `classes = sorted(os.listdir(root))`
    """
    project = project_of(record)
    seen: set[str] = set()
    if not any(MAY_LIST.search(file.text) for file in project.files):
        return
    found = chain(_indexed(project), _zipped(project), _cut(project), _paired(project))
    for node, use in found:
        location = project.at(node)
        if location not in seen:
            seen.add(location)
            yield Finding(
                measured=ast.unparse(node)[:80],
                expected="sorted(...)",
                message=f"the order of the listing is not fixed, and {use}",
                hint="sort it",
                location=location,
            )


def _listing(project: Project, node: ast.expr | None, depth: int = 0) -> ast.expr | None:
    """The unsorted listing that a value takes its order from."""
    if node is None or depth > 5:
        return None
    match node:
        case ast.Call():
            return _listing_call(project, node, depth)
        case ast.ListComp() | ast.GeneratorExp():
            return _listing(project, node.generators[0].iter, depth + 1)
        case ast.Name():
            _, bindings = project.lookup(node)
            if len(bindings) == 1 and bindings[0].kind == "value" and not _reordered(project, node.id, node):
                return _listing(project, bindings[0].expr, depth + 1)
        case ast.Attribute() if is_self(node.value):
            around = project.class_of(node)
            values = [v for t, v in project.attribute_values.get(node.attr, []) if project.class_of(t) is around]
            if len(values) == 1 and not _reordered(project, node.attr, node):
                return _listing(project, values[0], depth + 1)
    return None


def _listing_call(project: Project, node: ast.Call, depth: int) -> ast.expr | None:
    name = project.qualified(node.func)
    if name in LISTINGS:
        return node
    if isinstance(node.func, ast.Attribute) and node.func.attr in LISTING_METHODS and not name:
        return node
    if (
        isinstance(node.func, ast.Attribute)
        and node.func.attr == "glob"
        and project.all_from(node.func.value, ["pathlib.Path"])
    ):
        return node
    builtin = project.builtin(node.func)
    if builtin in ("list", "tuple", "filter", "map", "enumerate", "iter") and node.args:
        inner = node.args[-1]
        if builtin in ("list", "tuple") and _is_set_of_names(project, inner):
            return node
        return _listing(project, inner, depth + 1)
    return None


def _is_set_of_names(project: Project, node: ast.expr) -> bool:
    """`set(d.name for d in ...)`: text is hashed differently in every process."""
    if not (isinstance(node, ast.Call) and project.builtin(node.func) == "set" and len(node.args) == 1):
        return isinstance(node, ast.SetComp) and _is_text(node.elt)
    inner = node.args[0]
    return isinstance(inner, ast.ListComp | ast.GeneratorExp) and _is_text(inner.elt)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("name", "stem", "suffix")
    if isinstance(node, ast.Subscript):
        return _is_text(node.value)
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("split", "basename")
    )


def _reordered(project: Project, name: str, node: ast.AST) -> bool:
    """Whether something of this name is sorted or shuffled anywhere in the file."""
    if project.reordered is None:
        project.reordered = _find_reordered(project)
    return (project.file(node).path, name) in project.reordered


def _find_reordered(project: Project) -> set[tuple[str, str]]:
    found = set()
    for call in project.calls:
        function = call.func
        last = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        changed: list[ast.expr] = []
        if isinstance(function, ast.Attribute) and last == "sort":
            changed = [function.value]
        elif last in ("shuffle", "sorted", "natsorted", "permutation", "sample", "train_test_split"):
            changed = call.args
        for value in changed:
            if isinstance(value, ast.Name | ast.Attribute):
                found.add((project.file(call).path, value.id if isinstance(value, ast.Name) else value.attr))
    return found


def _indexed(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """Positions in a listing that become numbers of classes."""
    for call in project.calls:
        if project.builtin(call.func) == "enumerate" and call.args:
            listing = _listing(project, call.args[0])
            if listing is not None and _becomes_label(project, call):
                yield listing, "positions in it become labels"
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "index" and len(call.args) == 1:
            listing = _listing(project, call.func.value)
            if listing is not None:
                yield listing, "positions in it become labels"
        elif project.builtin(call.func) == "zip" and len(call.args) == 2 and _is_range(project, call.args[1]):
            listing = _listing(project, call.args[0])
            if listing is not None:
                yield listing, "positions in it become labels"


def _is_range(project: Project, node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and project.builtin(node.func) == "range"


def _becomes_label(project: Project, call: ast.Call) -> bool:
    up = project.parent[call]
    if isinstance(up, ast.comprehension):
        around = project.parent[up]
        index = first_name(up.target)
        return isinstance(around, ast.DictComp) and index in (*names_in(around.key), *names_in(around.value))
    if not isinstance(up, ast.For):
        return False
    index = first_name(up.target)
    for node in (inner for statement in up.body for inner in ast.walk(statement)):
        stored = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
        if stored and isinstance(node, ast.Call) and any(_holds(arg, index) for arg in node.args):
            return True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and _holds(node.value, index):
            return not isinstance(node.targets[0].slice, ast.Name) or node.targets[0].slice.id != index
    return False


def _holds(node: ast.expr, name: str) -> bool:
    """Whether a value is the name itself, or a tuple with it."""
    if isinstance(node, ast.Tuple | ast.List):
        return any(_holds(element, name) for element in node.elts)
    return isinstance(node, ast.Name) and node.id == name


def _zipped(project: Project) -> Iterator[tuple[ast.AST, str]]:
    for call in project.calls:
        if project.builtin(call.func) == "zip" and len(call.args) > 1:
            listings = [_listing(project, arg) for arg in call.args]
            found = [listing for listing in listings if listing is not None]
            if len(found) > 1 or (found and any(_is_sorted_listing(project, arg) for arg in call.args)):
                yield found[0], "it is paired with another listing by position"


def _is_sorted_listing(project: Project, node: ast.expr) -> bool:
    origins = project.origins(node)
    return any(
        isinstance(o, ast.Call)
        and project.builtin(o.func) == "sorted"
        and o.args
        and _listing(project, o.args[0]) is not None
        for o in origins
    )


def _cut(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """`files[:n]` and `files[n:]`."""
    parts: dict[tuple[ast.AST, str], set[str]] = defaultdict(set)
    found: dict[tuple[ast.AST, str], ast.AST] = {}
    for node in project.nodes(ast.Subscript):
        if not isinstance(node.slice, ast.Slice) or node.slice.step is not None:
            continue
        if (node.slice.lower is None) == (node.slice.upper is None):
            continue
        listing = _listing(project, node.value)
        if listing is not None:
            key = (listing, ast.unparse(node.value))
            side = "head" if node.slice.lower is None else "tail"
            parts[key].add(f"{side} {ast.unparse(node.slice.upper or node.slice.lower or node.slice)}")
            found[key] = listing
    for cut, sides in parts.items():
        cuts = {side.partition(" ")[2] for side in sides}
        if len(sides) > len(cuts):
            yield found[cut], "it is cut into splits by position"


def _paired(project: Project) -> Iterator[tuple[ast.AST, str]]:
    """Two listings of one data set, read at the same index."""
    for classes in project.classes.values():
        for node in classes:
            items = [m for m in node.body if isinstance(m, Function) and m.name == "__getitem__"]
            for method in items:
                yield from _paired_in(project, method)


def _paired_in(project: Project, method: Function) -> Iterator[tuple[ast.AST, str]]:
    read: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(method):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and is_self(node.value.value):
            listing = _listing(project, node.value)
            if listing is not None:
                read[ast.unparse(node.slice)].append(listing)
    for listings in read.values():
        if len({id(listing) for listing in listings}) > 1:
            yield listings[0], "it is paired with another listing by position"
