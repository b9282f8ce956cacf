"""Optimizers and their steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import averages, capture, held_data, rates, saving, weights
from .events import finite
from .quiet import quiet
from .weights import gradient_state

PROBE_NUMEL = 100_000
# Steps at which gradients and parameters are looked at in full; between them only a few small tensors are.
FULL_LOOKS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)

# Root mean square of a weight that begins at zero or close to it, such as that of a head: it has no size yet.
SMALL_START = 1e-3


class OptimizerInfo:
    """An optimizer and what happened since its last step."""

    def __init__(self, number: int, optimizer: Any) -> None:
        self.number, self.optimizer = number, optimizer
        self.steps = 0
        self.cleared = True
        self.zeroed_at = ""
        self.zeroed_after_backward = False
        self.backwards = 0
        self.backwards_since_clear = 0
        self.batches = 0
        self.passes = 0
        self.before: list[Tensor] = []
        self.started_small: dict[int, bool] = {}
        self.grads = "none"
        self.pending: dict[str, Any] = {}
        self.keys = {key for group in optimizer.param_groups for key in group} | set(optimizer.defaults)
        self.refresh()

    def refresh(self) -> None:
        """Choose the parameters that are looked at in every step: the first, the middle and the last small ones."""
        tensors = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        small = [p for p in tensors if p.numel() <= PROBE_NUMEL] or tensors
        self.probes = list({id(p): p for p in (small[0], small[len(small) // 2], small[-1])}.values()) if small else []
        self.count = sum(len(group["params"]) for group in self.optimizer.param_groups)

    def keep(self) -> None:
        """Copy the chosen parameters before a step."""
        self.before = [p.detach().clone() for p in self.probes]
        for p in self.probes:
            self.started_small.setdefault(id(p), p.detach().norm().item() < SMALL_START * p.numel() ** 0.5)

    def change(self) -> float | str | None:
        """The largest change of a chosen matrix since then, over its norm; None where none is compared."""
        pairs = [
            (a, b.detach())
            for a, b in zip(self.before, self.probes)
            if b.dim() >= 2 and not self.started_small.get(id(b), True) and bool(a.norm() > 0)
        ]
        ratio = max((((b - a).norm() / a.norm()).item() for a, b in pairs), default=None)
        return None if ratio is None else finite(ratio)

    def parameters(self) -> list[Tensor]:
        """All tensors that the optimizer holds."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def optimizer_info(recorder: Any, optimizer: Any) -> OptimizerInfo:
    """The number of an optimizer, and what is known of it."""
    info = recorder.optimizers.get(id(optimizer))
    if info is None:
        info = recorder.optimizers[id(optimizer)] = OptimizerInfo(len(recorder.optimizers), optimizer)
        groups = []
        for group in optimizer.param_groups:
            plain = {k: _plain(v) for k, v in group.items() if k != "params"}
            tensors = group["params"]
            groups.append(
                {
                    **plain,
                    "tensors": len(tensors),
                    "numel": sum(p.numel() for p in tensors),
                    "vectors": sum(p.dim() <= 1 and p.numel() > 1 for p in tensors),
                    "frozen": sum(not p.requires_grad for p in tensors),
                }
            )
        held = info.parameters()
        recorder.emit(
            "optimizer",
            id=info.number,
            cls=type(optimizer).__name__,
            groups=groups,
            holds=f"{id(held[0]):x}-{id(held[-1]):x}-{len(held)}" if held else "",
            loc=recorder.here(),
        )
    return info


@quiet
def zero(recorder: Any, info: OptimizerInfo) -> None:
    """Gradients of an optimizer are set to zero."""
    info.zeroed_after_backward = info.backwards > 0
    info.zeroed_at = recorder.here()
    info.cleared = True
    info.backwards_since_clear = 0


@quiet
def before_step(recorder: Any, optimizer: Any) -> None:
    """An optimizer is about to step."""
    info = optimizer_info(recorder, optimizer)
    recorder.flush_passes()
    if recorder.eval_phases and not recorder.captured and not recorder.train_loader_ids and recorder.current is None:
        recorder.capture()  # batches are cut by hand: the functions that hold the tensors still run now
    if len(info.parameters()) != info.count:
        info.refresh()
    if recorder.snapshot is None:
        weights.take_snapshot(recorder)
    state = gradient_state(info.probes)
    full = info.steps + 1 in FULL_LOOKS
    averages.end(recorder)
    averages.begin(recorder, info.steps + 1)
    if state in ("none", "zero", "nonfinite") or full:
        state = gradient_state(info.parameters())
    info.grads = state
    if full:
        weights.note_gradients(recorder, info)
        weights.note_norms(recorder, info)
    info.before = []
    if full:
        info.keep()
    counts = recorder.current.counts if recorder.current is not None else None
    if counts is not None and counts["steps"] == 0 and recorder.train_epochs <= 16:
        weights.note_weights(recorder, info)
    if info.steps == 0:
        capture.look_at_first_step(recorder, info)
        held_data.remember(recorder)
        saving.look_at_loaded(recorder)


@quiet
def after_step(recorder: Any, optimizer: Any, closure: bool) -> None:
    """An optimizer has stepped."""
    info = optimizer_info(recorder, optimizer)
    info.steps += 1
    recorder.step += 1
    if recorder.current is not None:
        recorder.current.counts["steps"] += 1
        recorder.train_loader_ids.add(id(recorder.current.loader))
    if closure:
        info.grads = gradient_state(info.probes)
    look_at_rates(recorder, info)
    _look_at_keys(recorder, info)
    recorder.emit(
        "step",
        n=recorder.step,
        opt=info.number,
        own=info.steps,
        lrs=[_plain(group.get("lr")) for group in optimizer.param_groups][:16],
        grads=info.grads,
        cleared=info.cleared,
        zeroed_after_backward=info.zeroed_after_backward,
        zeroed_at=info.zeroed_at,
        backwards=info.backwards,
        backwards_since_clear=info.backwards_since_clear,
        batches=info.batches,
        passes=info.passes,
        closure=closure,
        ratio=info.change(),
        scaled=recorder.in_scaler_step,
        nested=recorder.step_depth > 0,
        fast=recorder.fast,
        iteration=recorder.current.iteration if recorder.current is not None else None,
        epoch=recorder.current.entry["passes"] - 1 if recorder.current is not None else None,
        loc=recorder.here(),
        **info.pending,
    )
    info.pending = {}
    info.cleared = closure
    info.backwards = 0
    info.backwards_since_clear = 0
    info.batches = info.passes = 0
    info.zeroed_after_backward = False
    if recorder.stop_steps and recorder.step >= recorder.stop_steps:
        recorder.end("stopped after the steps that were asked for")
    recorder.check_time()


@quiet
def _look_at_keys(recorder: Any, info: OptimizerInfo) -> None:
    """Keys that the script adds to the groups of an optimizer."""
    new = {key for group in info.optimizer.param_groups for key in group} - info.keys
    for key in sorted(new):
        info.keys.add(key)
        recorder.emit("group_key", opt=info.number, key=str(key), step=recorder.step)


@quiet
def look_at_rates(recorder: Any, info: OptimizerInfo) -> None:
    """What the script calls a learning rate, how many steps it plans, which of its objects may set the rate."""
    called = rates.named(recorder, info.steps)
    if called:
        info.pending["named_rates"] = called
    if info.steps == 1:
        rates.note_plan(recorder, info.number)
    elif info.steps == 2:
        rates.note_holders(recorder, info.number, info.optimizer)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else list(value.shape)
    if isinstance(value, (int, float, str, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value][:8]
    return type(value).__name__
