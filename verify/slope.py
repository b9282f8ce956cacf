"""The gradient that autograd gives, against the slope of the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from verify.comparing import seed_everything
from verify.evaluated import EVAL_BATCH
from verify.faults import ModelRaisedError, user_code
from verify.outputs import all_logits, sum_of_losses
from verify.rehearsal import without_dropout

if TYPE_CHECKING:
    from verify.probe import ModelProbe

DIRECTION_SEED = 9_000_000
# Finite differences in float64: two steps, which must agree before they are believed;
# larger ones cross the kinks of ReLU and max-pooling.
DIFFERENCE_STEPS = (1e-7, 1e-6)
DIFFERENCE_TOLERANCE = 0.01
SECANT_STEP = 1e-3
TENSORS_COMPARED = 24
# Of those that disagree, so many are looked at along so many directions; up to this share may be left out on purpose.
TENSORS_MEASURED, DIRECTIONS, LARGEST_MEANT = 3, 6, 0.25
# Noise on every parameter: freshly initialised networks stand exactly on kinks (relu(0 + 0 * x) behind a
# zero-initialised branch), where a central difference sees half a slope and autograd none.
OFF_THE_KINKS = 0.01
# What that comparison costs, in forward passes in float32.
COMPARISON_COST = 25
TOO_SLOW_IN_DOUBLE = "the passes in float64 take too long for it"


@dataclass(frozen=True)
class GradientComparison:
    """Autograd against finite differences.

    `wrong` names the parameters where they disagree, `staircase` those where they disagree because the loss jumps, as a
    rounding with a straight-through estimator makes it do on purpose. `missing` estimates what autograd leaves out of
    the gradient of the worst of them, relative to its length.
    """

    autograd: float
    difference: float
    wrong: list[str]
    staircase: list[str]
    reason_skipped: str = ""
    missing: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether the two differ by more than what a part of the model that is held fixed on purpose explains."""
        return self.missing > LARGEST_MEANT


def compare_gradients(probe: ModelProbe) -> GradientComparison:
    """The slope of the loss along random directions: what autograd says, and what moving there does."""
    if probe.is_large or COMPARISON_COST * probe.eval_run.seconds > probe.time_budget:
        return GradientComparison(0, 0, [], [], "one forward pass takes too long for it")
    try:
        slope = Slope(probe)
    except ModelRaisedError as error:
        return GradientComparison(0, 0, [], [], f"the model does not run in float64 ({error.summary})")
    if slope.custom_functions:
        return GradientComparison(0, 0, [], [], "the model defines its own backward pass, which may differ on purpose")
    names = list(slope.parameters)
    conclusive = False
    deadline = time.monotonic() + probe.time_budget  # float64 in train mode may be far slower than the eval pass was
    for seed in (0, 1):
        if time.monotonic() > deadline:
            return GradientComparison(0, 0, [], [], TOO_SLOW_IN_DOUBLE)
        autograd, difference, agreed = slope.compare(names, seed)
        if agreed and _close(autograd, difference):
            return GradientComparison(autograd, difference, [], [])
        conclusive = conclusive or agreed
    if not conclusive:
        return GradientComparison(0, 0, [], [], "finite differences are too noisy on this model")
    return _disagreement(slope, names, deadline)


def _disagreement(slope: Slope, names: list[str], deadline: float) -> GradientComparison:
    wrong: dict[str, float] = {}
    staircase: list[str] = []
    worst = (0.0, 0.0)
    for name in names[:: math.ceil(len(names) / TENSORS_COMPARED)]:
        if time.monotonic() > deadline:
            if wrong:
                break
            return GradientComparison(0, 0, [], [], TOO_SLOW_IN_DOUBLE)
        autograd, difference, agreed = slope.compare([name], 2)
        if not agreed or _close(autograd, difference):
            continue
        if abs(slope.secant([name], 2) - difference) > abs(difference - autograd) / 4:
            staircase.append(name)
            continue
        wrong[name] = abs(autograd - difference)
        worst = max(worst, (autograd, difference), key=lambda pair: abs(pair[0] - pair[1]))
    missing = slope.missing_share(sorted(wrong, key=lambda name: -wrong[name])[:TENSORS_MEASURED])
    return GradientComparison(*worst, list(wrong), staircase, missing=missing)


