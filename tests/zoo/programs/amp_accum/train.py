"""Mixed precision and gradient accumulation in a plain loop."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

EPOCHS = 10
BATCH_SIZE = 32
ACCUMULATE = 2
MAX_NORM = 1.0
LR = 0.05


class Sequences(Dataset):
    """Signals of 2 channels and 32 steps, as dicts; the class is the frequency that both channels share."""

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(4, (n,), generator=g)
        time = torch.arange(32) / 32
        phase = 6.28 * torch.rand(n, 2, 1, generator=g)
        self.x = torch.sin(6.28 * (self.y + 1).view(-1, 1, 1) * time + phase) + 0.8 * torch.randn(n, 2, 32, generator=g)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"signal": self.x[i], "label": self.y[i]}


def build_model():
    return nn.Sequential(
        nn.Conv1d(2, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def train(model, loader, criterion, optimizer, scaler, device, dtype):
    model.train()
    loss_sum, n = 0.0, 0
    optimizer.zero_grad(set_to_none=True)
    for i, batch in enumerate(loader):
        x, y = batch["signal"].to(device), batch["label"].to(device)
        with torch.autocast(device_type=device.type, dtype=dtype):
            logits = model(x)
            loss = criterion(logits, y) / ACCUMULATE
        scaler.scale(loss).backward()

        if (i + 1) % ACCUMULATE == 0 or (i + 1) == len(loader):
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        loss_sum += loss.item() * ACCUMULATE * y.size(0)
        n += y.size(0)
    return loss_sum / n


def test(model, loader, criterion, device):
    model.eval()
    loss_sum, correct, n = 0.0, 0, 0
    with torch.inference_mode():
        for batch in loader:
            x, y = batch["signal"].to(device), batch["label"].to(device)
            logits = model(x)
            loss_sum += criterion(logits, y).item() * y.size(0)
            correct += logits.argmax(1).eq(y).sum().item()
            n += y.size(0)
    return loss_sum / n, 100.0 * correct / n


def main():
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    train_loader = DataLoader(Sequences(620, 1), batch_size=BATCH_SIZE, shuffle=True)
    val_loader = DataLoader(Sequences(150, 2), batch_size=BATCH_SIZE)

    model = build_model().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[6, 9], gamma=0.2)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)

    for epoch in range(1, EPOCHS + 1):
        train_loss = train(model, train_loader, criterion, optimizer, scaler, device, dtype)
        val_loss, val_acc = test(model, val_loader, criterion, device)
        scheduler.step()
        print(f"Epoch {epoch}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, val accuracy {val_acc:.1f}%")
        torch.save(
            {
                "epoch": epoch,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": scaler.state_dict(),
            },
            "checkpoint.pt",
        )


if __name__ == "__main__":
    main()
