"""Optimizer and learning rate schedule of a configuration."""

import math

from torch import nn, optim

from engine.config import Config


def build_optimizer(model: nn.Module, config: Config) -> optim.Optimizer:
    """The optimizer over all parameters of `model`."""
    parameters = model.parameters()
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=config.momentum)
    if config.optimizer == "adamw":
        return optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return optim.Adam(parameters, lr=rate, weight_decay=decay)


def build_scheduler(optimizer: optim.Optimizer, config: Config) -> optim.lr_scheduler.LambdaLR:
    """The schedule; call `step()` once after every epoch.

    The rate of an epoch follows from its number alone, so training can continue with a different number of epochs.
    """
    epochs, cosine = config.epochs, config.scheduler == "cosine"
    return optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: cosine_factor(epoch, epochs) if cosine else 1.0)


def cosine_factor(epoch: int, epochs: int) -> float:
    """Cosine annealing to 0 without restarts (SGDR, Loshchilov and Hutter 2017, eq. 5): 1 at epoch 0, 0 at `epochs`."""
    return 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))


def restore_schedule(scheduler: optim.lr_scheduler.LambdaLR, state: dict) -> None:
    """Continue a schedule, on the curve of the present configuration even if the saved one was another."""
    scheduler.load_state_dict(state)
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
    # Steps were taken, if not in this process: without this, stepping the schedule first is warned of.
    scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
