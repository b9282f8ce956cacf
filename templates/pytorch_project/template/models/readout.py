"""Look inside of a Vision Transformer: attention maps and the shapes between its parts.

    from models.readout import attention_maps, intermediate_shapes
    maps = attention_maps(model, images)          # {"blocks.0.attention": (B, heads, N, N), ...}

Nothing here changes the model: hooks exist while these functions run and compute the maps beside the normal path, which
goes through fused attention kernels and never forms an N x N matrix.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While the block runs, each forward pass puts the attention maps of all layers into the dictionary.

    Yields:
        name of the layer to its map (B, heads, N, N), detached; rows are queries and sum to 1. A map stays until the
        next forward pass. Empty for a model without attention (a layer with a method `attention_map`).
    """
    maps: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                maps[name] = module.attention_map(inputs[0])  # type: ignore[operator]

        return hook

    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "attention_map")]
    handles = [module.register_forward_hook(record(name)) for name, module in layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The attention maps of a batch of images (B, C, H, W), by layer; leaves the model's mode as it was."""
    with recorded_attention(model) as maps:
        _forward_in_eval_mode(model, images)
    return maps


def attention_rollout(maps: dict[str, Tensor]) -> Tensor:
    """How much [CLS] draws on each patch after all layers: (B, num_patches), rows sum to 1.

    Abnar and Zuidema 2020: mean over the heads, half of it replaced by the identity for the residual connection, layers
    multiplied; the paper's figure 6 (and appendix D.8) is made this way. `maps` comes from `attention_maps`.
    """
    rollout: Tensor | None = None
    for layer in maps.values():
        mean = layer.mean(dim=1)  # (B, N, N)
        mixed = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device)
        rollout = mixed if rollout is None else mixed @ rollout
    if rollout is None:
        raise ValueError("there are no attention maps")
    from_patches = rollout[:, 0, 1:]
    return from_patches / from_patches.sum(dim=1, keepdim=True)


@torch.no_grad()
def intermediate_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what each module of `model` returns for `images`, in the order in which they finish.

    Works on the meta device too, where nothing is computed. Modules that return no tensor are left out.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules() if name]
    try:
        _forward_in_eval_mode(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _forward_in_eval_mode(model: nn.Module, images: Tensor) -> None:
    was_training = model.training
    model.eval()
    try:
        model(images)
    finally:
        model.train(was_training)
