"""The one place that turns a model's name into a model."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import nn


def build_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a freshly initialised model.

    Args:
        name: a key of `BUILDERS`.
        num_classes: number of logits.
        options: keyword arguments of the architecture, such as `blocks_per_stage` of the ResNet.

    Returns:
        A module that maps images (B, C, H, W) to logits (B, num_classes).

    Raises:
        ValueError: there is no model of that name, or an option is impossible.
    """
    here = available_models()
    if name not in here:
        raise ValueError(f"no model is called {name!r}; there are: {', '.join(here)}")
    return BUILDERS[name](num_classes, **options)


def available_models() -> list[str]:
    """The names whose file is in this project."""
    return [name for name in BUILDERS if find_spec(f"models.{name}")]


def _cnn(num_classes: int, **options: Any) -> nn.Module:
    from models.cnn import SimpleCNN

    return SimpleCNN(num_classes, **options)


def _resnet(num_classes: int, **options: Any) -> nn.Module:
    from models.resnet import ResNet

    return ResNet(num_classes, **options)


def _vit(num_classes: int, **options: Any) -> nn.Module:
    from models.vit import vit

    return vit(num_classes, **options)


# Each imports its own file only when it is chosen, so that a project may leave out the architectures it does not use.
BUILDERS: dict[str, Callable[..., nn.Module]] = {"cnn": _cnn, "resnet": _resnet, "vit": _vit}