class Slope:
    """The loss of a float64 copy of the model as a function of its parameters; all else is held still."""

    def __init__(self, probe: ModelProbe) -> None:
        self.model = without_power_iteration(without_dropout(probe.copy_of_model().train())).double()
        self.x = probe.images(EVAL_BATCH).double()
        self.labels = probe.labels(EVAL_BATCH)
        self.classes = probe.num_classes
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        generator = torch.Generator().manual_seed(DIRECTION_SEED - 1)
        self.parameters = {
            name: (p.detach() + OFF_THE_KINKS * torch.randn(p.shape, generator=generator).to(p)).requires_grad_()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        loss = self.loss(self.parameters)
        self.custom_functions = _has_custom_function(loss)
        gradients: Iterable[Tensor | None] = [None] * len(self.parameters)
        if loss.requires_grad and not self.custom_functions:
            with user_code("in backward, in float64", "GRD304"):
                gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        self.gradients = dict(zip(self.parameters, gradients, strict=True))

    def loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The loss with these parameters, a scalar."""
        seed_everything(0)
        state = {**parameters, **{name: b.clone() for name, b in self.buffers.items()}}
        with user_code("in forward in train mode, in float64", "GRD304"):
            output = torch.func.functional_call(self.model, state, (self.x.clone(),))
        return sum_of_losses(all_logits(output, len(self.x), self.classes), self.labels)

    def compare(self, names: list[str], seed: int) -> tuple[float, float, bool]:
        """(autograd, finite difference, whether two step sizes agree) along a random direction in `names`."""
        direction = self._direction(names, seed)
        products = ((self.gradients[n], d) for n, d in direction.items())
        autograd = sum((g * d).sum().item() for g, d in products if g is not None)
        near, far = (self._difference(direction, step) for step in DIFFERENCE_STEPS)
        return autograd, near, _close(near, far)

    def missing_share(self, names: list[str]) -> float:
        """|autograd's gradient - the slope| / |the slope|, from random directions in each of a few parameters."""
        errors = slopes = 0.0
        for name in names:
            for seed in range(2, 2 + DIRECTIONS):
                autograd, difference, _ = self.compare([name], seed)
                errors += (autograd - difference) ** 2
                slopes += difference**2
        return math.sqrt(errors / slopes) if slopes else 0.0

    def secant(self, names: list[str], seed: int) -> float:
        """The slope over a longer stretch of the same direction; a smooth loss has nearly the same one."""
        return self._difference(self._direction(names, seed), SECANT_STEP)

    def _direction(self, names: list[str], seed: int) -> dict[str, Tensor]:
        """A random direction, in each tensor as long as the tensor itself."""
        generator = torch.Generator().manual_seed(DIRECTION_SEED + seed)
        direction = {}
        for name in names:
            p = self.parameters[name]
            unit = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
            direction[name] = unit * (p.detach().norm().clamp_min(1.0) / unit.norm())
        return direction

    def _difference(self, direction: Mapping[str, Tensor], step: float) -> float:
        def at(offset: float) -> float:
            moved = {n: self.parameters[n] + offset * d for n, d in direction.items()}
            return self.loss({**self.parameters, **moved}).item()

        with torch.no_grad():
            return (at(step) - at(-step)) / (2 * step)


def without_power_iteration(model: nn.Module) -> nn.Module:
    """Hold the vectors of spectral norms still: they follow the weights, and the gradient treats them as constants."""
    for module in model.modules():
        hooks = module._forward_pre_hooks.values()
        if any(isinstance(hook, SpectralNorm) for hook in hooks) or isinstance(module, _SpectralNorm):
            module.eval()
    return model


def _has_custom_function(loss: Tensor) -> bool:
    """Whether a `torch.autograd.Function` of somebody's own is part of the graph."""
    waiting, visited = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        visited.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= DIFFERENCE_TOLERANCE * max(abs(a), abs(b)) + 1e-7
