"""The rules about models, applied to the live model of a watched run; called in a forked copy of its process."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from verify.dataflow import plain_tensors
from verify.probe import ModelProbe
from verify.report import Status
from verify.rules import all_rules
from verify.spec import Spec
from verify.targets import Target
from verify.trace.adapted import NUMBERS, adapt, needs_adapting
from verify.worker import apply

# What only makes sense for a model that was just built, or what the run itself shows better.
LEFT_OUT = {
    "MOD101", "MOD102", "MOD103", "MOD110", "MOD113", "MOD138", "GRD301", "GRD302", "GRD303", "TRN401", "TRN402",
}  # fmt: skip
# What compares the model with another build of it.
NEEDS_ANOTHER_BUILD = {"MOD106", "MOD121", "MOD127", "MOD134", "MOD135", "MOD148"}
NEEDS_FLOATS = {"GRD304", "MOD112", "MOD137"}
SMALLEST_BATCH = 4


class LiveProbe(ModelProbe):
    """A probe of a model that a script has built and trained a little, with the script's own inputs."""

    inputs: Tensor

    @cached_property
    def random_state(self) -> set[str]:
        """Names of float buffers and plain tensors that differ between two new builds; the live one was trained."""
        one, other = (
            {**dict(built.named_buffers()), **dict(plain_tensors(built))} for built in (self.build(1), self.build(2))
        )
        return {
            name
            for name, tensor in one.items()
            if tensor.is_floating_point() and name in other and not torch.equal(tensor, other[name])
            if not self._is_normalised(name)
        }

    @property
    def exercised_model(self) -> nn.Module:
        """The script has trained it."""
        return self.model

    def images(self, batch: int, seed: int = 0, size: tuple[int, ...] | None = None) -> Tensor:
        """`batch` inputs of the script's, starting at another one for each seed."""
        start = (seed * SMALLEST_BATCH) % len(self.inputs)
        index = torch.arange(start, start + batch) % len(self.inputs)
        return self.inputs[index].clone()


def check_live_model(captured: Any) -> dict[str, Any]:
    """The checks that the rules about models make of a copy of the live model."""
    model, inputs = captured.model, captured.inputs
    if model is None:
        return {"skipped": "no model was trained"}
    args, kwargs = inputs
    if not args or not isinstance(args[0], Tensor) or not args[0].dim():
        return {"skipped": "the model takes something else than a tensor first"}
    x = args[0].detach().cpu()
    if len(x) < SMALLEST_BATCH:
        return {"skipped": f"batches of {len(x)} are too small to be probed"}
    if captured.num_classes is None and needs_adapting(args, kwargs, captured.output):
        captured.num_classes, captured.is_classifier = NUMBERS, False
        adapt(model, args, kwargs)
    return {"checks": list(_checks(model, x, captured))}


def _checks(model: nn.Module, x: Tensor, captured: Any) -> Iterator[dict[str, Any]]:
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    name = type(model).__name__

    again = rebuilt(captured)

    def build() -> nn.Module:
        if torch.initial_seed() == 0 or again is None:
            return copy.deepcopy(model)
        built = again()
        built.__class__ = type(model)
        return built

    spec = Spec(model=name, input_size=list(x.shape[1:]), num_classes=captured.num_classes, frozen=frozen)
    target = Target(name, build, tuple(x.shape[1:]), captured.num_classes)
    left = captured.deadline - time.monotonic()
    probe = LiveProbe(target, spec, torch.device("cpu"), max(1.0, left / 3))
    probe.inputs, probe.is_classifier = x, captured.is_classifier
    reported: dict[str, str] = {}
    for rule in all_rules().values():
        if rule.subject != "model" or rule.code in LEFT_OUT:
            continue
        if not x.is_floating_point() and rule.code in NEEDS_FLOATS:
            message = "the model takes integers"
            yield {"code": rule.code, "name": rule.name, "status": Status.SKIP, "message": message}
            continue
        if again is None and rule.code in NEEDS_ANOTHER_BUILD:
            message = "the model cannot be built again without the script"
            yield {"code": rule.code, "name": rule.name, "status": Status.SKIP, "message": message}
            continue
        if time.monotonic() > captured.deadline:
            yield {"code": rule.code, "name": rule.name, "status": Status.SKIP, "message": "no time was left for it"}
            continue
        for check in apply(rule, probe, reported):
            yield asdict(check)


def rebuilt(captured: Any) -> Callable[[], nn.Module] | None:
    """A function that builds the model anew; None where its constructor's arguments are not known."""
    if captured.constructor is None:
        return None
    cls, arguments = captured.constructor
    wanted = [tuple(p.shape) for p in captured.model.parameters()]
    try:
        other = cls(**arguments)
    except Exception:
        return None
    if [tuple(p.shape) for p in other.parameters()] != wanted:
        return None
    dtype = next(captured.model.parameters()).dtype
    return lambda: cls(**arguments).to(dtype)
