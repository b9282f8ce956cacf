"""The data module and the loop of the example project in the kit's seed document, for the CNN.

Kept as they are, with what is wrong with them: both splits share one data set, so setting the validation transform
takes the augmentation from training as well (which makes its loader faster), and the weight decay of its settings is
never read. Left out are the download and resuming; a line an epoch is noted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peer import MEAN, STD, Task, model_of, task_from_arguments
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, random_split
from torch.utils.tensorboard import SummaryWriter
from torchvision import datasets, transforms
from tqdm import tqdm

BATCH_SIZE, WORKERS, LEARNING_RATE, PATIENCE = 128, 4, 0.001, 10


def get_dataloaders(root: Path, batch_size: int = BATCH_SIZE, num_workers: int = WORKERS) -> tuple:
    train_transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    val_transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    dataset = datasets.CIFAR10(root=root, train=True, transform=train_transform)
    train_size = len(dataset) * 9 // 10  # 45,000 of 50,000
    train_dataset, val_dataset = random_split(dataset, [train_size, len(dataset) - train_size])
    val_dataset.dataset.transform = val_transform
    train_loader = DataLoader(
        train_dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers, pin_memory=True
    )
    val_loader = DataLoader(val_dataset, batch_size=batch_size, shuffle=False, num_workers=num_workers, pin_memory=True)
    return train_loader, val_loader


def train_one_epoch(
    model: nn.Module,
    train_loader: DataLoader,
    criterion: nn.Module,
    optimizer: optim.Optimizer,
    device: torch.device,
    epoch: int,
) -> tuple[float, float]:
    model.train()
    running_loss = 0.0
    correct = 0
    total = 0
    pbar = tqdm(train_loader, desc=f"Epoch {epoch} [Train]")
    for batch_idx, (inputs, targets) in enumerate(pbar):
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        _, predicted = outputs.max(1)
        total += targets.size(0)
        correct += predicted.eq(targets).sum().item()
        if batch_idx % 10 == 0:
            pbar.set_postfix({"loss": running_loss / (batch_idx + 1), "acc": 100.0 * correct / total})
    return running_loss / len(train_loader), 100.0 * correct / total


def validate(
    model: nn.Module, val_loader: DataLoader, criterion: nn.Module, device: torch.device, epoch: int
) -> tuple[float, float]:
    model.eval()
    running_loss = 0.0
    correct = 0
    total = 0
    with torch.no_grad():
        pbar = tqdm(val_loader, desc=f"Epoch {epoch} [Val]")
        for inputs, targets in pbar:
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            running_loss += loss.item()
            _, predicted = outputs.max(1)
            total += targets.size(0)
            correct += predicted.eq(targets).sum().item()
            pbar.set_postfix({"loss": running_loss / len(val_loader), "acc": 100.0 * correct / total})
    return running_loss / len(val_loader), 100.0 * correct / total


def train(task: Task) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_loader, val_loader = get_dataloaders(task.data)
    model = model_of(task).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)
    scheduler = CosineAnnealingLR(optimizer, T_max=task.epochs)
    best_val_acc = 0.0
    patience_counter = 0
    checkpoint_dir = Path("checkpoints")
    checkpoint_dir.mkdir(exist_ok=True)
    writer = SummaryWriter("runs/cifar10_cnn")
    for epoch in range(1, task.epochs + 1):
        train_loss, train_acc = train_one_epoch(model, train_loader, criterion, optimizer, device, epoch)
        val_loss, val_acc = validate(model, val_loader, criterion, device, epoch)
        task.end_of_epoch(epoch, val_acc / 100)
        scheduler.step()
        current_lr = optimizer.param_groups[0]["lr"]
        writer.add_scalar("Loss/train", train_loss, epoch)
        writer.add_scalar("Loss/val", val_loss, epoch)
        writer.add_scalar("Accuracy/train", train_acc, epoch)
        writer.add_scalar("Accuracy/val", val_acc, epoch)
        writer.add_scalar("LearningRate", current_lr, epoch)
        total_norm = 0.0
        for p in model.parameters():
            if p.grad is not None:
                total_norm += p.grad.data.norm(2).item() ** 2
        writer.add_scalar("GradientNorm", total_norm**0.5, epoch)
        print(f"\nEpoch {epoch}/{task.epochs}")
        print(f"Train Loss: {train_loss:.4f} | Train Acc: {train_acc:.2f}%")
        print(f"Val Loss: {val_loss:.4f} | Val Acc: {val_acc:.2f}%")
        print(f"LR: {current_lr:.6f}\n")
        if val_acc > best_val_acc:
            best_val_acc = val_acc
            patience_counter = 0
            torch.save(
                {
                    "epoch": epoch,
                    "model_state_dict": model.state_dict(),
                    "optimizer_state_dict": optimizer.state_dict(),
                    "val_acc": val_acc,
                },
                checkpoint_dir / "best_model.pth",
            )
        else:
            patience_counter += 1
        if patience_counter >= PATIENCE:
            print(f"\nEarly stopping triggered after {epoch} epochs")
            break
    writer.close()


if __name__ == "__main__":
    train(task_from_arguments())
