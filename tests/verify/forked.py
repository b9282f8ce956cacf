"""`kit verify` in a fork of the test process, which has imported torch already: the same program, in less time.

What isolates the model, and how a process starts, is tested with the real command; see test_runner.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.zoo.forked import ForkedProcess, code_of, redirect
from verify import runner

OUT, ERRORS = "stdout.txt", "stderr.txt"


def kit(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `kit ARGUMENTS` in a folder."""
    import torch  # noqa: F401  (once for all tests of this process)

    import kit.cli  # noqa: F401

    with tempfile.TemporaryDirectory() as scratch:
        pid = os.fork()
        if pid == 0:
            os._exit(_command(Path(scratch), folder, arguments, environment))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [(Path(scratch) / name).read_text(encoding="utf-8") for name in (OUT, ERRORS)]
    return subprocess.CompletedProcess(["kit", *arguments], code, *texts)


def _command(scratch: Path, folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> int:
    redirect(os.open(os.devnull, os.O_RDONLY), _new(scratch / OUT), _new(scratch / ERRORS))
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["kit", *arguments]
    runner.subprocess = _Subprocess  # type: ignore[attr-defined]
    from kit.cli import main

    return _ended(main)


def _new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT)


def _ended(program: Callable[[], object]) -> int:
    code = code_of(program)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class _Worker(ForkedProcess):
    """The isolated process of `kit verify`, as a fork of the one that asks for it."""

    def __init__(self, arguments: list[str], *, cwd: Path, env: dict[str, str], stderr: Any, **options: Any) -> None:
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            redirect(null, null, stderr.fileno())
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = ["-c", *arguments[-2:]]
            from verify.worker import main

            os._exit(_ended(main))


class _Subprocess:
    """The part of the subprocess module that the runner uses."""

    TimeoutExpired, DEVNULL = subprocess.TimeoutExpired, subprocess.DEVNULL
    Popen = _Worker
