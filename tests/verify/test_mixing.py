"""Targets that the gradient gives away: batches mixed in every usual way, with the mistakes that are made there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from verify.report import Check
from verify.rules import all_rules
from verify.trace.child.targets import TargetsProbe, how_mixed
from verify.trace.record import Record
from verify.watch import _apply

BATCH, CLASSES, LAM = 12, 5, 0.3
PARTNER = torch.arange(BATCH).roll(1)

# (images, labels, logits) -> (mixed images, loss)
Recipe = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


def soft(labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.one_hot(labels, CLASSES).float() * (1 - smoothing) + smoothing / CLASSES


def mixed(x: Tensor, lam: float = LAM) -> Tensor:
    return lam * x + (1 - lam) * x[PARTNER]


def pasted(x: Tensor, side: int = 4) -> Tensor:
    x = x.clone()
    x[:, :, :side, :side] = x[PARTNER][:, :, :side, :side]
    return x


def plain(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return F.cross_entropy(model(x), y)


def plain_with_augmentation(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return F.cross_entropy(model(x.flip(3) + 0.1), y)


def mixup_with_two_losses(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    logits = model(mixed(x))
    return LAM * F.cross_entropy(logits, y) + (1 - LAM) * F.cross_entropy(logits, y[PARTNER])


def mixup_with_soft_targets(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    targets = LAM * soft(y, 0.1) + (1 - LAM) * soft(y[PARTNER], 0.1)
    return -(targets * model(mixed(x)).log_softmax(1)).sum(1).mean() / 4


def mixup_with_a_weight_a_sample(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    lam = torch.linspace(0.2, 0.8, BATCH)
    images = lam[:, None, None, None] * x + (1 - lam)[:, None, None, None] * x[PARTNER]
    targets = lam[:, None] * soft(y) + (1 - lam)[:, None] * soft(y[PARTNER])
    return F.cross_entropy(model(images), targets, reduction="sum")


def cutmix(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    lam = 1 - 16 / 64
    return F.cross_entropy(model(pasted(x)), lam * soft(y) + (1 - lam) * soft(y[PARTNER]))


def class_weights(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return F.cross_entropy(model(x), y, weight=torch.linspace(0.2, 3, CLASSES))


def focal(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    right = model(x).softmax(1).gather(1, y[:, None])
    return -((1 - right) ** 2 * right.log()).mean()


def two_heads_of_classes(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    """Pairs of the batch against each other, as image and text encoders are trained."""
    logits = model(x)
    return F.cross_entropy(logits @ logits.T, torch.arange(BATCH))


def swapped(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    logits = model(mixed(x))
    return (1 - LAM) * F.cross_entropy(logits, y) + LAM * F.cross_entropy(logits, y[PARTNER])


def unmixed(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return F.cross_entropy(model(mixed(x)), y)


def in_place_twice(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    x.mul_(LAM)
    x.add_(x[PARTNER] * (1 - LAM))
    logits = model(x)
    return LAM * F.cross_entropy(logits, y) + (1 - LAM) * F.cross_entropy(logits, y[PARTNER])


def box_clipped_after(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return F.cross_entropy(model(pasted(x)), 0.4 * soft(y) + 0.6 * soft(y[PARTNER]))


def label_of_another(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    targets = LAM * soft(y, 0.1) + (1 - LAM) * soft(y[PARTNER.roll(3)], 0.1)
    return F.cross_entropy(model(mixed(x)), targets)


def towards_a_teacher(logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), torch.linspace(1, 2, CLASSES).softmax(0).expand_as(logits))


def distilled(x: Tensor, y: Tensor, model: Callable, own: float = LAM) -> Tensor:
    logits = model(mixed(x))
    hard = own * F.cross_entropy(logits, y) + (1 - own) * F.cross_entropy(logits, y[PARTNER])
    return 0.3 * hard + 5 * towards_a_teacher(logits)


def distilled_swapped(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return distilled(x, y, model, own=1 - LAM)


def distilled_off(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return distilled(x, y, model, own=0.5)


def smoothing_by_class(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    targets = F.one_hot(y, CLASSES) * 0.8 + 0.2
    return -(targets * model(x).log_softmax(1)).sum(1).mean()


def softmax_over_batch(x: Tensor, y: Tensor, model: Callable) -> Tensor:
    return -(soft(y, 0.1) * model(x).log_softmax(0)).sum(1).mean()


def noting(probe: TargetsProbe, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cross entropy as the recorder hooks it."""

    def loss(scores: Tensor, target: Tensor, **options: object) -> Tensor:
        output = original(scores, target, **options)
        probe.note_loss("cross_entropy", output, target if target.dim() == 1 else None)
        return output

    return loss


