"""`.clauderc`, the project's list of what Claude should not see and should always see.

Claude Code does not read that file. So the kit compiles it into what the client does read: `ignore` becomes rules in
`permissions.deny` of `.claude/settings.json` and lines of `.gitignore`; `context.always_include` becomes imports
(`@file`) in CLAUDE.md; `protect` becomes rules against edits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.spec import nearest

FILE = ".clauderc"
KEYS = ("ignore", "context", "protect")
CONTEXT_KEYS = ("always_include",)


class ClaudeError(Exception):
    """A mistake in a file of the user's; its text is one clear sentence."""


@dataclass(frozen=True)
class ClaudeRc:
    """What a `.clauderc` says.

    Args:
        ignore: patterns in the syntax of `.gitignore`, from the project's root: not to be read.
        always_include: files that every session begins with.
        protect: patterns of what may be read, and not edited: data and code that measure the result.
    """

    ignore: tuple[str, ...] = ()
    always_include: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()

    def denials(self) -> list[str]:
        """The rules of `permissions.deny`, anchored at the project and not at wherever the shell is."""
        reads = [f"Read(/{pattern.lstrip('/')})" for pattern in self.ignore]
        return reads + [f"Edit(/{pattern.lstrip('/')})" for pattern in self.protect]

    def git_lines(self) -> list[str]:
        """The lines of `.gitignore`; git never looks into its own folder."""
        return [pattern for pattern in self.ignore if pattern.lstrip("*/").split("/")[0] != ".git"]

    def imports(self) -> list[str]:
        """The lines of CLAUDE.md."""
        return [f"@{name}" for name in self.always_include]


def read_clauderc(path: Path) -> ClaudeRc:
    """Read and check a `.clauderc`.

    Raises:
        ClaudeError: it is not JSON, or says something that the kit does not know.
    """
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return ClaudeRc()
    _known(raw, KEYS, path, "")
    context = raw.get("context", {})
    if not isinstance(context, dict):
        raise ClaudeError(f'{path}: context must be an object such as {{"always_include": ["README.md"]}}')
    _known(context, CONTEXT_KEYS, path, "context.")
    return ClaudeRc(
        ignore=_patterns(raw.get("ignore", []), path, "ignore"),
        always_include=_patterns(context.get("always_include", []), path, "context.always_include"),
        protect=_patterns(raw.get("protect", []), path, "protect"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ClaudeError: it holds none; the message says where it breaks.
        FileNotFoundError: there is no such file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ClaudeError(f"{path}:{error.lineno}:{error.colno} is not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ClaudeError(f"{path} is not UTF-8 text") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClaudeError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(raw, dict):
        raise ClaudeError(f"{path} must hold a JSON object, {{...}}")
    return raw


def remarks(rc: ClaudeRc, project: Path) -> Iterator[str]:
    """What the reader of a `.clauderc` would want to know: code that it hides, files that are not there."""
    for name in rc.always_include:
        if not (project / name).is_file():
            yield f"context.always_include: {name} is not there, so nothing is included"
    for pattern in rc.ignore:
        hidden = [str(p.relative_to(project)) for p in sorted(project.glob("**/*.py")) if _matches(p, project, pattern)]
        if hidden:
            yield f"ignore: {pattern} hides code from Claude: {hidden[0]}" + (
                f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
            )


def _matches(path: Path, project: Path, pattern: str) -> bool:
    import pathspec

    relative = path.relative_to(project)
    if any(part.startswith(".") or part == "site-packages" for part in relative.parts):
        return False
    return pathspec.PathSpec.from_lines("gitignore", [pattern]).match_file(str(relative))


def _known(raw: dict[str, Any], known: tuple[str, ...], path: Path, prefix: str) -> None:
    for key in raw:
        if key not in known:
            names = ", ".join(prefix + name for name in known)
            raise ClaudeError(f"{path}: unknown key {prefix + key!r}{nearest(key, list(known))}; known are {names}")


def _patterns(value: Any, path: Path, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ClaudeError(f'{path}: {key} must be a list of paths such as ["data/raw/**"]')
    bad = next((item for item in value if "\n" in item or "(" in item or ")" in item), None)
    if bad is not None:
        raise ClaudeError(f"{path}: {key}: {bad!r} has a character that no path of a rule may have")
    return tuple(value)
