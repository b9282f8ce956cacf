"""Train a small CNN on handwritten digits.

python train.py --epochs 20 --lr 0.02
python train.py --resume checkpoints/last.pt
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.304, 0.304, 0.304), (0.375, 0.375, 0.375)  # of the training images, in [0, 1]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("checkpoints"))
    parser.add_argument("--resume", type=Path, default=None, help="checkpoint to continue from")
    return parser.parse_args()


class Digits(Dataset):
    """Images of handwritten digits: 3x16x16 after the transform, labels 0 to 9."""

    def __init__(self, images, targets, transform=None):
        self.images = images  # (n, 16, 16, 3), uint8
        self.targets = targets
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])


def build_datasets(augment):
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)
    images = images.repeat(2, axis=1).repeat(2, axis=2)[..., None].repeat(3, axis=-1)
    order = np.random.RandomState(0).permutation(len(images))
    train, val, test = order[:700], order[700:960], order[960:1220]

    to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    train_transform = transforms.Compose(([transforms.RandomCrop(16, padding=2)] if augment else []) + to_input)
    eval_transform = transforms.Compose(to_input)
    return (
        Digits(images[train], digits.target[train], train_transform),
        Digits(images[val], digits.target[val], eval_transform),
        Digits(images[test], digits.target[test], eval_transform),
    )


class CNN(nn.Module):
    def __init__(self, num_classes=10, dropout=0.2):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32 * 4 * 4, num_classes)

    def forward(self, x):
        x = self.features(x)
        return self.fc(self.dropout(torch.flatten(x, 1)))


def train_one_epoch(model, loader, criterion, optimizer, device):
    model.train()
    total_loss, correct, seen = 0.0, 0, 0
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        outputs = model(images)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        total_loss += loss.item() * len(targets)
        correct += (outputs.argmax(1) == targets).sum().item()
        seen += len(targets)
    return total_loss / seen, correct / seen


@torch.no_grad()
def evaluate(model, loader, criterion, device):
    model.eval()
    total_loss, correct, seen = 0.0, 0, 0
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        outputs = model(images)
        loss = criterion(outputs, targets)
        total_loss += loss.item() * len(targets)
        correct += (outputs.argmax(1) == targets).sum().item()
        seen += len(targets)
    return total_loss / seen, correct / seen


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main():
    args = parse_args()
    set_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    train_set, val_set, test_set = build_datasets(augment=not args.no_augment)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, num_workers=args.workers)
    val_loader = DataLoader(val_set, batch_size=args.batch_size, shuffle=False, num_workers=args.workers)
    test_loader = DataLoader(test_set, batch_size=args.batch_size, shuffle=False, num_workers=args.workers)

    model = CNN(num_classes=10, dropout=args.dropout).to(args.device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)

    start_epoch, best_acc = 0, 0.0
    if args.resume is not None:
        checkpoint = torch.load(args.resume, map_location=args.device)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        torch.set_rng_state(checkpoint["rng"].cpu())
        start_epoch, best_acc = checkpoint["epoch"] + 1, checkpoint["best_acc"]

    for epoch in range(start_epoch, args.epochs):
        train_loss, train_acc = train_one_epoch(model, train_loader, criterion, optimizer, args.device)
        val_loss, val_acc = evaluate(model, val_loader, criterion, args.device)
        lr = optimizer.param_groups[0]["lr"]
        scheduler.step()
        print(
            f"epoch {epoch + 1}/{args.epochs} lr {lr:.4f} train loss {train_loss:.4f} acc {train_acc:.4f} "
            f"val loss {val_loss:.4f} acc {val_acc:.4f}"
        )

        improved = val_acc > best_acc
        best_acc = max(best_acc, val_acc)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "epoch": epoch,
            "best_acc": best_acc,
            "rng": torch.get_rng_state(),
        }
        torch.save(state, args.output / "last.pt")
        if improved:
            torch.save(state, args.output / "best.pt")

    best = torch.load(args.output / "best.pt", map_location=args.device)
    model.load_state_dict(best["model"])
    test_loss, test_acc = evaluate(model, test_loader, criterion, args.device)
    print(f"test loss {test_loss:.4f} acc {test_acc:.4f} (best epoch {best['epoch'] + 1})")


if __name__ == "__main__":
    main()