def findings(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What the rules say after three steps with a recipe."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3 * 8 * 8, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 8)
    probe, events = TargetsProbe(), []
    for step in range(3):
        images = torch.randn(BATCH, 3, 8, 8, generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)

        def model(x: Tensor) -> Tensor:
            logits = layer(x.flatten(1))
            probe.watch(((x,), {}), logits)
            return logits

        probe.deliver((images, labels))
        with monkeypatch.context() as patch:
            patch.setattr(F, "cross_entropy", noting(probe, F.cross_entropy))
            recipe(images, labels, model).backward()
        found = probe.result()
        if found is not None:
            events.append({"kind": "targets", "i": step, "step": step, "loc": "train.py:1", **found})
    record = Record([{"kind": "run", "command": [], "code": 0, "log": "", "notes": [], "timed_out": False}, *events])
    rules = all_rules()
    checks = [c for code in ("DAT218", "LOS909", "LOS913") for c in _apply(rules[code], record)]
    return [check for check in checks if check.status not in ("pass", "skip")]


@pytest.mark.parametrize(
    ("recipe", "code", "status"),
    [
        (swapped, "DAT218", "fail"),
        (unmixed, "DAT218", "warn"),
        (in_place_twice, "DAT218", "warn"),
        (box_clipped_after, "DAT218", "warn"),
        (label_of_another, "DAT218", "fail"),
        (distilled_swapped, "DAT218", "fail"),
        (distilled_off, "DAT218", "warn"),
        (smoothing_by_class, "LOS913", "warn"),
        (softmax_over_batch, "LOS909", "fail"),
    ],
)
def test_wrong_targets_are_found(recipe: Recipe, code: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(c.code, c.status) for c in findings(recipe, monkeypatch)] == [(code, status)]


@pytest.mark.parametrize(
    "recipe",
    [
        plain,
        plain_with_augmentation,
        mixup_with_two_losses,
        mixup_with_soft_targets,
        mixup_with_a_weight_a_sample,
        cutmix,
        class_weights,
        focal,
        two_heads_of_classes,
        distilled,
    ],
)
def test_healthy_targets_pass(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(recipe, monkeypatch) == []


def test_weights_of_a_mixed_batch_are_measured() -> None:
    x = torch.randn(BATCH, 300, generator=torch.Generator().manual_seed(1)).double()
    how, weights, _ = how_mixed(x, 0.25 * x + 0.75 * x[PARTNER])
    assert how == "sum"
    assert torch.allclose(weights, 0.25 * torch.eye(BATCH).double() + 0.75 * torch.eye(BATCH).double()[PARTNER])
    how, weights, _ = how_mixed(x, torch.cat([x[:, :90], x[PARTNER][:, 90:]], dim=1))
    assert (how, weights.diagonal().mean().item()) == ("parts", pytest.approx(0.3))
    assert how_mixed(x, x)[0] == "none"
    how, weights, _ = how_mixed(x[:, :10], 0.25 * x[:, :10] + 0.75 * x[PARTNER][:, :10])
    assert (how, weights.diagonal().mean().item()) == ("sum", pytest.approx(0.25))
    assert how_mixed(x, x + torch.randn_like(x))[0] == "unknown"


def test_a_box_over_a_background_that_images_share() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 300, generator=generator).double()
    x[torch.rand(BATCH, 300, generator=generator) < 0.5] = 0.0  # where both are 0, the others tell
    _, weights, slack = how_mixed(x, torch.cat([x[:, :90], x[PARTNER][:, 90:]], dim=1))
    assert (weights.diagonal().mean().item(), slack) == (pytest.approx(0.3), 0.0)
    x[:, 50:130] = 0.0  # nobody does
    _, weights, slack = how_mixed(x, torch.cat([x[:, :110], x[PARTNER][:, 110:]], dim=1))
    assert abs(weights.diagonal().mean().item() - 110 / 300) <= slack < 0.15
