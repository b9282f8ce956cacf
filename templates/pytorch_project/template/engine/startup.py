"""Imported by the scripts before everything else, torch above all, whose import takes seconds."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

# Threads that wait for each other sleep instead of spinning. On cores shared with another program, spinning makes
# training several times slower (measured: 5x with two busy processes on two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _end_quietly(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(130)


def _is_script_of_this_project() -> bool:
    """Whether train.py or evaluate.py was started, and not, say, a test that imports it."""
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


interrupt_quietly()
