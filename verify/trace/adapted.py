"""Live models of any signature, made into what the rules about models ask: one tensor in, (batch, numbers) out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from verify.trace.child.tensors import tensors_of

# Pixels, tokens or boxes are mixed at random into so many numbers a sample: each depends on all of them.
NUMBERS = 8


def needs_adapting(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> bool:
    """Whether a pass is something else than one tensor in and (batch, numbers) out."""
    first = next(tensors_of(output), None)
    return bool(kwargs) or len(args) != 1 or first is None or first.dim() != 2


def adapt(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """The same object, whose forward pass fills in what else the script gives it and returns (batch, NUMBERS).

    The class alone is replaced, so that names of modules and parameters stay what they are.

    Args:
        args, kwargs: of the script's own pass; the first argument is what is varied. What has one entry a sample is
            repeated to the size of the batch.
    """
    cls = type(model)
    count = len(args[0])

    def fitting(value: Any, batch: int) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == count:
            return value.detach().cpu()[torch.arange(batch) % count]
        return value

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        more = [fitting(value, len(x)) for value in args[1:]]
        named = {key: fitting(value, len(x)) for key, value in kwargs.items()}
        return as_numbers(cls.forward(self, x, *more, **named), len(x))

    model.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return model


def as_numbers(output: Any, batch: int) -> Tensor:
    """The first tensor of an output with one entry a sample, as (batch, NUMBERS).

    Raises:
        TypeError: there is none.
    """
    for tensor in tensors_of(output):
        if tensor.dim() >= 1 and len(tensor) == batch and tensor.is_floating_point():
            flat = tensor.reshape(batch, -1)
            generator = torch.Generator().manual_seed(flat.shape[1])
            mixing = torch.randn(flat.shape[1], NUMBERS, generator=generator).to(flat)
            return flat @ mixing / flat.shape[1] ** 0.5
    raise TypeError("no tensor of the output has one entry a sample")
