"""A copy of the model memorises a few images, as any network that learns at all can."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.comparing import seed_everything
from verify.faults import TRAINING_RULE, ModelRaisedError, UnavailableError, user_code
from verify.outputs import all_logits, predicted, sum_of_losses
from verify.tokens import with_noise

if TYPE_CHECKING:
    from verify.probe import ModelProbe

SMALL_IMAGE = 3 * 64 * 64
SMALL_IMAGE_BATCH, LARGE_IMAGE_BATCH = 8, 4
# Memorising a handful of images takes most healthy networks 3 to 50 steps at the first rate. Deep ones without
# normalisation may need the smaller one, saturating ones the larger.
# The last attempt is for models that divide their input by 255 themselves.
ATTEMPTS = ((5e-4, "unit variance"), (1e-4, "unit variance"), (1e-2, "unit variance"), (1e-2, "pixels 0 to 255"))
DEFAULT_TRAIN_STEPS = 100
# A large model takes only as many steps as it needs for a gradient everywhere.
LARGE_MODEL_BATCH, LARGE_MODEL_STEPS = 2, 3


@dataclass(kw_only=True)
class Rehearsal:
    """What happened while a copy of the model memorised a small batch.

    Attributes:
        method: Adam, or sign descent for a large model. learning_rate: its.
        inputs: scale of the images, a key of `ATTEMPTS`.
        blind_loss: the lowest loss that a model can reach without looking at its input, in nats.
        initial_loss: cross entropy of the untrained model, in nats.
        first_logits: (B, C), of the untrained model in train mode; a large one has noise on its weights of zeros.
        losses: one a step.
        accuracy: share of the batch that is right at the end, 0 to 1.
        memorised: every image right, and the loss at most half of `blind_loss`.
        out_of_time: ended by the time budget, not by the number of steps.
        cut_short: ended after the first steps, as that of a large model is.
        follows_input: whether the loss of a large model had a gradient with respect to the images.
        non_finite: what was not finite, and at which step; empty if all was.
        reached: names of parameters that had a gradient other than None at some step.
        moved: names of parameters that had a non-zero gradient at some step.
    """

    learning_rate: float
    inputs: str
    method: str = "Adam"
    blind_loss: float
    initial_loss: float = math.nan
    first_logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    memorised: bool = False
    out_of_time: bool = False
    cut_short: bool = False
    follows_input: bool = False
    non_finite: str = ""
    reached: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)

    def note_outputs(self, loss: float, logits: Tensor, labels: Tensor, step: int) -> None:
        """Record the mean loss and the logits (B, C) of a step."""
        if step == 1:
            self.initial_loss, self.first_logits = loss, logits
        self.losses.append(loss)
        if not math.isfinite(loss):
            self.non_finite = f"loss at step {step}"
        self.accuracy = (predicted(logits) == labels).float().mean().item()
        self.memorised = self.accuracy == 1.0 and loss <= self.blind_loss / 2

    def note_gradients(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Record which parameters have a gradient, and whether all of them are finite."""
        for name, p in parameters.items():
            if p.grad is None:
                continue
            self.reached.add(name)
            if not p.numel():
                self.moved.add(name)  # nothing in it could miss a gradient
                continue
            low, high = torch.aminmax(p.grad)  # of the absolute values it would need a copy
            largest = max(-low.item(), high.item()) if low == low else math.nan
            if largest > 0:
                self.moved.add(name)
            if not math.isfinite(largest) and not self.non_finite:
                self.non_finite = f"gradient of {name} at step {step}"


