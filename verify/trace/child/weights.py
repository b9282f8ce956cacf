"""What becomes of the weights of a run: gradients, parameters that never change, copies and averages of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import averages
from .events import finite
from .passes import ModelInfo
from .quiet import quiet

if TYPE_CHECKING:
    from .steps import OptimizerInfo

# Looks at frozen batch norms, the optimizer's 1st to 4th, after which their statistics must be what they were.
FROZEN_LOOKS = 4
LARGEST_SNAPSHOT = 2 * 2**30
PARTS, SMALLEST_PART = (2, 3), 4


def gradient_state(parameters: list[Tensor]) -> str:
    """`none`, `zero`, `nonfinite` or `ok`, taken together."""
    found = "none"
    for p in parameters:
        if p.grad is None:
            continue
        grad = p.grad
        if grad.is_sparse:
            return "ok"
        largest = grad.detach().abs().max().item() if grad.numel() else 0.0
        if largest != largest or largest == float("inf"):
            return "nonfinite"
        if largest > 0:
            found = "ok"
        elif found == "none":
            found = "zero"
    return found


def take_snapshot(recorder: Any) -> None:
    """Remember all parameters before the first step, to see later which of them never changed."""
    tensors = {id(p): p for m in recorder.models.values() for _, p in m.named}
    for info in recorder.optimizers.values():
        tensors.update({id(p): p for p in info.parameters()})
    size = sum(p.numel() * p.element_size() for p in tensors.values())
    recorder.snapshot = {}
    recorder.snapshot_size = size
    if size <= LARGEST_SNAPSHOT:
        recorder.snapshot = {key: (p, p.detach().clone(), p.requires_grad) for key, p in tensors.items()}
        for model in recorder.models.values():
            add_to_snapshot(recorder, model)


def add_to_snapshot(recorder: Any, info: ModelInfo) -> None:
    """Remember what a model consists of, unless it is known already or too large."""
    tensors = [*info.module.parameters(), *info.module.buffers()]
    fresh = [t for t in tensors if recorder.snapshot is not None and id(t) not in recorder.snapshot]
    recorder.snapshot_size += sum(t.numel() * t.element_size() for t in fresh)
    if recorder.snapshot is not None and recorder.snapshot_size <= LARGEST_SNAPSHOT:
        recorder.snapshot.update({id(t): (t, t.detach().clone(), t.requires_grad) for t in fresh})


def note_frozen(recorder: Any) -> None:
    """Parameters that were trained and are frozen now must not move any more."""
    for p, _, was_trainable in (recorder.snapshot or {}).values():
        if was_trainable and not p.requires_grad and id(p) not in recorder.frozen_later:
            recorder.frozen_later[id(p)] = (p, p.detach().clone())


@quiet
def note_norms(recorder: Any, info: OptimizerInfo) -> None:
    """Batch norms with frozen weights in models that this optimizer trains: their statistics, from look to look.

    One that is trained again is forgotten: adversarial training freezes a network for each step of the other.
    """
    held = {id(p) for p in info.parameters() if p.requires_grad}
    for model in list(recorder.models.values())[:8]:
        trained = any(id(p) in held for _, p in model.named)
        for norm in model.norms:
            weight = getattr(norm, "weight", None)
            if weight is None or weight.requires_grad:
                recorder.frozen_norms.pop(id(norm), None)
            elif trained:
                _follow(recorder, id(norm), model.number, norm)


def _follow(recorder: Any, key: int, model: int, norm: Any) -> None:
    seen = recorder.frozen_norms.get(key)
    now = norm.running_mean.detach()
    if seen is None:
        recorder.frozen_norms[key] = [norm, now.clone(), 1]
        return
    seen[2] += 1
    if seen[2] == FROZEN_LOOKS and norm.training and not torch.equal(seen[1], now):
        recorder.emit("frozen_norm", model=model, name=_name_of(recorder, model, norm), step=recorder.step)


def _name_of(recorder: Any, model: int, norm: Any) -> str:
    module = next(info.module for info in recorder.models.values() if info.number == model)
    return next((name for name, one in module.named_modules() if one is norm), type(norm).__name__)


def note_weights(recorder: Any, info: OptimizerInfo) -> None:
    """A checksum of what is trained at the first step of an epoch, to tell where a resumed run goes on."""
    total = sum(p.detach().double().sum().item() for p in info.parameters())
    recorder.emit("weights", opt=info.number, step=recorder.step, sum=finite(total), state=len(info.optimizer.state))


def note_gradients(recorder: Any, info: OptimizerInfo) -> None:
    """The norm of each gradient."""
    norms: dict[str, Any] = {}
    for model in list(recorder.models.values())[:4]:
        for name, p in model.named:
            if p.grad is None or p.grad.is_sparse:
                continue
            norm = p.grad.detach().norm().item()
            if norm != 0:
                recorder.graded.add(id(p))
                _note_parts(recorder, p)
            if len(norms) < 400:
                norms[name] = finite(round(norm, 8)) if norm == norm else "nan"
    for p in info.parameters():
        if id(p) not in recorder.graded and gradient_state([p]) in ("ok", "nonfinite"):
            recorder.graded.add(id(p))
        elif id(p) not in recorder.graded and p.requires_grad and not recorder.finished:
            recorder.looks[id(p)] = recorder.looks.get(id(p), 0) + 1
    recorder.emit("grad_norms", step=recorder.step + 1, opt=info.number, norms=norms)


def _note_parts(recorder: Any, p: Tensor) -> None:
    """Which halves and thirds of the rows of a matrix have got a gradient: fused projections, as of attention."""
    if p.dim() != 2 or p.grad is None:
        return
    for count in PARTS:
        if p.shape[0] % count or p.shape[0] < SMALLEST_PART * count:
            continue
        alive = p.grad.detach().reshape(count, -1).count_nonzero(dim=1).bool().tolist()
        known = recorder.parts.get((id(p), count), alive)
        recorder.parts[id(p), count] = [a or b for a, b in zip(known, alive)]


def _dead_parts(recorder: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Parts of the weights of linear layers that never got a gradient while the rest did."""
    found = []
    for name, module in model.named_modules():
        weights = [("weight", module.weight)] if isinstance(module, nn.Linear) else []
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            weights = [("in_proj_weight", module.in_proj_weight)]
        for key, p in weights:
            for count in PARTS:
                alive = recorder.parts.get((id(p), count))
                if alive and alive.count(False) == 1 and p.requires_grad:
                    place = f"{name}.{key}" if name else key
                    found.append({"name": place, "parts": count, "dead": alive.index(False), "rows": p.shape[0]})
    return found[:20]


