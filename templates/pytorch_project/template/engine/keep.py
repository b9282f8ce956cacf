"""Which checkpoints stay beside last.pt, and which one training continues from."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import (
    BEST,
    FOLDER,
    LAST,
    DamagedError,
    check_same_config,
    load_checkpoint,
    save_checkpoint,
    saved_files,
)
from engine.config import Config
from engine.errors import UserError
from engine.lock import exclusive
from engine.progress import Progress
from engine.run import RUNS


@dataclass(frozen=True)
class Keep:
    """The checkpoints that stay when last.pt moves on.

    Args:
        best: so many of the best epochs. The first of them is best.pt; from 2 on, each has a file such as best-0007.pt.
        every: epochs between two files such as epoch-0010.pt, which stay for good; 0 keeps none.
    """

    best: int
    every: int

    def files(self, progress: Progress) -> list[Path]:
        """Where the checkpoint of the epoch that has just ended is to be written, if anywhere."""
        epoch, files = progress.epoch, []
        if self.every and epoch % self.every == 0:
            files.append(FOLDER / f"epoch-{epoch:04d}.pt")
        if self.best > 1 and epoch in progress.best_epochs(self.best):
            files.append(_best(epoch))
        if epoch == progress.best_epoch:
            files.append(BEST)
        return files

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write those files at the end of an epoch, and remove what is no longer among the best.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        progress = Progress(**checkpoint["progress"])
        for path in self.files(progress):
            save_checkpoint(checkpoint, path)
        if self.best > 1:
            for epoch in progress.accuracies.keys() - progress.best_epochs(self.best):
                _best(epoch).unlink(missing_ok=True)


def _best(epoch: int) -> Path:
    return FOLDER / f"best-{epoch:04d}.pt"


def checkpoint_to_continue(config: Config) -> dict[str, Any] | None:
    """The state to continue from, if there is one: last.pt, or the newest other one when that is damaged or missing.

    Raises:
        UserError: none can be read, or it is of another configuration.
    """
    if not LAST.exists():
        return _fall_back(config, f"{LAST} is missing")
    try:
        saved = load_checkpoint(LAST)
    except DamagedError as error:
        newest = _fall_back(config, str(error).partition(";")[0])
        if newest is None:
            raise
        return newest
    check_same_config(saved, config)
    return saved


def _fall_back(config: Config, problem: str) -> dict[str, Any] | None:
    """The newest intact checkpoint beside last.pt, which has a problem, if there is one; last.pt is then that again."""
    newest, source = None, LAST
    for path in saved_files():
        if path == LAST:
            continue
        try:
            saved = load_checkpoint(path)
        except UserError:
            problem += f", {path} is unusable as well"
            continue
        if newest is None or saved["step"] >= newest["step"]:
            newest, source = saved, path
    if newest is None:
        return None
    check_same_config(newest, config, source)
    print(f"{problem}; continuing from {source}, epoch {newest['epoch']}", file=sys.stderr)
    # A kill may have come when some files of that epoch were written and others not.
    Keep(config.keep_best, config.keep_every).save(newest)
    save_checkpoint(newest, LAST)
    return newest


@contextlib.contextmanager
def cleared_folder() -> Iterator[None]:
    """Be the only training in this folder while the block runs, without what a killed one was writing.

    Raises:
        UserError: another process trains here.
    """
    with exclusive(FOLDER):
        _remove_temporary_files()
        yield


def _remove_temporary_files() -> None:
    for path in FOLDER.glob(".*.tmp"):
        path.unlink()
    for name in ("config.yaml", "status.json", "metrics.jsonl", "nonfinite.pt"):  # others may be writing other files
        for path in RUNS.glob(f"*/.{name}-*.tmp"):
            path.unlink()
