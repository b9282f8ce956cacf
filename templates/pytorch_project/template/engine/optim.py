"""Optimizer and learning rate schedule of a configuration."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn, optim

from engine.config import Config
from engine.errors import UserError

BETAS = (0.9, 0.999)  # Kingma and Ba 2015, and Dosovitskiy et al. 2021
DROP = 0.1  # He et al. 2016, section 4.2: "divide it by 10"


def build_optimizer(model: nn.Module, config: Config, *, fused: bool = False) -> optim.Optimizer:
    """The optimizer over all parameters of `model`.

    Args:
        model: whose parameters.
        config: which one.
        fused: one kernel for all parameters, faster on the CPU too; on a GPU it can leave a step out by itself.
    """
    groups = parameter_groups(model, config)
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr=rate, momentum=config.momentum, fused=fused)
    # "Adam with weight decay 0.3" of the Vision Transformer paper means AdamW: the weights shrink by learning rate
    # times decay beside Adam's step (Loshchilov and Hutter 2019). As an L2 penalty, which plain Adam has, the decay
    # would be rescaled with the gradient, and 0.3 would drown the loss.
    kind = optim.AdamW if config.optimizer == "adamw" else optim.Adam
    return kind(groups, lr=rate, betas=BETAS, fused=fused)


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """The parameters with their weight decay.

    `decay_on: weights` takes it from biases, norms (all have one dimension) and what the model's `no_weight_decay`
    names, such as position embeddings: pulling these towards 0 does not make the function simpler.
    """
    decay = config.weight_decay
    if config.decay_on == "all":
        return [{"params": list(model.parameters()), "weight_decay": decay}]
    named: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = {name for name, parameter in model.named_parameters() if parameter.dim() < 2} | named()
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in exempt], "weight_decay": decay},
        {"params": [p for name, p in model.named_parameters() if name in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_scheduler(optimizer: optim.Optimizer, config: Config, steps_per_epoch: int) -> optim.lr_scheduler.LambdaLR:
    """The schedule; call `step()` once after every epoch, or after every update with `schedule_by: step`.

    The rate follows from the number of calls alone, so training can continue with a different number of epochs.

    Args:
        optimizer: whose rate it sets.
        config: which schedule.
        steps_per_epoch: updates in an epoch.

    Raises:
        UserError: settings that contradict each other.
    """
    length = config.epochs * (steps_per_epoch if config.schedule_by == "step" else 1)
    warmup = config.warmup_steps if config.schedule_by == "step" else 0
    if warmup >= length:
        print(f"warmup_steps is {warmup}, but the whole training has {length} updates: all of it is warm-up")
    course = COURSES[config.scheduler](config, length, warmup)
    return optim.lr_scheduler.LambdaLR(optimizer, lambda count: course(count) * warmup_factor(count, warmup))


def warmup_factor(count: int, warmup: int) -> float:
    """Linear, 1 / warmup at first and 1 after `warmup` updates."""
    return min(1.0, (count + 1) / warmup) if warmup else 1.0


def cosine(config: Config, length: int, warmup: int) -> Callable[[int], float]:
    """Cosine annealing from the end of the warm-up to `min_learning_rate`, as a factor of `learning_rate`.

    Raises:
        UserError: it would rise.
    """
    floor = config.min_learning_rate / config.learning_rate
    if floor > 1:
        raise UserError(
            f"min_learning_rate {config.min_learning_rate} is above learning_rate {config.learning_rate}; lower it"
        )
    return lambda count: floor + (1 - floor) * cosine_factor(max(0, count - warmup), max(1, length - warmup))


def cosine_factor(count: int, length: int) -> float:
    """Cosine annealing to 0 without restarts (SGDR, Loshchilov and Hutter 2017, eq. 5): 1 at first, 0 at `length`."""
    return 0.5 * (1 + math.cos(math.pi * min(count, length) / length))


def multistep(config: Config, length: int, warmup: int) -> Callable[[int], float]:
    """A tenth of the rate from each milestone on.

    Raises:
        UserError: no milestone is within the training.
    """
    milestones = config.milestones
    if not any(milestone < length for milestone in milestones):
        raise UserError(f"scheduler is multistep, but milestones {milestones} has none below {length}, the end")
    return lambda count: DROP ** sum(count >= milestone for milestone in milestones)


def constant(config: Config, length: int, warmup: int) -> Callable[[int], float]:
    """The same rate throughout."""
    return lambda count: 1.0


COURSES = {"cosine": cosine, "multistep": multistep, "constant": constant}


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
