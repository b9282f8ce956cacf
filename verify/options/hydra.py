"""Options that Hydra composes of several files."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from verify.options.files import drop, file_keys
from verify.options.model import Key, Options
from verify.source import (
    Function,
    Project,
    argument,
    parameters,
    text_of,
    words,
)
from verify.trace.record import Record

HYDRA_COMPOSE = words("hydra.compose hydra.experimental.compose")
HYDRA_INITIALIZE = words("hydra.initialize hydra.experimental.initialize")


def hydra_options(record: Record, project: Project) -> Iterator[Options]:
    """What Hydra composes of the files that it opened in this run; an override on the command line opens others."""
    given = [arg for entry in _functions(project) if _hydra_call(project, entry) for arg in parameters(entry)[:1]]
    roots: list[ast.AST] = [c for c in project.calls if project.qualified(c.func) in HYDRA_COMPOSE]
    folder = _hydra_folder(project)
    if folder is None or not (given or roots):
        return
    files = {
        path: text
        for path, text in record.sources.items()
        if PurePosixPath(path).is_relative_to(folder) and PurePosixPath(path).suffix in (".yaml", ".yml")
    }
    keys = _composed(files, folder)
    if keys:
        yield Options("file", next(iter(files)), keys, roots, given=given)


def _functions(project: Project) -> list[Function]:
    return [*project.nodes(ast.FunctionDef), *project.nodes(ast.AsyncFunctionDef)]


def _hydra_call(project: Project, function: Function) -> ast.Call | None:
    """The `@hydra.main(...)` of a function."""
    for item in function.decorator_list:
        if isinstance(item, ast.Call) and project.qualified(item.func) == "hydra.main":
            return item
    return None


def _hydra_folder(project: Project) -> PurePosixPath | None:
    """The one folder that configurations are composed from; None when there are several, or it is not to be seen."""
    calls = [call for entry in _functions(project) if (call := _hydra_call(project, entry))]
    calls += [call for call in project.calls if project.qualified(call.func) in HYDRA_INITIALIZE]
    folders = set()
    for call in calls:
        written = text_of(argument(call, 0, "config_path"))
        if written is None or "://" in written:
            return None
        folders.add(posixpath.normpath(posixpath.join(posixpath.dirname(project.file(call).path), written)))
    return PurePosixPath(folders.pop()) if len(folders) == 1 else None


def _composed(files: dict[str, str], folder: PurePosixPath) -> dict[str, Key]:
    """The keys of several files in one tree: each file lies below the name of its group, or where it says itself."""
    renamed = _packages(files.values())
    tree: dict[str, Key] = {}
    for path, text in files.items():
        group = PurePosixPath(path).relative_to(folder).parent.as_posix().replace("/", ".").strip(".")
        said = re.match(r"\s*#\s*@package:?\s+(\S+)", text)
        package = said[1].replace("_group_", group) if said else renamed.get(group, group)
        parts = [part for part in package.split(".") if part and part != "_global_"]
        if parts[:1] == ["hydra"] or group.split(".")[0] == "hydra":
            continue
        keys = file_keys(text, "yaml")
        for name in ("defaults", "hydra"):
            keys.pop(name, None)
        _set_path(keys, path)
        for part in reversed(parts):
            keys = {part: Key(1, None, keys, path)} if keys else {}
        _join(tree, keys)
    for used in re.findall(r"\$\{([^}]*)\}", "\n".join(files.values())):
        drop(tree, used.split(".")[-1].split(":")[-1].strip())
    return tree


def _packages(texts: Iterable[str]) -> dict[str, str]:
    """Groups that a list of defaults puts elsewhere: `optimizer@inner.optimizer: adam`."""
    pairs = [pair for text in texts for pair in re.findall(r"-\s*(?:override\s+)?/?([\w/]+)@([\w.]+)\s*:", text)]
    return {group.replace("/", "."): package for group, package in pairs}


def _set_path(keys: dict[str, Key], path: str) -> None:
    for key in keys.values():
        key.path = path
        _set_path(key.below, path)


def _join(tree: dict[str, Key], more: dict[str, Key]) -> None:
    for name, key in more.items():
        if name in tree and (tree[name].below or key.below):
            _join(tree[name].below, key.below)
        else:
            tree[name] = key
