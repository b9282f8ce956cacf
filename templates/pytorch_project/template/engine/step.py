"""One update of the weights, and what came of it, read without making a GPU wait."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from engine.accumulate import Window
from engine.device import Compute
from engine.parallel import ALONE, World, averaging

WAITING = 64  # windows at most whose results are not read yet


@dataclass(frozen=True)
class Result:
    """What came of the batches of one update.

    Args:
        batches: (mean loss, right answers, images) of each batch.
        grad_norm: of the whole update, before clipping.
        failed_at: number of the batch at which the update stopped being finite; None if it did not.
    """

    batches: list[tuple[float, int, int]]
    grad_norm: float
    failed_at: int | None


class Step:
    """Forward, backward, clipping and optimizer for one window of batches.

    A GPU works through what it is given while Python goes on; every number that Python looks at makes it wait until
    the GPU is done. So the results stay on the device until `read`, and after an update that is not finite the device
    itself leaves the weights as they are. On the CPU nothing is gained by that, and results are read at once.

    Args:
        model: in whatever mode the caller puts it; of several processes, what `distribute` made of it.
        optimizer: of its parameters; on a GPU a fused one, which can skip a step by itself.
        grad_clip: largest norm of the gradient; infinity does not clip.
        compute: device and precision.
        world: the processes that share each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        grad_clip: float,
        compute: Compute,
        world: World = ALONE,
    ) -> None:
        self.model, self.optimizer, self.grad_clip = model, optimizer, grad_clip
        self.compute, self.world = compute, world
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        self.results: list[tuple[Tensor, list[int]]] = []
        self.broken = torch.zeros((), device=compute.device)  # 1 from the first update that is not finite

    def __call__(self, window: Window) -> None:
        """One step of the optimizer, on the mean loss over all images of a window."""
        self.optimizer.zero_grad()
        found = []
        for number, (images, labels) in enumerate(window.batches, start=1):
            with averaging(self.model, now=number == len(window.sizes)):
                with self.compute.autocast():
                    logits = self.model(images)
                    loss = F.cross_entropy(logits, labels)
                # Every image of the window weighs the same, also when the window or its last batch is a smaller one.
                # Each process sees a share of them, and gradients are averaged over the processes.
                weight = len(labels) * self.world.size / window.samples
                self.scaler.scale(loss * weight).backward()
            share = len(labels) / window.sizes[number - 1]
            found += [loss.detach().float() * share, (logits.argmax(1) == labels).sum().float()]
        numbers = self.world.sum_(torch.stack(found))
        self.scaler.unscale_(self.optimizer)  # like every method of a scaler, does nothing unless it is enabled
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        if hasattr(norm, "full_tensor"):  # of a sharded model
            norm = norm.full_tensor()
        self.results.append((torch.cat([numbers, norm.float()[None]]), window.sizes))
        self.apply(numbers[::2].isfinite().all() & norm.isfinite())

    def apply(self, finite: Tensor) -> None:
        """Step the optimizer, unless this update or one before it was not finite."""
        scaled = self.scaler.is_enabled()  # then the scaler leaves steps that overflow out, which is no failure
        if self.compute.reads_at_once and not scaled and not finite:
            return
        if not self.compute.reads_at_once and not scaled:
            self.broken = torch.maximum(self.broken, (~finite).float())
            self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]  # what a fused optimizer looks at
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def has_room(self, step: int, log_every: int) -> bool:
        """Whether results may wait: not at the batch `step` that is to be logged, nor where too many do already."""
        waiting = sum(len(counts) for _, counts in self.results)
        due = (step + waiting) // log_every > step // log_every
        return not (self.compute.reads_at_once or due or len(self.results) >= WAITING)

    def read(self) -> Iterator[Result]:
        """The results since the last call, in order; waits for the device."""
        waiting, self.results = self.results, []
        numbers = iter(torch.cat([numbers for numbers, _ in waiting]).tolist() if waiting else [])
        for _, counts in waiting:
            batches = [(next(numbers), int(next(numbers)), images) for images in counts]
            norm = next(numbers)
            bad = [n for n, (loss, _, _) in enumerate(batches) if not math.isfinite(loss)]
            if not bad and not math.isfinite(norm) and not self.scaler.is_enabled():
                bad = [len(batches) - 1]
            yield Result(batches, norm, bad[0] if bad else None)
