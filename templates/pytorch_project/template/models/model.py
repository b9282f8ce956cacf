"""The one place that turns a model's name into a model."""

from collections.abc import Callable
from typing import Any

from torch import nn


def build_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a freshly initialised model.

    Args:
        name: a key of `BUILDERS`.
        num_classes: number of logits.
        options: keyword arguments of the architecture, such as `channels` of the CNN.

    Returns:
        A module that maps images (B, C, H, W) to logits (B, num_classes).

    Raises:
        ValueError: there is no model of that name, or an option is impossible.
    """
    if name not in BUILDERS:
        raise ValueError(f"no model is called {name!r}; there are: {', '.join(BUILDERS)}")
    return BUILDERS[name](num_classes, **options)


def _cnn(num_classes: int, **options: Any) -> nn.Module:
    from models.cnn import SimpleCNN

    return SimpleCNN(num_classes, **options)


# Each imports its own file only when it is chosen, so that a project may leave out the architectures it does not use.
BUILDERS: dict[str, Callable[..., nn.Module]] = {"cnn": _cnn}
