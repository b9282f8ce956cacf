"""Ctrl-C and SIGTERM during training: finish the batch, save, then stop."""

import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from engine.parallel import ALONE, World

Item = TypeVar("Item")


class StopRequestedError(Exception):
    """Somebody asked to stop; everything is in order and can be saved."""


class GracefulStop:
    """While this context is open, the first signal is a request to stop, and the second one interrupts at once.

    Args:
        world: the processes that have to stop together.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.requested = False
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "GracefulStop":
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass `batches` on until a stop is requested.

        Raises:
            StopRequestedError: between two batches, never in the middle of one.
        """
        for batch in batches:
            if self.agreed if self.world.is_shared else self.requested:
                raise StopRequestedError
            yield batch

    def agree(self) -> None:
        """Let all processes know whether any of them was asked, so that they stop at the same batch."""
        if self.world.is_shared:
            self.agreed = self.world.any(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # Ctrl-C reaches all processes, and then torchrun sends each of them SIGTERM as well.
            if number == signal.SIGTERM and self.world.is_shared:
                return
            raise KeyboardInterrupt
        self.requested = True
        if self.world.is_first:
            print("\nstopping after this batch; once more ends at once, without saving", file=sys.stderr, flush=True)
