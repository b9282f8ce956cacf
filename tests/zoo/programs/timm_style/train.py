"""Training script with mixup, mixed precision, an average of the model and top-k accuracy."""

import argparse
import copy
import logging
import math
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

_logger = logging.getLogger("train")

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", default=12, type=int)
parser.add_argument("-b", "--batch-size", default=64, type=int)
parser.add_argument("--lr", default=0.1, type=float)
parser.add_argument("--min-lr", default=1e-4, type=float)
parser.add_argument("--warmup-lr", default=1e-2, type=float)
parser.add_argument("--warmup-epochs", default=2, type=int)
parser.add_argument("--momentum", default=0.9, type=float)
parser.add_argument("--weight-decay", default=1e-4, type=float)
parser.add_argument("--mixup", default=0.0, type=float, help="alpha of the beta distribution, 0 turns it off")
parser.add_argument("--smoothing", default=0.1, type=float)
parser.add_argument("--clip-grad", default=5.0, type=float)
parser.add_argument("--model-ema-decay", default=0.95, type=float)
parser.add_argument("--log-interval", default=10, type=int)
parser.add_argument("--seed", default=42, type=int)

NUM_CLASSES = 8


class AverageMeter:
    """Computes and stores the average and current value."""

    def __init__(self):
        self.val, self.sum, self.count = 0.0, 0.0, 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n

    @property
    def avg(self):
        return self.sum / self.count


def accuracy(output, target, topk=(1,)):
    """Share of samples, in percent, whose target is among the k highest outputs."""
    _, pred = output.topk(max(topk), 1, True, True)
    correct = pred.t().eq(target.reshape(1, -1).expand_as(pred.t()))
    return [correct[:k].reshape(-1).float().sum(0) * 100.0 / target.size(0) for k in topk]


class SoftTargetCrossEntropy(nn.Module):
    """Cross-entropy with a distribution over the classes as target."""

    def forward(self, x, target):
        return torch.sum(-target * F.log_softmax(x, dim=-1), dim=-1).mean()


class Mixup:
    """Mixes each sample with another of its batch; returns soft targets, (B, C)."""

    def __init__(self, alpha, smoothing, num_classes):
        self.alpha, self.smoothing, self.num_classes = alpha, smoothing, num_classes

    def one_hot(self, target):
        off = self.smoothing / self.num_classes
        return F.one_hot(target, self.num_classes).float() * (1.0 - self.smoothing) + off

    def __call__(self, x, target):
        lam = torch.distributions.Beta(self.alpha, self.alpha).sample().item() if self.alpha > 0 else 1.0
        x = x * lam + x.flip(0) * (1.0 - lam)
        target = self.one_hot(target) * lam + self.one_hot(target.flip(0)) * (1.0 - lam)
        return x, target


class ModelEma:
    """Keeps a moving average of everything in the model's state."""

    def __init__(self, model, decay):
        self.module = copy.deepcopy(model)
        self.module.eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for ema_v, model_v in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if ema_v.is_floating_point():
                ema_v.copy_(self.decay * ema_v + (1.0 - self.decay) * model_v)
            else:
                ema_v.copy_(model_v)


class CosineLRScheduler:
    """Sets the learning rate for an epoch, counted from 0: linear warmup, then cosine to `min_lr`."""

    def __init__(self, optimizer, epochs, min_lr, warmup_lr, warmup_epochs, updates_per_epoch):
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.epochs, self.min_lr = epochs, min_lr
        self.warmup_lr, self.warmup_epochs = warmup_lr, warmup_epochs
        self.updates_per_epoch = updates_per_epoch
        self.step_update(0)

    def lr_at(self, t, base_lr):
        if t < self.warmup_epochs:
            return self.warmup_lr + t * (base_lr - self.warmup_lr) / self.warmup_epochs
        progress = min(1.0, (t - self.warmup_epochs) / (self.epochs - self.warmup_epochs))
        return self.min_lr + 0.5 * (base_lr - self.min_lr) * (1 + math.cos(math.pi * progress))

    def step_update(self, num_updates):
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.lr_at(num_updates / self.updates_per_epoch, base_lr)


