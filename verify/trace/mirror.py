"""A copy of a project for a watched run: code is copied, data is linked, and what the run writes stays in the copy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

# Folders that a program reads from and that may be large; linked as they are.
LINKED = {".git", ".hg", ".venv", "venv", "env", "node_modules", ".tox", ".conda"}
LEFT_OUT = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
LARGEST_COPY = 1 * 2**20
# What libraries write without Python's knowledge, through a link too, is copied even if it is large.
RESULTS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5", ".hdf5", ".db", ".sqlite", ".parquet", ".bin")
LARGEST_RESULT, LARGEST_RESULTS = 256 * 2**20, 2**30
MOST_FILES_IN_FOLDER = 300
MOST_ENTRIES = 20_000
# Relative paths may lead out of the project: `../data`. So many levels above it are there.
LEVELS_ABOVE = 3
MOST_SIBLINGS = 2000


class Mirror:
    """The copy.

    Args:
        folder: the original project folder.
        scratch: an empty folder for the copy and what lies above it.
        hidden: files that are left out, relative to the project.
    """

    def __init__(self, folder: Path, scratch: Path, hidden: frozenset[str] = frozenset()) -> None:
        self.folder, self.hidden, self.root = folder, hidden, scratch
        self._entries = self._results = 0
        above = [*folder.parents][:LEVELS_ABOVE]
        above = [parent for parent in above if parent != parent.parent]
        copy = scratch
        for parent in reversed(above):
            copy = copy / (parent.name or "root")
            copy.mkdir()
            self._link_siblings(parent, copy, self._child_towards(parent))
        self.copy = copy / (folder.name or "root")
        self.copy.mkdir()
        self._fill(folder, self.copy)

    def _child_towards(self, parent: Path) -> str:
        return self.folder.relative_to(parent).parts[0]

    def _link_siblings(self, parent: Path, copy: Path, left_out: str) -> None:
        try:
            names = [path.name for path in parent.iterdir()]
        except OSError:
            return
        for name in names[:MOST_SIBLINGS]:
            if name != left_out:
                (copy / name).symlink_to(parent / name)

    def _fill(self, source: Path, copy: Path) -> None:
        with os.scandir(source) as entries:
            found = list(entries)
        for entry in found:
            self._entries += 1
            target = copy / entry.name
            relative = str(Path(entry.path).relative_to(self.folder))
            if entry.name in LEFT_OUT or relative in self.hidden:
                continue
            if entry.is_symlink() or entry.name in LINKED:
                target.symlink_to(os.path.realpath(entry.path))
            elif entry.is_dir():
                self._add_folder(Path(entry.path), target)
            elif entry.is_file():
                self._add_file(Path(entry.path), target)

    def _add_folder(self, source: Path, target: Path) -> None:
        if self._entries > MOST_ENTRIES or _is_data(source):
            target.symlink_to(source)
            return
        target.mkdir()
        try:
            self._fill(source, target)
        except PermissionError:
            return

    def _add_file(self, source: Path, target: Path) -> None:
        try:
            if self._is_copied(source, source.stat().st_size):
                shutil.copy2(source, target)
            else:
                target.symlink_to(source)
        except OSError:
            return

    def _is_copied(self, source: Path, size: int) -> bool:
        if size <= LARGEST_COPY:
            return True
        if source.suffix not in RESULTS or size > LARGEST_RESULT or self._results + size > LARGEST_RESULTS:
            return False
        self._results += size
        return True


def _is_data(folder: Path) -> bool:
    """Many files and no code: linked as a whole."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return True
    return len(names) > MOST_FILES_IN_FOLDER and not any(name.endswith(".py") for name in names)


def put_back(backup: Path, project: Path) -> tuple[list[str], list[str]]:
    """Undo what the run changed outside of the copy; new files in the project are removed, others are left.

    Returns:
        (paths restored, paths newly made outside of the project)
    """
    listing = backup / "list.jsonl"
    restored: list[str] = []
    made: list[str] = []
    if not listing.exists():
        return restored, made
    entries: dict[str, dict] = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entries.setdefault(entry["path"], entry)  # a second process saw what the first had already changed
    for path, entry in ((Path(path), entry) for path, entry in entries.items()):
        if entry["copy"]:
            original = Path(entry["copy"]).read_bytes()
            if not path.is_file() or path.read_bytes() != original:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(entry["copy"], path)
                restored.append(str(path))
        elif entry["existed"] and entry["folder"] and not path.exists():
            path.mkdir(parents=True)
            restored.append(str(path))
        elif not entry["existed"] and os.path.lexists(path):
            if path.is_relative_to(project):
                _remove(path)
            else:
                made.append(str(path))
    return restored, made


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
