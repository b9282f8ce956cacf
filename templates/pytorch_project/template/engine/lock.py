"""One training at a time in a project folder: two would write the same checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` while the block runs; the system frees it however the process ends.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is training in this folder (it holds {file.name}); wait for it, or end it with "
                    "Ctrl-C or `kill PID` (the pid is in runs/<run id>/status.json)"
                ) from None
            # Loader workers outlive a kill of this process by seconds, in which they would keep the lock.
            os.register_at_fork(after_in_child=file.close)
        yield
