"""Files that the kit shares with the user: put our part in, take it out, and leave theirs as it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.claude.clauderc import ClaudeError, read_json

SCHEMA = "https://json.schemastore.org/claude-code-settings.json"


@dataclass(frozen=True)
class Block:
    """A part of a text file between two lines that name the kit.

    Args:
        opening: the first line.
        closing: the last line.
    """

    opening: str
    closing: str

    def put(self, text: str | None, lines: list[str]) -> str:
        """The text with our lines at its end; those that it already has are left out."""
        before = self.take(text or "")
        theirs = set(before.splitlines())
        ours = [line for line in lines if not line.strip() or line not in theirs]
        gap = "" if not before or before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
        return before + gap + "\n".join([self.opening, *ours, self.closing]) + "\n"

    def take(self, text: str) -> str:
        """The text without our lines, and without the empty line that went before them."""
        pattern = rf"\n?^{re.escape(self.opening)}$.*?^{re.escape(self.closing)}$\n?"
        return re.sub(pattern, "", text, count=1, flags=re.MULTILINE | re.DOTALL)


CLAUDE_BLOCK = Block("<!-- kit: written by `kit init`, from .clauderc -->", "<!-- kit: end -->")
GIT_BLOCK = Block("# kit: written by `kit init`, from .clauderc", "# kit: end")


@dataclass
class Ours:
    """What the kit adds to settings.json.

    Args:
        allow: rules of `permissions.allow`.
        deny: rules of `permissions.deny`.
        hooks: event -> entries.
    """

    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def put_settings(path: Path, text: str | None, ours: Ours) -> tuple[str, Ours]:
    """The settings with our rules and hooks behind those of the user, and those of ours that they did not have.

    Raises:
        ClaudeError: a part of them has not the form that the client expects.
    """
    settings = json.loads(text) if text else {"$schema": SCHEMA}
    added = Ours()
    permissions = _table(settings, "permissions", path)
    for key, rules in (("allow", ours.allow), ("deny", ours.deny)):
        listed = _list(permissions, key, path, "permissions.")
        getattr(added, key).extend(rule for rule in rules if rule not in listed)
        listed += getattr(added, key)
    hooks = _table(settings, "hooks", path) if ours.hooks else {}
    for event, entries in ours.hooks.items():
        listed = _list(hooks, event, path, "hooks.")
        added.hooks[event] = [entry for entry in entries if entry not in listed]
        listed += added.hooks[event]
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n", added


def take_settings(text: str, ours: Ours) -> str:
    """The settings without our rules and hooks, and without what is empty then."""
    settings = json.loads(text)
    permissions = settings.get("permissions")
    for key, rules in (("allow", ours.allow), ("deny", ours.deny)):
        _remove(permissions, key, rules)
    hooks = settings.get("hooks")
    for event, entries in ours.hooks.items():
        _remove(hooks, event, entries)
    for key in ("permissions", "hooks"):
        if settings.get(key) == {}:
            del settings[key]
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def check_settings(path: Path) -> str | None:
    """The text of a settings file, if there is one.

    Raises:
        ClaudeError: it is not valid JSON.
    """
    try:
        read_json(path)
    except FileNotFoundError:
        return None
    return path.read_text(encoding="utf-8")


def _table(parent: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = parent.setdefault(key, {})
    if not isinstance(value, dict):
        raise ClaudeError(f"{path}: {key} must be an object; the client ignores the whole file otherwise")
    return value


def _list(parent: dict[str, Any], key: str, path: Path, prefix: str) -> list[Any]:
    value = parent.setdefault(key, [])
    if not isinstance(value, list):
        raise ClaudeError(f"{path}: {prefix}{key} must be a list; the client ignores the whole file otherwise")
    return value


def _remove(parent: Any, key: str, items: list[Any]) -> None:
    if isinstance(parent, dict) and isinstance(parent.get(key), list):
        parent[key] = [item for item in parent[key] if item not in items]
        if not parent[key]:
            del parent[key]
