"""A faster way to start the zoo's programs: each is forked from a process that has imported torch already.

Everything else is as under `kit watch`: the copy of the project, the terminal, the hooks, the fork for the probes. A
sample of the zoo is run through the command line itself, see test_zoo.py.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verify.trace import launch

PRELOADED = ("torch", "torch._dynamo", "torchvision", "sklearn.datasets", "yaml", "matplotlib.pyplot")


def preload() -> None:
    """Import what most programs import."""
    for name in PRELOADED:
        __import__(name)
    import torch

    torch.set_num_threads(1)


class ForkedProcess:
    """Stands in for subprocess.Popen: the same arguments, but the interpreter is a fork of this one."""

    def __init__(self, arguments: list[str], *, cwd: Path, env: dict[str, str], stdin: int, **options: Any) -> None:
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            os._exit(_run(arguments, cwd, env, stdin))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        limit = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > limit:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            else:
                time.sleep(0.01)
        return self.code


def _run(arguments: list[str], cwd: Path, env: dict[str, str], terminal: int) -> int:
    os.setsid()
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    # What stands there may be a test runner's, and belongs to the process that was forked.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    script = arguments[1]
    sys.argv = arguments[1:]
    root = str(Path(__file__).parents[2])
    sys.path[:] = [str(cwd), *(p for p in sys.path if p not in ("", root))]
    code = 0
    _draw_seeds()
    try:
        main = sys.modules["__main__"]
        main.__file__ = script
        package = Path(launch.HERE) / "child"
        _load("_kit_watch", package)
        from _kit_watch import bootstrap  # type: ignore[import-not-found]

        bootstrap.start(env["KIT_WATCH"])
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _draw_seeds() -> None:
    """As in a process of its own: this fork would else continue the generators of the one it was made from."""
    import random

    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()


def _load(name: str, folder: Path) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)


class _Subprocess:
    """The part of the subprocess module that launch.py uses."""

    TimeoutExpired = subprocess.TimeoutExpired
    Popen = ForkedProcess
    run = staticmethod(subprocess.run)


def install() -> None:
    """From now on, `verify.trace.launch` forks."""
    preload()
    launch.subprocess = _Subprocess  # type: ignore[attr-defined]
    launch.find_program = lambda command, *_: [sys.executable, *command[1:]]  # type: ignore[assignment]


@contextmanager
def forked() -> Iterator[None]:
    """Within, `verify.trace.launch` forks; of the modules that programs import only torch is there already."""
    import torch  # noqa: F401

    kept = launch.subprocess, launch.find_program
    launch.subprocess = _Subprocess  # type: ignore[attr-defined]
    launch.find_program = lambda command, *_: [sys.executable, *command[1:]]  # type: ignore[assignment]
    try:
        yield
    finally:
        launch.subprocess, launch.find_program = kept
