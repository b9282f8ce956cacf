"""Models and their forward passes: what is known of each until it is written down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOST_OPERATIONS = 200  # between a model's output and the loss
MOST_LOOKS = 40
NORMS = (nn.modules.batchnorm._NormBase,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


class ModelInfo:
    """A module that the script calls from outside of any other module."""

    def __init__(self, number: int, module: nn.Module) -> None:
        self.number, self.module = number, module
        named = list(module.named_parameters())
        self.ids = {id(p) for _, p in named}
        self.named = named
        modules = list(module.modules())
        self.norms = [m for m in modules if isinstance(m, NORMS) and getattr(m, "running_mean", None) is not None]
        self.dropouts = [m for m in modules if isinstance(m, DROPOUTS)]
        self.rates = [m.p for m in self.dropouts]
        self.rates_told = False
        self.passes = 0
        self.next_look, self.looks = 0, 0

    def weights_at(self, step: int) -> float | None:
        """A checksum of a few weights, at more and more distant steps; None in between."""
        if step < self.next_look or self.looks >= MOST_LOOKS or not self.named:
            return None
        self.next_look, self.looks = step + 1 + step // 8, self.looks + 1
        ends = [self.named[0][1], self.named[-1][1]]
        return sum(float(p.detach().reshape(-1)[:1000].double().sum()) for p in ends)

    def modes(self) -> tuple[float, float]:
        """Shares of norms and of dropouts that are in train mode; -1 where there are none."""
        norms = sum(m.training for m in self.norms) / len(self.norms) if self.norms else -1
        drops = sum(m.training for m in self.dropouts) / len(self.dropouts) if self.dropouts else -1
        return norms, drops

    def statistics_version(self) -> int:
        """Grows when running statistics change."""
        return sum(m.running_mean._version for m in self.norms[:4])


class Pass:
    """One forward pass of a model, until it is known whether a backward pass follows."""

    __slots__ = ("fields", "info", "losses", "model_input", "output", "targets")

    def __init__(self, info: ModelInfo, fields: dict[str, Any], model_input: Any, output: Any, targets: Any) -> None:
        self.info, self.fields = info, fields
        self.model_input, self.output, self.targets = model_input, output, targets
        self.losses: list[dict[str, Any]] = []

    def add_losses(self, losses: list[dict[str, Any]]) -> None:
        """Losses that the model computed itself; the first says what the right answers are."""
        for fields in losses:
            target = fields.pop("target_tensor", None)
            batched = target is not None and self.output is not None and self.output.dim() > 0
            if batched and not self.losses and len(target) == len(self.output):
                self.targets = target
            self.losses.append(fields)


def is_from(one: Pass, inputs: Tensor) -> bool:
    """Whether the tensor that a loss was given is the output of this pass, or a few operations away."""
    output = one.output
    if output is None:
        return False
    if output is inputs or (output.data_ptr() == inputs.data_ptr() and output.numel() == inputs.numel()):
        return True
    node, target = inputs.grad_fn, output.grad_fn
    for _ in range(4):
        if node is None or target is None:
            return False
        if node is target:
            return True
        following = [n for n, _ in node.next_functions if n is not None]
        node = following[0] if following else None
    return False


def reaches(root: Any, output: Any) -> bool:
    """Whether `output` is among the operations that `root` was computed by, close to it."""
    target, found = getattr(output, "grad_fn", None), [getattr(root, "grad_fn", None)]
    if target is None:
        return False
    seen = set(found)
    for node in found:
        if node is target:
            return True
        following = [n for n, _ in node.next_functions if n is not None and n not in seen] if node is not None else []
        if len(seen) < MOST_OPERATIONS:
            seen.update(following)
            found.extend(following)
    return False


def right_answers(one: Pass) -> dict[str, Any]:
    """How many of the batch are classified right, by the first and among the first five."""
    logits, targets = one.output, one.targets
    if logits is None or targets is None or logits.dim() != 2 or targets.dim() != 1 or len(logits) != len(targets):
        return {}
    if targets.is_floating_point() or logits.shape[1] < 2 or logits.shape[1] > 10_000:
        return {}
    with torch.no_grad():
        scores = logits.detach()
        targets = targets.to(scores.device)
        correct = (scores.argmax(dim=1) == targets).sum().item()
        found: dict[str, Any] = {"correct": correct}
        if scores.shape[1] > 2 and not one.fields["grad"]:
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices == targets[:, None]
            found["top"] = {k: best[:, :k].any(dim=1).sum().item() for k in (2, 3, 5) if k < scores.shape[1]}
    return found


def copy_of(output: Any, grad: bool) -> Any:
    """An output anew, with containers; None for kinds that cannot be copied so."""
    if isinstance(output, Tensor):
        copy = output.detach().clone()
        return copy.requires_grad_(grad) if copy.is_floating_point() else copy
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(copy_of(item, grad) for item in output)
    if isinstance(output, list):
        return [copy_of(item, grad) for item in output]
    if type(output) is dict:
        return {key: copy_of(value, grad) for key, value in output.items()}
    return None


def autocast() -> str:
    """Device and precision of the autocast that is on, or nothing."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return f"{device}:{str(torch.get_autocast_dtype(device)).removeprefix('torch.')}"
    return ""
