"""An average of the weights over the last updates, which is scored and saved instead of the last ones."""

import copy

import torch
from torch import nn


class Ema:
    """Exponential moving average of a model's weights and running statistics.

    The decay grows from 0.1 with the number of updates, so that the random initial weights are soon forgotten.

    Args:
        model: to be averaged; not compiled yet, nor wrapped for several processes.
        decay: weight of the past in each update; 0.999 averages over about 1,000 updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights that `model` has after an update."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        averages, news = [], []
        for mine, its in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averages.append(mine)
                news.append(its)
            else:
                mine.copy_(its)
        torch._foreach_lerp_(averages, news, 1 - decay)
