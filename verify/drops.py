"""Which modules of a model drop parts of what they get without making up for it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.comparing import seed_everything
from verify.shapes import sizes_of

if TYPE_CHECKING:
    from verify.probe import ModelProbe

# What a module is called that thins out activations; those that hide words, labels or pixels leave the rest as it is.
DROPS = re.compile(r"drop_?(path|connect|block)|stochastic_?depth|dropout", re.IGNORECASE)
HIDES = re.compile(
    r"word|token|patch|label|class|cond|modal|input|time|frame|view|mask|group|sensor|embed|pixel|erase|head",
    re.IGNORECASE,
)
ROWS, DRAWS = 64, 4
FEWEST = 8  # rows, or values, of either kind


def unscaled_drops(probe: ModelProbe) -> list[tuple[str, float]]:
    """(module, share that is dropped) of those that pass on in train mode what they do not drop as it was.

    Only modules of one tensor that hold no parameters, and that in eval mode pass on everything as it is.
    """
    drops = {name: copy.deepcopy(m) for name, m in probe.model.named_modules() if name and _may_drop(m)}
    shapes = _shapes(list(drops), probe) if drops else {}
    found = []
    for name, shape in shapes.items():
        try:
            share = _share_dropped(drops[name], shape, probe.device)
        except Exception:  # it wants something else than one tensor
            continue
        if share:
            found.append((name, share))
    return found


def _may_drop(module: nn.Module) -> bool:
    name = type(module).__name__
    own = not type(module).__module__.startswith("torch.")
    empty = not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return own and empty and bool(DROPS.search(name)) and not HIDES.search(name)


def _shapes(names: list[str], probe: ModelProbe) -> dict[str, tuple[int, ...]]:
    """The shape, without the batch, of what each of these modules gets in a pass."""
    images = probe.images(2)
    model, x = probe.without_numbers(images, train=True) or (probe.copy_of_model(), images)
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point():
                shapes.setdefault(name, tuple(args[0].shape[1:]))

        return hook

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True)
    seed_everything(0)
    try:
        with torch.no_grad(), sizes_of(x):
            model.train()(x)
    except Exception:  # reported elsewhere
        return {}
    return shapes


def _share_dropped(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> float:
    """The share of values that are zero in train mode if all others are what they were; else 0."""
    x = 1 + torch.rand(ROWS, *[min(side, 16) for side in shape], device=device)
    seed_everything(0)
    with torch.no_grad():
        drawn = [module.train()(x.clone()) for _ in range(DRAWS)]
        kept = module.eval()(x.clone())
    if not torch.equal(kept, x) or any(y.shape != x.shape for y in drawn):
        return 0.0
    zero = torch.stack([y == 0 for y in drawn])
    same = torch.stack([y == x for y in drawn])
    if not bool((zero | same).all()) or zero.sum() < FEWEST or same.sum() < FEWEST:
        return 0.0
    return zero.float().mean().item()
