"""Train and test the network that config.yaml describes; continues from last.pt when there is one."""

import argparse
import csv
from pathlib import Path

import torch
import yaml
from data import build_loaders
from model import SmallResNet
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


def run_epoch(model, loader, criterion, device, optimizer=None, grad_clip=None):
    """One pass over a loader; trains when there is an optimizer. Mean loss a sample and accuracy."""
    training = optimizer is not None
    model.train(training)
    total_loss, total_correct, total = 0.0, 0, 0
    with torch.set_grad_enabled(training):
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            loss = criterion(logits, labels)
            if training:
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
                optimizer.step()
            total_loss += loss.detach().item() * labels.size(0)
            total_correct += (logits.argmax(dim=1) == labels).sum().item()
            total += labels.size(0)
    return total_loss / total, total_correct / total


def build_scheduler(optimizer, epochs, warmup_epochs):
    """Linear warmup, then cosine decay over the epochs that are left; stepped once an epoch."""
    warmup = LinearLR(optimizer, start_factor=0.2, total_iters=warmup_epochs)
    cosine = CosineAnnealingLR(optimizer, T_max=epochs - warmup_epochs)
    return SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_epochs])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    args = parser.parse_args()
    cfg = yaml.safe_load(args.config.read_text())
    torch.manual_seed(cfg["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out_dir = Path(cfg["output"]["dir"])
    out_dir.mkdir(parents=True, exist_ok=True)

    train_loader, val_loader, test_loader = build_loaders(cfg["data"])
    model = SmallResNet(cfg["data"]["num_classes"], cfg["model"]["channels"], cfg["model"]["dropout"]).to(device)
    criterion = nn.CrossEntropyLoss(label_smoothing=cfg["train"]["label_smoothing"])
    eval_criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg["train"]["lr"], weight_decay=cfg["train"]["weight_decay"])
    scheduler = build_scheduler(optimizer, cfg["train"]["epochs"], cfg["train"]["warmup_epochs"])

    start_epoch, best_acc, bad_epochs = 0, 0.0, 0
    last_path, best_path = out_dir / "last.pt", out_dir / "best.pt"
    if last_path.exists():
        ckpt = torch.load(last_path, map_location=device, weights_only=True)
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        scheduler.load_state_dict(ckpt["scheduler"])
        torch.set_rng_state(ckpt["rng"].cpu())
        start_epoch, best_acc, bad_epochs = ckpt["epoch"] + 1, ckpt["best_acc"], ckpt["bad_epochs"]
        print(f"continuing at epoch {start_epoch}")

    log_path = out_dir / "log.csv"
    if not log_path.exists():
        log_path.write_text("epoch,lr,train_loss,train_acc,val_loss,val_acc\n")
    for epoch in range(start_epoch, cfg["train"]["epochs"]):
        lr = optimizer.param_groups[0]["lr"]
        train_loss, train_acc = run_epoch(
            model, train_loader, criterion, device, optimizer, grad_clip=cfg["train"]["grad_clip"]
        )
        val_loss, val_acc = run_epoch(model, val_loader, eval_criterion, device)
        scheduler.step()
        with log_path.open("a", newline="") as file:
            csv.writer(file).writerow([epoch, lr, train_loss, train_acc, val_loss, val_acc])
        print(f"[{epoch:02d}] lr {lr:.5f} loss {train_loss:.4f}/{val_loss:.4f} acc {train_acc:.3f}/{val_acc:.3f}")

        is_best = val_acc > best_acc
        if is_best:
            best_acc, bad_epochs = val_acc, 0
            torch.save({"model": model.state_dict(), "epoch": epoch, "val_acc": val_acc}, best_path)
        else:
            bad_epochs += 1
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": torch.get_rng_state(),
                "epoch": epoch,
                "best_acc": best_acc,
                "bad_epochs": bad_epochs,
            },
            last_path,
        )
        if bad_epochs >= cfg["train"]["patience"]:
            print("early stopping")
            break

    model.load_state_dict(torch.load(best_path, map_location=device, weights_only=True)["model"])
    test_loss, test_acc = run_epoch(model, test_loader, eval_criterion, device)
    print(f"test loss {test_loss:.4f} accuracy {test_acc:.4f}")


if __name__ == "__main__":
    main()
