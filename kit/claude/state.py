"""What the hooks remember of a project between two calls, outside of it: in the user's cache, by its path."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kit.facts import python_files

SETTINGS = ("verify.yaml", "config.yaml")


@dataclass
class Session:
    """A session of the client in a project.

    Args:
        code: fingerprint of the code when it began; empty if that was not recorded.
        said: digests of the reasons that it was stopped for, or told, already.
    """

    code: str = ""
    said: list[str] = field(default_factory=list)

    def is_new(self, reason: str) -> bool:
        """Whether this reason comes up for the first time; from now on it does not."""
        digest = hashlib.sha256(reason.encode()).hexdigest()
        if digest in self.said:
            return False
        self.said.append(digest)
        return True


def fingerprint(project: Path) -> str:
    """A digest of the project's own Python files and of the files that say what it must be."""
    digest = hashlib.sha256()
    for path in [*python_files(project), *(project / name for name in SETTINGS)]:
        if path.is_file():
            digest.update(f"{path.relative_to(project)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def read_session(project: Path, session_id: str) -> Session:
    """What is remembered of a session; nothing of an unknown one."""
    known = _read(_session_file(project, session_id))
    said = known.get("said", [])
    return Session(str(known.get("code", "")), [str(item) for item in said] if isinstance(said, list) else [])


def write_session(project: Path, session_id: str, session: Session) -> None:
    """Remember a session."""
    _write(_session_file(project, session_id), asdict(session))


def accept(project: Path) -> None:
    """Remember that `kit verify` held on the code as it is."""
    _write(_folder(project) / "verdict.json", {"code": fingerprint(project)})


def is_accepted(project: Path, code: str) -> bool:
    """Whether `kit verify` held on code with this fingerprint."""
    return _read(_folder(project) / "verdict.json").get("code") == code


def _session_file(project: Path, session_id: str) -> Path:
    return _folder(project) / f"session-{re.sub(r'[^A-Za-z0-9-]', '', session_id) or 'unknown'}.json"


def _folder(project: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kit" / hashlib.sha256(str(project.resolve()).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
