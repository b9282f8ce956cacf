"""Imported by the scripts before everything else, torch above all, whose import takes seconds."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from types import FrameType

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def _end_quietly(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(130)


def _is_script_of_this_project() -> bool:
    """Whether train.py or another script was started, and not, say, a test that imports it."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return script is not None and Path(script).resolve().parent == Path(__file__).resolve().parent.parent


def interrupt_quietly() -> None:
    """Until `interrupt_normally`, Ctrl-C ends the process at once; raised while C++ code is imported it would abort."""
    if _is_script_of_this_project() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_quietly)


def interrupt_normally() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def choose_waiting() -> None:
    """Let threads that wait for each other sleep instead of spin, if another program runs here now.

    On cores of their own, threads that spin make a step of the ResNet 1.2x as fast and of the ViT 1.1x (measured on two
    cores); on shared ones, up to five times as slow. Whoever has set OMP_WAIT_POLICY has chosen already.
    """
    if "OMP_WAIT_POLICY" not in os.environ and not _has_the_machine_alone():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _has_the_machine_alone() -> bool:
    """Whether nothing but this process is running, as far as the system tells."""
    counts = []
    for _ in range(5):
        try:
            load = Path("/proc/loadavg").read_text()  # "0.20 0.18 0.12 1/80 11206": 1 of 80 threads is running
            counts.append(int(load.split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(0.005)
    return median(counts) <= 1


def keep_freed_memory() -> None:
    """Let the C library keep what a batch frees for the next batch, which needs the same again.

    Otherwise it hands large blocks back to the system, which clears every page of them anew: 1.3x the time of a step of
    the CNN on two cores, 1.1x of the ViT (measured), for a few per cent of memory. Whoever has set one of the
    allocator's variables is left alone, and so is every C library but glibc.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option:
        set_option(M_MMAP_THRESHOLD, 2**30)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


choose_waiting()
if _is_script_of_this_project():
    keep_freed_memory()
interrupt_quietly()
