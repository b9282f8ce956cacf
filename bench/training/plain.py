"""A plain PyTorch loop, as a user would write it: no progress bar, one printed line and one checkpoint an epoch."""

from __future__ import annotations

import torch
from peer import Task, loaders_of, model_of, optimizer_of, task_from_arguments
from torch import nn
from torch.utils.data import DataLoader


def train(task: Task) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_loader, val_loader = loaders_of(task)
    model = model_of(task).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizer_of(task, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=task.epochs)
    for epoch in range(1, task.epochs + 1):
        train_loss = train_epoch(model, train_loader, criterion, optimizer, device)
        accuracy = validate(model, val_loader, device)
        task.end_of_epoch(epoch, accuracy)
        scheduler.step()
        print(f"epoch {epoch}: train loss {train_loss:.4f}, validation accuracy {accuracy:.2%}")
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, "checkpoint.pt")


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> float:
    """One pass over the training images; the mean loss."""
    model.train()
    total, count = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Share of right answers."""
    model.eval()
    correct, count = 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        correct += (model(images).argmax(1) == labels).sum().item()
        count += len(labels)
    return correct / count


if __name__ == "__main__":
    train(task_from_arguments())
