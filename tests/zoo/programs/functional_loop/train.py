"""An MLP on handwritten digits, with batches cut by hand from tensors."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

BATCH_SIZE = 50
MAX_EPOCHS = 40
PATIENCE = 6


def load_data():
    """Pixels scaled with the training statistics, (n, 64), and labels, (n,), for train, validation and test."""
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    train, val, test = slice(0, 1020), slice(1020, 1390), slice(1390, None)
    mean, std = x[train].mean(), x[train].std()
    x = (x - mean) / std
    return (x[train], y[train]), (x[val], y[val]), (x[test], y[test])


def build_model():
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def train_epoch(model, data, loss_fn, optimizer):
    """One pass over the data in random order; the mean loss a sample."""
    x, y = data
    model.train()
    perm = torch.randperm(len(x))
    total = 0.0
    for start in range(0, len(x), BATCH_SIZE):
        batch = perm[start : start + BATCH_SIZE]
        xb, yb = x[batch], y[batch]
        logits = model(xb)
        loss = loss_fn(logits, yb)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=5.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item() * len(batch)
    return total / len(x)


@torch.inference_mode()
def evaluate(model, data, loss_fn):
    """Mean loss a sample and accuracy in [0, 1]."""
    x, y = data
    model.eval()
    total, correct = 0.0, 0
    for start in range(0, len(x), BATCH_SIZE):
        xb, yb = x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]
        logits = model(xb)
        total += loss_fn(logits, yb).item() * len(yb)
        correct += (logits.argmax(1) == yb).sum().item()
    return total / len(x), correct / len(x)


def fit(model, train, val):
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=2)
    best_loss, best_state, waited = float("inf"), copy.deepcopy(model.state_dict()), 0
    for epoch in range(MAX_EPOCHS):
        train_loss = train_epoch(model, train, loss_fn, optimizer)
        val_loss, val_acc = evaluate(model, val, loss_fn)
        scheduler.step(val_loss)
        print(f"epoch {epoch:3d}: train {train_loss:.4f}, val {val_loss:.4f}, accuracy {val_acc:.4f}")
        if val_loss < best_loss:
            best_loss, best_state, waited = val_loss, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
        if waited >= PATIENCE:
            print("stopped early")
            break
    model.load_state_dict(best_state)


def main():
    torch.manual_seed(0)
    train, val, test = load_data()
    model = build_model()
    fit(model, train, val)
    test_loss, test_acc = evaluate(model, test, nn.CrossEntropyLoss())
    print(f"test: {test_loss:.4f}, accuracy {test_acc:.4f}")
    torch.save(model.state_dict(), "mlp.pt")


if __name__ == "__main__":
    main()
