"""Backward passes: what they are called on, and what they find in the gradients."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor

from . import graphs, reported, weights
from .events import finite
from .quiet import quiet
from .weights import gradient_state

COUNTED_STEPS = 50


def backward(recorder: Any, root: Any, call: Any, args: tuple, kwargs: dict) -> Any:
    """Run a backward pass and write it down."""
    if recorder.fast:
        recorder.evaluated = recorder.eval_phases > 0
        recorder.fresh_eval = recorder.session.talking = False
        return None
    recorder.check_time()
    seen = _before_backward(recorder, root)
    start = time.monotonic()
    recorder.backward_depth += 1
    try:
        result = call(*args, **kwargs)
    finally:
        recorder.backward_depth -= 1
    recorder.worked += time.monotonic() - start
    _after_backward(recorder, seen or {})
    return result


@quiet
def _before_backward(recorder: Any, root: Any) -> dict[str, Any]:
    tensor = root if isinstance(root, Tensor) else next(iter(root), None)
    if recorder.step < COUNTED_STEPS and isinstance(tensor, Tensor):
        recorder.loss_terms = max(recorder.loss_terms, reported.sum_depth(tensor))
    recorder.flush_passes(only_eval=True, root=tensor)
    if recorder.fresh_eval:
        recorder.look_at_report()
    value = tensor.detach().item() if isinstance(tensor, Tensor) and tensor.numel() == 1 else None
    chain = _chain(recorder, tensor)
    stale = {}
    for info in recorder.optimizers.values():
        state = gradient_state(info.probes)
        if state in ("none", "zero"):
            info.cleared = True
            info.backwards_since_clear = 0
        stale[info.number] = state
    recorder.flush_passes(trained=True)
    if recorder.snapshot is None:
        weights.take_snapshot(recorder)
    used, recorder.last_loss = recorder.last_loss, {}
    last = used.get("value")
    ratio = value / last if isinstance(last, (int, float)) and value is not None and last else None
    return {
        "fn": used.get("fn"),
        "reduction": used.get("reduction"),
        "value": None if value is None else finite(value),
        "ratio": None if ratio is None else finite(round(ratio, 6)),
        "chain": chain,
        "summed": _summed(tensor),
        **graphs.look(tensor),
        "stale": stale,
    }


@quiet
def _after_backward(recorder: Any, seen: dict[str, Any]) -> None:
    for info in recorder.optimizers.values():
        info.backwards += 1
        info.backwards_since_clear += 1
        info.zeroed_after_backward = False
    if recorder.current is not None:
        recorder.current.counts["backwards"] += 1
        recorder.train_loader_ids.add(id(recorder.current.loader))
    recorder.fresh_eval = recorder.session.talking = False
    recorder.emit(
        "backward",
        **seen,
        step=recorder.step,
        iteration=recorder.current.iteration if recorder.current is not None else None,
        loc=recorder.here(),
    )
    _look_at_targets(recorder)


@quiet
def _look_at_targets(recorder: Any) -> None:
    found = recorder.targets_probe.result()
    if found is not None and recorder.last_trained is not None:
        recorder.emit("targets", step=recorder.step, loc=recorder.last_trained.fields["loc"], **found)


def _summed(tensor: Any) -> int | None:
    """How many numbers `backward` starts from the sum of."""
    node = getattr(tensor, "grad_fn", None)
    if type(node).__name__ == "NegBackward0":
        node = node.next_functions[0][0]
    if not type(node).__name__.startswith("SumBackward"):
        return None
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    return math.prod(int(size) for size in sizes) if sizes is not None else None


def _chain(recorder: Any, tensor: Any) -> list[str]:
    """Names of the operations between the loss function and what `backward` is called on."""
    node, target, names = getattr(tensor, "grad_fn", None), recorder.last_loss.get("node"), list[str]()
    while node is not None and node is not target and len(names) < 8:
        names.append(type(node).__name__)
        following = [n for n, _ in node.next_functions if n is not None]
        node = following[0] if following else None
    if target is not None and node is target:
        names.append("loss")
    return names
