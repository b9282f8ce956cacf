"""The record as it is written: one JSON object a line, and where in the user's code each event happened."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import threading
import time
from types import CodeType, FrameType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
FLUSH_SECONDS = 0.5
FLUSH_EVENTS = 500


def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in names}
    return tuple(folders)


class Places:
    """Tells the user's code from libraries, and names places in it relative to the project.

    Args:
        mirrors: (scratch folder, original folder) pairs; a place in the copy is named as in the original.
        project: the original project folder.
    """

    def __init__(self, mirrors: list[tuple[str, str]], project: str) -> None:
        # Of the kit only what trains is a program: not the verifier, nor what starts it.
        root = os.path.dirname(os.path.dirname(os.path.dirname(HERE.rstrip(os.sep))))
        own = tuple(os.path.join(root, folder) + os.sep for folder in ("verify", "kit", "tests"))
        self.libraries = (*_library_folders(), *own)
        self.mirrors = [(os.path.realpath(copy) + os.sep, original + os.sep) for copy, original in mirrors]
        self.project = project + os.sep
        self._known: dict[CodeType, str] = {}

    def file(self, code: CodeType) -> str:
        """The name of the file of user code, relative to the project where it lies inside; empty for a library."""
        name = self._known.get(code)
        if name is None:
            name = self._known[code] = self._name(code.co_filename)
        return name

    def _name(self, filename: str) -> str:
        if filename.startswith("<") and not filename.startswith("<ipython"):
            return ""
        path = os.path.realpath(filename)
        if path.startswith((HERE, *self.libraries)) or "site-packages" in path or "dist-packages" in path:
            return ""
        return self.original(path)

    def original(self, path: str) -> str:
        """`path` as the user knows it: in the original folder, and relative to the project if inside."""
        for copy, original in self.mirrors:
            if path.startswith(copy):
                path = original + path[len(copy) :]
                break
        return path[len(self.project) :] if path.startswith(self.project) else path

    def here(self) -> str:
        """`file:line` of the innermost frame of user code, or nothing."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self.file(frame.f_code)
            if name:
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def user_frames(self) -> list[FrameType]:
        """The frames of user code, innermost first."""
        frame: FrameType | None = sys._getframe(1)
        found = []
        while frame is not None:
            if self.file(frame.f_code):
                found.append(frame)
            frame = frame.f_back
        return found


class Writer:
    """Appends events to a file of this process; nothing is created before the first one."""

    def __init__(self, folder: str) -> None:
        self.pid = os.getpid()
        self.path = os.path.join(folder, f"events-{self.pid}.jsonl")
        self.started = time.monotonic()
        self.number = 0
        self._waiting: list[str] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def emit(self, kind: str, **fields: Any) -> None:
        """Write an event down; `i` numbers them, `t` is the time in seconds since the process began to be recorded."""
        if os.getpid() != self.pid:
            return  # a forked child of the user's
        now = time.monotonic()
        with self._lock:
            event = {"kind": kind, "i": self.number, "t": round(now - self.started, 4), **fields}
            self.number += 1
            self._waiting.append(json.dumps(event, default=str))
            due = len(self._waiting) >= FLUSH_EVENTS or now - self._flushed > FLUSH_SECONDS
        if due:
            self.flush()

    def flush(self) -> None:
        """Put what waits into the file."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            lines, self._waiting = self._waiting, []
            self._flushed = time.monotonic()
        if lines:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")


def finite(value: float) -> float | str:
    """JSON has no word for nan and infinity."""
    return value if value == value and value not in (float("inf"), float("-inf")) else str(value)
