"""Gradient accumulation: the batches whose gradients together make up one update."""

import itertools
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol


class SizedLoader(Protocol):
    """Batches of a data set of known size."""

    @property
    def dataset(self) -> Sized:
        """What the batches are made of."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Window:
    """The batches of one update.

    Args:
        batches: to be gone through once.
        sizes: images in each of them; of several processes, in their shares of it together.
    """

    batches: Iterator[Any]
    sizes: list[int]

    @property
    def samples(self) -> int:
        """Images in all of them."""
        return sum(self.sizes)


class Windows:
    """Divides the batches of an epoch into windows of `size`; the last one takes what is left.

    Args:
        loader: the batches of an epoch, all of `batch_size` but the last.
        batch_size: images in a batch.
        size: batches in a window.
    """

    def __init__(self, loader: SizedLoader, batch_size: int, size: int) -> None:
        self.batch_count, self.sample_count = len(loader), len(loader.dataset)
        self.batch_size, self.size = batch_size, size

    def __len__(self) -> int:
        """Updates in an epoch."""
        return -(-self.batch_count // self.size)

    def of(self, batches: Iterable[Any], first_batch: int) -> Iterator[Window]:
        """The windows of an epoch from `first_batch` on, which begins one; a window's batches come as it asks for them.

        Nothing is fetched ahead, so only one batch at a time is in memory.
        """
        remaining = iter(batches)
        for start in itertools.count(first_batch, self.size):
            first = next(remaining, None)  # asked for even after the last batch, so that the loader ends its epoch
            if first is None:
                return
            end = min(start + self.size, self.batch_count)
            sizes = [min(self.batch_size, self.sample_count - n * self.batch_size) for n in range(start, end)]
            yield Window(itertools.chain([first], itertools.islice(remaining, self.size - 1)), sizes)
