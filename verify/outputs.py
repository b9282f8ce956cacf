"""The logits among what a model returns, and the loss of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from verify.faults import UnavailableError
from verify.targets import Target


def main_logits(output: Any) -> Tensor:
    """The logits among what a model returned: the tensor itself, or `.logits`, `["logits"]`, `["out"]`, or the first
    tensor.

    Raises:
        TypeError: there is no tensor in it.
    """
    for tensor in tensors_of(output):
        return tensor
    raise TypeError(
        f"forward returns a {type(output).__name__} without a tensor in it; logits (batch, classes) are needed"
    )


def all_logits(output: Any, batch: int, num_classes: int) -> list[Tensor]:
    """Every (batch, num_classes) tensor of the output: auxiliary heads are trained too.

    Raises:
        UnavailableError: there is none.
    """
    fitting = [t for t in tensors_of(output) if tuple(t.shape) == (batch, num_classes)]
    if not fitting:
        raise UnavailableError("MOD102: the output is not (batch, classes)")
    return fitting


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, however nested; those that are called logits come first."""
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        first = [output[key] for key in ("logits", "out") if key in output]
        for value in [*first, *output.values()]:
            yield from tensors_of(value)
        return
    if hasattr(output, "logits"):
        yield from tensors_of(output.logits)
    if isinstance(output, list | tuple):
        for value in output:
            yield from tensors_of(value)


def part_of_model(target: Target, output_size: list[int]) -> Target:
    """The same module, for which each number of an output of the right shape stands for a logit.

    A hook flattens it, so that the module keeps its class, its names and its place in the source; an output of another
    shape stays as it is, to be reported.
    """
    size = tuple(output_size)

    def flatten(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        is_right = isinstance(output, Tensor) and tuple(output.shape[1:]) == size
        return output.flatten(1) if is_right else output

    def build() -> nn.Module:
        module = target.build()
        module.register_forward_hook(flatten)
        return module

    return replace(target, build=build, num_classes=math.prod(size))


def sum_of_losses(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy over classes, or binary cross entropy for a single logit, summed over the heads."""
    if outputs[0].shape[1] == 1:
        losses = [F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits)) for logits in outputs]
    else:
        losses = [F.cross_entropy(logits, labels) for logits in outputs]
    return torch.stack(losses).sum()


def predicted(logits: Tensor) -> Tensor:
    """The classes (B,) that logits (B, C) stand for; with one logit, 0 or 1."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
