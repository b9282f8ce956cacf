"""What a classifier is really trained towards: the targets that the gradient of its logits gives away.

The gradient of a (soft) cross entropy by the logits z is s (softmax(z) - T), however the loss is written, so the
targets T (B, K) follow from it without knowing the script's loss: one criterion or two, weights, smoothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .tensors import inputs_and_targets, tensors_of

# Columns of the flattened inputs that are compared; they are drawn at equal distances.
MOST_COLUMNS, FEW_COLUMNS = 4096, 32
LARGEST_BATCH, MOST_CLASSES = 512, 1000
# Training passes that are looked at, and those of them that are written down.
LOOKED_AT, WRITTEN_MIXED, WRITTEN_PLAIN = 60, 8, 3
# After so many batches that were changed in another way, such as by augmentation, no more are looked at.
MOST_UNKNOWN = 6
# A weight of one of two mixed images below this tells nothing.
SMALLEST_WEIGHT = 0.05
EXACT = 1e-3
# Losses of one batch that are looked at, batches whose gradients are added, samples that must show a second label.
MOST_CALLS, MOST_ACCUMULATED, FEWEST_TOLD = 6, 8, 4


class TargetsProbe:
    """Compares a batch as a loader delivered it with what the model is given and trained towards."""

    def __init__(self) -> None:
        self.left, self.unknown_left = LOOKED_AT, MOST_UNKNOWN
        self.mixed_left, self.plain_left = WRITTEN_MIXED, WRITTEN_PLAIN
        self.before: Tensor | None = None
        self.labels: Tensor | None = None
        self.watched: tuple[Tensor, Tensor] | None = None
        self.gradient: Tensor | None = None
        self.calls: list[tuple[Tensor, list[float]]] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be found out."""
        return self.left <= 0 or self.mixed_left <= 0

    def deliver(self, data: Any) -> None:
        """Keep a part of a batch, because the script may change it in place."""
        self.before = self.labels = None
        if self.is_done:
            return
        inputs, labels = inputs_and_targets(data)
        if inputs is None or labels is None or labels.dim() != 1 or labels.is_floating_point():
            return
        if inputs.is_floating_point() and 2 <= len(inputs) <= LARGEST_BATCH:
            self.before, self.labels = _columns(inputs).clone(), labels.detach().cpu().long().clone()

    def watch(self, model_input: Any, logits: Any) -> None:
        """Ask for the gradient of the logits, (B, K)."""
        self.watched = self.gradient = None
        self.calls = []
        if self.before is None or self.labels is None or not isinstance(logits, Tensor) or not logits.requires_grad:
            return
        inputs = next(tensors_of(model_input), None)
        fits = logits.dim() == 2 and len(logits) == len(self.before) and 2 <= logits.shape[1] <= MOST_CLASSES
        if inputs is None or not fits or len(inputs) != len(self.before) or int(self.labels.max()) >= logits.shape[1]:
            return
        self.left -= 1
        after = _columns(inputs)
        if after.shape != self.before.shape or int(self.labels.min()) < 0:
            return
        unchanged = torch.equal(after[:, :FEW_COLUMNS], self.before[:, :FEW_COLUMNS])
        if self.plain_left > 0 or not unchanged:
            self.watched = (after.double(), logits.detach().cpu().double().clone())
            logits.register_hook(self._receive)

    def note_loss(self, name: str, output: Tensor, target: Tensor | None) -> None:
        """Ask what weight a loss of class numbers gets in what `backward` starts from."""
        single = name in ("cross_entropy", "nll_loss") and output.numel() == 1 and output.requires_grad
        if self.watched is None or target is None or not single or len(self.calls) >= MOST_CALLS:
            return
        weight: list[float] = []
        self.calls.append((target.detach().cpu().long().clone(), weight))
        output.register_hook(lambda gradient: weight.append(float(gradient)))

    def _called(self, partners: Tensor) -> float | None:
        """The weight of the own labels among losses of the own and of the partners' labels, if there are no others."""
        assert self.labels is not None
        mixed = partners != torch.arange(len(partners))
        shares = {"own": 0.0, "partner": 0.0}
        for target, weight in self.calls:
            if not weight or target.shape != self.labels.shape:
                return None
            own = torch.equal(target, self.labels)
            if not own and not torch.equal(target[mixed], self.labels[partners][mixed]):
                return None
            shares["own" if own else "partner"] += weight[0]
        total = sum(shares.values())
        return shares["own"] / total if all(shares.values()) and total else None

    def _receive(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().cpu().double().clone()

    def result(self) -> dict[str, Any] | None:
        """What the last backward pass showed."""
        watched, gradient = self.watched, self.gradient
        self.watched = self.gradient = None
        if watched is None or gradient is None or self.before is None or self.labels is None:
            return None
        after, logits = watched
        how, weights, slack = how_mixed(self.before.double(), after)
        if how == "unknown":
            self.unknown_left -= 1
            self.left = self.left if self.unknown_left else 0
            return None
        if not gradient.isfinite().all() or not gradient.any():
            return None
        own = weights.diagonal()
        if how == "none":
            if self.plain_left <= 0:
                return None
            self.plain_left -= 1
        else:
            if not ((own > SMALLEST_WEIGHT) & (own < 1 - SMALLEST_WEIGHT)).any():
                return None
            self.mixed_left -= 1
        sums = weights.sum(dim=1)
        called = self._called(partners_of(weights))
        return {
            "how": how,
            "own": round(own.median().item(), 4),
            "sum": round(sums.median().item(), 4),
            "slack": round(slack, 4),
            "called": None if called is None else round(called, 4),
            **_towards(logits, gradient, self.labels, weights / sums[:, None]),
        }


def _columns(inputs: Tensor) -> Tensor:
    """(B, at most MOST_COLUMNS or a little more)"""
    flat = inputs.detach().reshape(len(inputs), -1)
    return flat[:, :: max(1, flat.shape[1] // MOST_COLUMNS)].cpu()


def how_mixed(before: Tensor, after: Tensor) -> tuple[str, Tensor, float]:
    """How a batch (B, D) was made of another.

    Returns:
        `none`, `sum` (weighted sums of samples), `parts` (values of one sample in another) or `unknown`, the (B, B)
        weights of the old samples in the new ones, and by how much these may be off.
    """
    count = len(before)
    same = before == after
    if same.all():
        return "none", torch.eye(count, dtype=torch.double), 0.0
    parts = _parts(before, after, same)
    if parts is not None:
        return "parts", *parts
    weights = _sums(before, after)
    if weights is not None:
        return "sum", weights, 0.0
    return "unknown", torch.eye(count, dtype=torch.double), 0.0


def _parts(before: Tensor, after: Tensor, same: Tensor) -> tuple[Tensor, float] | None:
    partners = torch.arange(len(before))
    for sample, kept in enumerate(same):
        if kept.all():
            continue
        changed = (~kept).nonzero()[:, 0]
        few = changed[:: max(1, len(changed) // FEW_COLUMNS)]
        likely = (before[:, few] == after[sample, few]).all(dim=1).nonzero()[:, 0]
        foreign = likely[(before[likely][:, changed] == after[sample, changed]).all(dim=1)]
        if not len(foreign):
            return None
        partners[sample] = foreign[0]
    kept = _kept(before != before[partners], same)
    own = kept.nan_to_num(0.5).mean(dim=1)
    weights = torch.diag(own)
    weights[torch.arange(len(own)), partners] += 1 - own
    mixed = partners != torch.arange(len(own))
    return weights, kept[mixed].isnan().double().mean().item() / 2


def _kept(told: Tensor, same: Tensor) -> Tensor:
    """Which values (B, D) are the sample's own: 1 or 0, NaN where both images have the same one.

    A box that all samples share is seen where any of them tells.
    """
    kept = torch.where(told, same.double(), torch.nan)
    votes = kept.nanmean(dim=0)
    one_box = not ((votes > 0) & (votes < 1)).any()
    return votes.expand_as(kept) if one_box else kept


def _sums(before: Tensor, after: Tensor) -> Tensor | None:
    if 2 * len(before) > before.shape[1]:
        return _pairs(before, after)
    weights = after @ before.T @ torch.linalg.pinv(before @ before.T, hermitian=True)
    if (weights @ before - after).norm() > EXACT * after.norm():
        return None
    largest = weights.abs().topk(2, dim=1)
    two_at_most = largest.values.sum(dim=1) > (1 - EXACT) * weights.abs().sum(dim=1)
    return torch.where(weights.abs() > EXACT, weights, 0.0) if two_at_most.all() else None


def _pairs(before: Tensor, after: Tensor) -> Tensor | None:
    """As `_sums`, for images so small that any is a sum of the others: weights of two that sum to 1."""
    weights = torch.zeros(len(before), len(before), dtype=torch.double)
    for sample, mixed in enumerate(after):
        apart = before[sample] - before
        share = ((mixed - before) * apart).sum(dim=1) / apart.square().sum(dim=1).clamp_min(1e-300)
        error = (mixed - before - share[:, None] * apart).norm(dim=1)
        error[sample] = (mixed - before[sample]).norm()
        partner = int(error.argmin())
        if error[partner] > EXACT * mixed.norm():
            return None
        weights[sample, partner] = 1.0 if partner == sample else 1 - share[partner]
        if partner != sample:
            weights[sample, sample] = share[partner]
    return weights


def _towards(logits: Tensor, gradient: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Any]:
    """Which targets explain the gradient, as relative errors, and the weight of the own label among two."""
    classes = one_hot(labels, logits.shape[1]).double()
    partners = partners_of(weights)
    own = weights.diagonal()[:, None]
    mixed = weights @ classes
    swapped = own * classes[partners] + (1 - own) * classes
    rows, columns = logits.softmax(dim=1), logits.softmax(dim=0)
    error, shares = _explained(rows, gradient, mixed)
    error_two, two = _explained(rows, gradient, classes, classes[partners])
    both = two[0] + two[1]
    return {
        "mixed": _short(error),
        "swapped": _short(_explained(rows, gradient, swapped)[0]),
        "unmixed": _short(_explained(rows, gradient, classes)[0]),
        "two": _short(error_two),
        "two_own": _short(two[0] / both) if both.abs() > EXACT else None,
        "partner": _second_label(rows, gradient, labels, partners),
        "over_batch": _short(_over_batch(columns, gradient, mixed)),
        "smoothing": _short(1 - shares[0] / shares.sum()),
    }


def partners_of(weights: Tensor) -> Tensor:
    """The number of the sample that each is mixed with, (B,); its own where it is not."""
    others = weights - torch.diag(weights.diagonal())
    return torch.where(others.any(dim=1), others.argmax(dim=1), torch.arange(len(weights)))


def _second_label(probabilities: Tensor, gradient: Tensor, labels: Tensor, partners: Tensor) -> float | None:
    """If the targets are the own label, one other and a uniform rest: how often the other is that of the partner.

    With a mean over the batch and a few accumulated batches, or a sum, the targets are softmax(z) - scale x gradient.
    """
    count, classes = probabilities.shape
    if classes < 4:
        return None
    own = one_hot(labels, classes).bool()
    for scale in (1, *(count * number for number in range(1, MOST_ACCUMULATED + 1))):
        targets = probabilities - scale * gradient
        second = targets.masked_fill(own, -torch.inf).argmax(dim=1)
        uniform = targets[~(own | one_hot(second, classes).bool())]
        if (uniform - uniform.mean()).abs().max() > EXACT or uniform.mean() < -EXACT:
            continue
        weight = targets.gather(1, second[:, None])[:, 0] - uniform.mean()
        told = (weight > SMALLEST_WEIGHT) & (labels[partners] != labels)
        if told.sum() >= FEWEST_TOLD:
            return _short((second == labels[partners])[told].double().mean())
    return None


def _over_batch(columns: Tensor, gradient: Tensor, targets: Tensor) -> Tensor:
    """The error of explaining the gradient by a softmax over the batch, targets smoothed or not."""
    count, classes = columns.shape
    goal = columns * targets.sum(dim=0) - targets
    smooth = (count * columns - 1) / classes
    terms = torch.stack([gradient.reshape(-1), smooth.reshape(-1)], dim=1)
    sizes = terms.norm(dim=0).clamp_min(1e-300)
    found = torch.linalg.lstsq(terms / sizes, goal.reshape(-1, 1), driver="gelsd").solution
    return ((terms / sizes) @ found - goal.reshape(-1, 1)).norm() / goal.norm().clamp_min(1e-300)


def _explained(probabilities: Tensor, gradient: Tensor, *targets: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of probabilities = s gradient + sum of shares x targets + share / K.

    Returns:
        The error relative to the spread of the probabilities, and the shares, that of the uniform distribution last.
    """
    uniform = torch.full_like(probabilities, 1 / probabilities.shape[1])
    terms = torch.stack([t.reshape(-1) for t in (gradient, *targets, uniform)], dim=1)
    sizes = terms.norm(dim=0).clamp_min(1e-300)
    goal = probabilities.reshape(-1)
    found = torch.linalg.lstsq(terms / sizes, goal[:, None], driver="gelsd").solution
    error = ((terms / sizes) @ found - goal[:, None]).norm() / (goal - goal.mean()).norm().clamp_min(1e-300)
    return error, (found[:, 0] / sizes)[1:]


def _short(value: Tensor) -> float | None:
    number = float(value)
    return float(f"{number:.3g}") if number == number and abs(number) != float("inf") else None