def create_dataset(split):
    """Eight classes of 3x12x12 images; train 700, val 180."""
    seeds, sizes = {"train": 1, "val": 2}, {"train": 700, "val": 180}
    centers = torch.randn(NUM_CLASSES, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seeds[split])
    target = torch.randint(NUM_CLASSES, (sizes[split],), generator=generator)
    images = F.interpolate(centers, size=12, mode="nearest")[target]
    return TensorDataset(images + 3 * torch.randn(images.shape, generator=generator), target)


def create_model(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(32 * 9, num_classes),
    )


def train_one_epoch(
    epoch, model, loader, optimizer, loss_fn, args, device, mixup_fn, scheduler, scaler, amp, model_ema
):
    model.train()
    losses_m = AverageMeter()
    num_updates = epoch * len(loader)
    for batch_idx, (images, target) in enumerate(loader):
        images, target = images.to(device), target.to(device)
        images, target = mixup_fn(images, target)
        with amp():
            output = model(images)
            loss = loss_fn(output, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        model_ema.update(model)

        losses_m.update(loss.item(), images.size(0))
        num_updates += 1
        scheduler.step_update(num_updates)
        if batch_idx % args.log_interval == 0:
            _logger.info("Train: %d [%d/%d] Loss: %.4f", epoch, batch_idx, len(loader), losses_m.avg)
    return {"loss": losses_m.avg}


def validate(model, loader, loss_fn, device, amp):
    losses_m, top1_m, top3_m = AverageMeter(), AverageMeter(), AverageMeter()
    model.eval()
    with torch.no_grad():
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            with amp():
                output = model(images)
                loss = loss_fn(output, target)
            acc1, acc3 = accuracy(output, target, topk=(1, 3))
            losses_m.update(loss.item(), images.size(0))
            top1_m.update(acc1.item(), output.size(0))
            top3_m.update(acc3.item(), output.size(0))
    return {"loss": losses_m.avg, "top1": top1_m.avg, "top3": top3_m.avg}


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = create_model(NUM_CLASSES).to(device)
    model_ema = ModelEma(model, args.model_ema_decay)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=args.momentum, nesterov=True, weight_decay=args.weight_decay
    )
    use_amp = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=use_amp)

    def amp():
        return torch.autocast(device.type, dtype=torch.float16) if use_amp else nullcontext()

    loader_train = DataLoader(create_dataset("train"), batch_size=args.batch_size, shuffle=True)
    loader_eval = DataLoader(create_dataset("val"), batch_size=args.batch_size)
    scheduler = CosineLRScheduler(
        optimizer, args.epochs, args.min_lr, args.warmup_lr, args.warmup_epochs, len(loader_train)
    )
    mixup_fn = Mixup(args.mixup, args.smoothing, NUM_CLASSES)
    train_loss_fn, validate_loss_fn = SoftTargetCrossEntropy(), nn.CrossEntropyLoss()

    best_metric, best_epoch = None, None
    for epoch in range(args.epochs):
        train_metrics = train_one_epoch(
            epoch,
            model,
            loader_train,
            optimizer,
            train_loss_fn,
            args,
            device,
            mixup_fn,
            scheduler,
            scaler,
            amp,
            model_ema,
        )
        eval_metrics = validate(model, loader_eval, validate_loss_fn, device, amp)
        ema_metrics = validate(model_ema.module, loader_eval, validate_loss_fn, device, amp)
        _logger.info("%d train %s eval %s ema %s", epoch, train_metrics, eval_metrics, ema_metrics)
        if best_metric is None or ema_metrics["top1"] > best_metric:
            best_metric, best_epoch = ema_metrics["top1"], epoch
            torch.save(
                {
                    "epoch": epoch,
                    "state_dict": model.state_dict(),
                    "state_dict_ema": model_ema.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "amp_scaler": scaler.state_dict(),
                    "metric": best_metric,
                },
                "model_best.pth.tar",
            )
    _logger.info("*** Best metric: %.3f (epoch %d)", best_metric, best_epoch)


if __name__ == "__main__":
    main()