def write_tables(recorder: Any) -> None:
    """What became of each parameter, and what each optimizer holds."""
    held: dict[int, list[int]] = {}
    for info in recorder.optimizers.values():
        for p in info.parameters():
            held.setdefault(id(p), []).append(info.number)
        if info.steps:
            note_gradients(recorder, info)
    ranked = sorted(recorder.models.values(), key=lambda m: -m.passes)[:12]
    for model in ranked:
        rows = []
        for name, p in model.module.named_parameters():
            start = (recorder.snapshot or {}).get(id(p))
            changed = (
                None
                if start is None or (recorder.fast and not recorder.step)
                else not torch.equal(start[1], p.detach())
            )
            was_trainable = p.requires_grad if start is None else start[2]
            later = recorder.frozen_later.get(id(p))
            moved = later is not None and not p.requires_grad and not torch.equal(later[1], p.detach())
            rows.append(
                {
                    "name": name,
                    "shape": list(p.shape),
                    "trainable": p.requires_grad,
                    "was_trainable": was_trainable,
                    "opts": held.get(id(p), []),
                    "graded": id(p) in recorder.graded,
                    "looks": recorder.looks.get(id(p), 0),
                    "changed": changed,
                    "moved_frozen": moved or (changed and not p.requires_grad and not was_trainable),
                }
            )
        buffers = []
        for name, b in model.module.named_buffers():
            start = (recorder.snapshot or {}).get(id(b))
            if start is not None and b.is_floating_point():
                buffers.append([name, not torch.equal(start[1], b.detach())])
        recorder.emit("params", model=model.number, rows=rows[:3000], buffers=buffers[:2000], passes=model.passes)
        for part in _dead_parts(recorder, model.module):
            recorder.emit("dead_part", model=model.number, **part)
    known = {id(p) for model in recorder.models.values() for p in model.module.parameters()}
    for info in recorder.optimizers.values():
        tensors = info.parameters()
        foreign = [list(p.shape) for p in tensors if id(p) not in known and id(p) not in recorder.graded]
        frozen = sum(not p.requires_grad for p in tensors)
        still = 0
        if recorder.snapshot:
            starts = [(recorder.snapshot.get(id(p)), p) for p in tensors]
            still = sum(s is not None and torch.equal(s[1], p.detach()) for s, p in starts)
        recorder.emit(
            "held",
            opt=info.number,
            steps=info.steps,
            tensors=len(tensors),
            frozen=frozen,
            foreign=foreign[:20],
            n_foreign=len(foreign),
            unchanged=still,
            graded=sum(id(p) in recorder.graded for p in tensors),
        )


