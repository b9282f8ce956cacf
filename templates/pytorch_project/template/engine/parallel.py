"""Several processes that train one model together: `torchrun` starts them, and each works on its share of every batch.

    torchrun --nproc-per-node=2 train.py                    one process a GPU, or two on the CPU
    torchrun --nproc-per-node=2 --max-restarts=3 train.py   when one dies, all start again from checkpoints/last.pt

`batch_size` stays that of a whole batch. The gradient of an update is the mean over all of its images, wherever they
were, so that the losses are those of a single process; but BatchNorm normalises each process's images by themselves.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from engine.errors import EXIT_WRONG_USE, TrainingFailedError, UserError
from engine.sharding import shard_model

Value = TypeVar("Value")
# Parts of what gloo and NCCL say when another process is gone; their errors have no class of their own.
LOST = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Args:
        rank: number of this process, from 0.
        size: of how many.
        local_rank: its number on this machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes; the others do neither."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def sum_(self, numbers: Tensor) -> Tensor:
        """`numbers`, which become their sum over all processes; a GPU does not wait for it."""
        if self.is_shared:
            dist.all_reduce(numbers)
        return numbers

    def mean(self, values: Sequence[float], weight: int) -> list[float]:
        """The mean of each value over all processes, of which this one has `weight`."""
        if not self.is_shared:
            return list(values)
        *sums, total = self.sum_(torch.tensor([*(v * weight for v in values), weight], dtype=torch.float64)).tolist()
        return [value / total for value in sums]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.sum_(torch.tensor([float(flag)])).item())

    def gather(self, value: Value) -> list[Value]:
        """The value of each process, by rank."""
        found: list[Any] = [value]
        if self.is_shared:
            found = [None] * self.size
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, which alone calls it.

        Raises:
            SystemExit: in the others, if it raised an error there.
        """
        if not self.is_shared:
            return make()
        box: list[Any] = [None, True]
        if self.is_first:
            try:
                box = [make(), False]
            finally:
                dist.broadcast_object_list(box)
        else:
            dist.broadcast_object_list(box)
        if box[1]:
            sys.exit(EXIT_WRONG_USE)
        return box[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first, as every batch of training does at its start."""
        for buffer in model.buffers() if self.is_shared else ():
            dist.broadcast(buffer, src=0)

    def check_batches(self, batch_size: int, training_images: int, validation_images: int, *, whole: bool) -> None:
        """Every process must get an image of every batch of training, and of the first, or the `whole`, of validation.

        Raises:
            UserError: there are too few.
        """
        smallest = {
            "last batch of training": training_images % batch_size or batch_size,
            "first batch of validation": validation_images,
            "last batch of validation": (validation_images % batch_size or batch_size) if whole else self.size,
        }
        for batch, images in smallest.items():
            if images < self.size:
                raise UserError(
                    f"the {batch} has {images} images for {self.size} processes; choose another batch_size, or start "
                    "fewer (torchrun --nproc-per-node)"
                )


ALONE = World()


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Meet the other processes, if torchrun started this one; alone, there is nothing to do.

    Args:
        device: "cpu", "cuda" or "auto", as in the configuration.

    Raises:
        UserError: there are more processes than GPUs here.
        TrainingFailedError: another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield ALONE
        return
    world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        if world.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here; use "
                f"--nproc-per-node={torch.cuda.device_count()}, or --set device=cpu"
            )
        torch.cuda.set_device(world.local_rank)
    try:
        # After a restart, torchrun's store still has the addresses of the processes that are gone.
        store, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
        with contextlib.nullcontext() if world.is_first else contextlib.redirect_stdout(None):
            yield world
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in LOST):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise TrainingFailedError(
            f"process {world.rank} of {world.size} lost the others: one of them has ended, and what it said is the "
            f"reason; the same command continues from the last checkpoint ({reason})"
        ) from None


def distribute(model: nn.Module, world: World, *, sync_batchnorm: bool = False, shard: bool = False) -> nn.Module:
    """The model to train with: of several processes, one that averages the gradients over them.

    Args:
        model: the same in all processes; stays the one that is evaluated and saved.
        world: the processes.
        sync_batchnorm: whether BatchNorm normalises the images of all processes together.
        shard: whether each process keeps a part of the weights only, which changes `model` itself.

    Raises:
        UserError: BatchNorm is to do that on the CPU, or the model cannot be sharded.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if sync_batchnorm and not on_gpu:
        raise UserError("sync_batchnorm is true, but PyTorch has that on GPUs alone; use sync_batchnorm=false")
    if not world.is_shared:
        return model
    if shard:
        shard_model(model)
        return model
    if sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is nothing but a BatchNorm
    return DistributedDataParallel(model, device_ids=[world.local_rank] if on_gpu else None)


def averaging(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """What forward and backward of a batch run in: gradients need averaging once an update, at its last batch."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    set_averaging = getattr(model, "set_requires_gradient_sync", None)
    if set_averaging is not None:  # it is sharded
        set_averaging(now)
    return contextlib.nullcontext()
