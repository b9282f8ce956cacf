"""Imported by the scripts before everything else, torch above all, whose import takes seconds."""

import os
import sys
from types import TracebackType

# Threads that wait for each other sleep instead of spinning. On cores shared with another program, spinning makes
# training several times slower (measured: 5x with two busy processes on two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C before any handler of ours is at work ends without a traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _end_quietly
