"""Imported by the scripts before everything else, torch above all, whose import takes seconds."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# Threads that wait for each other sleep instead of spinning. On cores shared with another program, spinning makes
# training several times slower (measured: 5x with two busy processes on two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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


if _is_script_of_this_project():
    keep_freed_memory()
interrupt_quietly()
