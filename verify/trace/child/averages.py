"""Averages of the weights: the decay by which each is really updated."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .quiet import quiet

# Steps around which the average and the model are compared; past the warm-up of any decay that has one.
LOOKS = (10, 13, 16, 19, 22, 25, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 160, 200, 250, 300)
LARGEST = 20_000_000
MOST = 4
Tensors = list[Tensor]


class Look:
    """An average and its model right before a step."""

    def __init__(self, cls: str, read: Callable[[], Tensors], live: Tensors) -> None:
        self.cls, self.read, self.live = cls, read, live
        self.before = [t.detach().clone() for t in read()]

    def decay(self) -> tuple[float, float] | None:
        """What is left of the old average, and the size of what this does not explain; None if nothing was averaged."""
        now, live = [t.detach() for t in self.read()], [p.detach() for p in self.live]
        if len(now) != len(live) or all(torch.equal(a, b) for a, b in zip(now, self.before)):
            return None
        old = [(a - p).double() for a, p in zip(self.before, live)]
        new = [(a - p).double() for a, p in zip(now, live)]
        size = sum(float((a * a).sum()) for a in old)
        if size <= 0:
            return None
        left = sum(float((a * b).sum()) for a, b in zip(old, new)) / size
        rest = sum(float(((b - left * a) ** 2).sum()) for a, b in zip(old, new))
        return left, (rest / size) ** 0.5


@quiet
def find(recorder: Any, main: nn.Module) -> None:
    """Lists and dicts of tensors that could be averages of a model's weights: as many, of the same shapes."""
    recorder.averaged = main
    if recorder.held_averages:
        return
    names = [name for name, _ in main.named_parameters()]
    shapes = [tuple(p.shape) for p in main.parameters()]
    keys = list(main.state_dict().keys())
    own = {id(p) for p in main.parameters()} | {id(b) for b in main.buffers()}
    known = {id(start) for _, start, _ in recorder.twins.values()}
    for item in gc.get_objects():
        kind = type(item)
        if kind not in (list, dict) or len(item) not in (len(shapes), len(keys)) or id(item) in known:
            continue
        try:
            read = _reader(item, names, keys)
            tensors = read()
            fits = [tuple(t.shape) for t in tensors] == shapes and all(t.is_floating_point() for t in tensors)
        except Exception:  # something else of the same length
            continue
        if fits and not own & {id(t) for t in tensors} and not any(t.requires_grad for t in tensors):
            recorder.held_averages.append((kind.__name__, read))
        if len(recorder.held_averages) >= MOST:
            return


def _reader(item: Any, names: list[str], keys: list[str]) -> Callable[[], Tensors]:
    if type(item) is list:
        return lambda: list(item)
    first = next(iter(item))
    if type(first) is str and first == keys[0] and len(item) == len(keys):
        return lambda: [item[name] for name in names]
    return lambda: list(item.values())


@quiet
def begin(recorder: Any, number: int) -> None:
    """Copy the averages right before some steps."""
    if number not in LOOKS or recorder.averaged is None or recorder.fast:
        return
    live = list(recorder.averaged.parameters())
    if sum(p.numel() for p in live) > LARGEST:
        return
    twins = [(type(twin).__name__, _parameters_of(twin)) for twin, _, _ in recorder.twins.values()]
    recorder.average_looks = [Look(cls, read, live) for cls, read in [*twins, *recorder.held_averages][:MOST]]


def _parameters_of(twin: nn.Module) -> Callable[[], Tensors]:
    return lambda: list(twin.parameters())


@quiet
def end(recorder: Any) -> None:
    """Before the step after that: by how much each average went towards the model."""
    looks, recorder.average_looks = recorder.average_looks, []
    for number, look in enumerate(looks):
        measured = look.decay()
        if measured is not None:
            decay, rest = measured
            recorder.emit("average", id=number, cls=look.cls, step=recorder.step, decay=decay, rest=rest)
