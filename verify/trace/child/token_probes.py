"""Models of sequences of tokens, tried on the last batch: what the targets are to the inputs, what padding changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .measuring import Unavailable, attempt
from .tensors import tensors_of

FEWEST_TOKENS = 24
FEWEST_VALUES = 4
COLUMNS = 4  # places whose token is exchanged
CHANGED = 1e-5  # of the spread of the logits; a token that is masked changes nothing at all
CHANGED_BY_PADDING = 1e-3
NOT_A_TARGET = -100
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)


def probe_tokens(captured: Any) -> dict[str, Any]:
    """Each part by itself; the batch is the last one that was trained on."""
    model, given = captured.model, captured.inputs
    if model is None or not isinstance(given, tuple) or next(_token_inputs(given), None) is None:
        return {"skipped": "the model is given no tokens"}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return {
                "leak": attempt(lambda: _leak(model, given, captured.trained_call)),
                "padded_targets": attempt(lambda: _padded_targets(model, given, captured.trained_call)),
                "padding": attempt(lambda: _padding(model, given)),
                "kinds": sorted(_kinds(model)),
            }
    finally:
        for module, was_training in modes:
            module.training = was_training


def _kinds(model: nn.Module) -> set[str]:
    kinds = {"recurrent": RECURRENT, "convolution": CONVOLUTIONS}
    return {name for name, types in kinds.items() if any(isinstance(m, types) for m in model.modules())}


def _token_inputs(given: Any) -> Iterator[Tensor]:
    """Integers, (sequences, tokens), of several values; the same tensor once."""
    seen: set[int] = set()
    for tensor in tensors_of(given):
        whole = tensor.dtype in (torch.int64, torch.int32) and tensor.dim() == 2 and min(tensor.shape) >= 2
        if whole and id(tensor) not in seen and tensor.unique().numel() >= FEWEST_VALUES:
            seen.add(id(tensor))
            yield tensor


def _with(value: Any, old: Tensor, new: Tensor) -> Any:
    """Nested arguments with one tensor exchanged."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        return {key: _with(item, old, new) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with(item, old, new) for item in value)
    return value


def _targets(tokens: Tensor, call: Any) -> Tensor:
    """The targets of the loss, aligned with (sequences, tokens); what does not count is -100."""
    if call is None:
        raise Unavailable("no cross entropy of class numbers was trained on")
    target, options = call
    rows, length = tokens.shape
    target = target.reshape(-1).to(tokens)
    if target.numel() == rows * (length - 1):  # the last output was left out
        aligned = torch.cat([target.view(rows, -1), torch.full((rows, 1), NOT_A_TARGET).to(tokens)], dim=1)
    elif target.numel() == rows * length:
        aligned = target.view(rows, length).clone()
    else:
        raise Unavailable("there is not one target for each token")
    aligned[(aligned == options.get("ignore_index", NOT_A_TARGET)) | (aligned < 0)] = NOT_A_TARGET
    return aligned


def _logits(model: nn.Module, given: Any, tokens: Tensor) -> Tensor:
    """(sequences, tokens, classes)."""
    rows, length = tokens.shape
    for output in tensors_of(model(*given[0], **given[1])):
        if not output.is_floating_point() or output.dim() < 2:
            continue
        if output.dim() == 3 and output.shape[0] == rows and output.shape[1] != length and output.shape[2] == length:
            return output.transpose(1, 2)
        if output.shape[-1] > 1 and output.numel() == rows * length * output.shape[-1]:
            return output.reshape(rows, length, -1)
        if output.shape[-1] > 1 and output.numel() == rows * (length - 1) * output.shape[-1]:
            return nn.functional.pad(output.reshape(rows, length - 1, -1), (0, 0, 0, 1))
    raise Unavailable("the output has no scores for each token")


def _leak(model: nn.Module, given: Any, call: Any) -> dict[str, Any]:
    """Of inputs that hold the targets, at the same place or one later: whether the scores depend on that very token."""
    found = []
    for tokens in _token_inputs(given):
        try:
            targets = _targets(tokens, call)
        except Unavailable:
            continue
        shift = next((s for s in (0, 1) if _holds(tokens, targets, s)), None)
        if shift is None:
            continue
        base = _logits(model, given, tokens)
        if not torch.equal(base, _logits(model, given, tokens)):
            raise Unavailable("the output is random in eval mode")
        leaks, depends = _dependence(model, given, tokens, targets, shift, base)
        if depends:
            found.append({"shift": shift, "leaks": leaks, "shape": list(tokens.shape)})
    if not found:
        raise Unavailable("no input that the model reads holds the targets")
    only = len(list(_token_inputs(given))) == 1
    return {"inputs": found, "narrow": _is_narrow(model, given, len(base), base.shape[1] if only else 0)}


def _holds(tokens: Tensor, targets: Tensor, shift: int) -> bool:
    ahead, wanted = tokens[:, shift:], targets[:, : targets.shape[1] - shift]
    counted = wanted != NOT_A_TARGET
    values = wanted[counted]
    enough = values.numel() >= FEWEST_TOKENS and values.unique().numel() >= FEWEST_VALUES
    return enough and torch.equal(ahead[counted], values)


