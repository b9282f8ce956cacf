"""train.py of the folder that this is started in, with a clock at what writes: log, curves, status, checkpoints.

    python overhead.py RESULT.json [arguments of train.py]

Two runs, one with little to write, differ by more than the few per cent that are looked for. So the calls are timed
inside of one run. What TensorBoard's own thread writes beside the training is not in it; its queue is.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

WRITERS = ("log", "plot", "update_status")


class Clock:
    """Wall seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, name: str) -> None:
        """Put a function in the place of `owner.name` that takes the time of each call."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, name, timed)


def main() -> int:
    result, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    # As in train.py: the project's own settings for idle threads and freed memory, before torch is imported.
    import engine.startup

    engine.startup.keep_freed_memory()
    # isort: split
    import train
    from engine import checkpoint, keep
    from engine.run import Run

    writing, all_of_it = Clock(), Clock()
    for name in WRITERS:
        writing.watch(Run, name)
    writing.watch(train.Trainer, "checkpoint")
    writing.watch(checkpoint, "save_checkpoint")
    writing.watch(keep, "save_checkpoint")
    all_of_it.watch(train.Trainer, "fit")
    code = train.main(arguments)
    parts = dict(writing.seconds)
    Path(result).write_text(json.dumps({"seconds": all_of_it.seconds["fit"], "parts": parts}))
    return code


if __name__ == "__main__":
    sys.exit(main())
