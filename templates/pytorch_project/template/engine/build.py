"""The model that a configuration asks for."""

from typing import Any

import torch
from torch import nn

from engine.config import Config
from engine.errors import UserError
from models.model import build_model


def model_of(config: Config, device: torch.device | str = "cpu") -> nn.Module:
    """A freshly initialised model on `device`.

    Raises:
        UserError: its settings do not fit together, or its file is not in this project.
    """
    try:
        model = build_model(config.model, config.num_classes, **model_options(config))
    except ValueError as error:
        raise UserError(f"model {config.model} cannot be built: {error}") from None
    # Convolutions on the CPU are up to twice as fast.
    return model.to(device).to(memory_format=torch.channels_last)


def model_options(config: Config) -> dict[str, Any]:
    """The keyword arguments of the architecture; looks at no setting that another one would use."""
    if config.model == "resnet":
        return {"blocks_per_stage": config.blocks_per_stage, "shortcut": config.shortcut}
    if config.model == "cnn":
        return {"image_size": config.image_size}
    patch_size = {} if config.patch_size is None else {"patch_size": config.patch_size}
    return {
        "variant": config.variant,
        "image_size": config.image_size,
        "positions": config.positions,
        "dropout": config.dropout,
        **patch_size,
    }
