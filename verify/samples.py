"""Single modules asked by themselves: a norm written by hand, a branch that is dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from verify.comparing import seed_everything
from verify.shapes import sizes_of

# Four times the input: a norm gives the same, and one that divides by the variance a quarter.
TIMES = 4.0
QUARTER = (0.2, 0.3)
MOST_SAMPLES, FEWEST_SAMPLES, LARGEST_BATCH = 256, 64, 4_000_000


def called_leaves(model: nn.Module, x: Tensor, of: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(name, copy of the module, zeros like what it received) of modules without children that are no layer of torch.nn
    and that return a tensor of the shape of the one that they receive, in a pass in train mode.

    Args:
        model: makes the pass over `x`, with or without numbers.
        of: the same model with numbers, from which the modules are taken.
    """
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = args[0] if len(args) == 1 else None
            if not isinstance(given, Tensor) or not isinstance(output, Tensor) or not given.is_floating_point():
                return
            if given.shape == output.shape and given.dim() > 1:
                seen.setdefault(name, torch.zeros(given.shape, dtype=given.dtype, device=device))

        return hook

    modules = own_leaves(of)
    device = next((p.device for p in of.parameters()), torch.device("cpu"))
    for name, module in own_leaves(model).items():
        with suppress(RuntimeError):  # a scripted module takes no hooks
            module.register_forward_hook(watch(name))
    seed_everything(0)
    with torch.no_grad(), sizes_of(x):
        model.train()(x)
    yield from ((name, copy.deepcopy(modules[name]), given) for name, given in seen.items())


def own_leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module without children that is no layer of torch.nn."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not type(module).__module__.startswith("torch.nn") and next(module.children(), None) is None
    }


@torch.no_grad()
def divides_by_variance(module: nn.Module, given: Tensor) -> bool:
    """Whether a module returns a quarter where it receives four times as much."""
    if not any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False  # running statistics do not follow the input
    module._forward_hooks.clear()
    module.eval()
    x = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given)
    nothing = module(torch.zeros_like(x))
    once, more = ((module(times * x) - nothing).norm().item() for times in (1.0, TIMES))
    return bool(once) and QUARTER[0] < more / once < QUARTER[1]


@torch.no_grad()
def share_dropped(module: nn.Module, given: Tensor) -> float:
    """The share of samples that a module sets to zero in train mode and hands through in eval mode; 0 where it has
    parameters or does something else."""
    if any(True for _ in module.parameters()):
        return 0.0
    module._forward_hooks.clear()
    one = torch.ones_like(given[:1])
    if not torch.equal(module.eval()(one), one):
        return 0.0
    count = max(FEWEST_SAMPLES, min(MOST_SAMPLES, LARGEST_BATCH // max(1, one.numel())))
    seed_everything(0)
    output = module.train()(one.expand(count, *one.shape[1:]).clone())
    return (output.flatten(1) == 0).all(1).float().mean().item()
