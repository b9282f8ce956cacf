"""Keeps a watched run from touching the user's files.

The run happens in a copy of the project whose large files are links to the originals. Before a link is written to it
is replaced: by nothing if the file is about to be emptied, else by a copy. A file outside of the copy is copied to the
backup folder before it is first written to, and put back by the parent process after the run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
NOT_FILES = ("/dev/", "/proc/", "/sys/")
LARGEST_BACKUP = 2 * 2**30
MOST_LINKS = 20_000
# Audit events that change one file or folder: which argument is the descriptor of the folder that a path begins at.
CHANGES = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None, "os.chmod": 2, "os.utime": 3,
    "shutil.rmtree": 1, "sqlite3.connect": None,
}  # fmt: skip
REMOVALS = ("os.remove", "os.rmdir", "shutil.rmtree")


class RefusedError(PermissionError):
    """A file of the user's cannot be kept safe, so it is not changed."""


class Guard:
    """An audit hook that sees every file that Python opens, before it is opened."""

    def __init__(self, session: Any) -> None:
        settings = session.settings
        self.session = session
        self.root = os.path.realpath(settings["root"]) + os.sep
        self.backup = settings["backup"]
        self.kept = os.path.realpath(settings["kept"]) + os.sep
        self.free = tuple(os.path.realpath(p) + os.sep for p in settings["free"])
        self.seen: set[str] = set()
        self.busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook itself; it must be quick, for it is called at every import and more."""
        if event == "open":
            path, mode, flags = arguments
            if self.busy or not isinstance(path, (str, bytes)):
                return
            writing = bool((flags or 0) & WRITES) or (isinstance(mode, str) and any(c in mode for c in "wax+"))
            self.guarded(os.fsdecode(path), writing, fresh=bool((flags or 0) & os.O_TRUNC) or mode in ("w", "wb"))
        elif self.busy:
            return
        elif event in CHANGES:
            place = CHANGES[event]
            path = _path(arguments[0], arguments[place] if place is not None and place < len(arguments) else -1)
            if path and not (event == "sqlite3.connect" and path.startswith((":", "file:"))):
                inside = event == "shutil.rmtree"
                self.guarded(os.path.join(path, "") if inside else path, True, event == "os.mkdir", event in REMOVALS)
        elif event in ("os.rename", "os.link", "os.symlink"):
            ends = zip(arguments[:2], arguments[2:4]) if event != "os.symlink" else [arguments[1:3]]
            for end in ends:
                if path := _path(*end):
                    self.guarded(path, True, fresh=event != "os.link", is_removal=event != "os.link")

    def note_rename(self, source: Any, target: Any) -> None:
        """A checkpoint that is written under another name first gets its own."""
        saved = getattr(self.session.recorder, "saved_paths", None)
        if not saved or not isinstance(source, (str, bytes, os.PathLike)):
            return
        one, other = os.path.abspath(os.fsdecode(source)), os.path.abspath(os.fsdecode(target))
        if one in saved:
            saved[other] = saved.pop(one)
            original = self.session.places.original
            self.session.emit("renamed", path=original(os.path.realpath(one)), to=original(os.path.realpath(other)))

    def guarded(self, path: str, writing: bool, fresh: bool, is_removal: bool = False) -> None:
        """Run the guard on one file, which must not guard its own file operations."""
        self.busy = True
        try:
            if writing:
                whole = path.endswith(os.sep)
                self.before_write(os.path.abspath(path), fresh, is_removal, whole)
            else:
                self.before_read(path)
        except RefusedError:
            raise
        except OSError:
            pass
        finally:
            self.busy = False

    def before_read(self, path: str) -> None:
        """Remember configuration files."""
        from .bootstrap import CONFIG_SUFFIXES

        if path.endswith(CONFIG_SUFFIXES):
            self.session.configs.setdefault(os.path.abspath(path))

    def before_write(self, path: str, fresh: bool, is_removal: bool, whole: bool = False) -> None:
        """Make sure that what is written to is ours; `whole`: a folder with all that is in it."""
        if path.startswith(NOT_FILES):
            return
        if path.startswith(self.root):
            self.open_folders(os.path.join(path, "all") if whole else path)
        if os.path.islink(path) and path.startswith(self.root):
            if is_removal:
                return  # only the link goes
            target = os.path.realpath(path)
            if not self.is_free(target) and not os.path.isdir(target):
                os.unlink(path)
                if not fresh and os.path.isfile(target):
                    shutil.copy2(target, path)
            return
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        real = real if is_removal else os.path.realpath(path)
        if not self.is_free(real) and real not in self.seen:
            self.seen.add(real)
            self.keep(real)

    def open_folders(self, path: str) -> None:
        """Links to folders on the way to a file become folders, with links to what they hold."""
        place = self.root.rstrip(os.sep)
        for name in path[len(self.root) :].split(os.sep)[:-1]:
            place = os.path.join(place, name)
            if not os.path.islink(place):
                continue
            target = os.path.realpath(place)
            if self.is_free(target) or not os.path.isdir(target):
                return
            names = os.listdir(target)
            if len(names) > MOST_LINKS:
                return
            os.unlink(place)
            os.mkdir(place)
            for one in names:
                os.symlink(os.path.join(target, one), os.path.join(place, one))

    def is_free(self, real: str) -> bool:
        """Whether anybody may write there: the copy, caches, temporary folders that the project does not lie in."""
        return real.startswith(self.root) or (real.startswith(self.free) and not (real + os.sep).startswith(self.kept))

    def keep(self, real: str) -> None:
        """Back up a file outside of the copy, or note that it is new."""
        existed = os.path.lexists(real)
        copy = ""
        if os.path.isfile(real):
            if os.path.getsize(real) > LARGEST_BACKUP:
                raise RefusedError(f"kit watch does not let {real} be changed: it is too large to be kept")
            copy = os.path.join(self.backup, f"{os.getpid()}-{len(self.seen)}")
            shutil.copy2(real, copy)
        with open(os.path.join(self.backup, "list.jsonl"), "a", encoding="utf-8") as file:
            file.write(
                json.dumps({"path": real, "copy": copy, "existed": existed, "folder": os.path.isdir(real)}) + "\n"
            )


def _path(path: Any, folder: Any) -> str:
    """A path as text; what is relative to an open folder is led there."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return ""
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
        try:
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        except OSError:
            return text
    return text


def guard(session: Any) -> Guard:
    """Install the audit hook; the result also guards what is written by other means than Python's `open`."""
    session.guard = Guard(session)
    sys.addaudithook(session.guard)
    return session.guard