def rehearse(probe: ModelProbe, rate: float, inputs: str, started: float) -> tuple[Rehearsal, nn.Module]:
    """Train a copy of the model on a few images until it knows them.

    Args:
        rate: learning rate. inputs: a scale of `ATTEMPTS`. started: when the first attempt began, by `time.monotonic`.
    """
    batch = SMALL_IMAGE_BATCH if math.prod(probe.input_size) <= SMALL_IMAGE else LARGE_IMAGE_BATCH
    if probe.is_large:
        batch = LARGE_MODEL_BATCH
    x, labels = probe.images(batch), probe.labels(batch)
    if inputs != ATTEMPTS[0][1]:
        x = (128 + 64 * x).clamp(0, 255)
    result = Rehearsal(learning_rate=rate, inputs=inputs, blind_loss=_entropy(labels))
    model = without_dropout(probe.copy_of_model().train())
    if probe.is_large:
        with_noise(model, probe.switches).train()  # they would make the first step one of the head alone
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = (SignDescent if probe.is_large else Adam)(parameters.values(), rate)
    result.method = optimizer.name
    seed_everything(0)
    for step in range(1, (probe.spec.train_steps or DEFAULT_TRAIN_STEPS) + 1):
        leaf = x.clone().requires_grad_(probe.is_large and x.is_floating_point())
        with user_code(f"in forward in train mode, step {step}", TRAINING_RULE):
            output = model(leaf.clone())
        outputs = _training_logits(probe, output, batch)
        loss = sum_of_losses(outputs, labels)
        result.note_outputs(loss.item() / len(outputs), outputs[0].detach(), labels, step)
        if result.non_finite or not loss.requires_grad:
            break
        with user_code(f"in backward, step {step}", TRAINING_RULE):
            loss.backward()
        result.note_gradients(parameters, step)
        result.follows_input = leaf.grad is not None and bool(leaf.grad.any())
        all_seen = len(result.moved) == len(parameters)
        result.out_of_time = step >= 3 and _is_over_budget(probe, started)
        result.cut_short = probe.is_large and (all_seen or step >= LARGE_MODEL_STEPS)
        learned = result.memorised and (all_seen or step >= 5)
        if result.non_finite or learned or result.out_of_time or result.cut_short:
            break
        optimizer.step()
    if probe.is_large and not result.non_finite:
        optimizer.step()  # what is compared with the untrained model must differ from it
    return result, model


def _training_logits(probe: ModelProbe, output: Any, batch: int) -> list[Tensor]:
    """Every (batch, classes) tensor of an output in train mode.

    Raises:
        UnavailableError: there is none, and none in eval mode either.
        ModelRaisedError: there is none in train mode only, which no other rule would notice.
    """
    try:
        return all_logits(output, batch, probe.num_classes)
    except UnavailableError:
        if probe.output_shape(2) != (2, probe.num_classes):
            raise
    problem = TypeError(f"in train mode no output has the shape ({batch}, {probe.num_classes}), in eval mode one has")
    raise ModelRaisedError("in forward in train mode", TRAINING_RULE, problem)


def _is_over_budget(probe: ModelProbe, started: float) -> bool:
    return probe.spec.train_steps is None and time.monotonic() - started > probe.time_budget


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); constructing any of torch.optim's imports the compiler, which takes 1 s."""

    name = "Adam"

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and clear the gradients."""
        self.steps += 1
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, (mean, square) in zip(self.parameters, self.moments, strict=True):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            denominator = (square / correction2).sqrt_().add_(epsilon)
            p.addcdiv_(mean, denominator, value=-self.learning_rate / correction1)
            p.grad = None


class SignDescent:
    """Adam without its averages, as in its first step: every number moves by the learning rate (Bernstein et al. 2018,
    "signSGD"). Needs no memory."""

    name = "sign descent"

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and clear the gradients."""
        for p in self.parameters:
            if p.grad is not None:
                p.add_(p.grad.sign_(), alpha=-self.learning_rate)
                p.grad = None


def _entropy(labels: Tensor) -> float:
    """Entropy of the label frequencies in nats: the loss of the best model that cannot see its input."""
    return torch.special.entr(torch.bincount(labels) / len(labels)).sum().item()


def without_dropout(model: nn.Module) -> nn.Module:
    """Switch dropout and stochastic depth off: a probe must not depend on which units were dropped."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if "drop" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower():
            for attribute in ("p", "drop_prob"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
    return model