def find_twins(recorder: Any, last: bool = False) -> None:
    """Other modules of the same shape as the trained model: averages of its weights, frozen copies of it."""
    if (recorder.train_epochs > 2 and not last) or recorder.last_trained is None:
        return
    import gc

    model = recorder.last_trained.info.module
    main = getattr(model, "module", model)
    shapes = [tuple(p.shape) for p in main.parameters()]
    if last:
        for twin, start, buffers in recorder.twins.values():
            _write_twin(recorder, twin, start, buffers)
        return
    for item in gc.get_objects():
        try:
            if not issubclass(type(item), nn.Module) or item is main or item is model or id(item) in recorder.twins:
                continue
            parameters = list(item.parameters())
            if len(parameters) != len(shapes) or [tuple(p.shape) for p in parameters] != shapes:
                continue
            if parameters[0] is next(main.parameters()) or len(recorder.twins) > 4:
                continue
        except Exception:  # half-made objects of other people's
            continue
        start = [p.detach().clone() for p in parameters]
        recorder.twins[id(item)] = (item, start, [b.detach().clone() for b in item.buffers()])
    averages.find(recorder, main)


def _write_twin(recorder: Any, twin: nn.Module, start: list[Tensor], buffers: list[Tensor]) -> None:
    trained = recorder.last_trained.info
    changed = any(not torch.equal(a, b.detach()) for a, b in zip(start, twin.parameters()))
    floats = [(a, b) for a, b in zip(buffers, twin.buffers()) if b.is_floating_point()]
    moved = any(not torch.equal(a, b) for a, b in floats)
    own = list(trained.module.buffers())
    initial = [(recorder.snapshot or {}).get(id(b)) for b in own]
    floating = [s for s in initial if s is not None and s[0].is_floating_point()]
    live_moved = any(not torch.equal(s[1], s[0]) for s in floating)
    info = recorder.models.get(id(twin))
    inside = set(map(id, twin.modules()))
    wrapper = next(
        (m for m in recorder.models.values() if twin in list(m.module.children()) or id(m.module) in inside), None
    )
    from_model = all(
        torch.equal(a, s[1])
        for a, p in zip(start, trained.module.parameters())
        if (s := (recorder.snapshot or {}).get(id(p))) is not None
    )
    recorder.emit(
        "twin",
        model=info.number if info else wrapper.number if wrapper else None,
        cls=type(twin).__name__,
        changed=changed,
        buffers=len(floats),
        buffers_changed=moved,
        live_buffers_changed=live_moved,
        was_initial=from_model,
        training=twin.training,
    )
