"""Options that the code declares: argparse, dict literals and classes of constants."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.options.model import Key, Options
from verify.source import (
    Project,
    keyword,
    literal,
    text_of,
    words,
)

# Launchers pass these whether or not the script needs them.
LAUNCHER = words("local_rank f fff node_rank")
SELF_DECLARED = re.compile(
    r"deprecated|obsolete|unused|not used|no longer|ignored|no effect|suppress|reserved|legacy", re.I
)
CONFIG_NAME = re.compile(r"config|cfg|conf\b|hparam|hyper|param|setting|option|args|arguments|opts?\b", re.I)
PARSERS = frozenset(["parse_args", "parse_known_args", "parse_intermixed_args"])


def argparse_options(project: Project) -> Options | None:
    """The options of the parsers of the command line, all in one set."""
    keys: dict[str, Key] = {}
    path = ""
    for call in project.calls:
        name = dest_of(call)
        if name and name not in LAUNCHER and _is_plain_option(call):
            path = path or project.file(call).path
            keys.setdefault(name, Key(call.lineno, value=project.at(call)))
    roots: list[ast.AST] = [
        call for call in project.calls if isinstance(call.func, ast.Attribute) and call.func.attr in PARSERS
    ]
    return Options("argparse", path, keys, roots) if keys and roots else None


def dest_of(call: ast.Call) -> str | None:
    """The attribute under which `add_argument` stores its value."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"):
        return None
    flags = [text_of(arg) for arg in call.args]
    if not flags or any(flag is None for flag in flags) or any(item.arg is None for item in call.keywords):
        return None
    if (dest := keyword(call, "dest")) is not None:
        return text_of(dest)
    names = [flag for flag in flags if flag]
    long = [flag for flag in names if flag.startswith("--")]
    chosen = (long or names or [""])[0]
    return chosen.lstrip("-").replace("-", "_") if chosen.startswith("-") else chosen


def flag_of(call: ast.Call) -> str:
    """The option of an `add_argument` as one types it."""
    flags = [text for arg in call.args if (text := text_of(arg))]
    return next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else "")


def _is_plain_option(call: ast.Call) -> bool:
    """Whether an option does nothing but store a value, and says nothing about being without use."""
    action = keyword(call, "action")
    stores = ("store", "store_true", "store_false", "store_const", "append", "append_const", "count", "extend")
    if (
        action is not None
        and text_of(action) not in stores
        and not ast.unparse(action).endswith("BooleanOptionalAction")
    ):
        return False
    described = keyword(call, "help")
    return described is None or not SELF_DECLARED.search(ast.unparse(described))


def dict_options(project: Project) -> Iterator[Options]:
    """Dict literals under a name that says configuration."""
    for node in project.nodes(ast.Assign):
        if not (isinstance(node.value, ast.Dict) and len(node.targets) == 1):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and CONFIG_NAME.search(target.id) and len(node.value.keys) >= 3:
            keys = _dict_keys(node.value)
            if keys:
                yield Options("dict", project.file(node).path, keys, [node.value])


def _dict_keys(node: ast.Dict) -> dict[str, Key]:
    names = [text_of(key) for key in node.keys]
    if any(name is None or not name.isidentifier() for name in names):
        return {}
    return {
        name: Key(key.lineno, literal(value), _dict_keys(value) if isinstance(value, ast.Dict) else {})
        for name, key, value in zip(names, node.keys, node.values, strict=True)
        if name is not None and key is not None
    }


def class_options(project: Project) -> Iterator[Options]:
    """Data classes, and classes of nothing but constants, whose name says configuration."""
    for classes in project.classes.values():
        for node in classes:
            if len(classes) == 1 and CONFIG_NAME.search(node.name) and _is_plain_class(project, node):
                keys = _class_keys(node)
                if len(keys) >= 3:
                    yield Options("class", project.file(node).path, keys, [], node)


def _is_plain_class(project: Project, node: ast.ClassDef) -> bool:
    decorators = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    data = [project.qualified(item) in ("dataclasses.dataclass", "attr.s", "attrs.define") for item in decorators]
    if not all(data) or any(project.qualified(base) != "pydantic.BaseModel" for base in node.bases) or node.keywords:
        return False
    if any(node in project.definitions(base) for other in project.classes.values() for c in other for base in c.bases):
        return False
    return bool(data or node.bases) or all(
        isinstance(item, ast.Assign | ast.AnnAssign | ast.Expr | ast.Pass) for item in node.body
    )


def _class_keys(node: ast.ClassDef) -> dict[str, Key]:
    keys = {}
    for item in node.body:
        targets = (
            [item.target] if isinstance(item, ast.AnnAssign) else item.targets if isinstance(item, ast.Assign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                keys[target.id] = Key(item.lineno, literal(getattr(item, "value", None)))
    return keys
