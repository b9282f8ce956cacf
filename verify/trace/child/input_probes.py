"""Numbers of the inputs: their statistics in each split and in the model, and what scaled them."""

from __future__ import annotations

from typing import Any

import torch

from .items import attributes_of, leaves_of
from .measuring import Json, Unavailable, attempt, attempt_each
from .split_pictures import centred
from .views import View

MOST_NUMBERS = 8_000_000  # of inputs, for statistics


def stats(train: View, evals: list[View], capture: Any) -> Json:
    """Range, mean and standard deviation of the inputs of each loader, by channel or feature, and what smooths them."""
    result: Json = {
        "train": attempt(lambda: _statistics(_rows(train))),
        "evals": attempt_each(evals, lambda view: _statistics(_rows(view))),
        "normalize": attempt(lambda: _normalizers(train)),
        "eval_normalize": attempt_each(evals, _normalizers),
        **model_stats(capture),
    }
    if capture.image_like:
        loaded = attempt_each([*evals, train], lambda view: _roughness(_rows(view)))
        result["roughness"] = [result["roughness"], *loaded]
    return result


def model_stats(capture: Any) -> Json:
    """What the model itself was given, which is after any scaling in the loop."""
    return {
        "first_layer": attempt(lambda: _first_layer(capture)),
        "model_input": attempt(lambda: _statistics(_model_input(capture))),
        "batch_means": attempt(lambda: centred(_model_input(capture))),
        "roughness": attempt(lambda: _roughness(_model_input(capture))),
    }


def _rows(view: View) -> torch.Tensor:
    """(N, ...) inputs of a loader, in one tensor, where they have one shape."""
    tensors = [
        x.float() for x, _ in view.batches if isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim > 1
    ]
    tensors = [x for x in tensors if x.shape[1:] == tensors[0].shape[1:]]
    if not tensors:
        raise Unavailable("no batch with floating point inputs of one shape was seen")
    most = max(64, MOST_NUMBERS // max(1, tensors[0][0].numel()))
    return torch.cat(tensors)[: min(512, most)]


def _statistics(rows: torch.Tensor) -> Json:
    if rows.ndim not in (2, 4):
        raise Unavailable(f"inputs of {rows.ndim} dimensions")
    finite = rows.isfinite()
    rows = torch.where(finite, rows, torch.zeros_like(rows))
    dims = (0, 2, 3) if rows.ndim == 4 else (0,)
    each = rows.mean(dim=(2, 3)) if rows.ndim == 4 else rows
    count = len(rows)
    limit = 64
    error = each.std(dim=0) / count**0.5 if count > 1 else each[0] * 0
    return {
        "n": count,
        "shape": list(rows.shape[1:]),
        "non_finite": int((~finite).sum()),
        "min": rows.min().item(),
        "max": rows.max().item(),
        "mean": _rounded(rows.mean(dim=dims)[:limit]),
        "std": _rounded(rows.std(dim=dims, unbiased=False)[:limit]),
        "error": _rounded(error[:limit]),  # of the mean, in the inputs' own units
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _normalizers(view: View) -> list[Json]:
    """The constants of the Normalize transforms that hang on a loader's datasets."""
    found: list[Json] = []
    for dataset in view.chain:
        seen: set[int] = set()
        todo: list[tuple[Any, int]] = [(value, 0) for value in attributes_of(dataset).values()]
        while todo and len(seen) < 2000:
            thing, depth = todo.pop()
            if (
                id(thing) in seen
                or depth > 6
                or isinstance(thing, (str, bytes, torch.Tensor, torch.utils.data.Dataset))
            ):
                continue
            seen.add(id(thing))
            if type(thing).__name__ == "Normalize" and hasattr(thing, "mean") and hasattr(thing, "std"):
                found.append({"mean": _numbers(thing.mean), "std": _numbers(thing.std)})
            elif isinstance(thing, (list, tuple)):
                todo.extend((value, depth + 1) for value in thing[:50])
            elif isinstance(thing, torch.nn.Module) or callable(thing):
                todo.extend((value, depth + 1) for value in attributes_of(thing).values())
            elif isinstance(thing, dict) and depth:
                todo.extend((value, depth + 1) for value in list(thing.values())[:50])
    return found


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in torch.as_tensor(values, dtype=torch.float64).flatten().tolist()]


def _first_layer(capture: Any) -> Json:
    """The range of what reaches the first layer with weights, which is after any scaling within the model."""
    model, given = capture.model, capture.inputs
    if not isinstance(model, torch.nn.Module) or given is None:
        raise Unavailable("the model was not captured")
    seen: list[torch.Tensor] = []

    def note(_: Any, args: Any) -> None:
        if not seen and args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            seen.append(args[0].detach().float())

    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, layers)]
    modes = [(module, module.training) for module in model.modules()]
    args, kwargs = given
    try:
        model.eval()  # batch norms must not learn from this pass
        with torch.no_grad():
            model(*map(_few_rows, args), **{name: _few_rows(value) for name, value in kwargs.items()})
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    if not seen:
        raise Unavailable("the model has no layer with weights that takes a tensor")
    return {"min": seen[0].min().item(), "max": seen[0].max().item()}


def _few_rows(value: Any) -> Any:
    return value[:8] if isinstance(value, torch.Tensor) and value.ndim > 1 else value


def _model_input(capture: Any) -> torch.Tensor:
    """(B, ...) what the model was given when it was last trained."""
    leaves = leaves_of(list(capture.inputs or ()))
    found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 1]
    if not found:
        raise Unavailable("the inputs of the model are no floating point tensor")
    return found[0].detach().cpu().float()


def _roughness(rows: torch.Tensor) -> Json:
    """Whether (N, 3, H, W) pictures look like (N, H, W, 3) memory, in which only every third number is a neighbour.

    `as_is` and `unmixed` are mean differences of neighbouring pixels, as delivered and read as (H, W, C). `comb` has,
    for both directions, the mean difference over 3 and 6 steps relative to that over 2, 4, 5 and 7 steps, and the gap
    between them in standard errors.
    """
    rows = rows[:128]
    if rows.ndim != 4 or rows.shape[1] != 3 or min(rows.shape[2:]) < 12:
        raise Unavailable("needs pictures with 3 channels")
    count, channels, height, width = rows.shape
    few = rows[: max(8, 1_000_000 // rows[0].numel())]
    unmixed = few.reshape(len(few), height, width, channels).permute(0, 3, 1, 2)
    part = rows[:, :, :64, :64]
    return {
        "n": count,
        "as_is": _neighbour_difference(few),
        "unmixed": _neighbour_difference(unmixed),
        "comb": {"across": _comb(part), "down": _comb(part.transpose(2, 3))},
    }


def _neighbour_difference(pictures: torch.Tensor) -> float:
    across = (pictures[..., 1:] - pictures[..., :-1]).abs().mean()
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()
    return ((across + down) / pictures.std().clamp_min(1e-12)).item()


def _comb(pictures: torch.Tensor) -> list[float]:
    def difference(step: int) -> torch.Tensor:
        return (pictures[..., step:] - pictures[..., :-step]).abs().mean(dim=(1, 2, 3))

    on = (difference(3) + difference(6)) / 2
    off = (difference(2) + difference(4) + difference(5) + difference(7)) / 4
    gap = on - off
    error = gap.std() / len(gap) ** 0.5 if len(gap) > 1 else gap.abs().sum()
    ratio = on.mean() / off.mean().clamp_min(1e-12)
    return [round(ratio.item(), 4), round((gap.mean() / error.clamp_min(1e-12)).item(), 2)]
