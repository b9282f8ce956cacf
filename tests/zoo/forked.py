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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
    redirect(terminal, terminal, terminal)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    script = arguments[1]
    sys.argv = arguments[1:]
    root = str(Path(__file__).parents[2])
    sys.path[:] = [str(cwd), *(p for p in sys.path if p not in ("", root))]
    _draw_seeds()
    code = code_of(partial(_watched, script, env["KIT_WATCH"]))
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _watched(script: str, settings: str) -> None:
    main = sys.modules["__main__"]
    main.__file__ = script
    package = Path(launch.HERE) / "child"
    _load("_kit_watch", package)
    from _kit_watch import bootstrap  # type: ignore[import-not-found]

    bootstrap.start(settings)
    runpy.run_path(script, run_name="__main__")


def redirect(*files: int) -> None:
    """Put these files in the place of standard input, output and errors, of which a fork has the test runner's."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))


def code_of(program: Callable[[], object]) -> int:
    """Run what a process is there for; the exit code that an interpreter would end with."""
    try:
        program()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


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
    _replace()


def _replace() -> None:
    launch.subprocess = _Subprocess  # type: ignore[attr-defined]
    launch.find_program = lambda command, *_: [sys.executable, *command[1:]]  # type: ignore[assignment]


@contextmanager
def forked() -> Iterator[None]:
    """Within, `verify.trace.launch` forks; of the modules that programs import only torch is there already."""
    import torch  # noqa: F401

    kept = launch.subprocess, launch.find_program
    _replace()
    try:
        yield
    finally:
        launch.subprocess, launch.find_program = kept
