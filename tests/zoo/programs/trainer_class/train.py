"""A trainer with warmup and cosine per step, an exponential average of the weights, and checkpoints."""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset


@dataclass
class Config:
    epochs: int = 12
    batch_size: int = 40
    lr: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 30
    clip_norm: float = 2.0
    ema_decay: float = 0.97
    drop_rate: float = 0.1
    seed: int = 3
    out_dir: str = "runs"


class Waves(Dataset):
    """1x16x16 images of oriented waves in noise; the class is the orientation."""

    num_classes = 4

    def __init__(self, n, seed, augment):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(self.num_classes, (n,), generator=generator)
        angles = self.labels * math.pi / self.num_classes + 0.1 * torch.randn(n, generator=generator)
        phases = 2 * math.pi * torch.rand(n, generator=generator)
        grid = torch.arange(16.0)
        distance = grid * torch.cos(angles)[:, None, None] + grid[:, None] * torch.sin(angles)[:, None, None]
        waves = torch.sin(distance + phases[:, None, None])
        self.images = (waves + 2 * torch.randn(n, 16, 16, generator=generator)).unsqueeze(1)  # (n, 1, 16, 16)
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.augment:
            dx, dy = torch.randint(-2, 3, (2,)).tolist()
            image = torch.roll(image, (dy, dx), dims=(1, 2))
        return image, self.labels[index]


class Block(nn.Module):
    def __init__(self, dim, drop_rate):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.GroupNorm(1, dim)
        self.expand = nn.Conv2d(dim, 2 * dim, 1)
        self.reduce = nn.Conv2d(2 * dim, dim, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x):
        return x + self.drop(self.reduce(F.gelu(self.expand(self.norm(self.conv(x))))))


class Net(nn.Module):
    def __init__(self, num_classes, dim=24, depth=2, drop_rate=0.1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, dim, 2, stride=2, bias=False), nn.BatchNorm2d(dim))
        self.blocks = nn.ModuleList([Block(dim, drop_rate) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(dim=(-2, -1))))


class WeightAverage:
    """Exponential moving average of a model's parameters; its buffers are copied."""

    def __init__(self, model, decay):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for average, value in zip(self.module.parameters(), model.parameters(), strict=True):
            average.lerp_(value, 1 - self.decay)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)


class Trainer:
    def __init__(self, config):
        self.config = config
        torch.manual_seed(config.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train_loader = DataLoader(Waves(610, 0, augment=True), config.batch_size, shuffle=True)
        self.val_loader = DataLoader(Waves(170, 1, augment=False), config.batch_size)
        self.model = Net(Waves.num_classes, drop_rate=config.drop_rate).to(self.device)
        self.ema = WeightAverage(self.model, config.ema_decay)
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(self.parameter_groups(), lr=config.lr)
        self.scheduler = LambdaLR(self.optimizer, self.lr_factor)
        self.out_dir = Path(config.out_dir)
        self.out_dir.mkdir(exist_ok=True)
        self.epoch, self.best = 0, 0.0

    def parameter_groups(self):
        """Weight decay for matrices and kernels, none for biases and the gains of norms."""
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        no_decay = [p for p in self.model.parameters() if p.ndim <= 1]
        return [
            {"params": decay, "weight_decay": self.config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]

    def lr_factor(self, step):
        """Linear warmup, then cosine to zero over the rest of the training."""
        warmup, total = self.config.warmup_steps, self.config.epochs * len(self.train_loader)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def fit(self):
        for epoch in range(self.epoch, self.config.epochs):
            self.epoch = epoch
            train_loss = self.train_epoch()
            val_loss, val_acc = self.validate(self.ema.module)
            print(f"epoch {self.epoch}: train {train_loss:.4f}, val {val_loss:.4f}, accuracy {val_acc:.4f}")
            is_best = val_acc > self.best
            self.best = max(self.best, val_acc)
            self.save("last.pt")
            if is_best:
                self.save("best.pt")

    def train_epoch(self):
        self.model.train()
        total, count = 0.0, 0
        for images, labels in self.train_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.ema.update(self.model)
            total += loss.item() * len(labels)
            count += len(labels)
        return total / count

    @torch.no_grad()
    def validate(self, model):
        model.eval()
        total, correct, count = 0.0, 0, 0
        for images, labels in self.val_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            logits = model(images)
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(-1) == labels).sum().item()
            count += len(labels)
        return total / count, correct / count

    def save(self, name):
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "rng": torch.get_rng_state(),
            "config": asdict(self.config),
        }
        torch.save(state, self.out_dir / name)

    def resume(self, path):
        """Continue after the epoch that a checkpoint was written in."""
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.best = state["epoch"] + 1, state["best"]
        torch.set_rng_state(state["rng"].cpu())


if __name__ == "__main__":
    trainer = Trainer(Config())
    last = trainer.out_dir / "last.pt"
    if last.exists():
        trainer.resume(last)
    trainer.fit()
    print(f"best accuracy {trainer.best:.4f}")