def _dependence(
    model: nn.Module, given: Any, tokens: Tensor, targets: Tensor, shift: int, base: Tensor
) -> tuple[bool, bool]:
    """Whether most scores depend on the token that is their target, and whether any depends on any."""
    length = tokens.shape[1]
    known = targets[targets != NOT_A_TARGET].unique()
    columns = [c for c in range(length - shift) if (targets[:, c] != NOT_A_TARGET).any()]
    columns = columns[:: max(1, len(columns) // COLUMNS)][:COLUMNS]
    tried, changed, any_change = 0, 0, False
    for column in columns:
        rows = targets[:, column] != NOT_A_TARGET
        other = tokens.clone()
        place = torch.searchsorted(known, targets[rows, column].contiguous())
        other[rows, column + shift] = known[(place + 1) % len(known)]
        difference = (_logits(model, _with(given, tokens, other), other) - base).abs().amax(dim=2)
        is_changed = difference > CHANGED * float(base.std())
        tried, changed = tried + int(rows.sum()), changed + int(is_changed[rows, column].sum())
        any_change = any_change or bool(is_changed.any())
    return changed >= 0.5 * tried, any_change


def _is_narrow(model: nn.Module, given: Any, rows: int, length: int) -> bool:
    """Whether a module makes one vector of a sequence, as an autoencoder does, or changes the number of places."""
    shapes: list[tuple[int, ...]] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        shapes.extend(tuple(t.shape) for t in tensors_of(output) if t.is_floating_point())

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        model(*given[0], **given[1])
    finally:
        for handle in handles:
            handle.remove()
    vectors = any(len(shape) == 2 and shape[0] == rows for shape in shapes)
    return vectors or any(
        length and len(shape) == 3 and length not in shape and rows * length not in shape for shape in shapes
    )


def _padding_numbers(model: nn.Module) -> set[int]:
    return {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None}


def _tails(tokens: Tensor, number: int) -> Tensor:
    """(sequences, tokens): where nothing but `number` follows."""
    return (tokens == number).flip(1).cumprod(dim=1).flip(1).bool()


def _padded_targets(model: nn.Module, given: Any, call: Any) -> dict[str, Any]:
    """How many of the targets that count are padding at the ends of sequences."""
    if call is None or call[1].get("reduction", "mean") == "none":
        raise Unavailable("no loss of class numbers was summed up")
    weight = call[1].get("weight")
    for tokens in _token_inputs(given):
        for number in _padding_numbers(model):
            try:
                targets = _targets(tokens, call)
            except Unavailable:
                continue
            tails = _tails(torch.where(targets == NOT_A_TARGET, number, targets), number) & (targets == number)
            lengths = tails.sum(dim=1)
            if not tails.any() or int((targets == number).sum()) != int(tails.sum()) or not (lengths == 0).any():
                continue
            if isinstance(weight, Tensor) and float(weight[number]) == 0:
                continue
            counted = int((targets != NOT_A_TARGET).sum())
            return {"number": number, "padding": int(tails.sum()), "counted": counted, "rows": int((lengths > 1).sum())}
    raise Unavailable("no target is padding")


def _padding(model: nn.Module, given: Any) -> dict[str, Any]:
    """One sequence with its padding and without: how much its outputs differ, as a share of their spread."""
    numbers = _padding_numbers(model)
    for tokens in _token_inputs(given):
        for number in numbers:
            lengths = _tails(tokens, number).sum(dim=1)
            row = int(lengths.argmax())
            cut = int(lengths[row])
            if cut < 2 or cut > tokens.shape[1] - 2 or not (lengths == 0).any():
                continue
            return {"cut": cut, "of": tokens.shape[1], **_without_padding(model, given, tokens, row, cut)}
    raise Unavailable("no sequence is padded with the padding_idx of an embedding")


def _without_padding(model: nn.Module, given: Any, tokens: Tensor, row: int, cut: int) -> dict[str, Any]:
    def one(trim: bool) -> list[Tensor]:
        kept = tokens.shape[1] - cut

        def part(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: part(item) for key, item in value.items()}
            if type(value) in (list, tuple):
                return type(value)(part(item) for item in value)
            if not isinstance(value, Tensor) or not value.dim() or len(value) != len(tokens):
                return value
            mine = value[row : row + 1]
            goes_along = value is tokens or (value.shape == tokens.shape and value.unique().numel() <= 2)
            return mine[:, :kept] if trim and goes_along else mine

        args, options = part(list(given[0])), part(given[1])
        return [t for t in tensors_of(model(*args, **options)) if t.is_floating_point() and t.dim() >= 2]

    padded, again, bare = one(False), one(False), one(True)
    if not padded or len(padded) != len(bare) or not torch.equal(padded[0], again[0]):
        raise Unavailable("the output is random in eval mode, or has another form")
    full, short = padded[0], bare[0]
    if full.shape != short.shape:
        if full.dim() != 3 or full.shape[1] - short.shape[1] != cut or full.shape[2] != short.shape[2]:
            raise Unavailable("the output has another form")
        full = full[:, : short.shape[1]]
    return {"difference": round(float((full - short).abs().max() / full.std().clamp_min(1e-12)), 6)}
