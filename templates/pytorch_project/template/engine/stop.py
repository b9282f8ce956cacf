"""Ctrl-C and SIGTERM during training: finish the batch, save, then stop."""

import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")


class StopRequestedError(Exception):
    """Somebody asked to stop; everything is in order and can be saved."""


class GracefulStop:
    """While this context is open, the first signal is a request to stop, and the second one interrupts at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
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
            if self.requested:
                raise StopRequestedError
            yield batch

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this batch; once more ends at once, without saving", file=sys.stderr, flush=True)
