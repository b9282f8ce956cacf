"""Options in configuration files: YAML, JSON and TOML, with the lines of their keys."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from verify.options.declared import CONFIG_NAME
from verify.options.model import Key, Options
from verify.source import (
    Project,
    words,
)
from verify.trace.record import Record

NOT_TRAINING_CONFIG = frozenset(["pyproject.toml", "verify.yaml", "verify.yml", "setup.json", "package.json"])
LOADERS = {
    "yaml": words(
        "yaml.safe_load yaml.load yaml.full_load yaml.unsafe_load ruamel.yaml.safe_load omegaconf.OmegaConf.load"
    ),
    "json": words("json.load json.loads"),
    "toml": words("tomllib.load tomllib.loads toml.load toml.loads tomli.load tomli.loads"),
}
FORMATS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}


def file_options(record: Record, project: Project) -> Iterator[Options]:
    """The configuration files that the project loads by itself."""
    if project.imported & {"hydra", "gin", "jsonargparse"}:
        return
    for path, text in record.sources.items():
        kind = FORMATS.get(PurePosixPath(path).suffix)
        if kind is None or not _is_configuration(path, kind):
            continue
        roots: list[ast.AST] = [call for call in project.calls if _loads(project, call, kind)]
        keys = file_keys(text, kind)
        if roots and keys and not {"defaults", "_target_", "__base__", "_base_", "hydra"} & keys.keys():
            yield Options("file", path, keys, roots)


def _is_configuration(path: str, kind: str) -> bool:
    name = PurePosixPath(path).name
    return name not in NOT_TRAINING_CONFIG and (kind != "json" or bool(CONFIG_NAME.search(name)))


def _loads(project: Project, call: ast.Call, kind: str) -> bool:
    name = project.qualified(call.func)
    if name in LOADERS[kind] or (kind == "json" and name in LOADERS["yaml"]):
        return True
    made = isinstance(call.func, ast.Attribute) and call.func.attr == "load"
    return made and isinstance(call.func, ast.Attribute) and project.all_from(call.func.value, ["ruamel.yaml.YAML"])


def file_keys(text: str, kind: str) -> dict[str, Key]:
    """The keys of a configuration file, with their lines; nothing when it does not parse."""
    if kind == "toml":
        return _toml_keys(text)
    try:
        if kind == "json":
            json.loads(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return {}
    if not isinstance(root, yaml.MappingNode):
        return {}
    shared = _shared_nodes(root)
    keys = _yaml_keys(root, shared)
    for used in re.findall(r"\$\{([^}]*)\}", text):
        drop(keys, used.split(".")[-1].split(":")[-1].strip())
    return keys


def _shared_nodes(root: yaml.Node) -> set[int]:
    """Nodes that an alias repeats: their anchor is read by the file itself."""
    seen: dict[int, int] = defaultdict(int)

    def visit(node: yaml.Node) -> None:
        seen[id(node)] += 1
        if seen[id(node)] > 1:
            return
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        for child in children if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else []:
            visit(child)

    visit(root)
    return {node for node, count in seen.items() if count > 1}


def _yaml_keys(node: yaml.MappingNode, shared: set[int]) -> dict[str, Key]:
    keys = {}
    for name, value in node.value:
        if name.tag != "tag:yaml.org,2002:str" or id(value) in shared or name.value.startswith(("_", ".", "x-")):
            continue
        below = _yaml_keys(value, shared) if isinstance(value, yaml.MappingNode) else {}
        constant = yaml.SafeLoader("").construct_object(value) if isinstance(value, yaml.ScalarNode) else None
        keys[name.value] = Key(name.start_mark.line + 1, constant, below)
    return keys


def _toml_keys(text: str) -> dict[str, Key]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}
    lines = text.splitlines()

    def build(table: dict[str, Any]) -> dict[str, Key]:
        return {
            name: Key(_toml_line(lines, name), value, build(value) if isinstance(value, dict) else {})
            for name, value in table.items()
        }

    return build(data)


def _toml_line(lines: list[str], name: str) -> int:
    pattern = re.compile(rf'^\s*(\[.*\b)?"?{re.escape(name)}"?\b\s*(=|\]|\.)')
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), 1)


def drop(keys: dict[str, Key], name: str) -> None:
    """Leave out every key of a name."""
    keys.pop(name, None)
    for key in keys.values():
        drop(key.below, name)
