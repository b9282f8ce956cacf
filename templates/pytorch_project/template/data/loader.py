"""Batches of uint8 images that lie in memory, or that worker processes fetch; the same batches either way."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import Augmentation, Share, make_batch, pad_images, seeded_generator
from data.sources import Source

RESIDENT_LIMIT = 4 * 2**30  # bytes of padded uint8 images that `loader: auto` keeps in memory


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """The images of one split as they were taken, before augmentation and normalisation.

    Each split is an object of its own, with its own augmentation: nothing done to one can change another.

    Args:
        name: "train", "val" or "test".
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        source: the data set that they come from.
        augmentation: what the loader does to them; nothing, for all but "train".
        fingerprint: hash of the indices that make up the split, to notice when it is not the one of a checkpoint.
    """

    name: str
    images: Tensor
    labels: Tensor
    source: Source
    augmentation: Augmentation
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def pictures(self, numbers: list[int]) -> np.ndarray:
        """Some of the images to look at: uint8 (len(numbers), H, W, 3)."""
        return self.images[numbers].numpy()


class BatchOrder:
    """Which images make up each batch of an epoch; a batch sampler in the sense of torch's DataLoader.

    Args:
        count: number of images.
        batch_size: images in a batch; the last one of an epoch may be smaller.
        seed: of the order.
        shuffle: a new order every epoch.
        rank, world_size: which of so many processes asks; each gets its share of every batch.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=seeded_generator(self.seed, self.epoch, stream=0))
        for number, index in enumerate(order.split(self.batch_size)[self.first_batch :], start=self.first_batch):
            share = index[self.share(number).images]
            if len(share):  # a last batch may have fewer images than there are processes
                yield share.tolist()

    def share(self, number: int) -> Share:
        """What this process gets of batch `number`."""
        batch_size = min(self.batch_size, self.count - number * self.batch_size)
        return Share.of_rank(batch_size, self.rank, self.world_size)


class _Numbers(Dataset):
    """What a DataLoader reads when the images are in memory already: which of them make up a batch.

    Tools that look at DataLoaders then see every batch, wherever its pixels come from.
    """

    def __init__(self, split: Split) -> None:
        self.count = len(split)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers)


class BatchLoader:
    """Batches of a split, as `for images, labels in loader`.

    A batch is a function of the seed, the epoch and its number alone, so an epoch can be entered at any batch. Where
    the raw pixels come from makes no difference to the result: either the whole split lies in memory on the device
    ("resident"), or a DataLoader's worker processes fetch them ("workers").

    Args:
        split: the images.
        batch_size: images in a batch; the last one of an epoch may be smaller.
        seed: of order and augmentation.
        shuffle: a new order every epoch.
        device: where the batches shall be.
        loader: "resident", "workers", or "auto": resident if the images fit `RESIDENT_LIMIT`.
        num_workers: processes of "workers"; 0 fetches in this process.
        rank, world_size: which of so many training processes this is; each gets its share of every batch.

    Yields:
        images, float32 (B, 3, H, W), augmented and normalised, in channels_last memory format; and labels, int64 (B,).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        device: torch.device | str = "cpu",
        loader: str = "auto",
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset = split
        self.order = BatchOrder(len(split), batch_size, seed, shuffle, rank, world_size)
        self.device = torch.device(device)
        self.resident = loader == "resident" or (loader == "auto" and _padded_bytes(split) <= RESIDENT_LIMIT)
        if self.resident:
            self._padded = pad_images(split.images, split.augmentation.padding).contiguous().to(self.device)
            self._labels = split.labels.to(self.device)
            self._fetch = DataLoader(_Numbers(split), batch_size=None, sampler=self.order, generator=torch.Generator())
        else:
            self._fetch = _make_fetch_loader(split, self.order, num_workers, pin_memory=self.device.type == "cuda")

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration goes through (from 0), and the batch that it starts with."""
        self.order.epoch, self.order.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return len(self._fetch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split, seed, epoch, first_batch = self.dataset, self.order.seed, self.order.epoch, self.order.first_batch
        for number, (padded, labels, index) in enumerate(self._raw_batches(), start=first_batch):
            generator = seeded_generator(seed, epoch, stream=number + 1)
            mean, std = split.source.mean, split.source.std
            share = self.order.share(number) if self.order.world_size > 1 else None  # None: all of what was fetched
            yield make_batch(padded, index, split.augmentation, mean, std, generator, share), labels

    def _raw_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(padded images, labels of the batch, which of the images make up the batch) for each batch."""
        if self.resident:
            for numbers in self._fetch:
                index = numbers.to(self.device)
                yield self._padded, self._labels[index], index
            return
        for images, labels in self._fetch:
            images = images.to(self.device, non_blocking=True)
            padded = pad_images(images, self.dataset.augmentation.padding)
            yield padded, labels.to(self.device, non_blocking=True), torch.arange(len(images), device=self.device)


def _padded_bytes(split: Split) -> int:
    count, height, width, channels = split.images.shape
    border = 2 * split.augmentation.padding
    return count * (height + border) * (width + border) * channels


def leave_stopping_to_trainer(worker_id: int) -> None:
    """What stops the training process often reaches its workers too; that process decides when to end them.

    Ctrl-C does, and SIGTERM from `timeout`, a scheduler or a container. Workers that ended at once would take the batch
    that it still wants to finish. Only the first SIGTERM is passed over: the next is from the process itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)


def _heed_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _make_fetch_loader(split: Split, order: BatchOrder, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        split,
        batch_sampler=order,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_stopping_to_trainer,
        generator=torch.Generator(),  # its own, or every epoch would take a number from the global one
    )
