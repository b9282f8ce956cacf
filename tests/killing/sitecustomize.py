"""Python imports this when it starts, if PYTHONPATH leads here: the process kills itself amidst saving a checkpoint.

KILL_IN=write:3:5000 does so when 5,000 bytes of the third checkpoint are written, KILL_IN=rename:3 when it is complete
and about to take the place of the one before. The command is that of a user, and train.py knows nothing of it.
"""

import os
import signal
import sys
from typing import Any

KIND, NUMBER, SIZE = (os.environ["KILL_IN"] + ":0").split(":")[:3]
saves = 0


def kill() -> None:
    """As `kill -9` does it: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


class FatalFile:
    """Passes on what is written to it until it has taken `room` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        """All of `data`, or as much as there is room for and then no more of anything."""
        taken = self.file.write(bytes(data)[: self.room])
        self.room -= taken
        if self.room <= 0:
            self.file.flush()
            kill()
        return taken

    def flush(self) -> None:
        """As files have it."""
        self.file.flush()


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Count the checkpoints by their temporary files, and act at the one that is meant."""
    global saves
    if event == "tempfile.mkstemp" and ".pt-" in str(arguments[0]):
        saves += 1
        if KIND == "write" and saves == int(NUMBER):
            torch = sys.modules["torch"]
            save = torch.save
            torch.save = lambda content, file: save(content, FatalFile(file, int(SIZE)))
    if event == "os.rename" and KIND == "rename" and saves == int(NUMBER) and ".pt-" in str(arguments[0]):
        kill()


sys.addaudithook(watch)
