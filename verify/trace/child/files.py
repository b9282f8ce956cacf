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


class Guard:
    """An audit hook that sees every file that Python opens, before it is opened."""

    def __init__(self, session: Any) -> None:
        settings = session.settings
        self.session = session
        self.scratch = os.path.realpath(settings["scratch"]) + os.sep
        self.backup = settings["backup"]
        self.project = os.path.realpath(settings["project"]) + os.sep
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
        elif event in ("os.remove", "os.truncate", "shutil.rmtree") and not self.busy:
            if isinstance(arguments[0], (str, bytes)):
                self.guarded(os.fsdecode(arguments[0]), True, fresh=False, is_removal=event != "os.truncate")
        elif event == "os.rename" and not self.busy:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes)):
                    self.guarded(os.fsdecode(path), True, fresh=True, is_removal=True)

    def guarded(self, path: str, writing: bool, fresh: bool, is_removal: bool = False) -> None:
        """Run the guard on one file, which must not guard its own file operations."""
        self.busy = True
        try:
            if writing:
                self.before_write(os.path.abspath(path), fresh, is_removal)
            else:
                self.before_read(path)
        except OSError:
            pass
        finally:
            self.busy = False

    def before_read(self, path: str) -> None:
        """Remember configuration files."""
        from .bootstrap import CONFIG_SUFFIXES

        if path.endswith(CONFIG_SUFFIXES):
            self.session.configs.setdefault(os.path.abspath(path))

    def before_write(self, path: str, fresh: bool, is_removal: bool) -> None:
        """Make sure that what is written to is ours."""
        if path.startswith(NOT_FILES):
            return
        if os.path.islink(path):
            if path.startswith(self.scratch) and is_removal:
                return  # only the link goes
            target = os.path.realpath(path)
            if path.startswith(self.scratch) and not self.is_free(target):
                os.unlink(path)
                if not fresh and os.path.isfile(target):
                    shutil.copy2(target, path)
                return
        real = os.path.realpath(path)
        if not self.is_free(real) and real not in self.seen:
            self.seen.add(real)
            self.keep(real)

    def is_free(self, real: str) -> bool:
        """Whether anybody may write there: the copy, caches, temporary folders that are not the project."""
        return real.startswith(self.scratch) or (real.startswith(self.free) and not real.startswith(self.project))

    def keep(self, real: str) -> None:
        """Back up a file outside of the copy, or note that it is new."""
        existed = os.path.exists(real)
        copy = ""
        if os.path.isfile(real) and os.path.getsize(real) <= LARGEST_BACKUP:
            copy = os.path.join(self.backup, f"{os.getpid()}-{len(self.seen)}")
            shutil.copy2(real, copy)
        with open(os.path.join(self.backup, "list.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"path": real, "copy": copy, "existed": existed}) + "\n")


def guard(session: Any) -> Guard:
    """Install the audit hook; the result also guards what is written by other means than Python's `open`."""
    session.guard = Guard(session)
    sys.addaudithook(session.guard)
    return session.guard
