"""Imported before everything else by the scripts: from then on Ctrl-C never ends in a traceback.

Importing torch takes seconds, in which no handler of ours is at work yet.
"""

import os
import sys
from types import TracebackType


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _hook
