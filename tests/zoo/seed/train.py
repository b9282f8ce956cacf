"""Train the network: the best model is kept, and a run that was interrupted goes on."""

from pathlib import Path

import torch
import yaml
from data import get_dataloaders
from model import SimpleCNN
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


def train_one_epoch(model, loader, criterion, optimizer, device, epoch):
    model.train()
    running_loss, correct, total = 0.0, 0, 0
    bar = tqdm(loader, desc=f"epoch {epoch} train")
    for batch, (inputs, targets) in enumerate(bar):
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        total += targets.size(0)
        correct += outputs.argmax(1).eq(targets).sum().item()
        if batch % 10 == 0:
            bar.set_postfix(loss=running_loss / (batch + 1), acc=100.0 * correct / total)
    return running_loss / len(loader), 100.0 * correct / total


def validate(model, loader, criterion, device, epoch):
    model.eval()
    running_loss, correct, total = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in tqdm(loader, desc=f"epoch {epoch} val"):
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = model(inputs)
            running_loss += criterion(outputs, targets).item()
            total += targets.size(0)
            correct += outputs.argmax(1).eq(targets).sum().item()
    return running_loss / len(loader), 100.0 * correct / total


def train(config_path="config.yaml", resume=True):
    with open(config_path) as file:
        config = yaml.safe_load(file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_loader, val_loader = get_dataloaders(config["batch_size"], config["num_workers"])
    model = SimpleCNN(num_classes=10).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=config["learning_rate"])
    scheduler = CosineAnnealingLR(optimizer, T_max=config["epochs"])
    writer = SummaryWriter("runs/cnn")

    best_val_acc, patience_counter, start_epoch = 0.0, 0, 1
    folder = Path("checkpoints")
    folder.mkdir(exist_ok=True)
    if resume and (folder / "best_model.pth").exists():
        checkpoint = torch.load(folder / "best_model.pth")
        model.load_state_dict(checkpoint["model_state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        start_epoch = checkpoint["epoch"] + 1
        best_val_acc = checkpoint["val_acc"]
        print(f"resumed from epoch {checkpoint['epoch']}")

    for epoch in range(start_epoch, config["epochs"] + 1):
        train_loss, train_acc = train_one_epoch(model, train_loader, criterion, optimizer, device, epoch)
        val_loss, val_acc = validate(model, val_loader, criterion, device, epoch)
        scheduler.step()

        writer.add_scalar("Loss/train", train_loss, epoch)
        writer.add_scalar("Loss/val", val_loss, epoch)
        writer.add_scalar("Accuracy/train", train_acc, epoch)
        writer.add_scalar("Accuracy/val", val_acc, epoch)
        writer.add_scalar("LearningRate", optimizer.param_groups[0]["lr"], epoch)
        total_norm = 0
        for p in model.parameters():
            if p.grad is not None:
                total_norm += p.grad.data.norm(2).item() ** 2
        writer.add_scalar("GradientNorm", total_norm**0.5, epoch)
        print(f"epoch {epoch}: train {train_loss:.4f} {train_acc:.2f}%, val {val_loss:.4f} {val_acc:.2f}%")

        if val_acc > best_val_acc:
            best_val_acc, patience_counter = val_acc, 0
            torch.save(
                {
                    "epoch": epoch,
                    "model_state_dict": model.state_dict(),
                    "optimizer_state_dict": optimizer.state_dict(),
                    "val_acc": val_acc,
                },
                folder / "best_model.pth",
            )
        else:
            patience_counter += 1
        if patience_counter >= config["patience"]:
            print(f"stopped early after epoch {epoch}")
            break
    writer.close()


if __name__ == "__main__":
    train()
