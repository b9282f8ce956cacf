"""Train a small vision transformer with gradient accumulation."""

import math

import torch
import torch.nn.functional as F
from model import ViT
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 16
MICRO_BATCH = 16
ACCUMULATE = 4  # micro-batches an update
LR = 3e-3
WARMUP_EPOCHS = 2


def make_data(n, seed):
    """Colour images of five blob patterns, (n, 3, 16, 16), and their classes, (n,)."""
    patterns = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(11))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=generator)
    images = F.interpolate(patterns, size=(16, 16), mode="bilinear")[labels]
    images = (images + 1.6 * torch.randn(images.shape, generator=generator)) / 1.8
    return TensorDataset(images, labels)


def train_epoch(model, loader, optimizer, scheduler):
    """Returns the mean loss a sample."""
    model.train()
    total, seen = 0.0, 0
    optimizer.zero_grad()
    for step, (images, labels) in enumerate(loader):
        # The last window may hold fewer micro-batches than the others.
        window = min(ACCUMULATE, len(loader) - step // ACCUMULATE * ACCUMULATE)
        loss = F.cross_entropy(model(images), labels)
        (loss / window).backward()
        if (step + 1) % ACCUMULATE == 0 or step + 1 == len(loader):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        total += loss.item() * len(labels)
        seen += len(labels)
    return total / seen


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    total, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        total += F.cross_entropy(logits, labels).item() * len(labels)
        correct += (logits.argmax(dim=-1) == labels).sum().item()
        seen += len(labels)
    return total / seen, correct / seen


def main():
    torch.manual_seed(0)
    train_loader = DataLoader(make_data(600, seed=1), batch_size=MICRO_BATCH, shuffle=True)
    val_loader = DataLoader(make_data(150, seed=2), batch_size=64)
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)

    updates_per_epoch = math.ceil(len(train_loader) / ACCUMULATE)
    warmup, total = WARMUP_EPOCHS * updates_per_epoch, EPOCHS * updates_per_epoch

    def factor(update):
        if update < warmup:
            return (update + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    best = 0.0
    for epoch in range(EPOCHS):
        train_loss = train_epoch(model, train_loader, optimizer, scheduler)
        val_loss, val_acc = evaluate(model, val_loader)
        print(f"epoch {epoch + 1:2d}  train {train_loss:.4f}  val {val_loss:.4f}  acc {val_acc:.4f}")
        if val_acc > best:
            best = val_acc
            torch.save({"model": model.state_dict(), "epoch": epoch, "acc": val_acc}, "vit_best.pt")
    print(f"best accuracy {best:.4f}")


if __name__ == "__main__":
    main()
