"""Classify images that lie in one folder a class: data/train/<class>/<name>.png."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from torch.utils.data import DataLoader, Dataset

ROOT = Path("data")
EPOCHS = 10
BATCH_SIZE = 32
MEAN = np.array([0.433, 0.387, 0.279], dtype=np.float32)
STD = np.array([0.344, 0.310, 0.239], dtype=np.float32)
COLOURS = {"brick": (200, 80, 60), "tar": (60, 60, 70), "sand": (210, 180, 120), "grass": (90, 160, 60)}


def write_images(root, n, seed):
    """Write `n` 16x16 images in all, with stripes or dots in the colour of their class."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        name = list(COLOURS)[number % len(COLOURS)]
        pattern = rng.random((16, 16, 1)) < 0.7
        image = np.array(COLOURS[name]) * pattern + rng.normal(0, 60, (16, 16, 3)) + 10
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")


class ImageFolder(Dataset):
    def __init__(self, root, augment):
        self.classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.samples = [(path, self.class_to_idx[path.parent.name]) for path in sorted(root.glob("*/*.png"))]
        self.augment = augment

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255.0  # (H, W, 3)
        if self.augment:
            image = self.flip_and_shift(image)
        image = (image - MEAN) / STD
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), label

    def flip_and_shift(self, image):
        if np.random.rand() < 0.5:
            image = image[:, ::-1]
        top, left = np.random.randint(0, 5, size=2)
        return np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")[top : top + 16, left : left + 16]


def seed_worker(worker_id):
    """Give NumPy and random in a worker the seed that torch drew for it."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


class SmallCNN(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, num_classes),
        )

    def forward(self, x):
        return self.net(x)


def train(model, loader, criterion, optimizer):
    model.train()
    loss_sum, correct = 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * images.size(0)
        correct += (outputs.argmax(1) == labels).sum().item()
    return loss_sum / len(loader.dataset), correct / len(loader.dataset)


def predict(model, loader):
    """Logits, (n, C), and labels, (n,), in the loader's order."""
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for images, batch_labels in loader:
            logits.append(model(images))
            labels.append(batch_labels)
    return torch.cat(logits), torch.cat(labels)


def main():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if not ROOT.exists():
        write_images(ROOT / "train", 400, seed=1)
        write_images(ROOT / "val", 100, seed=2)

    train_set = ImageFolder(ROOT / "train", augment=True)
    val_set = ImageFolder(ROOT / "val", augment=False)
    train_loader = DataLoader(
        train_set,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=2,
        worker_init_fn=seed_worker,
        persistent_workers=True,
    )
    val_loader = DataLoader(val_set, batch_size=BATCH_SIZE)

    model = SmallCNN(len(train_set.classes))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.85)
    best_acc = 0.0
    for epoch in range(EPOCHS):
        train_loss, train_acc = train(model, train_loader, criterion, optimizer)
        logits, labels = predict(model, val_loader)
        val_loss = criterion(logits, labels).item()
        val_acc = (logits.argmax(1) == labels).float().mean().item()
        scheduler.step()
        print(f"{epoch + 1}/{EPOCHS} train {train_loss:.3f} {train_acc:.3f} val {val_loss:.3f} {val_acc:.3f}")
        if val_acc > best_acc:
            best_acc = val_acc
            torch.save({"model": model.state_dict(), "classes": train_set.classes}, "best.pt")

    best = torch.load("best.pt")
    model.load_state_dict(best["model"])
    logits, labels = predict(model, val_loader)
    confusion = torch.zeros(len(best["classes"]), len(best["classes"]), dtype=torch.long)
    for label, prediction in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[label, prediction] += 1
    print(confusion)


if __name__ == "__main__":
    main()
