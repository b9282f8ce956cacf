"""Runs Python programs one after the other, each in a fork of a process that has imported torch already.

python forker.py JOBS.json

Started by the interpreter that has what the jobs need. The time of a job is its own: nobody pays for importing torch.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Carry out the jobs; a JSON line goes to `job["results"]` as soon as one is done."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for name in ("torch", "torch._dynamo", "torchvision", "torchvision.transforms", "sklearn.datasets"):
        __import__(name)
    import torch

    torch.set_num_threads(1)
    for job in jobs:
        made = carry_out(job)
        with Path(job["results"]).open("a") as results:
            results.write(json.dumps(made) + "\n")


def carry_out(job: dict[str, Any]) -> dict[str, Any]:
    """Run `job["argv"]` (`script.py ...` or `-m module ...`) in `job["folder"]`, `job["limit"]` seconds at most."""
    log = Path(job["folder"]) / "job.log"
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(in_child(job, log))
    status = None
    while status is None:
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - started > job["limit"]:
            os.killpg(pid, signal.SIGKILL)
            _, code, usage = os.wait4(pid, 0)
            status = 124
        else:
            time.sleep(0.01)
    return {
        "case": job["case"],
        "exit_code": status,
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "output": log.read_text(errors="replace"),
    }


def in_child(job: dict[str, Any], log: Path) -> int:
    """The job itself; the code it ends with."""
    os.setsid()
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(out, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    sys.path[:] = [job["folder"], *job["path"], *(p for p in sys.path if p != str(Path(__file__).parent))]
    code = 0
    try:
        if job["forks_kit"]:
            fork_the_worker_of_kit_verify()
        run(job["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(argv: list[str]) -> None:
    """What `python argv...` does."""
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


class ForkedProcess:
    """Stands in for the subprocess that `kit verify` starts: its worker is a fork of this process."""

    def __init__(self, arguments: list[str], *, cwd: Path, stderr: Any, **options: Any) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(stderr.fileno(), 2)
            os.chdir(cwd)
            sys.argv = ["-c", *arguments[4:]]
            code = 0
            try:
                from verify.worker import main as work

                work()
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)

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
                time.sleep(0.005)
        return self.code


def fork_the_worker_of_kit_verify() -> None:
    """From now on, `kit verify` in this process forks where it would start an interpreter."""
    from verify import runner

    class Subprocess:
        TimeoutExpired = subprocess.TimeoutExpired
        DEVNULL = subprocess.DEVNULL
        Popen = ForkedProcess

    runner.subprocess = Subprocess  # type: ignore[assignment]


if __name__ == "__main__":
    main()
